"""The measuring VM while it runs: QMP, console, trace and network peers in one loop, all bounded, with one deadline.

Owns nothing: who made the descriptors closes them.
"""

from __future__ import annotations

import os
import re
import select
import socket
import time
from collections.abc import Callable
from typing import Any, Final

from casemate.engine import qmp
from casemate.engine.measure_count import TraceCounter
from casemate.errors import VmError

_FRAME_MAX_BYTES: Final = 1 << 17
_CONSOLE_MAX_BYTES: Final = 1 << 16
_ANSWER_S: Final = 30.0
_ANSWERS_MAX: Final = 64
_ANSWER: Final = re.compile(r"cm (ready|done|fault)\b.*")


class Peer:
    """The other end of a network card's cable: QEMU's ``stream`` back end puts a length of 4 bytes before each frame.

    ``frames``, ``payload_bytes``: what came out of the guest.
    """

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.frames = 0
        self.payload_bytes = 0
        self._pending = b""

    def feed(self, data: bytes) -> None:
        """Count the frames in what came.

        Raises:
            VmError: a length that no frame has.
        """
        self._pending += data
        while len(self._pending) >= 4:
            length = int.from_bytes(self._pending[:4], "big")
            if not 0 < length <= _FRAME_MAX_BYTES:
                raise VmError("the emulator sends frames that make no sense", got=f"a frame of {length} bytes")
            if len(self._pending) < 4 + length:
                return
            self.frames += 1
            self.payload_bytes += length
            self._pending = self._pending[4 + length :]


class Link:
    """One running VM."""

    def __init__(
        self, pidfd: int, control: socket.socket, console: socket.socket, log_fd: int, peers: dict[str, Peer]
    ) -> None:
        self.counter = TraceCounter()
        self.answers: list[str] = []
        self.log_tail = b""
        self._control, self._console, self._log_fd = control, console, log_fd
        self._reader = qmp.LineReader()
        self._text = b""
        self._replies: dict[int, dict[str, Any]] = {}
        self._next_id = 5000
        self._peers = {peer.link.fileno(): peer for peer in peers.values()}
        self._poller = select.poll()
        self._pidfd = pidfd
        for end in (control, console, *(peer.link for peer in peers.values())):
            end.setblocking(False)
        os.set_blocking(log_fd, False)
        for descriptor in (pidfd, control.fileno(), console.fileno(), log_fd, *self._peers):
            self._poller.register(descriptor, select.POLLIN)

    def run_until(self, done: Callable[[], bool], waiting_for: str, deadline_s: float = _ANSWER_S) -> None:
        """Take everything that comes until ``done``.

        Raises:
            VmError: the VM ended, broke a protocol, or was too slow.
        """
        end = time.monotonic() + deadline_s
        while not done():
            left = end - time.monotonic()
            if left <= 0:
                raise VmError(f"the measuring guest was too slow: no {waiting_for}", got=self._last_words())
            for descriptor, _ in self._poller.poll(left * 1000):
                self._take(descriptor, waiting_for)

    def rest(self, seconds: float) -> None:
        """Let what is under way arrive."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            for descriptor, _ in self._poller.poll(left * 1000):
                self._take(descriptor, "nothing")

    def command(self, question: str, **arguments: Any) -> Any:
        """One QMP command and its answer.

        Raises:
            VmError: it was refused; errors of `run_until`.
        """
        self._next_id += 1
        identifier = self._next_id
        self._send(self._control, qmp.encode_command(question, arguments or None, identifier))
        self.run_until(lambda: identifier in self._replies, f"answer to {question}")
        try:
            return qmp.return_of(self._replies.pop(identifier), question)
        except qmp.QmpError as fault:
            raise VmError("the emulator refused a command", got=str(fault)) from fault

    def ask(self, request: str, deadline_s: float = _ANSWER_S) -> str:
        """One request to the guest's init; the words after ``cm done``.

        Raises:
            VmError: the guest complained; errors of `run_until`.
        """
        self.answers.clear()
        self._send(self._console, request.encode("ascii") + b"\n")
        self.run_until(lambda: bool(self.answers), f"answer to {request!r}", deadline_s)
        answer = self.answers.pop(0)
        if not answer.startswith("cm done"):
            raise VmError(f"the measuring guest could not {request!r}", got=answer[:120])
        return answer.removeprefix("cm done").strip()

    def send_frame(self, peer: Peer, frame: bytes) -> None:
        """Put one frame on the cable."""
        self._send(peer.link, len(frame).to_bytes(4, "big") + frame)

    def _send(self, link: socket.socket, data: bytes) -> None:
        left = data
        end = time.monotonic() + _ANSWER_S
        while left:
            try:
                left = left[link.send(left) :]
            except BlockingIOError:
                if time.monotonic() > end:
                    raise VmError("the measuring VM takes nothing any more", got=self._last_words()) from None
                self.rest(0.01)
            except OSError as fault:
                raise VmError("the measuring VM has ended", got=f"{fault}; {self._last_words()}") from None

    def _take(self, descriptor: int, waiting_for: str) -> None:
        if descriptor == self._pidfd:
            raise VmError(f"the measuring VM ended while waiting for {waiting_for}", got=self._last_words())
        try:
            data = os.read(descriptor, 1 << 16)
        except (BlockingIOError, ConnectionResetError):
            return
        if not data:
            self._poller.unregister(descriptor)
        elif descriptor == self._log_fd:
            self.counter.feed(data)
            self.log_tail = (self.log_tail + data)[-2000:]
        elif descriptor == self._console.fileno():
            self._listen(data)
        elif descriptor in self._peers:
            self._peers[descriptor].feed(data)
        else:
            try:
                messages = self._reader.feed(data)
            except qmp.QmpError as fault:
                raise VmError("the emulator does not speak QMP", got=str(fault)) from fault
            for message in messages:
                identifier = message.get("id")
                if type(identifier) is int and identifier == self._next_id:
                    self._replies[identifier] = message

    def _listen(self, data: bytes) -> None:
        *lines, self._text = (self._text + data).split(b"\n")
        self._text = self._text[-_CONSOLE_MAX_BYTES:]
        for line in lines:
            # The firmware leaves control sequences before the first line.
            found = _ANSWER.search(line.decode("ascii", "replace").strip())
            if found is not None and len(self.answers) < _ANSWERS_MAX:
                self.answers.append(found[0][:400])

    def _last_words(self) -> str:
        text = self.log_tail.decode("utf-8", "replace").strip().splitlines()
        return "".join(char for char in (text[-1] if text else "") if char.isprintable())[:300]
