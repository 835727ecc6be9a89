"""Firmware volumes of an OVMF image (UEFI PI specification, volume 3): what PCR 0 is made of.

volume: zeros (16), GUID, length (8), "_FVH", attributes (4), header length (2) …; then files, each 8-aligned:
file:   GUID, checksums (2), type, attributes, size (3), state; sections, each 4-aligned
section: size (3), type; of type GUID-defined: GUID, data offset (2), attributes (2)

OVMF keeps the volumes that run from memory inside one LZMA section of a file of type firmware volume image. Those are
what its TPM driver measures, in their order.
"""

from __future__ import annotations

import lzma
import struct
import uuid
from collections.abc import Iterator
from typing import Final

import msgspec

from casemate.errors import InputError

MAX_IMAGE: Final = 64 << 20
MAX_UNPACKED: Final = 20 << 20
_MAX_PARTS: Final = 4096
_SIGNATURE: Final = b"_FVH"
_FFS: Final = frozenset(
    uuid.UUID(text).bytes_le
    for text in ("8c8ce578-8a3d-4f1c-9935-896185c32dd3", "5473c07a-3dcb-4dca-bd6f-1e9689e7349a")
)
_LZMA: Final = uuid.UUID("ee4e5898-3914-4259-9d6e-dc7bd79403cf").bytes_le
_FILE_OF_VOLUME: Final = 0x0B
_SECTION_GUIDED: Final = 0x02
_SECTION_VOLUME: Final = 0x17
_LARGE_FILE: Final = 0x01


_TPM_DRIVER: Final = uuid.UUID("fdff263d-5f68-4591-87ba-b768f445a9af").bytes_le
_SECURE_BOOT_PAGES: Final = uuid.UUID("f0e6a44f-7195-41c3-ac64-54f202cd0a21").bytes_le
_INITRD_BEHIND: Final = b" initrd=initrd\0"
_INITRD_AHEAD: Final = b"initrd=initrd \0"
_PLAIN_KERNEL: Final = b"etc/boot/\0"


class Volumes(msgspec.Struct, frozen=True):
    """``early``: the volume of the code that runs first (PEI), as it is unpacked: it writes into itself before it is
    measured. ``main``: that of all drivers (DXE)."""

    early: bytes
    main: bytes

    @property
    def has_tpm(self) -> bool:
        """Whether it has a TPM 2.0 driver: without one nothing is measured."""
        return self._has(_TPM_DRIVER)

    @property
    def has_secure_boot(self) -> bool:
        """Whether it was built with Secure Boot: it has the pages to set it up."""
        return self._has(_SECURE_BOOT_PAGES)

    @property
    def initrd_option(self) -> str | None:
        """Where it adds ``initrd=initrd`` to the command line of direct kernel boot: ``behind``, ``ahead``; None when
        it cannot be told."""
        found = [word for word, text in (("behind", _INITRD_BEHIND), ("ahead", _INITRD_AHEAD)) if self._has(text)]
        return found[0] if len(found) == 1 else None

    @property
    def takes_plain_kernel(self) -> bool:
        """Whether it prefers the kernel as it is to the one whose header QEMU filled in, where QEMU offers both (10.0
        and newer, as etc/boot/kernel)."""
        return self._has(_PLAIN_KERNEL)

    def _has(self, part: bytes) -> bool:
        return part in self.main or part in self.early


def parse_volumes(image: bytes) -> Volumes:
    """The volumes of OVMF that are measured.

    Raises:
        InputError: it is no OVMF image, or contradicts itself.
    """
    found = measured_volumes(image)
    if len(found) != 2:
        raise _fault(f"{len(found)} volumes")
    return Volumes(*found)


def measured_volumes(image: bytes) -> tuple[bytes, ...]:
    """The volumes that the firmware unpacks into memory and measures, in order.

    Raises:
        InputError: it is no OVMF image, or contradicts itself.
    """
    if len(image) > MAX_IMAGE:
        raise _fault(f"{len(image)} bytes")
    found: list[bytes] = []
    bodies = (body for volume in _volumes(image) for kind, body in _files(volume) if kind == _FILE_OF_VOLUME)
    for body in bodies:
        for inner in _unpacked(body):
            found.append(inner)
            if sum(map(len, found)) > MAX_UNPACKED:
                raise _fault(f"volumes of more than {MAX_UNPACKED} bytes")
    if not found:
        raise _fault("no volume with an LZMA section")
    return tuple(found)


def _volumes(image: bytes) -> Iterator[bytes]:
    """Volumes with files, wherever a page begins with one."""
    offset = 0
    while offset + 56 <= len(image):
        length = int.from_bytes(image[offset + 32 : offset + 40], "little")
        if image[offset + 40 : offset + 44] == _SIGNATURE and 56 <= length <= len(image) - offset:
            if image[offset + 16 : offset + 32] in _FFS:
                yield image[offset : offset + length]
            offset += -(-length // 4096) * 4096
        else:
            offset += 4096


def _files(volume: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, sections) of each file."""
    extended = int.from_bytes(volume[52:54], "little")
    at = int.from_bytes(volume[48:50], "little")
    if extended:
        if extended + 20 > len(volume):
            raise _fault("a volume with its extended header outside")
        at = extended + int.from_bytes(volume[extended + 16 : extended + 20], "little")
    for _ in range(_MAX_PARTS):
        at = -(-at // 8) * 8
        if at + 24 > len(volume) or volume[at : at + 24] == b"\xff" * 24:
            return
        kind, attributes = volume[at + 18], volume[at + 19]
        header, size = 24, int.from_bytes(volume[at + 20 : at + 23], "little")
        if attributes & _LARGE_FILE:
            header, size = 32, int.from_bytes(volume[at + 24 : at + 32], "little")
        if size < header or size > len(volume) - at:
            raise _fault("a file larger than its volume")
        yield kind, volume[at + header : at + size]
        at += size


def _sections(body: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(type, GUID or nothing, contents) of each section."""
    at = 0
    for _ in range(_MAX_PARTS):
        at = -(-at // 4) * 4
        if at + 4 > len(body):
            return
        header, size, kind = 4, int.from_bytes(body[at : at + 3], "little"), body[at + 3]
        if size == 0xFFFFFF and at + 8 <= len(body):
            header, size = 8, int.from_bytes(body[at + 4 : at + 8], "little")
        if size < header or size > len(body) - at:
            raise _fault("a section larger than its file")
        part = body[at : at + size]
        if kind == _SECTION_GUIDED:
            if size < header + 20:
                raise _fault("a section without its GUID")
            start = struct.unpack_from("<H", part, header + 16)[0]
            yield kind, part[header : header + 16], part[start:]
        else:
            yield kind, b"", part[header:]
        at += size


def _unpacked(body: bytes) -> Iterator[bytes]:
    for kind, guid, contents in _sections(body):
        if kind == _SECTION_GUIDED and guid == _LZMA:
            for inner, _, volume in _sections(_unpack(contents)):
                if inner == _SECTION_VOLUME:
                    yield volume


def _unpack(packed: bytes) -> bytes:
    try:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=20 << 20)
        found = unpacker.decompress(packed, MAX_UNPACKED)
    except (lzma.LZMAError, MemoryError, EOFError) as error:
        raise _fault(f"an LZMA section that does not unpack ({error})") from None
    if not unpacker.eof:
        raise _fault(f"an LZMA section that is cut off, or longer than {MAX_UNPACKED} bytes")
    return found


def _fault(what: str) -> InputError:
    return InputError("not a firmware whose volumes can be measured", got=what, expected="OVMF, its code or all of it")
