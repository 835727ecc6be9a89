"""A libvirt domain document as a described machine, with the devices that libvirt adds by itself.

1. Bound and parse the bytes (`domain_tree.py`): document types and entities are refused.
2. Read what the domain states, element by element; an element below <devices> that nobody knows is *unreadable*.
3. Add what libvirt adds: USB controller, memory balloon, PCI ports, serial port of a console, the board's own devices.
4. Read <qemu:commandline> as the command line that it is.

Neither libvirt nor QEMU is asked; which defaults hold was compared with `virsh domxml-to-native` of libvirt 9.0.
"""

from __future__ import annotations

import msgspec

from casemate.errors import InputError
from casemate.facts.domain_devices import READERS
from casemate.facts.domain_disks import read_disk
from casemate.facts.domain_draft import DomainDraft
from casemate.facts.domain_tree import QEMU_NAMESPACE, Element, parse_xml
from casemate.facts.machine import Machine
from casemate.facts.machine_boards import board_devices, board_family
from casemate.facts.machine_secrets import secrets_in
from casemate.units import MIB, parse_size_bytes

_ACCELS = {"kvm": "kvm", "qemu": "tcg", "hvf": "hvf", "xen": "xen"}
_UNITS = {"b": "", "bytes": "", "k": "k", "kb": "k", "kib": "k", "m": "m", "mb": "m", "mib": "m", "g": "g", "gib": "g"}


def read_domain(xml: bytes, source: str) -> Machine:
    """The machine that a libvirt domain describes; a status or snapshot document gives the domain inside it.

    Raises:
        InputError: not XML, hostile XML, or no domain.
    """
    root = parse_xml(xml, source)
    domain = root if root.tag == "domain" else root.child("domain")
    if domain.tag != "domain":
        raise InputError(f"{source}: no libvirt domain", got=f"<{root.tag[:60]}>", expected="<domain>")
    kind = domain.child("os").child("type")
    board = kind.get("machine") or "pc"
    draft = DomainDraft(board_family(board, kind.get("arch") or "x86_64"))
    if domain.get("type") not in _ACCELS:
        draft.miss(f"domain of type {domain.get('type')[:40] or '(none)'}: not a QEMU machine")
    if not draft.family:
        draft.miss(f"board {board[:60]}: what it brings along was not measured")
    devices = domain.child("devices")
    for number, element in enumerate(devices.children):
        origin = f"devices/{element.tag}[{number}]"
        reader = READERS.get(element.tag)
        if _is_on_root_bus(element):
            draft.on_root_bus.add(origin)
        if element.tag == "disk":
            read_disk(draft, element, origin)
        elif reader is None:
            draft.miss(f"{origin}: this element is not known")
        else:
            reader(draft, element, origin)
    options = _board_options(domain, draft)
    _implied(draft, domain)
    machine = _machine(domain, draft, source, board, options)
    return _with_raw_arguments(machine, domain, source)


def _implied(draft: DomainDraft, domain: Element) -> None:
    """What libvirt adds when the domain does not speak of it."""
    if draft.serial_console and not draft.has("isa-serial") and draft.family != "virt":
        element, origin = draft.serial_console
        READERS["serial"](draft, element, origin)
    if "usb" not in draft.controllers and draft.family in ("pc", "q35"):
        READERS["controller"](draft, Element("controller", {"type": "usb"}), "libvirt adds a USB controller")
    if "#virtio-serial" in draft.controllers and "virtio-serial" not in draft.controllers:
        draft.device("virtio-serial-pci", {}, "libvirt adds a serial bus")
    if "#scsi" in draft.controllers and "scsi" not in draft.controllers:
        draft.device("lsi53c895a", {}, "libvirt adds a SCSI controller")
    if "#balloon" not in draft.controllers and draft.family in ("pc", "q35", "virt"):
        draft.device("virtio-balloon-pci", {}, "libvirt adds a memory balloon")
    if draft.display and not domain.child("devices").has("video"):
        draft.device("cirrus-vga" if draft.family == "pc" else "VGA", {}, "libvirt adds a graphics card")
    if domain.has("genid"):
        draft.device("vmgenid", {}, "genid")
    if domain.child("features").child("vmcoreinfo").get("state", "off") == "on":
        draft.device("vmcoreinfo", {}, "features/vmcoreinfo")
    stated = any(device.type == "pcie-root-port" for device in draft.devices)
    unplaced = [d for d in draft.devices if d.origin not in draft.on_root_bus]
    if draft.family in ("q35", "virt") and not stated and any(_needs_port(device.type) for device in unplaced):
        draft.device("pcie-root-port", {}, "libvirt adds PCI Express ports")
    if draft.family == "q35" and not draft.has("pcie-pci-bridge") and any(d.type in _CONVENTIONAL for d in unplaced):
        draft.device("pcie-pci-bridge", {}, "libvirt adds a bridge for conventional PCI devices")


_CONVENTIONAL = frozenset(
    {"rtl8139", "e1000", "pcnet", "ne2k_pci", "i82551", "i6300esb", "lsi53c895a", "AC97", "ES1370", "am53c974", "dc390"}
)


def _is_on_root_bus(element: Element) -> bool:
    """Whether the domain says itself that the device sits on the root bus, where it needs no port."""
    address = element.child("address")
    try:
        return address.get("type") == "pci" and int(address.get("bus", "0"), 0) == 0
    except ValueError:
        return False


def _needs_port(kind: str) -> bool:
    return kind.endswith("-pci") or kind in ("qemu-xhci", "nec-usb-xhci", "e1000e", "rtl8139", "e1000")


def _board_options(domain: Element, draft: DomainDraft) -> dict[str, str]:
    features = domain.child("features")
    backing = domain.child("memoryBacking")
    options = {
        "mem-merge": "off" if backing.has("nosharepages") else "on",
        # qemu.conf's dump_guest_core is off unless somebody sets it.
        "dump-guest-core": domain.child("memory").get("dumpCore", "off"),
        "usb": "off",
    }
    driver = features.child("ioapic").get("driver")
    if driver:
        options["kernel-irqchip"] = "split" if driver == "qemu" else "on"
    for name, option in (("vmport", "vmport"), ("smm", "smm"), ("ps2", "i8042")):
        state = features.child(name).get("state")
        if state:
            options[option] = state
    for timer in domain.child("clock").all("timer"):
        if timer.get("name") == "hpet" and timer.get("present"):
            options["hpet"] = "on" if timer.get("present") == "yes" else "off"
    if not features.has("acpi") and draft.family in ("pc", "q35", "microvm"):
        options["acpi"] = "off"
    return options


def _machine(domain: Element, draft: DomainDraft, source: str, board: str, options: dict[str, str]) -> Machine:
    system = domain.child("os")
    loader, nvram = system.child("loader"), system.child("nvram")
    accel = _ACCELS.get(domain.get("type"), domain.get("type"))
    own = board_devices(
        board, options, accel, defaults=False, architecture=system.child("type").get("arch") or "x86_64"
    )
    if loader.get("type") == "pflash" or system.get("firmware") == "efi":
        draft.device("cfi.pflash01", {}, "os/loader")
    model, flags = _cpu(domain)
    cmdline = system.words("cmdline")
    draft.secrets += [name.replace("-append", "os/cmdline") for name in secrets_in("-append", cmdline)]
    _memory_backing(domain, draft)
    return Machine(
        form="libvirt",
        source=source,
        name=domain.words("name"),
        uuid=domain.words("uuid"),
        emulator=domain.child("devices").words("emulator"),
        architecture=system.child("type").get("arch") or "x86_64",
        accel=accel,
        board=board,
        board_options=options,
        cpu_model=model,
        cpu_flags=flags,
        memory_mib=_memory_mib(domain.child("memory")),
        vcpus=_number(domain.child("vcpu").get("current") or domain.words("vcpu")),
        kernel=system.words("kernel"),
        initrd=system.words("initrd"),
        cmdline=cmdline,
        firmware=tuple(text for text in (loader.text.strip(), nvram.text.strip()) if text),
        devices=(*draft.devices, *own),
        backends=tuple(draft.backends),
        disks=tuple(draft.disks),
        monitors=("libvirt",),
        display=draft.display or "none",
        labels=tuple(label.words("label") or label.get("type") for label in domain.all("seclabel")),
        limits=_limits(domain),
        launch_security=domain.child("launchSecurity").get("type"),
        settings=_settings(domain),
        secrets=tuple(dict.fromkeys(draft.secrets)),
        unreadable=tuple(draft.unreadable),
    )


def _cpu(domain: Element) -> tuple[str, dict[str, str]]:
    cpu = domain.child("cpu")
    mode = cpu.get("mode")
    model = mode if mode in ("host-passthrough", "host-model", "maximum") else cpu.words("model")
    words = {"require": "on", "force": "on", "optional": "on", "disable": "off", "forbid": "off", "": "on"}
    flags = {item.get("name"): words.get(item.get("policy"), "on") for item in cpu.all("feature")}
    features = domain.child("features")
    for item in features.child("hyperv").children:
        if item.get("state", "on") == "on":
            flags[f"hv-{item.tag}"] = "on"
    if features.child("hyperv").get("mode") == "passthrough":
        flags["hv-passthrough"] = "on"
    for item in features.child("xen").children:
        if item.get("state", "on") == "on":
            flags[f"xen-{item.tag}"] = "on"
    return model, flags


def _memory_backing(domain: Element, draft: DomainDraft) -> None:
    backing = domain.child("memoryBacking")
    kind = backing.child("source").get("type")
    share = "on" if backing.child("access").get("mode") == "shared" else "off"
    name = {"file": "memory-backend-file", "memfd": "memory-backend-memfd"}.get(kind, "memory-backend-ram")
    if kind or share == "on":
        path = "memory_backing_dir of qemu.conf" if kind == "file" else ""
        draft.backend("object", name, {"id": "pc.ram", "share": share, "mem-path": path}, "memoryBacking")


def _settings(domain: Element) -> dict[str, str]:
    system = domain.child("os")
    loader = system.child("loader")
    found = {}
    firmware = system.get("firmware") or ("efi" if loader.get("type") == "pflash" else "")
    if firmware:
        found["firmware"] = firmware
    wanted = system.child("firmware").all("feature")
    named = any(f.get("name") == "secure-boot" and f.get("enabled") == "yes" for f in wanted)
    if loader.get("secure") == "yes" or named:
        found["secure-boot"] = "yes"
    security = domain.child("launchSecurity")
    if security.words("policy"):
        found["cc-policy"] = security.words("policy")
    if security.get("kernelHashes"):
        found["cc-kernel-hashes"] = security.get("kernelHashes")
    if loader.get("stateless") == "yes" or loader.get("type") == "rom":
        found["stateless"] = "yes"
    elif loader.get("type") == "pflash" or system.all("nvram"):
        found["stateless"] = "no"
    return found


def _limits(domain: Element) -> dict[str, str]:
    """Limits by libvirt's names: ``memtune/hard_limit`` …"""
    found = {}
    for group in ("memtune", "cputune", "blkiotune"):
        for element in domain.child(group).children:
            found[f"{group}/{element.tag}"] = element.text.strip() or element.get("cpuset")
    return found


def _memory_mib(memory: Element) -> int:
    unit = _UNITS.get(memory.get("unit", "KiB").lower(), "k")
    try:
        return parse_size_bytes(memory.text.strip() + unit) // MIB
    except ValueError:
        return 0


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0


def _with_raw_arguments(machine: Machine, domain: Element, source: str) -> Machine:
    """Add what <qemu:commandline> and its relatives bring, read as the arguments that they are."""
    lists = domain.all(f"{QEMU_NAMESPACE} commandline")
    arguments = [arg.get("value") for item in lists for arg in item.all(f"{QEMU_NAMESPACE} arg")]
    others = tuple(
        f"qemu:{name}" for name in ("override", "capabilities", "deprecation") if domain.has(f"{QEMU_NAMESPACE} {name}")
    )
    environment = tuple(f"{e.get('name')}=…" for i in lists for e in i.all(f"{QEMU_NAMESPACE} env"))
    if not arguments and not others and not environment:
        return machine
    if not arguments:
        return msgspec.structs.replace(machine, raw_args=(*environment, *others))
    from casemate.facts.qemu_argv import read_argv

    extra = read_argv(["-nodefaults", "-M", "none", *arguments], source)
    unreadable = tuple(f"qemu:commandline {why}" for why in extra.unreadable)
    if others:
        unreadable = (*unreadable, f"{', '.join(others)}: changes devices past libvirt")
    return msgspec.structs.replace(
        machine,
        raw_args=(*arguments, *environment, *others),
        devices=(*machine.devices, *extra.devices),
        backends=(*machine.backends, *extra.backends),
        disks=(*machine.disks, *extra.disks),
        monitors=(*machine.monitors, *extra.monitors),
        board_options={**machine.board_options, **extra.board_options},
        flags=tuple(flag for flag in extra.flags if flag != "-nodefaults"),
        secrets=(*machine.secrets, *extra.secrets),
        unreadable=(*machine.unreadable, *unreadable),
    )
