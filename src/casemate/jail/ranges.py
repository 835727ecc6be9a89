"""Ranges of passt's descriptor numbers: what `jail/egress.py` compares and the broker hands out. No imports: both sides
of the wall use it."""

from __future__ import annotations

from typing import Final

OWN: Final = (0x0000, 0x0100)
PUBLISHED: Final = (0x0100, 0x0100)
DATAGRAM: Final = (0x0800, 0x0800)
STREAM: Final = (0x1000, 0x1000)
NOFILE: Final = 0x2000
TAP_FD: Final = 3
"""First number and size of each range; RLIMIT_NOFILE of passt; its end of the link to QEMU."""
