"""Azure's confidential VMs: the HCL report around a SEV-SNP or TDX report, bound to the VM's vTPM; bytes to fields.

    0x000 'HCLA', version, size…     (32)
    0x020 hardware report            (1184; a TDX report fills less of it)
    0x4c0 size, version, type (2 SNP, 4 TDX), hash (1 SHA-256, 2 SHA-384, 3 SHA-512), length of what follows
    0x4d4 runtime data, JSON: among others the attestation key of the vTPM (HCLAkPub)

The hardware report's report data begin with the hash of the runtime data: that is what makes the key believed.
"""

from __future__ import annotations

import base64
import binascii
import struct
from typing import Any, Final

import msgspec

from casemate.errors import InputError
from casemate.evidence.snp import SIZE

MAGIC: Final = b"HCLA"
_HEADER: Final = 32
_MAX_RUNTIME: Final = 64 << 10
TYPES: Final = {2: "sev-snp", 4: "tdx"}
HASHES: Final = {1: "sha256", 2: "sha384", 3: "sha512"}


class HclReport(msgspec.Struct, frozen=True):
    """``kind``: of the hardware report. ``runtime``: the JSON, as hashed; ``hash_name``: with what."""

    kind: str
    hardware: bytes
    hash_name: str
    runtime: bytes


class AzureEvidence(msgspec.Struct, frozen=True):
    """One file of evidence, as trustee's tools write it. ``quote``, ``signature``: of the vTPM, empty when absent.
    ``pcrs``: SHA-256, by number. ``certificate``: VCEK, PEM or DER."""

    report: HclReport
    quote: bytes
    signature: bytes
    pcrs: dict[int, bytes]
    certificate: bytes


def parse_hcl(data: bytes) -> HclReport:
    """The parts of an HCL report.

    Raises:
        InputError: it is none, or is cut off.
    """
    runtime_at = _HEADER + SIZE + 20
    if data[:4] != MAGIC or len(data) < runtime_at:
        raise InputError("not an HCL report", got=f"{len(data)} bytes, {data[:4]!r}", expected="HCLA…")
    _, _, kind, hashed, length = struct.unpack_from("<5I", data, _HEADER + SIZE)
    if kind not in TYPES or hashed not in HASHES:
        raise InputError("HCL report of an unknown kind", got=f"type {kind}, hash {hashed}")
    if length > _MAX_RUNTIME or runtime_at + length > len(data):
        raise InputError("HCL report is cut off", got=f"{len(data)} bytes", expected=f"{length} bytes of runtime data")
    return HclReport(
        TYPES[kind], data[_HEADER : _HEADER + SIZE], HASHES[hashed], data[runtime_at : runtime_at + length]
    )


def attestation_key(report: HclReport) -> bytes:
    """SubjectPublicKeyInfo of the vTPM's attestation key (HCLAkPub) in the runtime data.

    Raises:
        InputError: there is none, or not one RSA key.
    """
    try:
        runtime = msgspec.json.decode(report.runtime)
        keys = [key for key in runtime["keys"] if key["kid"] == "HCLAkPub"]
        (key,) = keys
        if key["kty"] != "RSA":
            raise ValueError(key["kty"])
        modulus, exponent = (int.from_bytes(_url64(key[name]), "big") for name in ("n", "e"))
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError, RecursionError):
        raise InputError("HCL report: no vTPM key in its runtime data", expected="one RSA key HCLAkPub") from None
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        public = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError as error:
        raise InputError("HCL report: the vTPM's key", got=str(error)[:100]) from None
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def looks_like_azure(data: bytes) -> bool:
    """Whether it is JSON that has an HCL report and a quote."""
    head = data[: 1 << 20]
    return head.lstrip()[:1] == b"{" and b'"vcek"' in head and (b'"hcl_report"' in head or b'"report"' in head)


def parse_evidence(data: bytes) -> AzureEvidence:
    """The evidence file: trustee's az-snp-vtpm, in its first form (numbers as lists) or version 1 (text).

    Raises:
        InputError: it is neither.
    """
    try:
        document = msgspec.json.decode(data)
        report = _octets(document.get("hcl_report", document.get("report")))
        quote = document.get("tpm_quote", document.get("quote"))
        values = [_octets(value) for value in quote["pcrs"]]
        if len(values) > 24 or any(len(value) != 32 for value in values):
            raise ValueError("pcrs")
        certificate = document["vcek"]
        pem = certificate.encode() if "-----" in certificate else _url64(certificate)
        return AzureEvidence(
            parse_hcl(report), _octets(quote["message"]), _octets(quote["signature"]), dict(enumerate(values)), pem
        )
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            "not Azure evidence",
            got=f"{type(error).__name__}: {str(error)[:80]}",
            expected="az-snp-vtpm as trustee has it",
        ) from None


def _octets(value: Any) -> bytes:
    """A list of numbers, hexadecimal, or base64 (of either alphabet)."""
    if isinstance(value, list):
        return bytes(value)
    if not isinstance(value, str):
        raise ValueError(f"a {type(value).__name__} where octets belong")
    try:
        return bytes.fromhex(value)
    except ValueError:
        return _url64(value)


def _url64(text: str) -> bytes:
    plain = text.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except binascii.Error:
        raise ValueError("no base64") from None
