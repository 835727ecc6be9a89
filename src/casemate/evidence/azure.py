"""Azure's confidential VMs: the HCL report around a SEV-SNP or TDX report, bound to the VM's vTPM; bytes to fields.

    0x000 'HCLA', version, size…     (32)
    0x020 hardware report            (1184; a TDX report fills less of it)
    0x4c0 size, version, type (2 SNP, 4 TDX), hash (1 SHA-256, 2 SHA-384, 3 SHA-512), length of what follows
    0x4d4 runtime data, JSON: among others the attestation key of the vTPM (HCLAkPub)

The hardware report's report data begin with the hash of the runtime data: that is what makes the key believed.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from casemate.errors import InputError
from casemate.evidence.snp import SIZE
from casemate.evidence.textual import base64_of, octets_of

MAGIC: Final = b"HCLA"
_HEADER: Final = 32
_MAX_RUNTIME: Final = 64 << 10
_MAX_SETTINGS: Final = 24
MAX_BYTES: Final = 1 << 20
TYPES: Final = {2: "sev-snp", 4: "tdx"}
HASHES: Final = {1: "sha256", 2: "sha384", 3: "sha512"}


class HclReport(msgspec.Struct, frozen=True):
    """``kind``: of the hardware report. ``runtime``: the JSON, as hashed; ``hash_name``: with what."""

    kind: str
    hardware: bytes
    hash_name: str
    runtime: bytes


class AzureEvidence(msgspec.Struct, frozen=True):
    """One file of evidence, as trustee's tools write it. ``quote``, ``signature``: of the vTPM. ``pcrs``: SHA-256, by
    number. ``certificate``: VCEK, PEM or DER, of a SEV-SNP VM; ``td_quote``: of a TDX VM. ``version``: of the form;
    from 2 on the nonce is in the runtime data too."""

    version: int
    report: HclReport
    quote: bytes
    signature: bytes
    pcrs: dict[int, bytes]
    certificate: bytes
    td_quote: bytes


class Runtime(msgspec.Struct, frozen=True):
    """What the runtime data say beside the key, as far as anybody asks. ``settings``: of the VM's configuration, those
    that are text, numbers and truth values."""

    user_data: bytes
    settings: dict[str, str | int | bool]


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
        modulus, exponent = (int.from_bytes(base64_of(key[name]), "big") for name in ("n", "e"))
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError, RecursionError):
        raise InputError("HCL report: no vTPM key in its runtime data", expected="one RSA key HCLAkPub") from None
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        public = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError as error:
        raise InputError("HCL report: the vTPM's key", got=str(error)[:100]) from None
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def runtime_of(report: HclReport) -> Runtime:
    """The runtime data; empty where they have no such part.

    Raises:
        InputError: they are no JSON object.
    """
    try:
        found = msgspec.json.decode(report.runtime)
        settings = found.get("vm-configuration", {})
        plain = {name: value for name, value in settings.items() if isinstance(value, str | int | bool)}
        return Runtime(bytes.fromhex(found.get("user-data", "")), dict(list(plain.items())[:_MAX_SETTINGS]))
    except (msgspec.MsgspecError, AttributeError, TypeError, ValueError, RecursionError):
        raise InputError("HCL report: its runtime data cannot be read", expected="a JSON object") from None


def looks_like_azure(data: bytes) -> bool:
    """Whether it is JSON that has an HCL report and a quote."""
    head = data[:MAX_BYTES]
    is_one = b'"vcek"' in head or b'"td_quote"' in head
    return head.lstrip()[:1] == b"{" and is_one and (b'"hcl_report"' in head or b'"report"' in head)


def parse_evidence(data: bytes) -> AzureEvidence:
    """The evidence file: trustee's az-snp-vtpm and az-tdx-vtpm, with numbers as lists (their first form) or as text.

    Raises:
        InputError: it is neither.
    """
    try:
        document = msgspec.json.decode(data)
        report = octets_of(document.get("hcl_report", document.get("report")))
        quote = document.get("tpm_quote", document.get("quote"))
        values = [octets_of(value) for value in quote["pcrs"]]
        if len(values) > 24 or any(len(value) != 32 for value in values):
            raise ValueError("pcrs")
        hcl = parse_hcl(report)
        certificate, td_quote = document.get("vcek", ""), document.get("td_quote", "")
        if (hcl.kind == "sev-snp" and not certificate) or (hcl.kind == "tdx" and not td_quote):
            raise ValueError(f"no certificate or quote for {hcl.kind}")
        return AzureEvidence(
            version=int(document.get("version", 0)),
            report=hcl,
            quote=octets_of(quote["message"]),
            signature=octets_of(quote["signature"]),
            pcrs=dict(enumerate(values)),
            certificate=certificate.encode() if "-----" in certificate else base64_of(certificate),
            td_quote=octets_of(td_quote),
        )
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            "not Azure evidence",
            got=f"{type(error).__name__}: {str(error)[:80]}",
            expected="az-snp-vtpm or az-tdx-vtpm as trustee has it",
        ) from None
