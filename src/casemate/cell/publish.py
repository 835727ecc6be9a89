"""Puts a file into a directory that others read: whole or not at all, with its line in SHA256SUMS."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Callable
from typing import Final

from casemate.errors import HostError, InputError

SUMS: Final = "SHA256SUMS"
SUMS_MAX_BYTES: Final = 4 << 20
_CHUNK: Final = 4 << 20
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+:-]{0,200}")


def publish_file(
    fd: int,
    directory: str,
    name: str,
    progress: Callable[[int, int], None] = lambda done, of: None,
    check: Callable[[], None] = lambda: None,
) -> tuple[str, str]:
    """Copy what is behind ``fd``.

    Args:
        name: of the file in ``directory``.
        check: called when all is copied and before it gets its name; may raise.

    Returns:
        path and SHA-256 of the published file.

    Raises:
        InputError: the name is none, is taken by another file, or the directory is not there. HostError: no room.
    """
    if _NAME.fullmatch(name) is None or name == SUMS:
        raise InputError("this is no name for a published file", got=ascii(name)[:100], next_step="--name NAME")
    try:
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as fault:
        raise InputError(f"cannot publish into {directory}", got=(fault.strerror or str(fault)).lower()) from None
    temporary = f".{name}.{os.getpid()}.{os.urandom(4).hex()}"
    try:
        digest = _copy(fd, folder, temporary, progress)
        check()
        _refuse_other(folder, directory, name, digest)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        _add_line(folder, f"{digest}  {name}\n", name)
        os.fsync(folder)
    except OSError as fault:
        raise HostError(f"cannot publish {name} into {directory}", got=(fault.strerror or str(fault)).lower()) from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        os.close(folder)
    return f"{directory.rstrip('/')}/{name}", digest


def _copy(fd: int, folder: int, temporary: str, progress: Callable[[int, int], None]) -> str:
    size = os.fstat(fd).st_size
    digest = hashlib.sha256()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    out = os.open(temporary, flags, 0o644, dir_fd=folder)
    try:
        at = 0
        while at < size:
            chunk = os.pread(fd, min(_CHUNK, size - at), at)
            if not chunk:
                raise OSError(5, "the image became shorter while it was copied")
            digest.update(chunk)
            if chunk.count(0) != len(chunk):
                view = memoryview(chunk)
                place = at
                while view:
                    written = os.pwrite(out, view, place)
                    view, place = view[written:], place + written
            at += len(chunk)
            progress(at, size)
        os.ftruncate(out, size)
        os.fsync(out)
    finally:
        os.close(out)
    return digest.hexdigest()


def _refuse_other(folder: int, directory: str, name: str, digest: str) -> None:
    """A file of that name must be the very same; what others may have fetched is never replaced silently."""
    try:
        other = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return
    try:
        same = stat.S_ISREG(os.fstat(other).st_mode) and _digest(other) == digest
    finally:
        os.close(other)
    if not same:
        raise InputError(f"{directory} has another file {name}", next_step="publish under another name: --name")


def _digest(fd: int) -> str:
    found = hashlib.sha256()
    while chunk := os.read(fd, _CHUNK):
        found.update(chunk)
    return found.hexdigest()


def _add_line(folder: int, line: str, name: str) -> None:
    """Replace the file of checksums by one that has this line and no other for the name."""
    old = ""
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(SUMS, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        with open(fd, encoding="utf-8", errors="surrogateescape") as file:
            old = file.read(SUMS_MAX_BYTES)
    kept = [text for text in old.splitlines(keepends=True) if text.rstrip("\n").partition("  ")[2] != name]
    temporary = f".{SUMS}.{os.getpid()}.{os.urandom(4).hex()}"
    out = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=folder)
    with open(out, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write("".join((*kept, line)))
        file.flush()
        os.fsync(out)
    os.rename(temporary, SUMS, src_dir_fd=folder, dst_dir_fd=folder)
