"""Fill the one-shot FIFOs of an emulator's root while it starts.

The emulator opens each FIFO when it comes to that argument, reads to the end and never again. We open the writing end
without waiting (ENXIO until there is a reader), copy out of the sealed memfd, and close. Afterwards the root holds an
empty FIFO, and the secret is in the emulator's memory and nowhere else.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import threading
import time

from casemate.errors import VmError
from casemate.jail.policy import OneShot, Wall
from casemate.jail.spawn import Spawned

_AGAIN_S = 0.002
_PIECE_BYTES = 16384


class SecretFeed:
    """One thread for all FIFOs of one wall.

    Args:
        sources: role -> descriptor with the content; read from its beginning, without moving its position.
        deadline_s: how long the emulator has to take everything.
    """

    def __init__(self, spawned: Spawned, wall: Wall, sources: dict[str, int], deadline_s: float) -> None:
        self._pipes = [entry for entry in wall.root if isinstance(entry, OneShot)]
        self._root = f"/proc/{spawned.pid}/root"
        self._sources = sources
        self._end = time.monotonic() + deadline_s
        self._stop = threading.Event()
        self._fault = ""
        self._delivered: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        if self._pipes:
            self._thread.start()

    def result(self) -> tuple[str, ...]:
        """Roles that the emulator has read to their end: all of them.

        Raises:
            VmError: one was not taken.
        """
        if self._pipes:
            self._thread.join()
        if self._fault or len(self._delivered) != len(self._pipes):
            raise VmError("the emulator did not take what was meant for the guest", got=self._fault or "nothing")
        return tuple(self._delivered)

    def stop(self) -> None:
        """Give up; the thread must not outlive the launch."""
        self._stop.set()
        if self._pipes:
            self._thread.join()

    def _run(self) -> None:
        try:
            waiting = list(self._pipes)
            while waiting and not self._stop.is_set():
                waiting = [pipe for pipe in waiting if not self._try(pipe)]
                if waiting and time.monotonic() > self._end:
                    self._fault = f"{waiting[0].role}: it was never read"
                    return
                if waiting:
                    self._stop.wait(_AGAIN_S)
        except OSError as fault:
            self._fault = f"{fault.strerror} ({fault.filename})" if fault.filename else str(fault)

    def _try(self, pipe: OneShot) -> bool:
        path = self._root + pipe.target
        try:
            out = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as fault:
            if fault.errno == errno.ENXIO:
                return False
            raise
        try:
            if not stat.S_ISFIFO(os.fstat(out).st_mode):
                raise OSError(errno.EINVAL, "not a FIFO", path)
            self._copy(self._sources[pipe.role], out)
        finally:
            os.close(out)
        self._delivered.append(pipe.role)
        return True

    def _copy(self, source: int, out: int) -> None:
        poller = select.poll()
        poller.register(out, select.POLLOUT)
        offset = 0
        while True:
            try:
                # splice and not read: the content never enters this process.
                count = os.splice(source, out, _PIECE_BYTES, offset_src=offset)
            except BlockingIOError:
                if self._stop.is_set() or time.monotonic() > self._end:
                    raise OSError(errno.ETIMEDOUT, "the emulator stopped reading") from None
                poller.poll(100)
                continue
            if count == 0:
                return
            offset += count
