"""Facts of VMMs other than QEMU: what they cannot do by construction, and what their configuration leaves open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from casemate.facts.fact import Value
from casemate.facts.machine import Machine

Say = Callable[[str, Value, str], None]
Miss = Callable[[str, str], None]

_IRQCHIP: Final = {"firecracker": "on", "cloud-hypervisor": "split"}
"""Firecracker creates KVM's whole interrupt controller and PIT; cloud-hypervisor has an IOAPIC of its own."""
_COMMANDS: Final = frozenset({"firecracker-command", "cloud-hypervisor-command", "crosvm-command", "kata"})
"""Forms that say whether the VMM's own sandbox is on; a configuration file alone does not."""


def override(say: Say, miss: Miss, machine: Machine) -> None:
    """Replace what only QEMU's words would have said, and add what these VMMs have of their own."""
    _own(say, miss, machine)
    if machine.vmm == "qemu":
        return
    name = machine.vmm
    if name in _IRQCHIP:
        say("kvm.irqchip", _IRQCHIP[name], f"{name} always")
    if name in ("firecracker", "cloud-hypervisor", "crosvm"):
        in_kernel = name == "firecracker" or (name == "crosvm" and machine.board_options.get("kernel-irqchip") == "on")
        say("kvm.pit", in_kernel, f"{name}'s board")
        say("kvm.pic", in_kernel, f"{name}'s board")
        _common(say, miss, machine)
    miss("dev.machine", f"{name} has a board of its own, which is neither of QEMU's")
    miss("dev.nodefaults", f"{name}: QEMU's word; another VMM adds nothing that is not configured")
    miss("emu.sandbox", f"{name} has a filter of its own: vmm.own-sandbox, and on the live process proc.seccomp-on")


def _common(say: Say, miss: Miss, machine: Machine) -> None:
    name = machine.vmm
    if not any(device.type.startswith(("virtio-gpu", "virtio-wl", "x-display")) for device in machine.devices):
        say("dev.display", "none", f"{name} has no display unless it is configured")
    say("mem.merge", is_merged(machine), f"{name}: mergeable")
    miss("mem.dump", f"{name} has no option for it; the host's core dump settings decide")
    if name == "crosvm":
        miss("console.bounded", "whoever reads crosvm's output decides what is kept")
    else:
        say("console.bounded", False, f"{name} writes its console to standard output without a limit")
    hyperv = ("kvm_hyperv",) if machine.settings.get("kvm-hyperv") == "on" else ()
    say("cpu.hyperv-xen", hyperv, "cpus")
    if machine.settings.get("cpu-template"):
        miss("cpu.nested-flags", f"the CPU template {machine.settings['cpu-template']} decides; it is not decoded")
        miss("cpu.mitigation-flags", f"the CPU template {machine.settings['cpu-template']} decides; it is not decoded")
    if name == "firecracker":
        say("vm.firmware", "kernel", "Firecracker has no firmware: the kernel is given from outside")
    if machine.form in ("firecracker", "cloud-hypervisor"):
        miss("qmp.transport", f"the command line of {name} says who can command it, not this file")
        if not machine.flags:
            miss("emu.debug", "the command line says that, not this file")


def _own(say: Say, miss: Miss, machine: Machine) -> None:
    """``vmm.sandbox-off``, ``net.mmds``, ``vmm.annotations``, ``mem.template``, ``emu.debug`` of Kata."""
    settings = machine.settings
    options = [part for part in machine.unreadable if part.startswith(("-", "hypervisor."))]
    if machine.form in _COMMANDS and options:
        miss("vmm.sandbox-off", f"a part could not be read and may change this: {options[0]}")
    elif machine.form in _COMMANDS:
        loosened = tuple(text for text in settings.get("sandbox-off", "").split("; ") if text)
        say("vmm.sandbox-off", loosened, "options that take the sandbox away")
    else:
        miss("vmm.sandbox-off", "the command line says that, not the configuration file")
    if machine.vmm == "firecracker":
        say("net.mmds", settings.get("mmds", "none"), "mmds-config")
    if machine.form == "kata":
        names = tuple(name for name in settings.get("kata-annotations", "").split(", ") if name)
        say("vmm.annotations", names, "enable_annotations, those that are no sizes")
        say("mem.template", settings.get("template") == "on", "factory.enable_template")
        debug = tuple(name for name in ("debug-console", "memory-dump") if name in settings)
        say("emu.debug", debug, "debug_console_enabled, guest_memory_dump_path")


def is_merged(machine: Machine) -> bool:
    """Whether the guest's memory is offered to KSM; no VMM of these does that unless told to."""
    return machine.settings.get("mergeable") == "on"
