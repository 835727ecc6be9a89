"""What a board brings along unasked, as devices: the part of a machine that no command line shows.

The table was measured on a real QEMU (tools/measure_boards.py). Boards that were not measured are said to be unknown,
never to be empty.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final

from casemate.facts import machine_boards_arm_data as arm
from casemate.facts import machine_boards_data as x86
from casemate.facts.machine import Device

ORIGIN: Final = "machine"

BOARDS: Final = {**x86.BOARDS, **arm.BOARDS}
DEFAULTS: Final = {**x86.DEFAULTS, **arm.DEFAULTS}
SWITCHES: Final = {**x86.SWITCHES, **arm.SWITCHES}
# No KVM of arm64 was there to be measured: these two names are out of QEMU's hw/intc (arm_gic_kvm.c, arm_gicv3_kvm.c).
IRQCHIPS: Final = {
    **x86.IRQCHIPS,
    **arm.IRQCHIPS,
    ("virt", "on"): (("kvm-arm-gic",), ("arm_gic",)),
}
_ARM: Final = frozenset({"aarch64", "arm", "armv7l"})

_FAMILIES: Final = (
    (re.compile(r"q35|pc-q35(-.*)?|ubuntu-q35"), "q35"),
    (re.compile(r"pc|pc-i440fx(-.*)?|pc-[01]\.[0-9]+|pc-lite|ubuntu|rhel6\.[0-9.]+"), "pc"),
    (re.compile(r"microvm"), "microvm"),
    (re.compile(r"isapc"), "isapc"),
    (re.compile(r"none"), "none"),
)
_ARM_FAMILIES: Final = ((re.compile(r"virt(-[0-9.]+)?"), "virt"), (re.compile(r"none"), "none"))

_DEFAULT_OF: Final = {
    "VGA": "vga",
    "isa-cirrus-vga": "vga",
    "e1000": "net",
    "e1000e": "net",
    "ne2k_isa": "net",
    "floppy": "floppy",
    "ide-cd": "cdrom",
    "isa-parallel": "parallel",
    "isa-serial": "serial",
    "serial": "serial",
    "virtio-net-pci": "net",
    "virtio-net-device": "net",
}
"""Device that comes without -nodefaults: what keeps it away when the user names one of that kind."""

DEFAULT_NIC: Final = {
    "pc": "e1000",
    "q35": "e1000e",
    "isapc": "ne2k_isa",
    "microvm": "virtio-net-device",
    "virt": "virtio-net-pci",
}
DEFAULT_DISK: Final = {"pc": "ide", "q35": "ide", "isapc": "ide", "microvm": "virtio", "virt": "virtio"}

_CHIP_WORDS: Final = {
    "on": "on",
    "off": "off",
    "split": "split",
    "yes": "on",
    "no": "off",
    "true": "on",
    "false": "off",
}


def board_family(board: str, architecture: str = "x86_64") -> str:
    """``pc``, ``q35``, ``microvm``, ``isapc``, ``none``, or ``virt`` of arm64; empty for a board that was not measured.

    Other architectures have boards of the same names (``virt`` of RISC-V): those were not measured.
    """
    if architecture in ("x86_64", "i386", "i686", ""):
        families: tuple[tuple[re.Pattern[str], str], ...] = _FAMILIES
    else:
        families = _ARM_FAMILIES if architecture in _ARM else ()
    return next((family for pattern, family in families if pattern.fullmatch(board)), "")


def board_devices(
    board: str,
    options: Mapping[str, str],
    accel: str,
    *,
    defaults: bool,
    taken: Collection[str] = (),
    architecture: str = "x86_64",
) -> tuple[Device, ...]:
    """The devices of a board.

    Args:
        board: machine type word; one that was not measured gives nothing, and the caller says that it is unknown.
        options: of -machine, names with hyphens; what they do not state is at its default.
        accel: ``kvm`` or another word; KVM brings interrupt controllers of its own.
        defaults: False when -nodefaults was given.
        taken: kinds of default device that the description itself provides or refuses: vga, net, floppy, cdrom,
            parallel, serial.
        architecture: as QEMU names it.
    """
    family = board_family(board, architecture)
    if not family:
        return ()
    found = dict.fromkeys(BOARDS[family])
    if accel.startswith("kvm"):
        more, less = IRQCHIPS.get((family, irqchip_of(board, options)), ((), ()))
        _apply(found, more, less)
    if defaults:
        found.update(dict.fromkeys(kind for kind in DEFAULTS[family] if _DEFAULT_OF.get(kind, "") not in taken))
    for name, value in options.items():
        more, less = SWITCHES.get((family, name, _CHIP_WORDS.get(value, value)), ((), ()))
        _apply(found, more, [*less, *(_KVM_NAMES.get(kind, kind) for kind in less)])
    return tuple(Device(type=kind, origin=ORIGIN) for kind in found)


_KVM_NAMES: Final = {"isa-pit": "kvm-pit", "isa-i8259": "kvm-i8259", "apic": "kvm-apic", "ioapic": "kvm-ioapic"}
"""The same chip, when KVM emulates it."""


def _apply(found: dict[str, None], more: Collection[str], less: Collection[str]) -> None:
    for kind in less:
        found.pop(kind, None)
    found.update(dict.fromkeys(more))


def irqchip_of(board: str, options: Mapping[str, str]) -> str:
    """Where KVM has PIC and IOAPIC: ``on`` (the kernel), ``split`` or ``off``. Measured: microvm and pc-q35-4.0 start
    split when nothing is said, every other board has all of them in the kernel."""
    stated = _CHIP_WORDS.get(options.get("kernel-irqchip", ""), "")
    return stated or ("split" if board in ("microvm", "pc-q35-4.0") else "on")
