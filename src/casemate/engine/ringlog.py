"""A log on disk that never grows beyond its limit: two halves, the older one is dropped. Standard library only."""

from __future__ import annotations

import os


class RingLog:
    """Appends bytes to ``path``; at half the limit the file becomes ``path.1`` and a new one begins.

    A full disk loses log lines, counts them in ``dropped_bytes``, and never stops the VM.
    """

    def __init__(self, path: str, max_bytes: int) -> None:
        self.path = path
        self.dropped_bytes = 0
        self._half = max(max_bytes // 2, 4096)
        self._fd = -1
        self._size = 0
        self._open()

    def append(self, data: bytes) -> None:
        """Write ``data``, however large; only its end is kept when it exceeds the limit."""
        if len(data) > self._half:
            self.dropped_bytes += len(data) - self._half
            data = data[-self._half :]
        if self._size + len(data) > self._half:
            self._rotate()
        if self._fd < 0:
            self._open()
        try:
            written = os.write(self._fd, data) if self._fd >= 0 else 0
        except OSError:
            written = 0
        self._size += written
        self.dropped_bytes += len(data) - written

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._fd = os.open(self.path, flags, 0o600)
            self._size = os.fstat(self._fd).st_size
        except OSError:
            self._fd = -1

    def _rotate(self) -> None:
        self.close()
        try:
            os.rename(self.path, f"{self.path}.1")
        except OSError:
            try:
                os.truncate(self.path, 0)
            except OSError:
                return
        self._open()
