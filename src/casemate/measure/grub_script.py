"""GRUB's scripts, as far as boot configurations on an EFI system partition need them: commands, variables, quoting,
if, menuentry, function. What else the language has (loops, redirections, translated strings) is refused, not passed
over; commands are judged when they run, for most of a configuration never does.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

MAX_SCRIPT: Final = 256 << 10
MAX_NESTING: Final = 16
_BLOCKS: Final = frozenset({"menuentry", "submenu", "function"})
_REFUSED: Final = frozenset({"for", "while", "until", "case", "select", "time"})
_RUN: Final = re.compile(r"[^ \t\r\n;'\"$<>|&\\]+")
_NAME: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")


class NotUnderstoodError(Exception):
    """A script that cannot be followed; the text says why."""


class Part(msgspec.Struct, frozen=True):
    """Of a word. ``kind``: ``text``, or ``variable`` by name. ``quoted``: keeps its spaces, and is there when empty."""

    kind: str
    text: str
    quoted: bool


Word = tuple[Part, ...]


class Command(msgspec.Struct, frozen=True):
    """``block``: between braces, as it is written; None when there is none."""

    words: tuple[Word, ...]
    block: str | None = None


class If(msgspec.Struct, frozen=True):
    """``branches``: (condition, body); ``otherwise``: empty when there is none."""

    branches: tuple[tuple[Script, Script], ...]
    otherwise: Script


Script = tuple["Command | If", ...]


def parse_script(text: str) -> Script:
    """The commands of a script.

    Raises:
        NotUnderstoodError: it uses what is not understood.
    """
    if len(text) > MAX_SCRIPT:
        raise NotUnderstoodError("a script of more than 256 KiB")
    parser = _Parser(text)
    return parser.script(frozenset(), 0)


def plain(word: Word) -> str | None:
    """A word without variables and quotes; None when it has some."""
    if all(part.kind == "text" and not part.quoted for part in word):
        return "".join(part.text for part in word)
    return None


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def script(self, ends: frozenset[str], depth: int) -> Script:
        """Statements until one of these keywords, or the end of the text."""
        if depth > MAX_NESTING:
            raise NotUnderstoodError("statements nested too deeply")
        found: list[Command | If] = []
        while True:
            self._skip()
            if self._at >= len(self._text):
                if ends:
                    raise NotUnderstoodError(f"{' or '.join(sorted(ends))} is missing")
                return tuple(found)
            start = self._at
            first = self._word()
            keyword = plain(first)
            if keyword in ends:
                self._at = start
                return tuple(found)
            if keyword in _REFUSED or keyword in ("then", "elif", "else", "fi", "{", "}"):
                raise NotUnderstoodError(f"{keyword!r} in a script")
            found.append(self._if(depth) if keyword == "if" else self._command(first, keyword))

    def _if(self, depth: int) -> If:
        branches = []
        while True:
            condition = self.script(frozenset({"then"}), depth + 1)
            self._word()
            body = self.script(frozenset({"elif", "else", "fi"}), depth + 1)
            branches.append((condition, body))
            word = plain(self._word())
            if word == "fi":
                return If(tuple(branches), ())
            if word == "else":
                otherwise = self.script(frozenset({"fi"}), depth + 1)
                self._word()
                return If(tuple(branches), otherwise)

    def _command(self, first: Word, keyword: str | None) -> Command:
        words = [first]
        while self._in_line():
            if keyword in _BLOCKS and self._text[self._at] == "{":
                return Command(tuple(words), self._block())
            words.append(self._word())
        return Command(tuple(words))

    def _in_line(self) -> bool:
        """Skip to the next word of this command; False at its end."""
        while self._at < len(self._text):
            if self._text[self._at] in " \t":
                self._at += 1
            elif self._text.startswith("\\\n", self._at):
                self._at += 2
            else:
                return self._text[self._at] not in ";\n\r#"
        return False

    def _skip(self) -> None:
        """Skip separators and comments."""
        while self._at < len(self._text):
            if self._text[self._at] == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
            elif self._text[self._at] in " \t\r\n;":
                self._at += 1
            else:
                return

    def _block(self) -> str:
        """From one brace to the one that closes it, with both; quotes and comments inside hide braces."""
        start, depth = self._at, 0
        while self._at < len(self._text):
            character = self._text[self._at]
            if character in "'\"":
                end = self._text.find(character, self._at + 1)
                if end < 0:
                    break
                self._at = end
            elif character == "\\":
                self._at += 1
            elif character in "{}" and self._text[self._at - 1] != "$":
                depth += 1 if character == "{" else -1
                if depth == 0:
                    self._at += 1
                    return self._text[start : self._at]
            elif character == "$" and self._text.startswith("${", self._at):
                self._at = max(self._text.find("}", self._at), self._at)
            self._at += 1
        raise NotUnderstoodError("a block that does not end")

    def _word(self) -> Word:
        """The next word. The caller has skipped what is before it."""
        self._skip()
        parts: list[Part] = []
        while self._at < len(self._text):
            character = self._text[self._at]
            if character in " \t\r\n;":
                break
            if character == "'":
                end = self._text.find("'", self._at + 1)
                if end < 0:
                    raise NotUnderstoodError("a quote that does not end")
                parts.append(Part("text", self._text[self._at + 1 : end], True))
                self._at = end + 1
            elif character == '"':
                self._at += 1
                self._quoted(parts)
            elif character == "$":
                parts.append(self._variable(False))
            elif character in "<>|&":
                raise NotUnderstoodError(f"{character!r} in a script")
            else:
                self._plain(parts)
        return tuple(parts)

    def _plain(self, parts: list[Part]) -> None:
        if self._text[self._at] == "\\":
            self._at += 1
            if self._at >= len(self._text):
                raise NotUnderstoodError("a backslash at the end")
            parts.append(Part("text", self._text[self._at], True))
            self._at += 1
        elif found := _RUN.match(self._text, self._at):
            parts.append(Part("text", found[0], False))
            self._at = found.end()

    def _quoted(self, parts: list[Part]) -> None:
        """Inside of double quotes, up to and with the closing one."""
        text: list[str] = []
        while self._at < len(self._text) and self._text[self._at] != '"':
            character = self._text[self._at]
            if character == "$":
                parts += [Part("text", "".join(text), True), self._variable(True)]
                text = []
                continue
            if character == "\\" and self._text[self._at + 1 : self._at + 2] in ("$", '"', "\\"):
                self._at += 1
                character = self._text[self._at]
            text.append(character)
            self._at += 1
        if self._at >= len(self._text):
            raise NotUnderstoodError("a quote that does not end")
        self._at += 1
        parts.append(Part("text", "".join(text), True))

    def _variable(self, quoted: bool) -> Part:
        end = self._at + 1
        if self._text.startswith("{", end):
            stop = self._text.find("}", end)
            name = self._text[end + 1 : stop] if stop > 0 else ""
            end = stop + 1
        else:
            while end < len(self._text) and self._text[end] in _NAME:
                end += 1
            name = self._text[self._at + 1 : end]
        if not name or any(character not in _NAME for character in name):
            raise NotUnderstoodError("a variable of another kind")
        self._at = end
        return Part("variable", name, quoted)
