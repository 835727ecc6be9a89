"""Words of a specification: which characters they may hold, how they are shown, how a path is made absolute.

Commas, ``=`` and ``%`` are allowed everywhere: the one writer of emulator options escapes them. What is refused are
characters that no quoting makes safe in every place a path or a reason turns up (arguments, logs, terminals): C0 and C1
controls, line and paragraph separators, the direction marks of Unicode, and lone surrogates (names that are not UTF-8).
"""

from __future__ import annotations

import posixpath
import re

from casemate.spec.faults import Faults

MAX_PATH_BYTES = 4095
"""PATH_MAX of Linux, without the closing NUL (limits.h)."""

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_PSEUDO_PROTOCOL = re.compile(r"^(?:[a-z][a-z0-9+.-]*://|json:\s*\{)", re.IGNORECASE)


def show(value: object) -> str:
    """A value as it is quoted in a message: at most 60 characters, nothing that a terminal would obey."""
    if isinstance(value, str):
        text = '"' + (value[:60] + "…" if len(value) > 60 else value) + '"'
    elif isinstance(value, dict):
        return "a table"
    elif isinstance(value, list):
        return "a list"
    elif isinstance(value, bool):
        return "true" if value else "false"
    elif isinstance(value, int):
        return str(value) if abs(value) < 1 << 70 else "a very large number"
    else:
        text = str(value)[:60]
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def unsafe_character(text: str) -> str | None:
    """The first character of ``text`` that is refused, written as ``U+000A at position 3``, or None."""
    match = _UNSAFE.search(text)
    return f"U+{ord(match[0]):04X} at position {match.start() + 1}" if match else None


def resolve_path(raw: str, base_dir: str, where: str, faults: Faults) -> str | None:
    """Make ``raw`` absolute and normal, relative to ``base_dir``; None after noting a fault.

    Leading ``..`` steps up from ``base_dir``, which the caller has already resolved. A ``..`` further on is refused: if
    the directory before it is a symbolic link, the kernel and a reader of the text would arrive at different files.
    """
    if not posixpath.isabs(base_dir):
        raise RuntimeError(f"base directory must be absolute: {base_dir!r}")
    fault = _path_fault(raw)
    if fault is not None:
        faults.add(where, *fault)
        return None
    joined = posixpath.normpath(posixpath.join(base_dir, raw))
    resolved = "/" + joined.lstrip("/")
    if len(resolved.encode()) > MAX_PATH_BYTES:
        faults.add(where, "path.too-long", f"the path has {len(resolved.encode())} bytes, at most {MAX_PATH_BYTES}")
        return None
    return resolved


def _path_fault(raw: str) -> tuple[str, str] | None:
    """Fault id and message for a path that cannot be resolved, or None."""
    if not raw.strip():
        return "path.empty", "the path is empty"
    if raw.startswith("~"):
        return "path.home", f"{show(raw)} starts with ~, which is not expanded; write the full path"
    if _PSEUDO_PROTOCOL.match(raw):
        return "path.url", f"{show(raw)} is not a file; only local files are opened, so download it first"
    if raw.endswith(("/", "/.", "/..")) or raw in {".", ".."}:
        return "path.directory", f"{show(raw)} names a directory; expected a file"
    parts = [part for part in raw.split("/") if part not in {"", "."}]
    leading = 0
    while not raw.startswith("/") and leading < len(parts) and parts[leading] == "..":
        leading += 1
    if ".." in parts[leading:]:
        return "path.parent", f"{show(raw)} has .. after a directory name; write the path without it"
    return None
