"""The public API of attestation: evidence in, a verdict with its reasons out. Nothing is fetched from anywhere.

Everything below is imported on use, as in ``app.py``. Types are those of ``evidence/verdict.py``.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from casemate.errors import InputError

if TYPE_CHECKING:
    from casemate.evidence.crl import RevocationList
    from casemate.evidence.policy import Policy
    from casemate.evidence.verdict import Verified
    from casemate.evidence.verify import Inputs
    from casemate.evidence.x509 import Certificate

__all__ = [
    "document_of",
    "gather",
    "load_policy",
    "render_text",
    "verify_evidence",
]

EVIDENCE_MAX_BYTES = 1 << 20
COMPANION_MAX_BYTES = 32 << 20


def verify_evidence(path: str, inputs: Inputs, policy: Policy) -> Verified:
    """Verify one file of evidence; its kind is told by its content.

    Raises:
        InputError: it cannot be read, or is of no kind that is known.
    """
    from casemate.evidence.verify import verify

    return verify(_read(path, EVIDENCE_MAX_BYTES), inputs, policy)


def gather(
    *,
    certificates: Sequence[str] = (),
    collateral: str | None = None,
    event_log: str | None = None,
    nonce: str | None = None,
    at: str | None = None,
    anchors: Sequence[str] = (),
) -> Inputs:
    """What comes along with evidence, out of files and texts.

    Args:
        certificates: files with certificates and revocation lists, PEM or DER.
        nonce: hexadecimal.
        at: RFC 3339, ``document`` for the evidence's own time, None for now.
        anchors: files with what is believed: certificates (a maker's root of attestation keys), or public keys.

    Raises:
        InputError: a file cannot be read, a text is of another form.
    """
    import hashlib

    from casemate.engine.authorities import known_authorities
    from casemate.evidence.companions import parse_companions
    from casemate.evidence.verify import Inputs

    given: list[Certificate] = []
    lists: list[RevocationList] = []
    pinned: list[str] = []
    keys: list[str] = []
    for name in certificates:
        found = parse_companions(_read(name, COMPANION_MAX_BYTES), name)
        given += found.certificates
        lists += found.lists
    for name in anchors:
        found = parse_companions(_read(name, COMPANION_MAX_BYTES), name)
        given += found.certificates
        pinned += [hashlib.sha256(item.encoded).hexdigest() for item in found.certificates]
        keys += [hashlib.sha256(key).hexdigest() for key in found.keys]
    return Inputs(
        certificates=(*given, *known_authorities()),
        collateral=None if collateral is None else _read(collateral, COMPANION_MAX_BYTES),
        event_log=None if event_log is None else _read(event_log, COMPANION_MAX_BYTES),
        nonce=None if nonce is None else _nonce(nonce),
        moment=_moment(at),
        anchors=tuple(pinned),
        keys=tuple(keys),
        revocations=tuple(lists),
    )


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
    from casemate.evidence.policy import Policy, parse_policy

    if path is None:
        return Policy()
    return parse_policy(_read(path, EVIDENCE_MAX_BYTES).decode("utf-8", "backslashreplace"), path)


def document_of(name: str, found: Verified) -> dict[str, Any]:
    """One verdict as the document of ``casemate attest verify --json``, schema ``casemate.attest/1``."""
    return {
        "schema": "casemate.attest/1",
        "evidence": name,
        "kind": found.kind,
        "true": found.is_true,
        "accepted": found.is_accepted,
        "reasons": [{"step": item.step.value, "code": item.code, "message": item.message} for item in found.reasons],
        "claims": dict(found.claims),
        "notes": list(found.notes),
    }


def render_text(name: str, found: Verified) -> str:
    """One verdict for a person."""
    word = "accepted" if found.is_accepted else "true, and refused by the policy" if found.is_true else "refused"
    lines = [f"{name}: {found.kind}: {word}"]
    lines += [f"  {item.step.value}: {item.message} [{item.code}]" for item in found.reasons]
    lines += [f"  note: {text}" for text in found.notes]
    lines += [f"  {key}: {value}" for key, value in found.claims.items() if value != ""]
    return "\n".join(lines)


def _read(name: str, limit: int) -> bytes:
    from casemate.audit.text import read_input

    return read_input(name, limit)
