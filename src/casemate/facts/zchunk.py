"""zchunk, in which dnf of Fedora keeps its metadata: a text in chunks that are packed each by itself.

Layout (zchunk_format.txt; *ci*: seven bits a byte, the lowest first, the last byte has its top bit set)::

    "\\0ZCK1"  checksum type (ci)  bytes of the header behind its own checksum (ci)  checksum of the header
    checksum of the data  flags (ci)  packed how (ci)
    bytes of the index (ci)  checksum type of chunks (ci)  number of chunks, the dictionary's included (ci)
    of the dictionary, then of each chunk:  checksum [of the unpacked too]  bytes (ci)  bytes unpacked (ci)
    signatures, then the dictionary and the chunks themselves

Every chunk is held against its checksum: not because that proves where it is from, but because a cache may be damaged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Final

MAGIC: Final = b"\0ZCK1"
_CHUNK_BYTES: Final = 64 << 20
_CHUNKS_MAX: Final = 100_000
_CI_BYTES: Final = 5
_UNCOMPRESSED_SUMS: Final = 4
_PLAIN, _ZSTD = 0, 2
_SUMS: Final[dict[int, tuple[Callable[[bytes], bytes], int]]] = {
    0: (lambda data: hashlib.sha1(data, usedforsecurity=False).digest(), 20),
    1: (lambda data: hashlib.sha256(data).digest(), 32),
    2: (lambda data: hashlib.sha512(data).digest(), 64),
    3: (lambda data: hashlib.sha512(data).digest()[:16], 16),
}


def unpack_zchunk(data: bytes) -> Iterator[bytes]:
    """The text, chunk by chunk.

    Raises:
        ValueError: damaged, or of a kind that nobody here understands.
    """
    header = _Reader(data)
    if header.take(len(MAGIC)) != MAGIC:
        raise ValueError("no zchunk file")
    digest, width = _sum(header.number())
    size = header.number()
    stated = header.take(width)
    # The sum is over all of the header but itself.
    if digest(data[: header.at - width] + data[header.at : header.at + size]) != stated:
        raise ValueError("its header is damaged")
    body = header.at + size
    header.end = body
    header.take(width)
    flags, packed = header.number(), header.number()
    if flags & ~_UNCOMPRESSED_SUMS or packed not in (_PLAIN, _ZSTD):
        raise ValueError(f"flags {flags}, packed as {packed}, which is not understood")
    header.number()
    digest, width = _sum(header.number())
    count = header.number()
    if not 0 < count <= _CHUNKS_MAX:
        raise ValueError(f"{count} chunks")
    dictionary = b""
    for index in range(count):
        stated = header.take(width)
        if flags & _UNCOMPRESSED_SUMS:
            header.take(width)
        length, unpacked = header.number(), header.number()
        chunk, body = data[body : body + length], body + length
        if max(length, unpacked) > _CHUNK_BYTES or len(chunk) < length:
            raise ValueError(f"chunk {index} of {length} bytes, {unpacked} unpacked")
        if length and digest(chunk) != stated:
            raise ValueError(f"chunk {index} is damaged")
        text = chunk if packed == _PLAIN or not length else _unzstd(chunk, unpacked, dictionary)
        if len(text) != unpacked:
            raise ValueError(f"chunk {index} has {len(text)} bytes, not {unpacked}")
        if index:
            yield text
        else:
            dictionary = text


def _sum(kind: int) -> tuple[Callable[[bytes], bytes], int]:
    if kind not in _SUMS:
        raise ValueError(f"checksums of type {kind}, which is not understood")
    return _SUMS[kind]


def _unzstd(chunk: bytes, size: int, dictionary: bytes) -> bytes:
    import zstandard

    words = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
    unpacker = zstandard.ZstdDecompressor(dict_data=words, max_window_size=128 << 20)
    try:
        with unpacker.stream_reader(chunk) as stream:
            return bytes(stream.read(size + 1))
    except zstandard.ZstdError as error:
        raise ValueError(f"damaged ({error})") from None


class _Reader:
    """The header, from its start to its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0
        self.end = len(data)

    def take(self, size: int) -> bytes:
        """So many bytes."""
        if self.at + size > self.end:
            raise ValueError("its header ends too early")
        self.at += size
        return self._data[self.at - size : self.at]

    def number(self) -> int:
        """A compressed integer."""
        value = 0
        for index in range(_CI_BYTES):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << 7 * index
            if byte & 0x80:
                return value
        raise ValueError("a number of its header does not end")
