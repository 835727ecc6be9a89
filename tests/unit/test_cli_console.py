"""The console session on real terminals and pipes, with a socket in the guest's place."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SESSION = """
import os, signal, socket, sys
from casemate.cli.console import Interrupts, session
from casemate.engine.control import Attachment
connection = socket.socket(fileno=int(sys.argv[1]))
what = sys.argv[2]
def on_signal(number):
    if what == "raise":
        raise RuntimeError("on purpose")
    if what != "silent":
        print(f"<signal {number}>", flush=True)
    return what in ("leave", "silent")
with Interrupts() as interrupts:
    outcome = session(Attachment(connection, b"<backlog>"), interrupts, on_signal)
print(f"<{outcome.name}>", flush=True)
"""


class Session:
    """A session in a child: ``guest`` is the other end of its connection."""

    def __init__(self, what: str = "leave", *, terminal: bool = True, **more: object) -> None:
        self.guest, theirs = socket.socketpair()
        self.leader, self.follower = pty.openpty()
        self.before = termios.tcgetattr(self.follower)
        stdin = self.follower if terminal else more.pop("stdin", subprocess.PIPE)
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", SESSION, str(theirs.fileno()), what],
            stdin=stdin,  # type: ignore[call-overload]
            stdout=more.pop("stdout", self.follower if terminal else subprocess.PIPE),
            stderr=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.follower)[3] & termios.ICANON

    def await_raw(self) -> None:
        end = time.monotonic() + 20
        while not self.is_raw():
            assert time.monotonic() < end
            assert self.process.poll() is None
            time.sleep(0.01)

    def shown(self, wanted: bytes) -> bytes:
        """Read the terminal until ``wanted`` has come."""
        seen = b""
        end = time.monotonic() + 20
        while wanted not in seen:
            assert time.monotonic() < end, seen
            if select.select([self.leader], [], [], 0.1)[0]:
                seen += os.read(self.leader, 65536)
        return seen

    def type(self, data: bytes) -> None:
        os.write(self.leader, data)

    def heard(self, count: int) -> bytes:
        self.guest.settimeout(20)
        data = b""
        while len(data) < count:
            data += self.guest.recv(count - len(data))
        return data

    def is_restored(self) -> bool:
        return termios.tcgetattr(self.follower) == self.before

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=20)
        for descriptor in (self.leader, self.follower):
            os.close(descriptor)
        self.guest.close()


@pytest.fixture
def session() -> Iterator[Session]:
    running = Session()
    yield running
    running.close()


def test_bytes_go_both_ways_and_backlog_comes_first(session: Session) -> None:
    session.await_raw()
    session.guest.sendall(b"hello\r\n")
    assert session.shown(b"hello\r\n").startswith(b"<backlog>hello")
    session.type(b"ls\r\x03\x1a\x04\x1b[A")
    assert session.heard(9) == b"ls\r\x03\x1a\x04\x1b[A"  # Ctrl-C, Ctrl-Z and Ctrl-D are the guest's
    session.guest.close()
    assert b"<ENDED>" in session.shown(b"<ENDED>")
    assert session.process.wait(timeout=20) == 0
    assert session.is_restored()


def test_what_was_typed_ahead_reaches_the_guest(session: Session) -> None:
    session.type(b"early")
    assert session.heard(5) == b"early"


def test_ctrl_bracket_leaves_and_restores_the_terminal(session: Session) -> None:
    session.await_raw()
    session.type(b"\x1d")
    session.shown(b"<LEFT>")
    assert session.process.wait(timeout=20) == 0
    assert session.is_restored()
    assert session.guest.recv(10) == b""


def test_guest_cannot_act_on_the_terminal(session: Session) -> None:
    session.await_raw()
    session.guest.sendall(b"a\x1b]52;c;ZXZpbA==\x07b\x1b[31mc")
    assert session.shown(b"mc") == b"<backlog>ab\x1b[31mc"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_and_restores(session: Session, number: signal.Signals) -> None:
    session.await_raw()
    session.process.send_signal(number)
    session.shown(b"<LEFT>")
    assert session.process.wait(timeout=20) == 0
    assert session.is_restored()


def test_an_exception_restores() -> None:
    session = Session("raise")
    try:
        session.await_raw()
        session.process.send_signal(signal.SIGTERM)
        assert session.process.wait(timeout=20) == 1
        assert session.is_restored()
    finally:
        session.close()


def test_a_signal_that_does_not_leave_goes_on() -> None:
    session = Session("stay")
    try:
        session.await_raw()
        session.process.send_signal(signal.SIGINT)
        session.shown(b"<signal 2>")
        session.guest.sendall(b"still here")
        session.shown(b"still here")
    finally:
        session.close()


def test_raw_again_after_being_stopped(session: Session) -> None:
    session.await_raw()
    session.process.send_signal(signal.SIGSTOP)
    termios.tcsetattr(session.follower, termios.TCSANOW, session.before)
    assert not session.is_raw()
    session.process.send_signal(signal.SIGCONT)
    session.await_raw()


def test_a_lost_terminal_leaves() -> None:
    """The window was closed: stdin is at its end."""
    session = Session("stay")
    try:
        session.await_raw()
        os.close(session.leader)
        session.leader = os.open(os.devnull, os.O_RDWR)
        # The pty keeps a follower open in this process; what the program sees is the hang-up of its leader.
        assert session.process.wait(timeout=20) in (0, 1)
        assert session.guest.recv(10) == b""
    finally:
        session.close()


def test_a_closed_window_ends_a_session_without_an_error(tmp_path: Path) -> None:
    """A real hang-up of a controlling terminal: SIGHUP and SIGCONT, and every call on it fails from then on."""
    guest, theirs = socket.socketpair()
    report = tmp_path / "report"
    pid, leader = pty.fork()
    if pid == 0:
        os.set_inheritable(theirs.fileno(), True)
        script = SESSION.replace(
            'print(f"<{outcome.name}>", flush=True)', f"open({str(report)!r}, 'w').write(outcome.name)"
        )
        os.execv(sys.executable, [sys.executable, "-u", "-c", script, str(theirs.fileno()), "silent"])
    theirs.close()
    seen = b""
    while b"<backlog>" not in seen:
        seen += os.read(leader, 4096)
    guest.sendall(b"x")
    os.close(leader)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert report.read_text() == "LEFT"
    guest.close()


def test_the_terminal_is_usable_after_a_guest_that_changed_its_modes(session: Session) -> None:
    session.await_raw()
    session.guest.sendall(b"\x1b[?1003h\x1b[?25l\x1b(0")
    session.shown(b"\x1b(0")
    session.type(b"\x1d")
    shown = session.shown(b"<LEFT>")
    assert shown.startswith(b"\x1b(B")  # letters again
    assert b"\x1b[?25h" in shown  # the cursor
    assert re.search(rb"\x1b\[\?[0-9;]*\b1003\b[0-9;]*l", shown)  # no reports of the mouse


def test_without_a_terminal_input_is_passed_on_and_its_end_is_not_the_end() -> None:
    session = Session(terminal=False)
    try:
        assert session.process.stdin is not None
        assert session.process.stdout is not None
        session.process.stdin.write(b"poweroff\n\x1d")
        session.process.stdin.close()
        assert session.heard(10) == b"poweroff\n\x1d"  # Ctrl-] has a meaning on terminals only
        session.guest.sendall(b"bye \x1b]0;t\x07")
        session.guest.close()
        assert session.process.stdout.read() == b"<backlog>bye \x1b]0;t\x07<ENDED>\n"
        session.process.stdin = None
    finally:
        session.close()


def test_a_guest_that_reads_nothing_does_not_stop_its_output() -> None:
    session = Session(terminal=False, stdin=subprocess.PIPE)
    try:
        assert session.process.stdin is not None
        assert session.process.stdout is not None
        os.set_blocking(session.process.stdin.fileno(), False)
        written = 0
        while written < 1 << 20:  # more than all buffers on the way hold
            if not select.select([], [session.process.stdin], [], 1)[1]:
                break
            written += os.write(session.process.stdin.fileno(), b"x" * 4096)
        assert written < 1 << 20
        session.guest.sendall(b"output")
        os.set_blocking(session.process.stdout.fileno(), True)
        assert os.read(session.process.stdout.fileno(), 100).startswith(b"<backlog>")
    finally:
        session.close()


def test_a_reader_that_goes_away_is_a_broken_pipe() -> None:
    read_end, write_end = os.pipe()
    session = Session(terminal=False, stdin=subprocess.DEVNULL, stdout=write_end)
    try:
        os.close(write_end)
        os.close(read_end)
        session.guest.sendall(b"x" * 100)
        _, errors = session.process.communicate(timeout=20)
        assert b"BrokenPipeError" in errors
    finally:
        session.close()
