"""What this host has for confidential guests: processor, KVM's module, the security processor's device, firmware.

Everything here is only read: nothing tries to start such a guest. ``KVM_CAP_VM_TYPES`` (KVM's own answer) decides; the
other values say why it answers so.
"""

from __future__ import annotations

import fnmatch
import os
import stat
from typing import Any, Final

import msgspec

from casemate.facts.cpu_info import read_cpuinfo
from casemate.facts.fact import Unknown
from casemate.facts.firmware import descriptors, read_document
from casemate.facts.kvm_report import KvmReport
from casemate.facts.root import Root
from casemate.facts.sysfiles import is_there, line

SEV_DEVICE: Final = "/dev/sev"
PARAMETERS: Final = {
    "sev-snp": "/sys/module/kvm_amd/parameters/sev_snp",
    "tdx": "/sys/module/kvm_intel/parameters/tdx",
    "se": "/sys/firmware/uv/prot_virt_host",
}
"""Y or 1 when KVM (for SE: the ultravisor) offers it; the kernel itself says N where the platform does not."""
FEATURES: Final = {"sev-snp": "amd-sev-snp", "tdx": "intel-tdx"}
"""Features of QEMU's firmware descriptors (docs/interop/firmware.json)."""
_FLAGS: Final = {"sev-snp": "sev_snp"}
"""The kernel shows this flag; of TDX it shows none on every version."""


class ConfidentialHost(msgspec.Struct, frozen=True, kw_only=True):
    """What there is for one kind of confidential guest.

    ``flag``: whether /proc/cpuinfo names it, None where it names no such thing or cannot be read. ``parameter``: the
    kernel's own word about it, as it stands in its file; empty when there is no such file. ``device``: why /dev/sev
    cannot be used, empty when it can or is not needed. ``vm_types``: KVM_CAP_VM_TYPES, a bit for each type; None when
    KVM did not say. ``c_bit``: place of the encryption bit in an address (CPUID 8000001Fh, EBX 5:0). ``firmware``: the
    measured firmware that the host's descriptors name, empty when none does. ``quotes``: why the socket of the quote
    generation service cannot be used, empty when it can or was not asked for. ``boot``: why the measured firmware would
    not start this guest; empty when it would, or nobody can tell.
    """

    flag: bool | None = None
    parameter: str = ""
    device: str = ""
    vm_types: int | None = None
    c_bit: int | None = None
    firmware: str = ""
    quotes: str = ""
    boot: str = ""


def collect_confidential(
    root: Root, kind: str, report: KvmReport, quote_socket: str | None = None, *, is_direct: bool = False
) -> ConfidentialHost:
    """Look at everything that ``kind`` (``sev-snp``, ``tdx``, ``se``) needs. ``is_direct``: a kernel is given."""
    cpu = read_cpuinfo(root)
    flag = _FLAGS.get(kind)
    parameter = line(root, PARAMETERS[kind])
    return ConfidentialHost(
        flag=None if isinstance(cpu, Unknown) or flag is None else flag in cpu.flags,
        parameter="" if isinstance(parameter, Unknown) else parameter,
        device=_device(root) if kind == "sev-snp" else "",
        vm_types=report.extension("VM_TYPES"),
        c_bit=report.cpuid.c_bit if report.cpuid is not None else None,
        firmware=measured_firmware(root, kind, is_direct=is_direct),
        quotes=_quotes(root, quote_socket) if quote_socket is not None else "",
    )


def measured_firmware(root: Root, kind: str, *, is_direct: bool) -> str:
    """The image that the host's descriptors name first for a kind; empty when there is none.

    Args:
        is_direct: a kernel is given: one without keys of others goes before one that would ask them about the kernel.
    """
    found = measured_firmwares(root, FEATURES[kind]) if kind in FEATURES else {}
    return min(found, key=lambda name: is_direct and found[name], default="")


def measured_firmwares(root: Root, feature: str, machine: str = "q35") -> dict[str, bool]:
    """Images with this feature that keep no variables, in the order of their descriptors: whether keys are enrolled."""
    found: dict[str, bool] = {}
    for path in descriptors(root):
        document = read_document(root, path)
        name = _measured(document, feature, machine)
        if document is not None and name is not None and is_there(root, name) is True:
            found.setdefault(name, "enrolled-keys" in document["features"])
    return found


def _measured(document: dict[str, Any] | None, feature: str, machine: str) -> str | None:
    """The image of a descriptor that is loaded as memory, or as flash without variables; None for any other."""
    try:
        if document is None or feature not in list(document["features"]) or "uefi" not in document["interface-types"]:
            return None
        targets = [target for target in document["targets"] if target["architecture"] == "x86_64"]
        if not any(fnmatch.fnmatchcase(f"pc-{machine}-0", pattern) for item in targets for pattern in item["machines"]):
            return None
        mapping = document["mapping"]
        if mapping["device"] == "memory":
            name = mapping["filename"]
        elif mapping["device"] == "flash" and mapping.get("mode") == "stateless":
            if mapping["executable"]["format"] != "raw":
                return None
            name = mapping["executable"]["filename"]
        else:
            return None
    except (KeyError, TypeError, AttributeError):
        return None
    return name if isinstance(name, str) and name.startswith("/") else None


def _device(root: Root) -> str:
    try:
        status = root.stat(SEV_DEVICE)
    except OSError as error:
        return f"{SEV_DEVICE}: {error.strerror or error}"
    if not stat.S_ISCHR(status.st_mode):
        return f"{SEV_DEVICE} is no character device"
    if root.is_live and not os.access(SEV_DEVICE, os.R_OK | os.W_OK, effective_ids=True):
        return f"{SEV_DEVICE}: permission denied"
    return ""


def _quotes(root: Root, path: str) -> str:
    """The VM has a uid of its own, which is no group's: only what everybody may do is allowed to it."""
    try:
        status = root.stat(path)
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    if not stat.S_ISSOCK(status.st_mode):
        return f"{path} is no socket"
    if not status.st_mode & stat.S_IWOTH:
        return (
            f"{path} has mode {stat.S_IMODE(status.st_mode):04o}, and the VM's own user must be allowed to write to it"
        )
    return ""
