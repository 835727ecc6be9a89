"""The qcow2 header, read by ourselves: what it names, and that nothing in it lies. Format: QEMU docs/interop/qcow2.

    cluster 0   72 bytes (version 2) or header_length bytes (version 3, from 104), extensions, name of the backing file
    anywhere    refcount table, L1 table, snapshot table, bitmap directory: named by offset and number of entries

1. fixed fields: version, cluster size, features, header length;
2. other files: a backing file or an external data file is refused, whatever its name says;
3. extensions: each at most once, inside the first cluster, and only where the features agree with it; a LUKS header
   that one of them names is judged as that of a raw LUKS file is (`luks.parse_header`);
4. tables: bounded in size, aligned, inside the file, apart from each other; every entry of the refcount and L1 tables
   points into the file, so a file that was cut short (a download that broke off) is noticed here;
5. size: a whole number of sectors, covered by the L1 table, within the quota.

Decided against: reading L2 tables and refcount blocks. That is as much work as the image is large; QEMU checks each
entry when it uses it, inside its wall. Policy on marks left by the last writer: *dirty* is accepted and reported, as a
crash of the host leaves it and QEMU repairs it inside the wall; *corrupt* is refused: data may be lost.
"""

from __future__ import annotations

import itertools
import struct
import sys
from array import array
from typing import NamedTuple

from casemate.errors import ImageError
from casemate.image.luks import HEADER_BYTES, PAYLOAD_MAX_BYTES, parse_header
from casemate.image.model import ImageHeader
from casemate.image.reader import ImageReader
from casemate.units import format_bytes

SECTOR_BYTES = 512
MIN_CLUSTER_BITS, MAX_CLUSTER_BITS = 9, 21
EXTENDED_L2_MIN_CLUSTER_BITS = 14
MAX_L1_BYTES = 32 << 20
MAX_REFCOUNT_TABLE_BYTES = 8 << 20
MAX_SNAPSHOTS = 1024
"""QEMU reads up to 65536; an image with more than this is not one a person made."""
MAX_BITMAPS = 65_535
MAX_BITMAP_DIRECTORY_BYTES = 64 << 20
MAX_EXTENSIONS = 32
MAX_SNAPSHOT_EXTRA_BYTES = 1024

DIRTY, CORRUPT, DATA_FILE, COMPRESSION, EXTENDED_L2 = (1 << bit for bit in range(5))
_KNOWN_INCOMPATIBLE = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2
LAZY_REFCOUNTS = 1
AUTOCLEAR_BITMAPS, AUTOCLEAR_RAW_DATA_FILE = 1, 2

EXT_END = 0
EXT_BACKING_FORMAT = 0xE2792ACA
EXT_FEATURE_NAMES = 0x6803F857
EXT_BITMAPS = 0x23852875
EXT_ENCRYPTION = 0x0537BE77
EXT_DATA_FILE = 0x44415441

_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_SNAPSHOT = struct.Struct(">QIHHIIQII")
_COMPRESSIONS = {0: "zlib", 1: "zstd"}
_ENTRIES_AT_ONCE = 1 << 16
_NO_ENTRIES = bytes(_ENTRIES_AT_ONCE * 8)
_L1_RESERVED = 0x7F00_0000_0000_01FF
TABLE_OFFSET = 0x00FF_FFFF_FFFF_FE00
"""Of an L1 or L2 entry: where its table or cluster lies."""
COMPRESSED_CLUSTER = 1 << 62
"""Of an L2 entry: what follows is read by `packed_place`."""
_REFCOUNT_RESERVED = 0x1FF
_REFCOUNT_OFFSET = 0xFFFF_FFFF_FFFF_FE00


class Fixed(NamedTuple):
    """The fixed fields of versions 2 and 3, in the order of the format, then what follows from them."""

    version: int
    backing_offset: int
    backing_length: int
    cluster_bits: int
    size_bytes: int
    encryption: int
    l1_entries: int
    l1_offset: int
    refcount_offset: int
    refcount_clusters: int
    snapshots: int
    snapshots_offset: int
    incompatible: int
    compatible: int
    autoclear: int
    refcount_order: int
    header_length: int
    compression: int

    @property
    def cluster_bytes(self) -> int:
        """Size of a cluster."""
        return 1 << self.cluster_bits


def packed_place(entry: int, cluster_bits: int) -> tuple[int, int]:
    """(offset, length) of a compressed cluster in the file; bits 0-(x-1): offset, x-61: further sectors,
    x = 62 - (cluster_bits - 8)."""
    offset_bits = 62 - (cluster_bits - 8)
    offset = entry & ((1 << offset_bits) - 1)
    sectors = ((entry & (COMPRESSED_CLUSTER - 1)) >> offset_bits) + 1
    return offset, sectors * SECTOR_BYTES - offset % SECTOR_BYTES


def read_qcow2(reader: ImageReader, max_virtual_bytes: int, *, allow_encrypted: bool = False) -> ImageHeader:
    """Read and judge the header of a qcow2 image. Raises ``ImageError`` with what is wrong and what to do."""
    fixed = read_fixed(reader)
    _check_features(reader.name, fixed)
    _check_self_contained(reader, fixed, allow_encrypted)
    bitmaps = _check_extensions(reader, fixed)
    _check_tables(reader, fixed)
    _check_size(reader.name, fixed, max_virtual_bytes)
    return ImageHeader(
        format="qcow2",
        virtual_size_bytes=fixed.size_bytes,
        file_size_bytes=reader.size_bytes,
        version=fixed.version,
        encrypted=fixed.encryption != 0,
        cluster_size_bytes=fixed.cluster_bytes,
        refcount_bits=1 << fixed.refcount_order,
        compression=_COMPRESSIONS[fixed.compression],
        extended_l2=bool(fixed.incompatible & EXTENDED_L2),
        lazy_refcounts=bool(fixed.compatible & LAZY_REFCOUNTS),
        dirty=bool(fixed.incompatible & DIRTY),
        snapshots=fixed.snapshots,
        bitmaps=bitmaps,
    )


def _lie(name: str, got: str, expected: str = "") -> ImageError:
    """The error for a header that contradicts the format or the file."""
    return ImageError(
        f"{name} has a qcow2 header that cannot be true",
        got=got,
        expected=expected,
        next_step="get the image again and compare its checksum; do not repair an image you do not trust",
    )


def read_fixed(reader: ImageReader) -> Fixed:
    """The fixed fields of the header; nothing else of it is judged here. Raises ``ImageError``."""
    name = reader.name
    if reader.size_bytes < _V2.size:
        raise _lie(name, f"a file of {reader.size_bytes} bytes", f"at least {_V2.size}")
    head = reader.read_padded(0, 112)
    _magic, version, *rest = _V2.unpack_from(head)
    if version not in {2, 3}:
        raise ImageError(f"{name} is qcow2 of an unknown version", got=str(version), expected="version 2 or 3")
    if version == 2:
        return _with_sane_cluster(name, Fixed._make([version, *rest, 0, 0, 0, 4, 72, 0]))
    if reader.size_bytes < _V2.size + _V3.size:
        raise _lie(name, f"a file of {reader.size_bytes} bytes", f"at least {_V2.size + _V3.size}")
    extra = _V3.unpack_from(head, _V2.size)
    length = extra[-1]
    fixed = _with_sane_cluster(name, Fixed._make([version, *rest, *extra, head[104] if length > 104 else 0]))
    if length < 104 or length % 8 or length > fixed.cluster_bytes:
        raise _lie(name, f"a header length of {length}", f"a multiple of 8 from 104 to {fixed.cluster_bytes}")
    return fixed


def _with_sane_cluster(name: str, fixed: Fixed) -> Fixed:
    if not MIN_CLUSTER_BITS <= fixed.cluster_bits <= MAX_CLUSTER_BITS:
        raise _lie(name, f"cluster_bits {fixed.cluster_bits}", f"{MIN_CLUSTER_BITS} to {MAX_CLUSTER_BITS}")
    return fixed


def _check_features(name: str, fixed: Fixed) -> None:
    unknown = fixed.incompatible & ~_KNOWN_INCOMPATIBLE
    if unknown:
        raise ImageError(
            f"{name} needs qcow2 features that Casemate does not know",
            got=f"incompatible feature bits {unknown:#x}",
            next_step="if you trust its origin, qemu-img convert -O qcow2 writes it with the usual features",
        )
    if fixed.incompatible & CORRUPT:
        raise ImageError(
            f"{name} is marked corrupt by the program that last wrote it",
            next_step="restore it from a copy; if you trust its origin, qemu-img check -r all may repair it",
        )
    if fixed.incompatible & EXTENDED_L2 and fixed.cluster_bits < EXTENDED_L2_MIN_CLUSTER_BITS:
        raise _lie(name, f"extended L2 entries with cluster_bits {fixed.cluster_bits}", "at least 14")
    if fixed.compression not in _COMPRESSIONS:
        raise _lie(name, f"compression type {fixed.compression}", "0 (zlib) or 1 (zstd)")
    if bool(fixed.incompatible & COMPRESSION) != bool(fixed.compression):
        raise _lie(name, f"compression type {fixed.compression} without agreement of the feature bit")
    if fixed.refcount_order > 6:
        raise _lie(name, f"refcount_order {fixed.refcount_order}", "at most 6")


def _check_self_contained(reader: ImageReader, fixed: Fixed, allow_encrypted: bool) -> None:
    name = reader.name
    if fixed.backing_offset:
        raise ImageError(
            f"{name} has a backing file",
            got=_backing_name(reader, fixed),
            expected="an image that needs no other file",
            next_step="if you trust its origin, qemu-img convert -O qcow2 makes one self-contained image of both",
        )
    if fixed.incompatible & DATA_FILE or fixed.autoclear & AUTOCLEAR_RAW_DATA_FILE:
        raise ImageError(
            f"{name} keeps its data in an external file",
            expected="an image that needs no other file",
            next_step="if you trust its origin, qemu-img convert -O qcow2 makes one self-contained image of both",
        )
    if fixed.encryption == 2 and allow_encrypted:
        return
    if fixed.encryption:
        method = {1: "AES", 2: "LUKS"}.get(fixed.encryption, f"method {fixed.encryption}")
        step = 'encryption = "luks" in [[disk]], with its key'
        if fixed.encryption != 2:
            step = "its cipher is broken; if you have the key, qemu-img convert writes it anew with encrypt.format=luks"
        raise ImageError(f"{name} is encrypted by qcow2 itself", got=method, next_step=step)


def encryption_place(reader: ImageReader) -> int:
    """Where the LUKS header of an accepted, encrypted image lies.

    Raises:
        ImageError: it has none.
    """
    fixed = read_fixed(reader)
    area = reader.read_padded(0, fixed.cluster_bytes)
    at = fixed.header_length
    while fixed.encryption == 2 and at + 16 <= len(area):
        kind, length = struct.unpack_from(">II", area, at)
        if kind == EXT_ENCRYPTION:
            return int(struct.unpack_from(">Q", area, at + 8)[0])
        if kind == EXT_END:
            break
        at += 8 + -(-length // 8) * 8
    raise ImageError(
        f"{reader.name} is not encrypted",
        expected="LUKS inside qcow2",
        next_step="casemate image encrypt writes such a file, from a raw disk",
    )


def _backing_name(reader: ImageReader, fixed: Fixed) -> str:
    """The name of the backing file as far as it can be shown."""
    length = min(fixed.backing_length, 1023)
    if fixed.backing_offset + length > min(fixed.cluster_bytes, reader.size_bytes):
        return "a name outside the header"
    text = reader.read(fixed.backing_offset, length).decode("utf-8", "backslashreplace")
    return ascii(text[:120])


def _check_extensions(reader: ImageReader, fixed: Fixed) -> int:
    """Walk the header extensions; the number of persistent bitmaps."""
    name, limit = reader.name, fixed.cluster_bytes
    area = reader.read_padded(0, limit)
    seen: set[int] = set()
    at, bitmaps = fixed.header_length, 0
    while at + 8 <= limit:
        kind, length = struct.unpack_from(">II", area, at)
        at += 8
        if length > limit - at:
            raise _lie(name, f"a header extension of {length} bytes", "one inside the first cluster")
        if kind == EXT_END:
            break
        if kind in seen or len(seen) >= MAX_EXTENSIONS:
            raise _lie(name, f"header extension {kind:#x} again, or more than {MAX_EXTENSIONS}")
        seen.add(kind)
        if kind in {EXT_BACKING_FORMAT, EXT_DATA_FILE}:
            raise _lie(name, "an extension that names another file or its format", "none without such a file")
        if kind == EXT_BITMAPS:
            bitmaps = _check_bitmaps(reader, fixed, area[at : at + length])
        if kind == EXT_ENCRYPTION:
            _check_encryption(reader, fixed, area[at : at + length])
        at += -(-length // 8) * 8
    if fixed.autoclear & AUTOCLEAR_BITMAPS and EXT_BITMAPS not in seen:
        raise _lie(name, "the bitmaps feature without its extension")
    if fixed.encryption and EXT_ENCRYPTION not in seen:
        raise _lie(name, "LUKS encryption without its header extension")
    return bitmaps


def _check_bitmaps(reader: ImageReader, fixed: Fixed, data: bytes) -> int:
    if len(data) != 24:
        raise _lie(reader.name, f"a bitmaps extension of {len(data)} bytes", "24")
    if not fixed.autoclear & AUTOCLEAR_BITMAPS:
        return 0  # some program that does not know bitmaps has written to the image: nobody reads them any more
    count, reserved, directory_bytes, offset = struct.unpack(">IIQQ", data)
    if reserved or not 1 <= count <= MAX_BITMAPS or not 0 < directory_bytes <= MAX_BITMAP_DIRECTORY_BYTES:
        raise _lie(reader.name, f"{count} bitmaps in a directory of {directory_bytes} bytes")
    _check_place(reader, fixed, "bitmap directory", offset, directory_bytes)
    return int(count)


def _check_encryption(reader: ImageReader, fixed: Fixed, data: bytes) -> None:
    if fixed.encryption != 2 or len(data) != 16:
        raise _lie(reader.name, "an encryption header pointer that does not fit its method")
    offset, length = struct.unpack(">QQ", data)
    if not HEADER_BYTES <= length <= PAYLOAD_MAX_BYTES:
        raise _lie(reader.name, f"an encryption header of {length} bytes")
    _check_place(reader, fixed, "encryption header", offset, length)
    header = parse_header(reader.read(offset, HEADER_BYTES), reader.name)
    if header.payload_bytes > length:
        raise _lie(reader.name, f"key slots up to byte {header.payload_bytes} of an encryption header of {length}")


def _check_place(reader: ImageReader, fixed: Fixed, what: str, offset: int, length: int) -> None:
    """A structure must start at a cluster behind the header and end inside the file."""
    if offset % fixed.cluster_bytes or offset < fixed.cluster_bytes:
        raise _lie(reader.name, f"the {what} at offset {offset}", "the start of a cluster behind the header")
    if offset + length > reader.size_bytes:
        raise ImageError(
            f"{reader.name} is cut short or its header lies",
            got=f"the {what} ends at byte {offset + length}, the file at {reader.size_bytes}",
            next_step="get the image again and compare its checksum",
        )


def _check_tables(reader: ImageReader, fixed: Fixed) -> None:
    name = reader.name
    refcount_bytes = fixed.refcount_clusters * fixed.cluster_bytes
    l1_bytes = fixed.l1_entries * 8
    if not 0 < refcount_bytes <= MAX_REFCOUNT_TABLE_BYTES:
        raise _lie(name, f"a refcount table of {refcount_bytes} bytes", f"1 to {MAX_REFCOUNT_TABLE_BYTES}")
    if l1_bytes > MAX_L1_BYTES:
        raise _lie(name, f"an L1 table of {l1_bytes} bytes", f"at most {MAX_L1_BYTES}")
    if fixed.snapshots_offset % fixed.cluster_bytes or fixed.snapshots_offset >> 63:
        # QEMU looks at the offset even when there are no snapshots.
        raise _lie(name, f"the snapshot table at offset {fixed.snapshots_offset}", "the start of a cluster below 2^63")
    if fixed.snapshots > MAX_SNAPSHOTS:
        raise _lie(name, f"{fixed.snapshots} internal snapshots", f"at most {MAX_SNAPSHOTS}")
    places = [("refcount table", fixed.refcount_offset, refcount_bytes), ("L1 table", fixed.l1_offset, l1_bytes)]
    if fixed.snapshots:
        places.append(("snapshot table", fixed.snapshots_offset, fixed.snapshots * _SNAPSHOT.size))
    for what, offset, length in places:
        if length:
            _check_place(reader, fixed, what, offset, length)
    _check_apart(name, [place for place in places if place[2]])
    _check_entries(reader, fixed, "refcount table", fixed.refcount_offset, refcount_bytes)
    _check_entries(reader, fixed, "L1 table", fixed.l1_offset, l1_bytes)
    if fixed.snapshots:
        _check_snapshots(reader, fixed)


def _check_apart(name: str, places: list[tuple[str, int, int]]) -> None:
    ordered = sorted(places, key=lambda place: place[1])
    for (first, offset, length), (second, following, _) in itertools.pairwise(ordered):
        if offset + length > following:
            raise _lie(name, f"the {first} and the {second} overlap")


def _check_entries(reader: ImageReader, fixed: Fixed, what: str, offset: int, length: int) -> None:
    """Every entry of a table of offsets is zero or the start of a cluster that the file has."""
    is_l1 = what == "L1 table"
    reserved, mask = (_L1_RESERVED, TABLE_OFFSET) if is_l1 else (_REFCOUNT_RESERVED, _REFCOUNT_OFFSET)
    last = reader.size_bytes - 1
    for start in range(offset, offset + length, _ENTRIES_AT_ONCE * 8):
        data = reader.read(start, min(_ENTRIES_AT_ONCE * 8, offset + length - start))
        if data == _NO_ENTRIES[: len(data)]:
            continue
        entries = array("Q", data)
        if sys.byteorder == "little":
            entries.byteswap()
        for entry in set(entries) - {0}:
            target = entry & mask
            if entry & reserved or target % fixed.cluster_bytes or not target:
                raise _lie(reader.name, f"an entry {entry:#x} in the {what}", "the start of a cluster")
            if target > last:
                raise ImageError(
                    f"{reader.name} is cut short or its header lies",
                    got=f"the {what} points to byte {target}, the file ends at {reader.size_bytes}",
                    next_step="get the image again and compare its checksum",
                )


def _check_snapshots(reader: ImageReader, fixed: Fixed) -> None:
    at = fixed.snapshots_offset
    for number in range(fixed.snapshots):
        if at + _SNAPSHOT.size > reader.size_bytes:
            raise _lie(reader.name, f"snapshot {number + 1} outside the file")
        l1_offset, l1_entries, id_length, name_length, *_times, extra = _SNAPSHOT.unpack(
            reader.read(at, _SNAPSHOT.size)
        )
        if extra > MAX_SNAPSHOT_EXTRA_BYTES or l1_entries * 8 > MAX_L1_BYTES:
            raise _lie(reader.name, f"snapshot {number + 1} with {l1_entries} L1 entries and {extra} extra bytes")
        if l1_entries:
            _check_place(reader, fixed, f"L1 table of snapshot {number + 1}", l1_offset, l1_entries * 8)
        at += -(-(_SNAPSHOT.size + extra + id_length + name_length) // 8) * 8
    if at > -(-reader.size_bytes // 8) * 8:
        raise _lie(reader.name, "a snapshot table that ends outside the file")


def _check_size(name: str, fixed: Fixed, max_virtual_bytes: int) -> None:
    size_bytes = fixed.size_bytes
    if size_bytes == 0:
        raise ImageError(
            f"{name} holds a disk of 0 bytes", next_step="give it a size: qemu-img create -f qcow2 FILE 10G"
        )
    if size_bytes % SECTOR_BYTES:
        raise _lie(name, f"a virtual size of {size_bytes} bytes", f"a positive multiple of {SECTOR_BYTES}")
    check_quota(name, size_bytes, max_virtual_bytes)
    entry_bytes = 16 if fixed.incompatible & EXTENDED_L2 else 8
    covered = fixed.l1_entries * (fixed.cluster_bytes // entry_bytes) * fixed.cluster_bytes
    if covered < size_bytes:
        raise _lie(name, f"an L1 table for {covered} bytes", f"one for the {size_bytes} bytes of the disk")


def check_quota(name: str, size_bytes: int, max_virtual_bytes: int) -> None:
    """Raise ``ImageError`` when the guest would see a larger disk than it may."""
    if size_bytes > max_virtual_bytes:
        raise ImageError(
            f"{name} is larger than a disk may be",
            got=f"{format_bytes(size_bytes)} as the guest sees it",
            expected=f"at most {format_bytes(max_virtual_bytes)}",
            next_step="use a smaller image, or raise the quota on purpose",
        )
