"""Launch measurements of AMD SEV-SNP and SEV-ES guests under QEMU, from the bytes that the launch loads.

SEV-SNP (firmware ABI 56860, 8.17.2): the digest is chained over a PAGE_INFO for each page, in the order of the launch:

    previous digest (48), SHA-384 of the page or zeros (48), length 0x70, page type, 0, VMPL permissions (3), 0, address

1. The firmware, page by page.  2. The sections of its metadata: zeroed, secrets, CPUID, kernel hashes.  3. One VMSA
page for each vCPU, at the address that stands for it.

SEV-ES: SHA-256 over firmware, table of hashes, and VMSAs in a row.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from collections.abc import Iterator
from typing import Final

import msgspec

from casemate.errors import InputError
from casemate.measure.ovmf import (
    CPUID,
    KERNEL_HASHES,
    PAGE,
    SEC_MEM,
    SECRETS,
    SVSM_CAA,
    Firmware,
    Section,
)
from casemate.measure.vmsa import RESET_VECTOR, vmsa_page

SNP_ACTIVE: Final = 1
MAX_VCPUS: Final = 1024
_VMSA_ADDRESS: Final = 0xFFFFFFFFF000
_NORMAL, _VMSA, _ZERO, _SECRETS, _CPUID = 1, 2, 3, 5, 6
_NOTHING: Final = bytes(48)
_HEADER: Final = uuid.UUID("9438d606-4f22-4cc9-b479-a793d411fd21").bytes_le
_ENTRIES: Final = {
    "cmdline": uuid.UUID("97d02dd8-bd20-4c94-aa78-e7714d36ab2a").bytes_le,
    "initrd": uuid.UUID("44baf731-3a2f-4bd7-9af1-41e29169781d").bytes_le,
    "kernel": uuid.UUID("4de79437-abd2-427f-b835-d5b172d2045b").bytes_le,
}
"""In the order in which QEMU writes them."""


class Kernel(msgspec.Struct, frozen=True):
    """What direct kernel boot puts into the table: SHA-256 of each."""

    kernel: bytes
    initrd: bytes
    cmdline: bytes


def hash_kernel(kernel: bytes, initrd: bytes, cmdline: str) -> Kernel:
    """The hashes that QEMU makes: the command line with its NUL."""
    return Kernel(
        hashlib.sha256(kernel).digest(),
        hashlib.sha256(initrd).digest(),
        hashlib.sha256(cmdline.encode() + b"\0").digest(),
    )


class Guest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a measurement depends on. ``signature``: of the CPU model. ``features``: SEV_FEATURES of SNP."""

    firmware: Firmware
    vcpus: int
    signature: int
    features: int = SNP_ACTIVE
    kernel: Kernel | None = None


def hash_table(kernel: Kernel) -> bytes:
    """The table of hashes (OVMF's BlobVerifier), padded to 16 bytes."""
    parts = {"cmdline": kernel.cmdline, "initrd": kernel.initrd, "kernel": kernel.kernel}
    entries = b"".join(guid + struct.pack("<H", 50) + parts[name] for name, guid in _ENTRIES.items())
    table = _HEADER + struct.pack("<H", 18 + len(entries)) + entries
    return table.ljust(-(-len(table) // 16) * 16, b"\0")


def snp_digest(guest: Guest) -> bytes:
    """The launch digest of a SEV-SNP guest (48 bytes).

    Raises:
        InputError: kernel hashes for a firmware that has no place for them, more vCPUs than it can start, or a section
            of unknown type.
    """
    _check(guest)
    digest = _NOTHING
    firmware = guest.firmware
    data = memoryview(firmware.data)
    for offset in range(0, len(data), PAGE):
        digest = _page(
            digest, _NORMAL, firmware.address + offset, hashlib.sha384(data[offset : offset + PAGE]).digest()
        )
    for section in firmware.sections:
        digest = _section(digest, section, guest)
    for page in _vmsas(guest):
        digest = _page(digest, _VMSA, _VMSA_ADDRESS, hashlib.sha384(page).digest())
    return digest


def seves_digest(guest: Guest) -> bytes:
    """The launch digest of a SEV-ES guest (32 bytes).

    Raises:
        InputError: as `snp_digest`.
    """
    if guest.kernel is not None and guest.firmware.hash_table is None:
        raise _no_hashes()
    whole = hashlib.sha256(guest.firmware.data)
    if guest.kernel is not None:
        whole.update(hash_table(guest.kernel))
    for page in _vmsas(msgspec.structs.replace(guest, features=0)):
        whole.update(page)
    return whole.digest()


def _check(guest: Guest) -> None:
    kinds = {section.kind for section in guest.firmware.sections}
    if not kinds:
        raise InputError("this firmware has no SEV metadata", expected="OVMF built with SEV support")
    if guest.kernel is not None and (KERNEL_HASHES not in kinds or guest.firmware.hash_table is None):
        raise _no_hashes()


def _no_hashes() -> InputError:
    return InputError(
        "this firmware takes no hashes of a kernel",
        got="no table for them",
        expected="OVMF's AmdSev build",
        next_step="boot from a disk, or give the firmware that the VM really uses",
    )


def _page(digest: bytes, kind: int, address: int, contents: bytes) -> bytes:
    return hashlib.sha384(digest + contents + struct.pack("<HBBBBBBQ", 0x70, kind, 0, 0, 0, 0, 0, address)).digest()


def _section(digest: bytes, section: Section, guest: Guest) -> bytes:
    if section.kind == KERNEL_HASHES and guest.kernel is not None:
        return _page(digest, _NORMAL, section.address, hashlib.sha384(_hash_page(section, guest)).digest())
    kinds = {SEC_MEM: _ZERO, SVSM_CAA: _ZERO, KERNEL_HASHES: _ZERO, SECRETS: _SECRETS, CPUID: _CPUID}
    if section.kind not in kinds:
        raise InputError("SEV metadata of an unknown type", got=str(section.kind))
    if kinds[section.kind] != _ZERO:
        return _page(digest, kinds[section.kind], section.address, _NOTHING)
    for offset in range(0, section.size, PAGE):
        digest = _page(digest, _ZERO, section.address + offset, _NOTHING)
    return digest


def _hash_page(section: Section, guest: Guest) -> bytes:
    assert guest.kernel is not None
    offset = (guest.firmware.hash_table or 0) % PAGE
    page = bytes(offset) + hash_table(guest.kernel)
    if section.size != PAGE or len(page) > PAGE:
        raise InputError("the firmware's place for hashes", got=f"{section.size} bytes", expected="one page")
    return page.ljust(PAGE, b"\0")


def _vmsas(guest: Guest) -> Iterator[bytes]:
    if not 1 <= guest.vcpus <= MAX_VCPUS:
        raise InputError("number of vCPUs", got=str(guest.vcpus), expected=f"1 to {MAX_VCPUS}")
    yield vmsa_page(RESET_VECTOR, guest.signature, guest.features)
    if guest.vcpus > 1:
        if guest.firmware.reset_ip is None:
            raise InputError("this firmware starts no second vCPU", expected="OVMF with an SEV-ES reset block")
        other = vmsa_page(guest.firmware.reset_ip, guest.signature, guest.features)
        for _ in range(guest.vcpus - 1):
            yield other
