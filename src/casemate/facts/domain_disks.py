"""The images of a libvirt domain and the devices in front of them."""

from __future__ import annotations

from typing import Final

from casemate.facts.domain_draft import DomainDraft
from casemate.facts.domain_tree import MAX_DEPTH, Element
from casemate.facts.machine import Disk

_BUS: Final = {"hd": "ide", "sd": "scsi", "vd": "virtio", "fd": "fdc", "xv": "xen", "ub": "usb"}


def read_disk(draft: DomainDraft, element: Element, origin: str) -> None:
    """One <disk>."""
    target = element.child("target")
    medium = element.get("device", "disk")
    bus = target.get("bus") or _BUS.get(target.get("dev")[:2], "")
    kind = _front(draft, bus, medium, origin)
    name = target.get("dev")
    path, protocol = _source(element)
    if kind:
        draft.device(kind, {"drive": name}, origin)
    if not path and protocol == "file":
        return
    image_format = element.child("driver").get("type") or "raw"  # libvirt never lets QEMU guess
    draft.disks.append(
        Disk(
            path=path,
            format=image_format,
            read_only=element.has("readonly") or medium == "cdrom",
            shareable=element.has("shareable"),
            snapshot=element.has("transient"),
            encrypted=element.has("encryption") or element.child("source").has("encryption") or image_format == "luks",
            tls=element.child("source").get("tls") == "yes",
            device=kind,
            origin=origin,
            id=name,
            protocol=protocol,
            backing=() if image_format == "raw" else _backing(element),
        )
    )


def _front(draft: DomainDraft, bus: str, medium: str, origin: str) -> str:
    optical = medium == "cdrom"
    if bus in ("ide", "sata"):
        if bus == "sata" and draft.family != "q35" and not draft.has("ich9-ahci"):
            draft.device("ich9-ahci", {}, origin)
        return "ide-cd" if optical else "ide-hd"
    if bus == "scsi":
        draft.controllers.add("#scsi")
        return "scsi-cd" if optical else ("scsi-block" if medium == "lun" else "scsi-hd")
    if bus == "fdc":
        if draft.family == "q35" and not draft.has("isa-fdc"):
            draft.device("isa-fdc", {}, origin)
        return "floppy"
    fronts = {"virtio": "virtio-blk-pci", "usb": "usb-storage", "xen": "xen-disk", "sd": "sd-card", "nvme": "nvme-ns"}
    if bus not in fronts:
        draft.miss(f"{origin}: disk bus {bus[:30] or '(none)'} is not known")
    return fronts.get(bus, "")


def _source(element: Element) -> tuple[str, str]:
    """(path or name, protocol)."""
    kind = element.get("type")
    source = element.child("source")
    if kind == "network":
        return source.get("name"), source.get("protocol") or "network"
    if kind == "block":
        return source.get("dev"), "host_device"
    if kind == "dir":
        return source.get("dir"), "vvfat"
    if kind == "volume":
        return f"{source.get('pool')}/{source.get('volume')}".strip("/"), "file"
    if kind in ("nvme", "vhostuser", "vhostvdpa"):
        return source.get("path") or source.get("dev") or kind, kind
    return source.get("file"), "file"


def _backing(element: Element) -> tuple[str, ...] | None:
    """The chain below as far as the domain names it; None when the image's own header has the last word."""
    found: list[str] = []
    for _ in range(MAX_DEPTH):
        if not element.has("backingStore"):
            return tuple(found) or None
        element = element.child("backingStore")
        path, _ = _source(element)
        if not path:
            return tuple(found)
        found.append(path)
    return tuple(found)
