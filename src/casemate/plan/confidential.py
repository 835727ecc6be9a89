"""What QEMU is told of a confidential guest, and what a host lacks for one. Pure.

    sev-snp   -object {"qom-type":"sev-snp-guest",…}   QEMU 9.1    -bios OVMF.amdsev.fd, -kernel with kernel-hashes
    tdx       -object {"qom-type":"tdx-guest",…}       QEMU 10.1   -bios OVMF.inteltdx.fd
    se        -object {"qom-type":"s390-pv-guest",…}   QEMU 6.0    -kernel: the encrypted image, nothing else

Objects are written as JSON: QEMU 11.1 takes the address of a quote generation socket in no other form. RAM is anonymous
memory as for every VM, and QEMU makes a guest_memfd beside it, which holds what is private (``require_guest_memfd``):
no back end of ours is needed. The firmware is no pflash: it is copied into the root and measured, and has no variables.

SEV-SNP: ``reduced-phys-bits`` is 1, as QEMU says in query-sev-capabilities for every processor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from casemate.plan.model import Emulator, Host
from casemate.plan.options import OptionValue, write_object
from casemate.spec.confidential import TDX_ATTRIBUTES, Confidential, Kind, snp_policy
from casemate.spec.model import Spec

if TYPE_CHECKING:
    from casemate.facts.confidential import ConfidentialHost

OBJECT: Final = "confidential"
FIRMWARE: Final = "/boot/firmware"
FIRMWARE_ROLE: Final = "firmware"
FIRMWARE_MAX_BYTES: Final = 16 << 20
QUOTE_SOCKET: Final = "/run/quote.socket"
OBJECT_TYPES: Final = {Kind.SEV_SNP: "sev-snp-guest", Kind.TDX: "tdx-guest", Kind.SE: "s390-pv-guest"}
NAMES: Final = {Kind.SEV_SNP: "SEV-SNP", Kind.TDX: "TDX", Kind.SE: "Secure Execution"}
_VERSIONS: Final = {Kind.SEV_SNP: (9, 1), Kind.TDX: (10, 1), Kind.SE: (6, 0)}
"""Which QEMU is the first to have the object."""
_MACHINES: Final = {Kind.SEV_SNP: "x86_64", Kind.TDX: "x86_64", Kind.SE: "s390x"}
_VM_TYPES: Final = {Kind.SEV_SNP: 4, Kind.TDX: 5}
"""KVM_X86_SNP_VM, KVM_X86_TDX_VM (asm/kvm.h)."""
_PROCESSORS: Final = {
    Kind.SEV_SNP: "EPYC 7003 or newer, with SEV-SNP and IOMMU switched on in the firmware",
    Kind.TDX: "Xeon of the 5th generation or newer, with TDX switched on in the firmware",
}
_SWITCHES: Final = {
    Kind.SEV_SNP: "kvm_amd.sev_snp=1, and Linux 6.11 or newer",
    Kind.TDX: "kvm_intel.tdx=1, and Linux 6.16 or newer",
    Kind.SE: "prot_virt=1 on the kernel's command line",
}
_PACKAGES: Final = {Kind.SEV_SNP: "ovmf-amdsev", Kind.TDX: "ovmf-inteltdx"}
_C_BIT: Final = 51
"""On every processor with SEV-SNP so far; only for the plan of a host that has none. QEMU compares it with CPUID."""


def confidential_arguments(spec: Spec, c_bit: int | None) -> list[str]:
    """The object, the firmware, and the end of the VM in place of a reset: what is reset would be measured anew.

    Args:
        c_bit: of the host; None: it has none, and this is a plan only.
    """
    wanted = spec.confidential
    if wanted is None:
        return []
    argv = ["-object", write_object(OBJECT_TYPES[wanted.kind], OBJECT, **_properties(spec, wanted, c_bit))]
    if wanted.kind is not Kind.SE:
        argv += ["-bios", FIRMWARE]
    return [*argv, "-no-reboot"]


def _properties(spec: Spec, wanted: Confidential, c_bit: int | None) -> dict[str, OptionValue | dict[str, str]]:
    if wanted.kind is Kind.SE:
        return {}
    if wanted.kind is Kind.TDX:
        found: dict[str, OptionValue | dict[str, str]] = {"attributes": TDX_ATTRIBUTES}
        for name in ("mrconfigid", "mrowner", "mrownerconfig"):
            text = getattr(wanted, name)
            if text is not None:
                found[name] = _base64(text)
        if wanted.quote_socket is not None:
            found["quote_generation_socket"] = {"type": "unix", "path": QUOTE_SOCKET}
        return found
    found = {"cbitpos": _C_BIT if c_bit is None else c_bit, "reduced_phys_bits": 1, "policy": snp_policy(wanted)}
    found["kernel_hashes"] = spec.boot.kernel is not None
    if wanted.host_data is not None:
        found["host_data"] = _base64(wanted.host_data)
    if wanted.id_block is not None and wanted.id_auth is not None:
        found |= {"id_block": wanted.id_block, "id_auth": wanted.id_auth, "author_key_enabled": wanted.author_key}
    return found


def _base64(hexadecimal: str) -> str:
    import base64

    return base64.b64encode(bytes.fromhex(hexadecimal)).decode()


def firmware_path(spec: Spec, host: Host) -> str | None:
    """The measured firmware: the specification's, else the host's; None where there is none or none is needed."""
    wanted = spec.confidential
    if wanted is None or wanted.kind is Kind.SE:
        return None
    return wanted.firmware or (host.confidential.firmware if host.confidential is not None else "") or None


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What a host offers for a kind of confidential guest. ``firmware``: whether there is a measured one, the
    specification's or the host's. ``version``: of ``emulator``; empty when it was not found."""

    machine: str
    kvm_verdict: str
    kvm_why: str
    emulator: str
    version: tuple[int, ...]
    there: ConfidentialHost
    firmware: bool


def missing(spec: Spec, host: Host, emulator: Emulator) -> tuple[str, ...]:
    """Everything that this host lacks for the confidential guest; empty when there is none to start, or nothing."""
    if spec.confidential is None:
        return ()
    from casemate.facts.confidential import ConfidentialHost

    offer = Offer(
        machine=host.machine,
        kvm_verdict=host.kvm_verdict,
        kvm_why=host.kvm_why,
        emulator=emulator.path,
        version=emulator.version,
        there=host.confidential or ConfidentialHost(),
        firmware=firmware_path(spec, host) is not None,
    )
    return lacks(spec.confidential.kind, offer)


def lacks(kind: Kind, offer: Offer) -> tuple[str, ...]:
    """Everything that a host does not offer for this kind, each with what to do about it."""
    from casemate.facts.confidential import PARAMETERS

    name, there, found = NAMES[kind], offer.there, []
    if offer.machine != _MACHINES[kind]:
        found.append(f"{name} is a feature of {_MACHINES[kind]}; this host is {offer.machine}")
    if kind is Kind.SE:
        found.append("Casemate's system call rules are for x86-64: it plans guests of s390x and starts none")
    else:
        found += _lacks_kvm(kind, offer)
    if there.parameter not in ("Y", "y", "1"):
        got = f"is {there.parameter}" if there.parameter else "is not there"
        found.append(f"{PARAMETERS[kind]} {got}: {_SWITCHES[kind]}")
    if there.device:
        found.append(f"{there.device}: the driver of AMD's security processor (ccp) makes it")
    if there.quotes:
        found.append(f"{there.quotes}: Intel's quote generation service (qgsd) makes it")
    if offer.version < _VERSIONS[kind]:
        version = ".".join(map(str, offer.version))
        old = f"QEMU {version} has no {OBJECT_TYPES[kind]}" if version else f"{offer.emulator} is not on this host"
        found.append(f"{old}: {'.'.join(map(str, _VERSIONS[kind]))} or newer")
    if kind is not Kind.SE and not offer.firmware:
        found.append(
            f"no firmware descriptor of this host names one for {name}: apt install {_PACKAGES[kind]} (Debian 14),"
            " dnf install edk2-ovmf (Fedora), or say firmware in [confidential]"
        )
    if there.boot:
        found.append(there.boot)
    return tuple(found)


def _lacks_kvm(kind: Kind, offer: Offer) -> list[str]:
    found = []
    if offer.there.flag is False:
        found.append(f"this processor has no {NAMES[kind]} (/proc/cpuinfo): {_PROCESSORS[kind]}")
    types = offer.there.vm_types
    if types is None or not types >> _VM_TYPES[kind] & 1:
        said = "did not say" if types is None else f"says {types:#x}"
        hint = "" if offer.there.flag is False else f": {_PROCESSORS[kind]}"
        found.append(f"KVM makes no VM of type {NAMES[kind]} (KVM_CAP_VM_TYPES {said}, no bit {_VM_TYPES[kind]}){hint}")
    if offer.kvm_verdict != "usable":
        found.append(f"KVM is {offer.kvm_verdict}: {offer.kvm_why.partition(';')[0]}")
    return found


class Promise(msgspec.Struct, frozen=True):
    """What a launch declares of its confidential guest, by the names of facts (cc.…)."""

    type: str
    debug: bool | None
    migration_agent: bool | None
    kernel: str | None
    variables: bool | None


def promise(spec: Spec) -> Promise | None:
    """The promises of a confidential guest. None as a value: this kind has no such thing."""
    wanted = spec.confidential
    if wanted is None:
        return None
    snp = wanted.kind is Kind.SEV_SNP
    return Promise(
        type=OBJECT_TYPES[wanted.kind].removesuffix("-guest"),
        debug=wanted.host_may_debug if wanted.kind is not Kind.SE else None,
        migration_agent=wanted.migration_agent if snp else None,
        kernel="measured" if snp else None,
        variables=False if wanted.kind is not Kind.SE else None,
    )
