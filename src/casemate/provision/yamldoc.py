"""The shape of a YAML document, read from its events: bounded, without building a value and without recursion.

PyYAML is what cloud-init itself reads with. Its composer follows nesting by recursion and expands aliases into one
tree; its event stream does neither, so a hostile document costs no more than its length.
"""

from __future__ import annotations

from typing import NamedTuple

from casemate.errors import InputError

DEPTH_MAX = 64
KEYS_MAX = 512


class Entry(NamedTuple):
    """One key of the top-level mapping: kind of its value (``s``, ``l``, ``m``, ``0``), the value if a short scalar."""

    key: str
    kind: str
    value: str
    line: int


class Shape(NamedTuple):
    """``kind`` of the whole document, and its entries when it is a mapping; ``inner`` those one level below by key."""

    kind: str
    entries: tuple[Entry, ...]
    inner: dict[str, tuple[Entry, ...]]


def read_shape(text: str, what: str) -> Shape:
    """The shape of the one document in ``text``.

    Raises:
        InputError: not YAML, several documents, too deep, or keys that are not plain words. Never quotes the document:
            it can be a secret.
    """
    import yaml

    reader = _Reader(what)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        for event in yaml.parse(text, Loader=loader):
            reader.take(yaml, event)
    except yaml.YAMLError as fault:
        mark = getattr(fault, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark is not None else "no place"
        raise InputError(f"{what} is not YAML", got=where, next_step="yamllint shows what is wrong there") from None
    except RecursionError:
        raise InputError(f"{what} is nested too deeply") from None
    return Shape(reader.kind, tuple(reader.levels[0]), {key: tuple(found) for key, found in reader.inner.items()})


class _Reader:
    """Follows depth and, on the two upper levels, whether the next node is a key."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.kind = ""
        self.levels: list[list[Entry]] = [[]]
        self.inner: dict[str, list[Entry]] = {}
        self._stack: list[str] = []
        self._keys: list[tuple[str, int] | None] = []
        self._documents = 0

    def take(self, yaml: object, event: object) -> None:
        """One event."""
        name = type(event).__name__
        line = event.start_mark.line + 1  # type: ignore[attr-defined]
        if name == "DocumentStartEvent":
            self._documents += 1
            if self._documents > 1:
                raise InputError(f"{self.what} has several documents", got=f"a second one at line {line}")
        elif name in {"MappingStartEvent", "SequenceStartEvent"}:
            kind = "m" if name.startswith("M") else "l"
            self._node(kind, "", line)
            self._stack.append(kind)
            self._keys.append(None)
            if len(self._stack) > DEPTH_MAX:
                raise InputError(f"{self.what} is nested deeper than {DEPTH_MAX} levels", got=f"line {line}")
        elif name in {"MappingEndEvent", "SequenceEndEvent"}:
            self._stack.pop()
            self._keys.pop()
        elif name == "ScalarEvent":
            value: str = event.value  # type: ignore[attr-defined]
            plain: bool = event.implicit[0]  # type: ignore[attr-defined]
            nothing = plain and value in {"", "~", "null", "Null", "NULL"}
            self._node("0" if nothing else "s", value, line)
        elif name == "AliasEvent":
            self._node("a", "", line)

    def _node(self, kind: str, value: str, line: int) -> None:
        depth = len(self._stack)
        if depth == 0:
            self.kind = kind
            return
        if depth > 2 or self._stack[-1] != "m":
            return
        pending = self._keys[-1]
        if pending is None:
            if kind not in {"s", "0"} or len(value) > 128:
                raise InputError(f"{self.what}: a key that is not a plain word", got=f"line {line}")
            self._keys[-1] = (value, line)
            return
        self._keys[-1] = None
        entry = Entry(pending[0], kind, value if kind == "s" and len(value) <= 64 else "", pending[1])
        found = self.levels[0] if depth == 1 else self.inner.setdefault(self._parent(), [])
        found.append(entry)
        if len(found) > KEYS_MAX:
            raise InputError(f"{self.what} has more than {KEYS_MAX} keys")

    def _parent(self) -> str:
        outer = self._keys[0]
        return outer[0] if outer is not None else (self.levels[0][-1].key if self.levels[0] else "")
