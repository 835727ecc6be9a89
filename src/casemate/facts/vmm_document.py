"""JSON and TOML configurations of VMMs as bounded trees, read through a view that notes what it does not understand.

A key that no reader asked for, or a value of another kind than it should have, makes the machine *unreadable* there:
whoever judges must not take it for absent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from casemate.errors import InputError
from casemate.facts.qemu_argv_draft import Draft

MAX_BYTES: Final = 1 << 20
MAX_TEXT_CHARS: Final = 1 << 16
MAX_ITEMS: Final = 4096


def parse_json(data: bytes, source: str) -> dict[str, Any]:
    """The object that a JSON document holds.

    Raises:
        InputError: too large, not JSON, nested too deep, or no object.
    """
    import msgspec

    _bound(data, source)
    try:
        found = msgspec.json.decode(data.removeprefix(b"\xef\xbb\xbf"))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(f"{source}: not JSON", got=str(error)[:200]) from None
    return _object(found, source)


def parse_toml(data: bytes, source: str) -> dict[str, Any]:
    """The table that a TOML document holds.

    Raises:
        InputError: as `parse_json`.
    """
    import tomllib

    _bound(data, source)
    try:
        found = tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source}: not TOML", got=str(error)[:200]) from None
    return _object(found, source)


def _bound(data: bytes, source: str) -> None:
    if len(data) > MAX_BYTES:
        raise InputError(f"{source}: too large", got=f"{len(data)} bytes", expected=f"at most {MAX_BYTES} bytes")


def _object(found: Any, source: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise InputError(f"{source}: no object", got=type(found).__name__, expected="names with values")
    return found


class View:
    """One object of a document. What is asked for is ticked off; `done` notes the rest."""

    def __init__(self, tree: dict[str, Any], place: str, draft: Draft) -> None:
        self._tree, self._place, self._draft = tree, place, draft
        self._asked: set[str] = set()

    @property
    def place(self) -> str:
        """Where this object stands, as ``drives[0]``; empty for the whole document."""
        return self._place

    def at(self, key: str) -> str:
        """The place of a key."""
        return f"{self._place}.{key}" if self._place else key

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        self._asked.add(key)
        return self._tree.get(key) is not None

    def text(self, key: str, default: str = "") -> str:
        """A text; ``default`` when it is absent."""
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, str) or len(value) > MAX_TEXT_CHARS:
            return str(self._wrong(key, "a text", default))
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """A truth value."""
        value = self._get(key)
        if value is None:
            return default
        return value if isinstance(value, bool) else bool(self._wrong(key, "true or false", default))

    def number(self, key: str, default: int = 0) -> int:
        """A whole number that is not negative."""
        value = self._get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
            return int(self._wrong(key, "a number", default))
        return value

    def child(self, key: str) -> View:
        """An object; an empty one when it is absent."""
        value = self._get(key)
        if value is None:
            value = {}
        elif not isinstance(value, dict):
            value = self._wrong(key, "an object", {})
        return View(value, self.at(key), self._draft)

    def each(self, key: str) -> Iterator[View]:
        """The objects of a list."""
        for number, value in enumerate(self._list(key)):
            place = f"{self.at(key)}[{number}]"
            if isinstance(value, dict):
                yield View(value, place, self._draft)
            else:
                self._draft.miss(f"{place}: not an object")

    def texts(self, key: str) -> tuple[str, ...]:
        """The texts of a list."""
        found = []
        for value in self._list(key):
            if isinstance(value, str) and len(value) <= MAX_TEXT_CHARS:
                found.append(value)
            else:
                self._draft.miss(f"{self.at(key)}: not a list of texts")
        return tuple(found)

    def skip(self, *keys: str) -> None:
        """Tick off keys that change nothing which anybody judges."""
        self._asked.update(keys)

    def done(self, known: Iterable[str] = ()) -> None:
        """Note the keys that nobody asked for."""
        for key in self._tree.keys() - self._asked - set(known):
            self._draft.miss(f"{self.at(str(key)[:80])}: not known to this reader")

    def _get(self, key: str) -> Any:
        self._asked.add(key)
        return self._tree.get(key)

    def _list(self, key: str) -> list[Any]:
        value = self._get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            return self._wrong(key, "a list", [])  # type: ignore[no-any-return]
        if len(value) > MAX_ITEMS:
            self._draft.miss(f"{self.at(key)}: more than {MAX_ITEMS} elements")
        return value[:MAX_ITEMS]

    def _wrong(self, key: str, expected: str, default: Any) -> Any:
        self._draft.miss(f"{self.at(key)}: expected {expected}")
        return default
