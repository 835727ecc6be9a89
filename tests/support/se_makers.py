"""IBM Secure Execution's attestation request, image header and exchange, made after the published formats."""

from __future__ import annotations

import hashlib
import hmac

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY = bytes(range(32))
MEASUREMENT_KEY, NONCE = b"\x77" * 64, b"\xab" * 16
IMAGE_KEY_HASH, HOST_KEY_HASH = b"\x21" * 32, b"\x22" * 32
UID = b"\x05" * 16
FLAGS = 0x7000000000000000
"""Nonce, and the hashes of both host keys."""


def request(*, key: bytes = KEY, flags: int = FLAGS, nonce: bytes = NONCE, slots: int = 1, algorithm: int = 1) -> bytes:
    """An attestation request control block."""
    sealed = MEASUREMENT_KEY + nonce
    size = 48 + 16 + 160 + 80 * slots + len(sealed) + 16
    head = bytes(8) + (0x100).to_bytes(4, "big") + size.to_bytes(4, "big") + b"\x55" * 12 + bytes(11)
    head += bytes([slots]) + bytes(4) + len(sealed).to_bytes(4, "big")
    head += flags.to_bytes(8, "big") + algorithm.to_bytes(4, "big") + bytes(4) + b"\xc7" * 160 + b"\x51" * 80 * slots
    return head + AESGCM(key).encrypt(b"\x55" * 12, sealed, head)


def header(*, fill: int = 1, size: int = 0x280) -> bytes:
    """The header of an encrypted image."""
    head = b"IBMSecEx" + (0x100).to_bytes(4, "big") + size.to_bytes(4, "big")
    head = head.ljust(0xE0, b"\x11") + bytes([fill]) * 64 + bytes([fill + 1]) * 64 + bytes([fill + 2]) * 64
    return head.ljust(size - 16, b"\x33") + bytes([fill + 3]) * 16


def measured(image: bytes, user: bytes, additional: bytes, nonce: bytes = NONCE) -> bytes:
    """What the firmware writes, after its documentation."""
    text = image + UID + len(user).to_bytes(2, "big") + b"\0\0" + len(additional).to_bytes(4, "big")
    return hmac.new(MEASUREMENT_KEY, text + user + nonce + additional, hashlib.sha512).digest()


def exchange(*parts: bytes) -> bytes:
    """The format in which it travels; an empty part is not there."""
    entries, body, offset = b"", b"", 0x40
    for part in parts:
        entries += len(part).to_bytes(4, "big") + (offset if part else 0).to_bytes(4, "big")
        body += part
        offset += len(part)
    return b"pvattest" + (0x100).to_bytes(4, "big") + offset.to_bytes(4, "big") + bytes(8) + entries + body
