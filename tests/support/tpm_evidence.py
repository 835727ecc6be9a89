"""Evidence of a TPM in go-tpm-tools' container, quoted by an attestation key of the test's own: the register values and
the log are those of a real boot, only the key is not a TPM's.
"""

from __future__ import annotations

import datetime
import hashlib
import struct

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

_SHA256 = 0x000B


class TestKey:
    """An attestation key with a certificate that vouches for it."""

    __test__ = False

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test attestation key")])
        begin = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        self.certificate = (
            x509.CertificateBuilder(name, name, self._key.public_key(), 7)
            .not_valid_before(begin)
            .not_valid_after(begin.replace(year=2045))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
            .public_bytes(serialization.Encoding.DER)
        )

    def evidence(self, pcrs: dict[int, bytes], log: bytes, nonce: bytes) -> bytes:
        """A container with one quote over these registers of the sha256 bank."""
        chosen = sorted(pcrs)
        select = sum(1 << number for number in chosen).to_bytes(3, "little")
        digest = hashlib.sha256(b"".join(pcrs[number] for number in chosen)).digest()
        attest = struct.pack(">IH", 0xFF544347, 0x8018) + _sized(b"") + _sized(nonce)
        attest += struct.pack(">QIIBQ", 1, 1, 1, 1, 1) + struct.pack(">IHB", 1, _SHA256, 3) + select + _sized(digest)
        signature = self._key.sign(attest, padding.PKCS1v15(), hashes.SHA256())
        values = b"".join(_field(2, _number(1, number) + _field(2, pcrs[number])) for number in chosen)
        quote = _field(1, attest) + _field(2, struct.pack(">HH", 0x0014, _SHA256) + _sized(signature))
        quote += _field(3, _number(1, _SHA256) + values)
        return _field(1, self._public()) + _field(2, quote) + _field(3, log) + _field(6, self.certificate)

    def _public(self) -> bytes:
        """TPMT_PUBLIC of a restricted RSA signing key."""
        modulus = self._key.public_key().public_numbers().n.to_bytes(256, "big")
        head = struct.pack(">HHI", 0x0001, _SHA256, 0x00050072) + _sized(b"")
        return head + struct.pack(">HHHHI", 0x0010, 0x0014, _SHA256, 2048, 0) + _sized(modulus)


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def _varint(value: int) -> bytes:
    found = b""
    while value > 0x7F:
        found, value = found + bytes([value & 0x7F | 0x80]), value >> 7
    return found + bytes([value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data
