"""Writes small ELF64 files for tests: a header, the segments asked for, a dynamic section, a string table."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

PAGE = 0x1000


@dataclass
class Elf:
    """What the file shall say; ``extra`` are further (tag, value) pairs of the dynamic section."""

    needed: tuple[str, ...] = ()
    soname: str | None = None
    rpath: str | None = None
    runpath: str | None = None
    interpreter: str | None = None
    machine: int = 62
    elf_type: int = 3
    load_flags: int = 5
    stack_flags: int | None = 6
    relro: bool = True
    extra: tuple[tuple[int, int], ...] = ()
    payload: bytes = b""
    phnum: int | None = None
    strsz: int | None = None
    strings: bytearray = field(default_factory=lambda: bytearray(b"\0"))

    def _string(self, text: str) -> int:
        offset = len(self.strings)
        self.strings += text.encode() + b"\0"
        return offset

    def build(self) -> bytes:
        """The file: headers at 0, interpreter at 0x400, dynamic section at 0x800, strings at 0x1000."""
        tags = [(1, self._string(name)) for name in self.needed]
        for tag, text in ((14, self.soname), (15, self.rpath), (29, self.runpath)):
            if text is not None:
                tags.append((tag, self._string(text)))
        size = self.strsz if self.strsz is not None else len(self.strings)
        tags += [(5, 0x40_0000 + PAGE), (10, size), *self.extra, (0, 0)]
        dynamic = b"".join(struct.pack("<qQ", tag, value) for tag, value in tags)
        total = PAGE + len(self.strings) + len(self.payload)
        headers = [(1, self.load_flags, 0, 0x40_0000, total), (2, 6, 0x800, 0x40_0800, len(dynamic))]
        interpreter = b""
        if self.interpreter is not None:
            interpreter = self.interpreter.encode() + b"\0"
            headers.append((3, 4, 0x400, 0x40_0400, len(interpreter)))
        if self.stack_flags is not None:
            headers.append((0x6474E551, self.stack_flags, 0, 0, 0))
        if self.relro:
            headers.append((0x6474E552, 4, 0, 0, 0))
        phnum = len(headers) if self.phnum is None else self.phnum
        head = b"\x7fELF\x02\x01\x01" + bytes(9)
        head += struct.pack("<HHIQQQIHHHHHH", self.elf_type, self.machine, 1, 0, 64, 0, 0, 64, 56, phnum, 0, 0, 0)
        table = b"".join(struct.pack("<IIQQQQQQ", k, f, o, v, v, s, s, PAGE) for k, f, o, v, s in headers)
        image = bytearray(PAGE)
        image[: len(head)] = head
        image[64 : 64 + len(table)] = table
        image[0x400 : 0x400 + len(interpreter)] = interpreter
        image[0x800 : 0x800 + len(dynamic)] = dynamic
        return bytes(image + self.strings + self.payload)


def put(base: Path, path: str, elf: Elf | bytes | str) -> Path:
    """Write a file of a fake tree, with its directories."""
    where = base / path.lstrip("/")
    where.parent.mkdir(parents=True, exist_ok=True)
    content = elf.build() if isinstance(elf, Elf) else elf.encode() if isinstance(elf, str) else elf
    where.write_bytes(content)
    return where
