"""Headers out of rpm's ndb database (``Packages.db``: openSUSE, SLE 15), with nothing but `pread`.

    0    "RpmP", version 0, generation, slot pages, next index       32 bytes, little endian, as everything below
    32   slots of 16 bytes up to the end of the slot pages (4096 bytes each):
         "Slot", index, first block, blocks of 16 bytes; first block 0: free
         blobs, each in the blocks of its slot:
         "BlbS", index, generation, length · header · zeros · Adler-32 of all before, length, "BlbE"

Source: rpm, lib/backend/ndb/rpmpkg.c.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from typing import Final

MAGIC: Final = b"RpmP"
MAX_BLOB_BYTES: Final = 64 << 20
MAX_SLOT_PAGES: Final = 1024
"""262,144 slots; the most packages that are read is fewer."""
_PAGE, _BLOCK = 4096, 16
_HEAD: Final = struct.Struct("<4sIIII")
_SLOT: Final = struct.Struct("<4sIII")
_TAIL: Final = struct.Struct("<II4s")


class NdbFormatError(Exception):
    """What the file is not."""


def ndb_blobs(descriptor: int) -> Iterator[bytes]:
    """The header of each package.

    Raises:
        NdbFormatError: no such database, or damaged.
    """
    data = os.pread(descriptor, 32, 0)
    if len(data) < 32 or not data.startswith(MAGIC):
        raise NdbFormatError("not an ndb database")
    _, version, _, pages, _ = _HEAD.unpack_from(data)
    if version != 0 or not 0 < pages <= MAX_SLOT_PAGES:
        raise NdbFormatError(f"version {version} with {pages} pages of slots")
    blocks = os.fstat(descriptor).st_size // _BLOCK
    first, left = pages * _PAGE // _BLOCK, blocks
    seen: set[int] = set()
    for index, offset, count in _slots(descriptor, pages):
        if not index or index in seen or not first <= offset <= blocks - count:
            raise NdbFormatError(f"package {index} at block {offset}, {count} blocks of {blocks}")
        left -= count  # slots that share blocks would make a small file a large one
        if left < 0:
            raise NdbFormatError("packages that overlap")
        seen.add(index)
        yield _blob(descriptor, index, offset, count)


def _slots(descriptor: int, pages: int) -> Iterator[tuple[int, int, int]]:
    """(index, first block, blocks) of each slot that is in use."""
    for page in range(pages):
        data = os.pread(descriptor, _PAGE, page * _PAGE)
        if len(data) < _PAGE:
            raise NdbFormatError("a file that is cut short")
        for place in range(32 if page == 0 else 0, _PAGE, _SLOT.size):
            magic, index, offset, count = _SLOT.unpack_from(data, place)
            if magic != b"Slot":
                raise NdbFormatError(f"no slot at byte {page * _PAGE + place}")
            if offset:
                yield index, offset, count


def _blob(descriptor: int, index: int, offset: int, count: int) -> bytes:
    size = count * _BLOCK
    if not 32 <= size <= MAX_BLOB_BYTES:
        raise NdbFormatError(f"package {index} of {size} bytes")
    data = os.pread(descriptor, size, offset * _BLOCK)
    if len(data) < size:
        raise NdbFormatError("a file that is cut short")
    magic, owner, _, length = struct.unpack_from("<4sIII", data)
    checksum, again, end = _TAIL.unpack_from(data, size - _TAIL.size)
    fits = count == -(-(16 + length + _TAIL.size) // _BLOCK)
    if magic != b"BlbS" or end != b"BlbE" or owner != index or again != length or not fits:
        raise NdbFormatError(f"package {index} is damaged")
    if zlib.adler32(data[: size - _TAIL.size]) != checksum:
        raise NdbFormatError(f"package {index} has another checksum than it says")
    return data[16 : 16 + length]
