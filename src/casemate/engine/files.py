"""Small files written so that a crash at any moment leaves the old one or the new one; locks that die with us."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets

import msgspec

READ_MAX_BYTES = 8 * 1024 * 1024


def write_atomic(path: str, data: bytes, mode: int = 0o600) -> None:
    """Write through a temporary file in the same directory, fsync, rename."""
    temporary = f"{path}.{secrets.token_hex(6)}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
    except BaseException:
        unlink_if_there(temporary)
        raise


def write_json(path: str, value: object) -> None:
    """`write_atomic` of the JSON form of a struct or dictionary."""
    write_atomic(path, msgspec.json.encode(value))


def read_bounded(path: str, limit: int = READ_MAX_BYTES) -> bytes:
    """Read a regular file of at most ``limit`` bytes.

    Raises:
        OSError: it cannot be read, or is larger (EFBIG).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
    return data


def unlink_if_there(path: str) -> None:
    """Remove a file; its absence is fine."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def take_lock(path: str, *, wait: bool) -> int | None:
    """An exclusive flock on ``path`` (made if missing).

    Returns:
        the descriptor that holds it (close to release), or None if someone else holds it and ``wait`` is False.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        try:  # the file may have been removed while we waited
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


def is_locked(path: str) -> bool:
    """True if another open file description holds the flock; a missing file is not locked."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
