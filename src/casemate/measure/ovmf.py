"""What OVMF says about itself at its end: the table of GUIDed entries, and the SEV metadata that one of them points to.

… entries …, each: data, size (2), GUID (16)      read backwards
footer: size (2), GUID 96b582de-…                 ends 32 bytes before the end of the image

SEV metadata: "ASEV", size, version 1, number; then (address, size, type) each
"""

from __future__ import annotations

import struct
import uuid
from typing import Final

import msgspec

from casemate.errors import InputError

PAGE: Final = 4096
FOUR_GIB: Final = 1 << 32
MAX_BYTES: Final = 64 << 20
MAX_SECTIONS: Final = 64
_FOOTER: Final = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
_HASH_TABLE: Final = uuid.UUID("7255371f-3a3b-4b04-927b-1da6efa8d454").bytes_le
_RESET_BLOCK: Final = uuid.UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e").bytes_le
_METADATA: Final = uuid.UUID("dc886566-984a-4798-a75e-5585a7bf67cc").bytes_le
_ENTRY_TAIL: Final = 18

SEC_MEM: Final = 1
SECRETS: Final = 2
CPUID: Final = 3
SVSM_CAA: Final = 4
KERNEL_HASHES: Final = 0x10


class Section(msgspec.Struct, frozen=True):
    """Memory that the launch prepares: guest physical address, bytes, type."""

    address: int
    size: int
    kind: int


class Firmware(msgspec.Struct, frozen=True):
    """``address``: where the image begins, so that it ends at 4 GiB. ``reset_ip``: of the other vCPUs, None when the
    image has none. ``hash_table``: address of the table of kernel hashes, None when it takes none."""

    data: bytes
    address: int
    reset_ip: int | None
    hash_table: int | None
    sections: tuple[Section, ...]


def parse_firmware(data: bytes) -> Firmware:
    """Read an image.

    Raises:
        InputError: no whole pages, too large, or with a table that lies.
    """
    if not data or len(data) % PAGE or len(data) > MAX_BYTES:
        raise InputError(
            "firmware of no whole pages", got=f"{len(data)} bytes", expected=f"pages, up to {MAX_BYTES} bytes"
        )
    table = guided_entries(data)
    reset = table.get(_RESET_BLOCK)
    hashes = table.get(_HASH_TABLE)
    return Firmware(
        data,
        FOUR_GIB - len(data),
        _first_word(reset) if reset is not None else None,
        (_first_word(hashes) or None) if hashes is not None else None,
        _sections(data, table[_METADATA]) if _METADATA in table else (),
    )


def guided_entries(data: bytes) -> dict[bytes, bytes]:
    """The table at the end of an image: GUID to data; empty when it has none.

    Raises:
        InputError: it contradicts itself.
    """
    end = len(data) - 32
    size = int.from_bytes(data[end - _ENTRY_TAIL : end - 16], "little")
    if data[end - 16 : end] != _FOOTER:
        return {}
    start = end - size
    if size < _ENTRY_TAIL or start < 0:
        raise _fault("a table larger than the image")
    found: dict[bytes, bytes] = {}
    end -= _ENTRY_TAIL
    while end - start >= _ENTRY_TAIL:
        size = int.from_bytes(data[end - _ENTRY_TAIL : end - 16], "little")
        if size < _ENTRY_TAIL or end - size < start:
            raise _fault("an entry larger than its table")
        guid = data[end - 16 : end]
        if guid in found:
            raise _fault("an entry that is there twice")
        found[guid] = data[end - size : end - _ENTRY_TAIL]
        end -= size
    return found


def _first_word(data: bytes) -> int:
    if len(data) < 4:
        raise _fault("an entry without its number")
    return int.from_bytes(data[:4], "little")


def _sections(data: bytes, entry: bytes) -> tuple[Section, ...]:
    start = len(data) - _first_word(entry)
    if not 0 <= start <= len(data) - 16:
        raise _fault("SEV metadata outside of the image")
    magic, size, version, number = struct.unpack_from("<4sIII", data, start)
    if magic != b"ASEV" or version != 1 or number > MAX_SECTIONS or size < 16 + 12 * number or start + size > len(data):
        raise _fault("SEV metadata of another form")
    found = []
    for index in range(number):
        address, length, kind = struct.unpack_from("<III", data, start + 16 + 12 * index)
        if address % PAGE or length % PAGE or not length or address + length > FOUR_GIB:
            raise _fault("a section of no whole pages")
        found.append(Section(address, length, kind))
    return tuple(found)


def _fault(what: str) -> InputError:
    return InputError("firmware that contradicts itself", got=what, expected="OVMF with its table of entries")
