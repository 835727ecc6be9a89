"""The C library through ctypes, and the one place where a failed call becomes an OSError.

Every wrapper in this package states the object it was about in the error, so that a message can name the path.
"""

from __future__ import annotations

import ctypes
import os

# PyDLL would keep the GIL; CDLL releases it, which is right for calls that may block.
libc = ctypes.CDLL(None, use_errno=True)
_syscall = libc.syscall
_syscall.restype = ctypes.c_long


def check(result: int, what: str) -> int:
    """Return ``result``, or raise OSError with the calling thread's errno and ``what`` when it is negative."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def syscall(number: int, *args: object) -> int:
    """Make a raw system call. Integers are passed as 64-bit values, buffers and pointers as they are.

    Raises:
        OSError: the kernel's errno, with the call's number as file name.
    """
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    # SAFETY: the caller passes buffers that outlive this call; the kernel checks every pointer.
    return check(_syscall(ctypes.c_long(number), *converted), f"syscall {number}")
