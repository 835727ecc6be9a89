"""``casemate detect`` as plain data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from casemate.errors import InputError
from casemate.facts.detect import detect, matches
from casemate.facts.root import Root

DETECT_SCHEMA: Final = "casemate.detect/1"


def detect_document(root: str | None, expect: str | None) -> dict[str, Any]:
    """Look, and compare with what the owner expects.

    Raises:
        InputError: ``root`` is no directory.
    """
    if root is not None and not Path(root).is_dir():
        raise InputError(f"captured tree {root!r}", got="no directory", expected="a directory with proc, sys, etc")
    found = detect(Root(root or "/"))
    document: dict[str, Any] = {"schema": DETECT_SCHEMA, "root": root or "/"}
    document |= msgspec.to_builtins(found)
    document["expected"] = None
    if expect is not None:
        name = expect.strip().lower()
        document["expected"] = {"name": name, "holds": matches(found, name)}
    return document
