"""The last rule of a domain: every device on the root bus of q35, so that no port is left to plug anything into."""

from __future__ import annotations

import re
from typing import Final

from casemate.harden.context import Domain
from casemate.harden.document import Element
from casemate.harden.model import Reason

CONTROL: Final = "dev.no-hotplug"
_SLOTS: Final = tuple(slot for slot in range(2, 0x1F) if slot not in (0x1A, 0x1D))
"""0 is the host bridge, 1 the usual place of a graphics card, 0x1a and 0x1d of ICH9's USB, 0x1f the LPC bridge."""
_ALWAYS: Final = ("interface", "rng", "watchdog", "vsock", "shmem", "filesystem", "crypto", "hostdev")
_BRIDGES: Final = re.compile(
    r"pcie-root-port|pcie-switch-.*|pcie-to-pci-bridge|pci-bridge|dmi-to-pci-bridge|pcie?-expander-bus"
)


def slots(domain: Domain) -> None:
    """Give each PCI device a slot of the root bus, and take the ports away."""
    notes = domain.notes
    if not domain.is_q35 or not notes.wants(CONTROL, "devices", "PCI Express ports stay"):
        return
    _state_serial_bus(domain)
    devices = [node for node in domain.devices.elements() if _is_pci(node)]
    ports = [c for c in domain.devices.elements("controller") if _BRIDGES.fullmatch(c.get("model") or "")]
    passed = [node for node in devices if node.name == "hostdev" or node.get("type") == "hostdev"]
    if passed or len(devices) > len(_SLOTS):
        what = "a device of the host needs its port" if passed else f"{len(devices)} devices do not fit the root bus"
        notes.leave(CONTROL, "devices/controller", what, Reason.DECIDE if passed else Reason.LIMIT)
        _plug_off(domain, ports)
        return
    taken = {slot for node in devices if (slot := _slot(node)) is not None}
    moved = 0
    for node in devices:
        if _slot(node) is None:
            slot = next(s for s in _SLOTS if s not in taken)
            taken.add(slot)
            _place(node, slot)
            moved += 1
    for port in ports:
        port.remove()
    if moved or ports:
        notes.change(
            CONTROL,
            "devices",
            f"{moved} devices moved to the root bus"
            + (f", {len(ports)} PCI ports and bridges removed" if ports else ""),
            "hot-plug code and empty ports are devices a guest can talk to (CVE-2014-5388, CVE-2017-5525)",
            "nothing can be added while the guest runs; names of network cards may change",
        )


def _state_serial_bus(domain: Domain) -> None:
    """libvirt adds a controller for virtio channels and consoles by itself, behind a port: state it."""
    devices = domain.devices
    used = any(node.value("target", "type") == "virtio" for node in devices.elements("channel", "console"))
    if used and not any(c.get("type") == "virtio-serial" for c in devices.elements("controller")):
        before = devices.elements("channel", "console")[0]
        devices.add('controller type="virtio-serial" index="0"', before=before)


def _is_pci(node: Element) -> bool:
    """Whether the device sits on a PCI bus."""
    if node.name in _ALWAYS:
        return node.get("type") not in ("usb", "scsi", "mdev") and node.get("model") not in ("ib700", "diag288", "itco")
    if node.name == "disk":
        return node.value("target", "bus") == "virtio"
    if node.name == "controller":
        kind, model = node.get("type"), node.get("model")
        return kind in ("scsi", "virtio-serial", "usb", "sata") and model != "none" and not _is_builtin(node)
    if node.name in ("video", "memballoon"):
        return (node.get("model") or node.value("model", "type")) != "none"
    if node.name == "sound":
        return node.get("model") not in ("usb", "pcspk", "sb16")
    return node.name == "input" and node.get("bus") == "virtio"


def _is_builtin(node: Element) -> bool:
    return node.get("type") == "sata" and (node.get("index") or "0") == "0"


def _slot(node: Element) -> int | None:
    """The slot of a device that stands on the root bus already."""
    address = node.first("address")
    if address is None or address.get("type") != "pci":
        return None
    numbers = [address.get(name) or "0" for name in ("domain", "bus", "slot")]
    try:
        domain, bus, slot = (int(number, 0) for number in numbers)
    except ValueError:
        return None
    return slot if domain == 0 and bus == 0 and slot else None


def _place(node: Element, slot: int) -> None:
    for old in node.elements("address"):
        old.remove()
    node.add(f'address type="pci" domain="0x0000" bus="0x00" slot="0x{slot:02x}" function="0x0"')


def _plug_off(domain: Domain, ports: list[Element]) -> None:
    """At least no hot-plug on the ports that stay."""
    changed = 0
    for port in ports:
        if port.get("model") == "pcie-root-port":
            _, done = domain.ensure(port, "target", {"hotplug": "off"})
            changed += done
    if changed:
        domain.notes.change(
            CONTROL,
            "devices/controller",
            f"hot-plug off on {changed} ports",
            "hot-plug code is reachable from the guest",
        )
