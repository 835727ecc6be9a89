"""TPM2_MakeCredential, in software: a secret that only the TPM with an endorsement key gives back, and only while it
holds the key of that name. TPM library specification, part 1, "Credential Protection" and "KDFs"; part 3,
TPM2_ActivateCredential.

    seed        as long as the endorsement key's name digest; sent with RSA-OAEP (label "IDENTITY\\0"), or agreed on by
                ECDH with an ephemeral key and KDFe
    encIdentity AES-CFB, IV of zeros, key KDFa(seed, "STORAGE", name), over TPM2B(secret)
    integrity   HMAC, key KDFa(seed, "INTEGRITY"), over encIdentity and name

As tpm2-tools keep it in a file, all big endian::

    u32 0xbadcc0de, u32 1, TPM2B_ID_OBJECT (integrity as TPM2B, encIdentity), TPM2B_ENCRYPTED_SECRET
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from typing import Final, NamedTuple

from casemate.errors import InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

MAGIC: Final = 0xBADCC0DE
VERSION: Final = 1
_LABEL: Final = b"IDENTITY\0"
_EXPECTED: Final = "RSA of 2048 or 3072 bits, P-256 or P-384"


class Protector(NamedTuple):
    """An endorsement key, and how it protects. ``key``: SubjectPublicKeyInfo. ``hash_name``: its name algorithm.
    ``key_bits``: of AES. ``usage``: which key usage (RFC 5280) its certificate has."""

    key: bytes
    hash_name: str
    key_bits: int
    usage: str

    @classmethod
    def of_key(cls, key: bytes) -> Protector:
        """By the template that the EK credential profile (appendix B) has for a key of this kind: SHA-256 and AES-128
        for RSA 2048 and P-256 (L-1, L-2, H-1, H-2), SHA-384 and AES-256 for RSA 3072 and P-384 (H-3, H-6).

        Raises:
            InputError: the profile has none, or the key cannot be read.
        """
        from cryptography.hazmat.primitives.asymmetric import ec, rsa

        loaded = _loaded(key)
        bits = loaded.key_size
        if isinstance(loaded, rsa.RSAPublicKey) and bits in (2048, 3072):
            return cls(key, *(("sha256", 128) if bits == 2048 else ("sha384", 256)), usage="keyEncipherment")
        if isinstance(loaded, ec.EllipticCurvePublicKey) and loaded.curve.name in ("secp256r1", "secp384r1"):
            return cls(key, *(("sha256", 128) if bits == 256 else ("sha384", 256)), usage="keyAgreement")
        raise InputError("no endorsement key of a known template", got=f"{bits} bits", expected=_EXPECTED)


def make_credential(protector: Protector, name: bytes, secret: bytes) -> bytes:
    """The file for ``tpm2_activatecredential -i``.

    Args:
        name: of the attestation key: algorithm (2 bytes) and digest.
        secret: at most as long as the endorsement key's name digest.

    Raises:
        InputError: the endorsement key cannot be read.
    """
    digest_bytes = hashlib.new(protector.hash_name).digest_size
    if not 0 < len(secret) <= digest_bytes:
        raise RuntimeError(f"a secret of {len(secret)} bytes for a TPM that takes {digest_bytes}")
    seed, sealed = _seed(protector)
    key = kdfa(protector.hash_name, seed, b"STORAGE", name, protector.key_bits)
    identity = _encrypt(key, _sized(secret))
    hmac_key = kdfa(protector.hash_name, seed, b"INTEGRITY", b"", digest_bytes * 8)
    integrity = hmac.digest(hmac_key, identity + name, protector.hash_name)
    return struct.pack(">II", MAGIC, VERSION) + _sized(_sized(integrity) + identity) + _sized(sealed)


def kdfa(hash_name: str, key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """KDFa (SP 800-108, counter mode with HMAC) of part 1, for no more bits than one digest has."""
    block = struct.pack(">I", 1) + label + b"\0" + context + struct.pack(">I", bits)
    found = hmac.digest(key, block, hash_name)
    if bits > len(found) * 8:
        raise RuntimeError(f"KDFa of {bits} bits out of one {hash_name}")
    return found[: bits // 8]


def _seed(protector: Protector) -> tuple[bytes, bytes]:
    """(seed, how it is sent: content of TPM2B_ENCRYPTED_SECRET)."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding, rsa

    loaded = _loaded(protector.key)
    if not isinstance(loaded, rsa.RSAPublicKey):
        return _agreed(loaded, protector.hash_name)
    known: dict[str, type[hashes.HashAlgorithm]] = {
        "sha256": hashes.SHA256,
        "sha384": hashes.SHA384,
        "sha512": hashes.SHA512,
    }
    algorithm = known[protector.hash_name]()
    seed = secrets.token_bytes(algorithm.digest_size)
    return seed, loaded.encrypt(seed, padding.OAEP(padding.MGF1(algorithm), algorithm, _LABEL))


def _agreed(theirs: ec.EllipticCurvePublicKey, hash_name: str) -> tuple[bytes, bytes]:
    """(KDFe of what an ephemeral key and theirs agree on, TPMS_ECC_POINT of the ephemeral one); x and y full length."""
    from cryptography.hazmat.primitives.asymmetric import ec

    own = ec.generate_private_key(theirs.curve)
    numbers, size = own.public_key().public_numbers(), (theirs.curve.key_size + 7) // 8
    x, y = numbers.x.to_bytes(size, "big"), numbers.y.to_bytes(size, "big")
    agreed = own.exchange(ec.ECDH(), theirs)
    block = struct.pack(">I", 1) + agreed + _LABEL + x + theirs.public_numbers().x.to_bytes(size, "big")
    return hashlib.new(hash_name, block).digest(), _sized(x) + _sized(y)


def _encrypt(key: bytes, data: bytes) -> bytes:
    from cryptography.hazmat.decrepit.ciphers.modes import CFB
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    encryptor = Cipher(algorithms.AES(key), CFB(bytes(16))).encryptor()
    return encryptor.update(data) + encryptor.finalize()


def _loaded(key: bytes) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    try:
        loaded = load_der_public_key(key)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError("an endorsement key cannot be read", got=str(error)[:120]) from None
    if not isinstance(loaded, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise InputError("no endorsement key of a known template", got="neither RSA nor ECC", expected=_EXPECTED)
    return loaded


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data
