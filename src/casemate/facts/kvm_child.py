"""Run a piece of work in a forked child with a deadline, and take its answer through a bounded pipe.

Messages on the pipe: kind (1 byte: ``s`` step name, ``r`` result, ``e`` error text), length (u32), content. The child
is killed through its pidfd at the deadline, dies with its parent, and holds none of the parent's descriptors above 2.
"""

from __future__ import annotations

import enum
import os
import resource
import select
import signal
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from casemate.sys.process import PR_SET_PDEATHSIG, prctl

RESULT_BYTES_MAX = 1 << 20
REAP_S = 2.0
"""How long a killed child may take to die; one that is stuck in the kernel is left behind and reported."""

Work = Callable[[Callable[[str], None]], bytes]
"""Work gets a function that names the current step, and returns its result."""


class Outcome(enum.StrEnum):
    """How the child ended: with a result, by itself without one, killed at the deadline, or not even then."""

    DONE = "done"
    DIED = "died"
    TIMED_OUT = "timed out"
    STUCK = "stuck"


@dataclass(frozen=True, slots=True)
class ChildResult:
    """``result`` is set when DONE; else ``detail`` is the error text or how the child ended. ``step``: last named."""

    outcome: Outcome
    step: str
    detail: str = ""
    result: bytes = b""


def run_in_child(work: Work, deadline_s: float) -> ChildResult:
    """Fork, run ``work`` there, wait for its answer at most ``deadline_s``, reap the child.

    Raises:
        OSError: no child or no pipe was to be had.
    """
    parent = os.getpid()
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    pid = -1
    try:
        pid = os.fork()
        if pid == 0:
            _child(work, write_fd, parent)
    finally:
        if pid != 0:
            os.close(write_fd)
            if pid < 0:
                os.close(read_fd)
    try:
        return _parent(pid, read_fd, deadline_s)
    finally:
        os.close(read_fd)


def _child(work: Work, write_fd: int, parent: int) -> NoReturn:
    """The child's whole life; it leaves only through _exit, so that nothing of the parent's runs twice."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            os.closerange(3, write_fd)
            os.closerange(write_fd + 1, 1 << 20)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            result = work(lambda name: _send(write_fd, b"s", name.encode()))
            _send(write_fd, b"r", result)
            status = 0
    except BaseException as fault:
        with suppress(BaseException):
            _send(write_fd, b"e", f"{type(fault).__name__}: {fault}".encode()[:2000])
    finally:
        os._exit(status)


def _send(fd: int, kind: bytes, content: bytes) -> None:
    message = memoryview(kind + struct.pack("<I", len(content)) + content)
    while message:
        message = message[os.write(fd, message) :]


def _parent(pid: int, read_fd: int, deadline_s: float) -> ChildResult:
    pidfd = -1
    reaped = False
    try:
        pidfd = os.pidfd_open(pid)
        data, complete = _receive(read_fd, time.monotonic() + deadline_s)
        step, kind, content = _decode(data)
        if not complete:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        status = _reap(pidfd)
        reaped = status is not None
        if not reaped and complete:  # it closed the pipe and lives on: not ours to believe
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            status = _reap(pidfd)
            reaped = status is not None
    finally:
        if not reaped:
            _abandon(pid)
        if pidfd >= 0:
            os.close(pidfd)
    if status is None:
        return ChildResult(Outcome.STUCK, step, f"process {pid} did not die within {REAP_S} s of SIGKILL")
    if not complete:
        return ChildResult(Outcome.TIMED_OUT, step, f"killed after {deadline_s} s")
    if kind == b"r":
        return ChildResult(Outcome.DONE, step, "", content)
    detail = content.decode(errors="replace") if kind == b"e" else status
    return ChildResult(Outcome.DIED, step, detail)


def _receive(read_fd: int, deadline: float) -> tuple[bytes, bool]:
    """Everything up to the end of the pipe; False when the deadline or the size limit came first."""
    data = bytearray()
    poller = select.poll()
    poller.register(read_fd, select.POLLIN)
    while True:
        left_s = deadline - time.monotonic()
        if left_s <= 0 or len(data) > RESULT_BYTES_MAX:
            return bytes(data), False
        if not poller.poll(left_s * 1000):
            continue
        chunk = os.read(read_fd, 65536)
        if not chunk:
            return bytes(data), True
        data += chunk


def _decode(data: bytes) -> tuple[str, bytes, bytes]:
    """The last step named, and kind and content of the last other message (empty when there is none)."""
    step, kind, content = "", b"", b""
    while len(data) >= 5:
        size = struct.unpack_from("<I", data, 1)[0]
        if len(data) < 5 + size:
            break
        if data[:1] == b"s":
            step = data[5 : 5 + size].decode(errors="replace")[:200]
        else:
            kind, content = data[:1], data[5 : 5 + size]
        data = data[5 + size :]
    return step, kind, content


def _reap(pidfd: int) -> str | None:
    """Wait up to REAP_S for the child and reap it; how it ended in words, or None when it still lives."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    if not poller.poll(REAP_S * 1000):
        return None
    try:
        info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:  # the program ignores SIGCHLD: the kernel has reaped it
        return "ended"
    if info is None:
        return None
    return f"exit {info.si_status}" if info.si_code == os.CLD_EXITED else f"signal {info.si_status}"


def _abandon(pid: int) -> None:
    """Kill and, if it goes at once, reap: for the paths that have no pidfd or gave up waiting."""
    with suppress(OSError):
        # The pid is safe: this child of ours has not been reaped.
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, os.WNOHANG)
