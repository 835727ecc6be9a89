"""The caller's side of the control protocol that ``engine/supervise.py`` draws: one JSON object per line.

The socket lies in a directory of mode 0700 that belongs to the caller, so who answers is the caller's own supervisor.
Every answer is bounded and has a deadline.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import time
from typing import Any

import msgspec

from casemate.engine import files, state
from casemate.engine.follow import ring_end
from casemate.engine.paths import Paths
from casemate.engine.state import Definition, Exit
from casemate.errors import InputError, VmError

ANSWER_MAX_BYTES = 1 << 20
ANSWER_DEADLINE_S = 15.0
ATTACH_TRIES = 5
_TIMEVAL = struct.Struct("ll")


class Attachment:
    """A console connection: ``backlog`` is what the guest printed before, ``socket`` carries all that follows.

    Whoever holds it closes the socket. End of file means that the VM ended, or that we read too slowly.
    """

    def __init__(self, connection: socket.socket, backlog: bytes) -> None:
        self.socket = connection
        self.backlog = backlog


def connect(paths: Paths, definition: Definition) -> socket.socket:
    """A connection to the VM's supervisor.

    Raises:
        InputError: the VM is not running. VmError: its supervisor takes no connection.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Python's own time-out makes the socket non-blocking, and then a queue that is full for a moment is an error.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(int(ANSWER_DEADLINE_S), 0))
    try:
        # A Unix socket's path has at most 107 bytes; a long one is reached through its directory's descriptor.
        directory = os.open(paths.vm_runtime(definition.id), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            connection.connect(f"/proc/self/fd/{directory}/control.sock")
        finally:
            os.close(directory)
        connection.settimeout(ANSWER_DEADLINE_S)
    except BlockingIOError:
        connection.close()
        raise VmError("the supervisor takes no connection", got=f"nothing within {ANSWER_DEADLINE_S:.0f} s") from None
    except OSError:
        connection.close()
        raise not_running(paths, definition) from None
    return connection


def not_running(paths: Paths, definition: Definition) -> InputError:
    """The error that says what the VM is doing instead."""
    found = state.look(paths, definition).state
    return InputError(
        f"{definition.name} is not running",
        got=f"state {found}",
        next_step=f"casemate start {definition.name}",
    )


def ask(connection: socket.socket, verb: str, **fields: Any) -> tuple[dict[str, Any], bytes]:
    """Send one request and read its answer.

    Returns:
        the answer, and bytes that came right behind it (console output after ``attach``).

    Raises:
        VmError: the supervisor refused it, answered nonsense, or did not answer in time.
    """
    try:
        connection.sendall(json.dumps({"do": verb, **fields}).encode() + b"\n")
    except OSError as fault:
        raise _no_answer(verb, fault) from None
    return _answer(connection, verb)


def read_answer(connection: socket.socket, verb: str) -> dict[str, Any]:
    """The answer to a request that was sent before; errors of `ask`."""
    return _answer(connection, verb)[0]


def _no_answer(verb: str, fault: Exception) -> VmError:
    return VmError(f"the supervisor did not answer to {verb}", got=str(fault) or type(fault).__name__)


def _answer(connection: socket.socket, verb: str) -> tuple[dict[str, Any], bytes]:
    try:
        line, rest = _read_line(connection)
        answer = msgspec.json.decode(line)
    except (OSError, msgspec.MsgspecError) as fault:
        raise _no_answer(verb, fault) from None
    if not isinstance(answer, dict) or "error" in answer:
        said = answer.get("error") if isinstance(answer, dict) else answer
        raise VmError(f"{verb} failed", got=str(said)[:400])
    return answer, rest


def request(paths: Paths, definition: Definition, verb: str, **fields: Any) -> dict[str, Any]:
    """One request on a connection of its own; errors of `connect` and `ask`."""
    with connect(paths, definition) as connection:
        return ask(connection, verb, **fields)[0]


def _read_line(connection: socket.socket) -> tuple[bytes, bytes]:
    data = bytearray()
    end = time.monotonic() + ANSWER_DEADLINE_S
    while b"\n" not in data:
        connection.settimeout(max(0.001, end - time.monotonic()))
        chunk = connection.recv(65536)
        if not chunk:
            raise ConnectionError("the connection was closed")
        data += chunk
        if len(data) > ANSWER_MAX_BYTES:
            raise ConnectionError(f"an answer of more than {ANSWER_MAX_BYTES} bytes")
    line, _, rest = bytes(data).partition(b"\n")
    return line, rest


class EndWatch:
    """Waits for the end of one run. Made while the VM runs, it also learns the end of a VM that deletes itself.

    The definition, and exit.json with it, of a ``--rm`` VM is gone by then; its event log, opened before, is not.
    """

    def __init__(self, paths: Paths, definition: Definition) -> None:
        self._paths, self._definition = paths, definition
        self._events = f"{paths.vm_data(definition.id)}/events.jsonl"
        self._log = -1
        self._connection: socket.socket | None = None
        self._connect()

    def _connect(self) -> None:
        try:
            connection = connect(self._paths, self._definition)
        except InputError:
            return  # it has ended, or never ran, or is about to start: `wait` tells which
        try:
            ask(connection, "wait")
        except VmError:
            connection.close()
            return
        self._reopen_log()  # an answer means that the supervisor has opened it
        self._connection = connection

    def wait(self, timeout_s: float | None = None) -> Exit | None:
        """How the run ended; None when ``timeout_s`` passed first.

        Raises:
            InputError: the VM was never started.
            VmError: how it ended cannot be known.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = 1.0 if end is None else min(1.0, end - time.monotonic())
            if left_s <= 0:
                return None
            if self._connection is None:
                if state.look(self._paths, self._definition).state in state.AT_REST:
                    return self._result()
                time.sleep(min(0.05, left_s))
                self._connect()
            elif select.select([self._connection], [], [], left_s)[0] and not self._connection.recv(4096):
                self.close_connection()
            elif self._definition.remove_on_exit:
                self._reopen_log()

    def close_connection(self) -> None:
        """Stop listening to the supervisor."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        """Close everything."""
        self.close_connection()
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    def _reopen_log(self) -> None:
        """Follow the event log through its rotation."""
        try:
            if self._log >= 0 and os.stat(self._events).st_ino == os.fstat(self._log).st_ino:
                return
            fresh = os.open(self._events, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return
        if self._log >= 0:
            os.close(self._log)
        self._log = fresh

    def _result(self) -> Exit:
        vm = state.look(self._paths, self._definition)
        if vm.exit is not None:
            return vm.exit
        ended = self._last_exit_event()
        if ended is not None:
            return ended
        if os.path.exists(f"{self._paths.vm_data(self._definition.id)}/definition.json"):
            raise InputError(
                f"{self._definition.name} has not run yet", next_step=f"casemate start {self._definition.name}"
            )
        raise VmError(f"{self._definition.name} was removed and left no word of how it ended")

    def _last_exit_event(self) -> Exit | None:
        if self._log < 0:
            return None
        for line in reversed(ring_end([self._log], 4).splitlines()):
            try:
                event = msgspec.json.decode(line)
            except msgspec.MsgspecError:
                continue
            if isinstance(event, dict) and event.get("event") == "exit":
                code = event.get("code", 0)  # the log leaves zeros out
                return Exit(str(event.get("reason", "")), code if isinstance(code, int) else 5, str(event.get("time")))
        return None


def attach(paths: Paths, definition: Definition, *, backlog: bool) -> Attachment:
    """Connect to the console.

    Args:
        backlog: bring what the log holds already. Between log and connection no byte is lost or doubled: the log's
            size before and after the answer brackets the moment from which the connection carries the bytes.

    Raises:
        InputError, VmError: not running, or the supervisor refuses.
    """
    log = f"{paths.vm_data(definition.id)}/console.log"
    for attempt in range(ATTACH_TRIES):
        connection = connect(paths, definition)
        try:
            before = _log_mark(log)
            _, rest = ask(connection, "attach")
            after = _log_mark(log)
            if not backlog:
                connection.settimeout(None)
                return Attachment(connection, rest)
            quiet = before == after
            if quiet or attempt == ATTACH_TRIES - 1:
                if not quiet:
                    rest += _arrived(connection)
                connection.settimeout(None)
                return Attachment(connection, join(_read_log(log, after), rest, after[1] - before[1]))
        except BaseException:
            connection.close()
            raise
        connection.close()
    raise AssertionError("the last attempt returns")


def join(log: bytes, stream: bytes, at_most: int) -> bytes:
    """``log`` and ``stream`` without the part, ``at_most`` bytes long, that both hold."""
    for length in range(min(at_most, len(log), len(stream)), 0, -1):
        if log.endswith(stream[:length]):
            return log + stream[length:]
    return log + stream


def _log_mark(path: str) -> tuple[int, int]:
    """Inode and size of the log's newer half."""
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0)
    return (found.st_ino, found.st_size)


def _read_log(path: str, mark: tuple[int, int]) -> bytes:
    older, newer = b"", b""
    try:
        with open(path, "rb") as file:
            same = os.fstat(file.fileno()).st_ino == mark[0]
            newer = file.read(mark[1] if same else files.READ_MAX_BYTES)
        with open(f"{path}.1", "rb") as file:
            older = file.read(files.READ_MAX_BYTES)
    except OSError:
        pass
    return older + newer


def _arrived(connection: socket.socket) -> bytes:
    """What the connection has brought within a moment, enough to cover what the log held when it was looked at."""
    data = bytearray()
    while len(data) < 1 << 18 and select.select([connection], [], [], 0.05)[0]:
        chunk = connection.recv(65536)
        if not chunk:
            break
        data += chunk
    return bytes(data)
