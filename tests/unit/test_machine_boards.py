"""Boards by name, version and architecture: what was measured is known, what was not is said to be unknown."""

from __future__ import annotations

import pytest

from casemate.controls.catalogue.devices import CONTROLS
from casemate.facts.domain import read_domain
from casemate.facts.machine_boards import board_devices, board_family
from casemate.facts.qemu_argv import read_argv


@pytest.mark.parametrize(
    ("board", "architecture", "family"),
    [
        ("q35", "x86_64", "q35"),
        ("pc-q35-9.0", "x86_64", "q35"),
        ("pc-q35-10.2", "x86_64", "q35"),
        ("pc-q35-rhel9.4.0", "x86_64", "q35"),
        ("pc-i440fx-9.0", "x86_64", "pc"),
        ("pc-0.13", "i386", "pc"),
        ("microvm", "x86_64", "microvm"),
        ("virt", "aarch64", "virt"),
        ("virt-9.0", "aarch64", "virt"),
        ("virt", "riscv64", ""),
        ("virt", "x86_64", ""),
        ("q35", "aarch64", ""),
        ("raspi3b", "aarch64", ""),
        ("s390-ccw-virtio", "s390x", ""),
        ("pc-q35-9.0\n", "x86_64", ""),
    ],
)
def test_family_of_a_board(board: str, architecture: str, family: str) -> None:
    assert board_family(board, architecture) == family


def test_what_the_board_of_arm64_brings() -> None:
    bare = {device.type for device in board_devices("virt", {}, "tcg", defaults=False, architecture="aarch64")}
    assert {"pl011", "arm_gic", "gpex-pcihost", "virtio-mmio"} <= bare
    assert not {"virtio-net-pci", "kvm-arm-gic"} & bare
    kvm = {device.type for device in board_devices("virt", {}, "kvm", defaults=True, architecture="aarch64")}
    assert {"kvm-arm-gic", "virtio-net-pci"} <= kvm
    assert "arm_gic" not in kvm
    secure = {d.type for d in board_devices("virt", {"secure": "on"}, "tcg", defaults=False, architecture="aarch64")}
    assert "gpio-pwr" in secure


def test_a_command_line_of_arm64_is_read_whole() -> None:
    machine = read_argv(["qemu-system-aarch64", "-M", "virt-9.0", "-nodefaults", "-device", "virtio-rng-pci"], "argv")
    assert machine.unreadable == ()
    assert {"pl011", "virtio-rng-pci"} <= {device.type for device in machine.devices}
    other = read_argv(["qemu-system-riscv64", "-M", "virt", "-nodefaults"], "argv")
    assert "was not measured" in other.unreadable[0]
    assert read_argv(["qemu-system-aarch64", "-M", "virt", "-nic", "user"], "argv").devices[0].type == "virtio-net-pci"


def test_a_domain_of_arm64_has_its_board_and_no_isa() -> None:
    text = b"""<domain type='kvm'><name>a</name><os><type arch='aarch64' machine='virt-9.0'>hvm</type></os>
    <features><acpi/></features><devices><console type='pty'/><rng model='virtio'><backend model='random'/></rng>
    </devices></domain>"""
    machine = read_domain(text, "t")
    types = {device.type for device in machine.devices}
    assert machine.unreadable == ()
    assert {"pl011", "kvm-arm-gic", "virtio-balloon-pci", "pcie-root-port", "virtio-rng-pci"} <= types
    assert not {"isa-serial", "piix3-usb-uhci", "qemu-xhci"} & types


BOARDS = """q35 microvm pc-q35-7.2 pc-q35-2.12.1 pc-q35-10.1 pc-q35-7.2-machine pc-q35-rhel8.6.0
    pc-q35-rhel9.4.0-machine pc-q35-8.1+pve0 pc-q35-noble pc-q35-noble-v2 pc-q35-jammy-hpb-maxcpus"""
NO_BOARDS = """pc pc-i440fx-7.2 isapc xenfv none virt pc-q35- pc-q35-7 pc-q35-7.2,accel=tcg Q35 q35-machine-machine
    pc-q35-7.2.1.0 pc-q35-100.1 pc-q35-rhel9 pc-q35-a pc-q35-noble-v2-v2-v2 pc-q35-.. xpc-q35-7.2"""
HOSTILE_BOARDS = ("", "pc-q35-7.2\n", "pc-q35-7.2 ", "pc-q35-\u0667.\u0662", "pc-q35-" + "a" * 64)


def test_names_of_boards_that_a_launch_accepts() -> None:
    """Distributions' names of q35, of releases to come too; nothing that only begins like one."""
    (control,) = [item for item in CONTROLS if item.id == "dev.machine"]
    (check,) = control.checks
    assert [name for name in BOARDS.split() if not check.expect.holds(name)] == []
    assert [name for name in (*NO_BOARDS.split(), *HOSTILE_BOARDS) if check.expect.holds(name)] == []
