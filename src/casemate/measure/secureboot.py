"""Secure Boot as PCR 7 sees it: the variables that decide, and the entry of db that vouches for an image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from casemate.errors import InputError
from casemate.evidence import der
from casemate.evidence.x509 import Certificate, parse
from casemate.measure.pe import Pe
from casemate.measure.registers import SEPARATOR, Steps
from casemate.measure.siglists import SHA256, X509, signature_entries
from casemate.measure.variables import ENABLE, GLOBAL, SECURITY, Variables, variable_event

_CONTEXT_0: Final = 0xA0


class Authority(msgspec.Struct, frozen=True):
    """An entry of a signature database. ``data``: certificate in DER, or SHA-256."""

    owner: bytes
    data: bytes
    is_certificate: bool

    @property
    def measured(self) -> bytes:
        """EFI_SIGNATURE_DATA."""
        return self.owner + self.data


def is_enforcing(variables: Variables, *, capable: bool) -> bool:
    """Whether the firmware will enforce Secure Boot with this store.

    Args:
        capable: whether the firmware was built with Secure Boot.
    """
    enabled = variables.get(ENABLE, b"\x01")
    return capable and bool(variables.get((GLOBAL, "PK"))) and enabled == b"\x01"


def measure_variables(steps: Steps, variables: Variables, *, capable: bool) -> None:
    """What goes into PCR 7 before anything is loaded. Firmware without Secure Boot has no variable of that name."""
    state = bytes([is_enforcing(variables, capable=capable)]) if capable else b""
    steps.data(7, "variable SecureBoot", variable_event(GLOBAL, "SecureBoot", state))
    for vendor, name in ((GLOBAL, "PK"), (GLOBAL, "KEK"), (SECURITY, "db"), (SECURITY, "dbx")):
        steps.data(7, f"variable {name}", variable_event(vendor, name, variables.get((vendor, name), b"")))
    for name in ("dbt", "dbr"):
        if (SECURITY, name) in variables:
            steps.data(7, f"variable {name}", variable_event(SECURITY, name, variables[SECURITY, name]))
    steps.data(7, "separator", SEPARATOR)


def signature_lists(data: bytes) -> Iterator[Authority]:
    """The certificates and SHA-256 of a database, in order.

    Raises:
        InputError: it contradicts itself.
    """
    for entry in signature_entries(data):
        if entry.kind in (X509, SHA256):
            yield Authority(entry.owner, entry.data, entry.kind == X509)


def vouches(image: Pe, database: bytes) -> Authority | None:
    """The first entry of a database that vouches for an image: a certificate among those of its signature, one that
    signed one of those, or the image's digest. None: none does.

    What the firmware decides is decided by the firmware: the signature over the image is not verified here.
    """
    entries = list(signature_lists(database))
    for signature in image.signatures:
        chain = _certificates(signature)
        for entry in entries:
            if entry.is_certificate and _is_above(entry.data, chain):
                return entry
    digest = image.digest("sha256")
    return next((item for item in entries if not item.is_certificate and item.data == digest), None)


def vouched_by(image: Pe, certificate: bytes) -> bool:
    """Whether a certificate is among those of an image's signatures, or signed one of them."""
    return any(_is_above(certificate, _certificates(signature)) for signature in image.signatures)


def measure_authority(steps: Steps, name: str, entry: Authority) -> None:
    """The event that says which entry vouched."""
    steps.data(7, f"authority in {name}", variable_event(SECURITY, name, entry.measured))


def _certificates(signature: bytes) -> list[Certificate]:
    """The certificates of a PKCS #7 SignedData; those that cannot be read are left out."""
    content = list(der.elements(der.expect(der.read(signature)[0], der.SEQUENCE).body))
    if len(content) != 2 or content[1].tag != _CONTEXT_0:
        raise _fault("a signature that is no SignedData")
    found = []
    for part in der.elements(der.expect(der.read(content[1].body)[0], der.SEQUENCE).body):
        if part.tag != _CONTEXT_0:
            continue
        for item in der.elements(part.body):
            try:
                found.append(parse(item.whole))
            except InputError:
                continue
    return found


def _is_above(encoded: bytes, chain: list[Certificate]) -> bool:
    """Whether a certificate is of a signature's chain, or signed one of it."""
    if any(item.encoded == encoded for item in chain):
        return True
    try:
        above = parse(encoded)
    except InputError:
        return False
    return any(item.signed_by(above) for item in chain)


def _fault(what: str) -> InputError:
    return InputError("a signature of an image", got=what, expected="PKCS #7 SignedData")
