"""A verdict on evidence as text and as JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from casemate.errors import CasemateError
from casemate.evidence.verdict import Claim, Revocation, Step, Verified

SCHEMA: Final = "casemate.attest/1"
_STEPS: Final = {
    Step.TRUTH: "not true",
    Step.STALE: "out of its time",
    Step.POLICY: "not as the policy wants",
}
_NAMES: Final = {
    "sev-snp": "SEV-SNP report",
    "tdx": "TDX quote",
    "tpm": "TPM quote",
    "nitro": "Nitro enclave's document",
    "nitro-tpm": "NitroTPM document",
    "se": "IBM Secure Execution evidence",
    "azure-snp": "Azure evidence on SEV-SNP",
    "azure-tdx": "Azure evidence on TDX",
    "event-log": "event log",
    "tpm-endorsement": "endorsement key of a TPM",
    "tpm-activation": "a TPM's proof that an attestation key is in it",
}
_REVOCATION: Final = {
    Revocation.CHECKED: "checked: nothing in the chain is on its issuers' lists",
    Revocation.UNKNOWN: "not known: no current list of the chain's issuers came along (--certs, or attest fetch)",
    Revocation.UNPUBLISHED: "nobody publishes lists for this chain",
}
_PCR: Final = re.compile(r"(sha1|sha256|sha384|sha512)-pcr([0-9]+)")


def document_of(name: str, found: Verified) -> dict[str, Any]:
    """One verdict as the document of ``casemate attest verify --json``."""
    return {
        "schema": SCHEMA,
        "evidence": name,
        "kind": found.kind,
        "true": found.is_true,
        "accepted": found.is_accepted,
        "reasons": [{"step": item.step.value, "code": item.code, "message": item.message} for item in found.reasons],
        "claims": dict(found.claims),
        "notes": list(found.notes),
        "revocation": found.revocation.value,
    }


def document_of_unreadable(name: str, error: CasemateError) -> dict[str, Any]:
    """What stands in the place of a verdict when there can be none."""
    message = "; ".join(part for part in (error.what, error.got) if part)
    return {
        "schema": SCHEMA,
        "evidence": name,
        "kind": None,
        "true": False,
        "accepted": False,
        "reasons": [{"step": "unreadable", "code": "unreadable", "message": message}],
        "claims": {},
        "notes": [],
        "revocation": Revocation.UNKNOWN.value,
    }


def render_text(name: str, found: Verified) -> str:
    """One verdict for a person: what came of it, every reason by step, what is not known, what it claims."""
    stale = found.reasons and all(item.step is not Step.TRUTH for item in found.reasons) and not found.is_true
    word = (
        "accepted"
        if found.is_accepted
        else "true, and refused by the policy"
        if found.is_true
        else "refused: out of its time"
        if stale
        else "refused: not true"
    )
    lines = [f"{name}: {_NAMES.get(found.kind, found.kind)}: {word}"]
    for step, title in _STEPS.items():
        reasons = [item for item in found.reasons if item.step is step]
        lines += [f"  {title}"] if reasons else []
        lines += [f"    {item.message} [{item.code}]" for item in reasons]
    if found.kind != "event-log":
        lines += ["  revocation", f"    {_REVOCATION[found.revocation]}"]
    lines += ["  notes", *(f"    {text}" for text in found.notes)] if found.notes else []
    lines += ["  it says" if found.is_true else "  it says, which is not to be believed"]
    shown = list(_shown(found.claims))
    width = max([18, *(len(key) for key, _ in shown)])
    lines += [f"    {key:<{width}} {value}" for key, value in shown]
    return "\n".join(lines)


def _shown(claims: Mapping[str, Claim]) -> Iterator[tuple[str, str]]:
    """What a person wants to see: no empty values; of PCRs one bank, and of that none that nothing extended."""
    banks = [match[1] for match in map(_PCR.fullmatch, claims) if match]
    best = max(banks, key=("sha1", "sha256", "sha384", "sha512").index, default="")
    if "sha256" in banks:
        best = "sha256"  # what everybody else prints and compares
    left_out = 0
    for name, value in claims.items():
        match = _PCR.fullmatch(name)
        if match and (match[1] != best or not str(value).strip("0") or not str(value).strip("f")):
            left_out += 1
        elif value != "":
            yield name, ("yes" if value else "no") if isinstance(value, bool) else str(value)
    if left_out:
        yield "(not shown)", f"{left_out} PCR values of other banks, or that nothing extended; --json has all"
