"""Answers of programs: a clean environment, no shell, a deadline, bounded output, nothing left running."""

from __future__ import annotations

import os
import select
import selectors
import signal
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
    deadline = time.monotonic() + timeout_s
    try:
        with process:
            try:
                output, errors = _collect(process, questions, deadline, limit_bytes)
                _wait_exit(process.pid, deadline)
            finally:
                # Not reaped yet, so the number still is this group's; what the program left behind ends with it.
                os.killpg(process.pid, signal.SIGKILL)
            return Answer(process.wait(), output, errors)
    except TimeoutError:
        raise TimeoutError(f"{argv[0]} did not answer within {timeout_s:g} s") from None
    except OverflowError:
        raise ValueError(f"{argv[0]} wrote more than {limit_bytes} bytes") from None


def _collect(
    process: subprocess.Popen[bytes], questions: bytes, deadline: float, limit_bytes: int
) -> tuple[bytes, bytes]:
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
    return b"".join(parts["output"]), b"".join(parts["errors"])


def _wait_exit(pid: int, deadline: float) -> None:
    """Wait until a child has ended, without reaping it."""
    descriptor = os.pidfd_open(pid)
    try:
        left_s = max(deadline - time.monotonic(), 0)
        if not select.select([descriptor], [], [], left_s)[0]:
            raise TimeoutError
    finally:
        os.close(descriptor)
