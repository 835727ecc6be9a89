"""What is measured into which register, before it happens: an event log that is computed, and the values it gives.

An event that cannot be computed says why, and makes its register unpredictable: nothing is guessed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

DIGEST_BYTES: Final = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}
SEPARATOR: Final = bytes(4)


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One extension. ``digests``: by bank. ``unknown``: why it cannot be computed; then there are no digests."""

    register: int
    what: str
    digests: dict[str, bytes] = {}
    unknown: str = ""


class Prediction(msgspec.Struct, frozen=True):
    """Steps in the order in which they happen, of each register by itself."""

    banks: tuple[str, ...]
    steps: tuple[Step, ...]

    def unpredictable(self) -> dict[int, str]:
        """Registers without a value, and why: the first reason of each."""
        found: dict[int, str] = {}
        for step in self.steps:
            if step.unknown:
                found.setdefault(step.register, f"{step.what}: {step.unknown}")
        return dict(sorted(found.items()))

    def values(self, bank: str, registers: Iterable[int]) -> dict[int, bytes]:
        """The values of these registers, without those that cannot be predicted; one without events is zeros."""
        unknown = self.unpredictable()
        return {
            number: extended(bank, (step.digests[bank] for step in self.steps if step.register == number))
            for number in registers
            if number not in unknown
        }


def extended(bank: str, digests: Iterable[bytes]) -> bytes:
    """A register that began as zeros, after these digests."""
    value = bytes(DIGEST_BYTES[bank])
    for digest in digests:
        value = hashlib.new(bank, value + digest).digest()
    return value


class Steps:
    """Collects steps."""

    def __init__(self, banks: tuple[str, ...]) -> None:
        self.banks = banks
        self.found: list[Step] = []

    def data(self, register: int, what: str, measured: bytes) -> None:
        """These bytes are hashed."""
        self.digest(register, what, lambda bank: hashlib.new(bank, measured).digest())

    def digest(self, register: int, what: str, of: Callable[[str], bytes]) -> None:
        """A digest that is not the hash of one piece of memory (Authenticode)."""
        self.found.append(Step(register=register, what=what, digests={bank: of(bank) for bank in self.banks}))

    def unknown(self, register: int, what: str, why: str) -> None:
        """Something is measured that cannot be computed."""
        self.found.append(Step(register=register, what=what, unknown=why))

    def prediction(self) -> Prediction:
        """What was collected."""
        return Prediction(self.banks, tuple(self.found))
