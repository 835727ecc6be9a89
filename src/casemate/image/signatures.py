"""What a file is by its first and last bytes: image containers, compressed files, and plain disk content. Data, no I/O.

Only two formats are opened, raw and qcow2. The others are known so that the message can name them: every further format
driver of QEMU is a parser of hostile bytes that Casemate does not need.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

HEAD_BYTES = 36 * 1024
TAIL_BYTES = 512


class Kind(enum.StrEnum):
    """``container``: holds a disk in a format of its own; ``packed``: must be unpacked first; ``content``: raw bytes
    with a meaning to a guest, so a sensible raw disk; ``disk``: a partition table or boot sector.
    """

    CONTAINER = "container"
    PACKED = "packed"
    CONTENT = "content"
    DISK = "disk"


class Signature(NamedTuple):
    """``magic`` stands at ``offset``; a negative offset counts from the end of the file."""

    name: str
    kind: Kind
    offset: int
    magic: bytes
    convert: str = ""
    """Name of the format for ``qemu-img convert -f``, or the command that unpacks."""


QCOW_MAGIC = b"QFI\xfb"

SIGNATURES: tuple[Signature, ...] = (
    Signature("qcow (version 1)", Kind.CONTAINER, 0, QCOW_MAGIC + b"\0\0\0\x01", "qcow"),
    Signature("qcow2", Kind.CONTAINER, 0, QCOW_MAGIC, "qcow2"),
    Signature("QED", Kind.CONTAINER, 0, b"QED\0", "qed"),
    Signature("VMDK", Kind.CONTAINER, 0, b"KDMV", "vmdk"),
    Signature("VMDK", Kind.CONTAINER, 0, b"COWD", "vmdk"),
    Signature("VMDK descriptor", Kind.CONTAINER, 0, b"# Disk DescriptorFile", "vmdk"),
    Signature("VHDX", Kind.CONTAINER, 0, b"vhdxfile", "vhdx"),
    Signature("VHD", Kind.CONTAINER, 0, b"conectix", "vpc"),
    Signature("VDI", Kind.CONTAINER, 0x40, b"\x7f\x10\xda\xbe", "vdi"),
    Signature("Parallels", Kind.CONTAINER, 0, b"WithoutFreeSpace", "parallels"),
    Signature("Parallels", Kind.CONTAINER, 0, b"WithouFreSpacExt", "parallels"),
    Signature("Bochs", Kind.CONTAINER, 0, b"Bochs Virtual HD Image", "bochs"),
    Signature("cloop", Kind.CONTAINER, 0, b"#!/bin/sh\n#V2.0 Format\n", "cloop"),
    Signature("xz", Kind.PACKED, 0, b"\xfd7zXZ\0", "unxz --keep"),
    Signature("gzip", Kind.PACKED, 0, b"\x1f\x8b\x08", "gunzip --keep"),
    Signature("zstd", Kind.PACKED, 0, b"\x28\xb5\x2f\xfd", "unzstd --keep"),
    Signature("bzip2", Kind.PACKED, 0, b"BZh", "bunzip2 --keep"),
    Signature("lz4", Kind.PACKED, 0, b"\x04\x22\x4d\x18", "unlz4 --keep"),
    Signature("zip", Kind.PACKED, 0, b"PK\x03\x04", "unzip"),
    Signature("7z", Kind.PACKED, 0, b"7z\xbc\xaf\x27\x1c", "7z x"),
    Signature("VHD", Kind.CONTAINER, -512, b"conectix", "vpc"),
    Signature("DMG", Kind.CONTAINER, -512, b"koly\0\0\0\x04", "dmg"),
    Signature("LUKS", Kind.CONTENT, 0, b"LUKS\xba\xbe"),
    Signature("ISO 9660", Kind.CONTENT, 0x8001, b"CD001"),
    Signature("tar (perhaps an OVA)", Kind.CONTENT, 257, b"ustar"),
    Signature("GPT disk", Kind.DISK, 512, b"EFI PART"),
    Signature("GPT disk (4 KiB sectors)", Kind.DISK, 4096, b"EFI PART"),
    Signature("disk with a boot sector", Kind.DISK, 510, b"\x55\xaa"),
)
"""In the order of trust: a container wins over what its first sector looks like, a meaning over a boot sector."""


def recognise(head: bytes, tail: bytes) -> Signature | None:
    """The first signature that fits ``head`` (the first ``HEAD_BYTES``) or ``tail`` (the last ``TAIL_BYTES``)."""
    for signature in SIGNATURES:
        place = head[signature.offset :] if signature.offset >= 0 else tail[signature.offset :]
        if place.startswith(signature.magic) and (signature.offset >= 0 or len(tail) == TAIL_BYTES):
            return signature
    return None
