"""The VDI header (VirtualBox), read by ourselves. Little endian; layout: VirtualBox VDICore.h, QEMU block/vdi.c.

0x000  text of 64 bytes, signature 0xbeda107f, version 1.1, header size, type (1 dynamic, 2 static), flags
0x154  offset of the block map, offset of the data, geometry, sector size, disk size, block size, blocks, allocated
0x188  UUIDs: image, last snapshot, link, parent
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from casemate.image.foreign import lie, refers
from casemate.image.qcow2 import SECTOR_BYTES, check_quota
from casemate.image.reader import ImageReader
from casemate.units import MIB

HEADER_BYTES = 512
BLOCK_BYTES = MIB
"""The only size that QEMU, and VirtualBox by default, use."""
VERSION_1_1 = 0x0001_0001
_HEADER = struct.Struct("<64sIIIII256sIIIIIIIQIIII16s16s16s16s")
_VARIANTS = {1: "dynamic", 2: "static"}
_NO_UUID = bytes(16)


class Header(NamedTuple):
    """The fixed fields, in the order of the format."""

    text: bytes
    signature: int
    version: int
    header_bytes: int
    kind: int
    flags: int
    description: bytes
    map_at: int
    data_at: int
    cylinders: int
    heads: int
    sectors: int
    sector_bytes: int
    unused: int
    disk_bytes: int
    block_bytes: int
    extra_bytes: int
    blocks: int
    allocated: int
    image: bytes
    snapshot: bytes
    link: bytes
    parent: bytes


def read_vdi(reader: ImageReader, max_virtual_bytes: int) -> tuple[str, int]:
    """Variant and virtual size of a VDI image. Raises ``ImageError``."""
    name, size_bytes = reader.name, reader.size_bytes
    if size_bytes < HEADER_BYTES:
        raise lie(name, "vdi", f"a file of {size_bytes} bytes", f"at least {HEADER_BYTES}")
    header = Header._make(_HEADER.unpack_from(reader.read(0, HEADER_BYTES)))
    if header.version != VERSION_1_1:
        raise lie(name, "vdi", f"version {header.version >> 16}.{header.version & 0xFFFF}", "version 1.1")
    if header.kind not in _VARIANTS or header.parent != _NO_UUID or header.link != _NO_UUID:
        raise refers(name, "is a VDI that is the difference to another image", f"type {header.kind}")
    if header.header_bytes < 0x180 or header.block_bytes != BLOCK_BYTES or header.extra_bytes:
        got = f"a header of {header.header_bytes} bytes, blocks of {header.block_bytes} and {header.extra_bytes}"
        raise lie(name, "vdi", got, f"at least 384, {BLOCK_BYTES} and 0")
    if header.sector_bytes != SECTOR_BYTES:
        raise lie(name, "vdi", f"sectors of {header.sector_bytes} bytes", str(SECTOR_BYTES))
    check_quota(name, header.disk_bytes, max_virtual_bytes)
    _check_places(name, size_bytes, header)
    return _VARIANTS[header.kind], header.disk_bytes


def _check_places(name: str, size_bytes: int, header: Header) -> None:
    disk_bytes, blocks, map_at, data_at = header.disk_bytes, header.blocks, header.map_at, header.data_at
    if not disk_bytes or disk_bytes % SECTOR_BYTES or blocks != -(-disk_bytes // BLOCK_BYTES):
        raise lie(name, "vdi", f"a disk of {disk_bytes} bytes in {blocks} blocks", "just enough blocks of 1 MiB")
    if header.allocated > blocks:
        raise lie(name, "vdi", f"{header.allocated} blocks with data", f"at most {blocks}")
    if map_at % SECTOR_BYTES or data_at % SECTOR_BYTES or map_at < HEADER_BYTES or map_at + 4 * blocks > data_at:
        raise lie(name, "vdi", f"the block map at {map_at}, the data at {data_at}", "header, map, data, in this order")
    end = data_at + header.allocated * BLOCK_BYTES
    if end > size_bytes:
        raise lie(name, "vdi", f"data up to byte {end}, a file of {size_bytes} bytes", "a file that is not cut short")
    if size_bytes > data_at + (blocks + 1) * BLOCK_BYTES:
        raise lie(name, "vdi", f"{size_bytes - end} bytes behind the data", "nothing")
