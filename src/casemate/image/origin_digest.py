"""Digests of an open file: several kinds in one pass, or one file on every core.

One pass: what is verified and what is kept must be the same bytes, so a file is read once and every digest is fed from
that reading. One digest alone is computed by the thread that reads, out of its core's cache; of several, each has a
thread, and the next piece is read meanwhile (hashlib and pread let other threads run). No mmap: a file that somebody
cuts would end us by SIGBUS.

SHA-256 of one file is serial. The store therefore also notes a tree digest when it takes an image in, which a launch
computes on every core::

    root = SHA-256( "casemate tree v1\\n" | size, 8 bytes big-endian | piece size, 8 bytes | leaf 0 | leaf 1 | … )
    leaf = SHA-256( 0x00 | piece of 1 MiB, the last one shorter )

Size and piece size stand in the root, so that no other cut of the same bytes has it; an empty file has no leaves.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Collection
from typing import Final

from casemate.errors import ImageError

PIECE_BYTES: Final = 1 << 20
CHUNK_BYTES: Final = 1 << 20
BUFFER_BYTES: Final = 256 << 10
"""Of one thread: small enough to stay in its core's cache between read and hash."""
MAX_THREADS: Final = 8
TREE_MAGIC: Final = b"casemate tree v1\n"

Progress = Callable[[int, int], None]
"""Told (bytes done, bytes in all)."""


def nothing(_done: int, _of: int) -> None:
    """No progress bar."""


def digests_of(descriptor: int, algorithms: Collection[str], progress: Progress = nothing) -> dict[str, bytes]:
    """Digests of a regular file by name of hashlib's, from one reading; the position does not move.

    Raises:
        ImageError: the file became shorter or longer meanwhile.
        OSError: as read says.
    """
    hashes = {name: hashlib.new(name) for name in algorithms}
    size = os.fstat(descriptor).st_size
    done = (_feed_one if len(hashes) == 1 else _feed_all)(descriptor, [*hashes.values()], size, progress)
    _check_length(done, size, descriptor)
    return {name: digest.digest() for name, digest in hashes.items()}


def _feed_one(descriptor: int, hashes: list[hashlib._Hash], size: int, progress: Progress) -> int:
    """Read to the end; how many bytes that were."""
    buffer, done = memoryview(bytearray(BUFFER_BYTES)), 0
    while count := os.preadv(descriptor, [buffer], done):
        hashes[0].update(buffer[:count])
        done += count
        if done % CHUNK_BYTES == 0:
            progress(done, size)
    progress(done, size)
    return done


def _feed_all(descriptor: int, hashes: list[hashlib._Hash], size: int, progress: Progress) -> int:
    """As `_feed_one`, every digest in a thread of its own."""
    from concurrent.futures import ThreadPoolExecutor

    done = 0
    # Two buffers that are used again and again: fresh ones of this size would cost page faults.
    buffers = [memoryview(bytearray(CHUNK_BYTES)), memoryview(bytearray(CHUNK_BYTES))]
    with ThreadPoolExecutor(max_workers=max(1, len(hashes))) as pool:
        count, turn = os.preadv(descriptor, [buffers[0]], 0), 0
        while count:
            chunk = buffers[turn][:count]
            pending = [pool.submit(digest.update, chunk) for digest in hashes]
            done, turn = done + count, 1 - turn
            count = os.preadv(descriptor, [buffers[turn]], done)
            for update in pending:
                update.result()
            progress(done, size)
    return done


def tree_digest(descriptor: int, *, threads: int | None = None) -> str:
    """The tree digest of a regular file, 64 hexadecimal digits.

    Args:
        threads: how many; None for one per core that we may use.

    Raises:
        ImageError: the file became shorter or longer meanwhile.
        OSError: as read says.
    """
    size = os.fstat(descriptor).st_size
    count = -(-size // PIECE_BYTES)
    leaves: list[bytes] = [b""] * count
    workers = max(1, min(threads or len(os.sched_getaffinity(0)), MAX_THREADS, count))
    faults: list[BaseException] = []

    def work(first: int) -> None:
        try:
            buffer = memoryview(bytearray(BUFFER_BYTES))
            for index in range(first, count, workers):
                if faults:
                    return
                leaves[index] = _leaf(descriptor, index, size, buffer)
        except BaseException as fault:
            faults.append(fault)

    others = [threading.Thread(target=work, args=(first,), daemon=True) for first in range(1, workers)]
    for other in others:
        other.start()
    work(0)
    for other in others:
        other.join()
    if faults:
        raise faults[0]
    _check_length(size, os.fstat(descriptor).st_size, descriptor)
    return tree_root(size, leaves)


def tree_root(size_bytes: int, leaves: list[bytes]) -> str:
    """The root over the leaves of a file of this size."""
    header = TREE_MAGIC + size_bytes.to_bytes(8, "big") + PIECE_BYTES.to_bytes(8, "big")
    return hashlib.sha256(header + b"".join(leaves)).hexdigest()


def _leaf(descriptor: int, index: int, size: int, buffer: memoryview) -> bytes:
    offset = index * PIECE_BYTES
    wanted = min(PIECE_BYTES, size - offset)
    digest = hashlib.sha256(b"\0")
    while wanted:
        count = os.preadv(descriptor, [buffer[: min(wanted, BUFFER_BYTES)]], offset)
        if not count:
            raise ImageError("a file changed while it was read", got="fewer bytes", next_step="find out who writes")
        digest.update(buffer[:count])
        wanted -= count
        offset += count
    return digest.digest()


def _check_length(read: int, size: int, descriptor: int) -> None:
    now = os.fstat(descriptor).st_size
    if not read == size == now:
        raise ImageError(
            "a file changed while it was read",
            got=f"{read} bytes read, {now} bytes now",
            expected=f"{size} bytes",
            next_step="find out who writes to it, then try again",
        )
