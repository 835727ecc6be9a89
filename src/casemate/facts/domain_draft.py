"""A libvirt domain while it is being read: the lists of a machine, and what libvirt itself would add."""

from __future__ import annotations

from collections.abc import Mapping

from casemate.facts.domain_tree import Element
from casemate.facts.machine import Backend, Device, Disk
from casemate.facts.qemu_argv_draft import UNREADABLE_MAX, path_of
from casemate.facts.qemu_argv_names_data import BACKEND_KEYS


class DomainDraft:
    """Everything found so far. ``family``: pc, q35, microvm …; ``controllers``: kinds that the domain names.
    ``on_root_bus``: origins of elements with an address on PCI bus 0."""

    def __init__(self, family: str) -> None:
        self.family = family
        self.devices: list[Device] = []
        self.backends: list[Backend] = []
        self.disks: list[Disk] = []
        self.unreadable: list[str] = []
        self.secrets: list[str] = []
        self.controllers: set[str] = set()
        self.on_root_bus: set[str] = set()
        self.display = ""
        self.serial_console: tuple[Element, str] | None = None
        self._counts: dict[str, int] = {}

    def count(self, what: str) -> int:
        """The number of those seen before this one."""
        number = self._counts.get(what, 0)
        self._counts[what] = number + 1
        return number

    def miss(self, why: str) -> None:
        """Note a part that nobody understood; bounded."""
        if len(self.unreadable) < UNREADABLE_MAX:
            self.unreadable.append(why[:300])

    def default_usb(self) -> str:
        """The USB controller that libvirt takes when the domain does not say which."""
        return "qemu-xhci" if self.family == "q35" else "piix3-uhci"

    def device(self, kind: str, properties: Mapping[str, str], origin: str) -> None:
        """One device of the guest."""
        found = dict(properties)
        backend = next((found[key] for key in BACKEND_KEYS if found.get(key)), "")
        self.devices.append(Device(kind, found.pop("id", ""), "", backend, found, origin))

    def backend(self, kind: str, driver: str, properties: Mapping[str, str], origin: str) -> None:
        """One host's side."""
        found = dict(properties)
        self.backends.append(Backend(kind, driver, found.get("id", ""), path_of(kind, driver, found), found, origin))

    def has(self, prefix: str) -> bool:
        """Whether a device of this kind is there."""
        return any(device.type.startswith(prefix) for device in self.devices)
