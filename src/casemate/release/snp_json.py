"""SEV-SNP evidence as confidential-containers' attestation agent writes it: the report's fields as JSON
(`AttestationReport` of the `sev` crate), back to the 1184 bytes that the chip signed.

Nothing here has to be believed: where a field is left out or put wrong, the signature does not hold.
"""

from __future__ import annotations

import struct
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from casemate.errors import InputError
from casemate.evidence.snp import SIZE

_CERTIFICATES_MAX: Final = 8
_TURIN_FAMILY: Final = 0x1A

U8 = Annotated[int, Meta(ge=0, le=0xFF)]
U32 = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
# msgspec's own bounds end at 2**63 - 1; the rest is checked where it is packed.
U64 = Annotated[int, Meta(ge=0)]
Octets = Annotated[list[U8], Meta(max_length=72)]


class _Tcb(msgspec.Struct, frozen=True):
    bootloader: U8
    tee: U8
    snp: U8
    microcode: U8
    fmc: U8 | None = None

    def pack(self, *, is_turin: bool) -> bytes:
        if is_turin:
            return bytes([self.fmc or 0, self.bootloader, self.tee, self.snp, 0, 0, 0, self.microcode])
        return bytes([self.bootloader, self.tee, 0, 0, 0, 0, self.snp, self.microcode])


class _Version(msgspec.Struct, frozen=True):
    major: U8
    minor: U8
    build: U8


class _Signature(msgspec.Struct, frozen=True):
    r: Octets
    s: Octets


class _Report(msgspec.Struct, frozen=True, kw_only=True):
    version: U32
    guest_svn: U32
    policy: U64
    family_id: Octets
    image_id: Octets
    vmpl: U32
    sig_algo: U32
    current_tcb: _Tcb
    plat_info: U64
    key_info: U32
    report_data: Octets
    measurement: Octets
    host_data: Octets
    id_key_digest: Octets
    author_key_digest: Octets
    report_id: Octets
    report_id_ma: Octets
    reported_tcb: _Tcb
    cpuid_fam_id: U8 | None = None
    cpuid_mod_id: U8 | None = None
    cpuid_step: U8 | None = None
    chip_id: Octets
    committed_tcb: _Tcb
    current: _Version
    committed: _Version
    launch_tcb: _Tcb
    launch_mit_vector: U64 | None = None
    current_mit_vector: U64 | None = None
    signature: _Signature


class _Entry(msgspec.Struct, frozen=True):
    cert_type: str | dict[str, str]
    data: Annotated[list[U8], Meta(max_length=8192)]


class _Evidence(msgspec.Struct, frozen=True):
    attestation_report: _Report
    cert_chain: Annotated[list[_Entry], Meta(max_length=_CERTIFICATES_MAX)] | None = None


def parse_snp_json(data: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """(report, certificates that came along, as the host gave them: PEM or DER).

    Raises:
        InputError: another form.
    """
    try:
        found = msgspec.json.decode(data, type=_Evidence)
        certificates = tuple(
            bytes(entry.data) for entry in found.cert_chain or () if entry.cert_type in ("VCEK", "VLEK", "ASK", "ARK")
        )
        return _pack(found.attestation_report), certificates
    except (msgspec.MsgspecError, ValueError, struct.error, RecursionError) as error:
        raise InputError(
            "SEV-SNP evidence in another form", got=str(error)[:120], expected="attestation_report, cert_chain"
        ) from None


def _pack(report: _Report) -> bytes:
    """The layout of `evidence/snp.py`."""
    turin = report.cpuid_fam_id is not None and report.cpuid_fam_id >= _TURIN_FAMILY
    data = bytearray(SIZE)
    struct.pack_into("<IIQ", data, 0, report.version, report.guest_svn, report.policy)
    struct.pack_into("<II", data, 0x30, report.vmpl, report.sig_algo)
    struct.pack_into("<QI", data, 0x40, report.plat_info, report.key_info)
    for offset, tcb in (
        (0x38, report.current_tcb),
        (0x180, report.reported_tcb),
        (0x1E0, report.committed_tcb),
        (0x1F0, report.launch_tcb),
    ):
        data[offset : offset + 8] = tcb.pack(is_turin=turin)
    for offset, size, value in (
        (0x10, 16, report.family_id),
        (0x20, 16, report.image_id),
        (0x50, 64, report.report_data),
        (0x90, 48, report.measurement),
        (0xC0, 32, report.host_data),
        (0xE0, 48, report.id_key_digest),
        (0x110, 48, report.author_key_digest),
        (0x140, 32, report.report_id),
        (0x160, 32, report.report_id_ma),
        (0x1A0, 64, report.chip_id),
        (0x2A0, 72, report.signature.r),
        (0x2E8, 72, report.signature.s),
    ):
        if len(value) != size:
            raise ValueError(f"{len(value)} bytes where {size} belong")
        data[offset : offset + size] = bytes(value)
    if report.version >= 3:
        data[0x188:0x18B] = bytes([report.cpuid_fam_id or 0, report.cpuid_mod_id or 0, report.cpuid_step or 0])
    for offset, version in ((0x1E8, report.current), (0x1EC, report.committed)):
        data[offset : offset + 3] = bytes([version.build, version.minor, version.major])
    if report.version >= 5:
        struct.pack_into("<QQ", data, 0x1F8, report.launch_mit_vector or 0, report.current_mit_vector or 0)
    return bytes(data)
