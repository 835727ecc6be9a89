"""RSA keys of Infineon's weak generator (ROCA, CVE-2017-15361), which TPMs were sold with and which can be factored.

Nemec et al., "The Return of Coppersmith's Attack" (2017): primes k * M + (65537^a mod M), where M is the product of the
first 126 primes (for 1984 to 3936 bits). The modulus is then a power of 65537 by every one of these primes; one that is
not of that generator passes by chance about once in 2^150.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from casemate.evidence.verdict import Reason, false

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

_GENERATOR: Final = 65537
_LARGEST_PRIME: Final = 701
"""The 126th."""


def weak_key_faults(key: PublicKeyTypes, code: str, what: str) -> Iterator[Reason]:
    """Whether others than its TPM may have a key. ``what``: how messages name it."""
    from cryptography.hazmat.primitives.asymmetric import rsa

    if isinstance(key, rsa.RSAPublicKey) and is_of_weak_generator(key.public_numbers().n):
        yield false(code, f"the {what} is of Infineon's weak generator (CVE-2017-15361): others may have computed it")


def is_of_weak_generator(modulus: int) -> bool:
    """Whether an RSA modulus bears the mark of that generator."""
    return all(pow(modulus, order, prime) == 1 for prime, order in _orders())


@functools.cache
def _orders() -> tuple[tuple[int, int], ...]:
    """(odd prime, order of 65537 by it). Its powers are just what that order raises to 1: these groups are cyclic."""
    primes = [n for n in range(3, _LARGEST_PRIME + 1, 2) if all(n % d for d in range(3, int(n**0.5) + 1, 2))]
    return tuple((prime, _order(prime)) for prime in primes)


def _order(prime: int) -> int:
    value, order = _GENERATOR % prime, 1
    while value != 1:
        value, order = value * _GENERATOR % prime, order + 1
    return order
