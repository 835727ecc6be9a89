"""The VHD header and footer (Microsoft Virtual PC), read by ourselves. Big endian; layout: Virtual Hard Disk Image
Format Specification (Microsoft, 2006), QEMU block/vpc.c.

    fixed      data, then the footer: the last 512 bytes
    dynamic    copy of the footer, dynamic header ("cxsparse", 1024 bytes), block table, blocks, footer

A differencing disk (type 4, or any parent name, identifier or locator) is refused.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from casemate.image.foreign import lie, refers
from casemate.image.qcow2 import SECTOR_BYTES, check_quota
from casemate.image.reader import ImageReader
from casemate.units import MIB

FOOTER_BYTES = 512
DYNAMIC_BYTES = 1024
MAX_BLOCK_BYTES = 256 * MIB
MAX_GEOMETRY_SECTORS = 65535 * 16 * 255
"""Geometry that stands for "larger than a geometry can say"."""
FIXED, DYNAMIC = 2, 3
_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16sB")
_DYNAMIC = struct.Struct(">8sQQIIII16sII512s")
_COOKIE, _DYNAMIC_COOKIE = b"conectix", b"cxsparse"
_NONE = 0xFFFF_FFFF_FFFF_FFFF
_SIZE_COUNTS = {b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS"}
"""Makers whose size field is the truth; the disk of all others has the size of its geometry (QEMU block/vpc.c)."""


class Footer(NamedTuple):
    """The fields of the footer, in the order of the format."""

    cookie: bytes
    features: int
    version: int
    dynamic_at: int
    time: int
    maker: bytes
    maker_version: int
    maker_os: bytes
    original_bytes: int
    current_bytes: int
    cylinders: int
    heads: int
    sectors: int
    kind: int
    checksum: int
    uuid: bytes
    saved: int

    @property
    def virtual_bytes(self) -> int:
        """The size of the disk as QEMU sees it."""
        geometry = self.cylinders * self.heads * self.sectors
        by_size = self.maker in _SIZE_COUNTS or geometry == MAX_GEOMETRY_SECTORS
        return self.current_bytes if by_size else geometry * SECTOR_BYTES


class Dynamic(NamedTuple):
    """The fields of the dynamic header, in the order of the format; the parent locators follow."""

    cookie: bytes
    following: int
    table_at: int
    version: int
    entries: int
    block_bytes: int
    checksum: int
    parent_uuid: bytes
    parent_time: int
    reserved: int
    parent_name: bytes


def read_vhd(reader: ImageReader, max_virtual_bytes: int) -> tuple[str, int]:
    """Variant and virtual size of a VHD image. Raises ``ImageError``."""
    name, size_bytes = reader.name, reader.size_bytes
    if size_bytes < FOOTER_BYTES:
        raise lie(name, "vhd", f"a file of {size_bytes} bytes", f"at least {FOOTER_BYTES}")
    first = reader.read(0, FOOTER_BYTES)
    last = reader.read(size_bytes - FOOTER_BYTES, FOOTER_BYTES)
    if not last.startswith(_COOKIE):
        raise lie(name, "vhd", "no footer in the last 512 bytes", "a file that is not cut short, and nothing behind it")
    footer = _read_footer(name, last)
    check_quota(name, max(footer.virtual_bytes, footer.current_bytes), max_virtual_bytes)
    if not footer.virtual_bytes:
        raise lie(name, "vhd", "a disk of 0 bytes")
    if footer.kind == DYNAMIC:
        if first != last:
            raise lie(name, "vhd", "a footer that differs from its copy at the begin", "two that are the same")
        _check_dynamic(reader, footer.dynamic_at, footer.virtual_bytes)
        return "dynamic", footer.virtual_bytes
    if first.startswith(_COOKIE):
        raise lie(name, "vhd", "a fixed disk with a second footer at its begin")
    data_bytes = size_bytes - FOOTER_BYTES
    if footer.virtual_bytes > data_bytes or footer.current_bytes != data_bytes:
        raise lie(name, "vhd", f"a disk of {footer.current_bytes} bytes", f"one of {data_bytes}, as the file")
    return "fixed", footer.virtual_bytes


def _read_footer(name: str, data: bytes) -> Footer:
    footer = Footer._make(_FOOTER.unpack_from(data))
    if _sum(data, 64) != footer.checksum:
        raise lie(name, "vhd", f"the checksum {footer.checksum:#x}", f"{_sum(data, 64):#x}")
    if footer.kind == 4:
        raise refers(name, "is a VHD that is the difference to another image")
    if footer.version >> 16 != 1 or footer.kind not in {FIXED, DYNAMIC}:
        got = f"version {footer.version:#x}, type {footer.kind}"
        raise lie(name, "vhd", got, "version 1, type 2 (fixed) or 3 (dynamic)")
    if footer.saved:
        raise lie(name, "vhd", "a disk in a saved state", "one of a machine that was shut down")
    if footer.current_bytes % SECTOR_BYTES:
        raise lie(name, "vhd", f"a size of {footer.current_bytes} bytes", f"a multiple of {SECTOR_BYTES}")
    return footer


def _check_dynamic(reader: ImageReader, at: int, virtual_bytes: int) -> None:
    name, end = reader.name, reader.size_bytes - FOOTER_BYTES
    if at % SECTOR_BYTES or at < FOOTER_BYTES or at + DYNAMIC_BYTES > end:
        raise lie(name, "vhd", f"the dynamic header at {at}", "one behind the first footer and before the last")
    data = reader.read(at, DYNAMIC_BYTES)
    header = Dynamic._make(_DYNAMIC.unpack_from(data))
    if header.cookie != _DYNAMIC_COOKIE or header.version >> 16 != 1 or header.following != _NONE:
        raise lie(name, "vhd", "a dynamic header without its signature, or of another version")
    if _sum(data, 36) != header.checksum:
        raise lie(name, "vhd", f"the checksum {header.checksum:#x} of the dynamic header", f"{_sum(data, 36):#x}")
    if any(header.parent_uuid) or any(header.parent_name) or any(data[_DYNAMIC.size : _DYNAMIC.size + 8 * 24]):
        raise refers(name, "is a VHD that names a parent")
    size = header.block_bytes
    if size & (size - 1) or not SECTOR_BYTES <= size <= MAX_BLOCK_BYTES:
        raise lie(name, "vhd", f"blocks of {size} bytes", f"a power of two, 512 to {MAX_BLOCK_BYTES}")
    if not virtual_bytes <= header.entries * size <= virtual_bytes + 64 * max(size, 2 * MIB):
        raise lie(name, "vhd", f"a table of {header.entries} blocks", f"as many as {virtual_bytes} bytes need")
    if header.table_at % SECTOR_BYTES or not at + DYNAMIC_BYTES <= header.table_at <= end - 4 * header.entries:
        raise lie(name, "vhd", f"{4 * header.entries} bytes of block table at {header.table_at}", "one inside the file")


def _sum(data: bytes, at: int) -> int:
    """The checksum of a structure whose own checksum stands at ``at``: one's complement of the sum of its bytes."""
    return ~(sum(data) - sum(data[at : at + 4])) & 0xFFFF_FFFF
