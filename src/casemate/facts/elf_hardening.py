"""What an ELF file says of its hardening: PIE, RELRO, stack, canary, FORTIFY, CET, search paths. Hostile input.

pyelftools reads through a stream that counts: a file that makes it read for ever or allocate much is refused instead.
"""

from __future__ import annotations

import os
from functools import cache
from typing import IO, Any, Final, Literal, cast

import msgspec

from casemate.facts.elf import ElfFormatError

_FILE_LIMIT_BYTES: Final = 512 << 20
_READ_LIMIT_BYTES: Final = 64 << 20
_READS_LIMIT: Final = 200_000
_NAME_LIMIT_BYTES: Final = 4096
_X, _W = 1, 2
_FORTIFIABLE: Final = frozenset(
    [
        "asprintf",
        "confstr",
        "dprintf",
        "explicit_bzero",
        "fgets",
        "fprintf",
        "fread",
        "getcwd",
        "getgroups",
        "gethostname",
        "longjmp",
        "mbstowcs",
        "memcpy",
        "memmove",
        "mempcpy",
        "memset",
        "poll",
        "ppoll",
        "pread",
        "pread64",
        "printf",
        "read",
        "readlink",
        "readlinkat",
        "realpath",
        "recv",
        "recvfrom",
        "snprintf",
        "sprintf",
        "stpcpy",
        "stpncpy",
        "strcat",
        "strcpy",
        "strncat",
        "strncpy",
        "syslog",
        "vasprintf",
        "vdprintf",
        "vfprintf",
        "vprintf",
        "vsnprintf",
        "vsprintf",
        "vsyslog",
        "wcscpy",
        "wcstombs",
        "wmemcpy",
    ]
)


class Hardening(msgspec.Struct, frozen=True, kw_only=True):
    """``relro``: none, partial or full; ``stack``: no-execute, executable or unstated. ``canary`` and ``clang_cfi`` are
    None where a stripped file cannot tell. ``fortified`` and ``unfortified``: names of imported functions.
    ``features``: ``ibt`` and ``shstk`` of the GNU property note. ``search``: DT_RPATH and DT_RUNPATH entries."""

    pie: bool
    relro: str
    stack: str
    writable_code: int
    canary: bool | None
    fortified: tuple[str, ...]
    unfortified: tuple[str, ...]
    features: tuple[str, ...]
    clang_cfi: bool | None
    search: tuple[str, ...]
    needed: tuple[str, ...]
    static: bool
    stripped: bool

    @property
    def fortify_percent(self) -> int | None:
        """Share of fortified names among those that could be; None when there is none of either."""
        total = len(self.fortified) + len(self.unfortified)
        return round(100 * len(self.fortified) / total) if total else None


class _Counted:
    """A read-only stream over a descriptor with a budget."""

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        self._descriptor, self._size_bytes, self._at = descriptor, size_bytes, 0
        self._bytes, self._reads = _READ_LIMIT_BYTES, _READS_LIMIT

    def read(self, count: int = -1) -> bytes:
        wanted = max(0, self._size_bytes - self._at)
        wanted = wanted if count is None or count < 0 else min(wanted, count)
        self._bytes, self._reads = self._bytes - wanted, self._reads - 1
        if self._bytes < 0 or self._reads < 0:
            raise ElfFormatError("takes more reading than an honest program's headers do")
        data = os.pread(self._descriptor, wanted, self._at)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size_bytes}[whence]
        self._at = base + offset
        if not 0 <= self._at < 1 << 62:
            raise ElfFormatError("offset beyond any file")
        return self._at

    def tell(self) -> int:
        return self._at


def read_hardening(descriptor: int) -> Hardening:
    """The hardening of an open ELF program.

    Raises:
        ElfFormatError: no ELF file, broken, or too large to be an honest one.
    """
    size_bytes = os.fstat(descriptor).st_size
    if size_bytes > _FILE_LIMIT_BYTES:
        raise ElfFormatError(f"larger than {_FILE_LIMIT_BYTES} bytes")
    try:
        return _inspect(_elf_file()(cast("IO[bytes]", _Counted(descriptor, size_bytes))))
    except ElfFormatError:
        raise
    except Exception as error:  # whatever pyelftools stumbles over in a hostile file is the file's fault
        raise ElfFormatError(f"broken: {type(error).__name__}: {str(error)[:100]}") from error


@cache
def _elf_file() -> Any:
    """pyelftools' file, which does not read hash tables word by word: nothing here looks at them."""
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import Section

    class Light(ELFFile):
        def _make_gnu_hash_section(self, header: Any, name: str) -> Any:
            return Section(header, name, self)

        def _make_elf_hash_section(self, header: Any, name: str) -> Any:
            return Section(header, name, self)

    return Light


def _inspect(elf: Any) -> Hardening:
    segments = list(elf.iter_segments())
    kinds = {segment["p_type"] for segment in segments}
    if not kinds & {"PT_LOAD"}:
        raise ElfFormatError("nothing to load")
    dynamic = next((segment for segment in segments if segment["p_type"] == "PT_DYNAMIC"), None)
    tags: list[Any] = list(dynamic.iter_tags()) if dynamic is not None else []
    flags = {tag.entry.d_tag: tag.entry.d_val for tag in tags}
    names = _imported(elf, dynamic, flags) if dynamic is not None else frozenset[str]()
    now = "DT_BIND_NOW" in flags or flags.get("DT_FLAGS", 0) & 8 or flags.get("DT_FLAGS_1", 0) & 1
    stripped = not any(section["sh_type"] == "SHT_SYMTAB" for section in elf.iter_sections())
    is_pie = flags.get("DT_FLAGS_1", 0) & 0x0800_0000 or "PT_INTERP" in kinds
    stack = next((segment["p_flags"] for segment in segments if segment["p_type"] == "PT_GNU_STACK"), None)
    imported_checks = {name[2:-4] for name in names if name.startswith("__") and name.endswith("_chk")}
    relro = "none" if "PT_GNU_RELRO" not in kinds else "full" if now or dynamic is None else "partial"
    return Hardening(
        pie=elf["e_type"] == "ET_DYN" and bool(is_pie),
        relro=relro,
        stack="unstated" if stack is None else "executable" if stack & _X else "no-execute",
        writable_code=sum(s["p_type"] == "PT_LOAD" and s["p_flags"] & (_X | _W) == _X | _W for s in segments),
        canary=bool(names & {"__stack_chk_fail", "__stack_chk_guard"}) if dynamic is not None else None,
        fortified=tuple(sorted(imported_checks)),
        unfortified=tuple(sorted((names & _FORTIFIABLE) - imported_checks)),
        features=_features(segments),
        clang_cfi=_clang_cfi(elf) if not stripped else True if names & {"__cfi_slowpath", "__cfi_check"} else None,
        search=tuple(
            part
            for tag in tags
            if tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH")
            for part in getattr(tag, tag.entry.d_tag[3:].lower()).split(":")
        ),
        needed=tuple(tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"),
        static="PT_INTERP" not in kinds,
        stripped=stripped,
    )


def _imported(elf: Any, dynamic: Any, flags: dict[str, int]) -> frozenset[str]:
    """Names of the undefined dynamic symbols.

    Linkers put the strings behind the symbols, and the loader needs neither's length, so the distance bounds the table.
    Read at once: pyelftools would take a million reads for the 20,000 symbols of a QEMU with modules.
    """
    _, symbols_at = dynamic.get_table_offset("DT_SYMTAB")
    _, strings_at = dynamic.get_table_offset("DT_STRTAB")
    if symbols_at is None or strings_at is None or not symbols_at < strings_at:
        return frozenset(symbol.name for symbol in dynamic.iter_symbols() if symbol["st_shndx"] == "SHN_UNDEF")
    size_bytes, section_at = (24, 6) if elf.elfclass == 64 else (16, 14)
    order: Literal["little", "big"] = "little" if elf.little_endian else "big"
    elf.stream.seek(symbols_at)
    table = elf.stream.read(strings_at - symbols_at)
    elf.stream.seek(strings_at)
    strings = elf.stream.read(flags.get("DT_STRSZ", 0))
    found = set()
    for start in range(0, len(table) - size_bytes + 1, size_bytes):
        if table[start + section_at : start + section_at + 2] == b"\0\0":
            name = int.from_bytes(table[start : start + 4], order)
            end = strings.find(b"\0", name, name + _NAME_LIMIT_BYTES)
            found.add(strings[name : max(name, end)].decode("utf-8", "backslashreplace"))
    return frozenset(found)


def _features(segments: list[Any]) -> tuple[str, ...]:
    found: set[str] = set()
    for segment in segments:
        if segment["p_type"] != "PT_NOTE":
            continue
        for note in segment.iter_notes():
            for item in note["n_desc"] if note["n_type"] == "NT_GNU_PROPERTY_TYPE_0" else ():
                if item["pr_type"] == "GNU_PROPERTY_X86_FEATURE_1_AND" and isinstance(item["pr_data"], int):
                    found |= {name for bit, name in ((1, "ibt"), (2, "shstk")) if item["pr_data"] & bit}
    return tuple(sorted(found))


def _clang_cfi(elf: Any) -> bool:
    """Clang's type-checked calls leave ``NAME.cfi`` beside the jump table's entry; only symbols show them."""
    table = next(section for section in elf.iter_sections() if section["sh_type"] == "SHT_SYMTAB")
    names = elf.get_section(table["sh_link"]).data()
    return b".cfi\0" in names or b".cfi_jt\0" in names
