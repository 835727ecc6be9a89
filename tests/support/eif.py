"""Small Nitro enclave images, built by the specification (aws-nitro-enclaves-image-format)."""

from __future__ import annotations

import datetime
import hashlib
import struct
import zlib
from collections.abc import Sequence

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

KERNEL, CMDLINE, RAMDISK, SIGNATURE, METADATA = 1, 2, 3, 4, 5


def register(*contents: bytes) -> bytes:
    """A register after one extension, as AWS publishes the algorithm."""
    return hashlib.sha384(bytes(48) + hashlib.sha384(b"".join(contents)).digest()).digest()


def build(sections: Sequence[tuple[int, bytes]], *, version: int = 4) -> bytes:
    """An image with these sections, in this order."""
    at, offsets, body = 548, [], b""
    for kind, contents in sections:
        offsets.append(at + len(body))
        body += struct.pack(">HHQ", kind, 0, len(contents)) + contents
    sizes = [len(contents) for _, contents in sections]
    head = b".eif" + struct.pack(">HHQQHH", version, 0, 1 << 30, 2, 0, len(sections))
    for numbers in (offsets, sizes):
        head += struct.pack(">32Q", *numbers, *([0] * (32 - len(numbers))))
    head += bytes(4)
    return head + struct.pack(">I", zlib.crc32(body, zlib.crc32(head))) + body


def example(
    *, kernel: bytes = b"kernel", cmdline: bytes = b"quiet", ramdisks: Sequence[bytes] = (b"boot", b"app")
) -> bytes:
    """An unsigned image as nitro-cli orders it."""
    metadata = (METADATA, b'{"ImageName":"test"}')
    return build([(KERNEL, kernel), (CMDLINE, cmdline), metadata, *((RAMDISK, item) for item in ramdisks)])


class Signer:
    """A key that signs images, as nitro-cli does with --signing-certificate."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP384R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test enclave signer")])
        begin = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        self._certificate = (
            x509.CertificateBuilder(name, name, self._key.public_key(), 7)
            .not_valid_before(begin)
            .not_valid_after(begin.replace(year=2045))
            .sign(self._key, hashes.SHA384())
        )
        self.der = self._certificate.public_bytes(serialization.Encoding.DER)

    def section(self, register0: bytes, *, as_numbers: bool = True) -> bytes:
        """The contents of a signature section over register 0; numbers: bytes as lists, as serde writes them."""
        payload = cbor2.dumps({"register_index": 0, "register_value": list(register0)})
        protected = cbor2.dumps({1: -35})
        made = self._key.sign(cbor2.dumps(["Signature1", protected, b"", payload]), ec.ECDSA(hashes.SHA384()))
        r, s = decode_dss_signature(made)
        cose = cbor2.dumps([protected, {}, payload, r.to_bytes(48, "big") + s.to_bytes(48, "big")])
        pem = self._certificate.public_bytes(serialization.Encoding.PEM)
        form = list if as_numbers else bytes
        return cbor2.dumps([{"signing_certificate": form(pem), "signature": form(cose)}])
