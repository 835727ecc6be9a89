"""A strict reader of DER (X.690), as far as certificates need it: definite lengths, minimal where DER asks for that.

Every element lies inside the one around it; nothing is copied or allocated by a length that the data claim. AMD's
certificates carry raw bytes where DER wants an OCTET STRING: what an extension holds is left to its reader.
"""

from __future__ import annotations

import functools
from typing import Final, NamedTuple

from casemate.errors import InputError

SEQUENCE: Final = 0x30
SET: Final = 0x31
INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
OID: Final = 0x06
BOOLEAN: Final = 0x01
UTC_TIME: Final = 0x17
GENERALIZED_TIME: Final = 0x18
MAX_BYTES: Final = 1 << 20
MAX_OID_BYTES: Final = 64
MAX_ELEMENTS: Final = 1 << 16


class Element(NamedTuple):
    """``tag``: identifier octet. ``body``: its content. ``whole``: with tag and length, as signed."""

    tag: int
    body: bytes
    whole: bytes


def read(data: bytes, offset: int = 0) -> tuple[Element, int]:
    """The element at an offset, and where the next one starts.

    Raises:
        InputError: it is cut off, too long, or not DER.
    """
    if len(data) > MAX_BYTES:
        raise InputError("DER of more than a mebibyte", got=f"{len(data)} bytes")
    if offset + 2 > len(data):
        raise _fault("cut off before a length")
    tag, first = data[offset], data[offset + 1]
    if tag & 0x1F == 0x1F:
        raise _fault("a tag of several octets")
    start = offset + 2
    length = first
    if first & 0x80:
        count = first & 0x7F
        if not 1 <= count <= 3 or start + count > len(data):
            raise _fault("a length of no definite form")
        length = int.from_bytes(data[start : start + count], "big")
        start += count
        if length < 0x80 or length >> (8 * (count - 1)) == 0:
            raise _fault("a length that is not minimal")
    if start + length > len(data):
        raise _fault("an element longer than what holds it")
    return Element(tag, data[start : start + length], data[offset : start + length]), start + length


def whole(data: bytes, tag: int) -> Element:
    """The only element of ``data``, which must have this tag."""
    element, end = read(data)
    if end != len(data):
        raise _fault("bytes behind the last element")
    return expect(element, tag)


def elements(body: bytes) -> list[Element]:
    """The elements of a SEQUENCE's or SET's content.

    Raises:
        InputError: as `read`.
    """
    found: list[Element] = []
    offset, end = 0, len(body)
    while offset < end:
        if len(found) == MAX_ELEMENTS:
            raise _fault(f"more than {MAX_ELEMENTS} elements")
        # Short elements, nearly all there are, without a call each: a chain of certificates has hundreds.
        if offset + 2 <= end and body[offset + 1] < 0x80 and body[offset] & 0x1F != 0x1F:
            start = offset + 2
            after = start + body[offset + 1]
            if after > end:
                raise _fault("an element longer than what holds it")
            found.append(Element(body[offset], body[start:after], body[offset:after]))
            offset = after
        else:
            element, offset = read(body, offset)
            found.append(element)
    return found


def expect(element: Element, tag: int) -> Element:
    """The element, when it has this tag."""
    if element.tag != tag:
        raise _fault(f"tag {element.tag:#04x} where {tag:#04x} belongs")
    return element


def oid_text(body: bytes) -> str:
    """An object identifier as dotted numbers."""
    if not 0 < len(body) <= MAX_OID_BYTES:
        raise _fault("an object identifier of no length, or of none that anybody uses")
    return _oid_text(body)


@functools.lru_cache(maxsize=256)
def _oid_text(body: bytes) -> str:
    if body[-1] & 0x80:
        raise _fault("an object identifier that does not end")
    numbers, value = [], 0
    for octet in body:
        value = value << 7 | octet & 0x7F
        if value >> 64:
            raise _fault("an object identifier with a huge number")
        if not octet & 0x80:
            numbers.append(value)
            value = 0
    first = min(numbers[0] // 40, 2)
    return ".".join(map(str, (first, numbers[0] - 40 * first, *numbers[1:])))


def integer(body: bytes) -> int:
    """A non-negative INTEGER's value."""
    if not body or body[0] & 0x80 or (len(body) > 1 and body[0] == 0 and not body[1] & 0x80):
        raise _fault("an integer that is negative or not minimal")
    return int.from_bytes(body, "big")


def _fault(what: str) -> InputError:
    return InputError("not DER", got=what, expected="a DER-encoded certificate")
