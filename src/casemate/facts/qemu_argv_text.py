"""QEMU's option texts: ``driver,key=value,flag`` with doubled commas, the JSON form, and bounds on both.

Everything here is as hostile as its source: a command line of another process can hold anything.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

MAX_ARGUMENTS: Final = 8192
MAX_ARGUMENT_CHARS: Final = 1 << 20
MAX_TOTAL_CHARS: Final = 8 << 20
MAX_PROPERTIES: Final = 4096
MAX_DEPTH: Final = 32

Properties = dict[str, str]


class OptionFaultError(ValueError):
    """An option text that QEMU would read in a way that we cannot tell."""


def parse_option(text: str, implied: str = "") -> Properties:
    """``text`` as properties; nested ones are joined by dots.

    Args:
        text: the option's argument, either form.
        implied: name of the first property when the text starts with a bare value (``driver`` of ``-device``).

    Raises:
        OptionFaultError: JSON that is none, too deep, or too many properties.
    """
    if text.startswith("{"):
        return _from_json(text)
    found: Properties = {}
    for number, part in enumerate(split_commas(text)):
        name, equals, value = part.partition("=")
        if equals:
            found[name] = value
        elif number == 0 and implied:
            found[implied] = part
        elif part.startswith("no") and len(part) > 2:
            found[part[2:]] = "off"  # QEMU's short form: nowait is wait=off, nodelay is delay=off
        elif part:
            found[part] = "on"
    if len(found) > MAX_PROPERTIES:
        raise OptionFaultError(f"more than {MAX_PROPERTIES} properties")
    return found


def split_commas(text: str) -> list[str]:
    """The parts between single commas; a doubled comma stands for one."""
    if ",," not in text:
        return text.split(",")
    parts = [""]
    pieces = text.split(",")
    position = 0
    while position < len(pieces):
        parts[-1] += pieces[position]
        if position + 1 < len(pieces):
            # An empty piece that is not the last one was a doubled comma: it joins its neighbours.
            if pieces[position + 1] == "" and position + 2 < len(pieces):
                parts[-1] += ","
                position += 1
            else:
                parts.append("")
        position += 1
    return parts


def _from_json(text: str) -> Properties:
    try:
        document = msgspec.json.decode(text.encode("utf-8", "surrogatepass"))
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise OptionFaultError(f"not readable as JSON ({str(error)[:100]})") from None
    found: Properties = {}
    _flatten(document, "", found, 0)
    return found


def _flatten(value: Any, name: str, found: Properties, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise OptionFaultError(f"nested deeper than {MAX_DEPTH}")
    if len(found) > MAX_PROPERTIES:
        raise OptionFaultError(f"more than {MAX_PROPERTIES} properties")
    dot = f"{name}." if name else ""
    if isinstance(value, dict):
        for key, inner in value.items():
            _flatten(inner, f"{dot}{key}", found, depth + 1)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _flatten(inner, f"{dot}{number}", found, depth + 1)
    else:
        found[name] = _scalar(value)


def _scalar(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def is_on(value: str | None) -> bool:
    """Whether an on/off property is on, in each of QEMU's spellings."""
    return value in ("on", "yes", "true", "y", "1")


def is_off(value: str | None) -> bool:
    """Whether an on/off property is off, in each of QEMU's spellings."""
    return value in ("off", "no", "false", "n", "0")
