"""Names of file systems, from their superblocks alone, for boot loaders that search for them: ext2 to ext4, XFS, FAT.

ext: at 1024, magic 0xef53 at 56, UUID at 104, label at 120 (16 bytes).  XFS: "XFSB", UUID at 32, label at 108 (12).
FAT32: serial number at 67, label at 71 (11) and in the root directory, which counts.
"""

from __future__ import annotations

import uuid
from typing import Final

import msgspec

from casemate.measure.gpt import Partition, Read

_HEAD: Final = 2048


class FileSystem(msgspec.Struct, frozen=True):
    """``device``: GRUB's name of the partition. ``label``, ``identity``: as GRUB's search compares them; None when
    the file system is not known, and could have any."""

    device: str
    label: str | None
    identity: str | None


def file_systems(read: Read, partitions: tuple[Partition, ...], disk: str = "hd0") -> tuple[FileSystem, ...]:
    """The file systems of a disk, in the order in which GRUB looks at partitions."""
    return tuple(_name(read(item.offset, _HEAD), f"{disk},gpt{item.number}") for item in partitions)


def _name(head: bytes, device: str) -> FileSystem:
    if head[1080:1082] == b"\x53\xef":
        return FileSystem(device, _text(head[1144:1160]), str(uuid.UUID(bytes=head[1128:1144])))
    if head[:4] == b"XFSB":
        return FileSystem(device, _text(head[108:120]), str(uuid.UUID(bytes=head[32:48])))
    if head[82:87] == b"FAT32" and head[510:512] == b"\x55\xaa":
        serial = head[67:71][::-1].hex().upper()
        return FileSystem(device, _text(head[71:82]).rstrip(), f"{serial[:4]}-{serial[4:]}")
    if len(head) == _HEAD and not any(head):
        return FileSystem(device, "", "")
    return FileSystem(device, None, None)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")
