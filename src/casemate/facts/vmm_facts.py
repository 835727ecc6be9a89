"""Facts of VMMs other than QEMU: what they cannot do by construction, and what their configuration leaves open."""

from __future__ import annotations

from collections.abc import Callable

from casemate.facts.fact import Value
from casemate.facts.machine import Machine

Say = Callable[[str, Value, str], None]
Miss = Callable[[str, str], None]

_IRQCHIP = {"firecracker": "on", "cloud-hypervisor": "split"}
"""Firecracker creates KVM's whole interrupt controller and PIT; cloud-hypervisor has an IOAPIC of its own."""


def override(say: Say, miss: Miss, machine: Machine) -> None:
    """Replace what only QEMU's words would have said."""
    name = machine.vmm
    if name in _IRQCHIP:
        say("kvm.irqchip", _IRQCHIP[name], f"{name} always")
        say("kvm.pit", name == "firecracker", f"{name} always")
        say("kvm.pic", name == "firecracker", f"{name} always")
        say("dev.display", "none", f"{name} has no display")
        miss("dev.machine", f"{name} has one machine type, which is neither of QEMU's")
        say("mem.merge", is_merged(machine), f"{name}: mergeable")
        miss("mem.dump", f"{name} has no option for it; the host's core dump settings decide")
        say("console.bounded", False, f"{name} writes its console to standard output without a limit")
        say("cpu.hyperv-xen", ("kvm_hyperv",) if machine.settings.get("kvm-hyperv") == "on" else (), "cpus")
    miss("dev.nodefaults", f"{name}: QEMU's word; another VMM adds nothing that is not configured")
    miss("emu.sandbox", f"{name} has a filter of its own; look at the live process (proc.seccomp-on)")


def is_merged(machine: Machine) -> bool:
    """Whether the guest's memory is offered to KSM; neither VMM does that unless told to."""
    return machine.settings.get("mergeable") == "on"
