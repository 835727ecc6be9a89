"""The one place that writes QEMU option strings.

QEMU splits an option argument at commas; a comma inside a value is written twice (QemuOpts, docs/system/invocation).
A value that could end the option or hide a second one is an option injection.
"""

from __future__ import annotations

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


def _escape(text: str) -> str:
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in text):
        raise ValueError(f"control character in an option value: {text!r}")
    return text.replace(",", ",,")
