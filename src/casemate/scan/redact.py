"""Secrets as they may be shown: first and last four characters, and a digest under a key of this scan.

Short ones show less, because what is left would be little to guess: below 16 characters two and two, below 10 none.
"""

from __future__ import annotations

import hashlib
import hmac
import os

DIGEST_CHARS = 16
KEY_BYTES = 32


class Redactor:
    """Redacts under one key; random unless given, so that digests of two scans cannot be compared by others."""

    def __init__(self, key: bytes | None = None) -> None:
        if key is not None and len(key) < 16:
            raise RuntimeError("a redaction key has at least 16 bytes")
        self._key = os.urandom(KEY_BYTES) if key is None else key

    def digest(self, secret: bytes) -> str:
        """16 hexadecimal digits; equal for equal secrets of the same scan."""
        return hmac.new(self._key, secret, hashlib.sha256).hexdigest()[:DIGEST_CHARS]

    @staticmethod
    def shown(secret: bytes) -> str:
        """``AKIA…WXYZ``; characters that are not printable ASCII become dots."""
        keep = 4 if len(secret) >= 16 else 2 if len(secret) >= 10 else 0
        if not keep:
            return "…"
        return f"{_plain(secret[:keep])}…{_plain(secret[-keep:])}"


def _plain(part: bytes) -> str:
    return "".join(chr(byte) if 0x21 <= byte < 0x7F else "." for byte in part)
