"""GUID partition tables (UEFI specification, 5.3): the partitions, and what the firmware measures of the table.

LBA 1: "EFI PART", revision, header size, CRC-32, 0, own LBA, other LBA, first and last usable LBA, GUID of the disk,
LBA of the entries, number of entries, size of one, CRC-32 of the entries
entry: type, GUID, first LBA, last LBA, attributes, name
"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Callable
from typing import Final

import msgspec

from casemate.errors import InputError

SECTOR: Final = 512
ESP: Final = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
_HEADER: Final = struct.Struct("<8sIIIIQQQQ16sQIII")
_MAX_ENTRIES: Final = 1024
Read = Callable[[int, int], bytes]
"""(offset, length) -> that many bytes, or fewer at the end of the disk."""


class Partition(msgspec.Struct, frozen=True):
    """``offset``, ``size``: bytes. ``number``: from 1, as the kernel and GRUB count."""

    number: int
    kind: uuid.UUID
    identity: uuid.UUID
    offset: int
    size: int


class Gpt(msgspec.Struct, frozen=True):
    """``measured``: UEFI_GPT_DATA (TCG PC Client PFP, 10.2.5): header, count (8), entries in use."""

    partitions: tuple[Partition, ...]
    measured: bytes

    @property
    def esp(self) -> Partition | None:
        """The first EFI system partition."""
        return next((item for item in self.partitions if item.kind == ESP), None)


def read_gpt(read: Read) -> Gpt | None:
    """The table of a disk; None when it has none.

    Raises:
        InputError: it contradicts itself.
    """
    head = read(SECTOR, SECTOR)
    if len(head) < SECTOR or head[:8] != b"EFI PART":
        return None
    _, _, header_bytes, crc, _, _, _, _, _, _, start, count, size, entries_crc = _HEADER.unpack_from(head)
    if not 92 <= header_bytes <= SECTOR:
        raise _fault(f"a header of {header_bytes} bytes")
    if zlib.crc32(head[:16] + bytes(4) + head[20:header_bytes]) != crc:
        raise _fault("a header of another checksum")
    if size not in (128, 256, 512) or not 0 < count <= _MAX_ENTRIES or not 2 <= start < 1 << 48:
        raise _fault(f"{count} entries of {size} bytes at {start}")
    table = read(start * SECTOR, count * size)
    if len(table) != count * size or zlib.crc32(table) != entries_crc:
        raise _fault("entries of another checksum")
    used = [
        (number + 1, table[number * size : (number + 1) * size])
        for number in range(count)
        if any(table[number * size : number * size + 16])
    ]
    measured = head[:92] + struct.pack("<Q", len(used)) + b"".join(entry for _, entry in used)
    return Gpt(tuple(_partition(number, entry) for number, entry in used), measured)


def _partition(number: int, entry: bytes) -> Partition:
    kind, identity, first, last = struct.unpack_from("<16s16sQQ", entry)
    if not 0 < first <= last < 1 << 52:
        raise _fault(f"partition {number} from {first} to {last}")
    return Partition(
        number, uuid.UUID(bytes_le=kind), uuid.UUID(bytes_le=identity), first * SECTOR, (last + 1 - first) * SECTOR
    )


def _fault(what: str) -> InputError:
    return InputError("not a GUID partition table", got=what, expected="one that the firmware accepts")
