"""What takes long to work out about a binary, kept while it stays the very same file: its digest and its hardening.

A file is the same while device, inode, size, time of content and *time of change* agree: the last of these the kernel
sets with every write, and no program can set it back. One that changed a moment ago is not kept: a second write within
the clock's tick would leave no trace. The kept file is read as `stamp.load_cache` says; deleting it costs time only.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from pathlib import Path
from typing import Final

import msgspec

from casemate.facts.elf_hardening import Hardening, read_hardening
from casemate.facts.stamp import load_cache, save_cache

_FORMAT: Final = 1
_QUIET_NS: Final = 10_000_000_000
_BINARY_BYTES: Final = 512 << 20
_CHUNK_BYTES: Final = 1 << 20


class _Kept(msgspec.Struct, frozen=True):
    format: int
    path: str
    state: tuple[int, int, int, int, int]
    md5: str
    hardening: Hardening | None


class Look:
    """A look at one binary that is open.

    Args:
        descriptor: stays its owner's.
        cache_dir: where looks are kept; None keeps none.
    """

    def __init__(self, descriptor: int, path: str, cache_dir: Path | None) -> None:
        self._descriptor, self._path = descriptor, path
        self._place = None if cache_dir is None else cache_dir / "emulators" / f"look-{_word(path)}.json"
        status = os.fstat(descriptor)
        self._state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        self._kept = _Kept(_FORMAT, path, self._state, "", None)
        self._is_new = False
        found = None if self._place is None else load_cache(self._place, _Kept)
        if found is not None and (found.format, found.path, found.state) == (_FORMAT, path, self._state):
            self._kept = found

    def md5(self) -> str:
        """The digest that dpkg writes down.

        Raises:
            OSError: it cannot be read, or is too large.
        """
        if not self._kept.md5:
            found, place = hashlib.md5(usedforsecurity=False), 0
            while part := os.pread(self._descriptor, _CHUNK_BYTES, place):
                place += len(part)
                if place > _BINARY_BYTES:
                    raise OSError(errno.EFBIG, f"larger than {_BINARY_BYTES} bytes", self._path)
                found.update(part)
            self._kept = msgspec.structs.replace(self._kept, md5=found.hexdigest())
            self._is_new = True
        return self._kept.md5

    def hardening(self) -> Hardening:
        """How it was built.

        Raises:
            As `read_hardening`.
        """
        found = self._kept.hardening
        if found is None:
            found = read_hardening(self._descriptor)
            self._kept = msgspec.structs.replace(self._kept, hardening=found)
            self._is_new = True
        return found

    def keep(self) -> None:
        """Write down what was worked out, unless the file changed meanwhile or a moment ago."""
        if self._place is None or not self._is_new:
            return
        status = os.fstat(self._descriptor)
        now = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if now == self._state and time.time_ns() - status.st_ctime_ns > _QUIET_NS:
            save_cache(self._place, self._kept)


def _word(path: str) -> str:
    """A name for the file that no other path has."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
