"""Unpacking of gzip, xz, bzip2 and zstd with every bound that the libraries offer, and ours on top.

A packed file of a few KiB can stand for terabytes: what comes out is written in pieces of one MiB, zeros become holes,
and the first byte beyond the bound ends it. Bounds on memory: 256 MiB for xz, a window of 128 MiB for zstd. Behind the
packed data there may be another part of the same kind (as ``cat a.gz b.gz`` makes), or zeros for padding, nothing else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from casemate.errors import ImageError
from casemate.units import format_bytes

PIECE_BYTES: Final = 1 << 20
XZ_MEMORY_BYTES: Final = 256 << 20
ZSTD_WINDOW_BYTES: Final = 128 << 20
FEED_BYTES: Final = 1024
BASE_S: Final = 120.0
SLOWEST_BYTES_S: Final = 1 << 20
_ZEROS: Final = bytes(PIECE_BYTES)

Progress = Callable[[int, int], None]


def unpack(
    source: int,
    kind: str,
    target: int,
    *,
    name: str,
    max_output_bytes: int,
    max_data_bytes: int | None = None,
    progress: Progress = lambda done, of: None,
) -> int:
    """Unpack a regular file into an empty one; the number of bytes that came out.

    Args:
        kind: the name of its signature: ``gzip``, ``xz``, ``bzip2`` or ``zstd``.
        max_output_bytes: how long the file may become.
        max_data_bytes: how much of it may be other than zeros; None: all.
        progress: told (packed bytes read, packed bytes in all).

    Raises:
        ImageError: damaged, cut short, something behind it, or more than ``max_output_bytes``, memory or time. OSError.
    """
    size_bytes = os.fstat(source).st_size
    end = time.monotonic() + BASE_S + size_bytes / SLOWEST_BYTES_S
    read = _Reader(source, size_bytes, progress)
    at = data_bytes = 0
    try:
        for piece in _streams(read, _decompressor(kind)):
            at += len(piece)
            if at > max_output_bytes:
                raise _refused(name, f"more than {format_bytes(max_output_bytes)} come out of it")
            if max_data_bytes is not None and data_bytes > max_data_bytes:
                raise ImageError(
                    f"{name} unpacks to more than there is room for",
                    got=f"more than {format_bytes(max_data_bytes)} of data",
                    expected="what the quota and the file system leave",
                    next_step="casemate image prune, or raise the quota; but a small file that stands for very much "
                    "may have been made to fill disks",
                )
            if time.monotonic() > end:
                raise _refused(name, "unpacking takes longer than any file of this size should")
            data_bytes += _write(target, piece, at - len(piece))
    except ImageError:
        raise
    except Exception as fault:
        if isinstance(fault, OSError) and fault.errno is not None:
            raise  # a full disk; bz2 raises OSError without a number for damaged data
        raise _refused(name, f"{type(fault).__name__}: {fault}"[:200]) from None
    os.ftruncate(target, at)
    return at


def _refused(name: str, why: str) -> ImageError:
    return ImageError(
        f"{name} cannot be unpacked",
        got=why,
        next_step="get it again and compare its checksum; if that fits, do not trust who made it",
    )


class _Reader:
    """The packed file, piece by piece, from its begin."""

    def __init__(self, source: int, size_bytes: int, progress: Progress) -> None:
        self._source, self._size, self._progress = source, size_bytes, progress
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes; empty at the end."""
        data = os.pread(self._source, min(size, PIECE_BYTES) if size >= 0 else PIECE_BYTES, self._at)
        self._at += len(data)
        self._progress(self._at, self._size)
        return data


def _decompressor(kind: str) -> Callable[[], Any]:
    if kind == "gzip":
        return _Gzip
    if kind == "xz":
        import lzma

        return lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES)
    if kind == "bzip2":
        import bz2

        return bz2.BZ2Decompressor
    if kind == "zstd":
        return _Zstd
    raise RuntimeError(f"nothing unpacks {kind}")


class _Gzip:
    """zlib's decompressor with the interface that the others have."""

    def __init__(self) -> None:
        import zlib

        self._inflate = zlib.decompressobj(wbits=31)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """At most ``max_length`` bytes."""
        return self._inflate.decompress(self._inflate.unconsumed_tail + data, max_length)

    @property
    def eof(self) -> bool:
        """The end of one part."""
        return self._inflate.eof

    @property
    def needs_input(self) -> bool:
        """Nothing more comes out without another piece."""
        return not self._inflate.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        """What follows the part."""
        return self._inflate.unused_data


class _Zstd:
    """zstandard's decompressor with the interface that the others have.

    Its stream reader takes a file that is cut short for one that ends, and its decompressor has no bound on what comes
    out at once. Fed with `FEED_BYTES` at a time it cannot give more than 32 MiB: a block of 128 KiB needs four bytes.
    """

    def __init__(self) -> None:
        import zstandard

        self._frame = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES).decompressobj()
        self._waiting = memoryview(b"")

    def decompress(self, data: bytes, _max_length: int) -> bytes:
        """What a little of the input stands for."""
        if data:
            self._waiting = memoryview(bytes(self._waiting) + data)
        part, self._waiting = self._waiting[:FEED_BYTES], self._waiting[FEED_BYTES:]
        return self._frame.decompress(bytes(part)) if part else b""

    @property
    def eof(self) -> bool:
        """The end of one frame."""
        return self._frame.eof

    @property
    def needs_input(self) -> bool:
        """Nothing more comes out without another piece."""
        return not self._waiting

    @property
    def unused_data(self) -> bytes:
        """What follows the frame."""
        return self._frame.unused_data + bytes(self._waiting)


def _streams(reader: _Reader, make: Callable[[], Any]) -> Iterator[bytes]:
    """What comes out of one part after the other."""
    data = reader.read()
    while True:
        one = make()
        while not one.eof:
            if one.needs_input and not data:
                data = reader.read()
                if not data:
                    raise EOFError("it is cut short")
            piece = one.decompress(data, PIECE_BYTES)
            data = b""
            for start in range(0, len(piece), PIECE_BYTES):
                yield piece[start : start + PIECE_BYTES]
        data = one.unused_data
        while not data.strip(b"\0"):  # xz allows zeros between and behind its streams
            data = reader.read()
            if not data:
                return


def _write(target: int, piece: bytes, at: int) -> int:
    """Write a piece unless it is zeros; how much was written."""
    if piece == _ZEROS[: len(piece)]:
        return 0
    view = memoryview(piece)
    while view:
        written = os.pwrite(target, view, at)
        view, at = view[written:], at + written
    return len(piece)
