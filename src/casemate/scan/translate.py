"""Expressions of Go's RE2 as expressions of Python's ``re`` over bytes.

What differs, and what is done about it (https://github.com/google/re2/wiki/Syntax):

    (?i) in the middle           holds from there to the end of its group: the rest becomes (?i:…)
    (?i-s:…), (?U)               other flags than i, s, m: not taken
    (?<name>…)                   (?P<name>…)
    \\z                           \\Z
    \\Q…\\E                        its characters, escaped
    \\pL, \\p{Greek}              classes of Unicode: not taken, blocks of a disk are bytes
    [[:alpha:]]                  the characters themselves
    \\C, \\a                       any byte, \\x07
    \\x{61}                       \\x61 below 0x80; not taken above
    x{n,m}++ and the like        Python reads them as possessive: not taken
"""

from __future__ import annotations

import re
from typing import Final

_POSIX: Final = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}
_FLAGS: Final = re.compile(r"\(\?([a-zA-Z]*)(?:-([a-zA-Z]+))?([:)])")
_MAX_DEPTH: Final = 100


class NotTranslatableError(ValueError):
    """An expression that means something here that cannot be said there."""


def from_re2(text: str) -> str:
    """The same expression for Python, on bytes.

    Raises:
        NotTranslatableError: there is no such expression; the message says what stands in the way.
    """
    if not text.isascii():
        raise NotTranslatableError("it has characters that are not ASCII")
    translated, at = _group(text, 0, 0)
    if at != len(text):
        raise NotTranslatableError(f"an unmatched ) at {at}")
    return translated


def _group(text: str, at: int, depth: int) -> tuple[str, int]:
    """Up to the closing parenthesis of this group (not taken), or the end. Flags in the middle open a group that ends
    with it; before ``|`` they hold for the alternatives behind them, too."""
    if depth > _MAX_DEPTH:
        raise NotTranslatableError(f"it is nested deeper than {_MAX_DEPTH}")
    out: list[str] = []
    opened = 0
    before: list[str] = []
    while at < len(text):
        char = text[at]
        if char == ")":
            break
        if char == "|":
            # (?i)a|b: the flag holds for b as well, so the alternative is closed and opened again.
            out.append(")" * opened + "|" + "".join(before))
            at += 1
        elif char == "\\":
            piece, at = _escape(text, at)
            out.append(piece)
        elif char == "[":
            piece, at = _class(text, at)
            out.append(piece)
        elif char == "(":
            flags = _FLAGS.match(text, at)
            if flags is not None and flags[3] == ")":
                start = _flag_group(flags)
                out.append(start)
                before.append(start)
                opened += 1
                at = flags.end()
            else:
                start, at = _opening(text, at, flags)
                inner, at = _group(text, at, depth + 1)
                if at >= len(text):
                    raise NotTranslatableError("an unmatched (")
                out.append(f"{start}{inner})")
                at += 1
        else:
            if char == "+" and out and out[-1] in set("*+?}"):
                raise NotTranslatableError("one repetition behind another")
            out.append(char)
            at += 1
    return "".join(out) + ")" * opened, at


def _flag_group(flags: re.Match[str]) -> str:
    on, off = flags[1], flags[2] or ""
    for flag in on + off:
        if flag not in "ims":
            raise NotTranslatableError(f"flag {flag}")
    return f"(?{on}-{off}:" if off else f"(?{on}:"


def _opening(text: str, at: int, flags: re.Match[str] | None) -> tuple[str, int]:
    if flags is not None:
        return ("(?:" if not flags[1] and not flags[2] else _flag_group(flags)), flags.end()
    if text.startswith("(?P<", at):
        return "(?P<", at + 4
    if text.startswith("(?<", at) and text[at + 3 : at + 4] not in {"=", "!"}:
        return "(?P<", at + 3
    if text.startswith("(?", at):
        raise NotTranslatableError(f"{text[at : at + 4]} is not of RE2")
    return "(", at + 1


def _escape(text: str, at: int) -> tuple[str, int]:
    if at + 1 >= len(text):
        raise NotTranslatableError("a backslash at the end")
    char = text[at + 1]
    if char == "z":
        return r"\Z", at + 2
    if char == "a":
        return r"\x07", at + 2
    if char == "C":
        return r"[\x00-\xff]", at + 2
    if char in "pP":
        raise NotTranslatableError("classes of Unicode (\\p)")
    if char == "Q":
        end = text.find(r"\E", at + 2)
        stop = len(text) if end < 0 else end
        return re.escape(text[at + 2 : stop]), stop + (0 if end < 0 else 2)
    if char == "x":
        return _hex(text, at)
    if char.isdigit() and char != "0":
        raise NotTranslatableError("a reference to a group")
    if char.isalpha() and char not in "AbBdDsSwWtnrfv":
        raise NotTranslatableError(f"\\{char}")
    return text[at : at + 2], at + 2


def _hex(text: str, at: int) -> tuple[str, int]:
    match = re.compile(r"\\x(?:\{([0-9a-fA-F]{1,6})\}|([0-9a-fA-F]{2}))").match(text, at)
    if match is None:
        raise NotTranslatableError("\\x without a number")
    value = int(match[1] or match[2], 16)
    if value >= 0x80:
        raise NotTranslatableError("a character that is not ASCII")
    return f"\\x{value:02x}", match.end()


def _class(text: str, at: int) -> tuple[str, int]:
    """A class in brackets. Python warns of [[ and && and --, which are plain characters in RE2: escape them."""
    start = at
    at += 1
    out = ["["]
    if at < len(text) and text[at] == "^":
        out.append("^")
        at += 1
    first = True
    while at < len(text):
        char = text[at]
        if char == "]" and not first:
            return "".join(out) + "]", at + 1
        if text.startswith("[:", at):
            end = text.find(":]", at)
            name = text[at + 2 : end] if end > 0 else ""
            if name.lstrip("^") not in _POSIX or name.startswith("^"):
                raise NotTranslatableError(f"the class [:{name[:20]}:]")
            out.append(_POSIX[name])
            at = end + 2
        elif char == "\\":
            piece, at = _escape(text, at)
            out.append(piece[1:-1] if piece.startswith("[") else piece)
        else:
            out.append(f"\\{char}" if char in "[]&~|" else char)
            at += 1
        first = False
    raise NotTranslatableError(f"an unmatched [ at {start}")
