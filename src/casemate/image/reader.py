"""Bounded reads of an image through its descriptor. Nothing here trusts a number that the image holds."""

from __future__ import annotations

import errno
import os
import stat

from casemate.errors import ImageError

MAX_READ_BYTES = 2 << 20
"""The largest single read: one qcow2 cluster of the largest size that QEMU opens."""

DAMAGED_STEP = (
    "dmesg says whether the disk below fails, or bytes of a file changed that fs-verity seals; take the image from its"
    " source again"
)


class ImageReader:
    """Reads one image.

    Args:
        fd: open for reading; stays the caller's.
        name: how messages name the image.
        offset: where the image begins in the file; it ends with the file, or after ``size_bytes``.

    Raises:
        ImageError: ``fd`` is not a regular file, or is shorter than that.
    """

    def __init__(self, fd: int, name: str, *, offset: int = 0, size_bytes: int | None = None) -> None:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise ImageError(f"{name} is not a regular file", expected="an image file")
        if offset < 0 or offset + (size_bytes or 0) > info.st_size:
            raise ImageError(f"{name} is cut short", got=f"a file of {info.st_size} bytes")
        self._fd = fd
        self.offset = offset
        self.name = name
        self.size_bytes = info.st_size - offset if size_bytes is None else size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes at ``offset``, both inside the file as it was when the reader was made."""
        if not 0 <= length <= MAX_READ_BYTES or offset < 0 or offset + length > self.size_bytes:
            raise RuntimeError(f"read of {length} bytes at {offset} was not checked against {self.size_bytes}")
        parts: list[bytes] = []
        while length:
            part = self._pread(offset, length)
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

    def read_padded(self, offset: int, length: int) -> bytes:
        """As ``read``, with zeros in place of what lies beyond the end of the file, as QEMU reads it."""
        inside = max(0, min(length, self.size_bytes - offset))
        return self.read(offset, inside).ljust(length, b"\0") if inside else bytes(length)

    def _pread(self, offset: int, length: int) -> bytes:
        try:
            part = os.pread(self._fd, length, self.offset + offset)
        except OSError as error:
            raise ImageError(
                f"cannot read {self.name}",
                got=(error.strerror or str(error)).lower(),
                next_step=DAMAGED_STEP if error.errno == errno.EIO else "",
            ) from None
        if not part:
            raise ImageError(f"{self.name} became shorter while it was read", next_step="find out who writes to it")
        return part
