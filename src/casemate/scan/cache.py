"""Keeps the compiled form of the prefilter: derived data, used only when nobody else can have written it.

    <cache>/scan/<fingerprint>.hsdb     0600, replaced by rename; the directory 0700

The library that loads it trusts it, so a file or directory that others may write to, or that belongs to somebody else,
is as good as none. A cache that cannot be written is no error.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

MAX_BYTES: Final = 64 << 20
KEPT: Final = 8


def load(directory: str, name: str) -> bytes:
    """What `save` kept under this name; empty when there is nothing that can be trusted."""
    try:
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        if not _is_ours(os.fstat(folder)):
            return b""
        fd = os.open(f"{name}.hsdb", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return b""
    finally:
        os.close(folder)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not _is_ours(status) or status.st_size > MAX_BYTES:
            return b""
        return file.read(MAX_BYTES)


def _is_ours(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def save(directory: str, name: str, data: bytes) -> None:
    """Keep it; old ones beyond `KEPT` go."""
    temporary = f"{directory}/.{name}.{os.getpid()}.{os.urandom(4).hex()}"
    with contextlib.suppress(OSError):
        Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(fd)
            Path(temporary).replace(f"{directory}/{name}.hsdb")
        except OSError:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise
        with os.scandir(directory) as entries:
            old = sorted(
                (entry.stat(follow_symlinks=False).st_mtime, entry.path)
                for entry in entries
                if entry.name.endswith(".hsdb")
            )
        for _, path in old[:-KEPT]:
            Path(path).unlink()
