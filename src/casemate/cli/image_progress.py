"""The progress of an import on stderr: what is done, how much of it, how fast. On a terminal only, after a second."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from casemate.cli import output
from casemate.units import format_bytes

PATIENCE_S: Final = 1.0
REDRAW_S: Final = 0.1
COLUMNS: Final = 24


@contextmanager
def byte_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Told (what, bytes done, bytes in all; 0 when nobody knows). No thread draws it: commands fork."""
    is_terminal = sys.stderr.isatty()
    started = drawn_at = time.monotonic()
    began: dict[str, float] = {}
    width = 0

    def show(what: str, done: int, of: int) -> None:
        nonlocal drawn_at, width
        now = time.monotonic()
        began.setdefault(what, now)
        if not is_terminal or now - started < PATIENCE_S or now - drawn_at < REDRAW_S:
            return
        drawn_at = now
        line = bar(what, done, of, now - began[what])[: (os.get_terminal_size(2).columns or 80) - 1]
        sys.stderr.write(f"\r{line.ljust(width)}")
        sys.stderr.flush()
        width = len(line)

    try:
        yield show
    finally:
        if width:
            sys.stderr.write(f"\r{' ' * width}\r")
            sys.stderr.flush()


def bar(what: str, done: int, of: int, elapsed_s: float) -> str:
    """``converting [######......] 1.2 GiB of 4 GiB, 210 MiB/s``."""
    speed = f", {format_bytes(int(done / elapsed_s))}/s" if elapsed_s > 0.5 and done else ""
    if of <= 0:
        return f"{output.plain(what)} {format_bytes(done)}{speed}"
    full = min(COLUMNS, COLUMNS * done // of)
    filled = f"[{'#' * full}{'.' * (COLUMNS - full)}]"
    return f"{output.plain(what)} {filled} {format_bytes(done)} of {format_bytes(of)}{speed}"
