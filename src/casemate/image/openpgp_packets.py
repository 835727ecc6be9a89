"""OpenPGP packets: by their headers alone, or through pysequoia with its faults made ours."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from casemate.image.origin import refuse

if TYPE_CHECKING:
    from pysequoia import Cert
    from pysequoia.packet import Packet

MAX_SIGNATURES: Final = 64


def packet_tags(data: bytes, what: str) -> list[int]:
    """Tags of the packets in ``data``, by their headers alone (RFC 9580, 4.2): nothing is unpacked.

    Raises:
        ImageError: the headers do not add up to the data.
    """
    tags: list[int] = []
    at, end = 0, len(data)
    while at < end:
        first = data[at]
        if not first & 0x80 or len(tags) > 4 * MAX_SIGNATURES:
            raise refuse(what, f"no OpenPGP packet at byte {at}")
        at += 1
        if first & 0x40:
            tags.append(first & 0x3F)
            partial = True
            while partial:
                at, length, partial = _new_length(data, at, what)
                at += length
        else:
            tags.append(first >> 2 & 0x0F)
            width = {0: 1, 1: 2, 2: 4, 3: 0}[first & 3]
            length = int.from_bytes(data[at : at + width], "big") if width else end - at
            at += width + length
        if at > end:
            raise refuse(what, "a packet that is cut off")
    return tags


def _new_length(data: bytes, at: int, what: str) -> tuple[int, int, bool]:
    """Position after the length, the length, and whether another part follows."""
    head = data[at : at + 5]
    if not head:
        raise refuse(what, "a packet that is cut off")
    if head[0] < 192:
        return at + 1, head[0], False
    if head[0] < 224 and len(head) > 1:
        return at + 2, ((head[0] - 192) << 8) + head[1] + 192, False
    if head[0] == 255 and len(head) == 5:
        return at + 5, int.from_bytes(head[1:], "big"), False
    if 224 <= head[0] < 255:
        return at + 1, 1 << (head[0] & 0x1F), True
    raise refuse(what, "a packet that is cut off")


def dearmor(data: bytes, what: str) -> bytes:
    """The data inside of ASCII armor; the checksum is not looked at (RFC 9580, 6.1)."""
    match = re.fullmatch(
        rb"\s*-----BEGIN PGP MESSAGE-----\r?\n(?:[^\r\n:]+: [^\r\n]*\r?\n)*\r?\n([A-Za-z0-9+/=\r\n]+?)"
        rb"(?:\r?\n=[A-Za-z0-9+/]{4})?\r?\n-----END PGP MESSAGE-----\s*",
        data,
    )
    try:
        if match is None:
            raise binascii.Error
        return base64.b64decode(re.sub(rb"\s", b"", match[1]), validate=True)
    except binascii.Error:
        raise refuse(what, "broken armor", expected="an OpenPGP message") from None


def packets_in(data: bytes, what: str) -> list[Packet]:
    """The packets in ``data``, binary or armored."""
    from pysequoia.packet import PacketPile

    found: list[Packet] = guarded(lambda: list(PacketPile.from_bytes(data)), what, "no OpenPGP data")
    return found


def packets_of_cert(cert: Cert, what: str) -> list[Packet]:
    """The packets of a certificate."""
    return packets_in(guarded(lambda: bytes(cert), what, "a broken certificate"), what)


def tag_of(packet: Packet, what: str) -> str:
    """Name of the packet's type, for example ``Signature``."""
    return word_of(read(packet, what, "tag")[0])


def read(packet: Packet, what: str, *names: str) -> tuple[Any, ...]:
    """Properties of a packet."""
    found: tuple[Any, ...] = guarded(lambda: tuple(getattr(packet, name) for name in names), what, "a broken packet")
    return found


def printable(text: str) -> str:
    """``text`` for a terminal, at most 200 characters."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)[:200]


def word_of(value: object) -> str:
    """``HashAlgorithm.SHA256`` as ``SHA256``."""
    return repr(value).rpartition(".")[2]


class LibraryError(Exception):
    """What pysequoia said, without its backtrace."""


def call(function: Callable[[], Any]) -> Any:
    """Call into the library; whatever it raises, also a Rust panic, becomes `LibraryError`."""
    try:
        return function()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as fault:  # pyo3's PanicException is no Exception
        said = str(fault).split("Stack backtrace")[0].split("Caused by:")[-1]
        raise LibraryError(printable(" ".join(said.split()))) from None


def guarded(function: Callable[[], Any], what: str, why: str) -> Any:
    """`call`, with ``why`` as the reason when the library raises.

    Raises:
        ImageError: naming ``what``.
    """
    try:
        return call(function)
    except LibraryError as fault:
        raise refuse(what, f"{why} ({fault})", expected="OpenPGP data, binary or armored") from None
