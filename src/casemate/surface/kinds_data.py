"""Kinds of devices as a table: patterns of QOM type names, class, bus, what to do about it. First match wins."""

from __future__ import annotations

import re
from typing import Final, NamedTuple


class Kind(NamedTuple):
    """``go``: what could go and how; empty when a guest needs it. ``cost``: what is lost with it."""

    pattern: re.Pattern[str]
    name: str
    bus: str
    go: str = ""
    cost: str = ""


def _kind(pattern: str, name: str, bus: str, go: str = "", cost: str = "") -> Kind:
    return Kind(re.compile(pattern), name, bus, go, cost)


_NEW = "replace by virtio"
KINDS: Final[tuple[Kind, ...]] = (
    _kind(r"vfio-.*|usb-host", "passed-through device", "PCI or USB", "remove", "direct use of the hardware"),
    _kind(r"virtio-net.*", "network card, virtio", "virtio", "remove where no network is needed", "the network"),
    _kind(r"virtio-(blk|scsi).*|scsi-(hd|cd|block|generic)", "disk, virtio", "virtio"),
    _kind(r"vhost-user-.*", "device of a helper", "virtio", "remove", "what the helper offers"),
    _kind(r"vhost-.*", "device in the host kernel", "virtio", "remove: the host's kernel handles it", "speed"),
    _kind(r"virtio-rng.*", "entropy", "virtio"),
    _kind(r"virtio-(serial|console).*|virtconsole|virtserialport", "console", "virtio", "remove unused ports"),
    _kind(r"virtio-balloon.*", "memory balloon", "virtio", "remove", "memory cannot be taken back"),
    _kind(r"virtio-(vga|gpu|input|keyboard|mouse|tablet).*", "display or input", "virtio", "remove", "the screen"),
    _kind(r"virtio-9p.*|ivshmem.*|pvrdma", "sharing with the host", "PCI", "remove", "shared files or memory"),
    _kind(r"virtio.*", "other virtio", "virtio"),
    _kind(
        r"e1000.*|rtl8139|pcnet|ne2k.*|vmxnet3|tulip|i825[56]\w+|i82801|igb|sungem|rocker|usb-net",
        "network card, emulated",
        "PCI",
        _NEW,
        "guests without a virtio driver",
    ),
    _kind(r"isa-fdc|floppy.*", "floppy", "ISA", "remove", "floppy disks"),
    _kind(
        r"ide-.*|piix\d-ide.*|ich9-ahci|ahci|lsi.*|megasas.*|mptsas.*|am53c974|dc390|esp.*|pvscsi|sdhci.*|sd-card|nvme.*",
        "disk controller, emulated",
        "PCI",
        _NEW,
        "guests without a virtio driver",
    ),
    _kind(r".*(vga|VGA|qxl|cirrus|bochs|ramfb).*", "display", "PCI", "remove: -display none", "the screen"),
    _kind(r".*(usb|xhci|ehci|uhci|ohci).*|ccid.*", "USB", "PCI", "remove", "USB devices"),
    _kind(r"(ich9-)?intel-hda|hda-.*|AC97|ES1370|sb16|adlib|gus|cs4231a", "sound", "PCI", "remove", "sound"),
    _kind(
        r"kvm-(i8259|ioapic)",
        "interrupt controller",
        "board",
        "kernel-irqchip=split takes PIC and IOAPIC out of the host's kernel",
        "slower level interrupts",
    ),
    _kind(r"(isa-)?i8259", "interrupt controller", "board", "pic=off where the guest's CPU has tsc-deadline"),
    _kind(r".*apic.*", "interrupt controller", "board"),
    _kind(r".*-pit", "timer", "board", "pit=off where the guest's CPU has tsc-deadline"),
    _kind(r"hpet", "timer", "board", "hpet=off"),
    _kind(r"mc146818rtc|kvmclock", "timer", "board"),
    _kind(r"i8257", "DMA controller", "ISA"),
    _kind(r"i8042|ps2-(kbd|mouse)", "legacy input", "ISA", "i8042=off", "PS/2 keyboard and mouse"),
    _kind(r"vmmouse|vmport", "legacy input", "ISA", "vmport=off", "VMware's mouse protocol"),
    _kind(r"isa-parallel|parallel", "parallel port", "ISA", "-parallel none", "printers and dongles"),
    _kind(r"port92|pcspk|isa-pcspk", "legacy ports", "ISA"),
    _kind(r"isa-serial|serial.*", "serial console", "ISA"),
    _kind(r"tpm-.*", "TPM", "board"),
    _kind(r"fw_cfg.*|cfi\.pflash01", "firmware interface", "board"),
    _kind(r".*(smbus|SMBUS).*", "management bus", "PCI", "smbus=off"),
    _kind(
        r"pcie-root-port|ioh3420|x3130.*|pxb.*|i82801b11-bridge|pci(e-pci)?-bridge",
        "PCI bridge",
        "PCI",
        "hotplug=off",
        "hot-plug",
    ),
    _kind(r".*-cpu", "processor, as the emulator has it", "processor"),
    _kind(r".*", "board and chip set", "board"),
)


def kind_of(qom_type: str) -> Kind:
    """The first kind whose pattern matches the whole name."""
    return next(kind for kind in KINDS if kind.pattern.fullmatch(qom_type))
