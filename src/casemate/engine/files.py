"""Small files written so that a crash at any moment leaves the old one or the new one; locks that die with us.

Locks are open file description locks (fcntl_locking(2)): they belong to the descriptor, follow it through fork and
exec, and end with its last copy. Unlike flock they can be looked at without being taken, so that a command that only
looks never gets in the way of one that starts or removes a VM.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time

import msgspec

from casemate.errors import HostError

READ_MAX_BYTES = 8 * 1024 * 1024
LOCK_DEADLINE_S = 20.0
# struct flock: l_type, l_whence, l_start, l_len, l_pid; native alignment.
_FLOCK = struct.Struct("hhqqi0q")


def write_atomic(path: str, data: bytes, mode: int = 0o600, *, durable: bool = True) -> None:
    """Write through a temporary file in the same directory, fsync, rename.

    Args:
        durable: False leaves fsync out, for what means nothing after a reboot.

    Raises:
        OSError: naming ``path``; the old file is untouched.
    """
    temporary = f"{path}.{os.urandom(6).hex()}.tmp"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
    except OSError as fault:
        unlink_if_there(temporary)
        raise OSError(fault.errno, fault.strerror, path) from fault
    except BaseException:
        unlink_if_there(temporary)
        raise


def write_json(path: str, value: object, *, durable: bool = True) -> None:
    """`write_atomic` of the JSON form of a struct or dictionary."""
    write_atomic(path, msgspec.json.encode(value), durable=durable)


def read_bounded(path: str, limit: int = READ_MAX_BYTES) -> bytes:
    """Read a regular file of at most ``limit`` bytes.

    Raises:
        OSError: it cannot be read, is not a regular file (EINVAL), or is larger (EFBIG).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
    return data


def unlink_if_there(path: str) -> None:
    """Remove a file; its absence, or that of its directory, is fine."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def take_lock(path: str, *, wait: bool) -> int | None:
    """An exclusive lock on ``path`` (made if missing).

    Args:
        wait: try for `LOCK_DEADLINE_S`; otherwise once.

    Returns:
        the descriptor that holds it (close to release), or None if someone else holds it and ``wait`` is False.

    Raises:
        HostError: someone held it all the time.
        OSError: the file cannot be made.
    """
    end = time.monotonic() + LOCK_DEADLINE_S
    pause_s = 0.001
    while True:
        descriptor = _try_lock(path)
        if descriptor is not None:
            return descriptor
        if not wait:
            return None
        if time.monotonic() > end:
            raise HostError(
                f"another casemate command holds {path}",
                got=f"no release within {LOCK_DEADLINE_S:.0f} s",
                next_step=f"fuser -v {path} names it; a stopped one (Ctrl-Z) wants fg or kill",
            )
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.05)


def _try_lock(path: str) -> int | None:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        except OSError as fault:
            os.close(descriptor)
            if fault.errno in {errno.EAGAIN, errno.EACCES}:
                return None
            raise
        except BaseException:
            os.close(descriptor)
            raise
        try:  # the file may have been removed, and made anew by another, between open and lock
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


def is_locked(path: str) -> bool:
    """True if another open file description holds the lock; a missing file is not locked. Takes nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, question)
    finally:
        os.close(descriptor)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def remove_tree(path: str) -> None:
    """Remove a directory of ours and what is below it; what cannot be removed stays for the next command's sweep."""
    import shutil

    shutil.rmtree(path, ignore_errors=True)
