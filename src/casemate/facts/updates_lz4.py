"""Frames of LZ4 (apt keeps its lists so on Debian), unpacked within bounds; the standard library has none.

Format: github.com/lz4/lz4, doc/lz4_Frame_format.md and lz4_Block_format.md. Checksums are not verified: apt did that.
"""

from __future__ import annotations

from typing import Final

MAGIC: Final = b"\x04\x22\x4d\x18"
_MIN_MATCH: Final = 4


def unpack_lz4(data: bytes, limit_bytes: int) -> bytes:
    """The content of one frame.

    Raises:
        ValueError: damaged, cut off, or larger than ``limit_bytes``.
    """
    try:
        return _frame(data, limit_bytes)
    except IndexError:
        raise ValueError("LZ4 data ends too early") from None


def _frame(data: bytes, limit_bytes: int) -> bytes:
    if data[:4] != MAGIC:
        raise ValueError("not an LZ4 frame")
    flags = data[4]
    if flags >> 6 != 1 or flags & 1:
        raise ValueError("an LZ4 frame of another version, or with a dictionary")
    has_block_checksum, has_size = flags & 0x10, flags & 0x08
    position = 7 + (8 if has_size else 0)
    out = bytearray()
    while True:
        head = data[position : position + 4]
        if len(head) < 4:
            raise ValueError("LZ4 data ends too early")
        size = int.from_bytes(head, "little")
        position += 4
        if size == 0:
            return bytes(out)
        length = size & 0x7FFF_FFFF
        block = data[position : position + length]
        if len(block) < length:
            raise ValueError("LZ4 data ends too early")
        if size >> 31:
            out += block
        else:
            _block(block, out, limit_bytes)
        if len(out) > limit_bytes:
            raise ValueError(f"larger than {limit_bytes} bytes when unpacked")
        position += length + (4 if has_block_checksum else 0)


def _block(block: bytes, out: bytearray, limit_bytes: int) -> None:
    """Literals and copies of what came before, in turn; the last sequence has literals only."""
    position, end = 0, len(block)
    while position < end:
        token = block[position]
        position += 1
        count = token >> 4
        if count == 15:
            while True:
                more = block[position]
                position += 1
                count += more
                if more != 255:
                    break
        if position + count > end:
            raise ValueError("LZ4 literals run past their block")
        out += block[position : position + count]
        position += count
        if position >= end:
            return
        offset = block[position] | block[position + 1] << 8
        position += 2
        count = (token & 15) + _MIN_MATCH
        if count == 15 + _MIN_MATCH:
            while True:
                more = block[position]
                position += 1
                count += more
                if more != 255:
                    break
        start = len(out) - offset
        if offset == 0 or start < 0 or len(out) + count > limit_bytes:
            raise ValueError("an LZ4 copy from before the start, or beyond the limit")
        if offset >= count:
            out += out[start : start + count]
        else:
            piece = bytes(out[start:])
            out += (piece * (count // offset + 1))[:count]
