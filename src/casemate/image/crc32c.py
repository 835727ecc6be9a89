"""CRC-32C (Castagnoli), as VHDX uses it: quick for structures that are zero from some point on, as those are.

A run of zeros is skipped by multiplying the state with x^(8n) modulo the polynomial: some hundred steps in place of one
for each byte. zlib has only the other CRC-32.
"""

from __future__ import annotations

from functools import cache

_POLYNOMIAL = 0x82F6_3B78  # reflected
_ONES = 0xFFFF_FFFF


@cache
def _table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)  # noqa: PLW2901
        table.append(byte)
    return tuple(table)


def crc32c(data: bytes) -> int:
    """The checksum of ``data``."""
    return _finish(_update(_ONES, data))


def crc32c_matches(data: bytes, at: int) -> bool:
    """True if the little-endian checksum at ``at`` is that of ``data`` with those four bytes zero."""
    claimed = int.from_bytes(data[at : at + 4], "little")
    return crc32c(data[:at] + bytes(4) + data[at + 4 :]) == claimed


def _finish(state: int) -> int:
    return state ^ _ONES


def _update(state: int, data: bytes) -> int:
    significant = data.rstrip(b"\0")
    table = _table()
    for byte in significant:
        state = table[(state ^ byte) & 0xFF] ^ state >> 8
    return _shift(state, 8 * (len(data) - len(significant)))


def _shift(state: int, bits: int) -> int:
    """``state`` times x^bits; bit 31 is the coefficient of x^0."""
    factor, power = 1 << 31, 1 << 30
    while bits:
        if bits & 1:
            factor = _multiply(factor, power)
        power, bits = _multiply(power, power), bits >> 1
    return _multiply(state, factor)


def _multiply(one: int, other: int) -> int:
    product = 0
    while one:
        if one & 1 << 31:
            product ^= other
        one = one << 1 & _ONES
        other = other >> 1 ^ (_POLYNOMIAL if other & 1 else 0)
    return product
