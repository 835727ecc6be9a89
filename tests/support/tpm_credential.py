"""Endorsement keys of a real (software) TPM, certificates for them, and TPM2_ActivateCredential."""

from __future__ import annotations

import struct
from types import SimpleNamespace

from cryptography import x509 as pyca
from cryptography.hazmat.primitives.serialization import load_der_public_key
from tests.support.evidence_makers import Authority
from tests.support.tpm_client import ENDORSEMENT, NULL, PASSWORD, RSA, SHA256, Tpm

from casemate.engine.tpm_commands import EK_TEMPLATE

SHA384, ECC, ECDSA = 0x000C, 0x0023, 0x0018
EK_ATTRIBUTES = 0x000300B2
"""fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt."""
AK_ATTRIBUTES = 0x00050072
_POLICY = EK_TEMPLATE[10:42]
_SAN, _EKU = "2.5.29.17", "2.5.29.37"
EK_PURPOSE, AK_PURPOSE = "2.23.133.8.1", "2.23.133.8.3"
TPM_NAMES = {"2.23.133.2.1": "id:49424D00", "2.23.133.2.2": "swtpm", "2.23.133.2.3": "id:20191023"}


def ek_template(kind: str) -> bytes:
    """TPMT_PUBLIC by template: L-1 and L-2 as they are, H-3 and H-6 but for their policy, which is a password here."""
    rsa = struct.pack(">HI", 2048 if kind == "L-1" else 3072, 0)
    ecc = struct.pack(">HH", 3 if kind == "L-2" else 4, NULL)
    sizes = {"L-1": (256,), "L-2": (32, 32), "H-3": (48, 48), "H-6": (384,)}[kind]
    is_low = kind.startswith("L")
    attributes, policy = (EK_ATTRIBUTES, _POLICY) if is_low else (EK_ATTRIBUTES ^ 0xC0, b"")
    return b"".join(
        (
            struct.pack(">HHI", RSA if len(sizes) == 1 else ECC, SHA256 if is_low else SHA384, attributes),
            struct.pack(">H", len(policy)) + policy,
            struct.pack(">HHHH", 0x0006, 128 if is_low else 256, 0x0043, NULL),
            rsa if len(sizes) == 1 else ecc,
            *(struct.pack(">H", size) + bytes(size) for size in sizes),
        )
    )


def ak_template(*, is_ecc: bool = False, attributes: int = AK_ATTRIBUTES) -> bytes:
    """TPMT_PUBLIC of an attestation key: RSASSA or ECDSA on P-256, SHA-256."""
    head = struct.pack(">HHIHH", ECC if is_ecc else RSA, SHA256, attributes, 0, NULL)
    if is_ecc:
        return head + struct.pack(">HHHHHH", ECDSA, SHA256, 3, NULL, 0, 0)
    return head + struct.pack(">HHHIH", 0x0014, SHA256, 2048, 0, 0)


def create_primary(tpm: Tpm, template: bytes) -> tuple[int, bytes]:
    """(handle, TPM2B_PUBLIC) of a primary key of the endorsement hierarchy."""
    parameters = struct.pack(">HHHH", 4, 0, 0, len(template)) + template + struct.pack(">HI", 0, 0)
    rest = tpm.command(0x131, struct.pack(">I", ENDORSEMENT), parameters, auth=True)
    return int.from_bytes(rest[:4], "big"), rest[8 : 10 + int.from_bytes(rest[8:10], "big")]


def name_of(tpm: Tpm, handle: int) -> bytes:
    """The name that the TPM has for a key."""
    rest = tpm.command(0x173, struct.pack(">I", handle), b"")
    at = 2 + int.from_bytes(rest[:2], "big")
    return rest[at + 2 : at + 2 + int.from_bytes(rest[at : at + 2], "big")]


def activate(tpm: Tpm, ak: int, ek: int, blob: bytes, *, has_policy: bool = True) -> bytes:
    """TPM2_ActivateCredential of a file for tpm2_activatecredential: the secret, or TpmError."""
    assert blob[:8] == bytes.fromhex("badcc0de00000001")
    password = struct.pack(">IHBH", PASSWORD, 0, 0, 0)
    if not has_policy:
        return _activate(tpm, ak, ek, blob, password * 2)
    parameters = struct.pack(">H", 16) + bytes(16) + struct.pack(">HBHH", 0, 1, NULL, SHA256)
    rest = tpm.command(0x176, struct.pack(">II", 0x40000007, 0x40000007), parameters)  # StartAuthSession
    session = int.from_bytes(rest[:4], "big")
    tpm.command(0x151, struct.pack(">II", ENDORSEMENT, session), struct.pack(">HHHI", 0, 0, 0, 0), auth=True)
    try:
        return _activate(tpm, ak, ek, blob, password + struct.pack(">IHBH", session, 0, 1, 0))
    finally:
        tpm.command(0x165, b"", struct.pack(">I", session))


def _activate(tpm: Tpm, ak: int, ek: int, blob: bytes, auths: bytes) -> bytes:
    body = struct.pack(">II", ak, ek) + struct.pack(">I", len(auths)) + auths + blob[8:]
    rest = tpm.command(0x147, body, b"", has_auths=True)
    return rest[6 : 6 + int.from_bytes(rest[4:6], "big")]


def ek_certificate(
    key: bytes,
    issuer: Authority,
    *,
    purpose: str = EK_PURPOSE,
    usage: str = "",
    names: dict[str, str] = TPM_NAMES,
    is_authority: bool = False,
    list_url: str = "",
) -> Authority:
    """A certificate for an endorsement key (SubjectPublicKeyInfo), as a maker issues it."""
    public = load_der_public_key(key)
    pairs = [
        pyca.RelativeDistinguishedName([pyca.NameAttribute(pyca.ObjectIdentifier(k), v)]) for k, v in names.items()
    ]
    alternative = pyca.SubjectAlternativeName([pyca.DirectoryName(pyca.Name(pairs))])
    extended = pyca.ExtendedKeyUsage([pyca.ObjectIdentifier(purpose)])
    return Authority(
        "an endorsement key",
        issuer,
        is_authority=is_authority,
        usage=usage or ("key_encipherment" if hasattr(public, "encrypt") else "key_agreement"),
        extensions=((_SAN, alternative.public_bytes()), (_EKU, extended.public_bytes())),
        list_url=list_url,
        key=SimpleNamespace(public_key=lambda: public),
    )
