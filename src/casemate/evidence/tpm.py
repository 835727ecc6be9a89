"""TPM 2.0 quotes (TPMS_ATTEST, TPMT_SIGNATURE; TPM library specification part 2), bytes to fields."""

from __future__ import annotations

from typing import Final

import msgspec

from casemate.errors import InputError
from casemate.evidence.octets import Octets

MAGIC: Final = 0xFF544347
TYPE_QUOTE: Final = 0x8018
HASHES: Final = {0x0004: "sha1", 0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
DIGEST_BYTES: Final = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}
_SCHEMES: Final = {0x0014: "rsa", 0x0016: "rsa-pss", 0x0018: "ecdsa"}
_NULL: Final = 0x0010
ATTESTATION_KEY: Final = {
    1: "fixedTPM",
    4: "fixedParent",
    5: "sensitiveDataOrigin",
    16: "restricted",
    18: "sign",
}
"""Attributes (TPMA_OBJECT bits) without which a key is no attestation key: one that is not restricted signs whatever it
is given, a quote that no TPM ever made included; one that is not fixed may be outside of any TPM."""
DECRYPT: Final = 17
MAX_PCRS: Final = 24
MAX_BYTES: Final = 4096


class Quote(msgspec.Struct, frozen=True):
    """What a TPM signed. ``nonce``: extraData. ``selected``: (bank, PCR numbers) in the order that the digest has.
    ``digest``: over the selected PCRs. ``clock``: milliseconds; ``resets``, ``restarts``: of the TPM; ``safe``: whether
    its clock never went back. ``signed``: the whole."""

    nonce: bytes
    signer: bytes
    clock: int
    resets: int
    restarts: int
    safe: bool
    firmware: int
    selected: tuple[tuple[str, tuple[int, ...]], ...]
    digest: bytes
    signed: bytes


class Signature(msgspec.Struct, frozen=True):
    """``scheme``: ``rsa``, ``rsa-pss`` or ``ecdsa``; the value as `x509.verify` takes it (ECDSA in DER)."""

    scheme: str
    hash_name: str
    value: bytes


def looks_like_quote(data: bytes) -> bool:
    """Whether it begins like a TPM's quote."""
    return data[:6] == MAGIC.to_bytes(4, "big") + TYPE_QUOTE.to_bytes(2, "big")


def parse_quote(data: bytes) -> Quote:
    """The fields of a quote.

    Raises:
        InputError: it is none, or is cut off.
    """
    if len(data) > MAX_BYTES:
        raise InputError("not a TPM quote", got=f"{len(data)} bytes", expected=f"at most {MAX_BYTES}")
    octets = Octets(data, "TPM quote", "big")
    if octets.number(4, "magic") != MAGIC or octets.number(2, "type") != TYPE_QUOTE:
        raise InputError("not a TPM quote", got=data[:6].hex(), expected="ff5443478018")
    signer = octets.sized(2, "qualified signer", 128)
    nonce = octets.sized(2, "nonce", 128)
    clock, resets, restarts = octets.number(8, "clock"), octets.number(4, "resets"), octets.number(4, "restarts")
    safe = octets.number(1, "safe") == 1
    firmware = octets.number(8, "firmware version")
    selected = tuple(_selection(octets) for _ in range(_count(octets)))
    digest = octets.sized(2, "PCR digest", 64)
    octets.end()
    return Quote(nonce, signer, clock, resets, restarts, safe, firmware, selected, digest, data)


def _count(octets: Octets) -> int:
    count = octets.number(4, "number of banks")
    if count > len(HASHES):
        raise InputError("TPM quote: too many banks", got=str(count), expected=f"at most {len(HASHES)}")
    return count


def _selection(octets: Octets) -> tuple[str, tuple[int, ...]]:
    algorithm = octets.number(2, "bank")
    if algorithm not in HASHES:
        raise InputError("TPM quote: unknown bank", got=f"{algorithm:#06x}")
    bits = octets.sized(1, "PCR selection", 4)
    return HASHES[algorithm], tuple(
        8 * index + bit for index, octet in enumerate(bits) for bit in range(8) if octet >> bit & 1
    )


def parse_signature(data: bytes) -> Signature:
    """A TPMT_SIGNATURE.

    Raises:
        InputError: an algorithm that no quote here uses, or cut off.
    """
    octets = Octets(data[:MAX_BYTES], "TPM signature", "big")
    algorithm, hashed = octets.number(2, "algorithm"), octets.number(2, "hash")
    if algorithm not in _SCHEMES or hashed not in HASHES:
        raise InputError("TPM signature: unknown algorithm", got=f"{algorithm:#06x} with {hashed:#06x}")
    scheme = _SCHEMES[algorithm]
    if scheme != "ecdsa":
        value = octets.sized(2, "signature", 1024)
        octets.end()
        return Signature(scheme, HASHES[hashed], value)
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    r, s = octets.sized(2, "r", 128), octets.sized(2, "s", 128)
    octets.end()
    return Signature(scheme, HASHES[hashed], encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big")))


def looks_like_public_area(data: bytes) -> bool:
    """Whether it begins like a TPM2B_PUBLIC of an RSA or ECC key, and ends where that says."""
    is_key = data[2:4] in (b"\x00\x01", b"\x00\x23")
    return is_key and len(data) <= MAX_BYTES and int.from_bytes(data[:2], "big") == len(data) - 2


class PublicKey(msgspec.Struct, frozen=True):
    """``key``: SubjectPublicKeyInfo. ``attributes``: TPMA_OBJECT, or None where only the bare key came along."""

    key: bytes
    attributes: int | None


def parse_key(data: bytes) -> PublicKey:
    """An attestation key: its public area, or a bare SubjectPublicKeyInfo.

    Raises:
        InputError: no RSA or ECC key, or cut off.
    """
    return PublicKey(data, None) if data[:1] == b"\x30" else parse_public_area(data)


def parse_public_key(data: bytes) -> bytes:
    """SubjectPublicKeyInfo of a TPMT_PUBLIC (or TPM2B_PUBLIC).

    Raises:
        InputError: as `parse_public_area`.
    """
    return parse_public_area(data).key


def parse_public_area(data: bytes) -> PublicKey:
    """A TPMT_PUBLIC (or TPM2B_PUBLIC) of an attestation key.

    Raises:
        InputError: no RSA or ECC key, or cut off.
    """
    octets = Octets(data[:MAX_BYTES], "TPM public key", "big")
    if len(data) > 2 and int.from_bytes(data[:2], "big") == len(data) - 2:
        octets.take(2, "size")
    kind, name_hash = octets.number(2, "type"), octets.number(2, "name algorithm")
    attributes = octets.number(4, "attributes")
    octets.sized(2, "policy", 64)
    if name_hash not in HASHES:
        raise InputError("TPM public key: unknown name algorithm", got=f"{name_hash:#06x}")
    if octets.number(2, "symmetric") != _NULL:
        raise InputError("TPM public key: a storage key, not an attestation key")
    if octets.number(2, "scheme") != _NULL:
        octets.number(2, "scheme's hash")
    if kind == 0x0001:
        return PublicKey(_rsa(octets), attributes)
    if kind == 0x0023:
        return PublicKey(_ecc(octets), attributes)
    raise InputError("TPM public key: neither RSA nor ECC", got=f"{kind:#06x}")


def _rsa(octets: Octets) -> bytes:
    from cryptography.hazmat.primitives.asymmetric import rsa

    octets.number(2, "key bits")
    exponent = octets.number(4, "exponent") or 65537
    modulus = int.from_bytes(octets.sized(2, "modulus", 1024), "big")
    octets.end()
    try:
        return _spki(rsa.RSAPublicNumbers(exponent, modulus).public_key())
    except ValueError as error:
        raise InputError("TPM public key", got=str(error)[:100]) from None


def _ecc(octets: Octets) -> bytes:
    from cryptography.hazmat.primitives.asymmetric import ec

    curve = {0x0003: ec.SECP256R1(), 0x0004: ec.SECP384R1()}.get(octets.number(2, "curve"))
    if octets.number(2, "key derivation") != _NULL:
        octets.number(2, "derivation's hash")
    x, y = (int.from_bytes(octets.sized(2, name, 128), "big") for name in ("x", "y"))
    octets.end()
    if curve is None:
        raise InputError("TPM public key: unknown curve")
    try:
        return _spki(ec.EllipticCurvePublicNumbers(x, y, curve).public_key())
    except ValueError as error:
        raise InputError("TPM public key", got=str(error)[:100]) from None


def _spki(key: object) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return encoded
