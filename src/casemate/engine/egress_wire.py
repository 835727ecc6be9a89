"""Addresses and messages as another process holds them in its memory (64-bit Linux ABI). Standard library only.

Everything read here is hostile: every length is bounded before it is used, and each value is read once and used from
our copy, never read again.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Final, NamedTuple

from casemate.engine.egress_policy import Endpoint
from casemate.sys.memory import process_vm_read, process_vm_write

MESSAGES_MAX: Final = 1024
VECTORS_MAX: Final = 1024
DATAGRAM_MAX_BYTES: Final = 65535
BATCH_MAX_BYTES: Final = 1 << 20
"""Most bytes that one call is taken at; a longer batch is sent in part, as sendmmsg(2) may."""

# struct msghdr: name, namelen (+4), iov, iovlen, control, controllen, flags (+4); mmsghdr adds msg_len (+4).
_MSGHDR: Final = struct.Struct("=QI4xQQQQi4x")
_MMSGHDR: Final = struct.Struct("=QI4xQQQQi4xI4x")
MSGHDR_BYTES: Final = _MSGHDR.size
MMSGHDR_BYTES: Final = _MMSGHDR.size
NAMELEN_AT: Final = 8
CONTROLLEN_AT: Final = 40
FLAGS_AT: Final = 48
LENGTH_AT: Final = 56
_IOVEC: Final = struct.Struct("=QQ")
_IN4: Final = struct.Struct("=H2s4s8x")
_IN6: Final = struct.Struct("=H2sI16sI")


def fault(number: int) -> OSError:
    """An error for the caller of the brokered call."""
    return OSError(number, os.strerror(number))


class Message(NamedTuple):
    """A msghdr: where it is, where its name is, its pieces as (address, length in bytes), its control buffer."""

    at: int
    name: int
    name_length: int
    vectors: tuple[tuple[int, int], ...]
    control: int
    control_length: int

    @property
    def length(self) -> int:
        """Bytes in all pieces."""
        return sum(length for _, length in self.vectors)


def parse_address(raw: bytes) -> Endpoint:
    """A sockaddr_in or sockaddr_in6; flow label and scope are dropped.

    Raises:
        OSError: EAFNOSUPPORT for any other family, EINVAL when it is too short.
    """
    if len(raw) < 2:
        raise fault(errno.EINVAL)
    family = int.from_bytes(raw[:2], "little")
    if family == socket.AF_INET:
        if len(raw) < _IN4.size:
            raise fault(errno.EINVAL)
        _, port, address = _IN4.unpack_from(raw)
    elif family == socket.AF_INET6:
        if len(raw) < _IN6.size:
            raise fault(errno.EINVAL)
        _, port, _, address, _ = _IN6.unpack_from(raw)
    else:
        raise fault(errno.EAFNOSUPPORT)
    return Endpoint(family, address, int.from_bytes(port, "big"))


def pack_address(endpoint: Endpoint) -> bytes:
    """The sockaddr of an endpoint."""
    port = endpoint.port.to_bytes(2, "big")
    if endpoint.family == socket.AF_INET:
        return _IN4.pack(endpoint.family, port, endpoint.address)
    return _IN6.pack(endpoint.family, port, 0, endpoint.address, 0)


class Memory:
    """The memory of the process that waits for an answer."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def read(self, address: int, length: int) -> bytes:
        """One span."""
        return process_vm_read(self.pid, [(address, length)])[0]

    def write(self, pieces: list[tuple[int, bytes]]) -> None:
        """Several pieces."""
        process_vm_write(self.pid, pieces)

    def address(self, pointer: int, length: int) -> Endpoint:
        """The sockaddr that a call was given; raises as `parse_address`."""
        if not 0 <= length <= 128:
            raise fault(errno.EINVAL)
        return parse_address(self.read(pointer, length))

    def give_address(self, pointer: int, length_pointer: int, name: bytes) -> None:
        """Answer a (sockaddr *, socklen_t *) pair the way accept(2) does; nothing for a null pointer."""
        if not pointer or not length_pointer:
            return
        room = int.from_bytes(self.read(length_pointer, 4), "little", signed=True)
        if room < 0:
            raise fault(errno.EINVAL)
        self.write([(pointer, name[:room]), (length_pointer, len(name).to_bytes(4, "little"))])

    def messages(self, at: int, count: int, *, several: bool) -> list[Message]:
        """``count`` msghdr (``several``: mmsghdr) structures with their vectors.

        Raises:
            OSError: EMSGSIZE for more vectors than the kernel takes, EFAULT for pointers to nowhere.
        """
        size = MMSGHDR_BYTES if several else MSGHDR_BYTES
        layout = _MMSGHDR if several else _MSGHDR
        raw = self.read(at, size * count)
        heads = [layout.unpack_from(raw, size * index) for index in range(count)]
        if any(head[3] > VECTORS_MAX for head in heads) or sum(head[3] for head in heads) > MESSAGES_MAX * 8:
            raise fault(errno.EMSGSIZE)
        arrays = process_vm_read(self.pid, [(head[2], head[3] * _IOVEC.size) for head in heads])
        found = []
        for index, (head, array) in enumerate(zip(heads, arrays, strict=True)):
            name, name_length, _, _, control, control_length = head[:6]
            vectors = tuple(_IOVEC.iter_unpack(array))
            message = Message(at + size * index, name, name_length, vectors, control, control_length)
            found.append(message)
        return found

    def payloads(self, messages: list[Message]) -> list[bytes]:
        """The bytes of each message.

        Raises:
            OSError: EMSGSIZE for a message beyond `DATAGRAM_MAX_BYTES`.
        """
        if any(message.length > DATAGRAM_MAX_BYTES for message in messages):
            raise fault(errno.EMSGSIZE)
        pieces = iter(process_vm_read(self.pid, [vector for message in messages for vector in message.vectors]))
        return [b"".join(next(pieces) for _ in message.vectors) for message in messages]

    def names(self, messages: list[Message]) -> list[Endpoint | None]:
        """The destination of each message, None where it has none; raises as `parse_address`."""
        where = {(message.name, message.name_length) for message in messages if message.name and message.name_length}
        if any(length > 128 for _, length in where):
            raise fault(errno.EINVAL)
        order = list(where)
        found = {key: parse_address(raw) for key, raw in zip(order, process_vm_read(self.pid, order), strict=True)}
        return [found.get((message.name, message.name_length)) for message in messages]


def scatter(message: Message, data: bytes) -> list[tuple[int, bytes]]:
    """Pieces that put ``data`` into the message's vectors."""
    pieces, at = [], 0
    for address, length in message.vectors:
        if at >= len(data):
            break
        pieces.append((address, data[at : at + length]))
        at += length
    return pieces
