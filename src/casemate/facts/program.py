"""Answers of programs: a clean environment, no shell, a deadline, bounded output, nothing left running."""

from __future__ import annotations

import os
import selectors
import time
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    import subprocess

ENVIRONMENT: Final = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent"}
_CHUNK_BYTES: Final = 1 << 16


class Answer(msgspec.Struct, frozen=True):
    """What a program said. ``status`` is its exit status, negative for a signal (as subprocess gives it)."""

    status: int
    output: bytes
    errors: bytes

    def error_text(self, limit: int = 400) -> str:
        """The end of what it wrote to its error stream, for a message."""
        return self.errors[-limit:].decode("utf-8", "backslashreplace").strip()


def ask_program(argv: tuple[str, ...], *, questions: bytes = b"", timeout_s: float, limit_bytes: int) -> Answer:
    """Run a program and collect its answer. The program's process group is killed when it does not end by itself.

    Args:
        argv: absolute path of the program and its arguments.
        questions: its standard input, at most 4096 bytes; /dev/null when empty.
        timeout_s: deadline for the whole run.
        limit_bytes: bound on output and errors together.

    Raises:
        OSError: it cannot be started.
        TimeoutError: the deadline passed.
        ValueError: it wrote more than ``limit_bytes``.
    """
    import subprocess

    if len(questions) > 4096:
        raise RuntimeError("more input than a pipe takes at once")
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE if questions else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        cwd="/",
        start_new_session=True,
    )
    try:
        with process:
            try:
                return _collect(process, questions, time.monotonic() + timeout_s, limit_bytes)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, 9)
    except TimeoutError:
        raise TimeoutError(f"{argv[0]} did not answer within {timeout_s:g} s") from None
    except OverflowError:
        raise ValueError(f"{argv[0]} wrote more than {limit_bytes} bytes") from None


def _collect(process: subprocess.Popen[bytes], questions: bytes, deadline: float, limit_bytes: int) -> Answer:
    import subprocess

    if process.stdout is None or process.stderr is None:
        raise RuntimeError("both streams must be pipes")
    if process.stdin is not None:
        try:
            process.stdin.write(questions)
            process.stdin.close()
        except BrokenPipeError:
            pass
    parts: dict[str, list[bytes]] = {"output": [], "errors": []}
    total = 0
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, "output")
        selector.register(process.stderr, selectors.EVENT_READ, "errors")
        while selector.get_map():
            left_s = deadline - time.monotonic()
            ready = selector.select(left_s) if left_s > 0 else []
            if not ready:
                raise TimeoutError
            for key, _events in ready:
                data = os.read(key.fd, _CHUNK_BYTES)
                if not data:
                    selector.unregister(key.fileobj)
                    continue
                total += len(data)
                if total > limit_bytes:
                    raise OverflowError
                parts[key.data].append(data)
    try:
        status = process.wait(max(deadline - time.monotonic(), 0.001))
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    return Answer(status, b"".join(parts["output"]), b"".join(parts["errors"]))
