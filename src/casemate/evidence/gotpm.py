"""The container that go-tpm-tools writes for a machine's attestation (attest.proto), bytes to fields.

    1 AK public area, 2 quotes {1 quote, 2 signature, 3 PCRs {1 hash, 2 {1 number, 2 value}}}, 3 event log,
    6 AK certificate, 7 intermediate certificates

Protocol buffers are read here by hand: four wire types, everything bounded, unknown fields passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from casemate.errors import InputError
from casemate.evidence.tpm import HASHES

MAX_BYTES: Final = 1 << 20
MAX_FIELDS: Final = 4096


class QuotedPcrs(msgspec.Struct, frozen=True):
    """One quote with the values that came along: of ``bank``, by number."""

    quote: bytes
    signature: bytes
    bank: str
    pcrs: dict[int, bytes]


class GoTpm(msgspec.Struct, frozen=True):
    """The parts that verification needs; certificates in DER."""

    key: bytes
    quotes: tuple[QuotedPcrs, ...]
    event_log: bytes
    certificate: bytes
    intermediates: tuple[bytes, ...]


def looks_like_gotpm(data: bytes) -> bool:
    """Whether it begins with a TPM public area in field 1."""
    return len(data) > 64 and data[0] == 0x0A and data[3:5] in (b"\x00\x01", b"\x00\x23")


def parse_gotpm(data: bytes) -> GoTpm:
    """The parts of a container.

    Raises:
        InputError: it is none, is cut off, or holds too much.
    """
    if len(data) > MAX_BYTES:
        raise InputError("not an attestation of go-tpm-tools", got=f"{len(data)} bytes")
    found: dict[int, list[bytes]] = {}
    for number, value in _fields(data):
        if isinstance(value, bytes):
            found.setdefault(number, []).append(value)
    if not found.get(1) or not found.get(2):
        raise InputError("not an attestation of go-tpm-tools", expected="a key and a quote")
    return GoTpm(
        found[1][0],
        tuple(_quote(item) for item in found[2][:8]),
        found.get(3, [b""])[0],
        found.get(6, [b""])[0],
        tuple(found.get(7, [])[:8]),
    )


def _quote(data: bytes) -> QuotedPcrs:
    quote, signature, bank = b"", b"", ""
    pcrs: dict[int, bytes] = {}
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            quote = value
        elif number == 2 and isinstance(value, bytes):
            signature = value
        elif number == 3 and isinstance(value, bytes):
            bank, pcrs = _pcrs(value)
    return QuotedPcrs(quote, signature, bank, pcrs)


def _pcrs(data: bytes) -> tuple[str, dict[int, bytes]]:
    bank, found = "", dict[int, bytes]()
    for number, value in _fields(data):
        if number == 1 and isinstance(value, int):
            bank = HASHES.get(value, "")
        elif number == 2 and isinstance(value, bytes):
            entry = dict(_fields(value))
            index, digest = entry.get(1, 0), entry.get(2)
            if isinstance(index, int) and isinstance(digest, bytes) and 0 <= index < 24:
                found[index] = digest
    return bank, found


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    offset = count = 0
    while offset < len(data):
        count += 1
        if count > MAX_FIELDS:
            raise _fault("too many fields")
        key, offset = _varint(data, offset)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, offset = _varint(data, offset)
            yield number, value
            continue
        if kind == 2:
            size, offset = _varint(data, offset)
        else:
            size = {1: 8, 5: 4}.get(kind, -1)
        if size < 0 or offset + size > len(data):
            raise _fault("a field that is cut off")
        yield number, data[offset : offset + size]
        offset += size


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    if offset < len(data) and data[offset] < 0x80:
        return data[offset], offset + 1
    value = 0
    for shift in range(0, 70, 7):
        if offset >= len(data):
            raise _fault("a number that is cut off")
        octet = data[offset]
        offset += 1
        value |= (octet & 0x7F) << shift
        if not octet & 0x80:
            return value & (1 << 64) - 1, offset
    raise _fault("a number of more than ten octets")


def _fault(what: str) -> InputError:
    return InputError("not an attestation of go-tpm-tools", got=what)
