"""TDX metadata of OVMF (TDVF design guide, 11): which parts of the image a trust domain starts with.

table of GUIDed entries at the end of the image; one holds the distance of the metadata from the end:
"TDVF", length (4), version 1 (4), number of sections (4); then for each:
data offset (4), data size (4), address (8), memory size (8), type (4), attributes (4)
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from typing import Final

import msgspec

from casemate.errors import InputError
from casemate.measure.ovmf import MAX_BYTES, PAGE, guided_entries

CODE: Final = 0
VARIABLES: Final = 1
_MEASURED: Final = 1
_ADDED_LATER: Final = 2
_KNOWN: Final = _MEASURED | _ADDED_LATER
_CHUNK: Final = 256
_MAX_SECTIONS: Final = 64
_MAX_MEMORY: Final = 64 << 20
_METADATA: Final = uuid.UUID("e47a6535-984a-4798-865e-4685a7bf8ec2").bytes_le


class TdvfSection(msgspec.Struct, frozen=True):
    """``kind``: `CODE`, `VARIABLES`, or memory that has no data. Offsets and sizes in bytes."""

    offset: int
    size: int
    address: int
    memory: int
    kind: int
    attributes: int


class Tdvf(msgspec.Struct, frozen=True):
    """An image with its sections, in the order in which they are added."""

    data: bytes
    sections: tuple[TdvfSection, ...]

    def mrtd(self, *, two_passes: bool = False) -> bytes:
        """The measurement of the initial memory (TDX module ABI, TDH.MEM.PAGE.ADD and TDH.MR.EXTEND): for each page its
        address, and for measured pages each 256 bytes with theirs.

        Args:
            two_passes: whether the host adds all pages of a section before it measures them (kernels before 6.16).
        """
        whole = hashlib.sha384()
        for section in self.sections:
            if section.attributes & _ADDED_LATER:
                continue
            pages = range(0, section.memory, PAGE)
            if two_passes:
                for at in pages:
                    whole.update(_block(b"MEM.PAGE.ADD", section.address + at))
                for at in pages:
                    self._extend(whole, section, at)
            else:
                for at in pages:
                    whole.update(_block(b"MEM.PAGE.ADD", section.address + at))
                    self._extend(whole, section, at)
        return whole.digest()

    def _extend(self, whole: hashlib._Hash, section: TdvfSection, at: int) -> None:
        if not section.attributes & _MEASURED:
            return
        start = section.offset + at
        page = self.data[start : min(start + PAGE, section.offset + section.size)].ljust(PAGE, b"\0")
        for chunk in range(0, PAGE, _CHUNK):
            whole.update(_block(b"MR.EXTEND", section.address + at + chunk))
            whole.update(page[chunk : chunk + _CHUNK])

    @property
    def variables(self) -> bytes:
        """The variable store that is part of the image.

        Raises:
            InputError: there is none.
        """
        for section in self.sections:
            if section.kind == VARIABLES:
                return self.data[section.offset : section.offset + section.size]
        raise _fault("no section of variables")


def parse_tdvf(data: bytes) -> Tdvf:
    """Read an image.

    Raises:
        InputError: it has no TDX metadata, or they contradict themselves.
    """
    if not data or len(data) > MAX_BYTES:
        raise _fault(f"{len(data)} bytes")
    entry = guided_entries(data).get(_METADATA)
    if entry is None or len(entry) < 4:
        raise _fault("no TDX metadata")
    start = len(data) - int.from_bytes(entry[-4:], "little")
    if not 0 <= start <= len(data) - 16:
        raise _fault("TDX metadata outside of the image")
    magic, length, version, count = struct.unpack_from("<4sIII", data, start)
    if magic != b"TDVF" or version != 1 or not 1 <= count <= _MAX_SECTIONS or length < 16 + 32 * count:
        raise _fault("TDX metadata of another form")
    if start + length > len(data):
        raise _fault("TDX metadata that are cut off")
    sections = tuple(_section(data, start + 16 + 32 * index) for index in range(count))
    if sum(section.memory for section in sections if not section.attributes & _ADDED_LATER) > _MAX_MEMORY:
        raise _fault("more initial memory than any firmware has")
    return Tdvf(data, sections)


def _section(data: bytes, at: int) -> TdvfSection:
    section = TdvfSection(*struct.unpack_from("<IIQQII", data, at))
    fits = section.offset + section.size <= len(data) and section.size <= section.memory
    pages = not section.address % PAGE and not section.memory % PAGE and section.address + section.memory < 1 << 52
    if not fits or not pages or section.attributes & ~_KNOWN:
        raise _fault(f"a section at {section.address:#x} that does not fit")
    return section


def _block(name: bytes, address: int) -> bytes:
    """128 bytes: the name of the operation, and at 16 the address."""
    return name.ljust(16, b"\0") + struct.pack("<Q", address) + bytes(104)


def _fault(what: str) -> InputError:
    return InputError("not a firmware for TDX", got=what, expected="OVMF with TDX metadata")
