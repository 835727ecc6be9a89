"""ptrace(2), for one purpose: read the seccomp filters that are live in a thread of another process.

A tracer is a thread: every call here must come from the same one, and does. PTRACE_SEIZE and PTRACE_INTERRUPT stop a
thread without a signal that it could notice; the detach lets it run on as it was.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from typing import Final

from casemate.sys.libc import libc

_PTRACE_DETACH: Final = 17
_PTRACE_SEIZE: Final = 0x4206
_PTRACE_INTERRUPT: Final = 0x4207
_PTRACE_SECCOMP_GET_FILTER: Final = 0x420C
_PTRACE_EVENT_STOP: Final = 128
_WALL: Final = 0x4000_0000
_INSTRUCTION_BYTES: Final = 8
_MAX_INSTRUCTIONS: Final = 4096
_MAX_FILTERS: Final = 1024
_POLL_S: Final = 0.00005

_ptrace = libc.ptrace
_ptrace.restype = ctypes.c_long


def _call(request: int, tid: int, address: int, data: ctypes.Array[ctypes.c_char] | int | None, what: str) -> int:
    """ptrace(2); data is a number, a buffer or a null pointer."""
    # SAFETY: a buffer passed as data outlives the call; the kernel checks it and the thread id.
    argument = ctypes.c_void_p(data) if isinstance(data, int) else data
    result: int = _ptrace(ctypes.c_long(request), ctypes.c_int(tid), ctypes.c_void_p(address), argument)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"{what} of thread {tid}")
    return result


def live_filters(tid: int, timeout_s: float = 2.0) -> tuple[bytes, ...]:
    """The classic BPF programs of a thread's seccomp filters, the one installed first at index 0.

    The thread is stopped for some tens of microseconds and left as it was found, running or stopped.

    Args:
        tid: thread of another process; the caller must be allowed to trace it.
        timeout_s: how long to wait for the thread to stop (one in an uninterruptible sleep does not).

    Returns:
        One byte string of ``struct sock_filter`` entries (8 bytes each) per filter; empty without a filter.

    Raises:
        OSError: ESRCH no such thread; EPERM not allowed to trace it; EACCES the caller lacks CAP_SYS_ADMIN in the
            initial user namespace or runs under seccomp itself; ETIMEDOUT it did not stop (the trace then ends
            with the calling thread).
    """
    _call(_PTRACE_SEIZE, tid, 0, None, "PTRACE_SEIZE")
    signal = 0
    try:
        _call(_PTRACE_INTERRUPT, tid, 0, None, "PTRACE_INTERRUPT")
        signal = _wait_stopped(tid, time.monotonic() + timeout_s)
        return _read_filters(tid)
    finally:
        _detach(tid, signal)


def _wait_stopped(tid: int, deadline: float) -> int:
    """Wait for the stop; returns the signal that was about to be delivered and must not be lost, or 0.

    Only stops are waited for, never an exit: the exit status of a child belongs to its parent's own wait.
    """
    while True:
        try:
            found = os.waitid(os.P_PID, tid, os.WSTOPPED | os.WNOHANG | _WALL)
        except ChildProcessError:
            raise OSError(errno.ESRCH, os.strerror(errno.ESRCH), f"thread {tid}") from None
        if found is not None:
            status = found.si_status
            is_event = status >> 8 == _PTRACE_EVENT_STOP
            return 0 if is_event else status & 0x7F
        if _is_gone(tid):
            raise OSError(errno.ESRCH, os.strerror(errno.ESRCH), f"thread {tid}")
        if time.monotonic() >= deadline:
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), f"stop of thread {tid}")
        time.sleep(_POLL_S)


def _is_gone(tid: int) -> bool:
    try:
        with open(f"/proc/{tid}/stat", "rb") as stream:
            state = stream.read(512).rpartition(b")")[2].split()[:1]
    except OSError:
        return True
    return state in ([b"Z"], [b"X"])


def _read_filters(tid: int) -> tuple[bytes, ...]:
    programs: list[bytes] = []
    while len(programs) < _MAX_FILTERS:
        try:
            count = _call(_PTRACE_SECCOMP_GET_FILTER, tid, len(programs), None, "PTRACE_SECCOMP_GET_FILTER")
        except OSError as error:
            # ENOENT: past the last one. EINVAL at the first: this thread has no filter at all.
            if error.errno == errno.ENOENT or (error.errno == errno.EINVAL and not programs):
                return tuple(programs)
            raise
        if not 0 < count <= _MAX_INSTRUCTIONS:
            raise OSError(errno.EOVERFLOW, f"filter of {count} instructions", f"thread {tid}")
        buffer = ctypes.create_string_buffer(count * _INSTRUCTION_BYTES)
        # SAFETY: the program of an installed filter never changes, so the buffer has the size the kernel will write.
        _call(_PTRACE_SECCOMP_GET_FILTER, tid, len(programs), buffer, "PTRACE_SECCOMP_GET_FILTER")
        programs.append(buffer.raw)
    raise OSError(errno.EOVERFLOW, f"more than {_MAX_FILTERS} filters", f"thread {tid}")


def _detach(tid: int, signal: int) -> None:
    try:
        _call(_PTRACE_DETACH, tid, 0, signal, "PTRACE_DETACH")
    except OSError as error:
        # ESRCH: it ended, or it never stopped and the error that is under way says so.
        if error.errno != errno.ESRCH:
            raise
