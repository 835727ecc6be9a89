"""The one place that writes QEMU option strings.

QEMU splits an option argument at commas; a comma inside a value is written twice (QemuOpts, docs/system/invocation).
A value that could end the option or hide a second one is an option injection.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

OptionValue = str | int | bool

_WITH_UNDERSCORE = frozenset({"max_ports"})
"""Properties that QEMU really spells with an underscore."""


def write_option(head: str, **values: OptionValue) -> str:
    """Write ``head,key=value,...`` with commas doubled; underscores in keys become dashes (but see `_WITH_UNDERSCORE`),
    ``__`` a dot.

    Args:
        head: first word (a driver or type); empty for options that start with a key.
        values: booleans become on and off.

    Raises:
        ValueError: a value with a NUL, a newline or another control character.
    """
    parts = [_escape(head)] if head else []
    for key, value in values.items():
        name = key if key in _WITH_UNDERSCORE else key.replace("__", ".").replace("_", "-")
        text = ("on" if value else "off") if isinstance(value, bool) else str(value)
        parts.append(f"{name}={_escape(text)}")
    return ",".join(parts)


def write_object(kind: str, name: str, **values: OptionValue | Mapping[str, str | int]) -> str:
    """Write ``-object`` as JSON, which QEMU (6.0) takes beside the old form; underscores in keys become dashes.

    Raises:
        ValueError: a value with a NUL, a newline or another control character.
    """
    found: dict[str, OptionValue | Mapping[str, str | int]] = {"qom-type": kind, "id": name}
    for key, value in values.items():
        for text in value.values() if isinstance(value, Mapping) else (value,):
            _check(str(text))
        found[key.replace("_", "-")] = value
    return msgspec.json.encode(found).decode()


def _escape(text: str) -> str:
    _check(text)
    return text.replace(",", ",,")


def _check(text: str) -> None:
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in text):
        raise ValueError(f"control character in an option value: {text!r}")
