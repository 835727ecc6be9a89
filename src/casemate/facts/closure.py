"""Which files a program needs to start: its loader and libraries, where it will look for them, and where they are.

``cached_closure`` keeps the answer in a file of ours. It is valid as long as the program, every library, every
directory that was searched and every /etc/ld.so.conf file still have the stamp noted with it: one stat each.
"""

from __future__ import annotations

import fnmatch
import os
from collections import deque
from pathlib import Path
from typing import Final

import msgspec

from casemate.errors import HostError
from casemate.facts.elf import ElfFormatError, ElfImage, read_elf
from casemate.facts.root import Root
from casemate.facts.stamp import FileStamp, PlacedFile, is_current, load_cache, save_cache, stamp_of, stamp_path

LibraryFile = PlacedFile

_CACHE_FORMAT: Final = 1
_MAX_LIBRARIES: Final = 1024
_MAX_CONF_FILES: Final = 256
_MAX_CONF_DEPTH: Final = 8
# Directories compiled into a loader stand in it one after the other, each with its final slash and a NUL.
_LOADER_DIRS: Final = (
    ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib", "/usr/lib"),
    ("/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/lib", "/usr/lib"),
    ("/lib64", "/usr/lib64"),
    ("/lib", "/usr/lib"),
)


class SearchPath(msgspec.Struct, frozen=True):
    """Where ld.so looks when no path is built into the object.

    ``configured`` are the directories of /etc/ld.so.conf, ``builtin`` the loader's own; ``consulted`` the files and
    directories whose change could change the answer.
    """

    configured: tuple[str, ...]
    builtin: tuple[str, ...]
    consulted: tuple[str, ...]


class _CachedClosure(msgspec.Struct, frozen=True):
    format: int
    binary: str
    modules: tuple[str, ...]
    stamps: dict[str, FileStamp | None]
    files: tuple[PlacedFile, ...]


class _Wanted(msgspec.Struct):
    """One DT_NEEDED name, the object that asks, and the DT_RPATH directories of that object and its loaders."""

    name: str
    origin: str
    runpath: tuple[str, ...]
    rpath: tuple[str, ...]


def needed_closure(binary: Path | str, root: Root, extra_modules: tuple[str, ...] = ()) -> tuple[PlacedFile, ...]:
    """The loader, libraries and given modules that ``binary`` needs, in the order ld.so loads them.

    Args:
        binary: absolute path of the program in ``root``; not part of the result.
        root: the tree to look in.
        extra_modules: absolute paths of objects that the program will dlopen; they are part of the result.

    Returns:
        Files with their place in a root that has no /etc/ld.so.cache; empty for a static program.

    Raises:
        HostError: the program or a library is missing or not readable as ELF.
    """
    return _Closure(root).build(str(binary), extra_modules)[0]


def cached_closure(
    binary: Path | str, extra_modules: tuple[str, ...], cache_file: Path, root: Root | None = None
) -> tuple[PlacedFile, ...]:
    """Like ``needed_closure``, from ``cache_file`` while nothing it depends on has changed.

    A cache that cannot be written is not an error: the next call computes again.
    """
    tree = root or Root()
    name = str(binary)
    cached = load_cache(cache_file, _CachedClosure)
    if (
        cached is not None
        and (cached.format, cached.binary, cached.modules) == (_CACHE_FORMAT, name, extra_modules)
        and is_current(tree, cached.stamps)
        and all(stamp_path(tree, file.source) == file.stamp for file in cached.files)
    ):
        return cached.files
    files, consulted = _Closure(tree).build(name, extra_modules)
    stamps = {path: stamp_path(tree, path) for path in (name, *consulted)}
    save_cache(cache_file, _CachedClosure(_CACHE_FORMAT, name, extra_modules, stamps, files))
    return files


def search_path(root: Root, interpreter: str) -> SearchPath:
    """Directories that ld.so searches, from /etc/ld.so.conf and from the loader file itself."""
    consulted: list[str] = []
    configured: list[str] = []
    _read_conf(root, "/etc/ld.so.conf", 0, consulted, configured)
    builtin = _loader_dirs(root, interpreter)
    unique = tuple(dict.fromkeys(configured))
    return SearchPath(unique, builtin, tuple(dict.fromkeys((*consulted, *unique, *builtin))))


def _read_conf(root: Root, path: str, depth: int, consulted: list[str], directories: list[str]) -> None:
    """One ld.so.conf file: a directory a line, ``include GLOB`` lines, ``#`` comments (ldconfig(8))."""
    if depth > _MAX_CONF_DEPTH or len(consulted) > _MAX_CONF_FILES:
        return
    consulted.append(path)
    try:
        text = root.read_text(path, 1 << 16)
    except OSError:
        return
    for raw in text.splitlines():
        line = raw.partition("#")[0].strip()
        words = line.split()
        if not words or words[0] == "hwcap":
            continue
        if words[0] != "include":
            if line.startswith("/"):
                directories.append(line.rstrip("/") or "/")
            continue
        for pattern in words[1:]:
            absolute = pattern if pattern.startswith("/") else f"{_folder(path)}/{pattern}"
            folder, _, glob = absolute.rpartition("/")
            consulted.append(folder)
            for name in _list_or_nothing(root, folder):
                if fnmatch.fnmatchcase(name, glob):
                    _read_conf(root, f"{folder}/{name}", depth + 1, consulted, directories)


def _list_or_nothing(root: Root, folder: str) -> tuple[str, ...]:
    try:
        return root.list_dir(folder)
    except OSError:
        return ()


def _loader_dirs(root: Root, interpreter: str) -> tuple[str, ...]:
    """The search directories compiled into the loader; every usual one when they are not found in it."""
    try:
        content = root.read_bytes(interpreter, 8 << 20)
    except OSError:
        content = b""
    for directories in _LOADER_DIRS:
        if b"\0".join(f"{directory}/".encode() for directory in directories) in content:
            return directories
    return tuple(dict.fromkeys(directory for group in _LOADER_DIRS for directory in group))


class _Closure:
    """One computation: breadth first over DT_NEEDED, a name already loaded is never looked for again."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._files: list[PlacedFile] = []
        self._loaded: set[str] = set()
        self._queue: deque[_Wanted] = deque()
        self._search = SearchPath((), (), ())
        self._machine = 0
        self._own_dirs: list[str] = []

    def build(self, binary: str, modules: tuple[str, ...]) -> tuple[tuple[PlacedFile, ...], tuple[str, ...]]:
        """The files, and the paths beside them that the answer depends on."""
        program = self._read(binary, "the program itself")
        self._machine = program.machine
        if program.interpreter is not None:
            loader = self._read(program.interpreter, binary)
            self._place(program.interpreter, binary)
            self._loaded |= {program.interpreter, _base(program.interpreter)}
            if loader.soname:
                self._loaded.add(loader.soname)
        self._search = search_path(self._root, program.interpreter or "")
        # ld.so uses the program's DT_RPATH for every object, as the last of the chain.
        program_rpath = () if program.runpath else _expand(program.rpath, binary)
        self._want(program, binary, ())
        self._drain()
        for module in modules:
            image = self._read(module, binary)
            self._place(module, binary)
            self._loaded.add(image.soname or _base(module))
            self._want(image, module, program_rpath)
            self._drain()
        return tuple(self._files), tuple(dict.fromkeys((*self._search.consulted, *self._own_dirs)))

    def _drain(self) -> None:
        while self._queue:
            wanted = self._queue.popleft()
            if wanted.name in self._loaded:
                continue
            if len(self._files) >= _MAX_LIBRARIES:
                raise HostError(f"{wanted.origin} needs more than {_MAX_LIBRARIES} libraries")
            found, target, image = self._find(wanted)
            self._loaded.add(wanted.name)
            if image.soname:
                self._loaded.add(image.soname)
            self._place(target, wanted.origin, found)
            self._want(image, found, wanted.rpath)

    def _want(self, image: ElfImage, path: str, inherited: tuple[str, ...]) -> None:
        runpath = _expand(image.runpath, path)
        rpath = inherited if image.runpath else (*_expand(image.rpath, path), *inherited)
        self._own_dirs += [*runpath, *rpath]
        for name in image.needed:
            self._queue.append(_Wanted(name, path, runpath, rpath))

    def _find(self, wanted: _Wanted) -> tuple[str, str, ElfImage]:
        """(where it is, the name ld.so will open it by in a root without ld.so.cache, its headers)."""
        if "/" in wanted.name:
            return wanted.name, wanted.name, self._read(wanted.name, wanted.origin)
        # An object with DT_RUNPATH ignores every DT_RPATH for its own needs.
        own = wanted.runpath or wanted.rpath
        for directory in (*own, *self._search.configured, *self._search.builtin):
            path = f"{directory}/{wanted.name}"
            try:
                image = read_elf(self._root, path)
            except (OSError, ElfFormatError):
                continue
            if image.machine != self._machine:
                continue
            if directory in own or directory in self._search.builtin:
                return path, path, image
            return path, f"{self._search.builtin[0]}/{wanted.name}", image
        raise HostError(
            f"library {wanted.name} of {wanted.origin}",
            got="not found",
            expected=f"in {', '.join((*own, *self._search.configured, *self._search.builtin))}",
            next_step="install the package that holds it, or run ldconfig",
        )

    def _read(self, path: str, origin: str) -> ElfImage:
        try:
            return read_elf(self._root, path)
        except OSError as error:
            raise HostError(f"{path} (needed by {origin})", got=error.strerror or str(error)) from error
        except ElfFormatError as error:
            raise HostError(f"{path} (needed by {origin})", got=str(error), expected="an ELF64 file") from error

    def _place(self, target: str, origin: str, path: str | None = None) -> None:
        try:
            source = self._root.real_path(path or target)
            self._files.append(PlacedFile(target, source, stamp_of(self._root.stat(source))))
        except OSError as error:
            raise HostError(f"{path or target} (needed by {origin})", got=error.strerror or str(error)) from error


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _base(path: str) -> str:
    return path.rpartition("/")[2]


def _expand(directories: tuple[str, ...], path: str) -> tuple[str, ...]:
    """DT_RPATH and DT_RUNPATH entries with $ORIGIN filled in; other $ words and relative paths are dropped."""
    origin = _folder(path)
    filled = (entry.replace("${ORIGIN}", origin).replace("$ORIGIN", origin) for entry in directories)
    return tuple(os.path.normpath(entry) for entry in filled if entry.startswith("/") and "$" not in entry)
