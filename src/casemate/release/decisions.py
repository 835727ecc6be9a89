"""What was decided, and why: entries signed with the host's key, each with the hash of the one before. No secret, no
cookie, no nonce ever stands in one. Bytes in, bytes out; the file is `decision_log`'s.

A line of the log is ``{"entry": {...}, "signature": "128 hexadecimal digits"}`` in canonical form (`evidence.record`).
The signature is Ed25519 over ``DOMAIN`` and the entry's bytes. ``previous`` is the SHA-256 of the line before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec import Meta

from casemate.errors import InputError
from casemate.evidence.record import ChainLink, Instant, Sha256, canonical_json, sha256_hex

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

DOMAIN: Final = b"casemate key release v1\n"
LINE_MAX_BYTES: Final = 512 << 10
"""More than the bounds of its parts allow together: an entry is never too long to be written."""
_TEXT_MAX: Final = 512
_REASONS_MAX: Final = 32

Event = Literal["started", "attested", "refused", "released", "denied", "failed"]
"""``refused``: evidence, or a message; ``denied``: a resource; ``failed``: a secret's source, the log's repair."""


class Because(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One reason, as `evidence.verdict.Reason` has it, and the policy (a file's name) that gave it."""

    code: str
    message: str
    policy: str = ""


class Decision(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One entry. ``claims``: what true evidence said, where evidence was judged. ``suppressed``: how many entries of
    this kind were not written since the last one, because there were too many in a minute."""

    sequence: Annotated[int, Meta(ge=1)]
    previous: Sha256
    key_sha256: Sha256
    at: Instant
    event: Event
    peer: str = ""
    session: str = ""
    tee: str = ""
    resource: str = ""
    reasons: tuple[Because, ...] = ()
    claims: dict[str, str | int | bool] = {}
    evidence_sha256: str = ""
    suppressed: int = 0


class _Signed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    entry: msgspec.Raw
    signature: Annotated[str, Meta(pattern="^[0-9a-f]{128}$")]


def clip(text: str) -> str:
    """A text from outside, printable and bounded."""
    found = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text[:_TEXT_MAX])
    return found if len(text) <= _TEXT_MAX else found + "…"


def clip_reasons(reasons: Iterable[Because]) -> tuple[Because, ...]:
    """Bounded in number and length."""
    found = list(reasons)
    kept = [Because(clip(item.code), clip(item.message), clip(item.policy)) for item in found[:_REASONS_MAX]]
    if len(found) > _REASONS_MAX:
        kept.append(Because("more", f"and {len(found) - _REASONS_MAX} more"))
    return tuple(kept)


def sign(decision: Decision, key: Ed25519PrivateKey) -> bytes:
    """The entry's line, without its newline.

    Raises:
        InputError: it is too large.
    """
    payload = canonical_json(decision)
    line = b'{"entry":' + payload + b',"signature":"' + key.sign(DOMAIN + payload).hex().encode() + b'"}'
    if len(line) > LINE_MAX_BYTES:
        raise InputError("an entry of the decision log", got=f"{len(line)} bytes", expected=f"at most {LINE_MAX_BYTES}")
    return line


def link_of(line: bytes, decision: Decision) -> ChainLink:
    """The chain's end after ``line``."""
    return ChainLink(decision.sequence, sha256_hex(line))


def verify_line(line: bytes, public_key: bytes) -> Decision:
    """One entry, after its signature was verified.

    Raises:
        InputError: another form, another key, or bytes that the key did not sign.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if len(line) > LINE_MAX_BYTES:
        raise InputError("an entry of the decision log", got=f"{len(line)} bytes", expected=f"at most {LINE_MAX_BYTES}")
    try:
        signed = msgspec.json.decode(line, type=_Signed)
        payload = bytes(signed.entry)
        Ed25519PublicKey.from_public_bytes(public_key).verify(bytes.fromhex(signed.signature), DOMAIN + payload)
        decision = msgspec.json.decode(payload, type=Decision)
    except InvalidSignature:
        raise InputError("an entry of the decision log", got="a signature that this key did not make") from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError("an entry of the decision log", got=str(error)[:160]) from None
    if canonical_json(decision) != payload or decision.key_sha256 != sha256_hex(public_key):
        raise InputError("an entry of the decision log", got="another form or key than it was signed with")
    return decision


def verify_lines(lines: Iterable[bytes], public_key: bytes) -> Iterator[Decision]:
    """Each entry in turn, verified and following the one before.

    Raises:
        InputError: an entry is faulty, missing, repeated or out of order, with its number; or there is none at all.
    """
    link = ChainLink()
    for number, line in enumerate(lines, start=1):
        try:
            decision = verify_line(line, public_key)
        except InputError as error:
            raise InputError(f"line {number}: {error.what}", got=error.got, expected=error.expected) from None
        if (decision.sequence, decision.previous) != (link.sequence + 1, link.sha256):
            raise InputError(
                f"line {number} of the decision log",
                got=f"sequence {decision.sequence} after {decision.previous[:16]}…",
                expected=f"sequence {link.sequence + 1} after {link.sha256[:16]}…: entries are missing or were moved",
            )
        link = link_of(line, decision)
        yield decision
    if not link.sequence:
        raise InputError("the decision log is empty", expected="the entry that a server begins with, at least")
