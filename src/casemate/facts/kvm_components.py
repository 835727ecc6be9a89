"""Which parts of a virtual machine the host kernel emulates, per interrupt controller mode, and which QEMU does.

What stands in the kernel is out of reach of the emulator's walls (seccomp, namespaces, uid): a fault there is a fault
of the host. The probe's measured answers decide; where it has none, the column says ``unknown``.
"""

from __future__ import annotations

import enum
from contextlib import suppress
from pathlib import Path

import msgspec

from casemate.facts.kvm_report import IrqchipMode, KvmReport

VHOST_NODES = ("vhost-net", "vhost-vsock", "vhost-scsi")
VHOST_MODULES = ("vhost", "vhost_net", "vhost_vsock", "vhost_scsi", "vhost_vdpa", "vhost_iotlb")
_MODULES_BYTES_MAX = 1 << 20


class Handler(enum.StrEnum):
    """Who emulates a part: the host's kernel, the confined emulator, or not known."""

    KERNEL = "kernel"
    EMULATOR = "emulator"
    UNKNOWN = "unknown"


class Component(msgspec.Struct, frozen=True):
    """One part. ``handlers`` by mode (``on``, ``split``, ``off``); ``why`` says what it rests on."""

    name: str
    handlers: dict[str, Handler]
    why: str


class VhostDriver(msgspec.Struct, frozen=True):
    """A vhost driver of the host kernel: its device node and whether its module is loaded (None: cannot be seen)."""

    name: str
    node: str
    node_present: bool
    module_loaded: bool | None


class KernelSurface(msgspec.Struct, frozen=True):
    """``modes``: interrupt controller modes that work here. ``vhost``: every driver that is present in some form."""

    modes: tuple[IrqchipMode, ...]
    components: tuple[Component, ...]
    vhost: tuple[VhostDriver, ...]

    def in_kernel(self, mode: IrqchipMode) -> tuple[str, ...]:
        """Names of the parts that the host's kernel emulates in ``mode``."""
        return tuple(part.name for part in self.components if part.handlers.get(mode.value) is Handler.KERNEL)


_CHIPS = (
    ("local_apic", "local APIC", "in the kernel where KVM_GET_LAPIC answers"),
    ("ioapic", "IOAPIC", "in the kernel where KVM_GET_IRQCHIP answers"),
    ("pic", "PIC (i8259)", "in the kernel where KVM_GET_IRQCHIP answers"),
    ("pit", "PIT (i8254)", "in the kernel where KVM_GET_PIT2 answers; only when the machine has a PIT"),
)

_ALWAYS = (
    (
        "instruction emulator",
        "",
        "KVM decodes the guest's instructions for MMIO, and where the processor cannot run them",
    ),
    ("hypercalls", "", "VMCALL and VMMCALL end in the kernel whether the guest uses them or not"),
    ("page tables", "", "second-level or shadow paging is KVM's own"),
    ("kvmclock and steal time", "CLOCKSOURCE", "KVM_CAP_CLOCKSOURCE; goes with -cpu kvmclock=off,kvm-steal-time=off"),
    ("ioeventfd and irqfd", "IOEVENTFD", "KVM_CAP_IOEVENTFD; used by virtio doorbells"),
)


def in_kernel_components(report: KvmReport, root: Path = Path("/")) -> KernelSurface:
    """Split the machine's parts between kernel and emulator, as the probe measured it on this host.

    Args:
        report: of ``probe_kvm``.
        root: where ``sys``, ``proc`` and ``dev`` are found: the host's or a captured tree.
    """
    chips = {chip.mode: chip for chip in report.irqchips}
    modes = tuple(mode for mode, chip in chips.items() if chip.available)
    parts = []
    for attribute, name, why in _CHIPS:
        handlers = {}
        for mode in IrqchipMode:
            chip = chips.get(mode)
            known = chip is not None and chip.available
            kernel = Handler.KERNEL if getattr(chip, attribute, False) else Handler.EMULATOR
            handlers[mode.value] = kernel if known else Handler.UNKNOWN
        parts.append(Component(name, handlers, why))
    for name, capability, why in _ALWAYS:
        value = report.extension(capability) if capability else (1 if report.api_version is not None else None)
        handler = Handler.UNKNOWN if value is None else Handler.KERNEL if value else Handler.EMULATOR
        parts.append(Component(name, {mode.value: handler for mode in IrqchipMode}, why))
    return KernelSurface(modes, tuple(parts), vhost_drivers(root))


def vhost_drivers(root: Path = Path("/")) -> tuple[VhostDriver, ...]:
    """Drivers that would emulate virtio devices in the host's kernel: by device node and by loaded module."""
    loaded = _loaded_modules(root)
    found = []
    names = list(VHOST_NODES)
    with suppress(OSError):
        names += sorted(path.name for path in (root / "dev").glob("vhost-vdpa-*"))[:64]
    for name in names:
        module = "vhost_vdpa" if name.startswith("vhost-vdpa") else name.replace("-", "_")
        present = (root / "dev" / name).exists()
        in_list = None if loaded is None else module in loaded
        if present or in_list:
            found.append(VhostDriver(name, f"/dev/{name}", present, in_list))
    return tuple(found)


def _loaded_modules(root: Path) -> frozenset[str] | None:
    """vhost modules in /proc/modules or /sys/module; None when neither can be read.

    A driver built into the kernel is in neither; its device node still shows it.
    """
    seen: set[str] = set()
    readable = False
    with suppress(OSError), open(root / "proc/modules", "rb") as file:
        text = file.read(_MODULES_BYTES_MAX).decode("ascii", errors="replace")
        seen |= {line.split(" ", 1)[0] for line in text.splitlines()}
        readable = True
    directory = root / "sys/module"
    if directory.is_dir():
        readable = True
        seen |= {name for name in VHOST_MODULES if (directory / name).is_dir()}
    return frozenset(seen.intersection(VHOST_MODULES)) if readable else None
