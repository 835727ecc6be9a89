"""LUKS inside qcow2: find the header of an accepted image, and write a raw disk encrypted into a new image.

    cluster 0          header (version 3), one extension: where the LUKS header lies, and how long it is
    clusters 1 ..      the LUKS1 header with its key slots, as it would stand at the start of a raw LUKS file
    then               the disk's clusters that are not all zeros, encrypted
    then               L2 tables, L1 table, refcount table, refcount blocks

Unlike in a raw LUKS file the tweak of a sector is its number in the *file*, not on the disk (QEMU block/qcow2.c:
crypt_physical_offset), and the slots lie in the area that the extension names. Which clusters hold only zeros shows
without the key; raw LUKS hides that, and is as large as the disk.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import Final

from casemate.image.headers import inspect_image
from casemate.image.luks import HEADER_BYTES, SECTOR_BYTES, LuksHeader, parse_header
from casemate.image.luks_keys import create, crypt_sectors, write_at
from casemate.image.overlay import CLUSTER_BYTES, qcow2_header
from casemate.image.qcow2 import EXT_ENCRYPTION, encryption_place
from casemate.image.reader import ImageReader

_LUKS: Final = 2
"""The header's number for it."""
_L2_ENTRIES: Final = CLUSTER_BYTES // 8
_COUNTS: Final = CLUSTER_BYTES // 2
"""Clusters that one refcount block covers, with 16 bits each."""
_COPIED: Final = 1 << 63
_NOTHING: Final = bytes(CLUSTER_BYTES)


def inspect_qcow2_luks(descriptor: int, name: str) -> tuple[LuksHeader, int, int]:
    """The LUKS header of a qcow2 image, where it lies, and how many bytes the guest will see.

    Raises:
        ImageError: no qcow2 image, not encrypted, or one that is not accepted; with the reason.
    """
    size = inspect_image(descriptor, name, "qcow2", allow_encrypted=True).virtual_size_bytes
    reader = ImageReader(descriptor, name)
    place = encryption_place(reader)
    return parse_header(reader.read(place, HEADER_BYTES), name), place, size


def encrypt_to_qcow2(
    source: int, target: int, secret: bytes | bytearray, report: Callable[[int], None], iterations: int | None = None
) -> None:
    """Write ``source``, a raw disk of whole sectors, encrypted into the empty file ``target``.

    Args:
        report: told the number of bytes done.
    """
    _, area, master = create(secret, iterations)
    write_at(target, area, CLUSTER_BYTES)
    end = CLUSTER_BYTES + -(-len(area) // CLUSTER_BYTES) * CLUSTER_BYTES
    tables: dict[int, list[int]] = {}
    done = 0
    while piece := _cluster(source, done):
        plain = piece.ljust(CLUSTER_BYTES, b"\0")
        if plain != _NOTHING:
            write_at(target, crypt_sectors(master, plain, end // SECTOR_BYTES, encrypt=True), end)
            first, second = divmod(done // CLUSTER_BYTES, _L2_ENTRIES)
            tables.setdefault(first, [0] * _L2_ENTRIES)[second] = end | _COPIED
            end += CLUSTER_BYTES
        done += len(piece)
        report(done)
    _write_tables(target, end, tables, done, len(area))


def _cluster(source: int, offset: int) -> bytes:
    """A whole cluster of the disk; less only at its end."""
    data = b""
    while len(data) < CLUSTER_BYTES and (piece := os.pread(source, CLUSTER_BYTES - len(data), offset + len(data))):
        data += piece
    return data


def _write_tables(target: int, end: int, tables: dict[int, list[int]], size: int, luks_bytes: int) -> None:
    """L2, L1, reference counts; the header last, so that a file that was interrupted is no image."""
    first_level = [0] * -(-size // (_L2_ENTRIES * CLUSTER_BYTES))
    for index, entries in tables.items():
        write_at(target, struct.pack(f">{_L2_ENTRIES}Q", *entries), end)
        first_level[index] = end | _COPIED
        end += CLUSTER_BYTES
    l1_offset = end
    write_at(target, struct.pack(f">{len(first_level)}Q", *first_level), l1_offset)
    end += _clusters(len(first_level) * 8) * CLUSTER_BYTES
    used, table_clusters, blocks = _reference_counts(end // CLUSTER_BYTES)
    table = [end + (table_clusters + number) * CLUSTER_BYTES for number in range(blocks)]
    write_at(target, struct.pack(f">{blocks}Q", *table), end)
    for number, offset in enumerate(table):
        counted = min(_COUNTS, used - number * _COUNTS)
        write_at(target, struct.pack(">H", 1) * counted, offset)
    os.ftruncate(target, used * CLUSTER_BYTES)
    place = struct.pack(">IIQQ", EXT_ENCRYPTION, 16, CLUSTER_BYTES, luks_bytes)
    l1, refcounts = (len(first_level), l1_offset), (end, table_clusters)
    write_at(target, qcow2_header(size, l1=l1, refcounts=refcounts, encryption=_LUKS, extensions=place), 0)


def _clusters(size_bytes: int) -> int:
    return -(-size_bytes // CLUSTER_BYTES)


def _reference_counts(used: int) -> tuple[int, int, int]:
    """Clusters of the whole file, of the refcount table, and the number of blocks: they count themselves too."""
    table, blocks = 1, 1
    while True:
        whole = used + table + blocks
        wanted = -(-whole // _COUNTS)
        if (table, blocks) == (_clusters(wanted * 8), wanted):
            return whole, table, blocks
        table, blocks = _clusters(wanted * 8), wanted
