"""Merkle trees over blocks of 4096 bytes with SHA-256, as fs-verity and dm-verity read them. No ioctl here.

    level 0   one digest for each data block: SHA-256( salt | block ), the last block filled up with zeros
    level n   one digest for each block full of digests of level n - 1
    root      the digest of the single block of the last level (fs-verity: of the data block itself, if there is one)

fs-verity (Documentation/filesystems/fsverity.rst): no salt; the file's digest is the SHA-256 of a descriptor that holds
size and root. dm-verity (cryptsetup's wiki, DMVerity): a superblock of 512 bytes in the first block of the hash area,
then the levels, the last one first. Checked against ``fsverity digest`` and ``veritysetup format`` and ``verify``.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from casemate.errors import ImageError

BLOCK: Final = 4096
DIGEST: Final = 32
_PER_BLOCK: Final = BLOCK // DIGEST
_CHUNK: Final = 256 * BLOCK
_SUPERBLOCK = struct.Struct("<8sII16s32sIIQH6x256s168x")
_DESCRIPTOR = struct.Struct("<BBBBIQ64s32s144x")


class DmVerity(NamedTuple):
    """A dm-verity hash area. ``area``: superblock and levels, for behind the data or a file of its own."""

    root_hash: str
    salt: bytes
    data_blocks: int
    area: bytes

    @property
    def area_blocks(self) -> int:
        """Its length in blocks."""
        return len(self.area) // BLOCK


def fsverity_digest(descriptor: int, progress: Callable[[int, int], None] = lambda done, of: None) -> str:
    """What FS_IOC_MEASURE_VERITY must say of a file with this content: ``sha256:HEX``.

    Raises:
        ImageError: its length changed meanwhile. OSError: as read says.
    """
    size = os.fstat(descriptor).st_size
    return fsverity_digest_of(size, _blocks(descriptor, size, progress))


def fsverity_digest_of(size_bytes: int, chunks: Iterator[bytes]) -> str:
    """As `fsverity_digest`, over content that comes in pieces of whole blocks (the last may be shorter)."""
    if size_bytes == 0:
        root = bytes(DIGEST)
    else:
        leaves = b"".join(_hash_blocks(chunk, b"") for chunk in chunks)
        root = leaves if len(leaves) == DIGEST else _levels(leaves, b"")[1]
    descriptor = _DESCRIPTOR.pack(1, 1, 12, 0, 0, size_bytes, root, b"")
    return f"sha256:{hashlib.sha256(descriptor).hexdigest()}"


def dm_verity(
    descriptor: int,
    size_bytes: int,
    salt: bytes,
    uuid: bytes,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> DmVerity:
    """The hash area for the first ``size_bytes`` of a file.

    Args:
        size_bytes: whole blocks, one at least.
        salt: up to 256 bytes. uuid: 16 bytes.

    Raises:
        ImageError: a size that is no number of blocks, or the file is shorter. OSError: as read says.
    """
    if size_bytes <= 0 or size_bytes % BLOCK:
        raise ImageError(
            "a dm-verity root needs whole blocks", got=f"{size_bytes} bytes", expected=f"a multiple of {BLOCK}"
        )
    leaves = b"".join(_hash_blocks(chunk, salt) for chunk in _blocks(descriptor, size_bytes, progress))
    # veritysetup: with a single data block the root is that block's digest, and the hash area holds no level
    levels, root = ([], leaves) if len(leaves) == DIGEST else _levels(leaves, salt)
    superblock = _SUPERBLOCK.pack(
        b"verity\0\0", 1, 1, uuid, b"sha256", BLOCK, BLOCK, size_bytes // BLOCK, len(salt), salt.ljust(256, b"\0")
    )
    area = superblock.ljust(BLOCK, b"\0") + b"".join(reversed(levels))
    return DmVerity(root.hex(), salt, size_bytes // BLOCK, area)


def dm_table(verity: DmVerity, data: str, hashes: str, hash_start_block: int = 0) -> str:
    """The line of a dm-verity table (dm-verity.rst); ``hash_start_block``: where its superblock stands."""
    sectors = verity.data_blocks * (BLOCK // 512)
    start = hash_start_block + 1
    return (
        f"0 {sectors} verity 1 {data} {hashes} {BLOCK} {BLOCK} {verity.data_blocks} {start} sha256 "
        f"{verity.root_hash} {verity.salt.hex() or '-'}"
    )


def _levels(leaves: bytes, salt: bytes) -> tuple[list[bytes], bytes]:
    """The levels, lowest first, each filled up to whole blocks; and the root."""
    levels, digests = [], leaves
    while True:
        padded = digests + bytes(-len(digests) % BLOCK)
        levels.append(padded)
        digests = _hash_blocks(padded, salt)
        if len(digests) == DIGEST:
            return levels, digests


def _hash_blocks(data: bytes, salt: bytes) -> bytes:
    """The digests of the blocks of ``data``, one after the other."""
    if len(data) % BLOCK:
        data += bytes(-len(data) % BLOCK)
    start = hashlib.sha256(salt)
    view, found = memoryview(data), []
    for offset in range(0, len(data), BLOCK):
        digest = start.copy()
        digest.update(view[offset : offset + BLOCK])
        found.append(digest.digest())
    return b"".join(found)


def _blocks(descriptor: int, size: int, progress: Callable[[int, int], None]) -> Iterator[bytes]:
    done = 0
    while done < size:
        wanted = min(_CHUNK, size - done)
        parts = []
        while wanted:
            part = os.pread(descriptor, wanted, done)
            if not part:
                raise ImageError("a file became shorter while it was read", next_step="find out who writes to it")
            parts.append(part)
            done += len(part)
            wanted -= len(part)
        yield b"".join(parts)
        progress(done, size)
