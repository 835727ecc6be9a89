"""Whether the measured firmware of a confidential guest can start it: what stands in the image says so beforehand.

SEV-SNP needs sections for the launch and a place for the kernel's hashes, TDX sections of its own. TDX firmware may
come with Secure Boot and keys (Debian's OVMF.inteltdx.ms.fd has Microsoft's), and its variables are part of the image:
a kernel that nobody there vouches for is not started, and the guest waits in the firmware's menu.
"""

from __future__ import annotations

from typing import Final

from casemate.errors import InputError
from casemate.facts.root import Root
from casemate.measure.ovmf import parse_firmware
from casemate.measure.pe import parse_pe
from casemate.measure.secureboot import is_enforcing, vouches
from casemate.measure.sev import Guest, hash_kernel, snp_digest
from casemate.measure.tdvf import parse_tdvf
from casemate.measure.variables import SECURITY, parse_variables
from casemate.measure.vmsa import CPUS
from casemate.measure.volumes import parse_volumes
from casemate.spec.confidential import DEFAULT_CPU, Kind

_FIRMWARE_MAX_BYTES: Final = 16 << 20
_KERNEL_MAX_BYTES: Final = 256 << 20


def boot_fault(kind: Kind, firmware: str, kernel: str | None, vcpus: int) -> str:
    """Why this firmware would not start a guest of ``kind``; empty when it would, or nobody can tell."""
    try:
        image = Root().read_bytes(firmware, _FIRMWARE_MAX_BYTES)
        if kind is Kind.SEV_SNP:
            _measure(image, kernel is not None, vcpus)
        else:
            parse_tdvf(image)
    except OSError as error:
        return f"{firmware}: {error.strerror or error}"
    except InputError as error:
        return f"{firmware} starts no such guest: {error}"
    if kind is Kind.TDX and kernel is not None and _refuses(image, kernel):
        return (
            f"Secure Boot of {firmware} does not start this kernel, for which none of its keys vouches:"
            " name a firmware without keys in [confidential], or boot a disk whose loader it trusts"
        )
    return ""


def _measure(image: bytes, has_kernel: bool, vcpus: int) -> None:
    """What cannot be measured cannot be launched; the kernel's own bytes do not matter for that."""
    hashes = hash_kernel(b"", b"", "") if has_kernel else None
    signature = CPUS[DEFAULT_CPU.partition("-v")[0]]
    snp_digest(Guest(firmware=parse_firmware(image), vcpus=vcpus, signature=signature, features=1, kernel=hashes))


def _refuses(image: bytes, kernel: str) -> bool:
    """Whether the keys in the image refuse a kernel; no, where either cannot be read or understood."""
    try:
        variables = parse_variables(parse_tdvf(image).variables)
        if not is_enforcing(variables, capable=True):  # before anything large is unpacked
            return False
        if not parse_volumes(image).has_secure_boot:
            return False
        program = parse_pe(Root().read_bytes(kernel, _KERNEL_MAX_BYTES), "the kernel")
        return vouches(program, variables.get((SECURITY, "db"), b"")) is None
    except (InputError, OSError):
        return False
