"""The files of a guest that its audit reads, copied out of the cell into a tree in memory: one boot, one walk.

Every name is noted, so that absence is known; contents only of `facts.guest_wanted_data.WANTED`.
"""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING

from casemate.errors import ImageError, InputError
from casemate.facts.guest_wanted_data import MAX_FILE_BYTES, MAX_TOTAL_BYTES, WANTED
from casemate.facts.memory_root import MemoryRoot, MemoryTree, Noted

if TYPE_CHECKING:
    from casemate.cell.cell import Cell

ENTRIES_MAX = 2_000_000


def guest_root(cell: Cell, name: str, time_s: float) -> MemoryRoot:
    """The system volume of an image as a tree of facts.

    Args:
        time_s: what the tree takes for now, Unix time.

    Raises:
        ImageError: no volume holds a system, or it has too many files. VmError: the cell died or lied.
    """
    volume = cell.system()
    wanted = re.compile("|".join(_expression(pattern) for pattern in WANTED))
    files: dict[str, bytes] = {}
    links: dict[str, str] = {}
    names: dict[str, list[str]] = {"/": []}
    status: dict[str, Noted] = {}
    unread: dict[str, int] = {}
    to_read: list[tuple[str, bytes]] = []
    for entry in cell.walk(volume.name, b"/", entries_max=ENTRIES_MAX):
        path = "/" + entry.path.decode("utf-8", "backslashreplace")
        parent, _, last = path.rpartition("/")
        names.setdefault(parent or "/", []).append(last)
        if entry.error:
            unread[path] = entry.error
        if entry.is_directory:
            names.setdefault(path, [])
        elif entry.is_link:
            links[path] = entry.target.decode("utf-8", "backslashreplace")
            continue
        elif entry.is_file and wanted.fullmatch(path):
            if entry.size_bytes:
                to_read.append((path, b"/" + entry.path))
            else:
                files[path] = b""
        status[path] = (entry.mode, entry.uid, entry.gid, 0, 0, entry.inode, entry.size_bytes)
    total = 0
    for path, raw in to_read:
        if status[path][6] > MAX_FILE_BYTES or total + status[path][6] > MAX_TOTAL_BYTES:
            unread[path] = errno.EFBIG
            continue
        try:
            files[path] = cell.read(volume.name, raw, MAX_FILE_BYTES)
        except (ImageError, InputError):
            unread[path] = errno.EIO
        else:
            total += len(files[path])
    tree = MemoryTree(
        files=files,
        links=links,
        folders=frozenset(names),
        names={folder: tuple(found) for folder, found in names.items()},
        status=status,
        unread=unread,
        looked_for=(),
        time_s=time_s,
    )
    return MemoryRoot(tree, name)


def _expression(pattern: str) -> str:
    parts = re.split(r"(\*\*|\*)", pattern)
    return "".join({"**": ".*", "*": "[^/]*"}.get(part) or re.escape(part) for part in parts)
