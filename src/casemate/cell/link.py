"""The channel to one cell: frames in, bytes out, deadlines, and no word after the first fault.

The loop also drains what nobody asked for (console, emulator's log, QMP events), so that a flood there stops nothing,
and keeps the tails for the error message.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable

from casemate.cell.wire import Frame, FrameReader, WireError
from casemate.errors import VmError

SILENCE_MAX_S = 60.0
"""The longest wait for one whole frame (at most 256 KiB) from a cell that owes an answer."""
LIFE_MAX_S = 4 * 3600.0
"""How long one cell may be asked: a guest that lets a frame drip every minute has an end too."""
SILENT = "the cell is silent"
TAIL_BYTES = 4096
_PIECE_BYTES = 1 << 18


class Link:
    """The host's end.

    Args:
        channel: our end of the agent's port; closed by the caller, like the others.
        drains: descriptors that are read and thrown away, except for their tails (console, log, QMP).
        ended: says how the emulator ended, once the channel has.
    """

    def __init__(
        self, channel: socket.socket, drains: tuple[int, ...], ended: Callable[[], str], silence_max_s: float
    ) -> None:
        self._channel = channel
        self._ended = ended
        self.silence_max_s = silence_max_s
        self._last_s = time.monotonic() + LIFE_MAX_S
        self._reader = FrameReader()
        self._frames: list[Frame] = []
        self.broken: VmError | None = None
        self._tails = {descriptor: bytearray() for descriptor in drains}
        channel.setblocking(False)
        self._poller = select.poll()
        self._poller.register(channel.fileno(), select.POLLIN)
        for descriptor in drains:
            os.set_blocking(descriptor, False)
            self._poller.register(descriptor, select.POLLIN)

    def send(self, data: bytes) -> None:
        """All of it.

        Raises:
            VmError: the cell does not read, or ended.
        """
        view = memoryview(data)
        end = time.monotonic() + self.silence_max_s
        while view:
            try:
                view = view[self._channel.send(view[:_PIECE_BYTES]) :]
                end = time.monotonic() + self.silence_max_s
                continue
            except BlockingIOError:
                pass
            except OSError:
                raise self.fail(self._death()) from None
            waiter = select.poll()
            waiter.register(self._channel.fileno(), select.POLLOUT)
            if not waiter.poll(50):
                self._drain_quietly()
                if time.monotonic() > end:
                    raise self.fail(VmError("the cell does not read its questions", got=self._tail()))

    def next_frame(self) -> Frame:
        """Wait for the next frame.

        Raises:
            VmError: silence, or the end. WireError: it breaks the protocol.
        """
        if self.broken is not None:
            raise self.broken
        end = min(time.monotonic() + self.silence_max_s, self._last_s)
        while not self._frames:
            remaining = end - time.monotonic()
            if remaining <= 0:
                raise self.fail(
                    VmError(
                        SILENT,
                        got=self._tail() or f"no answer within {self.silence_max_s:.0f} s",
                        next_step="the image may have caught its kernel in a loop; look at the host's load",
                    )
                )
            for descriptor, _ in self._poller.poll(remaining * 1000):
                if descriptor != self._channel.fileno():
                    self._drain(descriptor)
                    continue
                self._receive()
        return self._frames.pop(0)

    def _receive(self) -> None:
        try:
            data = self._channel.recv(_PIECE_BYTES * 4)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            raise self.fail(self._death())
        self._frames += self._reader.feed(data)

    def _drain(self, descriptor: int) -> None:
        try:
            data = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._poller.unregister(descriptor)
        tail = self._tails[descriptor]
        tail += data
        del tail[:-TAIL_BYTES]

    def _drain_quietly(self) -> None:
        for descriptor, _ in self._poller.poll(0):
            if descriptor != self._channel.fileno():
                self._drain(descriptor)

    def _tail(self) -> str:
        raw = b"\n".join(bytes(tail) for tail in self._tails.values())
        lines = [line for line in raw.decode("utf-8", "replace").splitlines() if line.strip()]
        return "; ".join(shown(line.encode()) for line in lines[:6])[:600]

    def _death(self) -> VmError:
        self._drain_quietly()
        how = "; ".join(part for part in (self._ended(), self._tail()) if part)
        return VmError(
            "the cell ended before it answered",
            got=how,
            next_step="its kernel may have fallen over what the image holds; this host is untouched",
        )

    def lied(self, fault: WireError) -> VmError:
        """The fault of a guest that broke the protocol, to be raised."""
        return self.fail(
            VmError(
                "the cell broke its protocol",
                got=str(fault),
                next_step="its kernel may be in the hands of the image: nothing that it said should be trusted",
            )
        )

    def fail(self, error: VmError) -> VmError:
        """Nothing more is asked or believed after the first fault. Gives it back, to be raised."""
        self.broken = error
        return error


def shown(path: bytes) -> str:
    """A name of the image's, harmless in a message."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in path.decode("utf-8", "replace"))
