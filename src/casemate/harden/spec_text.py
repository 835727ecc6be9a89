"""A specification as TOML text: one writer, every string quoted by one function."""

from __future__ import annotations

from typing import Any, Final

_ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def write_spec(document: dict[str, Any], source: str) -> str:
    """The TOML text of a document that holds tables, lists of tables, and plain values."""
    safe = "".join(char if char.isprintable() else "?" for char in source)[:100]
    lines = [f"# Made by casemate harden from {safe}. Look at what it left out before you rely on it."]
    lines += [f"{key} = {_value(value)}" for key, value in document.items() if not isinstance(value, dict | list)]
    for key, value in document.items():
        if isinstance(value, dict) and value:
            lines += ["", f"[{key}]", *_table(value)]
        elif isinstance(value, list):
            for table in value:
                lines += ["", f"[[{key}]]", *_table(table)]
    return "\n".join(lines) + "\n"


def _table(table: dict[str, Any]) -> list[str]:
    return [f"{key} = {_value(value)}" for key, value in table.items()]


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return '"' + "".join(_quoted(char) for char in str(value)) + '"'


def _quoted(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    # TOML allows no control character bare, and no surrogate at all.
    if ord(char) < 0x20 or ord(char) == 0x7F:
        return f"\\u{ord(char):04x}"
    return "\\uFFFD" if 0xD800 <= ord(char) <= 0xDFFF else char
