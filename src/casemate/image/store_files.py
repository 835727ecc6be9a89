"""Files and locks of the store: written so that a kill at any moment leaves the old state or the new one.

Locks are open file description locks (fcntl_locking(2)): held by the descriptor, gone with the process however it dies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Iterator

from casemate.errors import HostError

LOCK_DEADLINE_S = 60.0
_FLOCK = struct.Struct("hhqqi0q")  # struct flock, native alignment


def private_directory(path: str) -> None:
    """Make ``path`` 0700 if it is missing; refuse one that is not the caller's alone.

    Raises:
        HostError: it cannot be made, or is not ours.
    """
    try:
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            found = os.lstat(path)
    except OSError as fault:
        raise HostError(
            f"the image store {path} cannot be made",
            got=(fault.strerror or str(fault)).lower(),
            next_step="make its parent writable; XDG_DATA_HOME names another place",
        ) from fault
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise HostError(
            f"{path} is not a private directory of ours",
            got=f"{stat.filemode(found.st_mode)} uid {found.st_uid}",
            expected=f"drwx------ uid {os.geteuid()}",
            next_step=f"chmod 700 {path}, if it is yours and nobody else wrote into it",
        )


def sync_directory(path: str) -> None:
    """Make the names in ``path`` outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: str) -> None:
    """Make the content of a file outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: str, data: bytes, *, temporary: str, mode: int = 0o600) -> None:
    """Write ``path`` all at once: into ``temporary`` on the same file system, fsync, rename, fsync of the directory.

    Raises:
        OSError: naming ``path``; what was there is untouched.
    """
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
        sync_directory(os.path.dirname(path))
    except OSError as fault:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise OSError(fault.errno, fault.strerror, path) from fault


def read_small(path: str, limit: int) -> bytes:
    """A regular file of at most ``limit`` bytes; never follows a link, never waits at a FIFO.

    Raises:
        OSError: EINVAL when it is not a regular file, EFBIG when it is larger.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        data = b""
        while len(data) <= limit and (part := os.read(descriptor, limit + 1 - len(data))):
            data += part
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
    return data


def try_lock(path: str) -> int | None:
    """The descriptor that holds an exclusive lock on ``path`` (made if missing), or None if another holds it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        except OSError as fault:
            os.close(descriptor)
            if fault.errno in {errno.EAGAIN, errno.EACCES}:
                return None
            raise
        try:  # the file may have been removed, and made anew by another, between open and lock
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the exclusive lock on ``path``; waits for `LOCK_DEADLINE_S`.

    Raises:
        HostError: another process held it all the time.
    """
    end = time.monotonic() + LOCK_DEADLINE_S
    pause_s = 0.001
    while (descriptor := try_lock(path)) is None:
        if time.monotonic() > end:
            raise HostError(
                f"another casemate command holds {path}",
                got=f"no release within {LOCK_DEADLINE_S:.0f} s",
                next_step=f"fuser -v {path} names it; a stopped one (Ctrl-Z) wants fg or kill",
            )
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.05)
    try:
        yield
    finally:
        os.close(descriptor)


def remove_tree(path: str) -> None:
    """Remove what stands at ``path``, made writable first; what cannot be removed stays for the next sweep."""
    import shutil

    if not os.path.isdir(path) or os.path.islink(path):
        with contextlib.suppress(OSError):
            os.unlink(path)
        return
    with contextlib.suppress(OSError):
        for directory, _, _ in os.walk(path):
            os.chmod(directory, 0o700)
    shutil.rmtree(path, ignore_errors=True)
