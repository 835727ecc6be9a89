"""AMD SEV-SNP attestation reports (ABI specification 56860), bytes to fields; nothing is judged here.

    0x000 version          0x050 report data (64)      0x180 reported TCB        0x1e0 committed TCB
    0x004 guest SVN        0x090 measurement (48)      0x188 CPUID family,       0x1f0 launch TCB
    0x008 policy           0x0c0 host data (32)              model, stepping     0x1f8 mitigation vectors (v5)
    0x010 family id (16)   0x0e0 id key digest (48)    0x1a0 chip id (64)        0x2a0 R, 0x2e8 S (72 each)
    0x020 image id (16)    0x110 author key digest (48)                          0x330 to 0x49f reserved, not signed
    0x030 VMPL             0x140 report id (32)
    0x034 signature        0x160 report id of the migration agent (32)
    0x038 current TCB      0x040 platform   0x048 flags: author key 0, masked key 1, signing key 4:2

Little endian throughout, R and S as well. Everything before 0x2a0 is signed.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from casemate.errors import InputError

SIZE: Final = 1184
SIGNED_BYTES: Final = 0x2A0
VERSIONS: Final = frozenset({2, 3, 4, 5})
ECDSA_P384_SHA384: Final = 1
_TURIN_FAMILY: Final = 0x1A
MAX_BYTES: Final = SIZE + (64 << 10)
_ENTRY: Final = struct.Struct("<16sII")
_AZURE_HEADER: Final = struct.Struct("<5I")
_AZURE_SNP: Final = 2
MAX_ENTRIES: Final = 16

POLICY_BITS: Final = {
    16: "smt-allowed",
    18: "migration-agent-allowed",
    19: "debug-allowed",
    20: "single-socket-only",
    21: "cxl-allowed",
    22: "memory-aes-256-xts",
    23: "rapl-disabled",
    24: "ciphertext-hiding",
    25: "page-swap-disabled",
}
_POLICY_RESERVED_ONE: Final = 17
_POLICY_KNOWN: Final = (1 << 26) - 1
PLATFORM_BITS: Final = {
    0: "smt",
    1: "tsme",
    2: "ecc",
    3: "rapl-disabled",
    4: "ciphertext-hiding",
    5: "alias-check-complete",
    7: "tio",
}
"""PLATFORM_INFO; an alias check is what AMD answers to BadRAM with (AMD-SB-3015)."""
_PRODUCTS: Final = (
    (0x19, range(0x10), "Milan"),
    (0x19, range(0x10, 0x20), "Genoa"),
    (0x19, range(0xA0, 0xB0), "Genoa"),
    (0x1A, range(0x20), "Turin"),
)
"""CPUID family and models by the name that AMD's key service has for them (57230); Bergamo, Siena are Genoa there."""


class Tcb(msgspec.Struct, frozen=True):
    """Security version numbers, by component; ``fmc`` is on Turin only."""

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None = None

    def components(self) -> dict[str, int]:
        """By name, in the order of AMD's documents."""
        found = {"bootloader": self.bootloader, "tee": self.tee, "snp": self.snp, "microcode": self.microcode}
        return found if self.fmc is None else {"fmc": self.fmc, **found}


class SnpReport(msgspec.Struct, frozen=True, kw_only=True):
    """One report. ``signing_key``: 0 VCEK, 1 VLEK, 7 none. ``signature``: R and S. ``cpuid``: family, model, stepping,
    from version 3 on. ``launch_mitigations``, ``current_mitigations``: bit vectors, from version 5 on; 0 before.
    ``masks_key``: the platform does not sign with its chip's key. ``layout``: how its TCB numbers lie, ``turin`` or
    ``milan`` (and Genoa)."""

    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    signature_algorithm: int
    current_tcb: Tcb
    platform: int
    has_author_key: bool
    masks_key: bool
    signing_key: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: Tcb
    cpuid: tuple[int, int, int] | None
    chip_id: bytes
    committed_tcb: Tcb
    launch_tcb: Tcb
    current_firmware: tuple[int, int, int]
    committed_firmware: tuple[int, int, int]
    launch_mitigations: int
    current_mitigations: int
    signature: tuple[int, int]
    signed: bytes
    layout: str

    def policy_has(self, name: str) -> bool:
        """Whether a bit of the guest's policy is set."""
        return bool(self.policy >> next(bit for bit, known in POLICY_BITS.items() if known == name) & 1)

    @property
    def unknown_policy_bits(self) -> int:
        """Bits of the guest's policy that no specification here names, and bit 17 when it is not set as it must be."""
        return self.policy & ~_POLICY_KNOWN | ~self.policy & 1 << _POLICY_RESERVED_ONE

    @property
    def platform_features(self) -> tuple[str, ...]:
        """What PLATFORM_INFO says that is on."""
        return tuple(name for bit, name in PLATFORM_BITS.items() if self.platform >> bit & 1)

    @property
    def product(self) -> str:
        """The product by the CPUID in the report; empty when it has none, or one that is not known."""
        if self.cpuid is None:
            return ""
        family, model, _ = self.cpuid
        return next((name for known, models, name in _PRODUCTS if known == family and model in models), "")

    @property
    def is_chip_masked(self) -> bool:
        """Whether the report does not say which chip made it: MASK_CHIP_ID makes the field zeros."""
        return not any(self.chip_id)


def looks_like_snp(data: bytes) -> bool:
    """Whether a file's content is a report, alone or with a table of certificates or Azure's header behind it: the
    size, a known version, the signature's algorithm."""
    if len(data) != SIZE and not _ends_as_azures(data) and not SIZE + _ENTRY.size <= len(data) <= MAX_BYTES:
        return False
    version, algorithm = struct.unpack_from("<I", data)[0], struct.unpack_from("<I", data, 0x34)[0]
    return version in VERSIONS and algorithm == ECDSA_P384_SHA384


def _ends_as_azures(data: bytes) -> bool:
    """Whether the header of Azure's runtime data is behind the report, without these: size, version, type, hash, size.
    A report that was cut out of an HCL report may have it; it is not signed, and says nothing."""
    return len(data) == SIZE + _AZURE_HEADER.size and _AZURE_HEADER.unpack_from(data, SIZE)[2] == _AZURE_SNP


def parse_report(data: bytes, *, is_turin: bool | None = None) -> SnpReport:
    """The fields of a report.

    Args:
        is_turin: how its TCB numbers lie, for version 2, which does not name the CPU; None: as on Milan and Genoa.

    Raises:
        InputError: the size or version is none that this reader knows.
    """
    if len(data) != SIZE:
        raise InputError("not a SEV-SNP report", got=f"{len(data)} bytes", expected=f"{SIZE} bytes")
    version, guest_svn, policy = struct.unpack_from("<IIQ", data)
    if version not in VERSIONS:
        raise InputError(
            "a SEV-SNP report of another version", got=str(version), expected=", ".join(map(str, sorted(VERSIONS)))
        )
    vmpl, algorithm = struct.unpack_from("<II", data, 0x30)
    platform, flags = struct.unpack_from("<QI", data, 0x40)
    cpuid = (data[0x188], data[0x189], data[0x18A]) if version >= 3 else None
    turin = cpuid[0] >= _TURIN_FAMILY if cpuid is not None else bool(is_turin)
    return SnpReport(
        version=version,
        guest_svn=guest_svn,
        policy=policy,
        family_id=data[0x10:0x20],
        image_id=data[0x20:0x30],
        vmpl=vmpl,
        signature_algorithm=algorithm,
        current_tcb=_tcb(data, 0x38, is_turin=turin),
        platform=platform,
        has_author_key=bool(flags & 1),
        masks_key=bool(flags & 2),
        signing_key=flags >> 2 & 7,
        report_data=data[0x50:0x90],
        measurement=data[0x90:0xC0],
        host_data=data[0xC0:0xE0],
        id_key_digest=data[0xE0:0x110],
        author_key_digest=data[0x110:0x140],
        report_id=data[0x140:0x160],
        report_id_ma=data[0x160:0x180],
        reported_tcb=_tcb(data, 0x180, is_turin=turin),
        cpuid=cpuid,
        chip_id=data[0x1A0:0x1E0],
        committed_tcb=_tcb(data, 0x1E0, is_turin=turin),
        launch_tcb=_tcb(data, 0x1F0, is_turin=turin),
        current_firmware=(data[0x1EA], data[0x1E9], data[0x1E8]),
        committed_firmware=(data[0x1EE], data[0x1ED], data[0x1EC]),
        launch_mitigations=struct.unpack_from("<Q", data, 0x1F8)[0] if version >= 5 else 0,
        current_mitigations=struct.unpack_from("<Q", data, 0x200)[0] if version >= 5 else 0,
        signature=(int.from_bytes(data[0x2A0:0x2E8], "little"), int.from_bytes(data[0x2E8:0x330], "little")),
        signed=data[:SIGNED_BYTES],
        layout="turin" if turin else "milan",
    )


def certificate_table(data: bytes) -> tuple[bytes, ...]:
    """The certificates of an extended report (GHCB specification 56421, SNP_GUEST_REQUEST): what is behind the report.

        GUID (16), offset and length from the table's beginning (4 each); the last entry is all zeros

    Raises:
        InputError: the table has no end, or points outside of itself.
    """
    table = b"" if _ends_as_azures(data) else data[SIZE:]
    found: list[bytes] = []
    for index in range(MAX_ENTRIES if table else 0):
        if (index + 1) * _ENTRY.size > len(table):
            break
        guid, offset, length = _ENTRY.unpack_from(table, index * _ENTRY.size)
        if not any(guid):
            return tuple(found)
        if offset + length > len(table):
            raise InputError("the report's table of certificates is cut off", got=f"entry {index}")
        found.append(table[offset : offset + length])
    if table:
        raise InputError("the report's table of certificates has no end", got=f"{len(table)} bytes")
    return ()


def _tcb(data: bytes, offset: int, *, is_turin: bool) -> Tcb:
    """TCB_VERSION: Milan and Genoa have bootloader, tee, four reserved, snp, microcode; Turin puts fmc first."""
    octets = data[offset : offset + 8]
    if is_turin:
        return Tcb(bootloader=octets[1], tee=octets[2], snp=octets[3], microcode=octets[7], fmc=octets[0])
    return Tcb(bootloader=octets[0], tee=octets[1], snp=octets[6], microcode=octets[7])
