"""X.509 certificates (RFC 5280), read by ourselves and verified with pyca/cryptography's keys.

The libraries refuse some certificates that vendors really issue (AMD: serial number 0, extension values that are raw
bytes), and a verifier must not depend on which ones they refuse next year. Signatures are theirs; fields are ours.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from casemate.errors import InputError
from casemate.evidence import der

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

_BASIC_CONSTRAINTS: Final = "2.5.29.19"
_KEY_USAGE: Final = "2.5.29.15"
_DISTRIBUTION_POINTS: Final = "2.5.29.31"
_UNDERSTOOD: Final = frozenset({_BASIC_CONSTRAINTS, _KEY_USAGE, "2.5.29.17", "2.5.29.32", "2.5.29.37"})
"""Critical extensions that do not stop us: the two that are judged, and names, policies and purposes, which say more
about a leaf and restrict nothing that is concluded here."""
_COMMON_NAME: Final = "2.5.4.3"
_RSA_PSS: Final = "1.2.840.113549.1.1.10"
_RSA_HASHES: Final = {
    "1.2.840.113549.1.1.11": "sha256",
    "1.2.840.113549.1.1.12": "sha384",
    "1.2.840.113549.1.1.13": "sha512",
}
_ECDSA_HASHES: Final = {
    "1.2.840.10045.4.3.2": "sha256",
    "1.2.840.10045.4.3.3": "sha384",
    "1.2.840.10045.4.3.4": "sha512",
}
_PSS_HASHES: Final = {
    "2.16.840.1.101.3.4.2.1": "sha256",
    "2.16.840.1.101.3.4.2.2": "sha384",
    "2.16.840.1.101.3.4.2.3": "sha512",
}
MAX_EXTENSIONS: Final = 64
MAX_BLOCKS: Final = 256
_REMEMBERED: Final = 128
_REMEMBERED_BYTES: Final = 8192
KEY_USAGES: Final = {"digitalSignature": 0, "keyEncipherment": 2, "keyAgreement": 4, "keyCertSign": 5, "cRLSign": 6}
"""Bits of KeyUsage (RFC 5280, 4.2.1.3)."""


class Certificate(msgspec.Struct, frozen=True):
    """``encoded``: the whole, DER. ``signed``: the part that is signed. ``scheme``: ``rsa``, ``rsa-pss`` or ``ecdsa``
    with ``hash_name``. ``issuer``, ``subject``: names as DER. ``key``: SubjectPublicKeyInfo. ``extensions``: by object
    identifier, (critical, value)."""

    encoded: bytes
    signed: bytes
    scheme: str
    hash_name: str
    salt_bytes: int
    signature: bytes
    serial: int
    issuer: bytes
    subject: bytes
    common_name: str
    not_before: datetime.datetime
    not_after: datetime.datetime
    key: bytes
    extensions: dict[str, tuple[bool, bytes]]

    @property
    def issuer_name(self) -> str:
        """The issuer's common name; empty when it has none."""
        return common_name(der.whole(self.issuer, der.SEQUENCE))

    @property
    def is_authority(self) -> bool:
        """Whether it may sign certificates: basic constraints say so, and key usage does not say otherwise."""
        return self._constraints()[0] and self.may("keyCertSign")

    @property
    def longest_path(self) -> int | None:
        """How many authorities may stand between it and a leaf; None: any number."""
        return self._constraints()[1]

    @property
    def unknown_critical(self) -> tuple[str, ...]:
        """Critical extensions that nobody here understands: such a certificate must not be used (RFC 5280, 4.2)."""
        return tuple(name for name, (critical, _) in self.extensions.items() if critical and name not in _UNDERSTOOD)

    @property
    def names_revocation_list(self) -> bool:
        """Whether its issuer says where it publishes revocation lists."""
        return _DISTRIBUTION_POINTS in self.extensions

    def distribution_points(self) -> tuple[bytes, ...]:
        """The names (DER) of the points where its issuer publishes lists; none when they cannot be read."""
        _, value = self.extensions.get(_DISTRIBUTION_POINTS, (False, b""))
        try:
            points = der.elements(der.whole(value, der.SEQUENCE).body) if value else []
            parts = [part for point in points for part in der.elements(der.expect(point, der.SEQUENCE).body)]
        except InputError:
            return ()
        return tuple(part.whole for part in parts if part.tag == 0xA0)

    def may(self, usage: str) -> bool:
        """Whether key usage allows it (a name of `KEY_USAGES`); a certificate without that extension may do all."""
        _, value = self.extensions.get(_KEY_USAGE, (False, b""))
        if not value:
            return True
        try:
            body = der.whole(value, der.BIT_STRING).body
        except InputError:
            return False
        bit = KEY_USAGES[usage]
        return len(body) > 1 + bit // 8 and bool(body[1 + bit // 8] & 0x80 >> bit % 8)

    def _constraints(self) -> tuple[bool, int | None]:
        """(CA, pathLenConstraint) of its basic constraints; what cannot be read allows nothing."""
        _, value = self.extensions.get(_BASIC_CONSTRAINTS, (False, b""))
        try:
            parts = der.elements(der.whole(value, der.SEQUENCE).body)
            if not parts or parts[0].tag != der.BOOLEAN or parts[0].body != b"\xff" or len(parts) > 2:
                return False, 0
            return True, der.integer(der.expect(parts[1], der.INTEGER).body) if len(parts) == 2 else None
        except InputError:
            return False, 0

    def public_key(self) -> PublicKeyTypes:
        """Its key.

        Raises:
            InputError: no key that the library knows.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_der_public_key

        try:
            return load_der_public_key(self.key)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise InputError("a certificate's key cannot be read", got=str(error)[:120]) from None

    def signed_by(self, issuer: Certificate) -> bool:
        """Whether the issuer's key made its signature, and is allowed to by name.

        What is said of an authority is remembered: the same few stand above every leaf.

        Raises:
            InputError: the issuer's key cannot be read.
        """
        if self.issuer != issuer.subject:
            return False
        if not self.is_authority:
            return self._verified_by(issuer)
        return signed_once(self.encoded, issuer.encoded, lambda: self._verified_by(issuer))

    def _verified_by(self, issuer: Certificate) -> bool:
        return verify(
            issuer.public_key(), self.scheme, self.hash_name, self.signature, self.signed, salt_bytes=self.salt_bytes
        )

    def covers(self, moment: datetime.datetime) -> bool:
        """Whether its validity includes the moment."""
        return self.not_before <= moment <= self.not_after


def parse(data: bytes) -> Certificate:
    """A certificate in DER.

    Raises:
        InputError: it is none, or uses an algorithm that no evidence here uses.
    """
    outer = der.elements(der.whole(data, der.SEQUENCE).body)
    if len(outer) != 3:
        raise _fault("not three parts")
    scheme, hash_name, salt = algorithm_of(der.expect(outer[1], der.SEQUENCE))
    fields = der.elements(der.expect(outer[0], der.SEQUENCE).body)
    if fields and fields[0].tag == 0xA0:  # version
        fields.pop(0)
    if len(fields) < 6:
        raise _fault("fields are missing")
    serial, algorithm, issuer, validity, subject, key, *rest = fields
    if algorithm.whole != outer[1].whole:
        raise _fault("two signature algorithms")
    begin, end = (time_of(item) for item in _two(der.elements(der.expect(validity, der.SEQUENCE).body)))
    return Certificate(
        encoded=data,
        signed=outer[0].whole,
        scheme=scheme,
        hash_name=hash_name,
        salt_bytes=salt,
        signature=bits_of(outer[2]),
        serial=int.from_bytes(der.expect(serial, der.INTEGER).body, "big"),
        issuer=der.expect(issuer, der.SEQUENCE).whole,
        subject=der.expect(subject, der.SEQUENCE).whole,
        common_name=common_name(subject),
        not_before=begin,
        not_after=end,
        key=der.expect(key, der.SEQUENCE).whole,
        extensions=extensions_of(rest, 0xA3),
    )


_SIGNED: Final[dict[tuple[bytes, bytes], bool]] = {}
"""(an authority or its list, the one above it), both as encoded, to whether the one signed the other: nothing else
decides."""


def signed_once(lower: bytes, upper: bytes, judge: Callable[[], bool]) -> bool:
    """What ``judge`` says of two that are all that decides, remembered: the same few stand above every leaf."""
    if len(lower) + len(upper) > _REMEMBERED_BYTES:
        return judge()
    known = _SIGNED.get((lower, upper))  # once: other threads may forget meanwhile
    if known is None:
        known = judge()
        if len(_SIGNED) >= _REMEMBERED:
            _SIGNED.clear()
        _SIGNED[lower, upper] = known
    return known


@functools.lru_cache(maxsize=_REMEMBERED)
def _remembered(data: bytes) -> Certificate:
    return parse(data)


def parse_authority(data: bytes) -> Certificate:
    """As `parse`, remembered: for what comes along with every piece of evidence and is the same each time."""
    return _remembered(data) if len(data) <= _REMEMBERED_BYTES else parse(data)


def forget() -> None:
    """Forget what was remembered of authorities: for whoever measures."""
    _SIGNED.clear()
    _remembered.cache_clear()


def parse_many(data: bytes) -> tuple[Certificate, ...]:
    """Certificates in PEM, one after the other, or one in DER.

    Raises:
        InputError: there is none, or one cannot be read.
    """
    if b"-----BEGIN CERTIFICATE-----" not in data:
        return (parse(data),)
    return tuple(parse(block) for label, block in pem_blocks(data) if label == "CERTIFICATE")


def pem_blocks(data: bytes) -> tuple[tuple[str, bytes], ...]:
    """(label, content) of every block of PEM, whatever stands between them.

    Raises:
        InputError: one is not base64, or there are more than anybody needs.
    """
    import base64
    import binascii
    import re

    if len(data) > der.MAX_BYTES:
        raise _fault(f"PEM of {len(data)} bytes")
    found = re.findall(rb"-----BEGIN ([A-Z0-9 ]{1,32})-----([^-]*)-----END \1-----", data)
    if len(found) > MAX_BLOCKS:
        raise _fault(f"PEM of {len(found)} blocks")
    try:
        return tuple(
            (label.decode("ascii"), base64.b64decode(b"".join(block.split()), validate=True)) for label, block in found
        )
    except binascii.Error:
        raise _fault("PEM that is not base64") from None


def verify(
    key: PublicKeyTypes, scheme: str, hash_name: str, signature: bytes, signed: bytes, *, salt_bytes: int = 0
) -> bool:
    """Whether the signature is the key's over these bytes. A key of another kind made none."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

    known: dict[str, type[hashes.HashAlgorithm]] = {
        "sha1": hashes.SHA1,  # some TPMs sign quotes with it; a policy decides
        "sha256": hashes.SHA256,
        "sha384": hashes.SHA384,
        "sha512": hashes.SHA512,
    }
    algorithm = known[hash_name]()
    try:
        if scheme == "ecdsa" and isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, signed, ec.ECDSA(algorithm))
            return True
        if scheme == "rsa" and isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, signed, padding.PKCS1v15(), algorithm)
            return True
        if scheme == "rsa-pss" and isinstance(key, rsa.RSAPublicKey):
            pss = padding.PSS(padding.MGF1(algorithm), salt_bytes or padding.PSS.AUTO)
            key.verify(signature, signed, pss, algorithm)
            return True
    except (InvalidSignature, ValueError):
        return False
    return False


def algorithm_of(element: der.Element) -> tuple[str, str, int]:
    """(scheme, hash, salt in bytes) of an AlgorithmIdentifier."""
    parts = der.elements(element.body)
    if not parts:
        raise _fault("no signature algorithm")
    name = der.oid_text(der.expect(parts[0], der.OID).body)
    if name in _RSA_HASHES:
        return "rsa", _RSA_HASHES[name], 0
    if name in _ECDSA_HASHES:
        return "ecdsa", _ECDSA_HASHES[name], 0
    if name != _RSA_PSS or len(parts) != 2:
        raise _fault(f"signature algorithm {name}")
    return "rsa-pss", *_pss(der.expect(parts[1], der.SEQUENCE))


def _pss(element: der.Element) -> tuple[str, int]:
    """(hash, salt in bytes) of RSASSA-PSS-params (RFC 4055); the mask must be MGF1 with the same hash."""
    fields = {part.tag: part.body for part in der.elements(element.body)}
    try:
        hashed = der.whole(fields[0xA0], der.SEQUENCE)
        mask = der.elements(der.whole(fields[0xA1], der.SEQUENCE).body)
        salt = der.integer(der.whole(fields[0xA2], der.INTEGER).body)
    except KeyError:
        raise _fault("PSS with parameters left out, which means SHA-1") from None
    name = _first_oid(hashed)
    if name not in _PSS_HASHES or len(mask) != 2 or _first_oid(mask[1]) != name or not 0 < salt <= 128:
        raise _fault("PSS parameters")
    return _PSS_HASHES[name], salt


def _first_oid(element: der.Element) -> str:
    parts = der.elements(der.expect(element, der.SEQUENCE).body)
    if not parts:
        raise _fault("an empty algorithm")
    return der.oid_text(der.expect(parts[0], der.OID).body)


def _two(items: object) -> tuple[der.Element, der.Element]:
    found = list(items)  # type: ignore[call-overload]
    if len(found) != 2:
        raise _fault("not a begin and an end")
    return found[0], found[1]


def time_of(element: der.Element) -> datetime.datetime:
    """RFC 5280, 4.1.2.5: UTCTime until 2049, GeneralizedTime after; both with seconds and Z."""
    years = {der.UTC_TIME: 2, der.GENERALIZED_TIME: 4}.get(element.tag, 0)
    text = element.body
    if not years or len(text) != years + 11 or text[-1:] != b"Z" or not text[:-1].isdigit():
        raise _fault("a time of no known form")
    year = int(text[:years])
    if years == 2:
        year += 2000 if year < 50 else 1900
    month, day, hour, minute, second = (int(text[at : at + 2]) for at in range(years, years + 10, 2))
    try:
        return datetime.datetime(year, month, day, hour, minute, second, tzinfo=datetime.UTC)
    except ValueError:
        raise _fault("a time of no known form") from None


def bits_of(element: der.Element) -> bytes:
    """The octets of a BIT STRING that has nothing but whole ones."""
    body = der.expect(element, der.BIT_STRING).body
    if not body or body[0] != 0:
        raise _fault("a bit string of no whole octets")
    return body[1:]


def common_name(subject: der.Element) -> str:
    """The first common name of a name; empty when there is none."""
    for relative in der.elements(subject.body):
        for pair in der.elements(der.expect(relative, der.SET).body):
            parts = der.elements(der.expect(pair, der.SEQUENCE).body)
            if len(parts) == 2 and der.oid_text(der.expect(parts[0], der.OID).body) == _COMMON_NAME:
                return parts[1].body.decode("utf-8", "backslashreplace")
    return ""


def extensions_of(fields: list[der.Element], tag: int) -> dict[str, tuple[bool, bytes]]:
    """(critical, value) by object identifier, out of the field with this tag; none when there is no such field."""
    found: dict[str, tuple[bool, bytes]] = {}
    for field in fields:
        if field.tag != tag:
            continue
        for extension in der.elements(der.whole(field.body, der.SEQUENCE).body):
            parts = der.elements(der.expect(extension, der.SEQUENCE).body)
            if len(parts) not in (2, 3) or len(found) >= MAX_EXTENSIONS:
                raise _fault("an extension")
            name = der.oid_text(der.expect(parts[0], der.OID).body)
            if name in found:
                raise _fault(f"extension {name} twice")
            critical = len(parts) == 3 and der.expect(parts[1], der.BOOLEAN).body == b"\xff"
            found[name] = critical, der.expect(parts[-1], der.OCTET_STRING).body
    return found


def _fault(what: str) -> InputError:
    return InputError("not a certificate", got=what, expected="X.509 in DER or PEM")
