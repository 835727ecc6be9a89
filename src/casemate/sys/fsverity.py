"""fs-verity: a file that the kernel checks against its Merkle tree on every read (linux/fsverity.h, fsverity.rst)."""

from __future__ import annotations

import errno
import fcntl
import struct
from typing import Final

FS_IOC_ENABLE_VERITY: Final = 0x40806685
FS_IOC_MEASURE_VERITY: Final = 0xC0046686
HASH_SHA256: Final = 1
BLOCK_BYTES: Final = 4096
_ENABLE = struct.Struct("=IIIIQIIQ88x")  # struct fsverity_enable_arg
_HEAD = struct.Struct("=HH")  # struct fsverity_digest, before the digest
_ABSENT: Final = frozenset({errno.ENODATA, errno.ENOTTY, errno.EOPNOTSUPP})


def fs_ioc_enable_verity(descriptor: int) -> bool:
    """Seal a file that is open read-only and for writing nowhere; its content can never change again.

    Returns:
        False where the file system has no fs-verity; True also when it is sealed already.

    Raises:
        OSError: everything else, ETXTBSY while somebody has it open for writing.
    """
    argument = _ENABLE.pack(1, HASH_SHA256, BLOCK_BYTES, 0, 0, 0, 0, 0)
    try:
        fcntl.ioctl(descriptor, FS_IOC_ENABLE_VERITY, argument)
    except OSError as fault:
        if fault.errno in {errno.ENOTTY, errno.EOPNOTSUPP}:
            return False
        if fault.errno != errno.EEXIST:
            raise
    return True


def fs_ioc_measure_verity(descriptor: int) -> str:
    """``sha256:HEX`` of a sealed file; empty when it is not sealed or the file system has no fs-verity.

    Raises:
        OSError: everything else. ValueError: another kind of digest than SHA-256.
    """
    buffer = bytearray(_HEAD.pack(0, 64) + bytes(64))
    try:
        fcntl.ioctl(descriptor, FS_IOC_MEASURE_VERITY, buffer, True)
    except OSError as fault:
        if fault.errno in _ABSENT:
            return ""
        raise
    kind, size = _HEAD.unpack_from(buffer)
    if kind != HASH_SHA256 or size != 32:
        raise ValueError(f"an fs-verity digest of the kind {kind} with {size} bytes")
    return f"sha256:{bytes(buffer[_HEAD.size : _HEAD.size + size]).hex()}"
