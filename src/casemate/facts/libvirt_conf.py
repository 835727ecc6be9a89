"""Configuration files of libvirt, read by libvirt's own grammar (src/util/virconf.c).

``name = value`` lines; a value is a number, a text in single or double quotes (no escapes, one line), a text in three
double quotes (any lines) or a list in brackets; ``#`` starts a comment; ``;`` may stand for a line end. Of two lines
with one name libvirt takes the first. A file with a fault stops the daemon, so here it is a fault as a whole too.
"""

from __future__ import annotations

import re
from typing import Final

Value = str | int | tuple[str, ...]

MAX_BYTES: Final = 10 << 20
MAX_SETTINGS: Final = 10_000
MAX_ITEMS: Final = 10_000

_SKIP: Final = re.compile(r"(?:[ \t\r\n;]|#[^\r\n]*)*")
_INSIDE: Final = re.compile(r"[ \t\r\n]*")
_NAME: Final = re.compile(r"([A-Za-z][A-Za-z0-9_]*)[ \t]*=[ \t]*")
_END: Final = re.compile(r"[ \t]*(?:#[^\r\n]*)?(?=[\r\n;]|\Z)")
_TEXT: Final = re.compile(r"'([^'\r\n]*)'|\"\"\"(.*?)\"\"\"|\"([^\"\r\n]*)\"", re.DOTALL)
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,19}")


def parse_conf(text: str) -> dict[str, Value]:
    """Name to value.

    Raises:
        ValueError: with the line, when libvirt would refuse the file too.
    """
    found: dict[str, Value] = {}
    position = _past(_SKIP, text, 0)
    while position < len(text):
        name = _NAME.match(text, position)
        if name is None:
            raise ValueError(f"{_line(text, position)}: expected NAME = VALUE")
        value, position = _value(text, name.end())
        end = _END.match(text, position)
        if end is None:
            raise ValueError(f"{_line(text, position)}: expected the end of the line after the value")
        found.setdefault(name[1], value)
        if len(found) > MAX_SETTINGS:
            raise ValueError(f"more than {MAX_SETTINGS} settings")
        position = _past(_SKIP, text, end.end())
    return found


def _value(text: str, position: int) -> tuple[Value, int]:
    if text.startswith("[", position):
        return _list(text, position + 1)
    return _scalar(text, position)


def _scalar(text: str, position: int) -> tuple[str | int, int]:
    quoted = _TEXT.match(text, position)
    if quoted is not None:
        return next(group for group in quoted.groups() if group is not None), quoted.end()
    number = _NUMBER.match(text, position)
    if number is None:
        raise ValueError(f"{_line(text, position)}: expected a number, a quoted text or a list")
    return int(number[0]), number.end()


def _list(text: str, position: int) -> tuple[tuple[str, ...], int]:
    items: list[str] = []
    position = _past(_INSIDE, text, position)
    while not text.startswith("]", position):
        # libvirt also takes lists in lists, which no setting of it has.
        item, position = _scalar(text, position)
        items.append(str(item))
        if len(items) > MAX_ITEMS:
            raise ValueError(f"{_line(text, position)}: more than {MAX_ITEMS} items")
        position = _past(_INSIDE, text, position)
        if text.startswith(",", position):
            position = _past(_INSIDE, text, position + 1)
        elif not text.startswith("]", position):
            raise ValueError(f"{_line(text, position)}: expected , or ] in a list")
    return tuple(items), position + 1


def _past(pattern: re.Pattern[str], text: str, position: int) -> int:
    """Where what ``pattern`` takes from ``position`` on ends."""
    found = pattern.match(text, position)
    return position if found is None else found.end()


def _line(text: str, position: int) -> str:
    return f"line {text.count(chr(10), 0, position) + 1}"
