"""The memory of another process: process_vm_readv(2) and process_vm_writev(2). Both need ptrace access to it."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final

from casemate.sys.libc import check, libc

IOV_MAX: Final = 1024


class _Iovec(ctypes.Structure):
    """``struct iovec``."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


libc.process_vm_readv.restype = ctypes.c_ssize_t
libc.process_vm_writev.restype = ctypes.c_ssize_t


def process_vm_read(pid: int, spans: list[tuple[int, int]]) -> list[bytes]:
    """Copy ``spans`` of (address, length in bytes) out of ``pid``; all or nothing.

    Raises:
        OSError: EFAULT when a span is not readable, ESRCH or EPERM as the kernel says.
    """
    total = sum(length for _, length in spans)
    buffer = bytearray(total)
    if total:
        _transfer(libc.process_vm_readv, pid, (ctypes.c_char * total).from_buffer(buffer), total, spans)
    parts, at = [], 0
    for _, length in spans:
        parts.append(bytes(buffer[at : at + length]))
        at += length
    return parts


def process_vm_write(pid: int, pieces: list[tuple[int, bytes]]) -> None:
    """Write ``pieces`` of (address, bytes) into ``pid``.

    Raises:
        OSError: EFAULT when a place is not writable (earlier pieces may be written), ESRCH or EPERM.
    """
    data = b"".join(piece for _, piece in pieces)
    if data:
        local = ctypes.create_string_buffer(data, len(data))
        spans = [(address, len(piece)) for address, piece in pieces]
        _transfer(libc.process_vm_writev, pid, local, len(data), spans)


def _transfer(call: object, pid: int, local: object, total: int, spans: list[tuple[int, int]]) -> None:
    assert callable(call)
    start, moved = ctypes.addressof(local), 0  # type: ignore[arg-type]
    for first in range(0, len(spans), IOV_MAX):
        part = [(address, length) for address, length in spans[first : first + IOV_MAX] if length]
        wanted = sum(length for _, length in part)
        if not wanted:
            continue
        remote = (_Iovec * len(part))(*(_Iovec(address, length) for address, length in part))
        mine = _Iovec(start + moved, wanted)
        # SAFETY: `local` has `total` bytes and outlives the call; `mine` stays inside it; the kernel checks `remote`.
        done = check(
            call(
                ctypes.c_int(pid),
                ctypes.byref(mine),
                ctypes.c_ulong(1),
                remote,
                ctypes.c_ulong(len(part)),
                ctypes.c_ulong(0),
            ),
            f"memory of process {pid}",
        )
        if done != wanted:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT), f"memory of process {pid}")
        moved += wanted
    assert moved == total
