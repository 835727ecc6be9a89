"""The VMDK sparse header and its embedded descriptor (VMware), read by ourselves. Little endian; layout: Virtual Disk
Format 5.0 (VMware), QEMU block/vmdk.c.

    0x000     "KDMV", version, flags, capacity, grain size, place of the descriptor, grain tables, directories
    0x200     the descriptor: text of lines  KEY="VALUE"  and one extent line  RW SECTORS SPARSE "NAME"
    end       streamOptimized: marker, a second header that takes precedence, end-of-stream marker

Accepted: one file, ``monolithicSparse`` or ``streamOptimized``. All else of VMDK is a list of other files, and so is
what QEMU makes of a header whose capacity is 0 (it then follows the extents of the descriptor) or of parentFileNameHint
anywhere in the 10 KiB from 0x200 on (it then opens that file below this one).
"""

from __future__ import annotations

import re
import struct
import sys
from array import array
from typing import NamedTuple

from casemate.errors import ImageError
from casemate.image.foreign import lie, refers
from casemate.image.qcow2 import SECTOR_BYTES, check_quota
from casemate.image.reader import ImageReader
from casemate.units import KIB, MIB

MAX_DESCRIPTOR_BYTES = 64 * KIB
MAX_GRAIN_SECTORS = 16 * MIB // SECTOR_BYTES
MAX_GRAIN_TABLE_ENTRIES = 512
MAX_DIRECTORY_BYTES = MIB
PARENT_SCAN = (0x200, 20 * SECTOR_BYTES)
"""Where QEMU looks for the name of a parent, whatever the header says."""

_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
_MARKER = struct.Struct("<QII")
_MAGIC = b"KDMV"
_AT_END = 0xFFFF_FFFF_FFFF_FFFF
_LINE_ENDS = b"\n \r\n"
_REDUNDANT, _COMPRESSED, _MARKERS = 1 << 1, 1 << 16, 1 << 17
_KNOWN_FLAGS = 1 | _REDUNDANT | 1 << 2 | _COMPRESSED | _MARKERS
_FOOTER_MARKER, _END_MARKER = 3, 0
_VARIANTS = {"monolithicsparse": "monolithicSparse", "streamoptimized": "streamOptimized"}
_EXTENT = re.compile(r'(?:RW|RDONLY|NOACCESS)\s+([0-9]{1,20})\s+([A-Z]+)(?:\s+"([^"]*)")?(?:\s+\S+)*\s*', re.IGNORECASE)


class Sparse(NamedTuple):
    """The fixed fields, in the order of the format; offsets and sizes in sectors."""

    magic: bytes
    version: int
    flags: int
    capacity: int
    grain: int
    descriptor_at: int
    descriptor_size: int
    table_entries: int
    redundant_at: int
    directory_at: int
    data_at: int
    unclean: int
    line_ends: bytes
    compression: int


def read_vmdk(reader: ImageReader, max_virtual_bytes: int) -> tuple[str, int]:
    """Variant and virtual size of a VMDK image. Raises ``ImageError``."""
    name = reader.name
    if reader.size_bytes < 2 * SECTOR_BYTES or not reader.read(0, 4) == _MAGIC:
        raise ImageError(
            f"{name} is a VMDK of a kind that is not accepted",
            expected="monolithicSparse or streamOptimized",
            next_step="export it as an OVA or with ovftool, which write streamOptimized",
        )
    header = Sparse._make(_HEADER.unpack_from(reader.read(0, SECTOR_BYTES)))
    variant = _check_descriptor(reader, header)
    if header.directory_at == _AT_END:
        header = _read_footer(reader, header)
    _check_fields(name, header)
    compressed = header.compression == 1
    if compressed != (variant == "streamOptimized") or compressed != bool(header.flags & _COMPRESSED):
        raise lie(name, "vmdk", f"{variant} {'with' if compressed else 'without'} compression")
    check_quota(name, header.capacity * SECTOR_BYTES, max_virtual_bytes)
    _check_directories(reader, header)
    return variant, header.capacity * SECTOR_BYTES


def _check_fields(name: str, header: Sparse) -> None:
    if not 1 <= header.version <= 3 or header.flags & ~_KNOWN_FLAGS or header.line_ends != _LINE_ENDS:
        raise lie(name, "vmdk", f"version {header.version}, flags {header.flags:#x}, or line ends that were changed")
    if header.capacity == 0:
        raise refers(name, "is a VMDK without content of its own")
    if header.grain & (header.grain - 1) or not 1 <= header.grain <= MAX_GRAIN_SECTORS:
        raise lie(name, "vmdk", f"grains of {header.grain} sectors", f"a power of two up to {MAX_GRAIN_SECTORS}")
    if not 1 <= header.table_entries <= MAX_GRAIN_TABLE_ENTRIES:
        raise lie(name, "vmdk", f"grain tables of {header.table_entries}", f"1 to {MAX_GRAIN_TABLE_ENTRIES} entries")
    if header.compression > 1:
        raise lie(name, "vmdk", f"compression {header.compression}", "0 (none) or 1 (deflate)")


def _read_footer(reader: ImageReader, header: Sparse) -> Sparse:
    """The header at the end of a streamed image; it may only differ in where the directory lies."""
    name, size_bytes = reader.name, reader.size_bytes
    if size_bytes % SECTOR_BYTES or size_bytes < 4 * SECTOR_BYTES:
        raise lie(name, "vmdk", f"a streamed file of {size_bytes} bytes", "whole sectors: is it cut short?")
    data = reader.read(size_bytes - 3 * SECTOR_BYTES, 3 * SECTOR_BYTES)
    footer = Sparse._make(_HEADER.unpack_from(data, SECTOR_BYTES))
    _value, first_size, first_kind = _MARKER.unpack_from(data)
    end = _MARKER.unpack_from(data, 2 * SECTOR_BYTES)
    if (first_size, first_kind) != (0, _FOOTER_MARKER) or end != (0, 0, _END_MARKER) or footer.magic != _MAGIC:
        raise lie(name, "vmdk", "no footer at its end", "a streamed file that is not cut short, and nothing behind it")
    if footer.directory_at == _AT_END or _constant(footer) != _constant(header):
        raise lie(name, "vmdk", "a header at its end that says other things than the one at its begin")
    return footer


def _constant(header: Sparse) -> Sparse:
    return header._replace(directory_at=0, redundant_at=0, data_at=0, unclean=0)


def _check_descriptor(reader: ImageReader, header: Sparse) -> str:
    """The variant that the embedded descriptor says; every name in it is looked at."""
    name = reader.name
    at, length = header.descriptor_at * SECTOR_BYTES, header.descriptor_size * SECTOR_BYTES
    if header.descriptor_at == 0 or length == 0:
        raise refers(name, "is one of several files of a VMDK: it has no descriptor")
    if length > MAX_DESCRIPTOR_BYTES or at + length > reader.size_bytes:
        raise lie(
            name, "vmdk", f"a descriptor of {length} bytes at {at}", f"at most {MAX_DESCRIPTOR_BYTES}, in the file"
        )
    data = reader.read(at, length)
    if b"parentfilenamehint" in (data + b"\0" + reader.read_padded(*PARENT_SCAN)).lower():
        raise refers(name, "is a VMDK that is the difference to another image", "parentFileNameHint")
    text = data.rstrip(b"\0")
    if b"\0" in text:
        raise lie(name, "vmdk", "a descriptor with NUL bytes in the middle", "plain text")
    settings: dict[str, str] = {}
    extents = []
    for line in text.decode("utf-8", "replace").splitlines():
        extent = _EXTENT.fullmatch(line.strip())
        key, equals, value = line.partition("=")
        key = key.strip().lower()
        if extent is not None:
            extents.append(extent)
        elif equals and key.isidentifier():
            if key in settings and key in {"createtype", "parentcid", "cid"}:
                raise lie(name, "vmdk", f"two lines for {key} in its descriptor")
            settings[key] = value.strip().strip('"')
    if settings.get("parentcid", "ffffffff").lower() != "ffffffff":
        raise refers(
            name, "is a VMDK that is the difference to another image", f"parentCID {settings['parentcid'][:8]}"
        )
    _check_extents(name, header, extents)
    kind = settings.get("createtype", "")
    if kind.lower() not in _VARIANTS:
        raise refers(name, f"is a VMDK of type {kind[:40]!a}", "one whose content lies in other files")
    return _VARIANTS[kind.lower()]


def _check_extents(name: str, header: Sparse, extents: list[re.Match[str]]) -> None:
    if len(extents) != 1 or extents[0][2].upper() != "SPARSE":
        kinds = ", ".join(extent[2].upper() for extent in extents[:4])
        raise refers(name, f"is a VMDK with {len(extents)} extents", kinds or "no extent line")
    file = extents[0][3] or ""
    if "/" in file or "\\" in file or ":" in file:
        raise refers(name, "is a VMDK with an extent in another place", ascii(file[:120]))
    if int(extents[0][1]) != header.capacity:
        raise lie(name, "vmdk", f"an extent of {extents[0][1]} sectors", f"{header.capacity}, as the header says")


def _check_directories(reader: ImageReader, header: Sparse) -> None:
    name = reader.name
    length = 4 * -(-header.capacity // (header.table_entries * header.grain))
    if length > MAX_DIRECTORY_BYTES:
        raise lie(name, "vmdk", f"a grain directory of {length} bytes", f"at most {MAX_DIRECTORY_BYTES}")
    if header.data_at * SECTOR_BYTES > reader.size_bytes:
        raise lie(name, "vmdk", f"data from sector {header.data_at} on", "a file that is not cut short")
    places = [("grain directory", header.directory_at)]
    if header.flags & _REDUNDANT:
        places.append(("second grain directory", header.redundant_at))
    for what, sector in places:
        at = sector * SECTOR_BYTES
        if sector == 0 or at + length > reader.size_bytes:
            raise lie(name, "vmdk", f"the {what} of {length} bytes at {at}", "one inside the file")
        entries = array("I", reader.read(at, length))
        if sys.byteorder == "big":
            entries.byteswap()
        last = max(entries) * SECTOR_BYTES
        if last and last + 4 * header.table_entries > reader.size_bytes:
            raise lie(name, "vmdk", f"an entry of the {what} that leads to byte {last}", "a file that is not cut short")
