"""PE images (EFI applications, kernels, UKIs): the parts that Authenticode covers, sections, signatures.

Authenticode (Windows Authenticode Portable Executable Signature Format): all but the checksum, the directory entry of
the signatures, and the signatures themselves; sections in the order of their place in the file.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Iterable
from typing import Final

import msgspec

from casemate.errors import InputError

MAX_SECTIONS: Final = 96
_MAX_NAMES: Final = 1 << 16
_MAX_NAME: Final = 64
_PKCS: Final = 2
_SECURITY: Final = 4


class PeSection(msgspec.Struct, frozen=True):
    """``size``: as the loader sees it (virtual); ``offset``, ``raw_size``: in the file."""

    name: str
    size: int
    offset: int
    raw_size: int


class Pe(msgspec.Struct, frozen=True):
    """``covered``: (start, end) of what Authenticode hashes, in order. ``signatures``: PKCS #7, in order."""

    data: bytes
    covered: tuple[tuple[int, int], ...]
    sections: tuple[PeSection, ...]
    signatures: tuple[bytes, ...]

    def digest(self, bank: str) -> bytes:
        """The Authenticode digest."""
        view = memoryview(self.data)
        whole = hashlib.new(bank)
        for start, end in self.covered:
            whole.update(view[start:end])
        return whole.digest()

    def section(self, name: str) -> bytes | None:
        """The contents of the first section of this name as they are in memory; None when there is none."""
        for item in self.sections:
            if item.name == name:
                kept = self.data[item.offset : item.offset + min(item.size, item.raw_size)]
                return kept.ljust(item.size, b"\0") if item.size <= len(self.data) else kept
        return None


def parse_pe(data: bytes, what: str) -> Pe:
    """Read an image.

    Args:
        what: names it in messages.

    Raises:
        InputError: it is none, or contradicts itself.
    """
    if len(data) < 64 or data[:2] != b"MZ":
        raise _fault(what, f"{len(data)} bytes beginning {data[:2].hex()}")
    at = int.from_bytes(data[0x3C:0x40], "little")
    if at + 24 > len(data) or data[at : at + 4] != b"PE\0\0":
        raise _fault(what, "no PE header")
    count, optional_size = struct.unpack_from("<H12xH", data, at + 6)
    optional = at + 24
    if optional_size < 96 or optional + optional_size > len(data) or count > MAX_SECTIONS:
        raise _fault(what, "headers outside of it")
    magic = int.from_bytes(data[optional : optional + 2], "little")
    if magic not in (0x10B, 0x20B):
        raise _fault(what, f"an optional header of kind {magic:#x}")
    directory = optional + (96 if magic == 0x10B else 112)
    headers = int.from_bytes(data[optional + 60 : optional + 64], "little")
    table = optional + optional_size
    if not table + 40 * count <= headers <= len(data) or directory - 4 > optional + optional_size:
        raise _fault(what, "section headers outside of it")
    entries = int.from_bytes(data[directory - 4 : directory], "little")
    names = _long_names(data, at)
    sections = tuple(_section(data, table + 40 * index, names, what) for index in range(count))
    has_entry = entries > _SECURITY and directory + 8 * (_SECURITY + 1) <= optional + optional_size
    entry = directory + 8 * _SECURITY if has_entry else None
    certificates, size = struct.unpack_from("<II", data, entry) if entry is not None else (0, 0)
    if size and not headers <= certificates <= len(data) - size:
        raise _fault(what, "signatures outside of it")
    skipped = [(optional + 64, 4), *([(entry, 8)] if entry is not None else [])]
    covered = [*_around(headers, skipped), *_bodies(sections, what)]
    hashed = headers + sum(item.raw_size for item in sections)
    if len(data) > hashed:
        if size > len(data) - hashed:
            raise _fault(what, "signatures inside of a section")
        covered.append((hashed, len(data) - size))
    return Pe(data, tuple(covered), sections, tuple(_signatures(data, certificates, size, what)))


def _long_names(data: bytes, at: int) -> bytes:
    """The COFF string table, which names of more than eight characters lie in; empty when there is none."""
    symbols, count = struct.unpack_from("<II", data, at + 12)
    start = symbols + 18 * count
    if not symbols or start + 4 > len(data):
        return b""
    return data[start : start + min(int.from_bytes(data[start : start + 4], "little"), _MAX_NAMES)]


def _section(data: bytes, at: int, names: bytes, what: str) -> PeSection:
    field, size, _, raw_size, offset = struct.unpack_from("<8sIIII", data, at)
    if raw_size and offset + raw_size > len(data):
        raise _fault(what, "a section outside of it")
    name = field.rstrip(b"\0")
    if name[:1] == b"/" and name[1:].isdigit() and int(name[1:]) < len(names):
        name = names[int(name[1:]) :].split(b"\0", 1)[0][:_MAX_NAME]
    return PeSection(name.decode("latin-1"), size, offset, raw_size)


def _around(end: int, skipped: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """From 0 to ``end``, without what is skipped."""
    found, at = [], 0
    for start, length in skipped:
        found.append((at, start))
        at = start + length
    return [*found, (at, end)]


def _bodies(sections: tuple[PeSection, ...], what: str) -> list[tuple[int, int]]:
    found = sorted((item.offset, item.offset + item.raw_size) for item in sections if item.raw_size)
    for (_, end), (start, _) in itertools.pairwise(found):
        if start < end:
            raise _fault(what, "sections that lie on each other")
    return found


def _signatures(data: bytes, at: int, size: int, what: str) -> Iterable[bytes]:
    end = at + size
    while size and at + 8 <= end:
        length, _, kind = struct.unpack_from("<IHH", data, at)
        if length < 8 or length > end - at:
            raise _fault(what, "a signature larger than their table")
        if kind == _PKCS:
            yield data[at + 8 : at + length]
        at += -(-length // 8) * 8


def _fault(what: str, got: str) -> InputError:
    return InputError(f"{what} is no PE image", got=got, expected="an EFI application or kernel")
