"""Opens files that a user named, so that what is checked is what is used. No content is read here.

    /                      walked one directory at a time through descriptors, from the root
    ├── home/ana           a symbolic link on the way counts only if root or the caller owns it: nobody else may
    │                      choose which file a privileged caller opens
    └── disk.qcow2         looked at (O_PATH) before it is opened: a link, directory, FIFO, socket or device is refused
                           without ever being opened, then that very inode is opened through /proc/self/fd

The descriptor is the caller's to close. Hand it on; never open the path again.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple, NoReturn

from casemate.errors import ImageError, InputError

MAX_LINKS = 40
"""As many links as the kernel follows in one path (MAXSYMLINKS)."""

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
}


class FileIdentity(NamedTuple):
    """What a file was when it was checked; times in nanoseconds since 1970."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int


def open_image(path: str, writable: bool = False) -> int:
    """Open a disk image at an absolute ``path``; see ``open_regular_file``."""
    return open_regular_file(path, what="image", writable=writable)


def open_regular_file(path: str, *, what: str, writable: bool = False) -> int:
    """Open a regular file at an absolute ``path`` and return its descriptor (close-on-exec).

    Args:
        what: how messages name it, for example ``kernel``.
        writable: open for reading and writing.

    Raises:
        InputError: missing, not permitted, not a regular file, or reached through someone else's symbolic link.
    """
    if not path.startswith("/"):
        raise RuntimeError(f"path must be absolute: {path!r}")
    subject = f"cannot open the {what} {path!r}"
    seen = -1
    try:
        seen = _look_at(path, subject)
        mode = os.fstat(seen).st_mode
        if not stat.S_ISREG(mode):
            _refuse_kind(subject, mode, seen)
        access = os.O_RDWR if writable else os.O_RDONLY
        # Through /proc the kernel reopens this inode: nobody can put another file in its place any more.
        return os.open(f"/proc/self/fd/{seen}", access | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise _as_input_error(subject, error, writable) from None
    finally:
        if seen >= 0:
            os.close(seen)


def identity_of(fd: int) -> FileIdentity:
    """The identity of an open file."""
    info = os.fstat(fd)
    return FileIdentity(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def verify_unchanged(fd: int, identity: FileIdentity, name: str) -> None:
    """Raise ``ImageError`` if the file behind ``fd`` is not what it was when ``identity`` was taken."""
    now = identity_of(fd)
    if now != identity:
        changed = ", ".join(field for field in FileIdentity._fields if getattr(now, field) != getattr(identity, field))
        raise ImageError(
            f"{name} changed between check and use",
            got=f"another {changed}",
            next_step="find out who writes to it, then try again",
        )


def _look_at(path: str, subject: str) -> int:
    """An O_PATH descriptor of what ``path`` names, itself not followed if it is a link."""
    root = os.open("/", _LOOK | os.O_DIRECTORY)
    here = os.dup(root)
    pending = _parts(path)
    links = 0
    try:
        if not pending:
            raise IsADirectoryError(errno.EISDIR, "a directory")
        while True:
            entry = os.open(pending.pop(0), _LOOK, dir_fd=here)
            if not pending:
                return entry
            try:
                info = os.fstat(entry)
                if stat.S_ISLNK(info.st_mode):
                    links += 1
                    target = _link_target(entry, info, links, subject)
                    pending = [*_parts(target), *pending]
                    if target.startswith("/"):
                        os.dup2(root, here, inheritable=False)
                else:
                    os.dup2(entry, here, inheritable=False)
            finally:
                os.close(entry)
    finally:
        os.close(here)
        os.close(root)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in {"", "."}]


def _link_target(entry: int, info: os.stat_result, links: int, subject: str) -> str:
    """Where a link on the way leads, if its owner may decide that."""
    if links > MAX_LINKS:
        raise OSError(errno.ELOOP, "too many symbolic links")
    target = os.readlink("", dir_fd=entry)
    if info.st_uid not in {0, os.geteuid()}:
        raise InputError(
            subject,
            got=f"a symbolic link to {target!r} on the way that belongs to uid {info.st_uid}",
            expected="links of root or your own",
            next_step="give the path without the link",
        )
    return target


def _refuse_kind(subject: str, mode: int, seen: int) -> NoReturn:
    kind = _KINDS.get(stat.S_IFMT(mode), "a special file")
    if stat.S_ISLNK(mode):
        target = os.readlink("", dir_fd=seen)
        raise InputError(
            subject,
            got=f"a symbolic link to {target!r}",
            expected="a regular file",
            next_step="give the path of the file itself: readlink -f shows it",
        )
    next_step = "copy the device into an image file first" if stat.S_ISBLK(mode) else "give the path of a file"
    raise InputError(subject, got=kind, expected="a regular file", next_step=next_step)


def _as_input_error(subject: str, error: OSError | ValueError, writable: bool) -> InputError:
    if isinstance(error, ValueError):
        return InputError(subject, got="a path with a NUL character in it")
    got = (error.strerror or str(error)).lower()
    next_step = "check the path"
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        access = "read and write" if writable else "read"
        next_step = f"uid {os.geteuid()} must be able to {access} it"
        if writable:
            next_step += "; or use mode overlay or read-only, which do not write to it"
    elif error.errno == errno.ETXTBSY:
        next_step = "a program runs from this file; give a copy"
    return InputError(subject, got=got, next_step=next_step)
