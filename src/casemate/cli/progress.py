"""A progress bar on stderr, and whether a stream takes colour."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TextIO

from casemate.cli import output

PATIENCE_S: Final = 1.0
BAR_COLUMNS: Final = 24


def colours(stream: TextIO) -> bool:
    """Whether to write escape sequences to it: a terminal that can, and nobody said no (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr when the work takes longer than a second, on a terminal only; no thread draws it."""
    started = time.monotonic()
    is_terminal = sys.stderr.isatty()
    drawn = 0

    def progress(done: int, total: int, what: str) -> None:
        nonlocal drawn
        if not is_terminal or time.monotonic() - started < PATIENCE_S:
            return
        line = bar(done, total, what)[: (os.get_terminal_size(2).columns or 80) - 1]
        sys.stderr.write(f"\r{line.ljust(drawn)}")
        sys.stderr.flush()
        drawn = len(line)

    try:
        yield progress
    finally:
        if drawn:
            sys.stderr.write(f"\r{' ' * drawn}\r")
            sys.stderr.flush()


def bar(done: int, total: int, what: str) -> str:
    """``[#####·····]  5/10  vm web``."""
    total = max(total, done, 1)
    full = BAR_COLUMNS * done // total
    return f"[{'#' * full}{'.' * (BAR_COLUMNS - full)}] {done}/{total}  {output.plain(what)}"
