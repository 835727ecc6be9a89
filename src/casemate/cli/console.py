"""The console of a VM on this terminal: bytes in both directions until the VM ends or the user leaves.

On a terminal the mode is raw, so every key but Ctrl-] goes to the guest, and it is restored on every way out. Without a
terminal, standard input is passed on as it comes. Nothing depends on the window: its size is not looked at.
"""

from __future__ import annotations

import enum
import errno
import gc
import os
import select
import signal
import socket
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from casemate.cli.terminal import TerminalFilter

if TYPE_CHECKING:
    from casemate.engine.control import Attachment

LEAVE = b"\x1d"
INPUT_BUFFER_MAX_BYTES = 65536
STDIN, STDOUT = 0, 1
_TAME = b"\x1b(B\x0f\x1b[m\x1b[?25h\x1b[?1l\x1b>\x1b[?9;1000;1002;1003;1004;1005;1006;1015;2004l"
"""Undoes what a guest may leave behind and a shell cannot live with: line-drawing characters, colours, a hidden cursor,
keys of the application mode, and mouse and paste reports, which would type into the shell."""


class Outcome(enum.Enum):
    """Why a session is over."""

    ENDED = "the connection ended: the VM did, in all likelihood"
    LEFT = "the user left"


class Interrupts:
    """SIGINT, SIGTERM and SIGHUP as values to be read, so that none strikes between two steps.

    Install it before a VM is started: from then on no signal can leave a VM behind that nobody knows of.
    """

    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.had_terminal = os.isatty(STDIN)  # asked now: a terminal that has been lost says that it is none
        self._before: dict[int, Any] = {}
        self.read_end, self._write_end = -1, -1
        self._old_wakeup = -1

    def __enter__(self) -> Interrupts:
        self.read_end, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for number in self.NUMBERS:
            self._before[number] = signal.signal(number, lambda *_: None)
        self._old_wakeup = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._old_wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.read_end)
        os.close(self._write_end)

    def stay(self) -> None:
        """From here on we wait, perhaps for days: main turned the collector off. What is there now stays as well."""
        gc.freeze()
        gc.enable()

    def take(self) -> list[int]:
        """Signals that came since the last call."""
        try:
            data = os.read(self.read_end, 64)
        except BlockingIOError:
            return []
        return [number for number in data if number in self.NUMBERS]


@contextmanager
def _raw_terminal() -> Iterator[bool]:
    """Raw mode while the block runs, if stdin is a terminal; yields whether it is."""
    if not os.isatty(STDIN):
        yield False
        return
    saved = termios.tcgetattr(STDIN)
    continued = signal.signal(signal.SIGCONT, _raw_again)
    try:
        tty.setraw(STDIN, termios.TCSADRAIN)  # not FLUSH: what was typed ahead is for the guest
        yield True
    finally:
        signal.signal(signal.SIGCONT, continued)
        with suppress(termios.error, OSError):  # the window is closed: nothing to restore
            if os.isatty(STDOUT):
                os.write(STDOUT, _TAME)
            # FLUSH: answers that the guest made the terminal type must not reach the shell.
            termios.tcsetattr(STDIN, termios.TCSAFLUSH, saved)


def _raw_again(*_: object) -> None:
    """After Ctrl-Z and fg. A hang-up sends SIGCONT too, and then there is no terminal any more."""
    with suppress(termios.error, OSError):
        tty.setraw(STDIN)


def session(attachment: Attachment, interrupts: Interrupts, on_signal: Callable[[int], bool]) -> Outcome:
    """Show the console until it ends or the user leaves. Closes the connection.

    Args:
        on_signal: told each signal; True means leave.

    Raises:
        BrokenPipeError: nobody reads our output any more.
    """
    sys.stdout.flush()
    with attachment.socket, _raw_terminal() as is_terminal:
        return _Loop(attachment.socket, is_terminal).run(attachment.first, interrupts, on_signal)


class _Loop:
    def __init__(self, connection: socket.socket, is_terminal: bool) -> None:
        self.connection = connection
        self.connection.setblocking(False)
        self.is_terminal = is_terminal
        utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        self.filter = TerminalFilter(utf8=utf8) if os.isatty(STDOUT) else None
        self.to_guest = bytearray()
        self.has_input = True

    def run(self, first: bytes, interrupts: Interrupts, on_signal: Callable[[int], bool]) -> Outcome:
        try:
            return self._run(first, interrupts, on_signal)
        except OSError as fault:
            if fault.errno != errno.EIO:  # a terminal whose window was closed
                raise
            if self.is_terminal:
                return Outcome.LEFT
            raise BrokenPipeError(fault.errno, fault.strerror) from fault

    def _run(self, first: bytes, interrupts: Interrupts, on_signal: Callable[[int], bool]) -> Outcome:
        self._show(first)
        while True:
            poller = select.poll()
            poller.register(self.connection, select.POLLIN | (select.POLLOUT if self.to_guest else 0))
            poller.register(interrupts.read_end, select.POLLIN)
            if self.has_input and len(self.to_guest) < INPUT_BUFFER_MAX_BYTES:
                poller.register(STDIN, select.POLLIN)
            ready = dict(poller.poll())
            if any(on_signal(number) for number in interrupts.take()):
                return Outcome.LEFT
            if STDIN in ready and not self._take_input():
                return Outcome.LEFT
            if self.connection.fileno() in ready and not self._exchange():
                return Outcome.ENDED

    def _take_input(self) -> bool:
        """Read keys; False when the user leaves, or the terminal is gone."""
        try:
            data = os.read(STDIN, 4096)
        except OSError:
            data = b""
        if not data:
            self.has_input = False
            return not self.is_terminal
        if self.is_terminal and LEAVE in data:
            return False
        self.to_guest += data
        return True

    def _exchange(self) -> bool:
        """Send what the guest should get, show what came; False when the connection has ended."""
        try:
            if self.to_guest:
                sent = self.connection.send(self.to_guest)
                del self.to_guest[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self.to_guest.clear()
        try:
            data = self.connection.recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if data:
            self._show(data)
        return bool(data)

    def _show(self, data: bytes) -> None:
        view = memoryview(self.filter.feed(data) if self.filter else data)
        while view:
            view = view[os.write(STDOUT, view) :]
