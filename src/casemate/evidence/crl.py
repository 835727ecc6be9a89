"""Certificate revocation lists (RFC 5280, 5), bytes to fields. Whether one speaks for a chain: `revocation.py`.

Delta lists and lists that an authority other than the certificates' issuer signs (indirect) are refused: no maker of
hardware here publishes any, and read as whole lists they would say less than they seem to.
"""

from __future__ import annotations

import datetime
from typing import Final

import msgspec

from casemate.errors import InputError
from casemate.evidence import der, x509

MAX_BYTES: Final = 1 << 20
MAX_REVOKED: Final = 20_000
_NUMBER: Final = "2.5.29.20"
_AUTHORITY_KEY: Final = "2.5.29.35"
_SCOPE: Final = "2.5.29.28"
_UNDERSTOOD: Final = frozenset({_NUMBER, _AUTHORITY_KEY, _SCOPE})
_ENTRY_UNDERSTOOD: Final = frozenset({"2.5.29.21", "2.5.29.24"})
"""Reason and date of invalidity. A certificate issuer (2.5.29.29) is what makes a list indirect."""


class RevocationList(msgspec.Struct, frozen=True):
    """``encoded``: the whole, DER. ``signed``: what is signed, by ``issuer`` (a name as DER). ``revoked``: serials.
    ``this_update``, ``next_update``: within which it is the newest. ``scope``: the one distribution point (DER) whose
    certificates it is about; empty: all of its issuer's."""

    encoded: bytes
    signed: bytes
    scheme: str
    hash_name: str
    salt_bytes: int
    signature: bytes
    issuer: bytes
    issuer_name: str
    this_update: datetime.datetime
    next_update: datetime.datetime
    revoked: frozenset[int]
    scope: bytes

    def is_about(self, certificate: x509.Certificate) -> bool:
        """Whether it lists certificates like this one: of its issuer, and of its distribution point when it has one."""
        return self.issuer == certificate.issuer and (not self.scope or self.scope in certificate.distribution_points())

    def signed_by(self, issuer: x509.Certificate) -> bool:
        """Whether the issuer's key made it, and is allowed to.

        Raises:
            InputError: the issuer's key cannot be read.
        """
        return (
            self.issuer == issuer.subject
            and issuer.may("cRLSign")
            and x509.signed_once(self.encoded, issuer.encoded, lambda: self._verified_by(issuer))
        )

    def _verified_by(self, issuer: x509.Certificate) -> bool:
        return x509.verify(
            issuer.public_key(), self.scheme, self.hash_name, self.signature, self.signed, salt_bytes=self.salt_bytes
        )


def parse_list(data: bytes) -> RevocationList:
    """A list in DER.

    Raises:
        InputError: it is none, has no time of its next update, or is of a kind that says less than it seems to.
    """
    if len(data) > MAX_BYTES:
        raise _fault(f"{len(data)} bytes")
    outer = der.elements(der.whole(data, der.SEQUENCE).body)
    if len(outer) != 3:
        raise _fault("not three parts")
    scheme, hash_name, salt = x509.algorithm_of(der.expect(outer[1], der.SEQUENCE))
    fields = der.elements(der.expect(outer[0], der.SEQUENCE).body)
    if len(fields) < 5 or der.integer(der.expect(fields[0], der.INTEGER).body) != 1:
        raise _fault("not version 2, or fields are missing")
    _, algorithm, issuer, this_update, next_update, *rest = fields
    if algorithm.whole != outer[1].whole:
        raise _fault("two signature algorithms")
    extensions = x509.extensions_of(rest, 0xA0)
    unknown = {name for name, (critical, _) in extensions.items() if critical and name not in _UNDERSTOOD}
    if unknown:
        raise _fault(f"a list that is not whole (extension {', '.join(sorted(unknown))})")
    return RevocationList(
        encoded=data,
        signed=outer[0].whole,
        scheme=scheme,
        hash_name=hash_name,
        salt_bytes=salt,
        signature=x509.bits_of(outer[2]),
        issuer=der.expect(issuer, der.SEQUENCE).whole,
        issuer_name=x509.common_name(issuer),
        this_update=x509.time_of(this_update),
        next_update=x509.time_of(next_update),
        revoked=_revoked(rest[0].body) if rest and rest[0].tag == der.SEQUENCE else frozenset(),
        scope=_scope(extensions.get(_SCOPE, (False, b""))[1]),
    )


def _scope(value: bytes) -> bytes:
    """The distribution point of an issuingDistributionPoint that says nothing else: no kinds, no reasons."""
    if not value:
        return b""
    parts = der.elements(der.whole(value, der.SEQUENCE).body)
    if len(parts) != 1 or parts[0].tag != 0xA0:
        raise _fault("a list about some certificates only")
    return parts[0].whole


def _revoked(body: bytes) -> frozenset[int]:
    serials: set[int] = set()
    for entry in der.elements(body):
        parts = der.elements(der.expect(entry, der.SEQUENCE).body)
        if len(parts) not in (2, 3) or len(serials) >= MAX_REVOKED:
            raise _fault("an entry, or too many of them")
        extensions = x509.extensions_of([_wrapped(parts[2])], 0xA0) if len(parts) == 3 else {}
        if any(critical and name not in _ENTRY_UNDERSTOOD for name, (critical, _) in extensions.items()):
            raise _fault("an entry of another authority's certificate")
        serials.add(int.from_bytes(der.expect(parts[0], der.INTEGER).body, "big"))
    return frozenset(serials)


def _wrapped(extensions: der.Element) -> der.Element:
    """Extensions of an entry have no tag of their own around them."""
    return der.Element(0xA0, der.expect(extensions, der.SEQUENCE).whole, b"")


def _fault(what: str) -> InputError:
    return InputError("not a revocation list", got=what, expected="a whole list (version 2) in DER or PEM")
