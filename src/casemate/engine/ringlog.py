"""Logs on disk that never grow beyond their limit, whatever a guest makes us write. Standard library only."""

from __future__ import annotations

import json
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SUMMARY_AFTER_S = 1.0


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
        if self._size > self._half:  # an earlier run had a higher limit
            self._rotate()

    def append(self, data: bytes) -> None:
        """Write ``data``, however large; only its end is kept when it exceeds half the limit."""
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
            if self._size > self._half:
                os.unlink(self.path)
            else:
                os.rename(self.path, f"{self.path}.1")
        except OSError:
            try:
                os.truncate(self.path, 0)
            except OSError:
                return
        self._size = 0
        self._open()


class Budget:
    """So many things at once, so many per second after that (a token bucket)."""

    def __init__(self, burst: int, per_s: float) -> None:
        self._burst = float(burst)
        self._per_s = per_s
        self._tokens = float(burst)
        self._then = time.monotonic()

    def take(self) -> bool:
        """Whether one more may happen now."""
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._then) * self._per_s)
        self._then = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class EventLog:
    """events.jsonl: one JSON object per line, bounded in size and, for what a guest can cause, in number per second.

    What was left out is counted; the count is written with the next line, or at `summary_at` when none follows.
    """

    def __init__(self, path: str, max_bytes: int, burst: int = 64, per_s: float = 5.0) -> None:
        self.suppressed = 0
        self.summary_at: float | None = None
        self._log = RingLog(path, max_bytes)
        self._budget = Budget(burst, per_s)

    def write(self, now: str, name: str, *, always: bool = True, **fields: Any) -> None:
        """One line; empty fields are left out.

        Args:
            now: RFC 3339.
            name: what happened.
            always: False when the guest or the emulator can cause any number of these.
        """
        if not always and not self._budget.take():
            self.suppressed += 1
            if self.summary_at is None:
                self.summary_at = time.monotonic() + SUMMARY_AFTER_S
            return
        self.write_summary(now)
        self._append(now, name, fields)

    def write_summary(self, now: str) -> None:
        """Write how many events were left out since the last line, if any were."""
        if self.suppressed:
            self._append(now, "events-suppressed", {"count": self.suppressed})
        self.suppressed = 0
        self.summary_at = None

    def _append(self, now: str, name: str, fields: dict[str, Any]) -> None:
        line = {"time": now, "event": name, **{key: value for key, value in fields.items() if value}}
        self._log.append(json.dumps(line).encode() + b"\n")
