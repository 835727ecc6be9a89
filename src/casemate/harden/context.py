"""What every rule of a libvirt domain gets: the document, the notes, and what the rules want to know about it."""

from __future__ import annotations

import re
from typing import Final

from casemate.errors import InputError
from casemate.harden.document import Document, Element
from casemate.harden.model import Notes

Version = tuple[int, int]

OLDEST_LIBVIRT: Final[Version] = (8, 0)
"""Everything that is written unasked is understood from this version on (Ubuntu 22.04; Debian 12 has 9.0)."""
PASST_SINCE: Final[Version] = (9, 1)
"""9.0 has passt in its schema, and its parser refuses it: measured with Debian 12."""
PS2_SINCE: Final[Version] = (10, 7)

QEMU_NAMESPACE: Final = "http://libvirt.org/schemas/domain/qemu/1.0"
MAX_DEVICES: Final = 600

_Q35 = re.compile(r"(pc-)?q35(-.*)?")
_UNITS: Final[dict[str, int]] = {
    "b": 1,
    "bytes": 1,
    "kb": 1000,
    "k": 1 << 10,
    "kib": 1 << 10,
    "mb": 1000**2,
    "m": 1 << 20,
    "mib": 1 << 20,
    "gb": 1000**3,
    "g": 1 << 30,
    "gib": 1 << 30,
    "tb": 1000**4,
    "t": 1 << 40,
    "tib": 1 << 40,
}


class Domain:
    """A libvirt domain that is being hardened.

    ``devices``: its element of that name. ``libvirt``: the oldest version that has to understand the result.
    """

    def __init__(self, document: Document, notes: Notes, libvirt: Version) -> None:
        self.document = document
        self.root = document.root
        self.notes = notes
        self.libvirt = libvirt
        found = self.root.first("devices")
        self.devices = found if found is not None else self.root.add("devices")

    @property
    def machine(self) -> str:
        """The machine type as stated; empty for libvirt's default."""
        return self.root.value("os/type", "machine")

    @property
    def is_q35(self) -> bool:
        return _Q35.fullmatch(self.machine) is not None

    @property
    def is_windows(self) -> bool:
        """Whether the metadata of libosinfo says so."""
        metadata = self.root.first("metadata")
        if metadata is None:
            return False
        return any("microsoft.com/win" in (node.get("id") or "") for node in metadata.walk())

    def section(self, path: str, *, after: tuple[str, ...] = ()) -> Element:
        """The element along ``path``, made where it is missing; a new top element goes after the last of ``after``."""
        node = self.root
        for number, name in enumerate(path.split("/")):
            found = node.first(name)
            if found is None:
                before = node.elements(*after) if number == 0 else []
                found = node.add(name, after=before[-1] if before else None)
            node = found
        return node

    def ensure(self, parent: Element, name: str, attributes: dict[str, str]) -> tuple[Element, bool]:
        """The first child ``name`` of ``parent`` with these attributes; made or changed. Returns it and whether it
        changed."""
        node = parent.first(name)
        made = node is None
        if node is None:
            node = parent.add(name)
        changed = made
        for key, value in attributes.items():
            if node.get(key) != value:
                node.set(key, value)
                changed = True
        return node, changed


def open_domain(document: Document, source: str, notes: Notes, libvirt: Version) -> Domain:
    """The document as a domain that these rules are for.

    Raises:
        InputError: no domain, another hypervisor or architecture, not a full machine, too many devices.
    """
    root = document.root
    what = f"{source} cannot be hardened"
    if root.name != "domain" or root.namespace:
        hint = "virsh dumpxml --inactive VM" if root.local in ("domstatus", "domainsnapshot") else "virsh dumpxml VM"
        raise InputError(what, got=f"<{root.name[:40]}>", expected="a libvirt <domain>", next_step=hint)
    kind = root.get("type") or ""
    if kind not in ("kvm", "qemu"):
        raise InputError(
            what,
            got=f"a domain of type {kind[:20]!r}",
            expected="type kvm or qemu",
            next_step="a Xen guest: casemate harden VM.cfg makes a specification out of its xl.cfg"
            if kind == "xen"
            else "",
        )
    arch = root.value("os/type", "arch") or "x86_64"
    if arch not in ("x86_64", "i686"):
        raise InputError(
            what,
            got=f"a guest for {arch[:20]!r}",
            expected="x86_64 or i686",
            next_step="the rules know the boards, devices and CPU flags of x86 only; nothing was changed",
        )
    if root.value("os/type") != "hvm":
        raise InputError(what, got=f"<os><type> {root.value('os/type')[:20]!r}", expected="hvm")
    if len(root.elements("devices")) > 1:
        raise InputError(what, got="more than one <devices>", expected="one")
    devices = root.first("devices")
    if devices is not None and len(devices.elements()) > MAX_DEVICES:
        raise InputError(what, got=f"more than {MAX_DEVICES} devices")
    return Domain(document, notes, libvirt)


def bytes_of(node: Element | None) -> int:
    """The amount of memory in an element such as ``<memory unit='MiB'>512</memory>``; 0 when it is not readable."""
    if node is None:
        return 0
    factor = _UNITS.get((node.get("unit") or "KiB").lower(), 0)
    digits = node.text
    return int(digits) * factor if re.fullmatch(r"[0-9]{1,15}", digits) else 0


def parse_version(text: str) -> Version:
    """``10.7`` or ``10.7.0`` as numbers.

    Raises:
        InputError: anything else, or older than `OLDEST_LIBVIRT`.
    """
    match = re.fullmatch(r"([0-9]{1,3})\.([0-9]{1,3})(\.[0-9]{1,3})?", text)
    if match is None or (int(match[1]), int(match[2])) < OLDEST_LIBVIRT:
        oldest = ".".join(str(number) for number in OLDEST_LIBVIRT)
        raise InputError("--libvirt", got=repr(text[:20]), expected=f"a version such as 10.7, {oldest} at least")
    return int(match[1]), int(match[2])
