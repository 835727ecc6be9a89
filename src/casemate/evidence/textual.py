"""Evidence that somebody wrote down as text: hexadecimal or base64, told by its characters."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

_LEAST_CHARACTERS: Final = 64
_HEXADECIMAL: Final = re.compile(rb"(?:0[xX])?((?:[0-9a-fA-F]{2})+)")
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/]+={0,2}|[A-Za-z0-9_-]+={0,2}")
_BINARY: Final = re.compile(rb"[^\t\n\r -~]")


def binary_of(data: bytes) -> bytes:
    """What the text stands for; the data themselves when they are no text of these kinds (JSON is none)."""
    if len(data) < _LEAST_CHARACTERS or _BINARY.search(data[:_LEAST_CHARACTERS]) or _BINARY.search(data):
        return data
    text = b"".join(data.split())
    match = _HEXADECIMAL.fullmatch(text)
    if match:
        return bytes.fromhex(match[1].decode("ascii"))
    if not _BASE64.fullmatch(text):
        return data
    plain = text.replace(b"-", b"+").replace(b"_", b"/").rstrip(b"=")
    try:
        return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except binascii.Error:
        return data
