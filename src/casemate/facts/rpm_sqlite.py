"""Rows of one table of a SQLite file, read through a descriptor with nothing but `pread`: rpm's database.

Of the format (sqlite.org/fileformat2.html) only what a table needs: the schema on page 1, the b-tree of a table
(interior pages 0x05, leaves 0x0d), records, overflow pages. No index, no write-ahead log, no SQL, and no library that
runs what a schema says. Every page is counted: a file whose pages point in circles ends the reading, not the program.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Final

MAGIC: Final = b"SQLite format 3\0"
MAX_PAYLOAD_BYTES: Final = 64 << 20
"""Of one row; a package with a million files has about as much."""
_MAX_DEPTH: Final = 24
_INTERIOR, _LEAF = 0x05, 0x0D
_UTF8: Final = 1


class SqliteFormatError(Exception):
    """What the file is not."""


class SqliteFile:
    """A database behind a descriptor, which stays its owner's.

    Raises:
        SqliteFormatError: it is none, or damaged.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        head = os.pread(descriptor, 100, 0)
        if len(head) < 100 or not head.startswith(MAGIC):
            raise SqliteFormatError("not a SQLite database")
        size = struct.unpack_from(">H", head, 16)[0]
        self.page_bytes = 65536 if size == 1 else size
        self._usable = self.page_bytes - head[20]
        if self.page_bytes < 512 or self.page_bytes & (self.page_bytes - 1) or self._usable < 480:
            raise SqliteFormatError(f"pages of {self.page_bytes} bytes, {head[20]} of them reserved")
        if struct.unpack_from(">I", head, 56)[0] not in (0, _UTF8):
            raise SqliteFormatError("its texts are not UTF-8")
        self.has_log = head[18] == 2 or head[19] == 2
        """Whether newer pages may lie in a write-ahead log beside it."""
        pages = os.fstat(descriptor).st_size // self.page_bytes
        self._left = 2 * pages + 16

    def blobs(self, table: str) -> Iterator[bytes]:
        """The last column of each row, which is a blob.

        Raises:
            SqliteFormatError: there is no such table, or its pages are damaged.
        """
        root = next((page for name, page in self._tables() if name == table), 0)
        if not root:
            raise SqliteFormatError(f"no table {table}")
        for payload in self._rows(root, 0):
            values = _record(payload)
            if not values or not isinstance(values[-1], bytes):
                raise SqliteFormatError(f"a row of {table} that ends in no blob")
            yield values[-1]

    def _tables(self) -> Iterator[tuple[str, int]]:
        """(name, first page) of each table; the schema is itself a table, on page 1."""
        for payload in self._rows(1, 0):
            values = _record(payload)
            if len(values) >= 4 and values[0] == "table" and isinstance(values[2], str) and isinstance(values[3], int):
                yield values[2], values[3]

    def _page(self, number: int) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise SqliteFormatError("its pages point in circles")
        if number < 1:
            raise SqliteFormatError(f"page {number}")
        data = os.pread(self._descriptor, self.page_bytes, (number - 1) * self.page_bytes)
        if len(data) < self.page_bytes:
            raise SqliteFormatError(f"page {number} lies behind its end")
        return data

    def _rows(self, number: int, depth: int) -> Iterator[bytes]:
        """The payloads below a page of a table."""
        if depth > _MAX_DEPTH:
            raise SqliteFormatError("its tree is too deep")
        page = self._page(number)
        start = 100 if number == 1 else 0
        kind, cells = page[start], struct.unpack_from(">H", page, start + 3)[0]
        if kind not in (_INTERIOR, _LEAF):
            raise SqliteFormatError(f"page {number} is of kind {kind}")
        pointers = start + (12 if kind == _INTERIOR else 8)
        if pointers + 2 * cells > len(page):
            raise SqliteFormatError(f"page {number} names {cells} cells")
        for place in struct.unpack_from(f">{cells}H", page, pointers):
            if kind == _LEAF:
                yield self._payload(page, place)
            elif place + 4 > len(page):
                raise SqliteFormatError(f"page {number}: a cell behind its end")
            else:
                yield from self._rows(struct.unpack_from(">I", page, place)[0], depth + 1)
        if kind == _INTERIOR:
            yield from self._rows(struct.unpack_from(">I", page, start + 8)[0], depth + 1)

    def _payload(self, page: bytes, place: int) -> bytes:
        size, place = _varint(page, place)
        _, place = _varint(page, place)  # the row's number
        if not 0 <= size <= MAX_PAYLOAD_BYTES:
            raise SqliteFormatError(f"a row of {size} bytes")
        usable = self._usable
        local = size
        if size > usable - 35:
            least = (usable - 12) * 32 // 255 - 23
            local = least + (size - least) % (usable - 4)
            local = local if local <= usable - 35 else least
        parts = [page[place : place + local]]
        if len(parts[0]) < local:
            raise SqliteFormatError("a row runs behind its page")
        left = size - local
        following = struct.unpack_from(">I", page, place + local)[0] if left and place + local + 4 <= len(page) else 0
        while left:
            more = self._page(following)
            following = struct.unpack_from(">I", more)[0]
            parts.append(more[4 : 4 + min(left, usable - 4)])
            left -= len(parts[-1])
        return b"".join(parts)


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """(value, where the next thing begins): seven bits a byte, the ninth has eight."""
    value = 0
    for index in range(9):
        if place + index >= len(data):
            raise SqliteFormatError("a number runs behind its end")
        byte = data[place + index]
        if index == 8:
            return _signed(value << 8 | byte), place + 9
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            return value, place + index + 1
    raise SqliteFormatError("a number that never ends")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_INTEGER_BYTES: Final = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


def _record(payload: bytes) -> list[int | str | bytes | None]:
    """The columns of a row; floats are not told apart from nothing."""
    head, place = _varint(payload, 0)
    if not 0 < head <= len(payload):
        raise SqliteFormatError(f"a row whose head has {head} bytes")
    values: list[int | str | bytes | None] = []
    body = head
    while place < head:
        kind, place = _varint(payload, place)
        size = _INTEGER_BYTES.get(kind, 8 if kind == 7 else 0 if kind < 12 else (kind - 12) // 2)
        if kind < 0 or body + size > len(payload):
            raise SqliteFormatError("a column runs behind its row")
        data = payload[body : body + size]
        body += size
        if kind in _INTEGER_BYTES:
            values.append(int.from_bytes(data, "big", signed=True))
        elif kind in (8, 9):
            values.append(kind - 8)
        elif kind >= 12:
            values.append(data if kind % 2 == 0 else data.decode("utf-8", "backslashreplace"))
        else:
            values.append(None)
    return values
