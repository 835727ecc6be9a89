"""What each board brings along unasked. Written by tools/measure_boards.py; do not edit.

Measured on QEMU 7.2.22 by asking paused machines for everything below /machine.
"""

from __future__ import annotations

from typing import Final

BOARDS: Final[dict[str, tuple[str, ...]]] = {
    "pc": (
        "PIIX3",
        "PIIX4_PM",
        "apic",
        "fw_cfg_io",
        "hpet",
        "i440FX",
        "i440FX-pcihost",
        "i8042",
        "i8257",
        "ioapic",
        "isa-fdc",
        "isa-i8259",
        "isa-pcspk",
        "isa-pit",
        "kvmvapic",
        "mc146818rtc",
        "piix3-ide",
        "port92",
        "ps2-kbd",
        "ps2-mouse",
        "smbus-eeprom",
        "vmmouse",
        "vmport",
    ),
    "q35": (
        "ICH9-LPC",
        "ICH9-SMB",
        "apic",
        "fw_cfg_io",
        "hpet",
        "i8042",
        "i8257",
        "ich9-ahci",
        "ioapic",
        "isa-i8259",
        "isa-pcspk",
        "isa-pit",
        "kvmvapic",
        "mc146818rtc",
        "mch",
        "port92",
        "ps2-kbd",
        "ps2-mouse",
        "q35-pcihost",
        "smbus-eeprom",
        "vmmouse",
        "vmport",
    ),
    "microvm": (
        "acpi-ged-x86",
        "apic",
        "fw_cfg_io",
        "ioapic",
        "isa-i8259",
        "isa-pit",
        "isabus-bridge",
        "kvmvapic",
        "mc146818rtc",
        "virtio-mmio",
    ),
    "isapc": (
        "fw_cfg_io",
        "i8042",
        "i8257",
        "isa-fdc",
        "isa-i8259",
        "isa-ide",
        "isa-pcspk",
        "isa-pit",
        "isabus-bridge",
        "mc146818rtc",
        "port92",
        "ps2-kbd",
        "ps2-mouse",
        "vmmouse",
        "vmport",
    ),
    "none": (),
}
"""Board: devices that are there with -nodefaults, under TCG."""

DEFAULTS: Final[dict[str, tuple[str, ...]]] = {
    "pc": (
        "VGA",
        "e1000",
        "floppy",
        "ide-cd",
        "isa-parallel",
        "isa-serial",
        "serial",
    ),
    "q35": (
        "VGA",
        "e1000e",
        "ide-cd",
        "isa-parallel",
        "isa-serial",
        "serial",
    ),
    "microvm": (
        "isa-serial",
        "serial",
    ),
    "isapc": (
        "floppy",
        "ide-cd",
        "isa-cirrus-vga",
        "isa-parallel",
        "isa-serial",
        "ne2k_isa",
        "serial",
    ),
    "none": (),
}
"""Board: devices that come on top without -nodefaults."""

SWITCHES: Final[dict[tuple[str, str, str], tuple[tuple[str, ...], tuple[str, ...]]]] = {
    ("pc", "acpi", "off"): (
        (),
        (
            "PIIX4_PM",
            "smbus-eeprom",
        ),
    ),
    ("pc", "hpet", "off"): ((), ("hpet",)),
    ("pc", "i8042", "off"): (
        (),
        (
            "i8042",
            "port92",
            "ps2-kbd",
            "ps2-mouse",
            "vmmouse",
            "vmport",
        ),
    ),
    ("pc", "pic", "off"): ((), ("isa-i8259",)),
    ("pc", "pit", "off"): (
        (),
        (
            "isa-pcspk",
            "isa-pit",
        ),
    ),
    ("pc", "usb", "on"): (("piix3-usb-uhci",), ()),
    ("pc", "vmport", "off"): (
        (),
        (
            "vmmouse",
            "vmport",
        ),
    ),
    ("q35", "hpet", "off"): ((), ("hpet",)),
    ("q35", "i8042", "off"): (
        (),
        (
            "i8042",
            "port92",
            "ps2-kbd",
            "ps2-mouse",
            "vmmouse",
            "vmport",
        ),
    ),
    ("q35", "pic", "off"): ((), ("isa-i8259",)),
    ("q35", "pit", "off"): (
        (),
        (
            "isa-pcspk",
            "isa-pit",
        ),
    ),
    ("q35", "sata", "off"): ((), ("ich9-ahci",)),
    ("q35", "smbus", "off"): (
        (),
        (
            "ICH9-SMB",
            "smbus-eeprom",
        ),
    ),
    ("q35", "usb", "on"): (
        (
            "ich9-usb-ehci1",
            "ich9-usb-uhci1",
            "ich9-usb-uhci2",
            "ich9-usb-uhci3",
        ),
        (),
    ),
    ("q35", "vmport", "off"): (
        (),
        (
            "vmmouse",
            "vmport",
        ),
    ),
    ("microvm", "acpi", "off"): ((), ("acpi-ged-x86",)),
    ("microvm", "pcie", "on"): (
        (
            "gpex-pcihost",
            "gpex-root",
        ),
        (),
    ),
    ("microvm", "pic", "off"): ((), ("isa-i8259",)),
    ("microvm", "pit", "off"): ((), ("isa-pit",)),
    ("microvm", "rtc", "off"): ((), ("mc146818rtc",)),
    ("microvm", "usb", "on"): (
        (
            "base-xhci",
            "sysbus-xhci",
        ),
        (),
    ),
    ("isapc", "i8042", "off"): (
        (),
        (
            "i8042",
            "port92",
            "ps2-kbd",
            "ps2-mouse",
            "vmmouse",
            "vmport",
        ),
    ),
    ("isapc", "pic", "off"): ((), ("isa-i8259",)),
    ("isapc", "pit", "off"): (
        (),
        (
            "isa-pcspk",
            "isa-pit",
        ),
    ),
    ("isapc", "vmport", "off"): (
        (),
        (
            "vmmouse",
            "vmport",
        ),
    ),
}
"""Board, option of -machine, value: devices that appear, devices that disappear."""

IRQCHIPS: Final[dict[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...]]]] = {
    ("pc", "on"): (
        (
            "kvm-apic",
            "kvm-i8259",
            "kvm-ioapic",
            "kvm-pit",
            "kvmclock",
        ),
        (
            "apic",
            "ioapic",
            "isa-i8259",
            "isa-pit",
        ),
    ),
    ("pc", "split"): (
        (
            "kvm-apic",
            "kvmclock",
        ),
        ("apic",),
    ),
    ("pc", "off"): (("kvmclock",), ()),
    ("q35", "on"): (
        (
            "kvm-apic",
            "kvm-i8259",
            "kvm-ioapic",
            "kvm-pit",
            "kvmclock",
        ),
        (
            "apic",
            "ioapic",
            "isa-i8259",
            "isa-pit",
        ),
    ),
    ("q35", "split"): (
        (
            "kvm-apic",
            "kvmclock",
        ),
        ("apic",),
    ),
    ("q35", "off"): (("kvmclock",), ()),
    ("microvm", "on"): (
        (
            "kvm-apic",
            "kvm-ioapic",
            "kvm-pit",
            "kvmclock",
        ),
        (
            "apic",
            "isa-pit",
            "mc146818rtc",
        ),
    ),
    ("microvm", "split"): (
        (
            "kvm-apic",
            "kvmclock",
        ),
        (
            "apic",
            "mc146818rtc",
        ),
    ),
    ("microvm", "off"): (("kvmclock",), ("mc146818rtc",)),
    ("isapc", "on"): (
        (
            "kvm-i8259",
            "kvm-pit",
            "kvmclock",
        ),
        (
            "isa-i8259",
            "isa-pit",
        ),
    ),
    ("isapc", "split"): (("kvmclock",), ()),
    ("isapc", "off"): (("kvmclock",), ()),
    ("none", "on"): ((), ()),
    ("none", "split"): ((), ()),
    ("none", "off"): ((), ()),
}
"""Board, kernel-irqchip under KVM: what appears and disappears, compared with TCG."""
