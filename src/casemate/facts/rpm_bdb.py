"""Headers out of rpm's Berkeley DB (``Packages``: RHEL 5 to 8, CentOS, Fedora up to 32), with nothing but `pread`.

A hash database, version 7 to 10, in the byte order of the machine that wrote it:

    page 0       8 LSN · number · magic 0x061561 · version · page size · encryption · type 8 · flags · ... · last (32)
    page         26 bytes: 8 LSN · number · previous · next · entries (20) · free (22) · level · type (25)
      type 2, 13 an offset (u16) for each entry, behind the 26 bytes; keys and values in turn, at the end of the page.
                 First byte of each: 1 what follows is it; 3 (value): 3 unused · first overflow page · length
      type 7     overflow: data behind the 26 bytes, ``free`` bytes of them; more on the next page

The key is the package's number; 0 is not a package but the highest number. Buckets are not looked at: every page of
the hash is read once. Pages with checksums, encrypted ones and duplicates are none that rpm writes.

Source: Berkeley DB 5.3, dbinc/db_page.h; rpm 4.11 to 4.16, lib/backend/db3.c.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Final

MAGIC: Final = 0x061561
MAX_BLOB_BYTES: Final = 64 << 20
MAX_PAGES: Final = 1 << 20
_HEAD_BYTES: Final = 26
_META, _OVERFLOW = 8, 7
_HASH_PAGES: Final = (2, 13)
_HERE, _ELSEWHERE = 1, 3
_VERSIONS: Final = range(7, 11)


class BdbFormatError(Exception):
    """What the file is not."""


def is_bdb(head: bytes) -> bool:
    """Whether a file that begins like this is a hash database."""
    return len(head) >= 16 and MAGIC in {int.from_bytes(head[12:16], order) for order in ("little", "big")}


def bdb_blobs(descriptor: int) -> Iterator[bytes]:
    """The header of each package.

    Raises:
        BdbFormatError: no such database, damaged, or with something in it that rpm does not write.
    """
    yield from _Hash(descriptor).blobs()


class _Hash:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        head = os.pread(descriptor, 72, 0)
        if len(head) < 72 or not is_bdb(head):
            raise BdbFormatError("not a Berkeley DB hash database")
        self._order = "<" if int.from_bytes(head[12:16], "little") == MAGIC else ">"
        version, self._page_bytes, encryption, kind, flags = struct.unpack_from(f"{self._order}IIBBB", head, 16)
        self._last = struct.unpack_from(f"{self._order}I", head, 32)[0]
        size = self._page_bytes
        if kind != _META or version not in _VERSIONS or encryption or flags:
            raise BdbFormatError(f"version {version}, type {kind}, encryption {encryption}, flags {flags:#x}")
        if not 512 <= size <= 65536 or size & (size - 1):
            raise BdbFormatError(f"pages of {size} bytes")
        pages = os.fstat(descriptor).st_size // size
        if not self._last < min(pages, MAX_PAGES):
            raise BdbFormatError(f"{pages} pages where its last one is {self._last}")
        self._left = pages
        """Overflow pages: each belongs to one package, so reading more of them is going in circles."""

    def blobs(self) -> Iterator[bytes]:
        for number in range(1, self._last + 1):
            page = self._page(number)
            if page[25] in _HASH_PAGES:
                yield from self._values(page, number)

    def _page(self, number: int) -> bytes:
        data = os.pread(self._descriptor, self._page_bytes, number * self._page_bytes)
        if len(data) < self._page_bytes:
            raise BdbFormatError("a file that is cut short")
        return data

    def _values(self, page: bytes, number: int) -> Iterator[bytes]:
        count = struct.unpack_from(f"{self._order}H", page, 20)[0]
        if count % 2 or _HEAD_BYTES + 2 * count > len(page):
            raise BdbFormatError(f"page {number} with {count} entries")
        places = struct.unpack_from(f"{self._order}{count}H", page, _HEAD_BYTES)
        ends = (len(page), *places)
        if any(not _HEAD_BYTES + 2 * count <= place < end for place, end in zip(places, ends, strict=False)):
            raise BdbFormatError(f"page {number} with entries out of order")
        items = [page[place:end] for place, end in zip(places, ends, strict=False)]
        for key, value in zip(items[::2], items[1::2], strict=True):
            if key[0] != _HERE or len(key) != 5:
                raise BdbFormatError(f"page {number} with a key that is no number")
            if any(key[1:]):
                yield self._value(value, number)

    def _value(self, item: bytes, number: int) -> bytes:
        if item[0] == _HERE:
            return item[1:]
        if item[0] != _ELSEWHERE or len(item) != 12:
            raise BdbFormatError(f"page {number} with a value of kind {item[0]}")
        following, size = struct.unpack_from(f"{self._order}II", item, 4)
        if size > MAX_BLOB_BYTES:
            raise BdbFormatError(f"a package of {size} bytes")
        parts, length = [], 0
        while length < size:
            self._left -= 1
            if self._left < 0 or not 0 < following <= self._last:
                raise BdbFormatError(f"page {following} after {length} of {size} bytes")
            page = self._page(following)
            following, used = struct.unpack_from(f"{self._order}I", page, 16)[0], self._used(page)
            parts.append(page[_HEAD_BYTES : _HEAD_BYTES + used])
            length += used
        if length != size:
            raise BdbFormatError(f"{length} bytes of a package of {size}")
        return b"".join(parts)

    def _used(self, page: bytes) -> int:
        used = struct.unpack_from(f"{self._order}H", page, 22)[0]
        if page[25] != _OVERFLOW or not 0 < used <= len(page) - _HEAD_BYTES:
            raise BdbFormatError(f"{used} bytes on a page of type {page[25]}")
        return int(used)
