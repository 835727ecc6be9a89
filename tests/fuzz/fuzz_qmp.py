"""Fuzz target (atheris): what a hostile emulator sends to the supervisor, and what a hostile client asks of it.

The first byte says how the rest is cut into pieces. A message either comes out or is a `QmpError`; what comes out can
be printed, passed on as JSON, and never answers a question that was not asked.

python tests/fuzz/fuzz_qmp.py [libFuzzer options] [corpus directory]
"""

from __future__ import annotations

import json
import sys
from typing import Any

LIMIT = 4096


def one_input(data: bytes) -> None:
    """One run; an exception is a finding."""
    from casemate.engine.qmp import LineReader, QmpError, check_greeting, return_of

    if not data:
        return
    step, stream = data[0] + 1, data[1:]
    whole, pieces = _read(stream, len(stream) + 1), _read(stream, step)
    if whole[1] == "" and whole != pieces:
        raise RuntimeError(f"cut every {step} bytes: {pieces} instead of {whole}")
    reader = LineReader(LIMIT)
    try:
        messages = reader.feed(stream)
    except QmpError as error:
        if len(str(error)) > 500 or not str(error).isprintable():
            raise RuntimeError(f"message {error!s}") from error
        return
    if len(reader._pending) > LIMIT:
        raise RuntimeError("more kept than the limit")
    for message in messages:
        json.dumps(message)
        repr(message)
        for read in (lambda m: return_of(m, "stop"), check_greeting):
            try:
                read(message)
            except QmpError:
                continue


def _read(stream: bytes, step: int) -> tuple[list[dict[str, Any]], str]:
    """All messages, and the error that ended them."""
    from casemate.engine.qmp import LineReader, QmpError

    reader = LineReader(LIMIT)
    found: list[dict[str, Any]] = []
    try:
        for at in range(0, len(stream), step):
            found += reader.feed(stream[at : at + step])
    except QmpError:
        return found, "error"
    return found, ""


def main() -> None:
    """Run as a program."""
    import atheris

    with atheris.instrument_imports(include=["casemate", "json"]):
        import casemate.engine.qmp  # noqa: F401
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
