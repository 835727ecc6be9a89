"""Writes an empty qcow2 image without a backing name, to lie over a base that the emulator joins by ``backing=``.

    offset       content (clusters of 64 KiB)
    0x00000      header, version 3, 104 bytes, then the end mark of the extensions
    0x10000      refcount table: one entry, the block below
    0x20000      refcount block: 16-bit counts, 1 for each cluster of this file, so it covers 2 GiB of file
    0x30000      L1 table: 8 bytes for each 512 MiB of the disk, all zero

No name of a file stands in it: the path of the base exists only in the plan and as a descriptor, so nothing that the
guest or the emulator writes here can lead anyone to another file.
"""

from __future__ import annotations

import os
import stat
import struct

CLUSTER_BITS = 16
CLUSTER_BYTES = 1 << CLUSTER_BITS
_L2_COVERS_BYTES = CLUSTER_BYTES * (CLUSTER_BYTES // 8)
_FIRST_L1_CLUSTER = 3
MAX_OVERLAY_BYTES = 1 << 50
"""The L1 table of a disk this large has 16 MiB, half of what QEMU accepts, and one refcount block still covers it."""


def write_empty_qcow2(fd: int, size_bytes: int) -> None:
    """Make the empty regular file ``fd`` a qcow2 image whose disk has ``size_bytes`` and holds nothing.

    Raises:
        RuntimeError: the size is not a positive multiple of 512, too large, or the file is not an empty regular file.
        OSError: the file cannot be written; what was written of it is no valid image.
    """
    if size_bytes <= 0 or size_bytes % 512 or size_bytes > MAX_OVERLAY_BYTES:
        raise RuntimeError(f"overlay size {size_bytes} is not a positive multiple of 512 up to {MAX_OVERLAY_BYTES}")
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode) or info.st_size:
        raise RuntimeError("an overlay is written into an empty regular file")
    l1_entries = -(-size_bytes // _L2_COVERS_BYTES)
    clusters = _FIRST_L1_CLUSTER + -(-l1_entries * 8 // CLUSTER_BYTES)
    os.ftruncate(fd, clusters * CLUSTER_BYTES)
    _write(fd, 2 * CLUSTER_BYTES, struct.pack(">H", 1) * clusters)
    _write(fd, CLUSTER_BYTES, struct.pack(">Q", 2 * CLUSTER_BYTES))
    # The header last: a file that was interrupted before has no magic and is refused by every reader.
    l1 = (l1_entries, _FIRST_L1_CLUSTER * CLUSTER_BYTES)
    _write(fd, 0, qcow2_header(size_bytes, l1=l1, refcounts=(CLUSTER_BYTES, 1)))


def qcow2_header(
    size_bytes: int, *, l1: tuple[int, int], refcounts: tuple[int, int], encryption: int = 0, extensions: bytes = b""
) -> bytes:
    """A header of version 3 without a backing file, fields in the order of the format, and its extensions.

    Args:
        l1: entries of the L1 table, and where it lies.
        refcounts: where the refcount table lies, and how many clusters it has.
        encryption: 0 none, 2 LUKS.
    """
    fixed = struct.pack(
        ">4sIQIIQIIQQIIQ QQQII",
        b"QFI\xfb",
        3,  # version
        0,  # backing file: none
        0,
        CLUSTER_BITS,
        size_bytes,
        encryption,
        *l1,
        *refcounts,
        0,  # no snapshots
        0,
        0,  # incompatible features
        0,  # compatible features
        0,  # autoclear features
        4,  # refcount_order: 16 bits
        104,  # header_length
    )
    return fixed + extensions + bytes(8)  # the end of the extensions


def _write(fd: int, offset: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
