"""A cursor over hostile bytes: every read is checked against what is there, and says what was being read."""

from __future__ import annotations

from typing import Literal

from casemate.errors import InputError

Endian = Literal["big", "little"]


class Octets:
    """Reads forward through ``data``; ``what`` names it in messages."""

    def __init__(self, data: bytes, what: str, endian: Endian) -> None:
        self._data = data
        self._what = what
        self._endian: Endian = endian
        self.offset = 0

    @property
    def left(self) -> int:
        """How many octets are not read yet."""
        return len(self._data) - self.offset

    def take(self, count: int, part: str) -> bytes:
        """The next ``count`` octets.

        Raises:
            InputError: there are fewer.
        """
        if count < 0 or count > self.left:
            raise InputError(
                f"{self._what} is cut off",
                got=f"{self.left} bytes",
                expected=f"{count} bytes of {part} at {self.offset}",
            )
        found = self._data[self.offset : self.offset + count]
        self.offset += count
        return found

    def number(self, octets: int, part: str) -> int:
        """An unsigned number."""
        return int.from_bytes(self.take(octets, part), self._endian)

    def sized(self, octets: int, part: str, most: int) -> bytes:
        """As many octets as a number in front of them says, at most ``most``."""
        count = self.number(octets, f"length of {part}")
        if count > most:
            raise InputError(f"{self._what}: {part} is too long", got=f"{count} bytes", expected=f"at most {most}")
        return self.take(count, part)

    def end(self) -> None:
        """Nothing may be left.

        Raises:
            InputError: something is.
        """
        if self.left:
            raise InputError(f"{self._what} has bytes behind its end", got=f"{self.left} bytes")
