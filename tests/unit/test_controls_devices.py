"""The device controls against the device trees of a real QEMU, stopped before its first instruction."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from casemate.controls.catalogue import devices, kvm
from casemate.controls.model import Control

QEMU = shutil.which("qemu-system-x86_64")
Q35 = "q35,hpet=off,pit=off,i8042=off,vmport=off,smbus=off,sata=off,smm=off"
VIRTIO_PCI = ("virtio-blk-pci,drive=d", "virtio-rng-pci", "virtio-serial-pci", "virtio-net-pci")
VIRTIO_MMIO = ("virtio-blk-device,drive=d", "virtio-rng-device", "virtio-serial-device", "virtio-net-device")

pytestmark = pytest.mark.skipif(QEMU is None, reason="no qemu-system-x86_64 here")


def device_types(machine: str, *device: str) -> tuple[str, ...]:
    """Types in the device tree of a paused QEMU."""
    commands = ({"execute": "qmp_capabilities"}, _hmp("info qtree"), {"execute": "quit"})
    arguments = [str(QEMU), "-machine", machine, "-accel", "tcg", "-nodefaults", "-no-user-config", "-S"]
    arguments += [
        "-display",
        "none",
        "-qmp",
        "stdio",
        "-blockdev",
        "null-co,node-name=d,size=1048576",
        "-serial",
        "null",
    ]
    for name in device:
        arguments += ["-device", name]
    script = "".join(json.dumps(command) + "\n" for command in commands)
    done = subprocess.run(arguments, input=script, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    tree = next(a["return"] for a in answers if isinstance(a.get("return"), str))
    types = re.findall(r"^\s*dev: ([^,\r\n]+), id", tree, flags=re.MULTILINE)
    assert len(types) > 3
    return tuple(types)


def _hmp(line: str) -> dict[str, object]:
    return {"execute": "human-monitor-command", "arguments": {"command-line": line}}


def failing(types: tuple[str, ...]) -> set[str]:
    """Ids of the controls whose check of the device tree fails."""
    controls: tuple[Control, ...] = (*devices.CONTROLS, *kvm.CONTROLS)
    return {
        c.id for c in controls for check in c.checks if check.fact == "dev.types" and check.expect.holds(types) is False
    }


@pytest.mark.parametrize(
    ("machine", "device"), [(Q35, VIRTIO_PCI), ("microvm,pic=off,pit=off,rtc=off", VIRTIO_MMIO)], ids=["q35", "microvm"]
)
def test_the_boards_that_casemate_builds_pass(machine: str, device: tuple[str, ...]) -> None:
    assert failing(device_types(machine, *device)) == set()


def test_the_old_board_fails_even_without_default_devices() -> None:
    assert {"dev.no-floppy", "dev.platform-off", "dev.no-legacy-disk"} <= failing(device_types("pc"))


def test_an_untrimmed_q35_fails() -> None:
    assert failing(device_types("q35")) == {"dev.no-legacy-disk", "dev.platform-off"}


@pytest.mark.parametrize(
    ("device", "control"),
    [
        ("rtl8139", "dev.no-legacy-nic"),
        ("e1000e", "dev.no-legacy-nic"),
        ("nvme,serial=1,drive=d", "dev.no-legacy-disk"),
        ("virtio-scsi-pci", "dev.no-legacy-disk"),
        ("megasas", "dev.no-legacy-disk"),
        ("qemu-xhci", "dev.no-usb"),
        ("ich9-usb-ehci1", "dev.no-usb"),
        ("VGA", "dev.no-display"),
        ("bochs-display", "dev.no-display"),
        ("intel-hda", "dev.no-display"),
        ("virtio-balloon-pci", "dev.platform-off"),
        ("pcie-root-port", "dev.no-hotplug"),
    ],
)
def test_each_kind_of_unwanted_device_is_recognised_in_a_live_tree(device: str, control: str) -> None:
    assert failing(device_types(Q35, device)) == {control}
