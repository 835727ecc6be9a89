"""Intel TDX quotes (versions 4 and 5), bytes to fields. Whether one is true, Intel's rules say: `tdx_true.py`.

version 4: header 48, TD report 1.0 at 48          version 5: header 48, type and size, TD report at 54
in the report: TEE_TCB_SVN 16 at 0, MRSEAM 48 at 16, TD_ATTRIBUTES 8 at 120, XFAM 8 at 128, MRTD 48 at 136,
MRCONFIGID, MROWNER, MROWNERCONFIG 48 each at 184, RTMR0 to 3 48 each at 328, REPORTDATA 64 at 520;
in report 1.5 also TEE_TCB_SVN_2 16 at 584, MRSERVICETD 48 at 600
behind it, not signed: size 4, signature 64, attestation key 64, then (type 2, size 4) 6: the quoting enclave's report
384, signature 64, (size 2) data, and (type 2, size 4) the platform's certificates
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from casemate.errors import InputError
from casemate.evidence.octets import Octets

MAX_BYTES: Final = 64 << 10
_TDX: Final = 0x81
_INTEL_QE: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_SIZES: Final = {1: 384, 2: 584, 3: 648}
"""Bodies of version 5 by type: an SGX report, TD reports 1.0 and 1.5."""
_ECDSA_P256: Final = 2
_ENCLAVE_REPORT: Final = 384
_CERTIFIED_BY_ENCLAVE: Final = 6
PCK_CHAIN: Final = 5
ACCEPTABLE_TCB: Final = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
)
"""Intel's statuses of a platform, each worse than the ones before it, but for Revoked, which nobody can accept."""
DEBUG: Final = 1 << 0
PROFILED: Final = 0b111 << 4
SERVICE_EXTENDED: Final = 1 << 17
SEPT_VE_DISABLE: Final = 1 << 28
MIGRATABLE: Final = 1 << 29
_HARMLESS: Final = 1 << 16 | 0b11111 << 18 | 1 << 27 | 0b11 << 30 | 0b11 << 62
KNOWN_ATTRIBUTES: Final = DEBUG | PROFILED | SERVICE_EXTENDED | SEPT_VE_DISABLE | MIGRATABLE | _HARMLESS
"""Bits of TD_ATTRIBUTES that mean something, as dcap-qvl 0.7 has them; what any other one says nobody here knows.
Harmless: what a TD may use itself (among them LASS, protection keys, key locker, TPA, PERFMON)."""


class TdxQuote(msgspec.Struct, frozen=True, kw_only=True):
    """``attributes``: TD_ATTRIBUTES, bit 0 debug. ``rtmrs``: 0 to 3, SHA-384."""

    version: int
    tee_tcb_svn: bytes
    mrseam: bytes
    attributes: int
    xfam: int
    mrtd: bytes
    mrconfigid: bytes
    mrowner: bytes
    mrownerconfig: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    mrservicetd: bytes
    raw: bytes

    @property
    def body(self) -> bytes:
        """The TD report."""
        return self.raw[54 if self.version == 5 else 48 : self.signed_bytes]

    @property
    def signed_bytes(self) -> int:
        """How much of it, from its beginning, is signed."""
        return 48 + _SIZES[2] if self.version == 4 else 54 + int.from_bytes(self.raw[50:54], "little")


class Authentication(msgspec.Struct, frozen=True):
    """Who vouches for a quote. ``key``: the attestation key, X and Y; ``signature``: R and S. ``report``: of the
    quoting enclave, ``report_signature`` by the platform's key. ``more``: what the report vouches for beside the key.
    ``certificates``: the platform's, PEM; empty when the quote has them in another form."""

    signature: bytes
    key: bytes
    report: bytes
    report_signature: bytes
    more: bytes
    certificates: bytes


def looks_like_tdx(data: bytes) -> bool:
    """Whether it begins like a TDX quote."""
    return len(data) > 632 and data[:2] in (b"\x04\0", b"\x05\0") and data[4:8] == struct.pack("<I", _TDX)


def looks_like_sgx(data: bytes) -> bool:
    """Whether it begins like the quote of an SGX enclave: version 3, or of TEE type 0, by Intel's quoting enclave."""
    is_version = data[:2] == b"\x03\0" or (data[:2] in (b"\x04\0", b"\x05\0") and data[4:8] == bytes(4))
    return len(data) > 432 and is_version and data[12:28] == _INTEL_QE


def parse_tdx(data: bytes) -> TdxQuote:
    """The fields of a quote.

    Raises:
        InputError: it is none, or is cut off.
    """
    if len(data) > MAX_BYTES or not looks_like_tdx(data):
        raise InputError("not a TDX quote", got=f"{len(data)} bytes", expected="version 4 or 5 of TEE type 0x81")
    version = data[0]
    at, kind = 48, 2
    if version == 5:
        kind, size = struct.unpack_from("<HI", data, 48)
        if kind not in (2, 3) or size != _SIZES[kind] or len(data) < 54 + size:
            raise InputError("TDX quote of an unknown body", got=f"type {kind}, {size} bytes")
        at = 54
    attributes, xfam = struct.unpack_from("<QQ", data, at + 120)

    def digest(offset: int) -> bytes:
        return data[at + offset : at + offset + 48]

    return TdxQuote(
        version=version,
        tee_tcb_svn=data[at : at + 16],
        mrseam=digest(16),
        attributes=attributes,
        xfam=xfam,
        mrtd=digest(136),
        mrconfigid=digest(184),
        mrowner=digest(232),
        mrownerconfig=digest(280),
        rtmrs=(digest(328), digest(376), digest(424), digest(472)),
        report_data=data[at + 520 : at + 584],
        mrservicetd=data[at + 600 : at + 648] if kind == 3 else b"",
        raw=data,
    )


def authentication_of(quote: TdxQuote) -> Authentication:
    """What stands behind the signed part.

    Raises:
        InputError: it is cut off, or signed by other means than ECDSA P-256 and Intel's quoting enclave.
    """
    raw = quote.raw
    if raw[2:4] != struct.pack("<H", _ECDSA_P256) or raw[12:28] != _INTEL_QE:
        raise InputError("a TDX quote that Intel's quoting enclave did not sign with ECDSA P-256", got=raw[2:28].hex())
    outer = Octets(raw[quote.signed_bytes :], "TDX quote", "little")
    data = Octets(outer.sized(4, "signature data", MAX_BYTES), "TDX quote", "little")
    signature, key = data.take(64, "signature"), data.take(64, "attestation key")
    if data.number(2, "kind of certification") != _CERTIFIED_BY_ENCLAVE:
        raise InputError("a TDX quote without its quoting enclave's report")
    inner = Octets(data.sized(4, "certification", MAX_BYTES), "TDX quote", "little")
    report, report_signature = inner.take(_ENCLAVE_REPORT, "enclave's report"), inner.take(64, "its signature")
    more = inner.sized(2, "enclave's data", MAX_BYTES)
    kind = inner.number(2, "kind of certificates")
    certificates = inner.sized(4, "certificates", MAX_BYTES)
    return Authentication(signature, key, report, report_signature, more, certificates if kind == PCK_CHAIN else b"")
