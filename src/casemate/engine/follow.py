"""Read the bounded logs that ``engine/ringlog.py`` writes: ``path`` is the newer half, ``path.1`` the older one."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator

CHUNK_BYTES = 65536
POLL_S = 0.1


def read_ring(path: str, tail_lines: int | None, is_over: Callable[[], bool] | None = None) -> Iterator[bytes]:
    """The log's bytes in pieces, oldest first.

    Args:
        tail_lines: only that many lines from the end; None for all.
        is_over: when given, go on with what is written later, until it says True and nothing is left to read.
    """
    halves = _open_halves(path)
    try:
        if tail_lines is None:
            for descriptor in halves:
                yield from _rest(descriptor)
        else:
            yield ring_end(halves, tail_lines)
            for descriptor in halves:
                os.lseek(descriptor, 0, os.SEEK_END)
        if is_over is not None:
            yield from _follow(path, halves, is_over)
    finally:
        for descriptor in halves:
            os.close(descriptor)


def _follow(path: str, halves: list[int], is_over: Callable[[], bool]) -> Iterator[bytes]:
    """What is written later, through rotations; ``halves`` keeps naming what is open."""
    while True:
        over = is_over()  # before reading: what is written after it said True does not matter
        if halves:
            yield from _rest(halves[-1])
        fresh = _next_half(path, halves[-1] if halves else -1)
        if fresh >= 0:
            if halves:
                yield from _rest(halves[-1])  # written between the read above and the rotation
            for descriptor in halves:
                os.close(descriptor)
            halves[:] = [fresh]
        elif over:
            return
        else:
            time.sleep(POLL_S)


def ring_end(halves: list[int], lines: int) -> bytes:
    """The last ``lines`` lines of files open at ``halves`` (oldest first), read backwards."""
    found: list[bytes] = []
    newlines = 0
    for descriptor in reversed(halves):
        position = os.fstat(descriptor).st_size
        while position > 0 and newlines <= lines:
            start = max(0, position - CHUNK_BYTES)
            chunk = os.pread(descriptor, position - start, start)
            newlines += chunk.count(b"\n")
            found.append(chunk)
            position = start
    text = b"".join(reversed(found))
    kept = text.splitlines(keepends=True)
    return b"".join(kept[len(kept) - lines :]) if lines < len(kept) else text


def _open_halves(path: str) -> list[int]:
    """Descriptors of the halves that exist, oldest first."""
    newer, older = _open(path), _open(f"{path}.1")
    if newer >= 0 and older >= 0 and os.fstat(newer).st_ino == os.fstat(older).st_ino:
        os.close(older)  # it was rotated between the two calls
        older = -1
    return [descriptor for descriptor in (older, newer) if descriptor >= 0]


def _open(path: str) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return -1
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)  # somebody put a FIFO there, which would hang us
    return -1


def _next_half(path: str, current: int) -> int:
    """A descriptor of the file now at ``path`` if that is not the one we read; else -1."""
    fresh = _open(path)
    if fresh >= 0 and current >= 0 and os.fstat(fresh).st_ino == os.fstat(current).st_ino:
        os.close(fresh)
        return -1
    return fresh


def _rest(descriptor: int) -> Iterator[bytes]:
    while chunk := os.read(descriptor, CHUNK_BYTES):
        yield chunk
