"""What a control may expect of a fact's value: a small closed set of predicates, all data.

Every predicate answers ``holds(value)`` with True, False or None. None means that the value is of a kind this predicate
cannot judge (a text where a number was due): the judge makes that *unknown*, never a pass. Kinds are compared strictly,
because in Python ``True == 1`` and a control must not pass on the wrong kind of evidence.

Patterns are regular expressions over the whole text (``fullmatch``): ``$`` would accept a trailing newline.
"""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

from casemate.facts.fact import NO_LIMIT, Value


class Equals(msgspec.Struct, frozen=True, tag="equals"):
    """The value is exactly this one, and of the same kind."""

    value: str | int | bool

    def holds(self, value: Value) -> bool | None:
        return value == self.value if type(value) is type(self.value) else None

    def describe(self) -> str:
        return f"= {show(self.value)}"


class NotEquals(msgspec.Struct, frozen=True, tag="not-equals"):
    """The value is of the same kind as this one, and another."""

    value: str | int | bool

    def holds(self, value: Value) -> bool | None:
        return value != self.value if type(value) is type(self.value) else None

    def describe(self) -> str:
        return f"not {show(self.value)}"


class OneOf(msgspec.Struct, frozen=True, tag="one-of"):
    """The text is one of these."""

    values: tuple[str, ...]

    def holds(self, value: Value) -> bool | None:
        return value in self.values if isinstance(value, str) else None

    def describe(self) -> str:
        return "one of " + ", ".join(self.values)


class AtLeast(msgspec.Struct, frozen=True, tag="at-least"):
    """The number is this big or bigger."""

    limit: int

    def holds(self, value: Value) -> bool | None:
        number = _number(value)
        return None if number is None else number >= self.limit

    def describe(self) -> str:
        return f"at least {self.limit}"


class AtMost(msgspec.Struct, frozen=True, tag="at-most"):
    """The number is this big or smaller, and not negative: a count below zero is a reader's fault."""

    limit: int

    def holds(self, value: Value) -> bool | None:
        number = _number(value)
        return None if number is None else 0 <= number <= self.limit

    def describe(self) -> str:
        return f"at most {self.limit}"


class Matches(msgspec.Struct, frozen=True, tag="matches"):
    """The whole text matches; ``meaning`` says in words what the pattern accepts."""

    pattern: str
    meaning: str

    def holds(self, value: Value) -> bool | None:
        return re.fullmatch(self.pattern, value) is not None if isinstance(value, str) else None

    def describe(self) -> str:
        return self.meaning


class Present(msgspec.Struct, frozen=True, tag="present"):
    """The value is neither False, 0, an empty text nor an empty list."""

    def holds(self, value: Value) -> bool | None:
        return bool(value)

    def describe(self) -> str:
        return "present"


class Empty(msgspec.Struct, frozen=True, tag="empty"):
    """The list has no element."""

    def holds(self, value: Value) -> bool | None:
        return not value if isinstance(value, tuple) else None

    def describe(self) -> str:
        return "none"


class ContainsAll(msgspec.Struct, frozen=True, tag="contains-all"):
    """The list has every one of these."""

    values: tuple[str, ...]

    def holds(self, value: Value) -> bool | None:
        return set(self.values) <= set(value) if isinstance(value, tuple) else None

    def describe(self) -> str:
        return "all of " + ", ".join(self.values)


class ContainsAny(msgspec.Struct, frozen=True, tag="contains-any"):
    """The list has at least one of these."""

    values: tuple[str, ...]

    def holds(self, value: Value) -> bool | None:
        return not set(self.values).isdisjoint(value) if isinstance(value, tuple) else None

    def describe(self) -> str:
        return "at least one of " + ", ".join(self.values)


class SubsetOf(msgspec.Struct, frozen=True, tag="subset-of"):
    """The list has nothing but these; it may be empty."""

    values: tuple[str, ...]

    def holds(self, value: Value) -> bool | None:
        return set(value) <= set(self.values) if isinstance(value, tuple) else None

    def describe(self) -> str:
        return "nothing but " + ", ".join(self.values)


_compiled = lru_cache(maxsize=1024)(re.compile)


class EachMatches(msgspec.Struct, frozen=True, tag="each-matches"):
    """The list has elements and each one matches. An empty list fails: all of nothing proves nothing."""

    pattern: str
    meaning: str

    def holds(self, value: Value) -> bool | None:
        if not isinstance(value, tuple):
            return None
        fits = _compiled(self.pattern).fullmatch
        return bool(value) and all(fits(element) for element in value)

    def describe(self) -> str:
        return self.meaning


class NoneMatches(msgspec.Struct, frozen=True, tag="none-matches"):
    """No element of the list matches; an empty list is fine."""

    pattern: str
    meaning: str

    def holds(self, value: Value) -> bool | None:
        if not isinstance(value, tuple):
            return None
        fits = _compiled(self.pattern).fullmatch
        return not any(fits(element) for element in value)

    def describe(self) -> str:
        return self.meaning


Expectation = (
    Equals
    | NotEquals
    | OneOf
    | AtLeast
    | AtMost
    | Matches
    | Present
    | Empty
    | ContainsAll
    | ContainsAny
    | SubsetOf
    | EachMatches
    | NoneMatches
)

SHOWN_MAX_CHARS = 400


def _number(value: Value) -> int | float | None:
    """The value as a number; None for any other kind, and for bool, which Python counts among the integers."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def show(value: Value) -> str:
    """A value as evidence text: one line, printable, bounded. Values can come from a hostile process."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        text = ", ".join(value)
        if len(text) > 4 * SHOWN_MAX_CHARS or not text.isprintable():
            text = ", ".join([show_text(element) for element in value])
        text = text or "(none)"
    elif value == NO_LIMIT:
        return "unlimited"
    else:
        text = show_text(str(value)) or "(empty)"
    return text if len(text) <= SHOWN_MAX_CHARS else f"{text[:SHOWN_MAX_CHARS]}… ({len(text)} characters)"


def show_text(text: str) -> str:
    """Text with everything unprintable escaped, so that evidence cannot drive a terminal or break a line."""
    if len(text) > 4 * SHOWN_MAX_CHARS:
        text = text[: 4 * SHOWN_MAX_CHARS]
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
