"""What is on a block device, told by its superblock. Pure: fixed places, and nothing believed but magic numbers.

::

    0        xfs "XFSB", squashfs "hsqs", LUKS, NTFS, exFAT, FAT, md 1.1, bcache…
    512…2047 LVM label in one of the first four sectors
    1024     erofs, f2fs, HFS+
    1024+56  ext2/3/4
    4096     md 1.2
    4086     swap (page size 4096)
    32769    ISO 9660 "CD001"; 34817 and on: UDF "NSR0"
    65600    btrfs "_BHRfS_M"
    end-64K  md 0.90        end-8K  md 1.0

What a superblock says beyond its magic (label, uuid, state of the journal) is shown to people, never used to decide
where to write or what to run on the host. Layouts: fs/*/ of the kernel, util-linux's libblkid, cryptsetup's docs.
"""

from __future__ import annotations

import struct
import uuid

import msgspec

HEAD_BYTES = 68 << 10
TAIL_BYTES = 64 << 10


class Found(msgspec.Struct, frozen=True):
    """``content``: libblkid's name of it, empty when unknown. ``notes``: what a reader must know."""

    content: str = ""
    label: str = ""
    uuid: str = ""
    notes: tuple[str, ...] = ()


def sniff(head: bytes, tail: bytes = b"") -> Found:
    """What the first `HEAD_BYTES` and the last `TAIL_BYTES` of a device look like.

    Members of a RAID, of a volume group and encrypted volumes come first: their first blocks may look like the file
    system inside.
    """
    for look in (_luks, _md, _lvm, _xfs, _btrfs, _squashfs, _erofs, _f2fs, _ext, _iso, _ntfs, _exfat, _fat, _swap):
        found = look(_Bytes(head), _Bytes(tail))
        if found is not None:
            return found
    return Found()


class _Bytes:
    """Reads that never fail: beyond the end everything is zero."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def at(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length].ljust(length, b"\0") if offset >= 0 else bytes(length)

    def number(self, offset: int, length: int, order: str = "<") -> int:
        return int.from_bytes(self.at(offset, length), "little" if order == "<" else "big")


def _text(raw: bytes) -> str:
    """A label: up to its NUL, printable."""
    text = raw.split(b"\0", 1)[0].decode("utf-8", "replace").strip()
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _uuid(raw: bytes) -> str:
    return str(uuid.UUID(bytes=raw)) if any(raw) else ""


def _luks(head: _Bytes, _: _Bytes) -> Found | None:
    if head.at(0, 6) != b"LUKS\xba\xbe":
        return None
    version = head.number(6, 2, ">")
    label = _text(head.at(24, 48)) if version == 2 else ""
    return Found("crypto_LUKS", label, _text(head.at(168, 40)), (f"LUKS version {version}",))


def _md(head: _Bytes, tail: _Bytes) -> Found | None:
    magic = b"\xfc\x4e\x2b\xa9"
    end = len(tail)
    places = [(head, 4096), (head, 0)]
    # Superblock 1.0: at least 8 KiB before the end, aligned to 4 KiB; 0.90: the last whole 64 KiB.
    places += [(tail, end - 8192 - rest) for rest in (0, 4096 - 512, 2048)]
    for where, offset in places:
        if where.at(offset, 4) == magic and where.number(offset + 4, 4) == 1:
            level = struct.unpack("<i", where.at(offset + 72, 4))[0]
            name = _text(where.at(offset + 32, 32))
            return Found("linux_raid_member", name, _uuid(where.at(offset + 16, 16)), (f"md RAID level {level}",))
    if end >= TAIL_BYTES and tail.at(0, 4) == magic and tail.number(4, 4) == 0:
        return Found("linux_raid_member", "", "", ("md RAID, old superblock 0.90",))
    return None


def _lvm(head: _Bytes, _: _Bytes) -> Found | None:
    for sector in range(4):
        if head.at(512 * sector, 8) == b"LABELONE" and head.at(512 * sector + 24, 8) == b"LVM2 001":
            identity = head.at(512 * sector + 32, 32).decode("ascii", "replace")
            return Found("LVM2_member", "", identity if identity.isalnum() else "")
    return None


def _xfs(head: _Bytes, _: _Bytes) -> Found | None:
    if head.at(0, 4) != b"XFSB":
        return None
    return Found("xfs", _text(head.at(108, 12)), _uuid(head.at(32, 16)))


def _btrfs(head: _Bytes, _: _Bytes) -> Found | None:
    base = 65536
    if head.at(base + 64, 8) != b"_BHRfS_M":
        return None
    notes: tuple[str, ...] = ()
    if head.number(base + 96, 8):
        notes = ("the log tree was not replayed: the latest fsynced writes are missing",)
    if head.number(base + 136, 8) > 1:
        notes = (*notes, f"one of {head.number(base + 136, 8)} devices")
    return Found("btrfs", _text(head.at(base + 299, 256)), _uuid(head.at(base + 32, 16)), notes)


def _squashfs(head: _Bytes, _: _Bytes) -> Found | None:
    return Found("squashfs") if head.at(0, 4) == b"hsqs" else None


def _erofs(head: _Bytes, _: _Bytes) -> Found | None:
    if head.number(1024, 4) != 0xE0F5E1E2:
        return None
    return Found("erofs", _text(head.at(1024 + 64, 16)), _uuid(head.at(1024 + 48, 16)))


def _f2fs(head: _Bytes, _: _Bytes) -> Found | None:
    return Found("f2fs", "", _uuid(head.at(1024 + 108, 16))) if head.number(1024, 4) == 0xF2F52010 else None


def _ext(head: _Bytes, _: _Bytes) -> Found | None:
    base = 1024
    if head.number(base + 56, 2) != 0xEF53:
        return None
    compatible, incompatible, read_only = (head.number(base + at, 4) for at in (92, 96, 100))
    if incompatible & 0x8:
        return Found("jbd", "", "", ("an external journal, without files",))
    # Which driver a file system needs at least: extents, 64bit, flex_bg…; huge_file, metadata_csum…
    older = "ext3" if compatible & 0x4 else "ext2"
    kind = "ext4" if incompatible & ~0x16 or read_only & ~0x7 else older
    notes = []
    if incompatible & 0x4:
        notes.append("its journal was not replayed: the latest writes may be missing or half done")
    if head.number(base + 58, 2) & 0x2:
        notes.append("the file system is marked as having errors")
    return Found(kind, _text(head.at(base + 120, 16)), _uuid(head.at(base + 104, 16)), tuple(notes))


def _iso(head: _Bytes, _: _Bytes) -> Found | None:
    if head.at(32769, 5) in {b"BEA01", b"NSR02", b"NSR03"} or head.at(34817, 4) == b"NSR0":
        return Found("udf")
    if head.at(32769, 5) != b"CD001":
        return None
    if any(head.at(32769 + 2048 * number, 4) == b"NSR0" for number in range(1, 12)):
        return Found("udf", _text(head.at(32808, 32)))
    return Found("iso9660", _text(head.at(32808, 32)))


def _ntfs(head: _Bytes, _: _Bytes) -> Found | None:
    if head.at(3, 8) != b"NTFS    ":
        return None
    return Found("ntfs", "", f"{head.number(72, 8):016X}")


def _exfat(head: _Bytes, _: _Bytes) -> Found | None:
    if head.at(3, 8) != b"EXFAT   ":
        return None
    notes = ("it was not unmounted: the latest writes may be missing",) if head.number(106, 2) & 0x2 else ()
    return Found("exfat", "", f"{head.number(102, 2):04X}-{head.number(100, 2):04X}", notes)


def _fat(head: _Bytes, _: _Bytes) -> Found | None:
    sector_bytes, per_cluster, fats = head.number(11, 2), head.number(13, 1), head.number(16, 1)
    plausible = (
        head.at(510, 2) == b"\x55\xaa"
        and sector_bytes in {512, 1024, 2048, 4096}
        and per_cluster in {1, 2, 4, 8, 16, 32, 64, 128}
        and fats in {1, 2}
        and head.number(14, 2) > 0
        and head.number(21, 1) in {0xF0, *range(0xF8, 0x100)}
    )
    if not plausible:
        return None
    base = 64 if head.number(22, 2) == 0 else 36
    if head.at(base + 18, 3) != b"FAT" and head.number(22, 2) == 0:
        return None
    serial = head.number(base + 3, 4) if head.at(base + 2, 1) == b")" else 0
    notes = ("it was not unmounted: the latest writes may be missing",) if head.number(base + 1, 1) & 1 else ()
    label = _text(head.at(base + 7, 11)) if serial else ""
    label = "" if label == "NO NAME" else label
    return Found("vfat", label, f"{serial >> 16:04X}-{serial & 0xFFFF:04X}" if serial else "", notes)


def _swap(head: _Bytes, _: _Bytes) -> Found | None:
    if head.at(4086, 10) not in {b"SWAPSPACE2", b"SWAP-SPACE"}:
        return None
    return Found("swap", _text(head.at(1024 + 28, 16)), _uuid(head.at(1024 + 12, 16)))
