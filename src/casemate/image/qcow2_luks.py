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
from casemate.image.qcow2 import EXT_ENCRYPTION, encryption_place
from casemate.image.reader import ImageReader

_CLUSTER_BITS: Final = 16
_CLUSTER: Final = 1 << _CLUSTER_BITS
_L2_ENTRIES: Final = _CLUSTER // 8
_COUNTS: Final = _CLUSTER // 2
"""Clusters that one refcount block covers, with 16 bits each."""
_COPIED: Final = 1 << 63
_NOTHING: Final = bytes(_CLUSTER)


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
    write_at(target, area, _CLUSTER)
    end = _CLUSTER + -(-len(area) // _CLUSTER) * _CLUSTER
    tables: dict[int, list[int]] = {}
    done = 0
    while piece := _cluster(source, done):
        plain = piece.ljust(_CLUSTER, b"\0")
        if plain != _NOTHING:
            write_at(target, crypt_sectors(master, plain, end // SECTOR_BYTES, encrypt=True), end)
            first, second = divmod(done // _CLUSTER, _L2_ENTRIES)
            tables.setdefault(first, [0] * _L2_ENTRIES)[second] = end | _COPIED
            end += _CLUSTER
        done += len(piece)
        report(done)
    _write_tables(target, end, tables, done, len(area))


def _cluster(source: int, offset: int) -> bytes:
    """A whole cluster of the disk; less only at its end."""
    data = b""
    while len(data) < _CLUSTER and (piece := os.pread(source, _CLUSTER - len(data), offset + len(data))):
        data += piece
    return data


def _write_tables(target: int, end: int, tables: dict[int, list[int]], size: int, luks_bytes: int) -> None:
    """L2, L1, reference counts; the header last, so that a file that was interrupted is no image."""
    first_level = [0] * -(-size // (_L2_ENTRIES * _CLUSTER))
    for index, entries in tables.items():
        write_at(target, struct.pack(f">{_L2_ENTRIES}Q", *entries), end)
        first_level[index] = end | _COPIED
        end += _CLUSTER
    l1_offset = end
    write_at(target, struct.pack(f">{len(first_level)}Q", *first_level), l1_offset)
    end += _clusters(len(first_level) * 8) * _CLUSTER
    used, table_clusters, blocks = _reference_counts(end // _CLUSTER)
    table = [end + (table_clusters + number) * _CLUSTER for number in range(blocks)]
    write_at(target, struct.pack(f">{blocks}Q", *table), end)
    for number, offset in enumerate(table):
        counted = min(_COUNTS, used - number * _COUNTS)
        write_at(target, struct.pack(">H", 1) * counted, offset)
    os.ftruncate(target, used * _CLUSTER)
    write_at(target, _header(size, len(first_level), l1_offset, end, table_clusters, luks_bytes), 0)


def _clusters(size_bytes: int) -> int:
    return -(-size_bytes // _CLUSTER)


def _reference_counts(used: int) -> tuple[int, int, int]:
    """Clusters of the whole file, of the refcount table, and the number of blocks: they count themselves too."""
    table, blocks = 1, 1
    while True:
        whole = used + table + blocks
        wanted = -(-whole // _COUNTS)
        if (table, blocks) == (_clusters(wanted * 8), wanted):
            return whole, table, blocks
        table, blocks = _clusters(wanted * 8), wanted


def _header(
    size: int, l1_entries: int, l1_offset: int, refcounts: int, refcount_clusters: int, luks_bytes: int
) -> bytes:
    fixed = struct.pack(
        ">4sIQIIQIIQQIIQ QQQII",
        b"QFI\xfb",
        3,  # version
        0,  # backing file: none
        0,
        _CLUSTER_BITS,
        size,
        2,  # LUKS
        l1_entries,
        l1_offset,
        refcounts,
        refcount_clusters,
        0,  # no snapshots
        0,
        0,  # incompatible features
        0,  # compatible features
        0,  # autoclear features
        4,  # refcount_order: 16 bits
        104,  # header_length
    )
    return fixed + struct.pack(">IIQQ Q", EXT_ENCRYPTION, 16, _CLUSTER, luks_bytes, 0)
