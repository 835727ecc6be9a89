"""Endorsement keys of TPMs, bytes to fields: what their certificates say (TCG EK Credential Profile for TPM 2.0), and
their public areas (TPM library specification part 2, TPMT_PUBLIC)."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from casemate.errors import InputError
from casemate.evidence import der, tpm
from casemate.evidence.octets import Octets
from casemate.evidence.x509 import Certificate

_BASIC_CONSTRAINTS: Final = "2.5.29.19"
_ALTERNATIVE_NAME: Final = "2.5.29.17"
_EXTENDED_USAGE: Final = "2.5.29.37"
_DIRECTORY_NAME: Final = 0xA4
_TPM_NAMES: Final = {"2.23.133.2.1": "manufacturer", "2.23.133.2.2": "model", "2.23.133.2.3": "version"}
_MAX_NAME_BYTES: Final = 256
_NULL: Final = 0x0010
_AES: Final = 0x0006
_CFB: Final = 0x0043


class Endorsement(msgspec.Struct, frozen=True):
    """What a certificate says of a TPM. ``names``: ``manufacturer``, ``model``, ``version``, as far as it has them;
    ``are_names_critical``: whether its extension with them is. ``purposes``: object identifiers of its extended key
    usage. ``claims_authority``: whether basic constraints call it an authority, or cannot be read."""

    names: dict[str, str]
    are_names_critical: bool
    has_subject: bool
    purposes: tuple[str, ...]
    claims_authority: bool


class StorageKey(msgspec.Struct, frozen=True):
    """A key that protects others: an endorsement key. ``key``: SubjectPublicKeyInfo. ``attributes``: TPMA_OBJECT.
    ``hash_name``: its name algorithm. ``key_bits``: of AES in CFB, with which it protects."""

    key: bytes
    attributes: int
    hash_name: str
    key_bits: int


class AttestationKey(msgspec.Struct, frozen=True):
    """``key``: SubjectPublicKeyInfo. ``name``: what TPMs call it: name algorithm and digest of its public area."""

    key: bytes
    attributes: int
    name_hash: str
    name: bytes


def read_endorsement(certificate: Certificate) -> Endorsement:
    """What a certificate says of the TPM that its key is in.

    Raises:
        InputError: an extension that cannot be read, or says something twice.
    """
    critical, value = certificate.extensions.get(_ALTERNATIVE_NAME, (False, b""))
    _, purposes = certificate.extensions.get(_EXTENDED_USAGE, (False, b""))
    found = der.elements(der.whole(purposes, der.SEQUENCE).body) if purposes else []
    return Endorsement(
        names=_tpm_names(value) if value else {},
        are_names_critical=critical,
        has_subject=bool(der.whole(certificate.subject, der.SEQUENCE).body),
        purposes=tuple(der.oid_text(der.expect(item, der.OID).body) for item in found),
        claims_authority=_claims_authority(certificate),
    )


def _claims_authority(certificate: Certificate) -> bool:
    _, value = certificate.extensions.get(_BASIC_CONSTRAINTS, (False, b""))
    parts = der.elements(der.whole(value, der.SEQUENCE).body) if value else []
    return any(part.tag != der.BOOLEAN or part.body != b"\0" for part in parts)


def _tpm_names(value: bytes) -> dict[str, str]:
    """Attributes of TPMs in the directory names of a GeneralNames, in one relative name or in several."""
    names: dict[str, str] = {}
    for general in der.elements(der.whole(value, der.SEQUENCE).body):
        if general.tag != _DIRECTORY_NAME:
            continue
        for relative in der.elements(der.whole(general.body, der.SEQUENCE).body):
            for pair in der.elements(der.expect(relative, der.SET).body):
                parts = der.elements(der.expect(pair, der.SEQUENCE).body)
                if len(parts) != 2 or len(parts[1].body) > _MAX_NAME_BYTES:
                    raise InputError("endorsement certificate: a name of no known form")
                name = _TPM_NAMES.get(der.oid_text(der.expect(parts[0], der.OID).body))
                if name in names:
                    raise InputError(f"endorsement certificate: two names of the TPM's {name}")
                if name is not None:
                    names[name] = parts[1].body.decode("utf-8", "backslashreplace")
    return names


def parse_storage_key(data: bytes) -> StorageKey:
    """The public area (TPMT_PUBLIC or TPM2B_PUBLIC) of an endorsement key (RSA, or ECC on a NIST curve).

    Raises:
        InputError: it is another key's, or cut off.
    """
    area = area_of(data)
    octets = Octets(area, "TPM endorsement key", "big")
    head = octets.take(8, "type, name algorithm and attributes")
    octets.sized(2, "policy", 64)
    protection = tuple(octets.number(2, part) for part in ("symmetric algorithm", "key bits", "mode"))
    name_hash = tpm.HASHES.get(int.from_bytes(head[2:4], "big"), "")
    if protection not in ((_AES, 128, _CFB), (_AES, 256, _CFB)) or name_hash not in ("sha256", "sha384", "sha512"):
        raise InputError(
            "not a TPM's endorsement key",
            got=f"name algorithm {head[2:4].hex()}, symmetric {protection[0]:#06x} of {protection[1]} bits",
            expected="SHA-256 or longer, AES in CFB: templates of the EK credential profile",
        )
    # What follows is laid out as in an attestation key, which protects nothing.
    rest = octets.take(octets.left, "parameters")
    found = tpm.parse_public_area(head + bytes(2) + _NULL.to_bytes(2, "big") + rest)
    return StorageKey(found.key, int.from_bytes(head[4:], "big"), name_hash, protection[1])


def parse_attestation_key(data: bytes) -> AttestationKey:
    """An attestation key's public area (TPMT_PUBLIC or TPM2B_PUBLIC), and its name.

    Raises:
        InputError: a bare key, which has no name; no key of this kind; cut off.
    """
    if not data.startswith((b"\x00\x01", b"\x00\x23")) and not tpm.looks_like_public_area(data):
        raise InputError(
            "not a TPM's public area",
            got=f"{len(data)} bytes beginning {data[:8].hex()}",
            expected="what `tpm2_createak -u` writes: a bare key (PEM) has no name that a TPM would know",
        )
    area = area_of(data)
    found = tpm.parse_public_area(area)
    name_hash = tpm.HASHES[int.from_bytes(area[2:4], "big")]
    name = area[2:4] + hashlib.new(name_hash, area).digest()
    return AttestationKey(found.key, int.from_bytes(area[4:8], "big"), name_hash, name)


def area_of(data: bytes) -> bytes:
    """TPMT_PUBLIC out of it or of a TPM2B_PUBLIC.

    Raises:
        InputError: too long.
    """
    if len(data) > tpm.MAX_BYTES:
        raise InputError("not a TPM's public area", got=f"{len(data)} bytes", expected=f"at most {tpm.MAX_BYTES}")
    return data[2:] if len(data) > 2 and int.from_bytes(data[:2], "big") == len(data) - 2 else data
