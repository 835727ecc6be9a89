"""Evidence that somebody wrote down as text: hexadecimal or base64, told by its characters."""

from __future__ import annotations

import base64
import binascii
from typing import Final

_LEAST_CHARACTERS: Final = 64
_HEXADECIMAL: Final = b"0123456789abcdefABCDEF"
_BASE64: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_"
_SPACE: Final = b"\t\n\r "


def binary_of(data: bytes) -> bytes:
    """What the text stands for; the data themselves when they are no text of these kinds (JSON is none)."""
    if len(data) < _LEAST_CHARACTERS or data[:_LEAST_CHARACTERS].translate(None, _BASE64 + _SPACE):
        return data
    text = data.translate(None, _SPACE)
    digits = text[2:] if text[:2] in (b"0x", b"0X") else text
    if len(digits) % 2 == 0 and not digits.translate(None, _HEXADECIMAL):
        return bytes.fromhex(digits.decode("ascii"))
    plain = text.rstrip(b"=")
    if len(text) - len(plain) > 2 or plain.translate(None, _BASE64):
        return data
    plain = plain.replace(b"-", b"+").replace(b"_", b"/")
    try:
        return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except binascii.Error:
        return data
