"""SO_ATTACH_FILTER: a classic BPF program that decides which packets a socket takes. See socket(7)."""

from __future__ import annotations

import ctypes
import socket
from typing import Final

from casemate.sys.libc import check, libc

SO_ATTACH_FILTER: Final = 26


class _Fprog(ctypes.Structure):
    """``struct sock_fprog``: number of instructions, and where they are."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def attach_filter(descriptor: int, program: bytes) -> None:
    """Attach ``program`` (instructions of 8 bytes) to a socket, in place of the one it has.

    Raises:
        OSError: EINVAL for a program that the kernel refuses.
    """
    code = ctypes.create_string_buffer(program, len(program))
    fprog = _Fprog(len(program) // 8, ctypes.addressof(code))
    # SAFETY: `code` and `fprog` live until the call returns; the kernel copies both.
    result = libc.setsockopt(
        ctypes.c_int(descriptor),
        ctypes.c_int(socket.SOL_SOCKET),
        ctypes.c_int(SO_ATTACH_FILTER),
        ctypes.byref(fprog),
        ctypes.c_uint(ctypes.sizeof(fprog)),
    )
    check(result, "SO_ATTACH_FILTER")
