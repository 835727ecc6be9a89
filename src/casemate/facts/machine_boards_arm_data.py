"""What the board `virt` of arm64 brings along unasked. Written by tools/measure_boards.py; do not edit.

Measured on QEMU 7.2.22 by asking paused machines for everything below /machine.
"""

from __future__ import annotations

from typing import Final

BOARDS: Final[dict[str, tuple[str, ...]]] = {
    "virt": (
        "arm-gicv2m",
        "arm_gic",
        "cfi.pflash01",
        "fw_cfg_mem",
        "gpex-pcihost",
        "gpex-root",
        "gpio-key",
        "pl011",
        "pl031",
        "pl061",
        "platform-bus-device",
        "virtio-mmio",
    ),
}
"""Board: devices that are there with -nodefaults, under TCG."""

DEFAULTS: Final[dict[str, tuple[str, ...]]] = {
    "virt": (
        "virtio-net-device",
        "virtio-net-pci",
    ),
}
"""Board: devices that come on top without -nodefaults."""

SWITCHES: Final[dict[tuple[str, str, str], tuple[tuple[str, ...], tuple[str, ...]]]] = {
    ("virt", "secure", "on"): (("gpio-pwr",), ()),
}
"""Board, option of -machine, value: devices that appear, devices that disappear."""

IRQCHIPS: Final[dict[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...]]]] = {}
"""Board, kernel-irqchip under KVM: what appears and disappears, compared with TCG."""
