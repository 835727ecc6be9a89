"""Landlock: a process gives up access to files, TCP ports, abstract sockets and signals. See landlock(7).

ABI: 1 files · 2 refer · 3 truncate · 4 TCP bind and connect · 5 ioctl on devices · 6 scopes (abstract Unix sockets,
signals) · 7 audit.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from casemate.sys.libc import syscall

# Not imported at run time: the supervisor of every VM loads this module, and typing would cost each 0.8 MB.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_NR_CREATE_RULESET: Final = 444
_NR_ADD_RULE: Final = 445
_NR_RESTRICT_SELF: Final = 446
_CREATE_RULESET_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1

EXECUTE: Final = 1 << 0
WRITE_FILE: Final = 1 << 1
READ_FILE: Final = 1 << 2
READ_DIR: Final = 1 << 3
REMOVE_DIR: Final = 1 << 4
REMOVE_FILE: Final = 1 << 5
MAKE_REG: Final = 1 << 8
TRUNCATE: Final = 1 << 14
IOCTL_DEV: Final = 1 << 15

# Access rights that apply to files; the others need a directory.
FILE_RIGHTS: Final = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV


def landlock_abi() -> int:
    """The ABI version that the kernel offers, 0 for none."""
    try:
        return syscall(_NR_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    except OSError as fault:
        if fault.errno in {errno.ENOSYS, errno.EOPNOTSUPP}:
            return 0
        raise


def handled_fs(abi: int) -> int:
    """All file access rights of an ABI, as a mask."""
    bits = 13 + (abi >= 2) + (abi >= 3)
    return (1 << bits) - 1 | (IOCTL_DEV if abi >= 5 else 0)


def landlock_restrict_self(
    abi: int, paths: tuple[tuple[str, int], ...], *, may_signal_outside: bool = False, files: bool = True
) -> None:
    """Deny everything that ABI ``abi`` can deny, except the rights given for ``paths``; cannot be undone.

    Args:
        abi: at most what `landlock_abi` returned, at least 1.
        paths: (existing path, mask of rights); masks are cut to what the ABI knows.
        may_signal_outside: leave signals to processes outside of this domain allowed (a supervisor needs it).
        files: False leaves the file system alone: a process that Landlock keeps from files cannot mount either.

    Raises:
        OSError: naming the path or the call.
    """
    if abi < 1:
        raise RuntimeError("landlock_restrict_self needs a kernel with Landlock")
    network = 0b11 if abi >= 4 else 0
    scoped = (0b01 if may_signal_outside else 0b11) if abi >= 6 else 0
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    attribute = ctypes.create_string_buffer(struct.pack("=3Q", handled_fs(abi) if files else 0, network, scoped))
    # SAFETY: struct landlock_ruleset_attr, with the size that this ABI knows.
    ruleset = syscall(_NR_CREATE_RULESET, attribute, size, 0)
    try:
        for path, rights in paths:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                rule = ctypes.create_string_buffer(struct.pack("=Qi", rights & handled_fs(abi), descriptor))
                # SAFETY: struct landlock_path_beneath_attr is packed: 12 bytes.
                syscall(_NR_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
            except OSError as fault:
                raise OSError(fault.errno, fault.strerror, f"landlock rule for {path}") from None
            finally:
                os.close(descriptor)
        syscall(_NR_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
