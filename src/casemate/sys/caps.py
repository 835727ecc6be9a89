"""Capabilities: empty every set, drop the bounding set, lock the secure bits. See capabilities(7)."""

from __future__ import annotations

import ctypes
import errno
import struct

from casemate.sys.libc import check, libc
from casemate.sys.process import PR_SET_SECUREBITS, prctl

# Not imported at run time: the supervisor of every VM loads this module, and typing would cost each 0.8 MB.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_VERSION_3: Final = 0x2008_0522
_PR_CAPBSET_DROP: Final = 24
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

# NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE, each with its lock; KEEP_CAPS stays clear and locked.
SECUREBITS_LOCKED: Final = 0b1110_1111


def drop_bounding_set(keep: frozenset[int] = frozenset()) -> None:
    """Drop every capability of the running kernel from the bounding set, except ``keep``."""
    for capability in range(64):
        if capability in keep:
            continue
        try:
            prctl(_PR_CAPBSET_DROP, capability)
        except OSError as fault:
            if fault.errno == errno.EINVAL:  # past cap_last_cap
                return
            raise


def clear_ambient_set() -> None:
    """Empty the ambient set."""
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)


def lock_securebits() -> None:
    """Take away root's special treatment for good (needs CAP_SETPCAP)."""
    prctl(PR_SET_SECUREBITS, SECUREBITS_LOCKED)


def capset(effective: int = 0, permitted: int = 0, inheritable: int = 0) -> None:
    """Set the three sets of the calling thread, as bit masks."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _VERSION_3, 0))
    low = 0xFFFF_FFFF
    data = ctypes.create_string_buffer(
        struct.pack(
            "=6I",
            effective & low,
            permitted & low,
            inheritable & low,
            effective >> 32,
            permitted >> 32,
            inheritable >> 32,
        )
    )
    # SAFETY: header and data have the layout of _LINUX_CAPABILITY_VERSION_3.
    check(libc.capset(header, data), "capset")
