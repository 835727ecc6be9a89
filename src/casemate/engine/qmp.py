"""QMP as spoken to a hostile emulator: bounded lines, bounded depth, a deadline on everything, unknown events kept small.

Protocol: docs/interop/qmp-spec in QEMU. Pure parsing here; sockets belong to the callers. Standard library only,
because the supervisor, a minimal interpreter, imports it too.
"""

from __future__ import annotations

import json
from typing import Any

LINE_MAX_BYTES = 1 << 20


class QmpError(Exception):
    """The emulator broke the protocol or answered with an error."""


class LineReader:
    """Cuts a byte stream into JSON objects, one per line."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Take bytes, give the complete objects.

        Raises:
            QmpError: a line that is too long, or is not a JSON object.
        """
        self._pending += data
        messages = []
        while (end := self._pending.find(b"\n")) >= 0:
            line = bytes(self._pending[:end]).strip()
            del self._pending[: end + 1]
            if line:
                messages.append(parse_line(line))
        if len(self._pending) > LINE_MAX_BYTES:
            raise QmpError(f"a QMP line of more than {LINE_MAX_BYTES} bytes")
        return messages


def parse_line(line: bytes) -> dict[str, Any]:
    """One QMP message.

    Raises:
        QmpError: it is not a JSON object, or is nested beyond reason.
    """
    if len(line) > LINE_MAX_BYTES:
        raise QmpError(f"a QMP line of more than {LINE_MAX_BYTES} bytes")
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as fault:
        raise QmpError(f"a QMP line that is not JSON: {line[:80]!r}") from fault
    if not isinstance(message, dict):
        raise QmpError(f"a QMP message that is not an object: {line[:80]!r}")
    return message


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
    except (KeyError, TypeError, ValueError) as fault:
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
