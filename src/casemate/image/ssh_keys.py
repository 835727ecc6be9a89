"""SSH public keys and raw signatures on the wire (RFC 4251, 4253, 5656, 8332, 8709; PROTOCOL.u2f of OpenSSH)."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any, Final

from casemate.errors import ImageError
from casemate.image.origin import refuse

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

RSA_MIN_BITS: Final = 2048
_CURVES: Final = {"nistp256": "SECP256R1", "nistp384": "SECP384R1", "nistp521": "SECP521R1"}
_CURVE_HASHES: Final = {"nistp256": "SHA256", "nistp384": "SHA384", "nistp521": "SHA512"}
_SK_ED25519: Final = "sk-ssh-ed25519@openssh.com"
_SK_ECDSA: Final = "sk-ecdsa-sha2-nistp256@openssh.com"
_TYPES: Final = frozenset(
    {"ssh-ed25519", "ssh-rsa", *(f"ecdsa-sha2-{curve}" for curve in _CURVES), _SK_ED25519, _SK_ECDSA}
)
_TOUCHED: Final = 0x01
"""User presence in the flags of a FIDO signature (CTAP2)."""


class Fields:
    """Reader of SSH wire format; every read is bounded by what is there."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data, self._at, self._what = data, 0, what

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        part = self._data[self._at : self._at + count]
        if len(part) != count:
            raise refuse(self._what, "data that is cut off", expected="complete SSH data")
        self._at += count
        return part

    def uint32(self) -> int:
        """A number of four bytes."""
        return int.from_bytes(self.take(4), "big")

    def string(self) -> bytes:
        """A length and as many bytes."""
        return self.take(self.uint32())

    def text(self) -> str:
        """A string of printable ASCII."""
        found = self.string()
        if not all(0x20 <= byte < 0x7F for byte in found):
            raise refuse(self._what, "a name with other than printable characters", expected="complete SSH data")
        return found.decode("ascii")

    def mpint(self) -> int:
        """A number above zero in the shortest form."""
        found = self.string()
        if not found or found[0] & 0x80 or (found[0] == 0 and (len(found) == 1 or not found[1] & 0x80)):
            raise refuse(self._what, "a number in another than the shortest form", expected="complete SSH data")
        return int.from_bytes(found, "big")

    def end(self) -> None:
        """Nothing may follow."""
        if self._at != len(self._data):
            raise refuse(self._what, f"{len(self._data) - self._at} bytes after its end", expected="nothing more")


def put(data: bytes) -> bytes:
    """A string on the wire."""
    return len(data).to_bytes(4, "big") + data


def fingerprint(public_key: bytes) -> str:
    """``SHA256:…`` as ssh-keygen prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(public_key).digest()).decode().rstrip("=")


def key_type_of(word: str) -> str | None:
    """The key type that this word names, or None; certificates are none."""
    return word if word in _TYPES else None


def verify_with_key(public_key: bytes, signature: bytes, message: bytes, what: str) -> bool:
    """True when ``signature`` (wire format) over ``message`` is by ``public_key`` (wire format).

    Raises:
        ImageError: either is malformed, of a kind or strength that we do not accept, or of different kinds.
    """
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    try:
        return _verify(public_key, signature, message, what)
    except InvalidSignature:
        return False
    except ImageError:
        raise
    except (ValueError, TypeError, UnsupportedAlgorithm) as fault:
        raise refuse(what, f"a key or signature that is not sound ({str(fault)[:120]})") from None


def _verify(public_key: bytes, signature: bytes, message: bytes, what: str) -> bool:
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key, sig = Fields(public_key, what), Fields(signature, what)
    kind, algorithm = key.text(), sig.text()
    if key_type_of(kind) is None:
        raise refuse(
            what, f"a key of the type {kind[:60]!r}", expected="a plain SSH key", next_step="ssh-keygen -Y sign"
        )
    if kind == "ssh-rsa":
        return _verify_rsa(key, sig, algorithm, message, what)
    if algorithm != kind:
        raise refuse(what, f"a {algorithm[:60]!r} signature by a {kind!r} key", expected="one kind")
    if kind == "ssh-ed25519":
        raw, value = key.string(), sig.string()
        key.end()
        sig.end()
        ed25519.Ed25519PublicKey.from_public_bytes(raw).verify(value, message)
        return True
    if kind == _SK_ED25519:
        raw, application, value = key.string(), key.string(), sig.string()
        signed = _fido(application, sig, message, what)
        key.end()
        ed25519.Ed25519PublicKey.from_public_bytes(raw).verify(value, signed)
        return True
    curve = key.text()
    if not kind.removeprefix("sk-").startswith(f"ecdsa-sha2-{curve}"):
        raise refuse(what, f"the curve {curve[:40]!r} in a {kind!r} key")
    point = key.string()
    numbers = Fields(sig.string(), what)
    if kind == _SK_ECDSA:
        message = _fido(key.string(), sig, message, what)
    key.end()
    sig.end()
    _verify_ecdsa(curve, point, numbers, message)
    return True


def _verify_ecdsa(curve: str, point: bytes, numbers: Fields, message: bytes) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    kind: ec.EllipticCurve = getattr(ec, _CURVES[curve])()
    public = ec.EllipticCurvePublicKey.from_encoded_point(kind, point)
    encoded = utils.encode_dss_signature(numbers.mpint(), numbers.mpint())
    numbers.end()
    digest: Any = getattr(hashes, _CURVE_HASHES[curve])()
    public.verify(encoded, message, ec.ECDSA(digest))


def _verify_rsa(key: Fields, sig: Fields, algorithm: str, message: bytes, what: str) -> bool:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding, rsa

    exponent, modulus = key.mpint(), key.mpint()
    key.end()
    if not RSA_MIN_BITS <= modulus.bit_length() <= 16_384:
        raise refuse(what, f"an RSA key of {modulus.bit_length()} bits", expected=f"{RSA_MIN_BITS} to 16384 bits")
    digest = {"rsa-sha2-256": hashes.SHA256, "rsa-sha2-512": hashes.SHA512}.get(algorithm)
    if digest is None:
        raise refuse(what, f"an RSA signature of the kind {algorithm[:60]!r}", expected="rsa-sha2-256 or rsa-sha2-512")
    value = sig.string()
    sig.end()
    rsa.RSAPublicNumbers(exponent, modulus).public_key().verify(value, message, padding.PKCS1v15(), digest())
    return True


def _fido(application: bytes, sig: Fields, message: bytes, what: str) -> bytes:
    """What a FIDO key signs for ``message``."""
    flags, counter = sig.take(1), sig.take(4)
    sig.end()
    if not flags[0] & _TOUCHED:
        raise refuse(what, "a signature that nobody touched the key for", expected="user presence")
    return hashlib.sha256(application).digest() + flags + counter + hashlib.sha256(message).digest()
