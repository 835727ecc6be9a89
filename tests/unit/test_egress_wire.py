"""Reading another process's messages: here our own memory plays the other process, and much of it is nonsense."""

from __future__ import annotations

import ctypes
import os
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.engine.egress_policy import Endpoint
from casemate.engine.egress_wire import (
    DATAGRAM_MAX_BYTES,
    MMSGHDR_BYTES,
    MSGHDR_BYTES,
    Memory,
    Message,
    pack_address,
    parse_address,
    scatter,
)
from casemate.sys.memory import process_vm_read, process_vm_write

ME = Memory(os.getpid())


def place(data: bytes) -> tuple[ctypes.Array[ctypes.c_char], int]:
    """Bytes at a fixed place, and the place."""
    buffer = ctypes.create_string_buffer(data, len(data))
    return buffer, ctypes.addressof(buffer)


def header(name: int, name_length: int, iov: int, count: int, control: int = 0, control_length: int = 0) -> bytes:
    return struct.pack("=QI4xQQQQi4x", name, name_length, iov, count, control, control_length, 0)


def test_the_layouts_are_those_of_the_c_library() -> None:
    assert (MSGHDR_BYTES, MMSGHDR_BYTES) == (56, 64)


@pytest.mark.parametrize("text", ["8.8.8.8", "255.255.255.255", "::1", "2001:db8::ff"])
def test_addresses_go_round(text: str) -> None:
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    endpoint = Endpoint(int(family), socket.inet_pton(family, text), 65535)
    assert parse_address(pack_address(endpoint)) == endpoint


def test_the_kernel_understands_our_addresses() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        raw, at = place(pack_address(Endpoint(2, socket.inet_aton("127.0.0.1"), one.getsockname()[1])))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as two:
            assert ctypes.CDLL(None).connect(two.fileno(), ctypes.c_void_p(at), len(raw)) == 0
            assert two.getpeername() == one.getsockname()


@given(st.binary(max_size=64))
def test_any_bytes_are_an_address_or_an_error(raw: bytes) -> None:
    try:
        found = parse_address(raw)
    except OSError:
        return
    assert found.family in {socket.AF_INET, socket.AF_INET6}
    assert len(found.address) == (4 if found.family == socket.AF_INET else 16)


def test_a_batch_is_read_once_and_whole() -> None:
    first, at_first = place(b"hello ")
    second, at_second = place(b"world")
    name, at_name = place(pack_address(Endpoint(2, b"\x08\x08\x08\x08", 53)))
    iov, at_iov = place(struct.pack("=4Q", at_first, 6, at_second, 5))
    heads, at_heads = place(header(at_name, 16, at_iov, 2) + bytes(8) + header(0, 0, at_iov, 1) + bytes(8))
    messages = ME.messages(at_heads, 2, several=True)
    assert ME.payloads(messages) == [b"hello world", b"hello "]
    assert ME.names(messages) == [Endpoint(2, b"\x08\x08\x08\x08", 53), None]
    del first, second, name, iov, heads


def test_sizes_beyond_reason_are_refused_before_they_are_read() -> None:
    heads, at = place(header(0, 0, 0x1000, 1 << 40))
    with pytest.raises(OSError, match="too long"):
        ME.messages(at, 1, several=False)
    huge = Message(0, 0, 0, ((0x1000, DATAGRAM_MAX_BYTES + 1),), 0, 0)
    with pytest.raises(OSError, match="too long"):
        ME.payloads([huge])
    with pytest.raises(OSError, match="Invalid"):
        ME.names([Message(0, 0x1000, 4096, (), 0, 0)])
    with pytest.raises(OSError, match="Invalid"):
        ME.address(0x1000, -1)
    del heads


def test_pointers_to_nowhere_are_a_fault() -> None:
    with pytest.raises(OSError, match="Bad address"):
        ME.messages(8, 1, several=False)
    heads, at = place(header(0, 0, 8, 3))
    with pytest.raises(OSError, match="Bad address"):
        ME.messages(at, 1, several=False)
    del heads


@given(st.binary(min_size=MMSGHDR_BYTES * 3, max_size=MMSGHDR_BYTES * 3))
def test_any_bytes_are_messages_or_an_error(raw: bytes) -> None:
    """Pointers in them are wild: reading through the kernel must fail, not crash."""
    buffer, at = place(raw)
    try:
        messages = ME.messages(at, 3, several=True)
        ME.names(messages)
        payloads = ME.payloads(messages)
    except OSError:
        return
    assert [len(item) for item in payloads] == [message.length for message in messages]
    assert len(buffer) == len(raw)


@given(st.lists(st.integers(0, 40), max_size=8), st.binary(max_size=200))
def test_scattered_bytes_fill_the_vectors_in_order(lengths: list[int], data: bytes) -> None:
    vectors = tuple((1000 * index, length) for index, length in enumerate(lengths))
    pieces = scatter(Message(0, 0, 0, vectors, 0, 0), data)
    assert b"".join(piece for _, piece in pieces) == data[: sum(lengths)]
    room = dict(vectors)
    assert all(len(piece) <= room[address] for address, piece in pieces)


def test_an_accepted_address_is_cut_to_the_callers_room() -> None:
    name, at_name = place(bytes(32))
    length, at_length = place(struct.pack("=i", 4))
    ME.give_address(at_name, at_length, b"\x02\x00\x00\x50\x08\x08\x08\x08" + bytes(8))
    assert name.raw[:8] == b"\x02\x00\x00\x50" + bytes(4)
    assert struct.unpack("=i", length.raw) == (16,)
    ME.give_address(0, at_length, b"x")
    process_vm_write(os.getpid(), [(at_length, struct.pack("=i", -1))])
    with pytest.raises(OSError, match="Invalid"):
        ME.give_address(at_name, at_length, b"x")


@given(st.lists(st.binary(max_size=5), max_size=2500))
def test_many_pieces_go_in_several_calls(parts: list[bytes]) -> None:
    """More than IOV_MAX pieces, some of them empty."""
    joined = b"".join(parts)
    buffer, at = place(joined or b"x")
    spans, offset = [], 0
    for part in parts:
        spans.append((at + offset, len(part)))
        offset += len(part)
    assert process_vm_read(os.getpid(), spans) == parts
    target, to = place(bytes(len(joined) or 1))
    process_vm_write(os.getpid(), [(to + address - at, part) for (address, _), part in zip(spans, parts, strict=True)])
    assert target.raw[: len(joined)] == joined
    del buffer
