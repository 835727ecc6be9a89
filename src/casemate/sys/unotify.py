"""Answers to a seccomp notification beyond "go on" and "fail": a value, or a descriptor put into the caller's table.

See seccomp_unotify(2). `sys/seccomp.py` has the receiving side.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

# _IOW('!', 3, 24): include/uapi/linux/seccomp.h.
SECCOMP_IOCTL_NOTIF_ADDFD: Final = 0x4018_2103
SECCOMP_IOCTL_NOTIF_SEND: Final = 0xC018_2101
SECCOMP_ADDFD_FLAG_SETFD: Final = 1 << 0
SECCOMP_ADDFD_FLAG_SEND: Final = 1 << 1

_ADDFD: Final = struct.Struct("=QIIII")
_RESPONSE: Final = struct.Struct("=QqiI")


def notif_send_value(listener: int, cookie: int, value: int) -> None:
    """Make the call succeed with ``value`` without being made.

    Raises:
        ValueError: a negative value, which would be an errno.
        OSError: ENOENT when the caller is gone, EINPROGRESS when it was answered already.
    """
    if value < 0:
        raise ValueError(f"a call that succeeds gives 0 or more, got {value}")
    fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, bytearray(_RESPONSE.pack(cookie, value, 0, 0)))


def notif_addfd(listener: int, cookie: int, descriptor: int, number: int, *, close_on_exec: bool) -> None:
    """Install a copy of ``descriptor`` as ``number`` in the caller and make its call return that number, in one step.

    A descriptor that the caller already has under that number is replaced, as with dup2(2).

    Raises:
        OSError: ENOENT when the caller is gone, EBADF when ``number`` is beyond its RLIMIT_NOFILE, EINVAL on kernels
            before 5.14.
    """
    flags = SECCOMP_ADDFD_FLAG_SETFD | SECCOMP_ADDFD_FLAG_SEND
    new_flags = os.O_CLOEXEC if close_on_exec else 0
    fcntl.ioctl(
        listener, SECCOMP_IOCTL_NOTIF_ADDFD, bytearray(_ADDFD.pack(cookie, flags, descriptor, number, new_flags))
    )
