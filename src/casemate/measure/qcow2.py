"""Reads a qcow2 disk as the guest sees it, for its partition table and boot loader. The header was accepted before
(`image/headers.py`: nothing outside of the file is needed); every number in its tables is hostile.

    L1 entry  bits 9-55: offset of an L2 table
    L2 entry  bit 62 clear: bits 9-55 offset of a cluster (0: zeros), bit 0: reads as zeros
              bit 62 set:   place of compressed bytes (`packed_place`)
    extended  16 bytes an entry: the above, and which subclusters are allocated (0-31) or zeros (32-63)
"""

from __future__ import annotations

import functools
import zlib
from typing import Final

from casemate.errors import InputError
from casemate.image.qcow2 import COMPRESSED_CLUSTER, EXTENDED_L2, TABLE_OFFSET, Fixed, packed_place
from casemate.measure.gpt import Read

_ZEROS: Final = 1
_SUBCLUSTERS: Final = 32
_TABLES_KEPT: Final = 8
_PACKED_KEPT: Final = 2


def qcow2_reader(read: Read, fixed: Fixed) -> Read:
    """Reads of the guest's disk.

    Args:
        read: of the file.
        fixed: its header, which was accepted.
    """
    return _Disk(read, fixed).read


class _Disk:
    def __init__(self, read: Read, fixed: Fixed) -> None:
        self._file = read
        self._bits = fixed.cluster_bits
        self._cluster = fixed.cluster_bytes
        self._size = fixed.size_bytes
        self._l1 = (fixed.l1_offset, fixed.l1_entries)
        self._is_extended = bool(fixed.incompatible & EXTENDED_L2)
        self._is_zstd = fixed.compression == 1
        self._table = functools.lru_cache(_TABLES_KEPT)(self._read_table)
        self._unpacked = functools.lru_cache(_PACKED_KEPT)(self._unpack)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the disk; fewer at its end."""
        length = max(0, min(length, self._size - offset))
        parts: list[bytes] = []
        while length:
            inside = offset % self._cluster
            count = min(length, self._cluster - inside)
            parts.append(self._part(offset // self._cluster, inside, count))
            offset, length = offset + count, length - count
        return b"".join(parts)

    def _part(self, cluster: int, inside: int, count: int) -> bytes:
        entry, subclusters = self._entry(cluster)
        if entry & COMPRESSED_CLUSTER:
            return self._unpacked(entry)[inside : inside + count].ljust(count, b"\0")
        host = entry & TABLE_OFFSET
        if not host or (entry & _ZEROS and not self._is_extended):
            return bytes(count)
        if host % self._cluster:
            raise _fault(f"a cluster at {host:#x}")
        data = self._file(host + inside, count).ljust(count, b"\0")
        return self._without_holes(data, inside, subclusters) if self._is_extended else data

    def _without_holes(self, data: bytes, inside: int, subclusters: int) -> bytes:
        """Zeros where a subcluster is not allocated, or reads as zeros."""
        size = self._cluster // _SUBCLUSTERS
        found = bytearray(data)
        for number in range(inside // size, (inside + len(data) - 1) // size + 1):
            if not subclusters >> number & 1:
                start = max(number * size - inside, 0)
                end = min((number + 1) * size - inside, len(data))
                found[start:end] = bytes(end - start)
        return bytes(found)

    def _entry(self, cluster: int) -> tuple[int, int]:
        """(L2 entry, bitmap of subclusters) of a cluster."""
        words = 2 if self._is_extended else 1
        per_table = self._cluster // (8 * words)
        start, count = self._l1
        if cluster // per_table >= count:
            raise _fault("a disk larger than its tables")
        l1 = int.from_bytes(self._file(start + cluster // per_table * 8, 8), "big") & TABLE_OFFSET
        if not l1:
            return 0, 0
        if l1 % self._cluster:
            raise _fault(f"a table at {l1:#x}")
        table, at = self._table(l1), cluster % per_table * 8 * words
        bitmap = int.from_bytes(table[at + 8 : at + 16], "big") if self._is_extended else 0
        return int.from_bytes(table[at : at + 8], "big"), bitmap

    def _read_table(self, offset: int) -> bytes:
        table = self._file(offset, self._cluster)
        if len(table) < self._cluster:
            raise _fault("a table outside of the file")
        return table

    def _unpack(self, entry: int) -> bytes:
        """A compressed cluster."""
        if self._is_zstd:
            raise InputError(
                "a qcow2 image with zstd",
                expected="zlib, or a raw disk",
                next_step="qemu-img convert -O raw, in a copy",
            )
        packed = self._file(*packed_place(entry, self._bits))
        try:
            return zlib.decompressobj(-12).decompress(packed, self._cluster)
        except zlib.error as error:
            raise _fault(f"a compressed cluster that does not unpack ({error})") from None


def _fault(what: str) -> InputError:
    return InputError("a qcow2 image that contradicts itself", got=what, next_step="qemu-img check")
