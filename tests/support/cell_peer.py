"""A cell's agent that lies: the guest's end of the channel in a thread, answering as the test says."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from casemate.cell.session import Session
from casemate.cell.wire import Kind

HEADER = struct.Struct("<IIHH")
HELLO = HEADER.pack(4, 0, Kind.HELLO, 0) + b"\x01\0\0\0"

Answer = Callable[[int, int, bytes], bytes]
"""(request id, operation, body) -> bytes to send."""


def frame_bytes(kind: int, request: int, body: bytes = b"") -> bytes:
    """One frame of the guest's."""
    return HEADER.pack(len(body), request, kind, 0) + body


def entry_bytes(path: bytes, *, mode: int = 0o100644, error: int = 0, size: int = 0, target: bytes = b"") -> bytes:
    """One entry of an ENTRIES frame."""
    fixed = struct.pack("<IIQqIIIIQHH", mode, error, size, 7, 1, 2, 1, 0, 9, len(path), len(target))
    return fixed + path + target


def end(request: int, error: int = 0, value: int = 0) -> bytes:
    """The END frame."""
    return frame_bytes(Kind.END, request, struct.pack("<IQ", error, value))


@contextmanager
def peer(answer: Answer, *, hello: bytes = HELLO, silence_max_s: float = 10.0) -> Iterator[Session]:
    """A session whose other end is ``answer``; an exception of the peer's thread ends only the peer."""
    ours, theirs = socket.socketpair()

    def run() -> None:
        with contextlib.suppress(OSError, struct.error), theirs:
            theirs.sendall(hello)
            while True:
                length, request, operation, _ = HEADER.unpack(_exactly(theirs, HEADER.size))
                theirs.sendall(answer(request, operation, _exactly(theirs, length)))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield Session(ours, silence_max_s=silence_max_s)
    finally:
        ours.close()
        thread.join(10)


def _exactly(channel: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = channel.recv(min(1 << 20, length - len(data)))
        if not piece:
            raise OSError("the host is gone")
        data += piece
    return data
