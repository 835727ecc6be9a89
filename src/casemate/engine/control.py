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

from casemate.engine import state
from casemate.engine.paths import Paths
from casemate.engine.state import Definition, Exit
from casemate.errors import InputError, VmError

ANSWER_MAX_BYTES = 1 << 20
ANSWER_DEADLINE_S = 15.0
WORDS_MAX_BYTES = 65536
OVERLAYS_MAX = 16
_TIMEVAL = struct.Struct("ll")


class Attachment:
    """A console connection: ``first`` is what has arrived already, ``socket`` carries all that follows.

    Whoever holds it closes the socket. End of file means that the VM ended, or that we read too slowly.
    """

    def __init__(self, connection: socket.socket, first: bytes = b"") -> None:
        self.socket = connection
        self.first = first


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
    state.refuse_elsewhere(paths, definition)
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


def keys_port(paths: Paths, definition: Definition) -> socket.socket:
    """The host's end of a running VM's port to a key broker; the VM keeps one of its own. The caller closes it.

    Raises:
        InputError: the VM is not running. VmError: it has no such port.
    """
    with connect(paths, definition) as connection:
        try:
            connection.sendall(b'{"do": "keys"}\n')
            line, descriptors, _, _ = socket.recv_fds(connection, 4096, 1)  # short enough to come in one piece
            answer = msgspec.json.decode(line)
        except (OSError, msgspec.MsgspecError) as fault:
            raise _no_answer("keys", fault) from None
    if not isinstance(answer, dict) or "error" in answer or len(descriptors) != 1:
        said = answer.get("error", "no descriptor came along") if isinstance(answer, dict) else answer
        raise VmError(f"{definition.name} has no port to serve", got=str(said)[:400])
    return socket.socket(fileno=descriptors[0])


def overlays(connection: socket.socket, count: int) -> list[int]:
    """After ``save``: descriptors of the VM's overlays, for reading, in the order of its disks. The caller closes them.

    Raises:
        VmError: the supervisor refused it, or has another number of them.
    """
    try:
        connection.sendall(b'{"do": "overlays"}\n')
        line, descriptors, _, _ = socket.recv_fds(connection, 4096, OVERLAYS_MAX, socket.MSG_CMSG_CLOEXEC)
        answer = msgspec.json.decode(line)
    except (OSError, msgspec.MsgspecError) as fault:
        raise _no_answer("overlays", fault) from None
    if not isinstance(answer, dict) or "error" in answer or len(descriptors) != count:
        for descriptor in descriptors:
            os.close(descriptor)
        said = answer.get("error", f"{len(descriptors)} descriptors") if isinstance(answer, dict) else answer
        raise VmError("the overlays cannot be saved", got=str(said)[:400], expected=f"{count} descriptors")
    return descriptors


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
    """Waits for the end of one run, of which its supervisor brings word: a VM that deletes itself leaves no file.

    Args:
        connection: to the supervisor, which counts it among those that wait; without it one is made while the VM runs.
    """

    def __init__(self, paths: Paths, definition: Definition, connection: socket.socket | None = None) -> None:
        self._paths, self._definition = paths, definition
        self._connection = connection
        self._words = b""
        self._was_heard = connection is not None
        if connection is None:
            self._connect()

    def _connect(self) -> None:
        try:
            connection = connect(self._paths, self._definition)
        except InputError:
            return  # it has ended, or never ran, or is about to start: `wait` tells which
        try:
            _, self._words = ask(connection, "wait")
        except VmError:
            connection.close()
            return
        self._connection, self._was_heard = connection, True

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
                told = self._told()
                if told is not None:
                    return told
                if state.look(self._paths, self._definition).state in state.AT_REST:
                    return self._result()
                time.sleep(min(0.05, left_s))
                self._connect()
            elif select.select([self._connection], [], [], left_s)[0]:
                self._listen(self._connection)

    def _listen(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(4096)
        except OSError:
            data = b""
        self._words += data
        if not data or len(self._words) > WORDS_MAX_BYTES:
            self.close()

    def close(self) -> None:
        """Stop listening to the supervisor."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _told(self) -> Exit | None:
        """What the supervisor said. exit.json of the same run, if it is still there, may know more: `state.look`."""
        try:
            told = msgspec.json.decode(self._words, type=_Word).exited
        except msgspec.MsgspecError:
            return None
        written = state.look(self._paths, self._definition).exit
        return written if written is not None and written.finished_at == told.finished_at else told

    def _result(self) -> Exit:
        vm = state.look(self._paths, self._definition)
        if vm.exit is not None:
            return vm.exit
        if os.path.exists(f"{self._paths.vm_data(self._definition.id)}/definition.json"):
            raise InputError(
                f"{self._definition.name} has not run yet", next_step=f"casemate start {self._definition.name}"
            )
        if self._was_heard:  # it fell silent, and another command has cleaned up since
            return Exit("supervisor died", 5, state.now(), detail="it was killed or failed; the emulator died with it")
        raise VmError(f"{self._definition.name} was removed and left no word of how it ended")


class _Word(msgspec.Struct, frozen=True):
    """The last line on a connection that waits."""

    exited: Exit


def attach(paths: Paths, definition: Definition) -> Attachment:
    """Connect to the console.

    Raises:
        InputError, VmError: not running, or the supervisor refuses.
    """
    connection = connect(paths, definition)
    try:
        _, first = ask(connection, "attach")
    except BaseException:
        connection.close()
        raise
    connection.settimeout(None)
    return Attachment(connection, first)
