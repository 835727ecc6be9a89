"""The syntax of Xen's xl.cfg, bounded: names, strings, numbers and lists of them (xl.cfg(5), tools/libs/util).

    # comment
    name = "web"              memory = 2048             vif = [ 'bridge=xenbr0', 'mac=00:16:3e:…' ]

Values are strings whatever they look like; a list is a tuple of them. Nothing is evaluated: old files were Python, and
one that still needs it (a call, an expression) is refused with its line.
"""

from __future__ import annotations

import re
from typing import Final

from casemate.errors import InputError

MAX_BYTES: Final = 1 << 20
MAX_ITEMS: Final = 4096
Value = str | tuple[str, ...]

_TOKEN: Final = re.compile(
    r"(?P<space>[ \t\r]+|\#[^\n]*|\\\n)|(?P<line>[\n;])|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<number>-?(?:0[xX])?[0-9a-fA-F]+)|(?P<string>\"\"\"[^\"]*\"\"\"|\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*')|(?P<mark>\+=|[=\[\],])"
)
_HEADER: Final = re.compile(r"^[ \t]*\[[A-Za-z]", re.MULTILINE)
_ASSIGNMENT: Final = re.compile(
    r"^[ \t]*(name|type|builder|memory|maxmem|vcpus|kernel|disk|vif|bootloader|on_crash|on_reboot|vfb)[ \t]*=",
    re.MULTILINE,
)


def looks_like_xl(text: str) -> bool:
    """Whether a text is probably an xl.cfg: assignments that only those have, and no table of TOML."""
    names = set(_ASSIGNMENT.findall(text))
    return (
        not _HEADER.search(text)
        and bool(names & {"disk", "vif", "builder", "bootloader", "vfb", "on_crash"})
        and "name" in names
    )


def parse_xl(data: bytes, source: str) -> dict[str, Value]:
    """Names and values of a file, in its order; a name that stands twice has its last value, as for xl.

    Raises:
        InputError: too large, no text, or no xl.cfg; with the line.
    """
    if len(data) > MAX_BYTES:
        raise InputError(
            f"{source} is too large for an xl.cfg", got=f"{len(data)} bytes", expected=f"at most {MAX_BYTES}"
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not text", got=f"byte {error.start}", expected="UTF-8") from None
    tokens = list(_tokens(text, source))
    found: dict[str, Value] = {}
    position = 0
    while position < len(tokens):
        kind, name, line = tokens[position]
        if kind == "line":
            position += 1
            continue
        sign = tokens[position + 1][1] if position + 1 < len(tokens) else ""
        if kind != "name" or sign not in ("=", "+="):
            raise _fault(source, line, f"{name[:40]!r}", "NAME = VALUE")
        value, position = _value(tokens, position + 2, source, line)
        if sign == "+=":
            old = found.get(name, ())
            value = (*(old if isinstance(old, tuple) else (old,)), *(value if isinstance(value, tuple) else (value,)))
        found[name] = value
        if len(found) > MAX_ITEMS:
            raise InputError(f"{source}: more settings than an xl.cfg has", expected=f"at most {MAX_ITEMS}")
    return found


Token = tuple[str, str, int]


def _tokens(text: str, source: str) -> list[Token]:
    found: list[Token] = []
    position, line = 0, 1
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _fault(
                source, line, repr(text[position : position + 20]), "strings, numbers and lists; nothing is evaluated"
            )
        kind = match.lastgroup or ""
        if kind != "space":
            found.append((kind, match[0], line))
        line += match[0].count("\n")
        position = match.end()
    found.append(("line", "\n", line))
    return found


def _value(tokens: list[Token], position: int, source: str, line: int) -> tuple[Value, int]:
    kind, text, line = tokens[position] if position < len(tokens) else ("line", "", line)
    if text != "[":
        value, position = _scalar(kind, text, source, line), position + 1
        if tokens[position][0] != "line":
            raise _fault(source, tokens[position][2], repr(tokens[position][1][:40]), "the end of the line")
        return value, position
    items: list[str] = []
    position += 1
    expect_item = True
    while position < len(tokens):
        kind, text, line = tokens[position]
        position += 1
        if kind == "line" and text == "\n":
            continue
        if text == "]":
            return tuple(items), position
        if text == "," and not expect_item:
            expect_item = True
        elif expect_item:
            items.append(_scalar(kind, text, source, line))
            expect_item = False
            if len(items) > MAX_ITEMS:
                raise InputError(f"{source}: line {line}: a list that is too long")
        else:
            raise _fault(source, line, repr(text[:40]), "a comma or ]")
    raise _fault(source, line, "the end of the file", "]")


def _scalar(kind: str, text: str, source: str, line: int) -> str:
    if kind == "number":
        return text
    if kind == "string":
        body = text[3:-3] if text.startswith('"""') else text[1:-1]
        return re.sub(r"\\(.)", r"\1", body, flags=re.DOTALL)
    raise _fault(source, line, repr(text[:40]), "a string, a number or a list of them")


def _fault(source: str, line: int, got: str, expected: str) -> InputError:
    return InputError(f"{source}: line {line} is no xl.cfg", got=got, expected=expected)
