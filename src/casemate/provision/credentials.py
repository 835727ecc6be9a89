"""systemd credentials in the form that each channel carries (systemd.system-credentials(7), SMBIOS type 11)."""

from __future__ import annotations

import binascii

_PIECE_BYTES = 48
"""A multiple of three: each piece is encoded by itself, so no second copy of the whole secret is made."""


def smbios_string(name: str, secret: bytearray) -> bytearray:
    """``io.systemd.credential.binary:NAME=BASE64``: an SMBIOS string holds neither NUL nor arbitrary bytes."""
    found = bytearray(f"io.systemd.credential.binary:{name}=".encode("ascii"))
    view = memoryview(secret)
    for start in range(0, len(secret), _PIECE_BYTES):
        found += binascii.b2a_base64(view[start : start + _PIECE_BYTES], newline=False)
    view.release()
    return found


def wipe(data: bytearray) -> None:
    """Overwrite it with zeros, in place."""
    data[:] = bytes(len(data))
