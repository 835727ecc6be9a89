"""FAT12, FAT16 and FAT32, to read files of an EFI system partition by name. Bounded: nothing that the volume says makes
a read longer than the file system is large, and every chain of clusters ends.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from casemate.errors import InputError
from casemate.measure.gpt import Read

MAX_FILE: Final = 1 << 30
_MAX_DIRECTORY: Final = 2 << 20
_MAX_VOLUME: Final = 1 << 40
_DIRECTORY: Final = 0x10
_LABEL: Final = 0x08
_LONG: Final = 0x0F


class Fat:
    """One volume.

    Args:
        read: of the volume, from its first byte.

    Raises:
        InputError: it is no FAT.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        head = read(0, 512)
        if len(head) < 512 or head[510:512] != b"\x55\xaa":
            raise _fault("no boot sector")
        sector, per, reserved, tables, roots, small, _, size16, _, _, _, large = struct.unpack_from(
            "<HBHBHHBHHHII", head, 11
        )
        size = size16 or int.from_bytes(head[36:40], "little")
        if sector not in (512, 1024, 2048, 4096) or per not in (1, 2, 4, 8, 16, 32, 64, 128) or not tables or not size:
            raise _fault("a boot sector of another form")
        self._cluster = sector * per
        self._table = reserved * sector
        root = self._table + tables * size * sector
        self._data = root + -(-roots * 32 // sector) * sector
        total = (small or large) * sector
        if not self._data < total <= _MAX_VOLUME or len(read(total - sector, sector)) < sector:
            raise _fault("a volume that is cut off, or tables larger than it")
        self._clusters = (total - self._data) // self._cluster
        self._bits = 12 if self._clusters < 4085 else 16 if self._clusters < 65525 else 32
        self._root: tuple[int, int] = (root, roots * 32)
        self._root_cluster = int.from_bytes(head[44:48], "little") if self._bits == 32 else 0
        self._fat = b""
        self._fat_bytes = min(size * sector, (self._clusters + 2) * self._bits // 8 + 1)

    def file(self, path: str) -> bytes | None:
        """The contents of a file, by its path with ``/``, in any case; None when there is none.

        Raises:
            InputError: the volume contradicts itself.
        """
        found = self._find(path)
        if found is None or found[0] & _DIRECTORY:
            return None
        _, cluster, size = found
        if size > MAX_FILE:
            raise _fault(f"a file of {size} bytes")
        data = self._chain(cluster, size) if size else b""
        if len(data) < size:
            raise _fault(f"{path} is shorter than its entry says")
        return data[:size]

    def names(self, path: str) -> list[str] | None:
        """The names in a directory; None when there is none."""
        directory = self._directory(path)
        return None if directory is None else [name for name, _, _, _ in _entries(directory) if name not in (".", "..")]

    def _find(self, path: str) -> tuple[int, int, int] | None:
        """(attributes, first cluster, size)."""
        found: tuple[int, int, int] = (_DIRECTORY, self._root_cluster, 0)
        for part in path.strip("/").split("/"):
            if not part:
                continue
            if not found[0] & _DIRECTORY:
                return None
            listed = _entries(self._contents(found[1]))
            entry = next((rest for name, *rest in listed if name.lower() == part.lower()), None)
            if entry is None:
                return None
            found = (entry[0], entry[1], entry[2])
        return found

    def _directory(self, path: str) -> bytes | None:
        found = self._find(path)
        return None if found is None or not found[0] & _DIRECTORY else self._contents(found[1])

    def _contents(self, cluster: int) -> bytes:
        """A directory; cluster 0 is the root of FAT12 and FAT16, whose place is fixed."""
        if cluster == 0 and self._bits != 32:
            return self._read(*self._root)
        return self._chain(cluster or self._root_cluster, _MAX_DIRECTORY)

    def _chain(self, cluster: int, most: int) -> bytes:
        """The clusters of a chain, up to ``most`` bytes. Neighbours are read together."""
        parts: list[bytes] = []
        seen = length = 0
        limit = min(-(-most // self._cluster), self._clusters)
        while 2 <= cluster < self._clusters + 2 and seen < limit:
            first, count = cluster, 1
            cluster = self._next(cluster)
            while cluster == first + count and seen + count < limit:
                count, cluster = count + 1, self._next(cluster)
            part = self._read(self._data + (first - 2) * self._cluster, count * self._cluster)
            parts.append(part)
            seen, length = seen + count, length + len(part)
        return b"".join(parts)

    def _next(self, cluster: int) -> int:
        if not self._fat:
            self._fat = self._read(self._table, self._fat_bytes)
        if self._bits == 12:
            at = cluster + cluster // 2
            pair = int.from_bytes(self._fat[at : at + 2], "little")
            return pair >> 4 if cluster & 1 else pair & 0xFFF
        width = self._bits // 8
        return int.from_bytes(self._fat[cluster * width : (cluster + 1) * width], "little") & 0x0FFFFFFF


def _entries(directory: bytes) -> Iterator[tuple[str, int, int, int]]:
    """(name, attributes, first cluster, size) of each entry."""
    long: list[str] = []
    for at in range(0, len(directory) - 31, 32):
        entry = directory[at : at + 32]
        if entry[0] == 0:
            return
        if entry[0] == 0xE5:
            long = []
        elif entry[11] & 0x3F == _LONG:
            long.insert(0, (entry[1:11] + entry[14:26] + entry[28:32]).decode("utf-16-le", "replace"))
        elif entry[11] & _LABEL:
            long = []
        else:
            name = "".join(long).split("\0")[0].rstrip("\uffff") or _short(entry)
            long = []
            cluster = int.from_bytes(entry[20:22] + b"\0\0", "little") << 16 | int.from_bytes(entry[26:28], "little")
            yield name, entry[11], cluster, int.from_bytes(entry[28:32], "little")


def _short(entry: bytes) -> str:
    stem, extension = entry[:8].decode("latin-1").rstrip(), entry[8:11].decode("latin-1").rstrip()
    if entry[0] == 0x05:
        stem = "\xe5" + stem[1:]
    return f"{stem}.{extension}" if extension else stem


def _fault(what: str) -> InputError:
    return InputError("not a FAT volume", got=what, expected="an EFI system partition")
