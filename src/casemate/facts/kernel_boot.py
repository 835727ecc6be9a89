"""How the host came up: firmware, Secure Boot, TPM event log, a hypervisor below it.

EFI variables are files of four bytes of attributes and then the value (Documentation/filesystems/efivarfs).
"""

from __future__ import annotations

import re
from typing import Final

from casemate.facts.fact import Fact, Facts, Known, Unknown
from casemate.facts.root import Root

_EFI: Final = "/sys/firmware/efi"
_GLOBAL: Final = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
_ATTRIBUTE_BYTES: Final = 4
_EVENT_LOG: Final = "/sys/kernel/security/tpm0/binary_bios_measurements"
_TPM: Final = "/sys/class/tpm"
_DMI: Final = "/sys/class/dmi/id"
_CPUINFO: Final = "/proc/cpuinfo"
_CPUINFO_BYTES: Final = 8 << 20
# What the firmware tables of common hypervisors say (sys_vendor, product_name); the same names systemd-detect-virt
# knows. Amazon and Google write theirs on bare-metal machines too, so they are not here.
_DMI_VMM: Final = re.compile(
    r"QEMU|KVM|VMware|VirtualBox|innotek|Xen|Bochs|Parallels|BHYVE|Hyper-V|Virtual Machine|OpenStack|Firecracker"
    r"|Cloud Hypervisor|Apple Virtualization"
)


def boot_facts(root: Root) -> Facts:
    """``kernel.secure-boot``, ``kernel.secure-boot-setup``, ``kernel.tpm-log``, ``kernel.outer-vmm``."""
    return {
        "kernel.secure-boot": _efi_flag(root, "SecureBoot", "on", "off"),
        "kernel.secure-boot-setup": _efi_flag(root, "SetupMode", "setup", "user"),
        "kernel.tpm-log": _tpm_log(root),
        "kernel.outer-vmm": _outer_vmm(root),
    }


def _efi_flag(root: Root, name: str, one: str, zero: str) -> Fact:
    """A one-byte variable of the firmware as a word; ``no-uefi`` when the host was not started by UEFI."""
    path = f"{_EFI}/efivars/{name}-{_GLOBAL}"
    try:
        if not root.exists("/sys/firmware"):
            return Unknown("/sys/firmware does not exist here, so a missing file says nothing")
        if not root.exists(_EFI):
            return Known("no-uefi", f"{_EFI} does not exist")
        data = root.read_bytes(path, 64)
    except FileNotFoundError:
        return Unknown(f"{path}: does not exist (efivarfs not mounted?)")
    except OSError as error:
        return Unknown(f"{path}: {error.strerror or error}")
    value = data[_ATTRIBUTE_BYTES:]
    if value not in (b"\0", b"\1"):
        return Unknown(f"{path}: {len(data)} bytes, expected four bytes of attributes and 0 or 1")
    return Known(one if value == b"\1" else zero, path)


def _tpm_log(root: Root) -> Fact:
    """``present``: the firmware measured the boot into a TPM and left its log; ``no-tpm``; ``no-log``."""
    try:
        if not root.exists("/sys/class"):
            return Unknown("/sys/class does not exist here, so a missing file says nothing")
        if not root.exists(_TPM) or not root.list_dir(_TPM):
            return Known("no-tpm", f"{_TPM} has no entry")
        if root.exists(_EVENT_LOG):
            return Known("present", _EVENT_LOG)
        if not root.exists("/sys/kernel/security/lsm"):
            return Unknown(f"{_EVENT_LOG}: securityfs is not mounted")
    except OSError as error:
        return Unknown(f"{error.filename or _TPM}: {error.strerror or error}")
    return Known("no-log", f"{_TPM} has a TPM, {_EVENT_LOG} does not exist")


def _outer_vmm(root: Root) -> Fact:
    """Every sign of a hypervisor below this host. Silence of one place is no proof, so all must have been read."""
    signs: list[str] = []
    sources = [_CPUINFO, "/sys/hypervisor/type", _DMI]
    try:
        cpuinfo = root.read_text(_CPUINFO, _CPUINFO_BYTES)
        flags = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
        if flags is None:
            return Unknown(f"{_CPUINFO}: no flags")
        if "hypervisor" in flags[1].split():
            signs.append("CPU flag hypervisor")
        kind = _text_or_empty(root, "/sys/hypervisor/type")
        if kind and "privileged" not in _text_or_empty(root, "/sys/hypervisor/properties/capabilities"):
            signs.append(f"/sys/hypervisor/type {kind}")
        for field in ("sys_vendor", "product_name", "bios_vendor", "board_vendor"):
            text = _text_or_empty(root, f"{_DMI}/{field}")
            if _DMI_VMM.search(text):
                signs.append(f"DMI {field} {text}")
    except OSError as error:
        return Unknown(f"{error.filename or _CPUINFO}: {error.strerror or error}")
    return Known(tuple(signs), ", ".join(sources))


def _text_or_empty(root: Root, path: str) -> str:
    try:
        return root.read_text(path, 4096).strip()
    except FileNotFoundError:
        return ""
