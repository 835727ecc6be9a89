"""The questions that can be put to a running cell, and their answers, judged frame by frame."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from casemate.cell.link import SILENCE_MAX_S, Link, shown
from casemate.cell.model import NAMES_MAX_BYTES, Entry, Piece
from casemate.cell.wire import (
    ALLOWED,
    RUN_INPUT_MAX_BYTES,
    End,
    Frame,
    Kind,
    Operation,
    WireError,
    decode_end,
    decode_entries,
    decode_error,
    decode_hello,
    encode_request,
    number,
    text,
)
from casemate.errors import ImageError, InputError, VmError

if TYPE_CHECKING:
    from casemate.cell.guest import CellGuest

_UNREAD_MAX_BYTES = 1 << 30


class MissingInImageError(InputError):
    """What was asked for is not in the image, or is not of the kind that was asked for. ``number``: errno."""

    def __init__(self, what: str, number: int, *, next_step: str = "") -> None:
        super().__init__(what, got=os.strerror(number).lower(), next_step=next_step)
        self.number = number


class DamagedImageError(ImageError):
    """The guest's kernel could not read it. ``number``: errno."""

    def __init__(self, what: str, number: int, said: str) -> None:
        got = os.strerror(number).lower()
        super().__init__(what, got=f"{got}; the guest's kernel: {said}" if said else got)
        self.number = number


_ASKED_WRONG = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.ENAMETOOLONG})


class Session:
    """A cell that has been started.

    Args:
        channel: our end of the agent's port; closed by the caller, like the others.
        guest, tools: where modules and programs come from.
        drains: descriptors that are read and thrown away, except for their tails (console, log, QMP).
        ended: says how the emulator ended, once the channel has.
    """

    def __init__(
        self,
        channel: socket.socket,
        drains: tuple[int, ...] = (),
        ended: Callable[[], str] = lambda: "",
        *,
        silence_max_s: float = SILENCE_MAX_S,
        guest: CellGuest | None = None,
        tools: Callable[[str], Iterable[tuple[str, bytes]]] | None = None,
    ) -> None:
        self.guest = guest
        self.tools: Callable[[str], Iterable[tuple[str, bytes]]] | None = tools
        self._loaded: set[str] = set()
        self._link = Link(channel, drains, ended, silence_max_s)
        self._request = 0
        self._busy = False
        self._unread = 0

    # ---- questions ----

    def wait_for_hello(self) -> None:
        """Until the agent runs.

        Raises:
            VmError: it does not, or says something else.
        """
        try:
            decode_hello(self._link.next_frame())
        except WireError as fault:
            raise self._link.lied(fault) from None

    def allow_silence(self) -> None:
        """From now on an answer may take `SILENCE_MAX_S`, however short the wait for the hello was."""
        self._link.silence_max_s = max(self._link.silence_max_s, SILENCE_MAX_S)

    def load_module(self, name: str, elf: bytes) -> None:
        """Load a kernel module; one that is loaded already is fine."""
        end = self._plain(Operation.LOAD, text(""), elf)
        if end.error not in {0, errno.EEXIST}:
            raise VmError(f"the cell's kernel refused its module {name}", got=os.strerror(end.error))

    def load(self, *names: str) -> None:
        """Send in the modules of these names and what they need, as far as the guest's kernel has them as modules."""
        if self.guest is None:
            return
        for name in names:
            for needed in self.guest.closure(name):
                if needed not in self._loaded:
                    self.load_module(needed, self.guest.module(needed))
                    self._loaded.add(needed)

    def send_tools(self, package: str) -> None:
        """Send in the programs of a package and the libraries that they need, once.

        Raises:
            HostError: they are not to be had on this host.
        """
        if package in self._loaded or self.tools is None:
            return
        for path, data in self.tools(package):
            self.put(path, data, 0o755)
        self._loaded.add(package)

    def put(self, path: str, data: bytes, mode: int = 0o700) -> None:
        """Write a file of ours into the guest's memory."""
        end = self._plain(Operation.PUT, number(mode, 4), text(path), data)
        if end.error:
            raise VmError(f"the cell could not take {path}", got=os.strerror(end.error))

    def pread(self, path: str, offset: int, length: int) -> bytes:
        """Bytes of a device, or of a file of the guest's own tree; fewer at its end, none where it is missing."""
        end, data = self._data(Operation.PREAD, number(offset, 8), number(length, 4), text(path), limit=length)
        return data if not end.error else b""

    def mount(self, source: str, target: str, kind: str, flags: int, options: str) -> int:
        """Mount in the guest; gives the errno, 0 when it worked."""
        body = (number(flags, 8), text(source), text(target), text(kind), text(options))
        return self._plain(Operation.MOUNT, *body).error

    def unmount(self, target: str) -> None:
        """Undo `mount`."""
        self._plain(Operation.UMOUNT, text(target))

    def run(self, arguments: tuple[str, ...], given: bytes = b"") -> tuple[int, str]:
        """Run a program of ours in the guest: its wait status and what it wrote (at most 64 KiB)."""
        if len(given) > RUN_INPUT_MAX_BYTES:
            raise InputError("a key for the cell", got=f"{len(given)} bytes", expected=f"{RUN_INPUT_MAX_BYTES} at most")
        body = (number(len(arguments), 2), *(text(argument) for argument in arguments), given)
        end, data = self._data(Operation.RUN, *body, limit=1 << 16)
        if end.error:
            raise VmError(f"the cell could not run {arguments[0]}", got=os.strerror(end.error))
        return end.value, data.decode("utf-8", "replace")

    def kernel_messages(self) -> str:
        """The last of the guest kernel's messages."""
        _, data = self._data(Operation.DMESG, limit=1 << 18)
        return data.decode("utf-8", "replace")

    def volumes_as_told(self) -> bytes:
        """JSON of the other reader's (`other.py`); a cell's agent has no such question."""
        return self._data(Operation.VOLUMES, limit=1 << 18)[1]

    def stat(self, root: str, path: bytes) -> Entry:
        """One file of a volume mounted at ``root``.

        Raises:
            MissingInImageError, DamagedImageError: as they say.
        """
        entries = list(self._entries(Operation.STAT, 1, path, text(root), text(path)))
        if len(entries) != 1:
            raise self._link.fail(VmError("the cell answered without the one entry that was asked for"))
        return entries[0]

    def list(self, root: str, path: bytes, entries_max: int) -> list[Entry]:
        """A directory's entries, or the one of another file."""
        try:
            body = (text(root), text(path), number(entries_max, 8))
            return list(self._entries(Operation.LIST, entries_max, path, *body))
        except MissingInImageError as error:
            if error.number != errno.ENOTDIR:
                raise
        return [self.stat(root, path)]

    def walk(self, root: str, path: bytes, entries_max: int, content_max: int) -> Iterator[Entry | Piece]:
        """Everything below a directory; with ``content_max`` the first bytes of each regular file too."""
        body = (text(root), text(path), number(entries_max, 8), number(content_max, 8))
        return self._items(Operation.WALK, entries_max, content_max, path, *body)

    def read(self, root: str, path: bytes, offset: int, limit: int) -> Iterator[bytes]:
        """The content of a regular file in pieces.

        Raises:
            MissingInImageError, DamagedImageError: as they say; pieces may have come before.
        """
        seen = 0
        body = (text(root), text(path), number(offset, 8), number(limit, 8))
        for frame in self._answer(Operation.READ, *body):
            if isinstance(frame, End):
                self._check(frame, path)
                return
            seen += len(frame.body)
            if seen > limit:
                raise self._link.fail(VmError("the cell sent more of a file than was asked for"))
            yield frame.body

    # ---- answers ----

    def _plain(self, operation: Operation, *parts: bytes) -> End:
        return self._data(operation, *parts, limit=0)[0]

    def _data(self, operation: Operation, *parts: bytes, limit: int) -> tuple[End, bytes]:
        """An answer of DATA frames; what goes beyond ``limit`` of a program's output is dropped, else a lie."""
        data = bytearray()
        for frame in self._answer(operation, *parts):
            if isinstance(frame, End):
                return frame, bytes(data)
            data += frame.body
            if len(data) > limit:
                if operation not in {Operation.RUN, Operation.DMESG}:
                    raise self._link.fail(VmError("the cell sent more than was asked for"))
                del data[limit:]
        raise RuntimeError("an answer without an end")

    def _entries(self, operation: Operation, entries_max: int, path: bytes, *parts: bytes) -> Iterator[Entry]:
        for item in self._items(operation, entries_max, 0, path, *parts):
            assert isinstance(item, Entry)
            yield item

    def _items(
        self, operation: Operation, entries_max: int, content_max: int, path: bytes, *parts: bytes
    ) -> Iterator[Entry | Piece]:
        # A directory that cannot be read is told a second time, with its error.
        left = 2 * entries_max + 1
        room_bytes = NAMES_MAX_BYTES
        content = 0
        has_content = False
        try:
            for frame in self._answer(operation, *parts):
                if isinstance(frame, End):
                    if frame.error == errno.E2BIG:
                        raise ImageError(
                            f"{shown(path)} holds more files than are taken", expected=f"{entries_max} at most"
                        )
                    self._check(frame, path)
                    return
                if frame.kind is Kind.ENTRIES:
                    room_bytes -= len(frame.body)
                    if room_bytes < 0:
                        raise ImageError(
                            f"the names below {shown(path)} are longer than any system's",
                            expected=f"{NAMES_MAX_BYTES} bytes at most",
                            next_step="ask for a directory further down",
                        )
                    for entry in decode_entries(frame.body):
                        left -= 1
                        if left < 0:
                            raise WireError("more entries than were asked for")
                        content, has_content = 0, content_max > 0 and entry.is_file
                        yield entry
                    continue
                if not has_content:
                    raise WireError("content that belongs to no file")
                if frame.kind is Kind.CONTENT_END:
                    has_content = False
                    yield Piece(b"", last=True, error=decode_error(frame.body))
                    continue
                content += len(frame.body)
                if content > content_max:
                    raise WireError("more of a file than was asked for")
                yield Piece(frame.body)
        except WireError as fault:
            raise self._link.lied(fault) from None

    def _answer(self, operation: Operation, *parts: bytes) -> Iterator[Frame | End]:
        """Send a request and give the frames of its answer, the END last.

        An answer that nobody reads to its end is read to its end and thrown away before the next request.
        """
        if self._link.broken is not None:
            raise self._link.broken
        if self._busy:
            raise RuntimeError("a second question to the cell while it answers the first")
        if self._unread:
            self._throw_away()
        self._request += 1
        self._link.send(encode_request(operation, self._request, *parts))
        return self._frames_of(operation, self._request)

    def _frames_of(self, operation: Operation, request: int) -> Iterator[Frame | End]:
        self._busy = True
        complete = False
        try:
            while True:
                try:
                    frame = self._link.next_frame()
                    if frame.request != request or frame.kind not in ALLOWED[operation] | {Kind.END}:
                        raise WireError(f"a frame of kind {frame.kind.name} that answers no question of ours")
                    end = decode_end(frame.body) if frame.kind is Kind.END else None
                except WireError as fault:
                    raise self._link.lied(fault) from None
                if end is not None:
                    # From here on another question may be asked, while this generator still waits to be closed.
                    complete, self._busy = True, False
                    yield end
                    return
                yield frame
        finally:
            if not complete:
                self._busy = False
                if self._link.broken is None:
                    self._unread = request

    def _throw_away(self) -> None:
        """Read what is left of an answer that its reader gave up."""
        request, self._unread = self._unread, 0
        left = _UNREAD_MAX_BYTES
        while request:
            frame = self._link.next_frame()
            left -= len(frame.body)
            if frame.request != request or left < 0:
                raise self._link.lied(WireError("more than the rest of an answer"))
            if frame.kind is Kind.END:
                return

    def _check(self, end: End, path: bytes) -> None:
        if not end.error:
            return
        if end.error in _ASKED_WRONG:
            raise MissingInImageError(f"{shown(path)} in the image", end.error)
        raise DamagedImageError(f"{shown(path)} cannot be read", end.error, self.last_words())

    def last_words(self) -> str:
        """The guest kernel's last two messages, on one line."""
        try:
            lines = [line.partition("] ")[2] or line for line in self.kernel_messages().splitlines()]
        except VmError:
            return ""
        return "; ".join(shown(line.encode()) for line in lines[-2:])[:500]
