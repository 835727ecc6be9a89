"""Small questions to a file tree that several collectors ask; each answer is a value or Unknown with the reason."""

from __future__ import annotations

from casemate.facts.fact import Fact, Known, Unknown
from casemate.facts.root import Root

_LINE_BYTES = 4096
HEAD_BYTES = 1 << 16


def line(root: Root, path: str) -> str | Unknown:
    """The text of a file of one line (sysfs, a sysctl), stripped."""
    try:
        return root.read_text(path, _LINE_BYTES).strip()
    except OSError as error:
        return Unknown(f"{path}: {error.strerror or error}")


def names(root: Root, path: str) -> tuple[str, ...] | Unknown:
    """The names in a directory."""
    try:
        return root.list_dir(path)
    except OSError as error:
        return Unknown(f"{path}: {error.strerror or error}")


def names_or_none(root: Root, path: str, parent: str) -> tuple[str, ...] | Unknown:
    """The names in a directory; empty when ``parent`` is there and the directory is not: then absence proves it."""
    found = names(root, path)
    if isinstance(found, Unknown) and is_there(root, path) is False and is_there(root, parent) is True:
        return ()
    return found


def is_there(root: Root, path: str) -> bool | Unknown:
    """Whether a path leads to something."""
    try:
        return root.exists(path)
    except OSError as error:
        return Unknown(f"{path}: {error.strerror or error}")


def head(root: Root, path: str, limit_bytes: int = HEAD_BYTES) -> str | Unknown:
    """The beginning of a file that may be long (/proc/cpuinfo of hundreds of CPUs)."""
    try:
        return root.read_head(path, limit_bytes).decode("utf-8", "backslashreplace")
    except OSError as error:
        return Unknown(f"{path}: {error.strerror or error}")


def listed(values: list[str] | tuple[str, ...] | Unknown, source: str) -> Fact:
    """A list as a fact, each element once."""
    return values if isinstance(values, Unknown) else Known(tuple(dict.fromkeys(values)), source)
