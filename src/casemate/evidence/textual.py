"""Octets as text, in evidence and of it: hexadecimal or base64, told by its characters."""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

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
    try:
        return base64_of(plain.decode("ascii"))
    except ValueError:
        return data


def octets_of(value: Any) -> bytes:
    """A list of numbers, hexadecimal, or base64 (of either alphabet).

    Raises:
        ValueError, TypeError: none of them.
    """
    if isinstance(value, list):
        return bytes(value)
    if not isinstance(value, str):
        raise ValueError(f"a {type(value).__name__} where octets belong")
    try:
        return bytes.fromhex(value)
    except ValueError:
        return base64_of(value)


def base64_of(text: str) -> bytes:
    """Base64 of either alphabet, padded or not.

    Raises:
        ValueError: it is none.
    """
    plain = text.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except binascii.Error:
        raise ValueError("no base64") from None


def url64(data: bytes) -> str:
    """Octets as base64url without padding, as JOSE has it."""
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")
