"""An Ignition 3.x config is checked whole before a guest gets it: closed objects, types, and where it fetches from.

Ignition runs once, in the initramfs, as root, and a guest whose config is refused there hangs in an emergency shell.
"""

from __future__ import annotations

import difflib
import json
from typing import Any

from casemate.errors import InputError
from casemate.provision.ignition_data import OBJECTS, VERSIONS

CONFIG_MAX_BYTES = 512 * 1024
_FAULTS_MAX = 20
_PLAIN = ("http:", "tftp:")
_KNOWN = (*_PLAIN, "https:", "data:", "s3:", "gs:", "arn:")
_TYPES: dict[str, type] = {"str": str, "int": int, "bool": bool}


def check_ignition(data: bytes | bytearray, what: str, *, secret: bool = False) -> None:
    """Refuse a config that Ignition would refuse, or that fetches over plain HTTP or TFTP without a digest.

    Args:
        secret: no key of the document may be quoted. Values never are.

    Raises:
        InputError: with all faults (at most twenty).
    """
    if not 0 < len(data) <= CONFIG_MAX_BYTES:
        raise InputError(what, got=f"{len(data)} bytes", expected=f"1 to {CONFIG_MAX_BYTES}")
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError as fault:
        raise InputError(f"{what} is not UTF-8", got=f"byte {fault.start}") from None
    except (ValueError, RecursionError) as fault:
        where = (
            f"line {fault.lineno}, column {fault.colno}" if isinstance(fault, json.JSONDecodeError) else "keys twice"
        )
        got = where if not isinstance(fault, RecursionError) else "nested too deeply"
        step = "butane --strict FILE writes Ignition's JSON out of YAML"
        raise InputError(f"{what} is not JSON as Ignition takes it", got=got, next_step=step) from None
    checker = _Checker(secret)
    checker.value("config", document, "")
    version = document.get("ignition") if isinstance(document, dict) else None
    number = version.get("version") if isinstance(version, dict) else None
    if isinstance(number, str) and number not in VERSIONS:
        checker.faults.append(f"ignition.version: expected one of {', '.join(VERSIONS)}")
    if checker.faults:
        count = len(checker.faults)
        lines = "".join(f"\n  {fault}" for fault in checker.faults[:_FAULTS_MAX])
        raise InputError(f"{what}: {count} fault{'s' if count > 1 else ''}{lines}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found


class _Checker:
    """Walks the document beside `OBJECTS`."""

    def __init__(self, secret: bool) -> None:
        self.faults: list[str] = []
        self._secret = secret

    def value(self, kind: str, value: Any, where: str) -> None:
        """One value against one type of `OBJECTS`."""
        kind = kind.removesuffix("!")
        if len(self.faults) > 4 * _FAULTS_MAX:
            return
        if kind.startswith("["):
            if not isinstance(value, list):
                self._say(where, "expected a list")
                return
            for index, item in enumerate(value):
                self.value(kind[1:-1], item, f"{where}[{index}]")
        elif kind in _TYPES:
            if type(value) is not _TYPES[kind]:
                self._say(where, f"expected {kind}")
        elif not isinstance(value, dict):
            self._say(where, "expected an object")
        else:
            self._object(kind, value, where)

    def _object(self, kind: str, value: dict[str, Any], where: str) -> None:
        members = OBJECTS[kind]
        for key, item in value.items():
            name = f"{where}.{key}".lstrip(".")
            if key not in members:
                close = difflib.get_close_matches(key[:64], members, 1)
                shown = f"{where}: a key" if self._secret else name[:200]
                self._say(shown, "no such key" + (f"; {close[0]}?" if close and not self._secret else ""))
            elif item is not None or members[key].endswith("!"):  # null means "not given" to Ignition
                self.value(members[key], item, name)
        for key, wanted in members.items():
            if wanted.endswith("!") and key not in value:
                self._say(f"{where}.{key}".lstrip("."), "is missing")
        if kind == "resource":
            self._resource(value, where)

    def _resource(self, value: dict[str, Any], where: str) -> None:
        source, verification = value.get("source"), value.get("verification")
        if not isinstance(source, str) or not source:
            return
        if not source.startswith(_KNOWN):
            self._say(f"{where}.source", f"expected a URL: {' '.join(_KNOWN)}")
        checked = isinstance(verification, dict) and isinstance(verification.get("hash"), str)
        if source.startswith(_PLAIN) and not checked:
            self._say(
                f"{where}.source", "plain HTTP or TFTP without verification.hash: anybody on the way could change it"
            )

    def _say(self, where: str, what: str) -> None:
        self.faults.append(f"{where or 'the document'}: {what}")
