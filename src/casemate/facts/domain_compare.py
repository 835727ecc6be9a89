"""What a libvirt domain's definition says against what runs: two described machines, compared part by part.

Only parts are compared that both descriptions state in words of their own: where one of them says nothing (a firmware
that libvirt chose, devices that it adds to every VM), there is no difference. Lists are sets.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Final

from casemate.facts.machine import Disk, Machine
from casemate.facts.machine_boards import ORIGIN, board_family

_SHOWN_MAX: Final = 24
_ADJUSTABLE: Final = frozenset({"memory in MiB", "virtual CPUs"})
"""Values that a manager may change while the VM runs."""
_ADDED: Final = frozenset(
    """pcie-root-port pci-bridge pcie-pci-bridge i82801b11-bridge ioh3420 virtio-serial-pci ich9-ahci ahci isa-fdc
    usb-hub vmcoreinfo cfi.pflash01 isa-serial serial tpm-tis-device""".split()  # noqa: SIM905
)
"""Ports and buses: libvirt adds and numbers them as it needs."""
_USB: Final = re.compile(r"(piix\d|ich9|vt82c686b|nec|qemu|pci)-(usb-)?(xhci|uhci\d?|ehci\d?|ohci).*|usb-ehci")


def differences(written: Machine, running: Machine) -> tuple[str, ...]:
    """What differs between a definition and what runs, in plain words; empty when nothing does."""
    found = _changed(_values(written, running))
    for what, before, now in _sets(written, running):
        found += [f"{what} not written down: {_short(item)}" for item in sorted(now - before)]
        found += [f"{what} written down and not there: {_short(item)}" for item in sorted(before - now)]
    return _bounded(found)


def beyond(believed: Machine, running: Machine, held: Collection[str] | None = None) -> tuple[str, ...]:
    """What a process has and its manager knows nothing of.

    The arguments are those of its start: devices and disks may have been taken away since. So only what cannot change
    is compared as a whole, disks as far as the process still holds them, and options that open a way in.

    Args:
        held: paths that the process has open; None when nobody could look.
    """
    found = _changed(value for value in _values(believed, running) if value[0] not in _ADJUSTABLE)
    known = {disk.path for disk in believed.disks} | {path for disk in believed.disks for path in disk.backing or ()}
    for disk in running.disks:
        if _is_local(disk) and disk.path not in known and (held is None or disk.path in held):
            found.append(f"disk not written down: {_short(disk.path)}")
    found += [f"argument past libvirt: {_short(item)}" for item in sorted(_foreign(believed, running))]
    return _bounded(found)


def _changed(values: Iterable[tuple[str, str, str]]) -> list[str]:
    return [
        f"{what}: written {_short(before)}, running {_short(now)}"
        for what, before, now in values
        if before and now and before != now
    ]


def _bounded(found: list[str]) -> tuple[str, ...]:
    if len(found) > _SHOWN_MAX:
        return (*found[:_SHOWN_MAX], f"and {len(found) - _SHOWN_MAX} more")
    return tuple(found)


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}..."


def _values(written: Machine, running: Machine) -> list[tuple[str, str, str]]:
    return [
        ("accelerator", written.accel.partition(":")[0], running.accel.partition(":")[0]),
        ("board", *_boards(written.board, running.board)),
        ("memory in MiB", str(written.memory_mib or ""), str(running.memory_mib or "")),
        ("virtual CPUs", str(written.vcpus or ""), str(running.vcpus or "")),
        ("emulator", written.emulator, running.emulator),
        ("kernel", written.kernel, running.kernel),
        ("initial RAM disk", written.initrd, running.initrd),
        ("kernel command line", " ".join(written.cmdline.split()), " ".join(running.cmdline.split())),
        ("firmware", *_firmware(written, running)),
    ]


def _boards(written: str, running: str) -> tuple[str, str]:
    """An alias (``q35``) stands for the newest version that the emulator has."""
    if written in ("q35", "pc", "microvm", "virt"):
        return board_family(written) or written, board_family(running) or running
    return written, running


def _firmware(written: Machine, running: Machine) -> tuple[str, str]:
    """The code; the variables are a copy of their own for each VM, and what libvirt chose by itself is not written."""
    return (written.firmware[0], running.firmware[0]) if written.firmware and running.firmware else ("", "")


def _sets(written: Machine, running: Machine) -> list[tuple[str, set[str], set[str]]]:
    return [
        ("disk", _disks(written), _disks(running)),
        ("device", _devices(written), _devices(running)),
        ("host device", _passed(written), _passed(running)),
        ("argument past libvirt", set(), _foreign(written, running) if running.form == "argv" else set()),
    ]


def _is_local(disk: Disk) -> bool:
    """A file or device of this host by name: names of volumes and of remote images are spelled differently on each
    side, and a transient disk is written to a file that libvirt makes."""
    return disk.path.startswith("/") and disk.protocol in ("file", "host_device") and not disk.snapshot


def _disks(machine: Machine) -> set[str]:
    return {
        f"{disk.path} ({_format(disk)}{', read-only' if disk.read_only else ''})"
        for disk in machine.disks
        if _is_local(disk)
    }


def _format(disk: Disk) -> str:
    if disk.encrypted and disk.format in ("raw", "luks"):
        return "luks"
    return disk.format or "format guessed"


def _devices(machine: Machine) -> set[str]:
    own = {device.type for device in machine.devices if device.origin != ORIGIN}
    return {_plain(kind) for kind in own if kind not in _ADDED and not _USB.fullmatch(kind)} - {""}


def _plain(kind: str) -> str:
    """Names that stand for one device in both descriptions."""
    kind = re.sub(r"^virtio-(\w+)-pci-(non-)?transitional$", r"virtio-\1-pci", kind)
    return "" if kind.startswith("vfio") else kind


def _passed(machine: Machine) -> set[str]:
    found = set()
    for device in machine.devices:
        if device.type.startswith("vfio-pci"):
            found.add(device.properties.get("host") or device.properties.get("sysfsdev", "").rpartition("/")[2])
    return found


_MONITOR: Final = frozenset({"-monitor", "-qmp", "-qmp-pretty", "-gdb", "-s", "-plugin", "-d", "-trace"})


def _foreign(written: Machine, running: Machine) -> set[str]:
    """Options that open a way in, which libvirt never writes and the definition does not hand on."""
    told = " ".join(written.raw_args)
    return {
        f"{option} {value}".strip() for option, value in running.options if option in _MONITOR and option not in told
    }
