"""The protocol between host and agent, the host's end: bytes in, values out, no I/O. ``agent/wire.h`` is the other end.

::

    host -> guest   u32 length, u32 id, u16 operation, u16 0, then `length` bytes
    guest -> host   u32 length, u32 id, u16 kind,      u16 0, then `length` bytes

All integers are little endian; a text is a u16 length and bytes. One request at a time; an answer is any number of
frames and exactly one END. The guest is hostile: a frame that is too long, of another request or of a kind that the
operation does not give ends the cell.

An entry: u32 mode, u32 errno, u64 size, i64 mtime, u32 uid, u32 gid, u32 links, u32 device, u64 inode, u16 length of
the path, u16 length of the target, path, target.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import NamedTuple

from casemate.cell.model import PATH_MAX_BYTES, Entry

PROTOCOL = 1
FRAME_MAX_BYTES = 256 << 10
REQUEST_MAX_BYTES = 24 << 20
TARGET_MAX_BYTES = 4096
RUN_INPUT_MAX_BYTES = 60_000

_HEADER = struct.Struct("<IIHH")
_ENTRY = struct.Struct("<IIQqIIIIQHH")
_END = struct.Struct("<IQ")
_NUMBER = struct.Struct("<I")
_ERRNO_MAX = 4095


class Operation(enum.IntEnum):
    """What the host may ask."""

    LOAD = 1
    PUT = 2
    PREAD = 3
    MOUNT = 4
    UMOUNT = 5
    RUN = 6
    STAT = 7
    LIST = 8
    WALK = 9
    READ = 10
    DMESG = 11
    VOLUMES = 12
    """Only the other reader (`cell/other.py`) answers this one."""


class Kind(enum.IntEnum):
    """What the guest may send."""

    HELLO = 1
    DATA = 2
    ENTRIES = 3
    CONTENT = 4
    CONTENT_END = 5
    END = 6


ALLOWED: dict[Operation, frozenset[Kind]] = {
    Operation.LOAD: frozenset(),
    Operation.PUT: frozenset(),
    Operation.PREAD: frozenset({Kind.DATA}),
    Operation.MOUNT: frozenset(),
    Operation.UMOUNT: frozenset(),
    Operation.RUN: frozenset({Kind.DATA}),
    Operation.STAT: frozenset({Kind.ENTRIES}),
    Operation.LIST: frozenset({Kind.ENTRIES}),
    Operation.WALK: frozenset({Kind.ENTRIES, Kind.CONTENT, Kind.CONTENT_END}),
    Operation.READ: frozenset({Kind.DATA}),
    Operation.DMESG: frozenset({Kind.DATA}),
    Operation.VOLUMES: frozenset({Kind.DATA}),
}
"""Kinds before the END of each operation's answer."""


class WireError(ValueError):
    """The guest broke the protocol. The text is ours: nothing of the guest's stands in it."""


class Frame(NamedTuple):
    """One frame of the guest's."""

    kind: Kind
    request: int
    body: bytes


class End(NamedTuple):
    """The end of an answer: errno (0 for none) and a value that depends on the operation."""

    error: int
    value: int


class FrameReader:
    """Fed with pieces of the stream; where they are cut does not change the frames."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are whole now.

        Raises:
            WireError: a length beyond `FRAME_MAX_BYTES`, an unknown kind, or a field that must be 0.
        """
        self._held += data
        frames = []
        position = 0
        while len(self._held) - position >= _HEADER.size:
            length, request, kind, zero = _HEADER.unpack_from(self._held, position)
            if length > FRAME_MAX_BYTES:
                raise WireError(f"a frame of {length} bytes; {FRAME_MAX_BYTES} are allowed")
            if zero or kind not in Kind.__members__.values():
                raise WireError(f"a frame of the unknown kind {kind}")
            start = position + _HEADER.size
            if len(self._held) - start < length:
                break
            frames.append(Frame(Kind(kind), request, bytes(memoryview(self._held)[start : start + length])))
            position = start + length
        del self._held[:position]
        return frames

    @property
    def held_bytes(self) -> int:
        """Bytes of a frame that is not whole."""
        return len(self._held)


def encode_request(operation: Operation, request: int, *parts: bytes) -> bytes:
    """One request.

    Raises:
        RuntimeError: more than the agent takes: our bug.
    """
    length = sum(map(len, parts))
    if length > REQUEST_MAX_BYTES:
        raise RuntimeError(f"a request of {length} bytes")
    return _HEADER.pack(length, request, operation, 0) + b"".join(parts)


def text(value: str | bytes) -> bytes:
    """A text field.

    Raises:
        RuntimeError: longer than its length field can say.
    """
    raw = value.encode() if isinstance(value, str) else value
    if len(raw) > 0xFFFF or b"\0" in raw:
        raise RuntimeError("a text field of more than 65535 bytes, or with a NUL")
    return struct.pack("<H", len(raw)) + raw


def number(value: int, size_bytes: int) -> bytes:
    """An unsigned integer field."""
    return value.to_bytes(size_bytes, "little")


def decode_hello(frame: Frame) -> None:
    """Check the first frame of a cell.

    Raises:
        WireError: it is not the agent's greeting in this protocol version.
    """
    if frame.kind is not Kind.HELLO or frame.request != 0 or frame.body != _NUMBER.pack(PROTOCOL):
        raise WireError("a first frame that is not the agent's greeting")


def decode_end(body: bytes) -> End:
    """The last frame of an answer.

    Raises:
        WireError: another length, or an errno that no kernel has.
    """
    if len(body) != _END.size:
        raise WireError(f"an end of {len(body)} bytes")
    end = End(*_END.unpack(body))
    if end.error > _ERRNO_MAX:
        raise WireError(f"errno {end.error}")
    return end


def decode_error(body: bytes) -> int:
    """The errno with which a file's content ends.

    Raises:
        WireError: another length, or an errno that no kernel has.
    """
    if len(body) != _NUMBER.size:
        raise WireError(f"an errno of {len(body)} bytes")
    error: int = _NUMBER.unpack(body)[0]
    if error > _ERRNO_MAX:
        raise WireError(f"errno {error}")
    return error


def decode_entries(body: bytes) -> Iterator[Entry]:
    """The entries of one frame.

    Raises:
        WireError: a length that leads out of the frame, an empty frame, a path with a NUL, or one that is too long.
    """
    if not body:
        raise WireError("a frame without entries")
    position = 0
    while position < len(body):
        if len(body) - position < _ENTRY.size:
            raise WireError("an entry that is cut short")
        fields = _ENTRY.unpack_from(body, position)
        mode, error, size, mtime, uid, gid, links, device, inode, path_bytes, target_bytes = fields
        start = position + _ENTRY.size
        middle, position = start + path_bytes, start + path_bytes + target_bytes
        if position > len(body):
            raise WireError("an entry whose names lead out of its frame")
        if path_bytes > PATH_MAX_BYTES or target_bytes > TARGET_MAX_BYTES or error > _ERRNO_MAX:
            raise WireError("an entry with a name that is too long, or an errno that no kernel has")
        path, target = body[start:middle], body[middle:position]
        if b"\0" in path or b"\0" in target:
            raise WireError("an entry with a NUL in its name")
        major = (device >> 8) & 0xFFF | (device >> 32) & ~0xFFF
        minor = device & 0xFF | (device >> 12) & ~0xFF
        yield Entry(path, mode, size, mtime, uid, gid, links, inode, (major, minor), target, error)
