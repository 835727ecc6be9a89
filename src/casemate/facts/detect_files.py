"""What the files of a system say about a hypervisor or a container around it; works on a captured tree.

Each look returns indicators and adds to ``unread`` what could not be looked at. Nothing is concluded here.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Final

from casemate.facts.detect_data import (
    ACPI_DEVICES,
    ACPI_OEMS,
    CLOCKS,
    DISK_MODELS,
    DMI_WORDS,
    MAC_PREFIXES,
    MODULES,
    PCI_SUBSYSTEM_VENDORS,
    PCI_VENDORS,
    WEAK_PLATFORMS,
)
from casemate.facts.detect_model import About, Indicator, Strength
from casemate.facts.root import Root

VALUE_MAX: Final = 80
ENTRIES_MAX: Final = 512
_SMALL_BYTES: Final = 65536

_DMI_FIELDS: Final = (
    *("sys_vendor", "product_name", "product_version", "product_family", "board_vendor", "board_name"),
    *("bios_vendor", "bios_version", "chassis_vendor", "chassis_asset_tag"),
)
_DMI_VIRTUAL_BIT: Final = 0x10

Look = Callable[[Root, list[str]], Iterator[Indicator]]


def look_at_files(root: Root) -> tuple[list[Indicator], list[str]]:
    """Everything that files say: indicators, and what could not be read with the reason."""
    found: list[Indicator] = []
    unread: list[str] = []
    for look in LOOKS:
        try:
            found += list(look(root, unread))
        except OSError as fault:
            unread.append(f"{fault.filename or look.__name__}: {fault.strerror or fault}")
    return found, unread


def shown(text: str) -> str:
    """One bounded, printable line of what was read."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= VALUE_MAX else line[: VALUE_MAX - 1] + "…"


def read(root: Root, path: str, unread: list[str] | None = None) -> str | None:
    """A small file's text, or None; a reason other than its absence goes to ``unread``."""
    try:
        return root.read_text(path, _SMALL_BYTES)
    except OSError as fault:
        if unread is not None and fault.errno not in (errno.ENOENT, errno.ENOTDIR):
            unread.append(f"{path}: {fault.strerror or fault}")
        return None


def names(root: Root, path: str) -> tuple[str, ...]:
    """Names in a directory; empty when there is none, at most `ENTRIES_MAX`."""
    try:
        return root.list_dir(path)[:ENTRIES_MAX]
    except OSError as fault:
        if fault.errno in (errno.ENOENT, errno.ENOTDIR):
            return ()
        raise


def _points(hypervisor: str, platform: str, strength: Strength, value: str, source: str) -> Iterator[Indicator]:
    """One indicator, or two when both a hypervisor and a platform are named; one without a name when neither is."""
    if hypervisor or not platform:
        yield Indicator(about=About.HYPERVISOR, strength=strength, says=hypervisor, value=shown(value), source=source)
    if platform:
        yield Indicator(about=About.PLATFORM, strength=strength, says=platform, value=shown(value), source=source)


def _cpuinfo(root: Root, unread: list[str]) -> Iterator[Indicator]:
    path = "/proc/cpuinfo"
    try:
        text = root.read_bytes(path, 1 << 22).decode("ascii", "replace")
    except OSError as fault:
        unread.append(f"{path}: {fault.strerror or fault}")
        return
    fields = dict(line.split(":", 1) for line in text.splitlines()[:64] if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = fields.get("flags", fields.get("Features", "")).split()
    if "hypervisor" in flags:
        yield from _points("", "", Strength.PROOF, "flag hypervisor", f"{path}: flags")
    if fields.get("model name", "").startswith("QEMU"):
        yield from _points("", "qemu", Strength.STRONG, fields["model name"], f"{path}: model name")
    if fields.get("vendor_id", "") == "User Mode Linux":
        yield from _points("uml", "", Strength.PROOF, fields["vendor_id"], f"{path}: vendor_id")
    for flag, what in (("sev_snp", "SEV-SNP"), ("sev_es", "SEV-ES"), ("tdx_guest", "TDX")):
        if flag in flags and "hypervisor" in flags:
            yield from _points("", "", Strength.PROOF, f"flag {flag}: a confidential guest ({what})", f"{path}: flags")
    nested = [flag for flag in ("vmx", "svm") if flag in flags]
    if nested:
        yield Indicator(
            about=About.INSIDE,
            strength=Strength.STRONG,
            says="kvm",
            value=f"flag {nested[0]}: this processor offers virtualisation to what runs here",
            source=f"{path}: flags",
        )


def _dmi(root: Root, unread: list[str]) -> Iterator[Indicator]:
    folder = "/sys/class/dmi/id"
    seen = False
    for field in _DMI_FIELDS:
        text = read(root, f"{folder}/{field}", unread)
        if text is None:
            continue
        seen = True
        text = text.strip()
        for words, hypervisor, platform in DMI_WORDS:
            if text.startswith(words) or (words == "Virtual Machine" and text.endswith(words)):
                weak = platform in WEAK_PLATFORMS or platform in ("seabios", "ovmf")
                strength = Strength.WEAK if weak else Strength.STRONG
                yield from _points(hypervisor, platform, strength, text, f"{folder}/{field}")
                break
    raw = "/sys/firmware/dmi/entries/0-0/raw"
    try:
        data = root.read_bytes(raw, 4096)
    except OSError as fault:
        if fault.errno not in (errno.ENOENT, errno.ENOTDIR):
            unread.append(f"{raw}: {fault.strerror or fault}")
    else:
        seen = True
        if len(data) >= 0x14 and data[0x13] & _DMI_VIRTUAL_BIT:
            yield from _points("", "", Strength.STRONG, "SMBIOS says that it is a virtual machine", f"{raw}: byte 0x13")
    if not seen:
        unread.append(f"DMI: neither {folder} nor {raw} is there (microvm, Firecracker and ARM boards have none)")


def _acpi(root: Root, unread: list[str]) -> Iterator[Indicator]:
    folder = "/sys/firmware/acpi/tables"
    told: dict[str, list[str]] = {}
    for name in names(root, folder):
        if not name[:4].isalnum() or not name.isupper():
            continue
        try:
            data = root.read_bytes(f"{folder}/{name}", 1 << 20)
        except OSError as fault:
            unread.append(f"{folder}/{name}: {fault.strerror or fault}")
            break  # the others are as unreadable
        told.setdefault(data[10:16].rstrip(b" \0").decode("ascii", "replace").upper(), []).append(name)
    for oem, tables in told.items():
        hypervisor, platform = ACPI_OEMS.get(oem, ("", ""))
        if hypervisor or platform:
            strength = Strength.WEAK if platform in WEAK_PLATFORMS else Strength.STRONG
            value = f"OEM id {oem} in {', '.join(tables)}"
            yield from _points(hypervisor, platform, strength, value, folder)
    devices = "/sys/bus/acpi/devices"
    for prefix, (hypervisor, platform, what) in ACPI_DEVICES.items():
        matching = [name for name in names(root, devices) if name.startswith(prefix)]
        if matching:
            yield from _points(hypervisor, platform, Strength.STRONG, f"{matching[0]}: {what}", devices)


def _pci(root: Root, unread: list[str]) -> Iterator[Indicator]:
    folder = "/sys/bus/pci/devices"
    vendors: dict[str, list[str]] = {}
    subsystems: dict[str, list[str]] = {}
    for name in names(root, folder):
        vendor = (read(root, f"{folder}/{name}/vendor", unread) or "").strip()
        subsystem = (read(root, f"{folder}/{name}/subsystem_vendor", unread) or "").strip()
        vendors.setdefault(vendor, []).append(name)
        if vendor not in PCI_VENDORS:
            subsystems.setdefault(subsystem, []).append(name)
    for vendor, addresses in vendors.items():
        if vendor in PCI_VENDORS:
            hypervisor, platform, what, strong = PCI_VENDORS[vendor]
            value = f"{what}: {_several(addresses)}"
            strength = Strength.STRONG if strong else Strength.WEAK
            yield from _points(hypervisor, platform, strength, value, f"{folder}/*/vendor = {vendor}")
    for vendor, addresses in subsystems.items():
        if vendor in PCI_SUBSYSTEM_VENDORS:
            yield from _points(
                *("", PCI_SUBSYSTEM_VENDORS[vendor], Strength.STRONG),
                *(f"emulated devices: {_several(addresses)}", f"{folder}/*/subsystem_vendor = {vendor}"),
            )


def _several(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{items[0]} and {len(items) - 1} more"


def _buses(root: Root, unread: list[str]) -> Iterator[Indicator]:
    del unread
    for bus, hypervisor, what in (
        ("virtio", "", "virtio devices"),
        ("vmbus", "microsoft", "Hyper-V's VMBus devices"),
        ("xen", "xen", "Xen paravirtual devices"),
    ):
        found = names(root, f"/sys/bus/{bus}/devices")
        if found:
            yield from _points(
                hypervisor, "", Strength.STRONG, f"{what}: {_several(list(found))}", f"/sys/bus/{bus}/devices"
            )
    if names(root, "/sys/firmware/qemu_fw_cfg"):
        yield from _points(
            "", "qemu", Strength.PROOF, "QEMU's configuration device answers", "/sys/firmware/qemu_fw_cfg"
        )


def _hypervisor_folder(root: Root, unread: list[str]) -> Iterator[Indicator]:
    kind = (read(root, "/sys/hypervisor/type", unread) or "").strip()
    if kind:
        yield from _points(shown(kind), "", Strength.PROOF, kind, "/sys/hypervisor/type")
    control = read(root, "/proc/xen/capabilities", unread)
    if control is not None:
        dom0 = "control_d" in control
        value = "dom0: this system controls the Xen hypervisor that runs it" if dom0 else "a Xen guest"
        yield from _points("xen", "", Strength.PROOF, value, "/proc/xen/capabilities")
    compatible = read(root, "/proc/device-tree/hypervisor/compatible", unread)
    if compatible:
        name = next((word for word in ("kvm", "xen", "vmware") if word in compatible), "")
        yield from _points(name, "", Strength.PROOF, compatible, "/proc/device-tree/hypervisor/compatible")


def _clocks(root: Root, unread: list[str]) -> Iterator[Indicator]:
    path = "/sys/devices/system/clocksource/clocksource0/available_clocksource"
    text = read(root, path, unread)
    for word in (text or "").split():
        if word in CLOCKS:
            yield from _points(CLOCKS[word], "", Strength.PROOF, f"clock source {word}", path)
    for name in names(root, "/sys/class/ptp"):
        clock = (read(root, f"/sys/class/ptp/{name}/clock_name", unread) or "").strip()
        if clock == "KVM virtual PTP":
            yield from _points("kvm", "", Strength.PROOF, clock, f"/sys/class/ptp/{name}/clock_name")
        elif clock == "hyperv":
            yield from _points("microsoft", "", Strength.PROOF, clock, f"/sys/class/ptp/{name}/clock_name")
    first = (read(root, "/proc/stat") or "").split("\n", 1)[0].split()
    if len(first) > 8 and first[0] == "cpu" and first[8].isdigit() and int(first[8]) > 0:
        value = f"{first[8]} ticks in which another system ran on these processors"
        yield from _points("", "", Strength.STRONG, value, "/proc/stat: steal")


def _drivers(root: Root, unread: list[str]) -> Iterator[Indicator]:
    del unread
    modules = set(names(root, "/sys/module"))
    for module, (hypervisor, platform) in MODULES.items():
        if module in modules:
            yield from _points(hypervisor, platform, Strength.WEAK, f"driver {module}", "/sys/module")
    for name in names(root, "/sys/block"):
        model = (read(root, f"/sys/block/{name}/device/model") or "").strip()
        for words, hypervisor, platform in DISK_MODELS:
            if model.startswith(words):
                strength = Strength.WEAK if platform in WEAK_PLATFORMS else Strength.STRONG
                yield from _points(hypervisor, platform, strength, model, f"/sys/block/{name}/device/model")
    for name in names(root, "/sys/class/net"):
        if not root.exists(f"/sys/class/net/{name}/device"):
            continue  # a bridge or tunnel may have any address
        address = (read(root, f"/sys/class/net/{name}/address") or "").strip().lower()
        for prefix, (hypervisor, platform) in MAC_PREFIXES.items():
            if address.startswith(prefix):
                yield from _points(
                    hypervisor, platform, Strength.WEAK, f"address {address}", f"/sys/class/net/{name}/address"
                )


def _inside(root: Root, unread: list[str]) -> Iterator[Indicator]:
    """Hypervisors that this system itself offers: the next layer, if anybody starts one."""
    del unread
    modules = set(names(root, "/sys/module"))
    for module, what in (
        ("kvm_intel", "KVM by VT-x"),
        ("kvm_amd", "KVM by AMD-V"),
        ("kvm_pvm", "KVM by PVM: guests in user mode, without VT-x or AMD-V"),
        ("vboxdrv", "VirtualBox"),
        ("vmmon", "VMware Workstation"),
    ):
        if module in modules:
            says = {"vboxdrv": "oracle", "vmmon": "vmware", "kvm_pvm": "pvm"}.get(module, "kvm")
            nested = (read(root, f"/sys/module/{module}/parameters/nested") or "").strip()
            value = what + (f"; nested = {nested}" if nested else "")
            yield Indicator(
                about=About.INSIDE, strength=Strength.PROOF, says=says, value=value, source=f"/sys/module/{module}"
            )


LOOKS: Final[tuple[Look, ...]] = (
    *(_cpuinfo, _hypervisor_folder, _clocks, _dmi, _acpi, _pci, _buses, _drivers, _inside),
)
