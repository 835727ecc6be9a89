"""Make a live process call a function of its C library: how a test makes QEMU abort, or break its own allowlist."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_LIBC.ptrace.restype = ctypes.c_long
_ATTACH, _DETACH, _GETREGS, _SETREGS = 16, 17, 12, 13
_WALL = 0x4000_0000
# struct user_regs_struct of x86-64 in 64-bit words: positions of the registers that a call needs.
_ORIG_RAX, _RIP, _RSP, _WORDS = 15, 16, 19, 27


def _libc_base(pid: int) -> int:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if line.rstrip().endswith("libc.so.6"):
            return int(line.split("-")[0], 16)
    raise AssertionError("no C library")


def call(pid: int, function: str) -> None:
    """Let the main thread of ``pid`` go on in ``function`` of its C library (the same file as ours); no return."""
    assert platform.machine() == "x86_64"
    address = ctypes.cast(getattr(_LIBC, function), ctypes.c_void_p).value
    assert address is not None
    target = _libc_base(pid) + address - _libc_base(os.getpid())
    assert _LIBC.ptrace(_ATTACH, pid, None, None) == 0, os.strerror(ctypes.get_errno())
    os.waitpid(pid, _WALL)
    registers = ctypes.create_string_buffer(_WORDS * 8)
    assert _LIBC.ptrace(_GETREGS, pid, None, registers) == 0
    words = list(struct.unpack(f"{_WORDS}Q", registers.raw))
    words[_RIP] = target
    words[_RSP] = (words[_RSP] - 1024) // 16 * 16 - 8
    words[_ORIG_RAX] = 2**64 - 1  # no interrupted system call is to be started again
    registers.raw = struct.pack(f"{_WORDS}Q", *words)
    assert _LIBC.ptrace(_SETREGS, pid, None, registers) == 0
    assert _LIBC.ptrace(_DETACH, pid, None, None) == 0
