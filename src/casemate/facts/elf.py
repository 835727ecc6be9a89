"""A bounded reader of ELF64 little-endian files, and the set of libraries that ld.so will open for a program.

Layout read (offsets in bytes; all numbers little-endian, gABI chapters 4 and 5)::

    header   0 magic 7f 'ELF' · 4 class (2) · 5 data (1) · 16 type u16 · 18 machine u16 · 32 phoff u64
             54 phentsize u16 · 56 phnum u16
    program  0 type u32 · 4 flags u32 · 8 offset u64 · 16 vaddr u64 · 32 filesz u64        (56 bytes each)
    dynamic  0 tag i64 · 8 value u64                                                       (16 bytes each)

Only headers, the dynamic section and the strings it names are read. The search order is ld.so(8): DT_RPATH (unless
DT_RUNPATH), DT_RUNPATH, the directories of /etc/ld.so.conf in the order ldconfig would see them, the loader's own.
Left out on purpose: LD_LIBRARY_PATH and /etc/ld.so.preload (the emulator starts with an empty environment and an
empty /etc) and glibc-hwcaps variants (the baseline library is always there and always runs).
"""

from __future__ import annotations

import os
import struct
from typing import Final

import msgspec

from casemate.facts.root import Root

PT_LOAD: Final = 1
PT_DYNAMIC: Final = 2
PT_INTERP: Final = 3
PT_GNU_STACK: Final = 0x6474E551
PT_GNU_RELRO: Final = 0x6474E552
ET_EXEC: Final = 2
ET_DYN: Final = 3
EM_X86_64: Final = 62

_DT_NEEDED: Final = 1
_DT_STRTAB: Final = 5
_DT_STRSZ: Final = 10
_DT_SONAME: Final = 14
_DT_RPATH: Final = 15
_DT_BIND_NOW: Final = 24
_DT_RUNPATH: Final = 29
_DT_FLAGS: Final = 30
_DT_FLAGS_1: Final = 0x6FFF_FFFB
_DF_BIND_NOW: Final = 0x8
_DF_1_NOW: Final = 0x1
_DF_1_PIE: Final = 0x0800_0000
_PF_X: Final = 1
_PF_W: Final = 2

_PHDR_BYTES: Final = 56
_MAX_PHDRS: Final = 256
_MAX_DYNAMIC_BYTES: Final = 1 << 16
_MAX_STRING_BYTES: Final = 4096
_MAX_NEEDED: Final = 1024


class ElfFormatError(ValueError):
    """Not an ELF file that we read; the text says why."""


class ElfImage(msgspec.Struct, frozen=True):
    """What the headers of one ELF file say.

    ``stack_executable`` is None when the file has no PT_GNU_STACK (the kernel then decides by architecture).
    """

    elf_type: int
    machine: int
    interpreter: str | None
    soname: str | None
    needed: tuple[str, ...]
    rpath: tuple[str, ...]
    runpath: tuple[str, ...]
    is_pie: bool
    bind_now: bool
    has_relro: bool
    stack_executable: bool | None
    has_writable_code: bool


class _Segments(msgspec.Struct):
    loads: list[tuple[int, int, int]]
    dynamic: tuple[int, int] | None = None
    interpreter: str | None = None
    relro: bool = False
    stack_executable: bool | None = None
    writable_code: bool = False


class _Dynamic(msgspec.Struct):
    """The dynamic section's entries that matter; strings are offsets into the string table."""

    needed: list[int]
    values: dict[int, int]


def read_elf(root: Root, path: str) -> ElfImage:
    """Read the headers of a file of ``root``.

    Raises:
        OSError: it cannot be opened or is no regular file.
        ElfFormatError: it is not ELF64 little-endian, or is broken.
    """
    descriptor = root.open_regular(path)
    try:
        return parse_elf(descriptor)
    finally:
        os.close(descriptor)


def parse_elf(descriptor: int) -> ElfImage:
    """Read the headers of an open file, hostile or not; reads at most about 5 MiB and never maps the file.

    Raises:
        ElfFormatError: it is not ELF64 little-endian, or is broken.
    """
    header = os.pread(descriptor, 64, 0)
    if len(header) < 64 or header[:4] != b"\x7fELF":
        raise ElfFormatError("no ELF header")
    if header[4:6] != b"\x02\x01":
        raise ElfFormatError("not ELF64 little-endian")
    elf_type, machine = struct.unpack_from("<HH", header, 16)
    (phoff,) = struct.unpack_from("<Q", header, 32)
    phentsize, phnum = struct.unpack_from("<HH", header, 54)
    segments = _read_segments(descriptor, phoff, phentsize, phnum)
    dynamic = _read_dynamic(descriptor, segments.dynamic)
    strings = _Strings(descriptor, segments, dynamic.values)
    flags, flags_1 = dynamic.values.get(_DT_FLAGS, 0), dynamic.values.get(_DT_FLAGS_1, 0)
    soname = dynamic.values.get(_DT_SONAME)
    return ElfImage(
        elf_type=elf_type,
        machine=machine,
        interpreter=segments.interpreter,
        soname=None if soname is None else strings.at(soname),
        needed=tuple(strings.at(offset) for offset in dynamic.needed),
        rpath=strings.paths(dynamic.values.get(_DT_RPATH)),
        runpath=strings.paths(dynamic.values.get(_DT_RUNPATH)),
        is_pie=elf_type == ET_DYN and (bool(flags_1 & _DF_1_PIE) or segments.interpreter is not None),
        bind_now=_DT_BIND_NOW in dynamic.values or bool(flags & _DF_BIND_NOW) or bool(flags_1 & _DF_1_NOW),
        has_relro=segments.relro,
        stack_executable=segments.stack_executable,
        has_writable_code=segments.writable_code,
    )


def _read_segments(descriptor: int, phoff: int, phentsize: int, phnum: int) -> _Segments:
    found = _Segments(loads=[])
    if phnum == 0:
        return found
    if phentsize != _PHDR_BYTES or phnum > _MAX_PHDRS:
        raise ElfFormatError(f"{phnum} program headers of {phentsize} bytes")
    table = _pread(descriptor, _PHDR_BYTES * phnum, phoff, "program headers")
    for start in range(0, len(table), _PHDR_BYTES):
        kind, flags, offset, vaddr, _paddr, size_bytes = struct.unpack_from("<IIQQQQ", table, start)
        if kind == PT_LOAD:
            found.loads.append((vaddr, offset, size_bytes))
            found.writable_code |= bool(flags & _PF_X) and bool(flags & _PF_W)
        elif kind == PT_DYNAMIC:
            found.dynamic = (offset, size_bytes)
        elif kind == PT_INTERP:
            if not 1 < size_bytes <= _MAX_STRING_BYTES:
                raise ElfFormatError(f"interpreter name of {size_bytes} bytes")
            found.interpreter = _text(_pread(descriptor, size_bytes, offset, "interpreter").split(b"\0", 1)[0])
        elif kind == PT_GNU_RELRO:
            found.relro = True
        elif kind == PT_GNU_STACK:
            found.stack_executable = bool(flags & _PF_X)
    return found


def _read_dynamic(descriptor: int, where: tuple[int, int] | None) -> _Dynamic:
    found = _Dynamic(needed=[], values={})
    if where is None:
        return found
    offset, size_bytes = where
    if size_bytes > _MAX_DYNAMIC_BYTES:
        raise ElfFormatError(f"dynamic section of {size_bytes} bytes")
    table = _pread(descriptor, size_bytes - size_bytes % 16, offset, "dynamic section")
    for tag, value in struct.iter_unpack("<qQ", table):
        if tag == 0:
            break
        if tag != _DT_NEEDED:
            found.values[tag] = value
            continue
        if len(found.needed) >= _MAX_NEEDED:
            raise ElfFormatError(f"more than {_MAX_NEEDED} needed libraries")
        found.needed.append(value)
    return found


class _Strings:
    """The dynamic string table, read one string at a time."""

    def __init__(self, descriptor: int, segments: _Segments, values: dict[int, int]) -> None:
        self._descriptor = descriptor
        self._size_bytes = values.get(_DT_STRSZ, 0)
        self._offset = -1
        address = values.get(_DT_STRTAB)
        if address is not None:
            for vaddr, offset, size_bytes in segments.loads:
                if vaddr <= address < vaddr + size_bytes:
                    self._offset = offset + (address - vaddr)
                    break

    def at(self, index: int) -> str:
        """The string at ``index``."""
        if self._offset < 0 or index >= self._size_bytes:
            raise ElfFormatError("string outside the string table")
        wanted = min(_MAX_STRING_BYTES, self._size_bytes - index)
        for size_bytes in (min(128, wanted), wanted):
            raw = _read_at(self._descriptor, size_bytes, self._offset + index)
            text, end, _rest = raw.partition(b"\0")
            if end:
                return _text(text)
        raise ElfFormatError("string without end")

    def paths(self, index: int | None) -> tuple[str, ...]:
        """A colon-separated list of directories; empty parts (the current directory) are dropped."""
        return () if index is None else tuple(part for part in self.at(index).split(":") if part)


def _read_at(descriptor: int, size_bytes: int, offset: int) -> bytes:
    if offset + size_bytes >= 1 << 63:
        raise ElfFormatError("offset beyond any file")
    return os.pread(descriptor, size_bytes, offset)


def _pread(descriptor: int, size_bytes: int, offset: int, what: str) -> bytes:
    data = _read_at(descriptor, size_bytes, offset)
    if len(data) != size_bytes:
        raise ElfFormatError(f"{what} beyond the end of the file")
    return data


def _text(raw: bytes) -> str:
    """A name of a file: UTF-8 without control characters, because it goes into messages and mount tables."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ElfFormatError(f"name {raw[:40]!r} is not UTF-8") from None
    if any(ord(character) < 32 for character in text):
        raise ElfFormatError(f"name {raw[:40]!r} holds a control character")
    return text
