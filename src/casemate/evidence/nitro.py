"""AWS Nitro attestation documents: COSE_Sign1 (RFC 9052) around CBOR, bytes to fields.

The fields and their bounds are those of AWS's `attestation_process.md`. A NitroTPM's document is the same with PCRs of
a TPM, 0 to 23, under another name (`nitrotpm_pcrs`).
"""

from __future__ import annotations

import datetime
import io
from typing import Any, Final

import msgspec

from casemate.errors import InputError

MAX_BYTES: Final = 64 << 10
ES384: Final = -35
_SIGNATURE_BYTES: Final = 96
MAX_CHAIN: Final = 8


class NitroDocument(msgspec.Struct, frozen=True, kw_only=True):
    """``pcrs``: SHA-384 by number. ``certificate``: leaf, DER; ``bundle``: root first. ``signed``: what the signature
    is over. ``moment``: when the document says it was made. ``is_tpm``: of a NitroTPM, not of an enclave."""

    module: str
    moment: datetime.datetime
    pcrs: dict[int, bytes]
    certificate: bytes
    bundle: tuple[bytes, ...]
    public_key: bytes
    user_data: bytes
    nonce: bytes
    signature: bytes
    signed: bytes
    is_tpm: bool = False


def looks_like_nitro(data: bytes) -> bool:
    """Whether it begins like COSE_Sign1 with ES384: four elements, with or without their tag."""
    head = data.removeprefix(b"\xd2")
    return head[:6] == b"\x84\x44\xa1\x01\x38\x22"


def parse_document(data: bytes) -> NitroDocument:
    """The fields of a document.

    Raises:
        InputError: it is none, or breaks one of AWS's bounds.
    """
    if len(data) > MAX_BYTES:
        raise InputError("not a Nitro document", got=f"{len(data)} bytes", expected=f"at most {MAX_BYTES}")
    outer = _decode(data.removeprefix(b"\xd2"), "COSE_Sign1")
    if not isinstance(outer, list) or len(outer) != 4:
        raise _fault("not COSE_Sign1")
    protected, unprotected, payload, signature = outer
    if unprotected != {}:
        raise _fault("an unprotected header that is not an empty map")
    if (
        not all(isinstance(part, bytes) for part in (protected, payload, signature))
        or len(signature) != _SIGNATURE_BYTES
    ):
        raise _fault("COSE_Sign1 with parts of other kinds or sizes")
    if _decode(protected, "header") != {1: ES384}:
        raise _fault("a header that is not ES384 alone")
    fields = _decode(payload, "payload")
    if not isinstance(fields, dict):
        raise _fault("a payload that is no map")
    return NitroDocument(
        module=_of(fields, "module_id", str),
        moment=_moment(_of(fields, "timestamp", int)),
        pcrs=_pcrs(fields),
        certificate=_bounded(_of(fields, "certificate", bytes), 1, 2048, "certificate"),
        bundle=_bundle(_of(fields, "cabundle", list)),
        public_key=_optional(fields, "public_key", 1024),
        user_data=_optional(fields, "user_data", 1024),
        nonce=_optional(fields, "nonce", 1024),
        signature=signature,
        signed=_to_be_signed(protected, payload),
        is_tpm="nitrotpm_pcrs" in fields,
    )


def _decode(data: bytes, what: str) -> Any:
    """One CBOR item that is all of the data; no tags but the outermost, no item twice in a map."""
    from cbor2 import CBORDecodeError, CBORDecoder

    stream = io.BytesIO(data)
    try:
        found = CBORDecoder(stream).decode()
    except (CBORDecodeError, ValueError, TypeError, RecursionError, MemoryError, OverflowError) as error:
        raise _fault(f"{what}: {type(error).__name__}") from None
    if stream.read(1):
        raise _fault(f"bytes behind the {what}")
    return found


def _to_be_signed(protected: bytes, payload: bytes) -> bytes:
    """Sig_structure of RFC 9052, 4.4: ["Signature1", protected, no external data, payload]."""
    return b"\x84\x6aSignature1" + _byte_string(protected) + b"\x40" + _byte_string(payload)


def _byte_string(data: bytes) -> bytes:
    size = len(data)
    if size < 24:
        return bytes([0x40 | size]) + data
    for octets, head in ((1, 0x58), (2, 0x59), (4, 0x5A)):
        if size < 1 << 8 * octets:
            return bytes([head]) + size.to_bytes(octets, "big") + data
    raise _fault("a payload of gigabytes")


def _of(fields: dict[Any, Any], name: str, kind: type) -> Any:
    value = fields.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _fault(f"{name} is missing or of another kind")
    return value


def _bounded(value: bytes, least: int, most: int, name: str) -> bytes:
    if not least <= len(value) <= most:
        raise _fault(f"{name} of {len(value)} bytes")
    return value


def _optional(fields: dict[Any, Any], name: str, most: int) -> bytes:
    value = fields.get(name)
    if value is None:
        return b""
    if not isinstance(value, bytes):
        raise _fault(f"{name} of another kind")
    return _bounded(value, 0, most, name)


def _moment(milliseconds: int) -> datetime.datetime:
    if not 0 < milliseconds < 1 << 48:
        raise _fault("a time out of range")
    try:
        return datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        raise _fault("a time out of range") from None


def _pcrs(fields: dict[Any, Any]) -> dict[int, bytes]:
    if _of(fields, "digest", str) != "SHA384":
        raise _fault("a digest other than SHA384")
    is_tpm = "nitrotpm_pcrs" in fields
    if is_tpm and "pcrs" in fields:
        raise _fault("the PCRs of an enclave and of a TPM")
    found, most = (_of(fields, "nitrotpm_pcrs", dict), 24) if is_tpm else (_of(fields, "pcrs", dict), 32)
    if not 1 <= len(found) <= most:
        raise _fault(f"{len(found)} PCRs")
    for number, value in found.items():
        known = isinstance(number, int) and not isinstance(number, bool) and 0 <= number < most
        if not known or not isinstance(value, bytes) or len(value) != 48:
            raise _fault("a PCR of another number or size")
    return dict(sorted(found.items()))


def _bundle(found: list[Any]) -> tuple[bytes, ...]:
    if not 1 <= len(found) <= MAX_CHAIN:
        raise _fault(f"a bundle of {len(found)} certificates")
    if not all(isinstance(item, bytes) for item in found):
        raise _fault("a bundle of other things than certificates")
    return tuple(_bounded(item, 1, 2048, "certificate of the bundle") for item in found)


def _fault(what: str) -> InputError:
    return InputError("not a Nitro attestation document", got=what, expected="COSE_Sign1 as AWS describes it")
