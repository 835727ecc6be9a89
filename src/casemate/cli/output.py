"""Everything that the command line prints, and how. Nothing here decides anything.

Results go to stdout, all else to stderr. Text that a guest or an emulator chose is shown without control characters
when stdout is a terminal.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casemate.errors import CasemateError

STYLES = {
    "ok": "green",
    "pass": "green",
    "fail": "bold red",
    "missing": "bold red",
    "unknown": "yellow",
    "limited": "yellow",
    "waived": "yellow",
    "manual": "cyan",
    "not-applicable": "dim",
    "pending": "cyan",
    "reachable": "bold red",
    "stopped": "green",
}


def print_json(document: object) -> None:
    """One JSON document, indented."""
    import json

    print(json.dumps(document, indent=2, ensure_ascii=True))


def warn(text: str) -> None:
    """A warning on stderr."""
    print(f"casemate: warning: {plain(text)}", file=sys.stderr)


def note(text: str) -> None:
    """A remark on stderr."""
    print(f"casemate: {plain(text)}", file=sys.stderr)


def print_error(error: CasemateError) -> None:
    """An expected error: what, got, expected, next step, each on a line of its own."""
    lines = [f"casemate: error: {plain(error.what, keep_lines=True)}"]
    lines += [
        f"  {label}: {plain(text)}"
        for label, text in (("got", error.got), ("expected", error.expected), ("next", error.next_step))
        if text
    ]
    print("\n".join(lines), file=sys.stderr)


def plain(text: str, *, keep_lines: bool = False) -> str:
    """Text without anything that a terminal obeys."""
    return "".join(c if c.isprintable() or (keep_lines and c == "\n") else "\N{REPLACEMENT CHARACTER}" for c in text)


def plain_bytes(data: bytes) -> bytes:
    """Bytes for a terminal: controls other than tab, newline and carriage return are shown as ``^X``."""
    if not any(byte < 32 or byte == 127 for byte in data):
        return data
    out = bytearray()
    for byte in data:
        if byte in b"\t\n\r" or (byte >= 32 and byte != 127):
            out.append(byte)
        else:
            out += b"^" + bytes([byte ^ 64])
    return bytes(out)


def write_bytes(pieces: Iterator[bytes]) -> None:
    """Bytes as they come; made harmless only for a terminal."""
    harmless = sys.stdout.isatty()
    sys.stdout.flush()
    for piece in pieces:
        sys.stdout.buffer.write(plain_bytes(piece) if harmless else piece)
        sys.stdout.buffer.flush()


def print_aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table: columns aligned, two spaces apart, nothing cut."""
    table = [list(header), *([plain(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table with colour on a terminal, plain otherwise."""
    if not sys.stdout.isatty():
        if title:
            print(title)
        print_aligned(header, rows)
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell), style=STYLES.get(cell.split(" ")[0], "")) for cell in row))
    Console().print(table)


@contextmanager
def working(text: str) -> Iterator[Callable[[str], None]]:
    """Says on stderr what takes long: one line that changes on a terminal, a line per step otherwise.

    Silent until told a step; an empty one is shown on a terminal only. No thread draws it: commands fork.
    """
    is_terminal = sys.stderr.isatty()
    width = 0

    def report(step: str) -> None:
        nonlocal width
        line = f"casemate: {plain(f'{text}: {step}' if step else text)}"
        if is_terminal:
            columns = os.get_terminal_size(2).columns or 80
            line = line[: columns - 1]
            sys.stderr.write(f"\r{line.ljust(width)}")
            sys.stderr.flush()
            width = len(line)
        elif step:
            print(line, file=sys.stderr, flush=True)

    try:
        yield report
    finally:
        if width:
            sys.stderr.write(f"\r{' ' * width}\r")
            sys.stderr.flush()


def silence_stdout() -> None:
    """After a broken pipe: nothing more may be written, not even at exit."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.close(descriptor)


def ago(then_s: float, now_s: float) -> str:
    """``12 seconds ago``, as podman says it."""
    seconds = max(0, int(now_s - then_s))
    for name, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length:
            count = seconds // length
            return f"{count} {name}{'' if count == 1 else 's'} ago"
    return f"{seconds} second{'' if seconds == 1 else 's'} ago"
