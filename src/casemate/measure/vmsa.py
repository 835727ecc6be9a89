"""The first state of a vCPU under SEV-ES and SEV-SNP, as QEMU and KVM set it: one encrypted page, the VMSA.

Offsets are those of the AMD64 Architecture Programmer's Manual, volume 2, table B-4; values those of a reset (14.1.3
there), with what KVM turns on (EFER.SVME, CR4.MCE). RDX holds the CPU's signature.
"""

from __future__ import annotations

import struct
from typing import Final

from casemate.measure.ovmf import PAGE

RESET_VECTOR: Final = 0xFFFFFFF0
_SEGMENTS: Final = (
    # offset, selector, attributes; limit 0xffff, base 0
    (0x00, 0, 0x93),  # ES
    (0x20, 0, 0x93),  # SS
    (0x30, 0, 0x93),  # DS
    (0x40, 0, 0x93),  # FS
    (0x50, 0, 0x93),  # GS
    (0x60, 0, 0x00),  # GDTR
    (0x70, 0, 0x82),  # LDTR
    (0x80, 0, 0x00),  # IDTR
    (0x90, 0, 0x8B),  # TR
)
_REGISTERS: Final = (
    (0x0D0, 0x1000),  # EFER: SVME
    (0x148, 0x40),  # CR4: MCE
    (0x158, 0x10),  # CR0: ET
    (0x160, 0x400),  # DR7
    (0x168, 0xFFFF0FF0),  # DR6
    (0x170, 0x2),  # RFLAGS
    (0x268, 0x0007040600070406),  # PAT
    (0x3E8, 0x1),  # XCR0: x87
)
_CS: Final = 0x10
_RIP: Final = 0x178
_RDX: Final = 0x310
_SEV_FEATURES: Final = 0x3B0
_MXCSR: Final = 0x408
_X87_CONTROL: Final = 0x410


def cpu_signature(family: int, model: int, stepping: int) -> int:
    """CPUID leaf 1, EAX."""
    base, extended = (15, family - 15) if family > 15 else (family, 0)
    return extended << 20 | (model >> 4 & 15) << 16 | base << 8 | (model & 15) << 4 | stepping & 15


CPUS: Final = {
    "EPYC": cpu_signature(23, 1, 2),
    "EPYC-Rome": cpu_signature(23, 49, 0),
    "EPYC-Milan": cpu_signature(25, 1, 1),
    "EPYC-Genoa": cpu_signature(25, 17, 0),
    "EPYC-Turin": cpu_signature(26, 0, 0),
}
"""QEMU's CPU models by name (``-v2`` and the like have the same signature)."""


def vmsa_page(instruction: int, signature: int, features: int) -> bytes:
    """The page of one vCPU.

    Args:
        instruction: address that it starts at; the reset vector for the first one, the firmware's for the others.
        signature: `cpu_signature`.
        features: SEV_FEATURES; 1 is SEV-SNP alone.
    """
    page = bytearray(PAGE)
    for offset, selector, attributes in _SEGMENTS:
        struct.pack_into("<HHIQ", page, offset, selector, attributes, 0xFFFF, 0)
    struct.pack_into("<HHIQ", page, _CS, 0xF000, 0x9B, 0xFFFF, instruction & 0xFFFF0000)
    for offset, value in (*_REGISTERS, (_RIP, instruction & 0xFFFF), (_RDX, signature), (_SEV_FEATURES, features)):
        struct.pack_into("<Q", page, offset, value)
    struct.pack_into("<I", page, _MXCSR, 0x1F80)
    struct.pack_into("<H", page, _X87_CONTROL, 0x37F)
    return bytes(page)
