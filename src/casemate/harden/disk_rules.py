"""Rules of a domain's disks: virtio-blk only, formats said, nothing shared, no directory in disguise."""

from __future__ import annotations

from typing import Final

from casemate.harden.context import Domain
from casemate.harden.document import Element
from casemate.harden.model import Reason

_CONTROL_OF_BUS: Final = {
    "fdc": "dev.no-floppy",
    "usb": "dev.no-usb",
    "ide": "dev.no-legacy-disk",
    "sata": "dev.no-legacy-disk",
    "scsi": "dev.no-legacy-disk",
    "sd": "dev.no-legacy-disk",
    "xen": "dev.no-legacy-disk",
}
_BUS_OF_PREFIX: Final = {"vd": "virtio", "hd": "ide", "sd": "scsi", "fd": "fdc", "xvd": "xen", "ubd": "uml"}
_CONTROLLERS: Final = {"ide": "dev.no-legacy-disk", "sata": "dev.no-legacy-disk", "scsi": "dev.no-legacy-disk"}
_SCSI_ONLY = ("wwn", "vendor", "product")
_FORMATS = ("raw", "qcow2")


def bus_of(disk: Element) -> str:
    """The bus, as libvirt would take it from the name when it is not stated."""
    bus = disk.value("target", "bus")
    if bus:
        return bus
    if disk.get("device") == "floppy":
        return "fdc"
    name = disk.value("target", "dev")
    return next((found for start, found in _BUS_OF_PREFIX.items() if name.startswith(start)), "ide")


def disks(domain: Domain) -> None:
    """Every disk in turn, then the controllers that nobody uses any more."""
    _boot_order(domain)
    for disk in domain.devices.elements("disk"):
        if not _dropped(domain, disk):
            _to_virtio(domain, disk)
            _contents(domain, disk)
    _controllers(domain)


def _dropped(domain: Domain, disk: Element) -> bool:
    """Take away a floppy, an empty drive, a directory that poses as a disk."""
    notes = domain.notes
    kind = disk.get("device") or "disk"
    where = disk.place()
    name = disk.value("target", "dev")[:20]
    shown = _source(disk)
    if kind == "floppy" or bus_of(disk) == "fdc":
        if not notes.wants("dev.no-floppy", where, "the floppy stays"):
            return True
        disk.remove()
        notes.change(
            "dev.no-floppy",
            where,
            f"floppy {name} removed{shown}",
            "the floppy controller gave guests code execution on the host for eleven years (VENOM, CVE-2015-3456)",
            "no floppy drive",
        )
        return True
    if kind == "cdrom" and not shown and bus_of(disk) != "virtio":
        control = _CONTROL_OF_BUS.get(bus_of(disk), "dev.no-legacy-disk")
        if not notes.wants(control, where, "the empty CD-ROM drive stays"):
            return True
        disk.remove()
        notes.change(
            control, where, f"empty CD-ROM drive {name} removed", _WHY[control], "no drive to put an image in later"
        )
        return True
    if disk.get("type") == "dir" or disk.value("driver", "type") in ("fat", "vvfat"):
        if not notes.wants("dev.no-share", where, "a directory of the host stays a disk"):
            return True
        disk.remove()
        notes.change(
            "dev.no-share",
            where,
            f"directory as a disk removed{shown}",
            "QEMU builds a FAT file system out of the host's files while the guest reads and writes it",
            "the files: put them into an image",
        )
        return True
    return False


_WHY: Final = {
    "dev.no-legacy-disk": "emulated IDE, AHCI and SCSI controllers have had guest-to-host code execution; "
    "virtio-blk is a fraction of their code",
    "dev.no-usb": "USB emulation has had public guest-to-host exploits (CVE-2020-14364)",
}


def _source(disk: Element) -> str:
    """`` (what it is)`` for the change's text; empty for an empty drive."""
    source = disk.first("source")
    if source is None or not source.attributes():
        return ""
    keys = ("file", "dev", "dir", "volume", "name", "path")
    return f" ({next((source.get(key) for key in keys if source.get(key)), disk.get('type') or 'source')})"[:200]


def _to_virtio(domain: Domain, disk: Element) -> None:
    notes = domain.notes
    bus = bus_of(disk)
    kind = disk.get("device") or "disk"
    where = disk.place()
    control = _CONTROL_OF_BUS.get(bus, "dev.no-legacy-disk" if kind == "lun" else "")
    if not control:
        return
    if not notes.wants(control, where, f"stays on {bus}"):
        return
    target = disk.first("target")
    if target is None:
        target = disk.add("target")
    old, new = target.get("dev") or "", _free_name(domain)
    target.set("dev", new)
    target.set("bus", "virtio")
    for name in ("removable", "tray", "rotation_rate"):
        target.unset(name)
    for name in ("rawio", "sgio"):
        disk.unset(name)
    for child in disk.elements("address", "alias", *_SCSI_ONLY):
        child.remove()
    cost = f"the guest sees /dev/{new} for {old or 'the disk'}: mount by UUID; it needs a virtio-blk driver"
    if kind in ("cdrom", "lun"):
        disk.set("device", "disk")
    if kind == "cdrom":
        if disk.first("readonly") is None:
            disk.add("readonly", after=target)
        cost += "; a read-only disk for a CD-ROM drive: no ejecting, no other image while it runs"
    if kind == "lun":
        cost += "; no SCSI commands to the host's device"
    what = f"{kind} {old} on {bus} becomes {new} on virtio" if bus != "virtio" else f"lun {old} becomes a disk"
    notes.change(control, where, f"{what}{_source(disk)}", _WHY[control], cost)


def _free_name(domain: Domain) -> str:
    """The first virtio name that no disk has."""
    taken = {disk.value("target", "dev") for disk in domain.devices.elements("disk")}
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = [f"vd{a}" for a in letters] + [f"vd{a}{b}" for a in letters for b in letters]
    names += [f"vd{a}{b}{c}" for a in letters[:3] for b in letters for c in letters]
    return next(name for name in names if name not in taken)


def _contents(domain: Domain, disk: Element) -> None:
    """Format said, not shared, no vhost-user or passed-through source."""
    notes = domain.notes
    where = disk.place()
    if disk.get("type") in ("vhostuser", "vhostvdpa", "nvme"):
        control = {"vhostuser": "dev.no-share", "vhostvdpa": "kvm.no-vhost-other"}.get(
            disk.get("type") or "", "iommu.no-hostdev"
        )
        notes.leave(
            control, where, f"a disk of type {disk.get('type')} stays", Reason.DECIDE, "move it to an image or a volume"
        )
        return
    if disk.first("shareable") is not None and notes.wants("img.exclusive", where, "<shareable/> stays"):
        for child in disk.elements("shareable"):
            child.remove()
        notes.change(
            "img.exclusive",
            where,
            "<shareable/> removed",
            "two VMs that write one image read each other's data and corrupt it",
            "cluster file systems on a shared disk",
        )
    _format(domain, disk, where)


def _format(domain: Domain, disk: Element, where: str) -> None:
    control = "img.format-explicit"
    if not disk.value("source", "dir") and not _source(disk):
        return
    driver = disk.first("driver")
    stated = "" if driver is None else driver.get("type") or ""
    if stated and stated not in _FORMATS:
        domain.notes.leave(
            control,
            where,
            f"format {stated[:20]} stays",
            Reason.DECIDE,
            "qemu-img convert -O qcow2, inside a throwaway VM if the image is not yours",
        )
        return
    if stated or not domain.notes.wants(control, where, "no format is stated"):
        return
    if driver is None:
        first = disk.elements()[0] if disk.elements() else None
        driver = disk.add('driver name="qemu"', before=first)
    driver.set("type", "raw")
    domain.notes.change(
        control,
        where,
        "<driver type='raw'/>, which is what libvirt takes when nothing is said",
        "a guest that writes a qcow2 header into a raw image whose format is guessed reads any file of the host",
        "an image that is qcow2 in truth has to say type='qcow2'",
    )


def _boot_order(domain: Domain) -> None:
    """``<boot dev='cdrom'>`` finds no CD-ROM drive afterwards: give the devices themselves an order instead."""
    boots = domain.root.elements("os")[0].elements("boot") if domain.root.elements("os") else []
    found = domain.devices.elements("disk")
    drives = [d for d in found if d.get("device") == "cdrom" and _source(d) and bus_of(d) != "virtio"]
    moved = [d for d in drives if _CONTROL_OF_BUS.get(bus_of(d)) not in domain.notes.keep]
    devices = [boot.get("dev") or "" for boot in boots]
    if "fd" in devices and "dev.no-floppy" not in domain.notes.keep and len(devices) > 1:
        for boot in boots:
            if boot.get("dev") == "fd":
                boot.remove()
    if "cdrom" not in devices or not moved:
        return
    firsts = {
        "hd": next((d for d in found if (d.get("device") or "disk") in ("disk", "lun")), None),
        "cdrom": moved[0],
        "network": next(iter(domain.devices.elements("interface")), None),
    }
    number = 0
    for dev in dict.fromkeys(devices):
        device = firsts.get(dev)
        if device is not None:
            number += 1
            device.add(f'boot order="{number}"')
    for boot in boots:
        if boot.parent is not None:
            boot.remove()
    domain.notes.change(
        "dev.no-legacy-disk",
        "os/boot",
        f"boot order {', '.join(devices)} is now given by the devices",
        "<boot dev='cdrom'> would not find the drive that became a virtio disk",
    )


def _controllers(domain: Domain) -> None:
    """Controllers without a device."""
    notes = domain.notes
    needed = {bus_of(disk) for disk in domain.devices.elements("disk")}
    if any(h.get("type") in ("scsi", "scsi_host") for h in domain.devices.elements("hostdev")):
        needed.add("scsi")
    for controller in domain.devices.elements("controller"):
        kind = controller.get("type") or ""
        control = "dev.no-floppy" if kind == "fdc" else _CONTROLLERS.get(kind, "")
        if (
            not control
            or kind in needed
            or not notes.wants(control, controller.place(), f"the {kind} controller stays")
        ):
            continue
        where = controller.place()
        controller.remove()
        notes.change(
            control, where, f"{kind} controller removed", _WHY.get(control, "an emulated controller that nothing uses")
        )
    if "scsi" in needed:
        notes.leave(
            "dev.no-legacy-disk", "devices/controller", "a SCSI controller stays for what uses it", Reason.DECIDE
        )
    elif domain.is_q35 and "dev.no-legacy-disk" not in notes.keep:
        notes.leave(
            "dev.no-legacy-disk",
            "os/type",
            "the AHCI controller that q35 brings along stays, without a drive",
            Reason.LIMIT,
            "libvirt has no element for it; `casemate run` starts q35 with sata=off",
        )


def io_limit(domain: Domain, mib_s: int) -> None:
    """A limit of traffic for each disk that has none; asked for, because no number is right for every host.

    QEMU's own throttling: a weight or a limit of the control group stops a VM from starting where the host's scheduler
    of that disk has none.
    """
    limited = 0
    for disk in domain.devices.elements("disk"):
        if disk.get("device") in ("cdrom", "floppy") or disk.first("iotune") is not None:
            continue
        tune = disk.add("iotune", after=(disk.elements("target") or [None])[0])  # type: ignore[list-item]
        tune.add("total_bytes_sec", str(mib_s << 20))
        limited += 1
    if limited:
        domain.notes.change(
            "proc.cgroup-cpu",
            "devices/disk",
            f"{limited} disks at most {mib_s} MiB/s each",
            "one guest that reads and writes for ever slows every other one of the host down",
            "bursts above it",
        )
