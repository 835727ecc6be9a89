"""What tells a file from its successor, a file with its place in a jail, and the caches built on both.

A cache file is derived data: it is read only when it belongs to us or root and nobody else can write it, each use
checks every stamp in it, and a cache that cannot be read or written only costs time.
"""

from __future__ import annotations

import contextlib
import os
import stat as stat_module
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from casemate.facts.root import Root, read_all

_CACHE_LIMIT_BYTES: Final = 4 << 20

T = TypeVar("T")


class FileStamp(msgspec.Struct, frozen=True, array_like=True):
    """Identity and state of a file: device, inode, time of last change of content in ns, size in bytes."""

    dev: int
    inode: int
    mtime_ns: int
    size_bytes: int


class PlacedFile(msgspec.Struct, frozen=True):
    """A host file and the name it must have in the jail.

    ``target`` is the absolute name under which the emulator (or its loader) opens it; ``source`` the real file on
    the host, without symbolic links; ``stamp`` lets who opens ``source`` check that it is still that file.
    """

    target: str
    source: str
    stamp: FileStamp


def stamp_of(status: os.stat_result) -> FileStamp:
    """The stamp of a stat result."""
    return FileStamp(status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)


def stamp_path(root: Root, path: str) -> FileStamp | None:
    """The stamp of what ``path`` leads to, None when there is nothing."""
    try:
        return stamp_of(root.stat(path))
    except OSError:
        return None


def is_current(root: Root, stamps: dict[str, FileStamp | None]) -> bool:
    """Whether every path still has the stamp noted for it; a path noted as absent must still be absent."""
    return all(stamp_path(root, path) == stamp for path, stamp in stamps.items())


def load_cache(path: Path, kind: type[T]) -> T | None:
    """Read a cache file of ours, None when there is none or it cannot be trusted or understood."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        writable_by_others = status.st_mode & (stat_module.S_IWGRP | stat_module.S_IWOTH)
        if not stat_module.S_ISREG(status.st_mode) or writable_by_others or status.st_uid not in (0, os.geteuid()):
            return None
        return msgspec.json.decode(read_all(descriptor, _CACHE_LIMIT_BYTES, str(path)), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    finally:
        os.close(descriptor)


def save_cache(path: Path, value: object) -> bool:
    """Write a cache file by rename; False when that was not possible, which is not an error."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.parent / f".new-{os.getpid()}-{os.urandom(6).hex()}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        with open(descriptor, "wb") as stream:
            stream.write(msgspec.json.encode(value))
        temporary.replace(path)
    except (OSError, msgspec.MsgspecError, UnicodeEncodeError):
        with contextlib.suppress(OSError):
            temporary.unlink()
        return False
    return True
