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
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import NoReturn

from casemate.sys.process import PR_SET_PDEATHSIG, prctl

MESSAGES_BYTES_MAX = 1 << 20
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
    with ExitStack() as opened:
        gate_read, gate_write = _pipe(opened)
        read_fd, write_fd = _pipe(opened)
        pid = os.fork()
        if pid == 0:
            _child(work, write_fd, gate_read, parent)
        return _parent(pid, read_fd, gate_write, deadline_s)


def _pipe(opened: ExitStack) -> tuple[int, int]:
    ends = os.pipe2(os.O_CLOEXEC)
    for fd in ends:
        opened.callback(os.close, fd)
    return ends


def _child(work: Work, write_fd: int, gate_read: int, parent: int) -> NoReturn:
    """The child's whole life; it leaves only through _exit, so that nothing of the parent's runs twice.

    It waits for a byte: a program that ignores SIGCHLD would otherwise lose it before there is a pidfd.
    """
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent and os.read(gate_read, 1):
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


def _parent(pid: int, read_fd: int, gate_write: int, deadline_s: float) -> ChildResult:
    """Take the answer, kill the child if it is late, reap it in any case."""
    pidfd, ended = -1, None
    try:
        pidfd = os.pidfd_open(pid)
        os.write(gate_write, b"g")
        data, complete = _receive(read_fd, pidfd, time.monotonic() + deadline_s)
        ended = _reap(pidfd) if complete else None
        if ended is None:  # late, or it answered and lives on
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            ended = _reap(pidfd)
    except BaseException:
        _abandon(pid, pidfd)
        raise
    finally:
        if pidfd >= 0:
            os.close(pidfd)
    step, kind, content = decode_messages(data)
    if ended is None:
        return ChildResult(Outcome.STUCK, step, f"process {pid} did not die within {REAP_S} s of SIGKILL")
    if not complete:
        return ChildResult(Outcome.TIMED_OUT, step, f"killed after {deadline_s} s")
    if kind == b"r":
        return ChildResult(Outcome.DONE, step, "", content)
    return ChildResult(Outcome.DIED, step, content.decode(errors="replace") if kind == b"e" else ended)


def _receive(read_fd: int, pidfd: int, deadline: float) -> tuple[bytes, bool]:
    """Everything up to the child's end; False when the deadline or the size limit came first.

    The end of the pipe does not count: another thread's child may hold a copy of its writing end.
    """
    data = bytearray()
    os.set_blocking(read_fd, False)
    poller = select.poll()
    poller.register(read_fd, select.POLLIN)
    poller.register(pidfd, select.POLLIN)
    while (left_s := deadline - time.monotonic()) > 0:
        ready = {fd for fd, _ in poller.poll(left_s * 1000)}
        if pidfd in ready:  # all it wrote is in the pipe now
            while chunk := _read_some(read_fd):
                data += chunk
                if len(data) > MESSAGES_BYTES_MAX:
                    return bytes(data), False
            return bytes(data), True
        if read_fd in ready:
            chunk = _read_some(read_fd)
            data += chunk
            if not chunk:
                poller.unregister(read_fd)
            if len(data) > MESSAGES_BYTES_MAX:
                break
    return bytes(data), False


def _read_some(fd: int) -> bytes:
    """What is in the pipe now; empty at its end or when there is nothing."""
    try:
        return os.read(fd, 65536)
    except BlockingIOError:
        return b""


def decode_messages(data: bytes) -> tuple[str, bytes, bytes]:
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


def _abandon(pid: int, pidfd: int) -> None:
    """Kill and reap on the way out of an error (Ctrl-C, no descriptor left for a pidfd)."""
    with suppress(OSError):
        if pidfd >= 0:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            _reap(pidfd)
            return
        # Raises when the child is no longer ours (reaped by the kernel): then the pid may be anybody's.
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
