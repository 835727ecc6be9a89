"""IBM Secure Execution evidence, bytes to fields; nothing is judged here. Big endian throughout.

What travels (s390-tools, rust/pvattest/src/exchange.rs; pvattest create, perform, verify):

    "pvattest"  version 0x100  size  0 (8)  then (size, offset) of: request, measurement, additional data, user data,
    configuration UID                        size 0: not there; offset 0: only asked for, as in a request on its way

The request, made by whoever verifies and sealed for the firmware of a host (rust/pv/src/uvattest/arcb.rs):

    0 (8)  version 0x100  size  IV (12)  0 (11)  key slots (1)  0 (4)  size of the encrypted part          48 bytes
    flags (8)  algorithm (4)  0 (4)  public key of the request (160)  key slots, 80 each
    AES-256-GCM: measurement key (64), nonce (0 or 16)          tag (16)

The header of an encrypted image (rust/pv/src/brcb.rs, genprotimg): what is loaded where, as three lists and a tag.

    "IBMSecEx"  0x100  size  IV (12)  …  0xe0 page list digest, address list digest, tweak list digest (64 each)
    …  tag: the last 16 bytes

Bits are counted from the left, as the architecture does.
"""

from __future__ import annotations

from typing import Final

import msgspec

from casemate.errors import InputError
from casemate.evidence.octets import Octets

MAGIC: Final = b"pvattest"
_VERSION: Final = 0x100
_HEADER: Final = 0x40
_REQUEST_MAX, _RESULT_MAX, _USER_MAX, _UID_BYTES = 0x100000, 0x8000, 0x100, 0x10
HMAC_SHA512: Final = 1
MEASUREMENT_BYTES: Final = 64
KEY_BYTES, NONCE_BYTES, TAG_BYTES = 64, 16, 16
_REQUEST_HEADER, _FIXED, _SLOT = 48, 16 + 160, 80
_NONCE_FLAG: Final = 1
ADDITIONAL: Final = (
    (2, "image-host-key", 0x20),
    (3, "attestation-host-key", 0x20),
    (4, "secret-store", 0x40),
    (5, "firmware-state", 0x140),
)
"""What the firmware adds, in this order: flag, name, bytes."""

_IMAGE_MAGIC: Final = b"IBMSecEx"
_METADATA_MAGIC: Final = b"SeImgLnx"
_METADATA_AT: Final = 0xC000
_PAGE: Final = 4096
_PAGES_SEARCHED: Final = 0x15
_TAGS_AT, _TAGS_BYTES = 0xE0, 192
IMAGE_BYTES: Final = _TAGS_BYTES + TAG_BYTES
_HEADER_MAX: Final = 1 << 20


class SeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request. ``authenticated``: everything before ``sealed``, which the tag covers as well."""

    flags: int
    iv: bytes
    authenticated: bytes
    sealed: bytes
    tag: bytes

    def asks_for(self, bit: int) -> bool:
        """Whether a flag is set, counted from the left."""
        return bool(self.flags >> (63 - bit) & 1)


class SeResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A response. ``additional``: as the firmware wrote it; ``parts`` gives it by name."""

    request: SeRequest
    measurement: bytes
    additional: bytes
    user_data: bytes
    config_uid: bytes

    def parts(self) -> dict[str, bytes]:
        """The additional data by name; what no flag stands for is ``unrecognized``.

        Raises:
            InputError: shorter than the request's flags ask for.
        """
        rest = Octets(self.additional, "additional data", "big")
        found = {name: rest.take(size, name) for bit, name, size in ADDITIONAL if self.request.asks_for(bit)}
        if rest.left:
            found["unrecognized"] = rest.take(rest.left, "the rest")
        return found


def looks_like_se(data: bytes) -> bool:
    """Whether it is in pvattest's format."""
    return data[:8] == MAGIC


def parse_response(data: bytes) -> SeResponse:
    """Read a response.

    Raises:
        InputError: cut off, of another version, a request alone, or of sizes that no firmware writes.
    """
    octets = Octets(data, "Secure Execution evidence", "big")
    octets.take(len(MAGIC), "magic")
    _expect(octets.number(4, "version"), _VERSION, "version")
    _expect(octets.number(4, "size"), len(data), "size")
    octets.take(8, "reserved")
    found = {}
    for name, most in (
        ("request", _REQUEST_MAX),
        ("measurement", _RESULT_MAX),
        ("additional data", _RESULT_MAX),
        ("user data", _USER_MAX),
        ("configuration UID", _UID_BYTES),
    ):
        found[name] = _entry(
            data, octets.number(4, f"size of {name}"), octets.number(4, f"offset of {name}"), name, most
        )
    if not found["measurement"] or not found["configuration UID"]:
        raise InputError(
            "a request for Secure Execution evidence, not the evidence",
            expected="what `pvattest perform` wrote in the guest",
        )
    _expect(len(found["measurement"]), MEASUREMENT_BYTES, "bytes of measurement")
    _expect(len(found["configuration UID"]), _UID_BYTES, "bytes of configuration UID")
    return SeResponse(
        request=parse_request(found["request"]),
        measurement=found["measurement"],
        additional=found["additional data"],
        user_data=found["user data"],
        config_uid=found["configuration UID"],
    )


def _entry(data: bytes, size: int, offset: int, name: str, most: int) -> bytes:
    if size == 0 or offset == 0:
        return b""
    if size > most or offset < _HEADER or offset + size > len(data):
        raise InputError(
            f"Secure Execution evidence: {name} lies where it cannot",
            got=f"{size} bytes at {offset}",
            expected=f"up to {most} bytes between {_HEADER} and {len(data)}",
        )
    return data[offset : offset + size]


def parse_request(data: bytes) -> SeRequest:
    """Read a request; what is sealed stays so.

    Raises:
        InputError: cut off, of another version or algorithm.
    """
    octets = Octets(data, "Secure Execution request", "big")
    _expect(octets.number(8, "magic"), 0, "magic")
    _expect(octets.number(4, "version"), _VERSION, "version")
    _expect(octets.number(4, "size"), len(data), "size")
    iv = octets.take(12, "IV")
    octets.take(11, "reserved")
    slots = octets.number(1, "number of key slots")
    octets.take(4, "reserved")
    sealed_bytes = octets.number(4, "size of the encrypted part")
    flags = octets.number(8, "flags")
    _expect(octets.number(4, "algorithm"), HMAC_SHA512, "algorithm")
    octets.take(4 + 160 + slots * _SLOT, "public key and key slots")
    with_nonce = bool(flags >> (63 - _NONCE_FLAG) & 1)
    _expect(sealed_bytes, KEY_BYTES + (NONCE_BYTES if with_nonce else 0), "size of the encrypted part")
    start = octets.offset
    sealed = octets.take(sealed_bytes, "encrypted part")
    tag = octets.take(TAG_BYTES, "tag")
    octets.end()
    return SeRequest(flags=flags, iv=iv, authenticated=data[:start], sealed=sealed, tag=tag)


def parse_image(data: bytes) -> bytes:
    """What the measurement knows of an encrypted image (`IMAGE_BYTES`): three digests and the tag of its header.

    Args:
        data: the image, or its header alone (pvextract-hdr).

    Raises:
        InputError: no header where one belongs.
    """
    start = _header_at(data)
    head = Octets(data[start : start + _TAGS_AT + _TAGS_BYTES], "header of a Secure Execution image", "big")
    head.take(len(_IMAGE_MAGIC), "magic")
    _expect(head.number(4, "version"), _VERSION, "version of the image's header")
    size = head.number(4, "size")
    if not _TAGS_AT + _TAGS_BYTES + TAG_BYTES <= size <= min(_HEADER_MAX, len(data) - start):
        raise InputError(
            "header of a Secure Execution image", got=f"{size} bytes", expected="a header that is all there"
        )
    tags = data[start + _TAGS_AT : start + _TAGS_AT + _TAGS_BYTES]
    return tags + data[start + size - TAG_BYTES : start + size]


def _header_at(data: bytes) -> int:
    """Where the metadata of newer images say, else at the beginning of one of the first pages."""
    metadata = data[_METADATA_AT : _METADATA_AT + 16]
    if metadata[:8] == _METADATA_MAGIC:
        start = int.from_bytes(metadata[8:16], "big")
        if data[start : start + 8] == _IMAGE_MAGIC:
            return start
    else:
        for page in range(_PAGES_SEARCHED):
            if data[page * _PAGE : page * _PAGE + 8] == _IMAGE_MAGIC:
                return page * _PAGE
    raise InputError(
        "no Secure Execution image",
        got=f"{len(data)} bytes without the header of one",
        expected="what genprotimg wrote, or its header (pvextract-hdr)",
    )


def _expect(found: int, wanted: int, what: str) -> None:
    if found != wanted:
        raise InputError(f"Secure Execution evidence: {what}", got=f"{found:#x}", expected=f"{wanted:#x}")
