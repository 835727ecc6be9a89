"""Everything that the command line prints, and how. Nothing here decides anything.

Results go to stdout, all else to stderr. Text that a guest or an emulator chose is shown without control characters
when stdout is a terminal.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress

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
    _say(f"casemate: warning: {plain(text)}")


def note(text: str) -> None:
    """A remark on stderr."""
    _say(f"casemate: {plain(text)}")


def print_error(error: CasemateError) -> None:
    """An expected error: what, got, expected, next step, each on a line of its own."""
    lines = [f"casemate: error: {plain(error.what, keep_lines=True)}"]
    lines += [
        f"  {label}: " + "\n    ".join(plain(line) for line in text.splitlines())
        for label, text in (("got", error.got), ("expected", error.expected), ("next", error.next_step))
        if text
    ]
    _say("\n".join(lines))


def _say(text: str) -> None:
    """To stderr, if anybody listens: a terminal that has gone, or a full disk, must not change what a command does."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def plain(text: str, *, keep_lines: bool = False) -> str:
    """Text without anything that a terminal obeys."""
    return "".join(c if c.isprintable() or (keep_lines and c == "\n") else "\N{REPLACEMENT CHARACTER}" for c in text)


def harmless(text: str) -> str:
    """A guest's text for a terminal: controls other than tab, newline and carriage return are shown as ``^X``.

    What has no ``^X`` and is nothing to look at either (8-bit controls, of which U+009B opens a control sequence on
    some terminals; marks that turn the direction of writing) becomes a replacement character.
    """
    if text.isprintable():
        return text
    out = []
    for char in text:
        if char.isprintable() or char in "\t\n\r":
            out.append(char)
        else:
            out.append(f"^{chr(ord(char) ^ 64)}" if char < " " or char == "\x7f" else "\N{REPLACEMENT CHARACTER}")
    return "".join(out)


def write_bytes(pieces: Iterator[bytes]) -> None:
    """Bytes as they come; made harmless only for a terminal."""
    sys.stdout.flush()
    if not sys.stdout.isatty():
        for piece in pieces:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        return
    import codecs

    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # pieces are cut anywhere
    for piece in pieces:
        sys.stdout.write(harmless(decoder.decode(piece)))
        sys.stdout.flush()
    sys.stdout.write(harmless(decoder.decode(b"", final=True)))
    sys.stdout.flush()


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
            print(plain(title))
        print_aligned(header, rows)
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(plain(title), style="italic") if title else None,
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
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
