"""QMP as spoken to a hostile emulator: bounded lines, bounded depth, strict UTF-8, unknown events kept small.

Protocol: docs/interop/qmp-spec in QEMU. Pure parsing here; sockets belong to the callers. Standard library only,
because the supervisor, a minimal interpreter, imports it too.
"""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LINE_MAX_BYTES = 1 << 20
DEPTH_MAX = 64


class QmpError(Exception):
    """The emulator broke the protocol or answered with an error."""


class LineReader:
    """Cuts a byte stream into JSON objects, one per line.

    Args:
        limit: longest accepted line in bytes.
    """

    def __init__(self, limit: int = LINE_MAX_BYTES) -> None:
        self._limit = limit
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Take bytes, give the complete objects.

        Raises:
            QmpError: a line that is too long, or is not a JSON object.
        """
        searched = len(self._pending)  # what came before holds no newline: an endless line is not read again and again
        self._pending += data
        messages = []
        while (end := self._pending.find(b"\n", searched)) >= 0:
            line = bytes(self._pending[:end]).strip()
            del self._pending[: end + 1]
            searched = 0
            if line:
                messages.append(parse_line(line, self._limit))
        if len(self._pending) > self._limit:
            raise QmpError(f"a QMP line of more than {self._limit} bytes")
        return messages

    def rest(self) -> bytes:
        """The beginning of a line whose end has not come yet."""
        return bytes(self._pending)


def parse_line(line: bytes, limit: int = LINE_MAX_BYTES) -> dict[str, Any]:
    """One QMP message.

    Raises:
        QmpError: it is not a JSON object in UTF-8, is too long, or is nested deeper than `DEPTH_MAX`.
    """
    if len(line) > limit:
        raise QmpError(f"a QMP line of more than {limit} bytes")
    try:
        message = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as fault:
        raise QmpError(f"a QMP line that is not JSON: {line[:80]!r}") from fault
    if not isinstance(message, dict):
        raise QmpError(f"a QMP message that is not an object: {line[:80]!r}")
    _check_depth(message)
    return message


def _check_depth(message: dict[str, Any]) -> None:
    """The parser stands any depth (RecursionError); whoever prints or passes on the message would not."""
    level: list[Any] = [message]
    for _ in range(DEPTH_MAX):
        values = [value for item in level for value in (item.values() if isinstance(item, dict) else item)]
        level = [value for value in values if isinstance(value, (dict, list))]
        if not level:
            return
    raise QmpError(f"a QMP line nested deeper than {DEPTH_MAX}")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def encode_command(name: str, arguments: dict[str, Any] | None, identifier: int) -> bytes:
    """A command as one line."""
    message: dict[str, Any] = {"execute": name, "id": identifier}
    if arguments:
        message["arguments"] = arguments
    return json.dumps(message).encode() + b"\n"


def check_greeting(message: dict[str, Any]) -> str:
    """The greeting's QEMU version, e.g. ``7.2.22``.

    Raises:
        QmpError: this is not a QMP greeting.
    """
    try:
        version = message["QMP"]["version"]["qemu"]
        return f"{int(version['major'])}.{int(version['minor'])}.{int(version['micro'])}"
    except (KeyError, TypeError, ValueError, OverflowError) as fault:
        raise QmpError(f"the first QMP message is no greeting: {str(message)[:120]}") from fault


def return_of(message: dict[str, Any], command: str) -> Any:
    """The ``return`` of a reply.

    Raises:
        QmpError: the reply is an error.
    """
    if "error" in message:
        error = message["error"]
        text = error.get("desc", "") if isinstance(error, dict) else str(error)
        raise QmpError(f"{command}: {str(text)[:400]}")
    return message.get("return")
