"""The VHDX header section (Microsoft Hyper-V), read by ourselves. Little endian; layout: MS-VHDX, QEMU block/vhdx.c.

    0 KiB     "vhdxfile", name of the maker
    64, 128   two headers of 4 KiB; the one with a valid checksum and the higher sequence number counts
    192, 256  two region tables of 64 KiB, which must agree: where metadata and block table lie
    1 MiB     log, regions; the metadata say block size, virtual size, sector sizes, and whether there is a parent

Refused: a parent, a log that is still to be replayed (the file was not closed), unknown regions or items that a reader
must understand, regions that overlap or leave the file, 4 KiB sectors (QEMU does not read them).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from casemate.errors import ImageError
from casemate.image.crc32c import crc32c_matches
from casemate.image.foreign import lie, refers
from casemate.image.qcow2 import SECTOR_BYTES, check_quota
from casemate.image.reader import ImageReader
from casemate.units import KIB, MIB

HEADERS_AT = (64 * KIB, 128 * KIB)
HEADER_BYTES = 4 * KIB
REGIONS_AT = (192 * KIB, 256 * KIB)
TABLE_BYTES = 64 * KIB
MAX_REGIONS = 16
MAX_ITEMS = 64
_HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")
_TABLE = struct.Struct("<4sIII")
_REGION = struct.Struct("<16sQII")
_ITEM = struct.Struct("<16sIIII")
_NO_GUID = bytes(16)


def _guid(text: str) -> bytes:
    """A GUID as it lies on disk: the first three parts little endian."""
    first, second, third, *rest = text.split("-")
    return b"".join(bytes.fromhex(part)[::-1] for part in (first, second, third)) + bytes.fromhex("".join(rest))


BAT = _guid("2dc27766-f623-4200-9d64-115e9bfd4a08")
METADATA = _guid("8b7ca206-4790-4b9a-b8fe-575f050f886e")
FILE_PARAMETERS = _guid("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
VIRTUAL_SIZE = _guid("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
PAGE_83 = _guid("beca12ab-b2e6-4523-93ef-c309e000c746")
LOGICAL_SECTOR = _guid("8141bf1d-a96f-4709-ba47-f233a8faab5f")
PHYSICAL_SECTOR = _guid("cda348c7-445d-4471-9cc9-e9885251c556")
PARENT_LOCATOR = _guid("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
_SIZES = {FILE_PARAMETERS: 8, VIRTUAL_SIZE: 8, PAGE_83: 16, LOGICAL_SECTOR: 4, PHYSICAL_SECTOR: 4}


class Region(NamedTuple):
    """A part of the file, in bytes."""

    offset: int
    length: int


def read_vhdx(reader: ImageReader, max_virtual_bytes: int) -> tuple[str, int]:
    """Variant and virtual size of a VHDX image. Raises ``ImageError``."""
    name = reader.name
    if reader.size_bytes < MIB:
        raise lie(name, "vhdx", f"a file of {reader.size_bytes} bytes", "at least 1 MiB")
    log = _check_headers(reader)
    regions = _read_regions(reader)
    _check_places(reader, [log, *regions.values()])
    for guid, what in ((BAT, "block table"), (METADATA, "metadata")):
        if guid not in regions:
            raise lie(name, "vhdx", f"no region for the {what}")
    items = _read_items(reader, regions[METADATA])
    block_bytes, flags = struct.unpack("<II", items[FILE_PARAMETERS])
    (virtual_bytes,) = struct.unpack("<Q", items[VIRTUAL_SIZE])
    (logical_bytes,) = struct.unpack("<I", items[LOGICAL_SECTOR])
    if flags & 2:
        raise refers(name, "is a VHDX that is the difference to another image")
    if flags & ~3:
        raise lie(name, "vhdx", f"unknown file parameters {flags:#x}")
    if logical_bytes != SECTOR_BYTES:
        raise ImageError(
            f"{name} has sectors of {logical_bytes} bytes", expected="512", next_step="convert it where it was made"
        )
    if block_bytes & (block_bytes - 1) or not MIB <= block_bytes <= 256 * MIB:
        raise lie(name, "vhdx", f"blocks of {block_bytes} bytes", "a power of two, 1 MiB to 256 MiB")
    if not virtual_bytes or virtual_bytes % SECTOR_BYTES:
        raise lie(name, "vhdx", f"a disk of {virtual_bytes} bytes", f"a positive multiple of {SECTOR_BYTES}")
    check_quota(name, virtual_bytes, max_virtual_bytes)
    _check_table(name, regions[BAT], virtual_bytes, block_bytes)
    return "fixed" if flags & 1 else "dynamic", virtual_bytes


def _check_headers(reader: ImageReader) -> Region:
    """The log of the header that counts, which must be empty."""
    valid = []
    for at in HEADERS_AT:
        data = reader.read(at, HEADER_BYTES)
        signature, _sum, sequence, _write, _data, log_guid, log_version, version, log_bytes, log_at = (
            _HEADER.unpack_from(data)
        )
        if signature == b"head" and version == 1 and crc32c_matches(data, 4):
            valid.append((sequence, data[8:80], log_guid, log_version, Region(log_at, log_bytes)))
    if not valid:
        raise lie(reader.name, "vhdx", "no header with a valid checksum")
    if len(valid) == 2 and valid[0][0] == valid[1][0] and valid[0][1] != valid[1][1]:
        raise lie(reader.name, "vhdx", "two headers that claim to be the current one")
    _, _, log_guid, log_version, log = max(valid, key=lambda header: header[0])
    if log_guid != _NO_GUID:
        raise ImageError(
            f"{reader.name} was not closed: its log is still to be replayed",
            next_step="open and close it with the program that wrote it (Hyper-V: Mount-VHD, Dismount-VHD)",
        )
    if log_version != 0:
        raise lie(reader.name, "vhdx", f"a log of version {log_version}", "version 0")
    return log


def _read_regions(reader: ImageReader) -> dict[bytes, Region]:
    tables: list[bytes | None] = []
    for at in REGIONS_AT:
        data = reader.read(at, TABLE_BYTES)
        signature, _sum, count, _reserved = _TABLE.unpack_from(data)
        if signature != b"regi" or count > MAX_REGIONS or data[_TABLE.size + count * _REGION.size :].strip(b"\0"):
            tables.append(None)
            continue
        tables.append(data[: _TABLE.size + count * _REGION.size] if crc32c_matches(data, 4) else None)
    first, second = tables
    if first is None:
        raise lie(
            reader.name, "vhdx", "no valid region table, or one with more than is known", f"at most {MAX_REGIONS}"
        )
    if second is not None and first[8:] != second[8:]:
        raise lie(reader.name, "vhdx", "two region tables that differ", "two that are the same")
    found: dict[bytes, Region] = {}
    for guid, offset, length, required in _REGION.iter_unpack(first[_TABLE.size :]):
        if guid in found:
            raise lie(reader.name, "vhdx", "a region twice")
        if guid not in {BAT, METADATA} and required & 1:
            raise lie(reader.name, "vhdx", "an unknown region that a reader must understand")
        found[guid] = Region(offset, length)
    return found


def _check_places(reader: ImageReader, regions: list[Region]) -> None:
    end = MIB
    for region in sorted(regions):
        if region.offset % MIB or region.length % MIB or region.offset < MIB:
            raise lie(
                reader.name, "vhdx", f"a region of {region.length} bytes at {region.offset}", "multiples of 1 MiB"
            )
        if region.offset < end:
            raise lie(reader.name, "vhdx", f"regions that overlap at {region.offset}")
        end = region.offset + region.length
        if end > reader.size_bytes:
            raise lie(
                reader.name,
                "vhdx",
                f"a region up to byte {end}, a file of {reader.size_bytes} bytes",
                "a file that is not cut short",
            )


def _read_items(reader: ImageReader, region: Region) -> dict[bytes, bytes]:
    name = reader.name
    table = reader.read(region.offset, TABLE_BYTES)
    signature, _reserved, count = struct.unpack_from("<8sHH", table)
    if signature != b"metadata" or count > MAX_ITEMS:
        raise lie(name, "vhdx", f"a metadata table of {count} items", f"at most {MAX_ITEMS}")
    found: dict[bytes, bytes] = {}
    for number in range(count):
        guid, offset, length, flags, _ = _ITEM.unpack_from(table, 32 + number * _ITEM.size)
        if guid == PARENT_LOCATOR:
            raise refers(name, "is a VHDX with a parent locator")
        if guid not in _SIZES:
            if flags & 4:
                raise lie(name, "vhdx", "unknown metadata that a reader must understand")
            continue
        if guid in found:
            raise lie(name, "vhdx", "metadata twice")
        if length != _SIZES[guid] or offset < TABLE_BYTES or offset + length > region.length:
            raise lie(name, "vhdx", f"metadata of {length} bytes at {offset}", f"{_SIZES[guid]} inside their region")
        found[guid] = reader.read(region.offset + offset, length)
    if len(found) != len(_SIZES):
        raise lie(name, "vhdx", f"{len(found)} of the {len(_SIZES)} items of metadata that every image has")
    return found


def _check_table(name: str, region: Region, virtual_bytes: int, block_bytes: int) -> None:
    """Eight bytes for each block, and for each chunk of blocks one entry of a sector bitmap between them."""
    blocks = -(-virtual_bytes // block_bytes)
    chunk = (1 << 23) * SECTOR_BYTES // block_bytes
    entries = blocks + (blocks - 1) // chunk
    if 8 * entries > region.length:
        raise lie(name, "vhdx", f"a block table of {region.length} bytes", f"at least {8 * entries}")
