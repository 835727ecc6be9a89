"""The disks of a machine, in the words of a specification."""

from __future__ import annotations

from typing import Any, Final

from casemate.facts.machine import Disk, Machine
from casemate.harden.model import Notes, Reason

MAX_DISKS: Final = 8
_FORMATS: Final = ("raw", "qcow2")
_LOCAL: Final = ("file", "host_device", "host_cdrom", "")


def disks(machine: Machine, notes: Notes) -> list[dict[str, Any]]:
    """The ``[[disk]]`` tables, in boot order."""
    found: list[dict[str, Any]] = []
    for disk in sorted(machine.disks, key=lambda disk: _rank(disk, _boots_from_cd(machine))):
        table = _disk(disk, machine, notes, {item["path"] for item in found})
        if table is None:
            continue
        if len(found) == MAX_DISKS:
            notes.leave(
                "dev.surface",
                disk.origin,
                f"{disk.path[:80]}: a specification has {MAX_DISKS} disks at most",
                Reason.DECIDE,
                "put them on fewer images",
            )
            continue
        found.append(table)
    if machine.board == "microvm" and len(found) > 4:
        notes.leave("dev.surface", "disks", "a microvm takes 4 disks", Reason.DECIDE, 'machine.type = "q35"')
    return found


def _boots_from_cd(machine: Machine) -> bool:
    order = next((argument for option, argument in machine.options if option == "-boot"), "")
    word = next((part for part in order.split(",") if part and ("=" not in part or part.startswith("order="))), "")
    return word.removeprefix("order=").startswith("d")


def _rank(disk: Disk, cd_first: bool) -> int:
    """Firmware boots the first disk: CD-ROM last, unless the machine boots from it."""
    is_cd = disk.device in ("ide-cd", "scsi-cd")
    return int(is_cd != cd_first)


def _disk(disk: Disk, machine: Machine, notes: Notes, taken: set[str]) -> dict[str, Any] | None:
    where = disk.origin or disk.path
    if not disk.path and disk.protocol in _LOCAL:
        return None  # a drive without a medium
    if disk.protocol not in _LOCAL:
        notes.leave(
            "img.no-remote",
            where,
            f"an image over {disk.protocol[:20]} is not in the specification",
            Reason.DECIDE,
            "let the host attach it, and name the device: that parser is then not the emulator's",
        )
        return None
    if disk.device.startswith(("floppy", "isa-fdc")):
        return None  # listed with its controller
    if disk.encrypted or disk.format not in ("", *_FORMATS):
        what = "an encrypted image" if disk.encrypted else f"an image in format {disk.format[:20]}"
        notes.leave(
            "img.format-explicit",
            where,
            f"{disk.path[:80]}: {what} is not in the specification",
            Reason.DECIDE,
            "qemu-img convert -O qcow2, inside a throwaway VM if the image is not yours; encrypt below it",
        )
        return None
    if disk.path in taken:
        notes.leave("img.exclusive", where, f"{disk.path[:80]} is there twice: once is enough", Reason.DECIDE)
        return None
    table: dict[str, Any] = {"path": disk.path, "format": disk.format or _guess(disk, notes, where)}
    table["mode"] = "read-only" if disk.read_only else "overlay" if disk.snapshot else "persistent"
    if disk.shareable and not disk.read_only:
        notes.change(
            "img.exclusive",
            where,
            f"{disk.path[:80]} is locked for this VM alone",
            "two VMs that write one image read each other's data and corrupt it",
            "cluster file systems on a shared disk",
        )
    if disk.path.startswith("/dev/") or disk.protocol == "host_device":
        notes.leave(
            "img.exclusive",
            where,
            f"{disk.path[:80]} is a device of the host, and a VM of ours has images",
            Reason.DECIDE,
            "copy it into an image: qemu-img convert -O raw DEVICE IMAGE, while nobody writes to it",
        )
    if not disk.path.startswith("/"):
        notes.leave(
            "img.format-explicit",
            where,
            f"{disk.path[:80]} is relative, now to the specification's directory",
            Reason.LIMIT,
            "write the whole path",
        )
    return table


def _guess(disk: Disk, notes: Notes, where: str) -> str:
    """What QEMU's probe would find most likely: nothing is opened here."""
    found = "qcow2" if disk.path.endswith((".qcow2", ".qcow")) else "raw"
    notes.change(
        "img.format-explicit",
        where,
        f'format = "{found}" for {disk.path[:80]}, going by its name',
        "a guest that writes a qcow2 header into a raw image whose format is guessed reads any file of the host",
        "an image that is something else in truth does not boot: say its format",
    )
    return found
