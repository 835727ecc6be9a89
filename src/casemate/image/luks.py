"""LUKS1 headers: read whole, judged before a key or an emulator comes near them.

    0    6  "LUKS" BA BE            164  4  iterations of the digest
    6    2  version, 1              168 40  UUID
    8   32  cipher name             208     eight key slots of 48 bytes:
    40  32  cipher mode                       4 active (00AC71F3) or not (0000DEAD) · 4 iterations · 32 salt ·
    72  32  hash                              4 first sector of the key material · 4 stripes
    104  4  first sector of the data
    108  4  key bytes
    112 20  digest of the key, 132 32 its salt

Source: LUKS On-Disk Format Specification 1.2.3; QEMU reads this version only (crypto/block-luks.c). Big endian, sectors
of 512 bytes. A header is whoever wrote the file's: one that names a null cipher makes the "encrypted" disk a plain one
that its owner trusts (CVE-2025-59054, CVE-2025-58356), so only AES-XTS with a strong derivation is accepted.
"""

from __future__ import annotations

import os
import struct
from itertools import pairwise
from typing import Final, NamedTuple

from casemate.errors import ImageError

MAGIC: Final = b"LUKS\xba\xbe"
SECTOR_BYTES: Final = 512
HEADER_BYTES: Final = 592
SLOTS: Final = 8
STRIPES: Final = 4000
ACTIVE, INACTIVE = 0x00AC71F3, 0x0000DEAD
ITERATIONS_MIN: Final = 100_000
DIGEST_ITERATIONS_MIN: Final = 1000
HASHES: Final = ("sha256", "sha512")
CIPHER: Final = ("aes", "xts-plain64")
KEY_BYTES: Final = (32, 64)
PAYLOAD_MAX_BYTES: Final = 64 << 20
"""cryptsetup and QEMU put the data 2 MiB or 4 MiB into the file."""

_FIXED: Final = struct.Struct(">6sH32s32s32sII20s32sI40s")
_SLOT: Final = struct.Struct(">II32sII")


class Slot(NamedTuple):
    """One key slot; ``offset_bytes`` of its key material."""

    active: bool
    iterations: int
    salt: bytes
    offset_bytes: int
    stripes: int


class LuksHeader(NamedTuple):
    """What an accepted header says. ``payload_bytes``: where the data begin; ``key_bytes``: of the master key."""

    hash_name: str
    key_bytes: int
    digest: bytes
    digest_salt: bytes
    digest_iterations: int
    uuid: str
    payload_bytes: int
    slots: tuple[Slot, ...]


def inspect_luks(descriptor: int, name: str) -> tuple[LuksHeader, int]:
    """The header of an open file, and how many bytes the guest will see.

    Raises:
        ImageError: it is no LUKS1 file, or one that is not accepted; with the reason.
    """
    size = os.fstat(descriptor).st_size
    data = os.pread(descriptor, HEADER_BYTES, 0)
    header = parse_header(data, name)
    if header.payload_bytes >= size or (size - header.payload_bytes) % SECTOR_BYTES:
        raise _refused(name, f"data from byte {header.payload_bytes} on in a file of {size}")
    return header, size - header.payload_bytes


def parse_header(data: bytes, name: str) -> LuksHeader:
    """`LuksHeader` of the first 592 bytes; errors of `inspect_luks`."""
    if len(data) < HEADER_BYTES or data[:6] != MAGIC:
        raise _refused(name, "no LUKS header", 'encryption = "luks" is for files that casemate image encrypt wrote')
    magic, version, cipher, mode, hash_name, payload, key_bytes, digest, salt, iterations, uuid = _FIXED.unpack_from(
        data
    )
    del magic
    if version != 1:
        step = "cryptsetup convert --type luks1, if its settings allow it"
        raise _refused(name, f"LUKS version {version}; QEMU reads version 1", step)
    words = tuple(_word(field, name) for field in (cipher, mode, hash_name, uuid))
    if words[:2] != CIPHER or key_bytes not in KEY_BYTES:
        raise _refused(
            name, f"cipher {words[0]}-{words[1]} with {key_bytes} key bytes; expected aes-xts-plain64, 32 or 64"
        )
    if words[2] not in HASHES:
        raise _refused(name, f"key derivation with {words[2] or 'nothing'}; expected {' or '.join(HASHES)}")
    if iterations < DIGEST_ITERATIONS_MIN:
        raise _refused(name, f"{iterations} iterations of the key's digest; expected {DIGEST_ITERATIONS_MIN} or more")
    payload_bytes = payload * SECTOR_BYTES
    if not HEADER_BYTES < payload_bytes <= PAYLOAD_MAX_BYTES:
        raise _refused(name, f"data from byte {payload_bytes} on")
    slots = tuple(_slot(data, index) for index in range(SLOTS))
    _check_slots(slots, key_bytes, payload_bytes, name)
    return LuksHeader(words[2], key_bytes, digest, salt, iterations, words[3], payload_bytes, slots)


def write_header(header: LuksHeader) -> bytes:
    """The 592 bytes of ``header``."""
    fixed = _FIXED.pack(
        MAGIC,
        1,
        CIPHER[0].encode(),
        CIPHER[1].encode(),
        header.hash_name.encode(),
        header.payload_bytes // SECTOR_BYTES,
        header.key_bytes,
        header.digest,
        header.digest_salt,
        header.digest_iterations,
        header.uuid.encode(),
    )
    slots = (
        _SLOT.pack(ACTIVE if s.active else INACTIVE, s.iterations, s.salt, s.offset_bytes // SECTOR_BYTES, s.stripes)
        for s in header.slots
    )
    return fixed + b"".join(slots)


def _slot(data: bytes, index: int) -> Slot:
    active, iterations, salt, sector, stripes = _SLOT.unpack_from(data, _FIXED.size + index * _SLOT.size)
    known = {ACTIVE: True, INACTIVE: False}.get(active)
    # A third value is neither: taken for active, it must hold everything that an active slot must.
    return Slot(known is not False, iterations, salt, sector * SECTOR_BYTES, stripes)


def _check_slots(slots: tuple[Slot, ...], key_bytes: int, payload_bytes: int, name: str) -> None:
    areas = []
    if not any(slot.active for slot in slots):
        raise _refused(name, "no active key slot")
    for index, slot in enumerate(slots):
        end = slot.offset_bytes + key_bytes * STRIPES
        if slot.offset_bytes < HEADER_BYTES or end > payload_bytes or slot.stripes != STRIPES:
            raise _refused(name, f"key slot {index} at bytes {slot.offset_bytes} to {end}, {slot.stripes} stripes")
        if slot.active and slot.iterations < ITERATIONS_MIN:
            step = "casemate image rekey writes a slot of its own strength"
            raise _refused(name, f"key slot {index} with {slot.iterations} iterations; expected {ITERATIONS_MIN}", step)
        areas.append((slot.offset_bytes, end))
    areas.sort()
    if any(one[1] > two[0] for one, two in pairwise(areas)):
        raise _refused(name, "key slots that overlap")


def _word(field: bytes, name: str) -> str:
    text, nul, rest = field.partition(b"\0")
    if not nul or rest.strip(b"\0") or not text.isascii() or not text.decode("latin-1").isprintable():
        raise _refused(name, "a name that is none")
    return text.decode("ascii")


def _refused(name: str, got: str, next_step: str = "") -> ImageError:
    return ImageError(f"encrypted image {name!r} is not accepted", got=got, next_step=next_step)
