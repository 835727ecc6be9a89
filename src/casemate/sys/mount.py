"""Mounts: mount(2), mount_setattr(2), pivot_root(2), umount2(2)."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

from casemate.sys.libc import check, libc, syscall

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2

MOUNT_ATTR_RDONLY: Final = 1
MOUNT_ATTR_NOSUID: Final = 2
MOUNT_ATTR_NODEV: Final = 4
MOUNT_ATTR_NOEXEC: Final = 8

_AT_RECURSIVE: Final = 0x8000
_AT_FDCWD: Final = -100
_NR_MOUNT_SETATTR: Final = 442
_NR_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41}


def mount(source: str | None, target: str, fstype: str | None, flags: int, data: str | None = None) -> None:
    """mount(2); the error names the target."""

    def encoded(text: str | None) -> bytes | None:
        return None if text is None else os.fsencode(text)

    # SAFETY: all pointers are NUL-terminated byte strings that live through the call.
    result = libc.mount(encoded(source), encoded(target), encoded(fstype), ctypes.c_ulong(flags), encoded(data))
    check(result, target)


def mount_setattr(target: str, attr_set: int, *, recursive: bool = False) -> None:
    """Add mount attributes to ``target``, with ``recursive`` to every mount below it in one call."""
    attributes = ctypes.create_string_buffer(struct.pack("=4Q", attr_set, 0, 0, 0))
    flags = _AT_RECURSIVE if recursive else 0
    # SAFETY: struct mount_attr of 32 bytes, size passed.
    syscall(_NR_MOUNT_SETATTR, _AT_FDCWD, ctypes.c_char_p(os.fsencode(target)), flags, attributes, 32)


def pivot_root(new_root: str, put_old: str) -> None:
    """Make ``new_root`` the root of this mount namespace."""
    # SAFETY: two NUL-terminated strings.
    syscall(
        _NR_PIVOT_ROOT[os.uname().machine],
        ctypes.c_char_p(os.fsencode(new_root)),
        ctypes.c_char_p(os.fsencode(put_old)),
    )


def umount2(target: str, flags: int) -> None:
    """umount2(2)."""
    # SAFETY: one NUL-terminated string.
    check(libc.umount2(os.fsencode(target), ctypes.c_int(flags)), target)
