"""A described machine (a QEMU command line, a Xen domain) becomes a specification of ours: every change listed. Pure.

Steps: 1. board, memory, processors · 2. boot · 3. disks · 4. network · 5. devices, one by one · 6. what stands beside
the machine: monitors, debugging, identity · 7. the specification, checked like any other.

Nothing is kept silently: what a specification cannot say, or what only the owner can decide, is left and listed.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from casemate.errors import InputError
from casemate.facts.machine import Machine
from casemate.facts.machine_boards import ORIGIN
from casemate.harden import machine_boot, machine_confidential, machine_disks, machine_network, machine_rest
from casemate.harden.machine_data import DECIDE, DEVICE_RULES, GONE, LIMIT, REPLACED, DeviceRule
from casemate.harden.model import Hardened, Notes, Reason
from casemate.harden.spec_text import write_spec
from casemate.spec.model import Spec
from casemate.spec.parse import parse_spec

SPEC_CONTROLS: Final = (
    "dev.kvm",
    "dev.machine",
    "dev.nodefaults",
    "dev.platform-off",
    "dev.insecure-types",
    "dev.no-floppy",
    "dev.no-legacy-disk",
    "dev.no-legacy-nic",
    "dev.no-usb",
    "dev.no-display",
    "dev.no-share",
    "dev.no-hotplug",
    "dev.no-slirp",
    "dev.no-secret-args",
    "kvm.irqchip-split",
    "kvm.no-vhost-net",
    "kvm.no-vhost-other",
    "kvm.nested-off",
    "kvm.no-hyperv-xen",
    "cpu.ksm",
    "mem.no-dump",
    "mem.no-shared-backend",
    "img.format-explicit",
    "img.exclusive",
    "img.no-remote",
    "iommu.no-hostdev",
    "iommu.no-usb-host",
    "net.publish-wide",
    "vmm.qmp",
    "vmm.no-debug",
    "vmm.console-listen",
    "vmm.serial-network",
    "proc.qemu-sandbox",
    "guest.agent",
    "ent.virtio-rng",
    "ent.rate",
)
"""What a specification of ours satisfies by its declaration."""

KEEPABLE: Final = ("dev.kvm", "net.publish-wide")
"""What ``--keep`` takes here: anything else a specification cannot say."""

_TODAY: Final = datetime.date(1970, 1, 1)
"""The specification that is written holds no date."""
_WORST: Final = re.compile(r"[^a-z0-9_.-]+")


class HardenedSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The list of changes with the TOML text as ``after``, and the specification that it is."""

    hardened: Hardened
    spec: Spec


def harden_machine(
    machine: Machine,
    *,
    keep: Iterable[str] = (),
    before: str = "",
    base_dir: Path = Path("/"),
    io_limit_mib_s: int | None = None,
) -> HardenedSpec:
    """Turn a machine into a specification.

    Args:
        keep: ids out of `KEEPABLE` whose changes are not made.
        before: the text that was read, for the document.
        base_dir: where relative paths start from.
        io_limit_mib_s: limit reads and writes of the VM, where it has no limit yet.

    Raises:
        InputError: not x86, nothing to boot, an id that cannot be kept; SpecError when the result breaks a rule of
            specifications (a secret on the kernel's command line).
    """
    notes = Notes(_check_keep(keep))
    if machine.architecture not in ("x86_64", "i386"):
        raise InputError(
            f"{machine.source} cannot be hardened",
            got=f"a machine for {machine.architecture[:20]}",
            expected="x86_64",
            next_step="Casemate starts x86 guests; nothing was changed",
        )
    document: dict[str, Any] = {}
    name = _WORST.sub("-", machine.name.lower()).strip("-._")[:63]
    if name:
        document["name"] = name
    document["machine"] = _board(machine, notes)  # 1.
    document["boot"] = machine_boot.boot(machine, notes)  # 2.
    document["disk"] = machine_disks.disks(machine, notes)  # 3.
    document["network"] = machine_network.network(machine, notes)  # 4.
    limits = _limits(machine, notes, io_limit_mib_s)
    if limits:
        document["limits"] = limits
    document |= machine_rest.tpm(machine, notes) | machine_confidential.launch(machine, notes)
    _devices(machine, notes)  # 5.
    machine_rest.surroundings(machine, notes)  # 6.
    if not document["boot"].get("kernel") and not document["disk"]:
        raise InputError(
            f"{machine.source}: nothing to boot is left",
            got="no kernel, and no disk that a specification can have",
            expected="-kernel, or a raw or qcow2 image",
            next_step="; ".join(left.what for left in notes.left[:3]),
        )
    text = write_spec(document, machine.source)  # 7.
    spec = parse_spec(text, f"{machine.source}, hardened", base_dir, today=_TODAY)
    left_ids = {left.control for left in notes.left if left.reason is not Reason.LIMIT} | notes.keep
    hardened = Hardened(
        kind="spec",
        before=before,
        after=text,
        changes=tuple(notes.changes),
        left=tuple(notes.left),
        claims=tuple(control for control in SPEC_CONTROLS if control not in left_ids),
    )
    return HardenedSpec(hardened=hardened, spec=spec)


def _check_keep(keep: Iterable[str]) -> frozenset[str]:
    kept = frozenset(keep)
    for name in sorted(kept - frozenset(KEEPABLE)):
        raise InputError(
            f"--keep {name[:60]}: a specification cannot keep this",
            expected=f"one of {', '.join(KEEPABLE)}",
            next_step="what a specification can say: casemate spec --schema",
        )
    return kept


def _board(machine: Machine, notes: Notes) -> dict[str, Any]:
    """Board, memory, processors, accelerator."""
    board: dict[str, Any] = {"type": "q35"}
    is_confidential = machine_confidential.is_taken(machine)
    if machine.board == "microvm" and machine.kernel and not is_confidential:
        board["type"] = "microvm"
    elif not re.fullmatch(r"(pc-)?q35(-.*)?", machine.board):
        notes.change(
            "dev.machine",
            "machine",
            f"board {machine.board or '(default: pc)'} becomes q35",
            "the pc board has a floppy controller (VENOM), IDE and PIIX that nothing removes",
            "PCI addresses and network names change; guests from before PCI Express",
        )
    board["memory_mib"] = machine.memory_mib or 128
    if not machine.memory_mib:
        notes.leave("dev.machine", "machine", "no memory size is stated: QEMU's 128 MiB", Reason.DECIDE, "memory_mib")
    board["vcpus"] = machine.vcpus or 1
    if machine.form == "xl":
        notes.change(
            "dev.kvm",
            "type",
            "a Xen domain becomes a VM under KVM",
            "the wall is one around QEMU; under Xen the device model often runs in the privileged domain",
            "a host with /dev/kvm in place of Xen",
        )
    elif not machine.accel.startswith("kvm"):
        if is_confidential or notes.wants("dev.kvm", "machine", f"accelerator {machine.accel or 'tcg'} stays"):
            notes.change(
                "dev.kvm",
                "machine",
                f"accelerator {machine.accel or 'tcg'} becomes auto: KVM where it executes guest code at speed",
                "QEMU's translator (TCG) promises no isolation between the guest and the emulator",
                "the host needs /dev/kvm",
            )
        elif machine.accel == "tcg":
            board["accel"] = "tcg"
    _cpu(machine, notes)
    return board


def _cpu(machine: Machine, notes: Notes) -> None:
    nested = [flag for flag in ("vmx", "svm") if machine.cpu_flags.get(flag) == "on"]
    if nested or (machine.cpu_model in ("host", "max") and not {"vmx", "svm"} <= machine.cpu_flags.keys()):
        notes.change(
            "kvm.nested-off",
            "cpu",
            "the guest's CPU has neither vmx nor svm",
            "nested virtualisation is a large part of KVM that a guest could talk to",
            "no guests inside the guest",
        )
    foreign = sorted(
        flag for flag, value in machine.cpu_flags.items() if flag.startswith(("hv-", "xen-")) and value == "on"
    )
    if foreign:
        notes.change(
            "kvm.no-hyperv-xen",
            "cpu",
            f"{', '.join(foreign[:6])} off",
            "KVM's Hyper-V and Xen interfaces are hypercalls more in the host's kernel",
            "a Windows guest loses its paravirtualised clock and timers",
        )
    if not machine_confidential.is_taken(machine) and machine.cpu_model not in ("", "host", "max", "qemu64", "kvm64"):
        notes.leave(
            "cpu.guest-flags",
            "cpu",
            f"CPU model {machine.cpu_model[:40]} becomes the host's own",
            Reason.LIMIT,
            "a specification has no CPU model: the VM cannot be migrated to another kind of host",
        )


def _limits(machine: Machine, notes: Notes, io_limit_mib_s: int | None) -> dict[str, int]:
    """Limits of CPU time and of disk traffic that it has already, in the words of a specification."""
    found: dict[str, int] = {}
    cap = machine.limits.get("cap", "")
    if cap.isascii() and cap.isdigit() and 0 < int(cap[:6]) <= 25_500:
        found["cpu_percent"] = int(cap)
    for name, words in _THROTTLES.items():
        parts = [part.partition("=") for _, argument in machine.options for part in argument.split(",")]
        rates = [int(value) for key, _, value in parts if key in words and re.fullmatch(r"[0-9]{1,15}", value)]
        if rates:
            # One limit for the whole VM: the sum of what its disks had, never less than 1 MiB/s.
            found[name] = min(max(sum(rates) >> 20, 1), 1 << 20)
            notes.change(
                "proc.cgroup-cpu",
                "limits",
                f"{name} = {found[name]}, for all disks together",
                "a limit of the control group holds whatever happens to the emulator",
                "limits of single disks, and bursts",
            )
        elif io_limit_mib_s is not None:
            found[name] = io_limit_mib_s
            why = "one guest that reads and writes for ever slows every other one of the host down"
            notes.change(
                "proc.cgroup-cpu", "limits", f"{name} = {io_limit_mib_s}, as asked for", why, "bursts above it"
            )
    return found


_THROTTLES: Final = {
    "read_mib_s": ("throttling.bps-read", "bps_rd", "throttling.bps-total", "bps"),
    "write_mib_s": ("throttling.bps-write", "bps_wr", "throttling.bps-total", "bps"),
}
"""-drive's names of limits, in bytes per second."""


def _devices(machine: Machine, notes: Notes) -> None:
    """One line per kind of device, whatever number of them there are."""
    if "-nodefaults" not in machine.flags and machine.form == "argv":
        notes.change(
            "dev.nodefaults",
            "argv",
            "-nodefaults: " + ", ".join(sorted(_default_devices(machine))[:8]) + " no longer come by themselves",
            "devices that nobody asked for are as open to attack as those that somebody did",
        )
    grouped: dict[tuple[DeviceRule | None, str], list[str]] = {}
    for device in machine.devices:
        if device.origin == ORIGIN:
            continue
        rule = next((rule for rule in DEVICE_RULES if rule.pattern.fullmatch(device.type)), None)
        grouped.setdefault((rule, device.type), []).append(device.origin)
    for (rule, kind), origins in grouped.items():
        where = ", ".join(origins[:4])
        name = kind if len(origins) == 1 else f"{len(origins)} × {kind}"
        if rule is None:
            notes.leave(
                "dev.surface",
                where,
                f"{name} has no place in a specification and is not there any more",
                Reason.DECIDE,
                "find out what the guest uses it for",
            )
        elif rule.rule in (GONE, REPLACED):
            what = f"{rule.what} {name} " + ("becomes virtio" if rule.rule is REPLACED else "removed")
            notes.change(rule.control, where, what, rule.why, rule.cost)
        elif rule.rule in (DECIDE, LIMIT):
            reason = Reason.DECIDE if rule.rule is DECIDE else Reason.LIMIT
            notes.leave(rule.control, where, f"{rule.what} {name} is not in the specification", reason, rule.step)


def _default_devices(machine: Machine) -> set[str]:
    wanted = re.compile(r"VGA|e1000e?|floppy|isa-parallel|isa-fdc|ide-cd|isa-serial")
    return {d.type for d in machine.devices if d.origin == ORIGIN and wanted.fullmatch(d.type)} or {"default devices"}
