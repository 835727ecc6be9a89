"""Files that come along with evidence: certificates, revocation lists and public keys, told by their content."""

from __future__ import annotations

from typing import Final

import msgspec

from casemate.errors import InputError
from casemate.evidence import crl, der, tpm, x509

_LABELS: Final = {"CERTIFICATE": "certificate", "X509 CRL": "list", "PUBLIC KEY": "key"}


class Companions(msgspec.Struct, frozen=True):
    """``keys``: SubjectPublicKeyInfo in DER, or a TPM's public area; `tpm.parse_key` reads both."""

    certificates: tuple[x509.Certificate, ...]
    lists: tuple[crl.RevocationList, ...]
    keys: tuple[bytes, ...]


def parse_companions(data: bytes, name: str) -> Companions:
    """What is in a file: PEM with any number of each, or one of them in DER.

    Raises:
        InputError: nothing of them is in it, or one cannot be read.
    """
    if b"-----BEGIN " in data:
        blocks = [(_LABELS.get(label, ""), block) for label, block in x509.pem_blocks(data)]
    else:
        blocks = [(_kind_of(data), data)]
    certificates, lists, keys = [], [], []
    for kind, block in blocks:
        if kind == "certificate":
            certificates.append(x509.parse(block))
        elif kind == "list":
            lists.append(crl.parse_list(block))
        elif kind == "key":
            keys.append(block)
    if not (certificates or lists or keys):
        raise InputError(
            f"{name} has nothing that comes along with evidence",
            got=f"{len(data)} bytes beginning {data[:8].hex()}",
            expected="certificates, revocation lists or public keys, PEM or DER",
        )
    return Companions(tuple(certificates), tuple(lists), tuple(keys))


def _kind_of(data: bytes) -> str:
    """By their outlines in DER: a key is two parts; only a list has times in fourth and fifth place."""
    if tpm.looks_like_public_area(data):
        return "key"
    try:
        parts = der.elements(der.whole(data, der.SEQUENCE).body)
        if len(parts) == 2 and parts[1].tag == der.BIT_STRING:
            return "key"
        fields = der.elements(parts[0].body) if parts and parts[0].tag == der.SEQUENCE else []
    except InputError:
        return ""
    is_list = len(fields) > 4 and all(item.tag in (der.UTC_TIME, der.GENERALIZED_TIME) for item in fields[3:5])
    return "list" if is_list else "certificate"
