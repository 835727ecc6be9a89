"""Evidence of makers that do not exist: chips, TPMs and hypervisors whose roots are ours, for what no real file shows.

A test that uses them has to pin our roots in the place of the makers' (monkeypatch), which nothing but a test can.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import math
import secrets
import struct
from typing import Any

import cbor2
from cryptography import x509 as pyca
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from casemate.evidence.crl import RevocationList, parse_list
from casemate.evidence.x509 import Certificate, parse

BEGIN = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
END = datetime.datetime(2040, 1, 1, tzinfo=datetime.UTC)
AMD = "1.3.6.1.4.1.3704.1."
CHIP = bytes(range(64))
TCB = {"bootloader": 4, "tee": 1, "snp": 22, "microcode": 213}


class Authority:
    """A key with a certificate, which issues others. ``extensions``: more of its own, (identifier, raw value)."""

    def __init__(
        self,
        name: str,
        issuer: Authority | None = None,
        *,
        is_authority: bool = True,
        path_length: int | None = None,
        extensions: tuple[tuple[str, bytes], ...] = (),
        critical: tuple[str, ...] = (),
        usage: str = "",
        list_url: str = "",
        key: Any = None,
        begin: datetime.datetime = BEGIN,
        end: datetime.datetime = END,
    ) -> None:
        self.key = key or ec.generate_private_key(ec.SECP384R1())
        self.subject = pyca.Name([pyca.NameAttribute(NameOID.COMMON_NAME, name)])
        above = issuer or self
        builder = (
            pyca.CertificateBuilder()
            .subject_name(self.subject)
            .issuer_name(above.subject)
            .public_key(self.key.public_key())
            .serial_number(pyca.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(pyca.BasicConstraints(ca=is_authority, path_length=path_length), critical=True)
        )
        names = set(
            filter(None, (usage or ("key_cert_sign crl_sign" if is_authority else "digital_signature")).split())
        )
        builder = builder.add_extension(_usage(names), critical=True)
        if list_url:
            point = pyca.DistributionPoint([pyca.UniformResourceIdentifier(list_url)], None, None, None)
            builder = builder.add_extension(pyca.CRLDistributionPoints([point]), critical=False)
        for oid, value in extensions:
            unknown = pyca.UnrecognizedExtension(pyca.ObjectIdentifier(oid), value)
            builder = builder.add_extension(unknown, critical=oid in critical)
        self.pyca = builder.sign(above.key, _hash_of(above.key))
        self.der = self.pyca.public_bytes(serialization.Encoding.DER)

    @property
    def certificate(self) -> Certificate:
        """As the verifier reads it."""
        return parse(self.der)

    @property
    def digest(self) -> str:
        """By which it is pinned."""
        return hashlib.sha256(self.der).hexdigest()

    def revokes(
        self,
        *revoked: Authority,
        begin: datetime.datetime = BEGIN,
        end: datetime.datetime = END,
        key: Any = None,
        extension: pyca.ExtensionType | None = None,
        is_numbered: bool = False,
    ) -> bytes:
        """A revocation list of its, DER."""
        builder = pyca.CertificateRevocationListBuilder().issuer_name(self.subject).last_update(begin).next_update(end)
        for item in revoked:
            entry = pyca.RevokedCertificateBuilder().serial_number(item.pyca.serial_number).revocation_date(begin)
            builder = builder.add_revoked_certificate(
                entry.add_extension(pyca.CRLReason(pyca.ReasonFlags.key_compromise), critical=False).build()
            )
        if extension is not None:
            builder = builder.add_extension(extension, critical=True)
        if is_numbered:
            name = pyca.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
            builder = builder.add_extension(pyca.CRLNumber(1), critical=False).add_extension(name, critical=False)
        return builder.sign(key or self.key, _hash_of(key or self.key)).public_bytes(serialization.Encoding.DER)

    def list_of(self, *revoked: Authority, **more: Any) -> RevocationList:
        """As the verifier reads it."""
        return parse_list(self.revokes(*revoked, **more))


def _hash_of(key: Any) -> hashes.SHA256 | hashes.SHA384:
    """As long as the key's curve; SHA-384 for any other key."""
    return hashes.SHA256() if getattr(key, "key_size", 0) == 256 else hashes.SHA384()


def pem_of(*items: Authority) -> str:
    """Their certificates in PEM."""
    text = "-----BEGIN CERTIFICATE-----\n{}-----END CERTIFICATE-----\n"
    return "".join(text.format(base64.encodebytes(item.der).decode()) for item in items)


def _usage(names: set[str]) -> pyca.KeyUsage:
    fields = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign crl_sign"
    )
    return pyca.KeyUsage(**{name: name in names for name in fields.split()}, encipher_only=False, decipher_only=False)


# ---- SEV-SNP ---------------------------------------------------------------------------------------------------------


def integer(value: int) -> bytes:
    """A small INTEGER in DER."""
    return bytes([2, 1, value]) if value < 0x80 else bytes([2, 2, 0, value])


class Chip:
    """A chip with its chain: root, intermediate, VCEK or VLEK."""

    def __init__(
        self,
        product: str = "Milan",
        *,
        kind: str = "VCEK",
        tcb: dict[str, int] | None = None,
        hardware_id: bytes = CHIP,
        intermediate: str = "",
        list_url: str = "https://lists.invalid/amd",
    ) -> None:
        self.root = Authority(f"ARK-{product}")
        middle = intermediate or (f"SEV-{product}" if kind == "VCEK" else f"SEV-VLEK-{product}")
        self.middle = Authority(middle, self.root, path_length=0, list_url=list_url, usage="key_cert_sign")
        oids = {"bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8", "fmc": "3.9"}
        values = tcb if tcb is not None else TCB
        extensions = [(AMD + "2", b"\x16" + bytes([len(product) + 3]) + f"{product}-B1".encode())]
        extensions += [(AMD + oids[name], integer(value)) for name, value in values.items()]
        extensions += [(AMD + "4", hardware_id)] if kind == "VCEK" else [(AMD + "5", b"\x16\x05cloud")]
        self.leaf = Authority(f"SEV-{kind}", self.middle, is_authority=False, extensions=tuple(extensions))
        self.certificates = tuple(item.certificate for item in (self.leaf, self.middle, self.root))

    def sign(self, report: bytes) -> bytes:
        """The report with this chip's signature."""
        r, s = decode_dss_signature(self.leaf.key.sign(report[:0x2A0], ec.ECDSA(hashes.SHA384())))
        return report[:0x2A0] + r.to_bytes(72, "little") + s.to_bytes(72, "little") + report[0x330:]


def snp_report(
    *,
    version: int = 3,
    cpuid: tuple[int, int, int] = (0x19, 0x01, 1),
    tcb: dict[str, int] | None = None,
    policy: int = 0x30000,
    flags: int = 0,
    chip: bytes = CHIP,
    platform: int = 0x21,
    mitigations: tuple[int, int] = (0, 0),
    fields: tuple[tuple[int, bytes], ...] = (),
) -> bytes:
    """A report that nobody signed yet."""
    data = bytearray(1184)
    values = tcb if tcb is not None else TCB
    packed = (
        bytes([values["fmc"], values["bootloader"], values["tee"], values["snp"], 0, 0, 0, values["microcode"]])
        if "fmc" in values
        else bytes([values["bootloader"], values["tee"], 0, 0, 0, 0, values["snp"], values["microcode"]])
    )
    struct.pack_into("<IIQ", data, 0, version, 0, policy)
    struct.pack_into("<II", data, 0x30, 0, 1)
    struct.pack_into("<QI", data, 0x40, platform, flags)
    for offset in (0x38, 0x180, 0x1E0, 0x1F0):
        data[offset : offset + 8] = packed
    if version >= 3:
        data[0x188:0x18B] = bytes(cpuid)
    data[0x1A0:0x1E0] = chip
    if version >= 5:
        struct.pack_into("<QQ", data, 0x1F8, *mitigations)
    for offset, value in fields:
        data[offset : offset + len(value)] = value
    return bytes(data)


# ---- TPM -------------------------------------------------------------------------------------------------------------

_HASH_IDS = {"sha1": 4, "sha256": 11, "sha384": 12, "sha512": 13}
_LOG_IDS = {**_HASH_IDS, "sha3_256": 0x27}
_HASHES: dict[str, hashes.HashAlgorithm] = {
    "sha1": hashes.SHA1(),
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
ATTESTING = 0x50072
"""fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, restricted, sign."""


def weak_rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """A key as Infineon's weak generator made them (ROCA): primes k * M + (65537^a mod M)."""
    product = math.prod(n for n in range(2, 702) if all(n % d for d in range(2, n)))
    least, most = (3 << bits // 2 - 2) // product + 1, (1 << bits // 2) // product
    found: set[int] = set()
    while len(found) < 2:
        factor = (least + secrets.randbelow(most - least)) * product + pow(65537, secrets.randbits(256), product)
        if pow(2, factor - 1, factor) == 1:
            found.add(factor)
    p, q = sorted(found, reverse=True)
    d = rsa.rsa_recover_private_exponent(65537, p, q)
    public = rsa.RSAPublicNumbers(65537, p * q)
    more = rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q)
    return rsa.RSAPrivateNumbers(p, q, d, *more, public).private_key()


class Tpm:
    """A TPM's attestation key. ``scheme``: rsa, rsa-pss, ecdsa."""

    def __init__(
        self, scheme: str = "rsa", hash_name: str = "sha256", attributes: int = ATTESTING, key: Any = None
    ) -> None:
        self.scheme, self.hash_name, self.attributes = scheme, hash_name, attributes
        self.key: Any = key or (
            ec.generate_private_key(ec.SECP256R1())
            if scheme == "ecdsa"
            else rsa.generate_private_key(public_exponent=65537, key_size=2048)
        )

    def public_area(self) -> bytes:
        """TPM2B_PUBLIC."""
        head = struct.pack(">HIH", 11, self.attributes, 0) + struct.pack(">H", 0x10)
        if self.scheme == "ecdsa":
            point = self.key.public_key().public_numbers()
            body = struct.pack(">HHHH", 0x18, _HASH_IDS[self.hash_name], 3, 0x10)
            body += b"".join(struct.pack(">H", 32) + value.to_bytes(32, "big") for value in (point.x, point.y))
            area = struct.pack(">H", 0x23) + head + body
        else:
            numbers = self.key.public_key().public_numbers()
            identifier = 0x14 if self.scheme == "rsa" else 0x16
            body = struct.pack(">HHHI", identifier, _HASH_IDS[self.hash_name], 2048, 0)
            area = struct.pack(">H", 1) + head + body + struct.pack(">H", 256) + numbers.n.to_bytes(256, "big")
        return struct.pack(">H", len(area)) + area

    def spki(self) -> bytes:
        """SubjectPublicKeyInfo."""
        encoded: bytes = self.key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return encoded

    def quote(self, pcrs: dict[str, dict[int, bytes]], nonce: bytes) -> bytes:
        """TPMS_ATTEST over these values."""
        selection, values = b"", b""
        for bank, numbers in pcrs.items():
            bits = sum(1 << number for number in numbers).to_bytes(3, "little")
            selection += struct.pack(">HB", _HASH_IDS[bank], 3) + bits
            values += b"".join(numbers[number] for number in sorted(numbers))
        digest = hashlib.new(self.hash_name, values).digest()
        return (
            bytes.fromhex("ff5443478018")
            + struct.pack(">H", 4)
            + b"name"
            + struct.pack(">H", len(nonce))
            + nonce
            + struct.pack(">QIIBQ", 1000, 7, 2, 1, 1)
            + struct.pack(">I", len(pcrs))
            + selection
            + struct.pack(">H", len(digest))
            + digest
        )

    def sign(self, message: bytes) -> bytes:
        """TPMT_SIGNATURE."""
        algorithm = _HASHES[self.hash_name]
        if self.scheme == "ecdsa":
            r, s = decode_dss_signature(self.key.sign(message, ec.ECDSA(algorithm)))
            parts = b"".join(struct.pack(">H", 32) + value.to_bytes(32, "big") for value in (r, s))
            return struct.pack(">HH", 0x18, _HASH_IDS[self.hash_name]) + parts
        pss = padding.PSS(padding.MGF1(algorithm), algorithm.digest_size)
        scheme = padding.PKCS1v15() if self.scheme == "rsa" else pss
        value: bytes = self.key.sign(message, scheme, algorithm)
        identifier = 0x14 if self.scheme == "rsa" else 0x16
        return struct.pack(">HHH", identifier, _HASH_IDS[self.hash_name], len(value)) + value


def secure_boot_event(value: int) -> tuple[int, int, bytes]:
    """The measurement of the variable ``SecureBoot``, as firmware makes it."""
    name = "SecureBoot".encode("utf-16-le")
    vendor = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
    return 7, 0x80000001, vendor + struct.pack("<QQ", len(name) // 2, 1) + name + bytes([value])


SEPARATOR = (7, 4, bytes(4))


def event_log(events: list[tuple[int, int, bytes]], banks: tuple[str, ...] = ("sha256",)) -> bytes:
    """A crypto-agile log: events as (register, type, data), of which the data are measured."""
    spec = b"Spec ID Event03\0" + struct.pack("<IBBBB", 0, 0, 2, 0, 2) + struct.pack("<I", len(banks))
    sizes = {bank: hashlib.new(bank).digest_size for bank in banks}
    spec += b"".join(struct.pack("<HH", _LOG_IDS[bank], sizes[bank]) for bank in banks) + b"\0"
    parts = [struct.pack("<II20sI", 0, 3, bytes(20), len(spec)) + spec]
    for register, kind, data in events:
        parts.append(struct.pack("<III", register, kind, len(banks)))
        parts += [struct.pack("<H", _LOG_IDS[bank]) + hashlib.new(bank, data).digest() for bank in banks]
        parts.append(struct.pack("<I", len(data)) + data)
    return b"".join(parts)


# ---- Nitro -----------------------------------------------------------------------------------------------------------


class Hypervisor:
    """What signs Nitro documents."""

    def __init__(self) -> None:
        self.root = Authority("aws.nitro-enclaves")
        self.middle = Authority("zonal", self.root, path_length=0, list_url="http://lists.invalid/aws")
        self.leaf = Authority("i-1", self.middle, is_authority=False)

    def document(self, moment: datetime.datetime, **fields: Any) -> bytes:
        """A document with these fields in place of the usual ones; None leaves one out."""
        payload = {
            "module_id": "i-1-tpm0",
            "digest": "SHA384",
            "timestamp": int(moment.timestamp() * 1000),
            "pcrs": {0: b"\1" * 48, 4: b"\4" * 48},
            "certificate": self.leaf.der,
            "cabundle": [self.root.der, self.middle.der],
            "public_key": None,
            "user_data": None,
            "nonce": b"nonce",
            **fields,
        }
        body = cbor2.dumps({name: value for name, value in payload.items() if name != "pcrs" or value is not None})
        protected = cbor2.dumps({1: -35})
        signed = cbor2.dumps(["Signature1", protected, b"", body])
        r, s = decode_dss_signature(self.leaf.key.sign(signed, ec.ECDSA(hashes.SHA384())))
        whole: bytes = cbor2.dumps([protected, {}, body, r.to_bytes(48, "big") + s.to_bytes(48, "big")])
        return whole
