"""A machine while its description is being read: lists that grow, and the shapes that the final model gives them."""

from __future__ import annotations

from collections.abc import Mapping

from casemate.facts.machine import Backend, Device
from casemate.facts.qemu_argv_names_data import BACKEND_KEYS, DEVICE_ALIASES, PROVIDES
from casemate.facts.qemu_argv_text import Properties

UNREADABLE_MAX = 256


class Draft:
    """Everything found so far. ``taken``: kinds of default device that the description provides or refuses."""

    def __init__(self) -> None:
        self.devices: list[tuple[str, Properties, str]] = []
        self.backends: list[tuple[str, str, Properties, str]] = []
        self.options: list[tuple[str, str]] = []
        self.flags: list[str] = []
        self.unreadable: list[str] = []
        self.monitors: list[str] = []
        self.firmware: list[str] = []
        self.secrets: list[str] = []
        self.taken: set[str] = set()
        self.machine: Properties = {}
        self.cpu_model = ""
        self.cpu_flags: Properties = {}
        self.globals: list[tuple[str, str, str]] = []
        self.sets: list[tuple[str, str, str, str, str]] = []
        self.drives: list[tuple[Properties, str]] = []
        self.accels: list[str] = []
        self.snapshot = False
        self.words: Properties = {}
        self.numbers: dict[str, int] = {}
        self._made = 0

    def miss(self, why: str) -> None:
        """Note a part that nobody understood; the note is bounded, and so is their number."""
        if len(self.unreadable) < UNREADABLE_MAX:
            self.unreadable.append(why[:300])

    def name(self, prefix: str) -> str:
        """A new id for something that the description does not name."""
        self._made += 1
        return f"#{prefix}{self._made}"

    def device(self, kind: str, properties: Mapping[str, str], origin: str) -> None:
        """One device of the guest."""
        kind = DEVICE_ALIASES.get(kind, kind)
        self.devices.append((kind, dict(properties), origin))
        if kind in PROVIDES:
            self.taken.add(PROVIDES[kind])

    def backend(self, kind: str, driver: str, properties: Mapping[str, str], origin: str) -> None:
        """One host's side."""
        self.backends.append((kind, driver, dict(properties), origin))

    def final_devices(self) -> tuple[Device, ...]:
        """The devices, with what -global says about their type where they do not say it themselves."""
        found = []
        for kind, properties, origin in self.devices:
            for driver, name, value in self.globals:
                if driver == kind:
                    properties.setdefault(name, value)
            backend = next((properties[key] for key in BACKEND_KEYS if properties.get(key)), "")
            found.append(
                Device(
                    type=kind,
                    id=properties.pop("id", ""),
                    bus=properties.get("bus", ""),
                    backend=backend,
                    properties=properties,
                    origin=origin,
                )
            )
        return tuple(found)

    def final_backends(self) -> tuple[Backend, ...]:
        """The host's sides, each with the file that it names."""
        found = []
        for kind, driver, properties, origin in self.backends:
            name = properties.get("node-name") or properties.get("id", "")
            found.append(
                Backend(kind, driver, name, path_of(kind, driver, properties), properties, origin),
            )
        return tuple(found)


def path_of(kind: str, driver: str, properties: Mapping[str, str]) -> str:
    """The host's file of a host's side, or empty text."""
    if kind == "blockdev":
        return properties.get("filename", "") or properties.get("file.filename", "")
    if kind == "object":
        return properties.get("mem-path", "") or properties.get("filename", "") or properties.get("file", "")
    if kind == "netdev" and driver == "vhost-vdpa":
        return properties.get("vhostdev", "")
    for name in ("path", "addr.path", "socket", "sock"):
        if properties.get(name):
            return properties[name]
    return "/dev/urandom" if (kind, driver) == ("object", "rng-random") else ""
