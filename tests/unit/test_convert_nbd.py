"""The block server of a conversion against clients that mean harm: bounds, limits, nonsense, silence."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.cell.convert_nbd import MAX_DATA_BYTES, READ, REQUEST, WRITE, WRITE_ZEROES, BlockServer

MAGIC = 0x25609513
SIZE, BEFORE, BEHIND = 4096, b"before" * 100, b"behind" * 100
FLUSH, TRIM, DISCONNECT, BLOCK_STATUS = 3, 4, 2, 7


class Client:
    """The other end, and the file behind the server."""

    def __init__(self, *, write_max_bytes: int, filled_bytes: int = SIZE) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
        self.file.write(BEFORE + b"x" * SIZE + BEHIND)
        self.file.flush()
        ours, self.end = socket.socketpair()
        self.end.settimeout(10)
        self.server = BlockServer(
            ours,
            self.file.fileno(),
            SIZE,
            offset=len(BEFORE),
            write_max_bytes=write_max_bytes,
            filled_bytes=filled_bytes,
        )
        self.server.start()
        self.hello = self.take(152)

    def take(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            try:
                piece = self.end.recv(length - len(data))
            except ConnectionResetError:  # it left with something of ours unread
                break
            if not piece:
                break
            data += piece
        return data

    def ask(self, kind: int, offset: int, length: int, data: bytes = b"", magic: int = MAGIC) -> tuple[int, bytes]:
        """The error of the reply (-1: none came) and the data of a read."""
        with contextlib.suppress(ConnectionError):
            self.end.sendall(REQUEST.pack(magic, 0, kind, 7, offset, length) + data)
        reply = self.take(16)
        if len(reply) < 16:
            return -1, b""
        answer, error, cookie = struct.unpack(">IIQ", reply)
        assert (answer, cookie) == (0x67446698, 7)
        return error, self.take(length) if kind == READ and not error else b""

    def content(self) -> bytes:
        data = os.pread(self.file.fileno(), 1 << 20, 0)
        assert data.startswith(BEFORE), "nothing before the part is touched"
        assert data.endswith(BEHIND), "nothing behind it"
        assert len(data) == len(BEFORE) + SIZE + len(BEHIND)
        return data[len(BEFORE) : -len(BEHIND)]

    def close(self) -> None:
        self.end.close()
        self.server.join(10)
        assert not self.server.is_alive()
        self.file.close()


@contextlib.contextmanager
def client(write_max_bytes: int = 1 << 20, filled_bytes: int = SIZE) -> Iterator[Client]:
    made = Client(write_max_bytes=write_max_bytes, filled_bytes=filled_bytes)
    try:
        yield made
    finally:
        made.close()


def test_the_first_packet_says_size_and_rights() -> None:
    for limit, read_only in ((0, True), (1, False)):
        with client(limit) as one:
            assert one.hello[:8] == b"NBDMAGIC"
            _, size, flags = struct.unpack(">QQI", one.hello[8:28])
            assert size == SIZE
            assert bool(flags & 2) is read_only
            assert not any(one.hello[28:])


def test_reads_and_writes_stay_in_the_part() -> None:
    with client() as one:
        assert one.ask(READ, 0, SIZE) == (0, b"x" * SIZE)
        assert one.ask(WRITE, 10, 3, b"abc") == (0, b"")
        assert one.content()[10:13] == b"abc"
        assert one.ask(WRITE_ZEROES, 11, 1) == (0, b"")
        assert one.content()[10:13] == b"a\0c"
        for kind in (FLUSH, TRIM):
            assert one.ask(kind, 0, 0) == (0, b"")
        for kind, offset, length, data in (
            (READ, SIZE - 1, 2, b""),
            (READ, 1 << 63, 1, b""),
            (READ, (1 << 64) - 1, 1, b""),
            (WRITE, SIZE - 1, 2, b"zz"),
            (WRITE, 1 << 62, 1, b"z"),
            (WRITE_ZEROES, 1, (1 << 32) - 1, b""),
            (BLOCK_STATUS, 0, 1, b""),
            (99, 0, 0, b""),
        ):
            assert one.ask(kind, offset, length, data)[0] == 22, (kind, offset)
        one.content()


def test_a_read_only_server_writes_nothing() -> None:
    with client(0) as one:
        assert one.ask(WRITE, 0, 1, b"z")[0] == 1
        assert one.ask(WRITE_ZEROES, 0, 1)[0] == 1
        assert one.content() == b"x" * SIZE


def test_more_than_the_bound_ends_it() -> None:
    with client(100) as one:
        assert one.ask(WRITE, 0, 100, b"a" * 100)[0] == 0
        assert one.ask(WRITE, 0, 1, b"b")[0] == -1
        assert "more than it may" in one.server.fault
        assert one.content() == b"a" * 100 + b"x" * (SIZE - 100)


@pytest.mark.parametrize(("kind", "length", "magic"), [(READ, MAX_DATA_BYTES + 1, MAGIC), (READ, 1, MAGIC + 1)])
def test_nonsense_ends_it(kind: int, length: int, magic: int) -> None:
    with client() as one:
        assert one.ask(kind, 0, length, magic=magic)[0] == -1
        assert "no request" in one.server.fault


def test_nothing_is_answered_before_its_time() -> None:
    wake = os.eventfd(0)
    ours, end = socket.socketpair()
    with tempfile.TemporaryFile() as file:
        file.write(b"y" * SIZE)
        file.flush()
        server = BlockServer(ours, file.fileno(), SIZE, wake_fd=wake)
        server.start()
        end.settimeout(0.2)
        assert len(end.recv(152)) == 152
        end.sendall(REQUEST.pack(MAGIC, 0, READ, 1, 0, 4))
        assert os.eventfd_read(wake) == 1
        with pytest.raises(TimeoutError):
            end.recv(1)
        server.go_on()
        end.settimeout(10)
        assert end.recv(64).endswith(b"yyyy")
        end.close()
        server.join(10)
    os.close(wake)


def test_zeros_beyond_what_was_written_cost_nothing() -> None:
    with client(filled_bytes=0) as one:
        assert one.ask(WRITE_ZEROES, 0, SIZE) == (0, b"")
        assert one.content() == b"x" * SIZE, "the file was said to be zeros"
        assert one.ask(WRITE, 0, 2, b"ab") == (0, b"")
        assert one.ask(WRITE_ZEROES, 0, SIZE) == (0, b"")
        assert one.content() == b"\0\0" + b"x" * (SIZE - 2)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2 * SIZE), st.integers(0, SIZE), st.booleans()), max_size=12)
)
def test_any_requests_stay_in_bounds(requests: list[tuple[int, int, int, bool]]) -> None:
    with client(3 * SIZE) as one:
        for kind, offset, length, lies in requests:
            one.ask(kind, offset, length, b"d" * length if kind == WRITE else b"", MAGIC ^ lies if lies else MAGIC)
            one.content()
            if kind == DISCONNECT or lies or one.server.fault:
                break


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_stay_in_bounds(data: bytes) -> None:
    with client() as one:
        with contextlib.suppress(ConnectionError):
            one.end.sendall(data)
        one.end.shutdown(socket.SHUT_WR)
        one.server.join(10)
        one.content()
