"""openat2(2): open a path with the kernel itself keeping the resolution inside a directory."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import time
from typing import Final

from casemate.sys.libc import syscall

RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10

_NR_OPENAT2: Final = 437
_TRIES: Final = 100
_PAUSE_S: Final = 0.001


def openat2(dir_fd: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
    """Open ``path`` relative to ``dir_fd``; O_CLOEXEC is added.

    A ``..`` on the way, in a link too, makes the kernel give up with EAGAIN when anything on the host is renamed or
    mounted at that moment (openat2(2)): then it is asked again, for a tenth of a second at least.

    Args:
        dir_fd: directory that the path starts from, and with RESOLVE_IN_ROOT the root of absolute names and ``..``.
        path: path, absolute or relative.
        flags: O_* flags of open(2).
        resolve: RESOLVE_* flags.
        mode: permission bits of a created file.

    Returns:
        A descriptor that the caller owns.

    Raises:
        OSError: the kernel's errno with the path; ELOOP or EXDEV when the resolution would leave its bounds.
    """
    how = ctypes.create_string_buffer(struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve), 24)
    name = ctypes.create_string_buffer(os.fsencode(path))
    for left in reversed(range(_TRIES)):
        try:
            # SAFETY: both buffers live until the call returns; the kernel reads 24 bytes and one C string.
            return syscall(_NR_OPENAT2, dir_fd, name, how, 24)
        except OSError as error:
            if error.errno != errno.EAGAIN or not left:
                raise OSError(error.errno, error.strerror, path) from None
        time.sleep(_PAUSE_S)
    raise AssertionError("the last try returns or raises")
