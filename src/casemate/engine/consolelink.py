"""The supervisor's end of the guest's console: a bounded log, a panic noticed, input held back. Standard library only.

The guest decides how much comes and how fast. Log first, then listeners: whoever compares both never misses a byte.
"""

from __future__ import annotations

import select
import time

from casemate.engine.ringlog import Budget, RingLog

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

INPUT_BUFFER_MAX_BYTES = 64 * 1024
PANIC = b"Kernel panic - not syncing"
PANIC_TO_RESET_S = 120.0
# A serial port sends byte by byte: each is read at once, but a flood in pieces that are worth a wake-up.
READS_AT_ONCE = 256
READS_PER_S = 400.0
PAUSE_S = 0.005


class ConsoleLink:
    """One console. The caller polls ``descriptor`` for `events` and calls `handle`.

    Attributes:
        log: where the output goes first.
        resume_at: reading pauses until then, on the monotonic clock; None: it does not.
        ended: the emulator closed its end.
        hurried: never pause: what is left is wanted now.
        held: do not read now: somebody who listens is behind.
    """

    def __init__(
        self, link: socket.socket, log: RingLog, on_output: Callable[[bytes], None], on_panic: Callable[[], None]
    ) -> None:
        self.log = log
        self.resume_at: float | None = None
        self.ended = False
        self.hurried = False
        self.held = False
        self._link = link
        self._link.setblocking(False)
        self.descriptor = link.fileno()
        self._on_output = on_output
        self._on_panic = on_panic
        self._tail = b""
        self._panic_at: float | None = None
        self._input = bytearray()
        self._budget = Budget(READS_AT_ONCE, READS_PER_S)

    @property
    def events(self) -> int:
        """What to poll for now."""
        reads = self.hurried or (self.resume_at is None and not self.held)
        return (select.POLLIN if reads else 0) | (select.POLLOUT if self._input else 0)

    @property
    def is_full(self) -> bool:
        """Whether the guest has left too much unread."""
        return len(self._input) >= INPUT_BUFFER_MAX_BYTES

    def handle(self, events: int) -> None:
        """React to poll."""
        if events & select.POLLOUT:
            self._flush()
        if not events & (select.POLLIN | select.POLLHUP | select.POLLERR):
            return
        try:
            data = self._link.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.ended = True
            return
        self.log.append(data)
        self._look_for_panic(data)
        self._on_output(data)
        if not self.hurried and not self._budget.take():
            self.resume_at = time.monotonic() + PAUSE_S

    def resume(self) -> None:
        """Read again."""
        self.resume_at = None

    def write(self, data: bytes) -> None:
        """Bytes for the guest; callers hold their senders back while `is_full`."""
        self._input += data
        self._flush()

    def panicked_lately(self) -> bool:
        """A guest that only prints these words, say out of an old log, does not reset right after."""
        return self._panic_at is not None and time.monotonic() - self._panic_at < PANIC_TO_RESET_S

    def _flush(self) -> None:
        try:
            while self._input:
                sent = self._link.send(self._input)
                del self._input[:sent]
        except BlockingIOError:
            return
        except OSError:
            self._input.clear()

    def _look_for_panic(self, data: bytes) -> None:
        seen = self._tail + data
        if PANIC in seen:
            self._panic_at = time.monotonic()
            self._on_panic()
            seen = b""
        self._tail = seen[-len(PANIC) :]
