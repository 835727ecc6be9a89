"""minisign signatures (https://jedisct1.github.io/minisign/): prehashed and legacy, trusted comment included.

    untrusted comment: …                     not signed, ignored
    base64( "ED" prehashed or "Ed" legacy | key id, 8 | Ed25519 signature, 64 )
    trusted comment: …                       signed with the signature above it
    base64( Ed25519 over signature | trusted comment )

A public key: ``untrusted comment`` line and base64( "Ed" | key id, 8 | key, 32 ), or that base64 alone. signify's files
have the same first two lines and no trusted comment: they are refused, as minisign does. Bytes in, signer out.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final, NamedTuple

from casemate.image.origin import Signer, refuse

FILE_MAX_BYTES: Final = 16 << 10
LEGACY_MAX_BYTES: Final = 256 << 20
"""A legacy signature covers the whole content, which has to be in memory."""


class MinisignKey(NamedTuple):
    """``text``: its 56 characters of base64, the name of the key."""

    key_id: bytes
    public: bytes
    text: str


class MinisignSignature(NamedTuple):
    """A parsed signature; nothing is verified yet. ``prehashed``: over the BLAKE2b-512 digest, not the content."""

    prehashed: bool
    key_id: bytes
    signature: bytes
    trusted_comment: bytes
    global_signature: bytes


def parse_key(data: bytes, what: str) -> MinisignKey:
    """A public key file, or the key's base64 alone.

    Raises:
        ImageError: it is neither.
    """
    lines = _lines(data, what)
    if lines and lines[0].startswith(b"untrusted comment:"):
        lines = lines[1:]
    if len(lines) != 1:
        raise refuse(what, f"{len(lines)} lines", expected="a minisign public key: one line of base64")
    blob = _base64(lines[0], 42, what)
    if blob[:2] != b"Ed":
        raise refuse(what, f"a key of the kind {blob[:2]!r}", expected="an Ed25519 key of minisign")
    return MinisignKey(blob[2:10], blob[10:], lines[0].decode("ascii"))


def parse_signature(data: bytes, what: str) -> MinisignSignature:
    """A signature file.

    Raises:
        ImageError: it is none, or of another kind.
    """
    lines = _lines(data, what)
    shape = len(lines) == 4 and lines[0].startswith(b"untrusted comment:") and lines[2].startswith(b"trusted comment: ")
    if not shape:
        raise refuse(what, "other data", expected="a minisign signature: four lines, a trusted comment among them")
    blob = _base64(lines[1], 74, what)
    if blob[:2] not in {b"ED", b"Ed"}:
        raise refuse(what, f"a signature of the kind {blob[:2]!r}", expected="ED (prehashed) or Ed (legacy)")
    comment = lines[2].removeprefix(b"trusted comment: ")
    return MinisignSignature(blob[:2] == b"ED", blob[2:10], blob[10:], comment, _base64(lines[3], 64, what))


def verify_signature(
    signature: MinisignSignature, key: MinisignKey, message: bytes, what: str, *, expected_comment: str | None = None
) -> Signer:
    """The signer, with the trusted comment as identity.

    Args:
        message: the BLAKE2b-512 digest of the content when ``signature.prehashed``, else the content.

    Raises:
        ImageError: another key, a signature that does not hold, or another trusted comment.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if signature.key_id != key.key_id:
        raise refuse(what, f"a signature by key {_shown(signature.key_id)}", expected=f"key {_shown(key.key_id)}")
    bad = "download content and signature again from the publisher; do not use this image"
    public = Ed25519PublicKey.from_public_bytes(key.public)
    try:
        public.verify(signature.signature, message)
    except InvalidSignature:
        why = f"a signature by {_shown(key.key_id)} that does not fit the content"
        raise refuse(what, why, next_step=bad) from None
    try:
        public.verify(signature.global_signature, signature.signature + signature.trusted_comment)
    except InvalidSignature:
        raise refuse(what, "a trusted comment that was changed", next_step=bad) from None
    comment = signature.trusted_comment.decode("utf-8", "replace")
    if expected_comment is not None and comment != expected_comment:
        raise refuse(what, f"the trusted comment {comment[:200]!r}", expected=repr(expected_comment))
    identity = "".join(char if char.isprintable() else " " for char in comment)[:300]
    return Signer(key=f"minisign:{key.text}", identity=identity)


def is_signature(data: bytes) -> bool:
    """True if ``data`` looks like a minisign signature."""
    return data.startswith(b"untrusted comment:") and re.search(rb"^trusted comment:", data, re.MULTILINE) is not None


def _shown(key_id: bytes) -> str:
    """As minisign prints it: little-endian number."""
    return f"{int.from_bytes(key_id, 'little'):016X}"


def _lines(data: bytes, what: str) -> list[bytes]:
    if len(data) > FILE_MAX_BYTES:
        raise refuse(what, f"{len(data)} bytes", expected=f"at most {FILE_MAX_BYTES} bytes")
    return data.replace(b"\r\n", b"\n").strip(b"\n").split(b"\n")


def _base64(line: bytes, length: int, what: str) -> bytes:
    try:
        blob = base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        blob = b""
    # the one encoding of these bytes: no bits beside the ones that count
    if len(blob) != length or base64.b64encode(blob) != line:
        raise refuse(what, "broken base64", expected=f"base64 of {length} bytes")
    return blob
