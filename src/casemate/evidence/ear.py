"""A verdict as the claims of an EAT Attestation Result (draft-ietf-rats-ear) with AR4SI's trustworthiness vector.

Whoever relies on it asks for the status: `affirming` when the evidence is true and as the policy wants, and in every
other case `contraindicated`, whatever the vector's tiers would add up to: a refusal is never a warning. The vector says
where it went wrong. No claim is made of what nobody asked for: executables are affirmed when a policy names
measurements, and stay unnamed under the default policy.

Two forms of one content: the draft's third revision, and the first, which the libraries of today read (Veraison's
`ear`, `rust-ear` in trustee).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from casemate.evidence.policy import Policy, names_measurements
from casemate.evidence.textual import url64
from casemate.evidence.verdict import Reason, Step, Verified

CRYPTOGRAPHY_FAILED: Final = 99
"""AR4SI 2.3.2: cryptographic validation of the evidence failed."""
_NONCE_BYTES: Final = range(8, 65)

PROFILES: Final[Mapping[str, tuple[str, str]]] = {
    "2023": ("tag:github.com,2023:veraison/ear", "."),
    "2026-03": ("tag:ietf.org,2026:rats/ear#03", "_"),
}
"""Name to (``eat_profile``, what stands between the words of a claim's name)."""

_PARTS: Final = (
    ("runtime-opaque", 96, ("debug",)),
    (
        "configuration",
        96,
        (
            "debug",
            "vmpl",
            "policy-bits",
            "migration-agent",
            "migratable",
            "sept-ve",
            "service-td",
            "attribute-bits",
            "smt",
        ),
    ),
    ("hardware", 32, ("tcb", "advisory", "provisional", "platform", "mitigation", "product", "mrseam")),
    (
        "instance-identity",
        97,
        ("chip-id", "provider", "gce-project", "id-key-digest", "author-key-digest", "nonce", "revocation"),
    ),
    (
        "executables",
        33,
        (
            *("measurement", "host-data", "family-id", "image-id", "guest-svn", "mrtd", "mrconfigid", "mrowner"),
            *("mrownerconfig", "mrservicetd", "rtmr", "pcr", "sha1", "sha256", "sha384", "sha512", "user-data"),
            "secure-boot",
        ),
    ),
)
"""(claim of the vector, value, what a policy's reason begins with): AR4SI 2.3.4. 96 configuration unsupported, run time
visible from outside; 97 instance not recognised; 33 executables not recognised; 32 hardware with known weaknesses."""
_HARDWARE: Final = {"sev-snp", "tdx", "azure-snp", "azure-tdx", "se"}


def ear_claims(
    results: Sequence[tuple[str, Verified]],
    policy: Policy,
    *,
    policy_id: str,
    issued_at_s: int,
    lifetime_s: int,
    build: str,
    nonce: bytes | None = None,
    profile: str = "2023",
) -> dict[str, Any]:
    """The claims set of one result over several pieces of evidence, each a submodule.

    Args:
        results: (label, verdict); labels are unique.
        policy_id: by which others know the policy.
        build: of this verifier.
        profile: one of `PROFILES`.

    Raises:
        RuntimeError: no results, or two of one label.
    """
    labels = [label for label, _ in results]
    if not results or len(set(labels)) != len(labels):
        raise RuntimeError("an attestation result needs verdicts with labels of their own")
    name, between = PROFILES[profile]
    claims: dict[str, Any] = {
        "eat_profile": name,
        "iat": issued_at_s,
        "exp": issued_at_s + lifetime_s,
        _name("ear.verifier-id", between): {"developer": "Casemate", "build": build},
        "submods": {label: _appraisal(found, policy, policy_id, between) for label, found in results},
    }
    if nonce is not None and len(nonce) in _NONCE_BYTES:
        claims["eat_nonce"] = url64(nonce)
    return claims


def labelled(results: Sequence[Verified]) -> list[tuple[str, Verified]]:
    """The verdicts by their labels as submodules: the kind of evidence, and a number from the second of a kind on."""
    seen: dict[str, int] = {}
    found = []
    for item in results:
        seen[item.kind] = count = seen.get(item.kind, 0) + 1
        found.append((item.kind if count == 1 else f"{item.kind}-{count}", item))
    return found


def _appraisal(found: Verified, policy: Policy, policy_id: str, between: str) -> dict[str, Any]:
    identifier: Any = policy_id if between == "." else [policy_id]
    return {
        _name("ear.status", between): "affirming" if found.is_accepted else "contraindicated",
        _name("ear.trustworthiness-vector", between): trust_vector(found, policy),
        _name("ear.appraisal-policy-id" if between == "." else "ear.appraisal-policy-ids", between): identifier,
        _name("ear.veraison.annotated-evidence", between): {"kind": found.kind, **found.claims},
        _name("ear.veraison.policy-claims", between): {
            "reasons": [
                {"step": item.step.value, "code": item.code, "message": item.message} for item in found.reasons
            ],
            "notes": list(found.notes),
            "revocation": found.revocation.value,
        },
    }


def trust_vector(found: Verified, policy: Policy) -> dict[str, int]:
    """AR4SI's vector: 2 and 3 affirm, 32 to 95 warn, 96 and above speak against it; what is left out says nothing."""
    vector = {"instance-identity": 2, "hardware": 2, "configuration": 3}
    if found.kind in _HARDWARE:
        vector["runtime-opaque"] = 2
    if names_measurements(found.kind, policy):
        vector["executables"] = 3
    for reason in found.reasons:
        for part, value in _against(reason, vector):
            vector[part] = max(vector.get(part, 0), value)
    return vector


def _against(reason: Reason, vector: Mapping[str, int]) -> list[tuple[str, int]]:
    if reason.step is Step.TRUTH:
        return [(part, CRYPTOGRAPHY_FAILED) for part in vector]
    if reason.step is Step.STALE:
        return [("hardware", 32), ("instance-identity", 97)]
    first = reason.code.partition(".")[0].rstrip("0123456789")
    named = [(part, value) for part, value, codes in _PARTS if reason.code in codes or first in codes]
    named += [
        (part, value)
        for part, value, codes in _PARTS
        if any(reason.code.startswith((f"{code}-", f"{code}.")) for code in codes)
    ]
    return named or [("configuration", 96)]


def _name(dotted: str, between: str) -> str:
    return dotted if between == "." else dotted.replace(".", "_").replace("-", "_")
