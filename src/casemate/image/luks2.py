"""LUKS2 headers, bytes to fields: both copies, their checksums, their JSON. What they mean is judged in `luks2_judge`.

    0     6  "LUKS" BA BE (first copy), "SKUL" BA BE (second)     168 40  UUID
    6     2  version, 2                                           208 48  subsystem
    8     8  size of this copy with its JSON area                 256  8  where this copy lies
    16    8  sequence number                                      448 64  checksum over this copy, these bytes as zeros
    24   48  label
    72   32  hash of the checksum                                 4096    JSON, a NUL, zeros
    104  64  salt                                                         (second copy: from its size on)

Source: LUKS2 On-Disk Format Specification 1.1.1. Big endian. The checksum says that a copy is whole, not who wrote it:
whoever can write the disk can write any header, and cryptsetup obeys it (CVE-2025-59054, CVE-2025-58356).
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta

from casemate.errors import ImageError

MAGIC, SECOND_MAGIC = b"LUKS\xba\xbe", b"SKUL\xba\xbe"
BINARY_BYTES: Final = 4096
SIZES: Final = tuple(1 << power for power in range(14, 23))
"""16 KiB to 4 MiB (specification, 2.1)."""
CHECKSUMS: Final = ("sha256", "sha512")
OBJECTS_MAX: Final = 32
_FIXED: Final = struct.Struct(">6sHQQ48s32s64s40s48sQ184s64s")
_CHECKSUM: Final = slice(448, 512)

Name = Annotated[str, Meta(max_length=64)]
Decimal = Annotated[str, Meta(pattern="^(0|[1-9][0-9]{0,18})$")]
Base64 = Annotated[str, Meta(max_length=1024)]
Index = Annotated[str, Meta(pattern="^(0|[1-9][0-9]?)$")]
Small = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]


class _Closed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base: what is not known is not skipped."""


class Af(_Closed, frozen=True):
    """The anti-forensic splitter."""

    type: Name
    stripes: Small
    hash: Name


class Area(_Closed, frozen=True):
    """Where a key slot's material lies, and what it is encrypted with."""

    type: Name
    offset: Decimal
    size: Decimal
    encryption: Name
    key_size: Small


class Kdf(_Closed, frozen=True):
    """From a passphrase to the key of a slot's area."""

    type: Name
    salt: Base64
    hash: Name | None = None
    iterations: Small | None = None
    time: Small | None = None
    memory: Small | None = None
    cpus: Small | None = None


class Keyslot(_Closed, frozen=True):
    """One key slot."""

    type: Name
    key_size: Small
    af: Af
    area: Area
    kdf: Kdf
    priority: Small | None = None


class Segment(_Closed, frozen=True):
    """Some of the data. ``integrity``: authenticated encryption; ``flags``: it is a backup, or of a reencryption."""

    type: Name
    offset: Decimal
    size: Name
    iv_tweak: Decimal | None = None
    encryption: Name | None = None
    sector_size: Small | None = None
    integrity: dict[str, Any] | None = None
    flags: tuple[Name, ...] = ()


class Digest(_Closed, frozen=True):
    """What a volume key is recognised by."""

    type: Name
    keyslots: tuple[Index, ...]
    segments: tuple[Index, ...]
    hash: Name
    iterations: Small
    salt: Base64
    digest: Base64


class Config(_Closed, frozen=True):
    """``requirements``: what a program must understand, such as a reencryption in progress."""

    json_size: Decimal
    keyslots_size: Decimal
    flags: tuple[Name, ...] = ()
    requirements: dict[str, Any] | tuple[Any, ...] | None = None


class Metadata(_Closed, frozen=True):
    """The JSON area. Tokens are counted, and not read: their types are open."""

    keyslots: dict[Index, Keyslot]
    tokens: dict[Index, Any]
    segments: dict[Index, Segment]
    digests: dict[Index, Digest]
    config: Config


class Copy(NamedTuple):
    """One of the two binary headers. ``text``: the JSON as it stands."""

    size_bytes: int
    sequence: int
    label: bytes
    checksum_name: str
    salt: bytes
    uuid: str
    subsystem: bytes
    offset_bytes: int
    is_whole: bool
    text: bytes


class Luks2Header(NamedTuple):
    """``faults``: where the copies contradict themselves or each other. ``digest``: SHA-256 over both copies."""

    first: Copy
    second: Copy
    metadata: Metadata
    digest: str
    faults: tuple[str, ...]


def read_luks2(descriptor: int, name: str, offset_bytes: int = 0) -> tuple[Luks2Header, int]:
    """Both headers of an open file or device, and the bytes of the volume.

    Args:
        offset_bytes: where the volume begins.

    Raises:
        ImageError: it is no LUKS2 volume, or one that cannot be read.
    """
    size = os.lseek(descriptor, 0, os.SEEK_END) - offset_bytes
    head = os.pread(descriptor, BINARY_BYTES, offset_bytes)
    copy_bytes = _copy_size(head, name)
    return parse_luks2(os.pread(descriptor, 2 * copy_bytes, offset_bytes), name), size


def parse_luks2(data: bytes, name: str) -> Luks2Header:
    """The headers in the first bytes of a volume; errors of `read_luks2`."""
    size = _copy_size(data, name)
    if len(data) < 2 * size:
        raise _unread(name, f"{len(data)} bytes", f"two headers of {size}")
    first, second = _copy(data[:size], MAGIC, name), _copy(data[size : 2 * size], SECOND_MAGIC, name)
    metadata = _metadata(first.text, name)
    faults = tuple(_contradictions(first, second, size))
    return Luks2Header(first, second, metadata, hashlib.sha256(data[: 2 * size]).hexdigest(), faults)


def _copy_size(data: bytes, name: str) -> int:
    if len(data) < BINARY_BYTES or data[:6] != MAGIC:
        raise _unread(name, "no LUKS header", "LUKS2")
    version, size = struct.unpack_from(">HQ", data, 6)
    if version != 2 or size not in SIZES:
        raise _unread(name, f"LUKS version {version}, a header of {size} bytes", "LUKS2, 16 KiB to 4 MiB")
    return int(size)


def _copy(data: bytes, magic: bytes, name: str) -> Copy:
    found = _FIXED.unpack_from(data)
    if found[0] != magic or found[1] != 2 or found[2] != len(data):
        which = "second" if magic == SECOND_MAGIC else "first"
        raise _unread(name, f"a {which} header that begins {found[0].hex()}, version {found[1]}", magic.hex())
    checksum_name = _word(found[5], name)
    if checksum_name not in CHECKSUMS:
        raise _unread(name, f"checksums with {checksum_name or 'nothing'}", " or ".join(CHECKSUMS))
    blank = bytearray(data)
    blank[_CHECKSUM] = bytes(64)
    checksum = hashlib.new(checksum_name, blank).digest().ljust(64, b"\0")
    area = data[BINARY_BYTES:]
    text, _, rest = area.partition(b"\0")
    if rest.strip(b"\0"):
        raise _unread(name, "something behind the JSON of a header", "zeros")
    return Copy(
        size_bytes=found[2],
        sequence=found[3],
        label=found[4],
        checksum_name=checksum_name,
        salt=found[6],
        uuid=_word(found[7], name),
        subsystem=found[8],
        offset_bytes=found[9],
        is_whole=checksum == found[11],
        text=text,
    )


def _contradictions(first: Copy, second: Copy, size: int) -> list[str]:
    # cryptsetup takes the copy with the higher number, and repairs the other: which one is obeyed must not matter.
    found = [
        f"the {which} header is damaged: its checksum is another"
        for which, copy in (("first", first), ("second", second))
        if not copy.is_whole
    ]
    if (first.offset_bytes, second.offset_bytes) != (0, size):
        found.append(
            f"the headers say that they lie at {first.offset_bytes} and {second.offset_bytes}, not 0 and {size}"
        )
    for what, one, two in (
        ("JSON", first.text, second.text),
        ("sequence number", first.sequence, second.sequence),
        ("UUID", first.uuid, second.uuid),
        ("label", first.label, second.label),
        ("subsystem", first.subsystem, second.subsystem),
        ("checksum's hash", first.checksum_name, second.checksum_name),
    ):
        if one != two:
            found.append(f"the two headers do not agree: {what}")
    if first.salt == second.salt:
        found.append("the two headers have one salt")
    return found


def _metadata(text: bytes, name: str) -> Metadata:
    try:
        # Readers differ in which of two members with one name they take: here, there are not two.
        plain = json.loads(text, object_pairs_hook=_unique)
        _refuse_reencryption(plain, name)
        found = msgspec.convert(plain, Metadata, strict=True)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise _unread(
            name, f"JSON that is not LUKS2's: {str(error)[:160]}", "the fields of the specification"
        ) from None
    for what in (found.keyslots, found.tokens, found.segments, found.digests):
        if len(what) > OBJECTS_MAX:
            raise _unread(name, f"{len(what)} objects of one kind", f"at most {OBJECTS_MAX}")
    return found


def _refuse_reencryption(plain: Any, name: str) -> None:
    """Its objects have fields of their own; to say what it is helps more than to name the first of them."""
    slots = plain.get("keyslots", {}) if isinstance(plain, dict) else {}
    kinds = [slot.get("type") for slot in slots.values() if isinstance(slot, dict)] if isinstance(slots, dict) else []
    if "reencrypt" in kinds:
        raise _unread(name, "a reencryption in progress", "a volume at rest: cryptsetup reencrypt --resume-only")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("two members of one name")
    return found


def _word(field: bytes, name: str) -> str:
    text, _, rest = field.partition(b"\0")
    if rest.strip(b"\0") or not text.isascii() or not text.decode("latin-1").isprintable():
        raise _unread(name, "a name that is none", "printable text, then zeros")
    return text.decode("ascii")


def _unread(name: str, got: str, expected: str) -> ImageError:
    return ImageError(f"the LUKS2 header of {name!r} cannot be read", got=got, expected=expected)
