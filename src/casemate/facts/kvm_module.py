"""KVM on the host: parameters of its modules, drivers beside it, its device, and what else could host guests.

Parameters and their defaults: arch/x86/kvm and virt/kvm in the kernel; Documentation/virt/kvm.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Final

from casemate.facts.cpu_info import CpuInfo, read_cpuinfo
from casemate.facts.fact import Fact, Facts, Known, Unknown
from casemate.facts.kconfig import Kconfig, read_kconfig
from casemate.facts.kernel_cmdline import CMDLINE, read_cmdline
from casemate.facts.kernel_version import cve_fact, read_version
from casemate.facts.modprobe import loadable, loaded_modules, read_modprobe, taints
from casemate.facts.root import Root
from casemate.facts.sysfiles import is_there, line, listed, names_or_none

DEVICE: Final = "/dev/kvm"
VENDOR_MODULES: Final = ("kvm_intel", "kvm_amd")
VHOST: Final = ("vhost_net", "vhost_scsi", "vhost_vsock", "vhost_vdpa")
_KVM_MODULES: Final = ("kvm", "kvm_intel", "kvm_amd")

SWITCHES: Final[dict[str, tuple[str, str]]] = {
    "kvm.allow-unsafe-mappings": ("kvm", "allow_unsafe_mappings"),
    "kvm.vmware-backdoor": ("kvm", "enable_vmware_backdoor"),
    "kvm.ignore-msrs": ("kvm", "ignore_msrs"),
    "kvm.report-ignored-msrs": ("kvm", "report_ignored_msrs"),
    "kvm.nx-huge-pages": ("kvm", "nx_huge_pages"),
    "kvm.tdp-mmu": ("kvm", "tdp_mmu"),
    "kvm.vpmu": ("kvm", "enable_pmu"),
    "kvm.smt-rsb": ("kvm", "mitigate_smt_rsb"),
    "kvm.force-emulation-prefix": ("kvm", "force_emulation_prefix"),
    "kvm.unrestricted-guest": ("kvm_intel", "unrestricted_guest"),
    "kvm.pt-mode": ("kvm_intel", "pt_mode"),
    "kvm.dump-invalid-vmcs": ("kvm_intel", "dump_invalid_vmcs"),
    "kvm.dump-invalid-vmcb": ("kvm_amd", "dump_invalid_vmcb"),
}
"""Fact to (module, parameter); the value is ``Y``, ``N`` or, when the module has none of that name, ``absent``."""

# Modules of other hypervisors, and vendor modules of KVM that the kernel's own source does not have.
_FOREIGN: Final = (
    "vboxdrv",
    "vboxnetflt",
    "vboxnetadp",
    "vmmon",
    "vmnet",
    "vmw_vmci_host",
    "kvm_pvm",
    "mshv_root",
    "mshv_vtl",
    "acrn_hsm",
    "parallels",
    "prl_hypervisor",
    "kqemu",
    "jailhouse",
)
_XEN_MODULES: Final = ("xen_blkback", "xen_netback", "xen_gntdev", "xen_gntalloc", "xen_evtchn", "xen_pciback")
_XEN_FILES: Final = (
    "/proc/xen",
    "/usr/sbin/xl",
    "/usr/sbin/xenstored",
    "/usr/libexec/xen",
    "/usr/lib/xen/bin/xenstored",
)
_BIN: Final = ("/usr/bin", "/usr/sbin", "/usr/libexec", "/usr/local/bin", "/usr/local/sbin")
_VMMS: Final = (
    "qemu-kvm",
    "libvirtd",
    "virtqemud",
    "firecracker",
    "cloud-hypervisor",
    "crosvm",
    "kata-runtime",
    "VBoxHeadless",
    "VBoxSVC",
)


def collect_kvm_module(root: Root) -> Facts:
    """Facts ``kvm.*`` of a host, and ``host.kvm-device``; never raises for what the tree holds."""
    cpu, loaded = read_cpuinfo(root), loaded_modules(root)
    facts = _presence(root, loaded) | _parameters(root, cpu, loaded) | _vhost(root, loaded) | _device(root)
    facts["kvm.foreign-hypervisors"] = _foreign(loaded)
    facts["kvm.taints"] = _taints(root, loaded)
    facts["kvm.xen-traces"] = _xen(root, loaded)
    facts |= _built(root)
    version = read_version(root)
    for name, component in (("kvm.cve-open", "kvm"), ("kvm.vhost-cve-open", "vhost"), ("cpu.sysret-open", "sysret")):
        facts[name] = cve_fact(root, component, version, cpu)
    return facts


def _presence(root: Root, loaded: frozenset[str] | Unknown) -> Facts:
    """``kvm.present``, ``kvm.vendor-modules``, ``kvm.loadable``, ``kvm.vmm-installed``."""
    node = is_there(root, DEVICE)
    facts: Facts = {}
    if isinstance(loaded, Unknown) or isinstance(node, Unknown):
        why = loaded if isinstance(loaded, Unknown) else node
        assert isinstance(why, Unknown)
        facts["kvm.present"] = facts["kvm.vendor-modules"] = why
    else:
        facts["kvm.present"] = Known(node or "kvm" in loaded, f"{DEVICE}, /sys/module/kvm")
        facts["kvm.vendor-modules"] = Known(tuple(sorted(n for n in loaded if n.startswith("kvm_"))), "/sys/module")
    facts["kvm.loadable"] = _loadable(root, _KVM_MODULES)
    facts["kvm.vmm-installed"] = _vmms(root)
    return facts


def _loadable(root: Root, modules: tuple[str, ...]) -> Fact:
    """Modules that are built in or could be loaded; a kernel without modules has them in its configuration."""
    possible = loadable(root, modules, read_modprobe(root))
    if isinstance(possible, Unknown):
        return possible
    config = read_kconfig(root)
    if isinstance(config, Kconfig):
        built_in = tuple(f"{name} (built in)" for name in modules if config.get(name.upper()) == "y")
        possible = (*built_in, *possible)
    return listed(possible, "kernel configuration, modules.builtin, modules.dep, modprobe.d")


def _vmms(root: Root) -> Fact:
    found: list[str] = []
    for folder in _BIN:
        there = names_or_none(root, folder, "/usr")
        if isinstance(there, Unknown):
            return there
        found += [f"{folder}/{name}" for name in there if name in _VMMS or name.startswith("qemu-system-")]
    return Known(tuple(found), ", ".join(_BIN))


def _parameters(root: Root, cpu: CpuInfo | Unknown, loaded: frozenset[str] | Unknown) -> Facts:
    facts: Facts = {name: _switch(root, module, parameter) for name, (module, parameter) in SWITCHES.items()}
    facts["kvm.min-timer-period-us"] = root.fact("/sys/module/kvm/parameters/min_timer_period_us", int)
    facts["kvm.l1d-flush"] = root.fact("/sys/module/kvm_intel/parameters/vmentry_l1d_flush", str.strip)
    facts["kvm.nested-modules"] = _nested(root, cpu, loaded)
    facts["kvm.two-dim-paging"] = _two_dimensional(root)
    return facts


def _switch(root: Root, module: str, parameter: str) -> Fact:
    """``Y``, ``N``, or ``absent`` when the module shows parameters and this is none of them."""
    path = f"/sys/module/{module}/parameters/{parameter}"
    text = line(root, path)
    if isinstance(text, Unknown):
        if is_there(root, path) is False and is_there(root, f"/sys/module/{module}/parameters") is True:
            return Known("absent", f"/sys/module/{module}/parameters: no {parameter}")
        return text
    # force_emulation_prefix is a number from 6.2 on; nx_huge_pages may say "never".
    values = {"Y": "Y", "1": "Y", "N": "N", "0": "N", "never": "N"}
    if text in values:
        return Known(values[text], path)
    return Known("Y", f"{path}: {text}") if text.isascii() and text.isdigit() else Unknown(f"{path}: {text[:40]!r}")


def _nested(root: Root, cpu: CpuInfo | Unknown, loaded: frozenset[str] | Unknown) -> Fact:
    """Modules that let guests run guests. No parameter to be seen is no answer."""
    if isinstance(loaded, Unknown):
        return loaded
    said: list[str] = []
    for module in sorted(name for name in loaded if name.startswith("kvm_")):
        text = line(root, f"/sys/module/{module}/parameters/nested")
        if isinstance(text, str):
            said.append(f"{module}={text}")
        elif module in VENDOR_MODULES or module in _FOREIGN:
            return Unknown(f"{module} is loaded and shows no parameter nested ({text.why})")
    if said:
        return Known(tuple(s for s in said if s.partition("=")[2] not in ("N", "0")), "/sys/module/*/parameters/nested")
    if isinstance(cpu, CpuInfo) and cpu.architecture == "arm64":
        cmdline = read_cmdline(root)
        if isinstance(cmdline, Unknown):
            return cmdline
        mode = cmdline.last("kvm_arm.mode") or ""
        return Known(("kvm-arm.mode=nested",) if mode == "nested" else (), f"{CMDLINE}: kvm-arm.mode")
    return Unknown(
        "no vendor module of KVM is loaded whose parameter nested could be read; kvm_intel and kvm_amd allow"
        " nesting unless told otherwise"
    )


def _two_dimensional(root: Root) -> Fact:
    for module, parameter in (("kvm_intel", "ept"), ("kvm_amd", "npt")):
        found = _switch(root, module, parameter)
        if isinstance(found, Known) and found.value != "absent":
            return Known(found.value, found.source)
    return Unknown("neither kvm_intel (ept) nor kvm_amd (npt) is loaded")


def _vhost(root: Root, loaded: frozenset[str] | Unknown) -> Facts:
    """``kvm.vhost-net-traces`` and so on: the module, and the device node whose opening loads it."""
    facts: Facts = {}
    for module in VHOST:
        name, node = f"kvm.{module.replace('_', '-')}-traces", f"/dev/{module.replace('_', '-')}"
        there = is_there(root, node)
        if isinstance(loaded, Unknown) or isinstance(there, Unknown):
            facts[name] = loaded if isinstance(loaded, Unknown) else Unknown(f"{node}: not known")
            continue
        traces = [f"module {module}"] if module in loaded else []
        facts[name] = listed(traces + ([node] if there else []), "/sys/module, /dev")
    facts["kvm.vhost-loadable"] = _loadable(root, VHOST)
    return facts | {"kvm.vhost-possible": _vhost_possible(facts)}


def _vhost_possible(facts: Facts) -> Fact:
    """Whether a vhost driver runs or could be loaded: then its vulnerabilities count."""
    unknown: Unknown | None = None
    for fact in facts.values():
        if isinstance(fact, Unknown):
            unknown = fact
        elif fact.value:
            return Known(True, fact.source)
    return unknown or Known(False, "/sys/module, /dev, modules.dep")


def _device(root: Root) -> Facts:
    """``host.kvm-device`` (``root:kvm 0660``) and ``kvm.device-acl`` (``user 1000 rw``)."""
    try:
        status = root.stat(DEVICE)
    except OSError as error:
        why = Unknown(f"{DEVICE}: {error.strerror or error}")
        return {"host.kvm-device": why, "kvm.device-acl": why}
    user, group = _name(root, "/etc/passwd", status.st_uid), _name(root, "/etc/group", status.st_gid)
    said = Known(f"{user}:{group} {status.st_mode & 0o7777:04o}", f"stat {DEVICE}")
    return {"host.kvm-device": said, "kvm.device-acl": _acl(root)}


def _name(root: Root, path: str, number: int) -> str:
    """The first name of an id in passwd(5) or group(5); the number when there is none."""
    try:
        rows = root.read_text(path).split("\n")
    except OSError:
        return "root" if number == 0 else str(number)
    for row in rows:
        words = row.split(":")
        if len(words) > 2 and words[2] == str(number) and words[0].strip() and not set(words[0]) & set(" \t"):
            return words[0]
    return "root" if number == 0 else str(number)


def _acl(root: Root) -> Fact:
    """Users and groups that a POSIX access control list lets in beside owner and group."""
    if not root.is_live:
        return Unknown(f"{DEVICE}: a captured tree keeps no access control lists")
    try:
        descriptor = root.open(DEVICE, os.O_PATH)
    except OSError as error:
        return Unknown(f"{DEVICE}: {error.strerror}")
    try:
        raw = os.getxattr(f"/proc/self/fd/{descriptor}", "system.posix_acl_access")
        return Known(parse_acl(raw), f"{DEVICE}: system.posix_acl_access")
    except OSError as error:
        # ENODATA: no list. EOPNOTSUPP: this file system keeps none.
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return Known((), f"{DEVICE}: no access control list")
        return Unknown(f"{DEVICE}: {error.strerror}")
    except ValueError as error:
        return Unknown(f"{DEVICE}: access control list not understood ({error})")
    finally:
        os.close(descriptor)


def parse_acl(raw: bytes) -> tuple[str, ...]:
    """Named users and groups, from struct posix_acl_xattr: u32 version, then (u16 tag, u16 rights, u32 id).

    Raises:
        ValueError: another version, or a length that does not fit.
    """
    if len(raw) < 4 or (len(raw) - 4) % 8 or struct.unpack_from("<I", raw)[0] != 2:
        raise ValueError(f"{len(raw)} bytes")
    found: list[str] = []
    for tag, rights, number in struct.iter_unpack("<HHI", raw[4:]):
        kind = {0x02: "user", 0x08: "group"}.get(tag)
        if kind and rights & 7:
            letters = "".join(letter for bit, letter in ((4, "r"), (2, "w"), (1, "x")) if rights & bit)
            found.append(f"{kind} {number} {letters}")
    return tuple(found)


def _foreign(loaded: frozenset[str] | Unknown) -> Fact:
    if isinstance(loaded, Unknown):
        return loaded
    return listed([name for name in _FOREIGN if name in loaded], "/sys/module")


def _taints(root: Root, loaded: frozenset[str] | Unknown) -> Fact:
    """Modules of KVM, VFIO and vhost that are not the kernel's own signed ones."""
    if isinstance(loaded, Unknown):
        return loaded
    ours = tuple(sorted(name for name in loaded if name.partition("_")[0] in ("kvm", "vfio", "vhost")))
    return listed(taints(root, ours), "/sys/module/*/taint")


def _xen(root: Root, loaded: frozenset[str] | Unknown) -> Fact:
    """What shows that this host runs on Xen, or has its tools."""
    if isinstance(loaded, Unknown):
        return loaded
    found: list[str] = []
    kind = line(root, "/sys/hypervisor/type")
    if isinstance(kind, str) and kind == "xen":
        found.append("/sys/hypervisor/type: xen")
    elif isinstance(kind, Unknown) and is_there(root, "/sys/hypervisor/type") is not False:
        return kind
    found += [f"module {name}" for name in _XEN_MODULES if name in loaded]
    for path in _XEN_FILES:
        there = is_there(root, path)
        if isinstance(there, Unknown):
            return there
        if there:
            found.append(path)
    return Known(tuple(found), "/sys/hypervisor, /sys/module, /proc/xen, Xen's tools")


def _built(root: Root) -> Facts:
    """Interfaces of other hypervisors that KVM was built to imitate: ``y``, ``n`` or ``absent``."""
    config = read_kconfig(root)
    options = {"kvm.built-xen": "KVM_XEN", "kvm.built-hyperv": "KVM_HYPERV"}
    return {name: config.fact(option) if isinstance(config, Kconfig) else config for name, option in options.items()}
