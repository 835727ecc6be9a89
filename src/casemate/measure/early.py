"""OVMF's first code as it is when it is measured: with what it found out about the machine written into it.

The modules that run first (PEI) run where they were unpacked to, and PlatformPei keeps what it learns in a variable of
its own there (`EFI_HOB_PLATFORM_INFO`, OvmfPkg/Include/Library/PlatformInitLib.h) before the volume is measured into
PCR 0. Where the variable is, no header says: builds whose memory was looked at are listed by their digest. Its fields,
packed, from the host bridge on:

    bridge (2), confidential attribute (8), SEV-ES (1), boot mode (4), S3 (1), SMM (1), SMRAM at SMBASE (1), TSEG (2),
    first address not used (8), address bits (1), uncached base, size (4 each), NX stack (1), TDX bit (8),
    64-bit window base, size (8 each), 32-bit window base, size (4 each), I/O base, size (8 each), variable store (8),
    processors now, at most, by default (4 each), S3 base, size (4 each); then fw_cfg (1), its DMA (1)
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

import msgspec

from casemate.errors import InputError

ADDRESS_BITS: Final = range(36, 53)
_MOST_BITS: Final = 47
_GIB: Final = 1 << 30
_LOW_MEMORY: Final = 0xB0000000
_LOW_MEMORY_LARGE: Final = 0x80000000
_WINDOW: Final = 32 * _GIB
_FIELDS: Final = struct.Struct("<HQ?I???HQBII?QQQIIQQQIIIIIBB")
_Q35: Final = 0x29C0
_TSEG_MIB: Final = 16
_PROCESSORS: Final = 64


class _Build(msgspec.Struct, frozen=True):
    """``at``: where the variable is in the volume. ``has_smm``: built for system management mode."""

    at: int
    has_smm: bool


_BUILDS: Final = {
    "471281a7d197d12ac61a810e5150b9b5ddc47be78ef0c24af7a8192c81b3a808": _Build(0xE0D8, has_smm=False),
    "dd099b33f9e54526542b92036e12aed1af73d17f0cdeaa12ab02b1030953ac4c": _Build(0xE0D8, has_smm=True),
}
"""SHA-256 of the volume as it is unpacked: Debian's ovmf 2022.11-6+deb12u2, OVMF_CODE_4M.fd and OVMF_CODE_4M.secboot.fd
(and .ms.fd, the same code)."""
VERSION: Final = b"\0\0"
"""What these builds measure as their version: an empty text."""


class Machine(msgspec.Struct, frozen=True):
    """A q35 without sleep states, as Casemate starts it. ``address_bits``: that its CPU reports (CPUID 0x80000008)."""

    memory_bytes: int
    vcpus: int
    address_bits: int


def is_known(early: bytes) -> bool:
    """Whether it can be said what this build writes."""
    return hashlib.sha256(early).hexdigest() in _BUILDS


def early_volume(early: bytes, machine: Machine) -> bytes:
    """The volume as it is measured.

    Raises:
        InputError: the build is not known, or no CPU has that many address bits.
    """
    build = _BUILDS.get(hashlib.sha256(early).hexdigest())
    if build is None:
        raise InputError("firmware whose first code is not known", expected="one that is listed in early.py")
    if machine.address_bits not in ADDRESS_BITS:
        raise InputError("address bits", got=str(machine.address_bits), expected="36 to 52")
    found = _found_out(machine, has_smm=build.has_smm)
    return early[: build.at] + found + early[build.at + len(found) :]


def _found_out(machine: Machine, *, has_smm: bool) -> bytes:
    low = machine.memory_bytes if machine.memory_bytes < _LOW_MEMORY else _LOW_MEMORY_LARGE
    bits = min(machine.address_bits, _MOST_BITS)
    # The window for devices: 32 GiB above the memory, aligned to its size; the top eighth of all where that is larger.
    base = _aligned(_aligned(4 * _GIB + machine.memory_bytes - low, _GIB), _WINDOW)
    end, size = base + _WINDOW, _WINDOW
    eighth = 1 << bits - 3
    if size < eighth and base + eighth < 1 << bits:
        base, size = (1 << bits) - eighth, eighth
    uncached = _LOW_MEMORY if low > _LOW_MEMORY_LARGE else _LOW_MEMORY_LARGE
    return _FIELDS.pack(
        *(_Q35, 0, False, 0, False),
        *(has_smm, has_smm, _TSEG_MIB if has_smm else 0),
        *(end, bits, uncached, 0, False, 0),
        *(base, size, 0xC0000000, 0x3C000000, 0x6000, 0xA000, 0),
        *(machine.vcpus, machine.vcpus, _PROCESSORS, 0, 0, 1, 1),
    )


def _aligned(value: int, size: int) -> int:
    return -(-value // size) * size
