"""Turns plain data into the types of ``spec/model.py`` and notes every fault on the way.

``msgspec.convert`` stops at the first fault; a person who wrote six wrong lines wants to hear of six. So this walk
follows the same types (through ``msgspec.inspect``), one value at a time:

1. a table: unknown keys are refused with the nearest known name; missing keys are named; values are walked by type;
2. a list: each item is walked; a broken item becomes None, so that later items keep their index in messages;
3. a value: exact type (true is not 1, 256.0 is not 256), then bounds, then the check that its ``kind`` names.

A broken value takes its default in the result, and ``Faults.broken`` keeps rules from judging it.
"""

from __future__ import annotations

import datetime
import re
from functools import lru_cache
from typing import Any, Final

import msgspec
from msgspec import inspect

from casemate.spec.faults import Faults
from casemate.spec.model import Spec
from casemate.spec.network import canonical_address, canonical_cidr, forbidden_part, split_publish
from casemate.spec.text import resolve_path, show, unsafe_character

BROKEN: Final = object()
"""Stands for a value that had a fault."""

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")

_PATTERN_WORDS = {
    r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$": "one label of a host name: a-z 0-9 -, at most 63 characters",
    r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$": "1 to 63 characters a-z A-Z 0-9 _ . - that start with a letter or digit",
    r"^[a-z0-9][a-z0-9_.-]{0,62}$": "1 to 63 characters a-z 0-9 _ . - that start with a letter or digit",
    r"^[a-z0-9][a-z0-9_.-]{0,63}$": "the name or digest of an image of the store",
    r"^[0-9a-f]{64}$": "64 hexadecimal digits in lower case",
    r"^[0-9a-f]{96}$": "96 hexadecimal digits in lower case",
    r"^[A-Za-z0-9+/]+={0,2}$": "base64",
    r"^EPYC(-(Rome|Milan|Genoa|Turin))?(-v[0-9]{1,2})?$": "a CPU model of QEMU's: EPYC, EPYC-Milan, EPYC-Genoa-v2 …",
    r"^[0-9]{1,3}\.[0-9]{1,3}$": "a version, for example 1.55",
    r"^(tcp|udp)$": '"tcp" or "udp"',
    r"^[a-z]+\.[a-z0-9-]+$": "the id of a control, for example proc.dumpable",
    r"^[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$": "a PCI address, for example 0000:3b:02.1",
}


@lru_cache(maxsize=1)
def _fields() -> dict[str, msgspec.structs.FieldInfo]:
    """The tables and keys at the top, by name."""
    return {field.encode_name: field for field in msgspec.structs.fields(Spec)}


@lru_cache(maxsize=64)
def _type_of(key: str) -> inspect.Type:
    """Of one of them, once it is there: looking at every type of the specification takes longer than the walk."""
    return inspect.type_info(_fields()[key].type)


class Walk:
    """One pass over one document.

    Args:
        base_dir: absolute directory that relative paths start from.
        faults: where faults are noted.
    """

    def __init__(self, base_dir: str, faults: Faults) -> None:
        self._base_dir = base_dir
        self._faults = faults

    def spec(self, document: dict[str, Any]) -> Spec:
        """The whole document. Lists may hold None where an item was broken: use it only when there are no faults."""
        fields = _fields()
        arguments: dict[str, Any] = {}
        for key, value in document.items():
            field = fields.get(key)
            if field is None:
                self._unknown_key(str(key), tuple(fields), "")
                continue
            result = self._value(_type_of(key), value, key)
            if result is not BROKEN:
                arguments[field.name] = result
        return Spec(**arguments)

    def _value(self, node: inspect.Type, value: object, path: str) -> Any:
        """``value`` checked against ``node``; ``BROKEN`` after noting a fault."""
        kind = ""
        while True:
            if isinstance(node, inspect.Metadata):
                kind = str((node.extra or {}).get("kind", kind))
                node = node.type
            elif isinstance(node, inspect.UnionType):
                if value is None:
                    return None
                node = next(part for part in node.types if not isinstance(part, inspect.NoneType))
            else:
                break
        if isinstance(node, inspect.StructType):
            return self._table(node, value, path)
        if isinstance(node, inspect.DictType):
            return self._mapping(node, value, path)
        if isinstance(node, inspect.VarTupleType):
            return self._list(node, value, path, kind)
        if isinstance(node, inspect.EnumType):
            return self._choice(node, value, path)
        if isinstance(node, inspect.BoolType | inspect.IntType | inspect.DateType):
            return self._plain(node, value, path)
        if isinstance(node, inspect.StrType):
            return self._text(node, value, path, kind)
        raise RuntimeError(f"the specification has a type without a walk: {node!r}")

    def _table(self, node: inspect.StructType, value: object, path: str) -> Any:
        if not isinstance(value, dict):
            return self._wrong(path, "a table", value)
        fields = {field.encode_name: field for field in node.fields}
        for key in value:
            if key not in fields:
                self._unknown_key(str(key), tuple(fields), path)
        arguments: dict[str, Any] = {}
        complete = True
        for name, field in fields.items():
            where = f"{path}.{name}" if path else name
            if name not in value:
                if field.required:
                    self._faults.add(where, "key.missing", f"{name} is missing")
                    complete = False
                continue
            result = self._value(field.type, value[name], where)
            if result is not BROKEN:
                arguments[field.name] = result
            elif field.required:
                complete = False
        return node.cls(**arguments) if complete else BROKEN

    def _mapping(self, node: inspect.DictType, value: object, path: str) -> Any:
        """A table whose keys are names that the writer chose."""
        if not isinstance(value, dict):
            return self._wrong(path, f"a table: [{path}.NAME]", value)
        if node.max_length is not None and len(value) > node.max_length:
            return self._fault(path, "value.length", f"has {len(value)} entries; expected at most {node.max_length}")
        found = {}
        for key, written in value.items():
            where = f"{path}.{_key(key)}"
            name = self._value(node.key_type, key, where)
            item = self._value(node.value_type, written, where)
            if name is not BROKEN and item is not BROKEN:
                found[name] = item
        return found

    def _unknown_key(self, key: str, known: tuple[str, ...], path: str) -> None:
        where = f"{path}.{_key(key)}" if path else _key(key)
        self._faults.add(where, "key.unknown", f"no such key; {_hint(key, known, at_top=not path)}")

    def _list(self, node: inspect.VarTupleType, value: object, path: str, kind: str) -> Any:
        if not isinstance(value, list | tuple):
            if isinstance(value, dict):
                return self._fault(
                    path, "type.wrong", f"expected a list of tables; write [[{path}]] instead of [{path}]"
                )
            return self._wrong(path, "a list", value)
        if node.max_length is not None and len(value) > node.max_length:
            return self._fault(path, "value.length", f"has {len(value)} entries; expected at most {node.max_length}")
        if len(value) < (node.min_length or 0):
            return self._fault(path, "value.length", f"has {len(value)} entries; expected at least {node.min_length}")
        items: list[Any] = []
        for index, written in enumerate(value):
            where = f"{path}[{index}]"
            item = self._publish(written, where) if kind == "publish" and isinstance(written, str) else written
            result = BROKEN if item is BROKEN else self._value(node.item_type, item, where)
            items.append(None if result is BROKEN else result)
        return tuple(items)

    def _publish(self, text: str, path: str) -> object:
        try:
            return split_publish(text)
        except ValueError as error:
            return self._fault(path, "publish.syntax", str(error))

    def _choice(self, node: inspect.EnumType, value: object, path: str) -> Any:
        if not isinstance(value, str):
            return self._wrong(path, "a string", value)
        choices = tuple(str(member.value) for member in node.cls)
        if value not in choices:
            listed = ", ".join(f'"{choice}"' for choice in choices)
            return self._fault(
                path, "value.choice", f"got {show(value)}; expected one of {listed}{_close(value, choices)}"
            )
        return node.cls(value)

    def _plain(self, node: inspect.BoolType | inspect.IntType | inspect.DateType, value: object, path: str) -> Any:
        if isinstance(node, inspect.IntType):
            return self._number(node, value, path)
        if isinstance(node, inspect.DateType):
            return self._date(value, path)
        return value if isinstance(value, bool) else self._wrong(path, "true or false", value)

    def _number(self, node: inspect.IntType, value: object, path: str) -> Any:
        if type(value) is not int:
            return self._wrong(path, "an integer", value)
        if (node.ge is not None and value < node.ge) or (node.le is not None and value > node.le):
            return self._fault(path, "value.range", f"got {show(value)}; expected {node.ge} to {node.le}")
        return value

    def _date(self, value: object, path: str) -> Any:
        if type(value) is datetime.date:
            return value
        if isinstance(value, str) and _DATE.fullmatch(value):
            try:
                return datetime.date.fromisoformat(value)
            except ValueError as error:
                return self._fault(path, "value.range", f"{show(value)} is no day: {error}")
        return self._wrong(path, "a date like 2027-01-31", value)

    def _text(self, node: inspect.StrType, value: object, path: str, kind: str) -> Any:
        if not isinstance(value, str):
            return self._wrong(path, "a string", value)
        unsafe = unsafe_character(value)
        if unsafe is not None:
            return self._fault(path, "text.control", f"has the character {unsafe}; remove it")
        if node.pattern is not None and re.fullmatch(node.pattern.removesuffix("$"), value) is None:
            words = _PATTERN_WORDS.get(node.pattern, node.pattern)
            return self._fault(path, "value.pattern", f"got {show(value)}; expected {words}")
        if kind == "path":
            resolved = resolve_path(value, self._base_dir, path, self._faults)
            return BROKEN if resolved is None else resolved
        low, high = node.min_length or 0, node.max_length
        if len(value) < low or (high is not None and len(value) > high):
            return self._fault(path, "value.length", f"has {len(value)} characters; expected {low} to {high}")
        return self._kind(kind, value, path)

    def _kind(self, kind: str, value: str, path: str) -> Any:
        """The check beyond type and bounds that ``Meta(extra={"kind": ...})`` asks for."""
        if kind == "ascii" and not value.isascii():
            return self._fault(path, "text.ascii", f"got {show(value)}; expected printable ASCII")
        try:
            if kind == "address":
                return canonical_address(value)
            if kind == "cidr":
                block = canonical_cidr(value)
                forbidden = forbidden_part(block)
                if forbidden is not None:
                    return self._fault(path, "cidr.forbidden", f'"{block}" touches {forbidden}')
                return block
        except ValueError as error:
            return self._fault(path, f"{kind}.invalid", str(error))
        return value

    def _wrong(self, path: str, expected: str, value: object) -> Any:
        if path.startswith("secrets."):  # what was written there by mistake may be the secret itself
            return self._fault(path, "type.wrong", f"expected {expected}, got something else")
        names = {str: "the string ", bool: "the boolean ", float: "the float "}
        return self._fault(path, "type.wrong", f"expected {expected}, got {names.get(type(value), '')}{show(value)}")

    def _fault(self, path: str, fault_id: str, message: str) -> Any:
        self._faults.add(path, fault_id, message)
        return BROKEN


def _key(key: str) -> str:
    """A key as part of a path; quoted when it is not a bare TOML key."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]{1,60}", key) else show(key)


def _close(word: str, known: tuple[str, ...]) -> str:
    import difflib

    near = difflib.get_close_matches(word[:64].lower(), known, n=1, cutoff=0.6)
    return f'; did you mean "{near[0]}"?' if near else ""


def _hint(key: str, known: tuple[str, ...], *, at_top: bool) -> str:
    """What the writer of an unknown key may have meant."""
    near = _close(key, known)
    if near:
        return near.removeprefix("; ")
    if at_top:
        homes = [name for name, field in _fields().items() if key in _keys_of(field.type)]
        if homes:
            return f"{key} belongs in [{homes[0]}]"
    return "known here: " + ", ".join(known)


def _keys_of(table: object) -> tuple[str, ...]:
    is_struct = isinstance(table, type) and issubclass(table, msgspec.Struct)
    return table.__struct_encode_fields__ if is_struct else ()  # type: ignore[attr-defined]
