"""The two ends of a conversion that qemu-img does not hold: bytes of the source, bytes of the target, over NBD.

Old-style negotiation is one packet of the server and nothing of the client, so a hostile client has no options to send:

    server  "NBDMAGIC"  0x00420281861253  size  flags  124 zero bytes
    client  0x25609513  flags  type  cookie  offset  length       28 bytes, then the data of a write
    server  0x67446698  error  cookie                             16 bytes, then the data of a read

Whoever broke qemu-img can read the source and write the target, within their bounds, and that is all that it is for.
Protocol: NBD, doc/proto.md.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from typing import Final

REQUEST: Final = struct.Struct(">IHHQQI")
_HELLO: Final = struct.Struct(">8sQQI124x")
_REPLY: Final = struct.Struct(">IIQ")
_REQUEST_MAGIC: Final = 0x2560_9513
_REPLY_MAGIC: Final = 0x6744_6698
_CLIENT_MAGIC: Final = 0x0042_0281_8612_53
READ, WRITE, DISCONNECT, FLUSH, TRIM, WRITE_ZEROES = 0, 1, 2, 3, 4, 6
_HAS_FLAGS, _READ_ONLY, _SEND_FLUSH, _SEND_TRIM, _SEND_ZEROES = 1, 2, 4, 1 << 5, 1 << 6
_EIO, _EINVAL, _ENOSPC, _EPERM = 5, 22, 28, 1
MAX_DATA_BYTES: Final = 32 << 20
"""What an NBD client may ask for at once."""
_ZEROS: Final = bytes(1 << 20)


class BlockServer(threading.Thread):
    """Serves one file, or a part of one, to one client, until the client leaves.

    Args:
        end: our end of a stream socket pair; closed when the thread ends.
        fd: the file; stays the caller's.
        size_bytes: of the disk that the client sees.
        offset: where it begins in the file.
        write_max_bytes: how much may be written in all; 0: nothing, read-only.
        filled_bytes: how much of the file, from its begin, is not zeros from the start.
        wake_fd: an eventfd that is told the first request; then nothing is answered before `go_on`.
    """

    def __init__(
        self,
        end: socket.socket,
        fd: int,
        size_bytes: int,
        *,
        offset: int = 0,
        write_max_bytes: int = 0,
        filled_bytes: int = 0,
        wake_fd: int = -1,
    ) -> None:
        super().__init__(daemon=True, name="casemate-nbd")
        self._end, self._fd, self._size, self._offset = end, fd, size_bytes, offset
        self._write_max, self._wake_fd = write_max_bytes, wake_fd
        self.requests = 0
        self.top_bytes = filled_bytes
        """Behind the last byte that was written: from there on there are only zeros."""
        self.written_bytes = 0
        self.heard = time.monotonic()
        self._may_answer = threading.Event()
        if wake_fd < 0:
            self._may_answer.set()
        self.fault = ""
        """Why we stopped serving; empty when the client left."""
        self.error: OSError | None = None
        """What our own file refused: a full disk."""

    def run(self) -> None:
        """Serve."""
        try:
            flags = _HAS_FLAGS | _SEND_FLUSH | (_SEND_ZEROES | _SEND_TRIM if self._write_max else _READ_ONLY)
            self._end.sendall(_HELLO.pack(b"NBDMAGIC", _CLIENT_MAGIC, self._size, flags))
            while (head := self._receive(REQUEST.size)) is not None:
                self.heard = time.monotonic()
                self.requests += 1
                if self.requests == 1 and self._wake_fd >= 0:
                    os.eventfd_write(self._wake_fd, 1)
                self._may_answer.wait()
                if not self._answer(*REQUEST.unpack(head)):
                    break
        except OSError as error:
            if not isinstance(error, ConnectionError):
                self.error = error
        finally:
            self._end.close()

    def go_on(self) -> None:
        """Answer the first request, and all others."""
        self._may_answer.set()

    def _answer(self, magic: int, _flags: int, kind: int, cookie: int, offset: int, length: int) -> bool:
        if magic != _REQUEST_MAGIC or (length > MAX_DATA_BYTES and kind in {READ, WRITE}):
            self.fault = "it sent something that is no request"
            return False
        if kind == DISCONNECT:
            return False
        inside = offset + length <= self._size
        if kind == READ:
            return self._reply(cookie, 0 if inside else _EINVAL, self._read(offset, length) if inside else b"")
        if kind in {FLUSH, TRIM}:
            return self._reply(cookie, 0)
        if kind not in {WRITE, WRITE_ZEROES}:
            return self._reply(cookie, _EINVAL)
        data = self._receive(length) if kind == WRITE else None
        if not self._write_max or not inside:
            return self._reply(cookie, _EINVAL if self._write_max else _EPERM)
        if kind == WRITE:
            if data is None:
                return False
            self.written_bytes += length
            if self.written_bytes > self._write_max:
                self.fault = "it wrote more than it may"
                return False
            self._write(data, offset)
            self.top_bytes = max(self.top_bytes, offset + length)
        else:
            self._zero(offset, length)
        return self._reply(cookie, 0)

    def _reply(self, cookie: int, error: int, data: bytes | memoryview = b"") -> bool:
        head = _REPLY.pack(_REPLY_MAGIC, error, cookie)
        if len(data) < 65536:
            self._end.sendall(head + bytes(data))
        else:
            self._end.sendall(head)
            self._end.sendall(data)
        return True

    def _receive(self, length: int) -> memoryview | None:
        """Exactly ``length`` bytes; None when the client has left before."""
        buffer = bytearray(length)
        view, at = memoryview(buffer), 0
        while at < length:
            try:
                got = self._end.recv_into(view[at:])
            except ConnectionError:
                return None
            if not got:
                return None
            at += got
        return view

    def _read(self, offset: int, length: int) -> bytes:
        """What lies there; zeros beyond the end of the file."""
        data = os.pread(self._fd, length, self._offset + offset)
        while data and len(data) < length:
            more = os.pread(self._fd, length - len(data), self._offset + offset + len(data))
            if not more:
                break
            data += more
        return data if len(data) == length else data.ljust(length, b"\0")

    def _write(self, data: memoryview, offset: int) -> None:
        while data:
            written = os.pwrite(self._fd, data, self._offset + offset)
            data, offset = data[written:], offset + written

    def _zero(self, offset: int, length: int) -> None:
        """Only what was written before can be anything else."""
        end = min(offset + length, self.top_bytes)
        while offset < end:
            size = min(len(_ZEROS), end - offset)
            if os.pread(self._fd, size, self._offset + offset).strip(b"\0"):
                self._write(memoryview(_ZEROS)[:size], offset)
            offset += size
