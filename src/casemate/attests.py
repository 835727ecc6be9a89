"""The public API of attestation: evidence in, a verdict with its reasons out. Only `fetch_collateral` goes anywhere.

Everything below is imported on use, as in ``app.py``. Types are those of ``evidence/verdict.py``.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from casemate.errors import CasemateError, InputError

if TYPE_CHECKING:
    from casemate.evidence.crl import RevocationList
    from casemate.evidence.policy import Policy
    from casemate.evidence.verdict import Verified
    from casemate.evidence.verify import Inputs
    from casemate.evidence.x509 import Certificate

__all__ = [
    "EAR_PROFILES",
    "document_of",
    "document_of_unreadable",
    "fetch_collateral",
    "gather",
    "host_jwk",
    "load_policy",
    "read_policy",
    "render_text",
    "signed_ear",
    "verify_evidence",
]

EVIDENCE_MAX_BYTES = 1 << 20
COMPANION_MAX_BYTES = 32 << 20


def verify_evidence(path: str, inputs: Inputs, policy: Policy, *, use_cache: bool = False) -> Verified:
    """Verify one file of evidence; its kind is told by its content. Nothing is fetched.

    Args:
        use_cache: whether what `fetch_collateral` brought comes along, where it was not given.

    Raises:
        InputError: it cannot be read, or is of no kind that is known.
    """
    from casemate.evidence.verify import verify

    data = _read(path, EVIDENCE_MAX_BYTES)
    return verify(data, _with_cache(data, inputs) if use_cache else inputs, policy)


def _with_cache(data: bytes, inputs: Inputs) -> Inputs:
    """The inputs, and what the cache has for this evidence, but for lists that are newer than the moment asked for."""
    import msgspec

    from casemate.engine.collateral import cached
    from casemate.engine.paths import default_paths
    from casemate.evidence.crl import parse_list
    from casemate.evidence.wanted import wanted_for
    from casemate.evidence.x509 import parse

    try:
        items = wanted_for(data)
    except InputError:
        return inputs  # verifying says it better
    cache = default_paths().cache
    found = [(item.kind, content) for item in items if (content := cached(cache, item)) is not None]
    certificates = tuple(parse(content) for kind, content in found if kind == "vcek")
    lists = [parse_list(content) for kind, content in found if kind == "list"]
    collateral = next((content for kind, content in found if kind == "collateral"), None)
    return msgspec.structs.replace(
        inputs,
        certificates=(*inputs.certificates, *certificates),
        revocations=(
            *inputs.revocations,
            *(item for item in lists if inputs.moment is None or item.this_update <= inputs.moment),
        ),
        collateral=inputs.collateral if inputs.collateral is not None else collateral,
    )


def fetch_collateral(
    paths: Sequence[str],
    *,
    amd: str | None = None,
    intel: str | None = None,
    ca_file: str | None = None,
    refresh: bool = False,
    progress: Callable[[str], None] = lambda what: None,
) -> list[dict[str, Any]]:
    """Bring into the cache what makers publish for pieces of evidence (AMD's KDS, Intel's PCS): certificates, lists,
    collateral. The only function here that goes to the network.

    Args:
        amd, intel: https URLs of the services, or of caches of one's own (PCCS); None: the makers'.
        ca_file: with which servers are verified; None: the system's.
        refresh: also what is still good.
        progress: told what is fetched.

    Returns:
        the items of ``casemate attest fetch --json``, schema ``casemate.attest-fetch/1``.

    Raises:
        InputError: evidence that cannot be read. HostError: the cache cannot be written.
    """
    from casemate.engine.collateral import fetch
    from casemate.engine.paths import default_paths
    from casemate.evidence import wanted

    items: list[wanted.Wanted] = []
    for path in paths:
        data = _read(path, EVIDENCE_MAX_BYTES)
        items += wanted.wanted_for(
            data, amd=(amd or wanted.AMD_URL).rstrip("/"), intel=(intel or wanted.INTEL_URL).rstrip("/")
        )
    outcomes = fetch(
        default_paths().cache,
        tuple({item.name: item for item in items}.values()),
        datetime.datetime.now(datetime.UTC),
        ca_file=ca_file,
        refresh=refresh,
        progress=lambda item: progress(item.what),
    )
    return [
        {
            "name": found.item.name,
            "what": found.item.what,
            "state": found.state,
            "until": found.until.strftime("%Y-%m-%dT%H:%M:%SZ") if found.until is not None else None,
            "error": None if found.error is None else "; ".join(filter(None, (found.error.what, found.error.got))),
        }
        for found in outcomes
    ]


def gather(
    *,
    certificates: Sequence[str] = (),
    collateral: str | None = None,
    event_log: str | None = None,
    nonce: str | None = None,
    at: str | None = None,
    anchors: Sequence[str] = (),
    signature: str | None = None,
    pcrs: str | None = None,
    request_key: str | None = None,
) -> Inputs:
    """What comes along with evidence, out of files and texts.

    Args:
        certificates: files with certificates and revocation lists, PEM or DER.
        nonce: hexadecimal.
        at: RFC 3339, ``document`` for the evidence's own time, None for now.
        signature, pcrs: files beside a TPM's quote.
        anchors: files with what is believed: certificates (a maker's root of attestation keys), or public keys.
        request_key: the file with the key of a request for Secure Execution evidence.

    Raises:
        InputError: a file cannot be read, a text is of another form.
    """
    import hashlib

    from casemate.engine.authorities import known_authorities
    from casemate.evidence.companions import parse_companions
    from casemate.evidence.tpm import parse_key
    from casemate.evidence.verify import Inputs

    given: list[Certificate] = []
    lists: list[RevocationList] = []
    pinned: list[str] = []
    keys: list[bytes] = []
    for name in certificates:
        found = parse_companions(_read(name, COMPANION_MAX_BYTES), name)
        given += found.certificates
        lists += found.lists
    for name in anchors:
        found = parse_companions(_read(name, COMPANION_MAX_BYTES), name)
        given += found.certificates
        pinned += [hashlib.sha256(item.encoded).hexdigest() for item in found.certificates]
        keys += found.keys
    return Inputs(
        certificates=(*given, *known_authorities()),
        collateral=None if collateral is None else _read(collateral, COMPANION_MAX_BYTES),
        event_log=None if event_log is None else _read(event_log, COMPANION_MAX_BYTES),
        nonce=None if nonce is None else _nonce(nonce),
        moment=_moment(at),
        anchors=tuple(pinned),
        keys=tuple(hashlib.sha256(parse_key(key).key).hexdigest() for key in keys),
        public_keys=tuple(keys),
        signature=None if signature is None else _read(signature, COMPANION_MAX_BYTES),
        pcrs=None if pcrs is None else _read(pcrs, COMPANION_MAX_BYTES),
        revocations=tuple(lists),
        request_key=None if request_key is None else _request_key(request_key),
    )


def _request_key(name: str) -> bytes:
    from casemate.evidence.se_true import REQUEST_KEY_BYTES

    key = _read(name, COMPANION_MAX_BYTES)
    if len(key) != REQUEST_KEY_BYTES:
        raise InputError(
            f"{name} is no key of a request", got=f"{len(key)} bytes", expected="the file of `pvattest create --arpk`"
        )
    return key


def _nonce(text: str) -> bytes:
    try:
        nonce = bytes.fromhex(text)
    except ValueError:
        nonce = b""
    if not 1 <= len(nonce) <= 64:
        raise InputError("the nonce", got=f"{len(text)} characters", expected="1 to 64 bytes in hexadecimal")
    return nonce


def _moment(at: str | None) -> datetime.datetime | None:
    if at is None:
        return datetime.datetime.now(datetime.UTC)
    if at == "document":
        return None
    try:
        moment = datetime.datetime.fromisoformat(at)
    except ValueError:
        raise InputError(f"--at {at}", expected="a time as 2026-01-31T12:00:00Z, or document") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)


def load_policy(path: str | None) -> Policy:
    """The policy of a file; None: the default.

    Raises:
        InputError, SpecError: it cannot be read, or has faults.
    """
    return read_policy(path)[0]


def read_policy(path: str | None) -> tuple[Policy, bytes]:
    """(the policy of a file, its text); None: the default, which has none.

    Raises:
        InputError, SpecError: it cannot be read, or has faults.
    """
    from casemate.evidence.policy import Policy, parse_policy

    if path is None:
        return Policy(), b""
    text = _read(path, EVIDENCE_MAX_BYTES)
    return parse_policy(text.decode("utf-8", "backslashreplace"), path), text


def document_of(name: str, found: Verified) -> dict[str, Any]:
    """One verdict as the document of ``casemate attest verify --json``, schema ``casemate.attest/1``."""
    from casemate.report import attestation

    return attestation.document_of(name, found)


def document_of_unreadable(name: str, error: CasemateError) -> dict[str, Any]:
    """What stands in the place of a verdict when there can be none; same schema."""
    from casemate.report import attestation

    return attestation.document_of_unreadable(name, error)


def render_text(name: str, found: Verified) -> str:
    """One verdict for a person."""
    from casemate.report import attestation

    return attestation.render_text(name, found)


EAR_PROFILES = ("2023", "2026-03")
EAR_LIFETIME_S = 3600


def signed_ear(
    results: Sequence[Verified],
    policy: Policy,
    *,
    policy_text: bytes,
    nonce: bytes | None,
    build: str,
    profile: str = "2023",
    lifetime_s: int = EAR_LIFETIME_S,
) -> str:
    """An EAT Attestation Result over the verdicts: a JWT (EdDSA) by this host's key, which is made at first use.

    Args:
        policy_text: the policy as it was read; its digest is the policy's name. Empty for the default policy.
        build: of this program.
        profile: one of `EAR_PROFILES`.

    Raises:
        HostError: the key cannot be read or made.
    """
    import hashlib
    import time
    import warnings
    from pathlib import Path

    from joserfc import jwk, jwt

    from casemate.engine.keys import load_or_create_key
    from casemate.engine.paths import default_paths
    from casemate.evidence.ear import ear_claims, labelled
    from casemate.evidence.textual import url64

    host_key = load_or_create_key(Path(default_paths().data))
    claims = ear_claims(
        labelled(results),
        policy,
        policy_id=f"sha256:{hashlib.sha256(policy_text).hexdigest()}" if policy_text else "casemate:default",
        issued_at_s=int(time.time()),
        lifetime_s=lifetime_s,
        build=build,
        nonce=nonce,
        profile=profile,
    )
    public = host_jwk(host_key.public)
    key = jwk.OKPKey.import_key({**public, "d": url64(host_key.private.private_bytes_raw())})
    with warnings.catch_warnings():
        # RFC 9864 renames it to Ed25519, which the libraries that read attestation results do not know yet.
        warnings.simplefilter("ignore")
        return jwt.encode({"alg": "EdDSA", "typ": "JWT", "kid": public["kid"]}, claims, key, algorithms=["EdDSA"])


def host_jwk(public: bytes | None = None) -> dict[str, str]:
    """This host's public key as a JWK (RFC 8037), named by its thumbprint (RFC 7638); made at first use.

    Args:
        public: the key, 32 bytes; None reads it.
    """
    import hashlib
    from pathlib import Path

    from casemate.engine.keys import load_or_create_key
    from casemate.engine.paths import default_paths
    from casemate.evidence.textual import url64

    if public is None:
        public = load_or_create_key(Path(default_paths().data)).public
    x = url64(public)
    name = url64(hashlib.sha256(f'{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}'.encode()).digest())
    return {"kty": "OKP", "crv": "Ed25519", "x": x, "kid": name, "use": "sig"}


def _read(name: str, limit: int) -> bytes:
    from casemate.audit.text import read_input

    return read_input(name, limit)
