"""The host's IOMMU and the devices that are set aside for guests, from /sys, /dev and the command line.

Documentation/ABI/testing/sysfs-kernel-iommu_groups, admin-guide/kernel-parameters, driver-api/vfio in the kernel.
"""

from __future__ import annotations

import re
from typing import Final

from casemate.facts.cpu_info import CpuInfo, read_cpuinfo
from casemate.facts.fact import Fact, Facts, Known, Unknown
from casemate.facts.kconfig import read_kconfig
from casemate.facts.kernel_cmdline import CMDLINE, Cmdline, read_cmdline
from casemate.facts.kernel_version import cve_fact, read_version
from casemate.facts.modprobe import ModprobeConfig, loaded_modules, read_modprobe
from casemate.facts.root import Root
from casemate.facts.sysfiles import is_there, line, listed, names, names_or_none
from casemate.facts.vfio import PciFunction, read_function

GROUPS: Final = "/sys/kernel/iommu_groups"
TABLES: Final = "/sys/firmware/acpi/tables"
VFIO_PCI: Final = "/sys/bus/pci/drivers/vfio-pci"
THUNDERBOLT: Final = "/sys/bus/thunderbolt/devices"
_TABLE_NAMES: Final = ("DMAR", "IVRS", "IORT", "VIOT", "RIMT")
_ADDRESS: Final = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_HARMLESS_DRIVERS: Final = ("", "vfio-pci", "pci-stub", "pcieport")
_OFF: Final[dict[str, tuple[str, ...]]] = {
    "iommu": ("off", "soft"),
    "intel_iommu": ("off",),
    "amd_iommu": ("off",),
    "intremap": ("off", "nosid"),
    "arm_smmu.disable_bypass": ("0", "n", "no", "off"),
}
_TRUE: Final = ("1", "y", "yes", "on", "t", "true")


def collect_iommu(root: Root) -> Facts:
    """Facts ``iommu.*`` of a host; never raises for what the tree holds."""
    cmdline, config, cpu = read_cmdline(root), read_modprobe(root), read_cpuinfo(root)
    facts = _groups(root) | _from_cmdline(root, cmdline) | _assigned(root) | _thunderbolt(root)
    facts["iommu.firmware"] = _tables(root)
    facts["iommu.unsafe-interrupts"] = _switch(root, "vfio_iommu_type1", "allow_unsafe_interrupts", config)
    facts["iommu.no-iommu-mode"] = _switch(root, "vfio", "enable_unsafe_noiommu_mode", config)
    facts["iommu.nodes-open"] = _nodes(root)
    facts |= _vfio_level(root, cpu)
    return facts


def _groups(root: Root) -> Facts:
    """``iommu.groups``: how many; ``iommu.group-types``: ``7: DMA`` for each."""
    found = names_or_none(root, GROUPS, "/sys/kernel")
    if isinstance(found, Unknown):
        return {"iommu.groups": found, "iommu.group-types": found}
    kinds: list[str] = []
    for name in found:
        kind = line(root, f"{GROUPS}/{name}/type")
        if isinstance(kind, Unknown):
            return {"iommu.groups": Known(len(found), GROUPS), "iommu.group-types": kind}
        kinds.append(f"{name}: {kind}")
    return {"iommu.groups": Known(len(found), GROUPS), "iommu.group-types": Known(tuple(kinds), f"{GROUPS}/*/type")}


def _tables(root: Root) -> Fact:
    tables = names(root, TABLES)
    if isinstance(tables, Unknown):
        return tables
    return Known(tuple(name for name in _TABLE_NAMES if name in tables), TABLES)


def _from_cmdline(root: Root, cmdline: Cmdline | Unknown) -> Facts:
    facts: Facts = {"iommu.efi-boot": _efi(root)}
    if isinstance(cmdline, Unknown):
        for name in ("iommu.off-switches", "iommu.passthrough-words", "iommu.acs-overrides", "iommu.early-dma-off"):
            facts[name] = cmdline
        return facts
    words = [(name, part) for name, value in cmdline.words for part in value.lower().split(",")]
    off = [f"{name}={part}" for name, part in words if part in _OFF.get(name, ())]
    passthrough = [f"{name}={part}" for name, part in words if (name, part) in (("iommu", "pt"),)]
    if cmdline.switch("iommu.passthrough"):
        passthrough.append("iommu.passthrough=1")
    facts["iommu.off-switches"] = listed(off, CMDLINE)
    facts["iommu.passthrough-words"] = listed(passthrough, CMDLINE)
    facts["iommu.acs-overrides"] = listed(_acs(cmdline), CMDLINE)
    facts["iommu.early-dma-off"] = _early_dma(root, words)
    return facts


def _acs(cmdline: Cmdline) -> list[str]:
    """Words that make devices look separated which the hardware does not separate."""
    found = [f"{name}={value}" for name, value in cmdline.words if name == "pcie_acs_override"]
    for name, value in cmdline.words:
        if name == "pci":
            found += [f"pci={v}" for v in value.split(",") if v.startswith(("disable_acs_redir=", "config_acs="))]
    return found


def _efi(root: Root) -> Fact:
    there = is_there(root, "/sys/firmware/efi")
    if there is False and is_there(root, "/sys/firmware") is not True:
        return Unknown("/sys/firmware: not there")
    return there if isinstance(there, Unknown) else Known(there, "/sys/firmware/efi")


def _early_dma(root: Root, words: list[tuple[str, str]]) -> Fact:
    """Whether the kernel stops bus masters before the IOMMU is up (CONFIG_EFI_DISABLE_PCI_DMA)."""
    said = [part for name, part in words if name == "efi" and part.endswith("disable_early_pci_dma")]
    if said:
        return Known(not said[-1].startswith("no_"), f"{CMDLINE}: efi={said[-1]}")
    config = read_kconfig(root)
    if isinstance(config, Unknown):
        return Unknown(f"{CMDLINE} does not say it; {config.why}")
    return Known(config.get("EFI_DISABLE_PCI_DMA") == "y", f"{config.source}: CONFIG_EFI_DISABLE_PCI_DMA")


def _switch(root: Root, module: str, parameter: str, config: ModprobeConfig | Unknown) -> Fact:
    """A switch of a module as ``Y`` or ``N``. Not loaded: what modprobe would set, or ``absent`` when nothing would."""
    base = f"/sys/module/{module}"
    there = is_there(root, base)
    if isinstance(there, Unknown):
        return there
    if there:
        text = line(root, f"{base}/parameters/{parameter}")
        if isinstance(text, Unknown):
            # Built without the feature: the module is there and the parameter is not.
            if is_there(root, f"{base}/parameters/{parameter}") is False:
                return Known("absent", f"{base}: no parameter {parameter}")
            return text
        values = {"Y": "Y", "1": "Y", "N": "N", "0": "N"}
        source = f"{base}/parameters/{parameter}"
        return Known(values[text], source) if text in values else Unknown(f"{source}: {text[:40]!r} not understood")
    if is_there(root, "/sys/module") is not True:
        return Unknown("/sys/module: not there")
    if isinstance(config, Unknown):
        return config
    said = config.option(module, parameter)
    if said is None:
        return Known("absent", f"{base}: not loaded, and modprobe.d sets no {parameter}")
    return Known("Y" if said.lower() in _TRUE else "N", f"modprobe.d or command line: {module} {parameter}")


def _assigned(root: Root) -> Facts:
    """What is bound to vfio-pci, and with whom it shares a group."""
    entries = names_or_none(root, VFIO_PCI, "/sys/bus")
    facts_names = ("iommu.assigned", "iommu.groups-shared", "iommu.no-reset", "iommu.physical-nics")
    if isinstance(entries, Unknown):
        return dict.fromkeys(facts_names, entries)
    try:
        devices = [read_function(root, name) for name in entries if _ADDRESS.fullmatch(name)]
    except OSError as error:
        return dict.fromkeys(facts_names, Unknown(f"{VFIO_PCI}: {error.strerror or error}"))
    shared = [text for device in devices for text in _sharing(device)]
    facts: Facts = {
        "iommu.assigned": listed([device.address for device in devices], VFIO_PCI),
        "iommu.groups-shared": listed(shared, f"{GROUPS}/*/devices"),
        "iommu.no-reset": listed([d.address for d in devices if not d.reset_methods], "reset_method of PCI functions"),
        "iommu.physical-nics": listed(
            [d.address for d in devices if d.is_network and not d.is_virtual_function], "class and physfn of functions"
        ),
    }
    lost = [d.address for d in devices if not d.group]
    if lost:
        facts["iommu.groups-shared"] = Unknown(f"{', '.join(lost)}: no IOMMU group is known")
    # Kernels before 5.15 have no file reset_method, and a kernel writes nothing into it for a device without one.
    unread = [
        d.address for d in devices if is_there(root, f"/sys/bus/pci/devices/{d.address}/reset_method") is not True
    ]
    if unread and any(is_there(root, f"/sys/bus/pci/devices/{address}/reset") is not False for address in unread):
        facts["iommu.no-reset"] = Unknown(f"{', '.join(unread)}: no file reset_method")
    return facts


def _sharing(device: PciFunction) -> list[str]:
    return [
        f"{device.address} and {other} ({driver}) in group {device.group}"
        for other, driver in device.others
        if driver not in _HARMLESS_DRIVERS
    ]


def _nodes(root: Root) -> Fact:
    """Nodes of VFIO and iommufd that every user may open. /dev/vfio/vfio alone gives nothing and is open by default."""
    found: list[str] = []
    paths = ["/dev/iommu"]
    for folder in ("/dev/vfio", "/dev/vfio/devices"):
        inside = names_or_none(root, folder, "/dev")
        if isinstance(inside, Unknown):
            return inside
        paths += [
            f"{folder}/{name}" for name in inside if f"{folder}/{name}" not in ("/dev/vfio/vfio", "/dev/vfio/devices")
        ]
    for path in paths:
        try:
            mode = root.stat(path).st_mode
        except FileNotFoundError:
            continue
        except OSError as error:
            return Unknown(f"{path}: {error.strerror}")
        if mode & 0o006:
            found.append(f"{path} {mode & 0o7777:04o}")
    return Known(tuple(found), "/dev/vfio, /dev/iommu: modes")


def _thunderbolt(root: Root) -> Facts:
    entries = names_or_none(root, THUNDERBOLT, "/sys/bus")
    if isinstance(entries, Unknown):
        return {"iommu.thunderbolt": entries, "iommu.thunderbolt-open": entries}
    domains = [name for name in entries if re.fullmatch(r"domain\d+", name)]
    open_ones: list[str] = []
    for name in domains:
        protected = line(root, f"{THUNDERBOLT}/{name}/iommu_dma_protection")
        if isinstance(protected, Unknown):
            return {"iommu.thunderbolt": listed(domains, THUNDERBOLT), "iommu.thunderbolt-open": protected}
        if protected != "1":
            open_ones.append(name)
    return {
        "iommu.thunderbolt": listed(domains, THUNDERBOLT),
        "iommu.thunderbolt-open": listed(open_ones, f"{THUNDERBOLT}/domain*/iommu_dma_protection"),
    }


def _vfio_level(root: Root, cpu: CpuInfo | Unknown) -> Facts:
    loaded = loaded_modules(root)
    there: Fact = loaded if isinstance(loaded, Unknown) else Known("vfio" in loaded, "/sys/module/vfio")
    return {"iommu.vfio-loaded": there, "iommu.cve-open": cve_fact(root, "vfio", read_version(root), cpu)}
