"""The supervisor's end of QMP: commands with a deadline, replies by id, events. Never waits. Standard library only."""

from __future__ import annotations

import struct
import time
from socket import SCM_RIGHTS, SOL_SOCKET

from casemate.engine import qmp

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

    Answer = Callable[[dict[str, Any]], None]

REPLY_DEADLINE_S = 5.0
LINE_MAX_BYTES = 256 * 1024
OUTPUT_MAX_BYTES = 64 * 1024


class QmpLink:
    """One emulator. ``on_event`` gets each event; a broken protocol raises `qmp.QmpError` out of `read`."""

    def __init__(self, link: socket.socket, on_event: Callable[[dict[str, Any]], None]) -> None:
        self.socket = link
        self.socket.setblocking(False)
        self._on_event = on_event
        self._reader = qmp.LineReader(LINE_MAX_BYTES)
        self._output = bytearray()
        self._waiting: dict[int, tuple[float, Answer]] = {}
        self._next_id = 1000  # the launch used the numbers below

    @property
    def wants_to_write(self) -> bool:
        """Whether the caller should poll for POLLOUT."""
        return bool(self._output)

    def command(
        self, name: str, answer: Answer, arguments: dict[str, Any] | None = None, *, descriptor: int = -1
    ) -> None:
        """Send a command; ``answer`` is called once: with the reply, or with an error after `REPLY_DEADLINE_S`.

        Args:
            descriptor: goes along (SCM_RIGHTS), for ``getfd``; it stays the caller's.
        """
        self._next_id += 1
        line = qmp.encode_command(name, arguments, self._next_id)
        if len(self._output) + len(line) > OUTPUT_MAX_BYTES:
            answer(_error("the emulator does not read its QMP socket"))
            return
        if descriptor >= 0 and not self._send_with(line, descriptor):
            answer(_error("the emulator does not take a descriptor now"))
            return
        self._waiting[self._next_id] = (time.monotonic() + REPLY_DEADLINE_S, answer)
        if descriptor >= 0:
            return
        self._output += line
        self.flush()

    def _send_with(self, line: bytes, descriptor: int) -> bool:
        """Whole or not at all: a descriptor belongs to the bytes beside it."""
        rights = [(SOL_SOCKET, SCM_RIGHTS, struct.pack("i", descriptor))]
        try:
            return not self._output and self.socket.sendmsg([line], rights) == len(line)
        except OSError:
            return False

    def flush(self) -> None:
        """Send what the socket takes."""
        try:
            while self._output:
                sent = self.socket.send(self._output)
                del self._output[:sent]
        except BlockingIOError:
            return
        except OSError:
            self._output.clear()  # the emulator is ending; its pidfd says so

    def read(self) -> bool:
        """Take what has arrived.

        Returns:
            False at the end of the connection.

        Raises:
            QmpError: the emulator broke the protocol.
        """
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        return self.take(data)

    def take(self, data: bytes) -> bool:
        """Bytes of the connection, also those that somebody else read before this object was there.

        Returns:
            True: the connection goes on.

        Raises:
            QmpError: the emulator broke the protocol.
        """
        for message in self._reader.feed(data):
            if isinstance(message.get("event"), str):
                self._on_event(message)
                continue
            identifier = message.get("id")
            # bool is an int, and True would match 1: an id is matched by its type too.
            if type(identifier) is int and identifier in self._waiting:
                self._waiting.pop(identifier)[1](message)
        return True

    def next_deadline(self) -> float | None:
        """When `expire` should be called next, on the monotonic clock."""
        return min((end for end, _ in self._waiting.values()), default=None)

    def expire(self, now: float) -> None:
        """Give up on replies that are overdue."""
        for identifier in [i for i, (end, _) in self._waiting.items() if now >= end]:
            _, answer = self._waiting.pop(identifier)
            answer(_error("the emulator did not answer in time"))


def _error(text: str) -> dict[str, Any]:
    return {"error": {"desc": text}}
