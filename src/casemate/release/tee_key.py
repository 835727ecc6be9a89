"""The key that a guest made for one attestation, as JWK, and JWE to it (RFC 7516, 7518), flattened.

    RSA-OAEP-256      RSA of 2048 to 4096 bits
    ECDH-ES+A256KW    P-256, P-521; the key that wraps is derived with Concat KDF (RFC 7518, 4.6)

The content is encrypted with A256GCM. Written by hand with `cryptography`, because trustee's clients do not
authenticate the header as it was sent: they parse it and serialise it again (kbs-types, `generate_aad`), so it must
read just like theirs, byte for byte: alg, enc, epk, and in epk the names sorted. Tests open what is written here with
joserfc, a JOSE library of others.
"""

from __future__ import annotations

import base64
import binascii
import os
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta

from casemate.errors import InputError
from casemate.evidence.textual import url64

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

OAEP: Final = "RSA-OAEP-256"
ECDH: Final = "ECDH-ES+A256KW"
CONTENT: Final = "A256GCM"
CURVES: Final = {"P-256": 32, "P-521": 66}
"""Curve to bytes of a coordinate."""
RSA_BITS: Final = range(2048, 4097)
_CEK_BYTES: Final = 32
_IV_BYTES: Final = 12
_TAG_BYTES: Final = 16

Number = Annotated[str, Meta(max_length=1024)]


class _Jwk(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kty"):
    """Base: a key of another form, or with a member that nobody hashes, is refused."""

    def jwk(self) -> dict[str, str]:
        """The members as they go into the binding."""
        found: dict[str, str] = msgspec.to_builtins(self)
        return found


class RsaKey(_Jwk, frozen=True, tag="RSA"):
    """``n``, ``e``: base64url."""

    alg: Annotated[str, Meta(max_length=32)]
    n: Number
    e: Number


class EcKey(_Jwk, frozen=True, tag="EC"):
    """``x``, ``y``: base64url, as long as the curve's field."""

    crv: Annotated[str, Meta(max_length=16)]
    alg: Annotated[str, Meta(max_length=32)]
    x: Number
    y: Number


TeeKey = RsaKey | EcKey


def check_key(key: TeeKey) -> None:
    """Whether something can be encrypted to it: asked before anything is released.

    Raises:
        InputError: an algorithm that is not used, or no key.
    """
    _public(key)


def encrypt(key: TeeKey, plaintext: bytes) -> bytes:
    """The JWE of ``plaintext``, as JSON.

    Raises:
        InputError: as `check_key`.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    cek, iv = AESGCM.generate_key(8 * _CEK_BYTES), os.urandom(_IV_BYTES)
    header, wrapped = _wrap(key, cek)
    protected = url64(msgspec.json.encode(header))
    sealed = AESGCM(cek).encrypt(iv, plaintext, protected.encode("ascii"))
    return msgspec.json.encode(
        {
            "protected": protected,
            "encrypted_key": url64(wrapped),
            "iv": url64(iv),
            "ciphertext": url64(sealed[:-_TAG_BYTES]),
            "tag": url64(sealed[-_TAG_BYTES:]),
        }
    )


def _wrap(key: TeeKey, cek: bytes) -> tuple[dict[str, object], bytes]:
    """(header, wrapped key of the content)."""
    from cryptography.hazmat.primitives.asymmetric import ec, padding
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
    from cryptography.hazmat.primitives.keywrap import aes_key_wrap

    if isinstance(key, RsaKey):
        oaep = padding.OAEP(padding.MGF1(SHA256()), SHA256(), None)
        return {"alg": OAEP, "enc": CONTENT}, _rsa(key).encrypt(cek, oaep)
    public = _ec(key)
    ours = ec.generate_private_key(public.curve)
    # RFC 7518, 4.6.2: algorithm, PartyUInfo and PartyVInfo (empty), bits of the key.
    info = len(ECDH).to_bytes(4, "big") + ECDH.encode() + bytes(8) + (256).to_bytes(4, "big")
    wrapping = ConcatKDFHash(SHA256(), 32, info).derive(ours.exchange(ec.ECDH(), public))
    point, size = ours.public_key().public_numbers(), CURVES[key.crv]
    epk = {
        "crv": key.crv,
        "kty": "EC",
        "x": url64(point.x.to_bytes(size, "big")),
        "y": url64(point.y.to_bytes(size, "big")),
    }
    return {"alg": ECDH, "enc": CONTENT, "epk": epk}, aes_key_wrap(wrapping, cek)


def _public(key: TeeKey) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
    return _rsa(key) if isinstance(key, RsaKey) else _ec(key)


def _rsa(key: RsaKey) -> rsa.RSAPublicKey:
    from cryptography.hazmat.primitives.asymmetric import rsa

    if key.alg != OAEP:
        raise InputError("the guest's RSA key", got=f"algorithm {key.alg}", expected=OAEP)
    modulus, exponent = (int.from_bytes(base64url(text, "the guest's RSA key"), "big") for text in (key.n, key.e))
    if modulus.bit_length() not in RSA_BITS or exponent != 65537:
        raise InputError(
            "the guest's RSA key",
            got=f"{modulus.bit_length()} bits, exponent {exponent if exponent < 1 << 64 else 'too large'}",
            expected=f"{RSA_BITS.start} to {RSA_BITS.stop - 1} bits, exponent 65537",
        )
    try:
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError as error:
        raise InputError("the guest's RSA key", got=str(error)[:100]) from None


def _ec(key: EcKey) -> ec.EllipticCurvePublicKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    if key.alg != ECDH or key.crv not in CURVES:
        raise InputError(
            "the guest's EC key", got=f"{key.crv} with {key.alg}", expected=f"{' or '.join(CURVES)} with {ECDH}"
        )
    x, y = (base64url(text, "the guest's EC key") for text in (key.x, key.y))
    if len(x) != CURVES[key.crv] or len(y) != CURVES[key.crv]:
        raise InputError("the guest's EC key", got=f"{len(x)} and {len(y)} bytes", expected=str(CURVES[key.crv]))
    curve = ec.SECP256R1() if key.crv == "P-256" else ec.SECP521R1()
    try:  # checks that the point lies on the curve
        return ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve).public_key()
    except ValueError as error:
        raise InputError("the guest's EC key", got=str(error)[:100]) from None


def base64url(text: str, what: str) -> bytes:
    """Unpadded base64url, strictly.

    Raises:
        InputError: anything else, and bits that mean nothing.
    """
    try:
        found = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        found = b""
    if not found or url64(found) != text:
        raise InputError(what, got="text that is not base64url", expected="base64url without padding")
    return found
