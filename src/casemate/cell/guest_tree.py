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
    from casemate.cell.model import Volume

ENTRIES_MAX = 2_000_000
NAMES_MAX_BYTES = 512 << 20
"""Of all paths together: a hostile file system may have millions of long ones."""


def guest_root(cell: Cell, name: str, time_s: float) -> MemoryRoot:
    """The system volume of an image as a tree of facts.

    Args:
        time_s: what the tree takes for now, Unix time.

    Raises:
        ImageError: no volume holds a system, or it has too many files. VmError: the cell died or lied.
    """
    system = cell.system()
    gathered = _Gathered()
    for volume, place in _mounts(cell, system):
        gathered.take(cell, volume.name, place)
    names = gathered.names
    tree = MemoryTree(
        files=gathered.files,
        links=gathered.links,
        folders=frozenset(names),
        names={folder: tuple(found) for folder, found in names.items()},
        status=gathered.status,
        unread=gathered.unread,
        looked_for=(),
        time_s=time_s,
    )
    return MemoryRoot(tree, name)


def _mounts(cell: Cell, system: Volume) -> list[tuple[Volume, str]]:
    """(volume, where the guest would mount it): the system itself, a /boot of its own, the EFI system partition."""
    found = [(system, "")]
    for volume in cell.volumes():
        if volume.name == system.name or not volume.readable or volume.os is not None:
            continue
        if volume.content == "vfat":
            found.append((volume, "/boot/efi"))
            continue
        names = [entry.path for entry in cell.list(volume.name, b"/", entries_max=10_000)]
        if any(name.startswith((b"vmlinuz", b"grub")) for name in names):
            found.append((volume, "/boot"))
    return found


class _Gathered:
    """What was copied out so far."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.links: dict[str, str] = {}
        self.names: dict[str, list[str]] = {"/": []}
        self.status: dict[str, Noted] = {}
        self.unread: dict[str, int] = {}
        self._total = 0
        self._name_bytes = 0
        self._wanted = re.compile("|".join(_expression(pattern) for pattern in WANTED))

    def take(self, cell: Cell, volume: str, place: str) -> None:
        """One volume, as mounted at ``place``."""
        to_read: list[tuple[str, bytes]] = []
        if place:
            self._folder(place)
        for entry in cell.walk(volume, b"/", entries_max=ENTRIES_MAX):
            path = f"{place}/{entry.path.decode('utf-8', 'backslashreplace')}"
            self._name_bytes += len(path)
            if self._name_bytes > NAMES_MAX_BYTES:
                raise ImageError(
                    "the paths of this image are longer than an audit keeps",
                    expected=f"at most {NAMES_MAX_BYTES >> 20} MiB of names",
                )
            parent, _, last = path.rpartition("/")
            siblings = self.names.setdefault(parent or "/", [])
            if not place or last not in siblings:
                siblings.append(last)
            if entry.error:
                self.unread[path] = entry.error
            if entry.is_directory:
                self.names.setdefault(path, [])
            elif entry.is_link:
                self.links[path] = entry.target.decode("utf-8", "backslashreplace")
                continue
            elif entry.is_file and self._wanted.fullmatch(path):
                if entry.size_bytes:
                    to_read.append((path, b"/" + entry.path))
                else:
                    self.files[path] = b""
            self.status[path] = (entry.mode, entry.uid, entry.gid, 0, 0, entry.inode, entry.size_bytes)
        for path, raw in to_read:
            self._read(cell, volume, path, raw)

    def _folder(self, path: str) -> None:
        """The mount point and what is above it."""
        while path:
            parent, _, last = path.rpartition("/")
            siblings = self.names.setdefault(parent or "/", [])
            if last not in siblings:
                siblings.append(last)
            self.names.setdefault(path, [])
            path = parent

    def _read(self, cell: Cell, volume: str, path: str, raw: bytes) -> None:
        size = self.status[path][6]
        if size > MAX_FILE_BYTES or self._total + size > MAX_TOTAL_BYTES:
            self.unread[path] = errno.EFBIG
            return
        try:
            self.files[path] = cell.read(volume, raw, MAX_FILE_BYTES)
        except (ImageError, InputError):
            self.unread[path] = errno.EIO
        else:
            self._total += len(self.files[path])


def _expression(pattern: str) -> str:
    parts = re.split(r"(\*\*|\*)", pattern)
    return "".join({"**": ".*", "*": "[^/]*"}.get(part) or re.escape(part) for part in parts)
