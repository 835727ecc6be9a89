"""Databases of Secure Boot (PK, KEK, db, dbx): bytes to their entries.

EFI_SIGNATURE_LIST (UEFI specification, 32.4.1): type, size (4), header size (4), entry size (4); entries: owner, data
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator
from typing import Final

import msgspec

from casemate.errors import InputError

X509: Final = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072").bytes_le
SHA256: Final = uuid.UUID("c1c41626-504c-4092-aca9-41f936934328").bytes_le
_MAX_ENTRIES: Final = 4096


class Entry(msgspec.Struct, frozen=True):
    """EFI_SIGNATURE_DATA, and of which type. ``data``: certificate in DER, SHA-256, or what another type has."""

    kind: bytes
    owner: bytes
    data: bytes


def signature_entries(data: bytes) -> Iterator[Entry]:
    """The entries of a database, in order, of every type.

    Raises:
        InputError: it contradicts itself.
    """
    at = count = 0
    while at < len(data):
        if at + 28 > len(data):
            raise _fault("a list that is cut off")
        kind, size, header, entry = struct.unpack_from("<16sIII", data, at)
        if size < 28 + header or size > len(data) - at or entry < 17 or (size - 28 - header) % entry:
            raise _fault(f"a list of {size} bytes with entries of {entry}")
        for start in range(at + 28 + header, at + size, entry):
            count += 1
            if count > _MAX_ENTRIES:
                raise _fault(f"more than {_MAX_ENTRIES} entries")
            yield Entry(kind, data[start : start + 16], data[start + 16 : start + entry])
        at += size


def signature_list(kind: bytes, owner: bytes, data: bytes) -> bytes:
    """EFI_SIGNATURE_LIST with one entry. ``kind``, ``owner``: GUIDs as they stand in it."""
    return kind + struct.pack("<III", 28 + 16 + len(data), 0, 16 + len(data)) + owner + data


def _fault(got: str) -> InputError:
    return InputError("a database of Secure Boot makes no sense", got=got, expected="lists as UEFI describes them")
