"""Small guests in the wall: what becomes of their disks, the virtio console, a BIOS disk, and KVM where it crawls."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.cli_runner import Cli
from tests.support.guest_shell import GuestShell
from tests.support.tiny_guests import (
    BIOS_FAILED,
    BIOS_IDLE,
    BIOS_OFF,
    BIOS_UP,
    BIOS_WROTE,
    PVH_UP,
    bios_disk,
    boot_count,
    pvh_kernel,
)

from casemate.engine.paths import default_paths
from casemate.facts.kvm import cached_probe
from casemate.facts.kvm_report import KvmReport, Verdict
from casemate.image.builtin import BuiltinGuest, build_builtin

pytestmark = pytest.mark.boot

DEADLINE_S = 120
DISK_BYTES = 4 << 20
BLANK_MIB = hashlib.sha256(bytes(1 << 20)).hexdigest()


@pytest.fixture(scope="module")
def guest() -> BuiltinGuest:
    return build_builtin(Path(default_paths().cache), print)


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    directory = tmp_path / "casemate"
    directory.mkdir()
    found = Cli(directory)
    yield found
    found.clean()


def wait_logs(cli: Cli, name: str, text: str) -> str:
    """The console's log once it holds ``text``."""
    end = time.monotonic() + DEADLINE_S
    while text not in (said := cli.ok("logs", name)):
        assert time.monotonic() < end, f"no {text!r} on the console:\n{said}"
        time.sleep(0.2)
    return said


def run_to_end(cli: Cli, name: str) -> str:
    """Wait until a guest that powers itself off has ended well; its console since the last start."""
    assert cli.ok("wait", name, timeout_s=DEADLINE_S).split() == ["0"]
    return cli.ok("logs", name)


def wall_of(cli: Cli, name: str) -> dict[str, Any]:
    """The read-back of a running VM: control id -> entry."""
    return {entry["control"]: entry for entry in cli.json("inspect", name, "--json")["wall"]}


def define_with_disk(cli: Cli, guest: BuiltinGuest, disk: str) -> None:
    """The built-in guest that writes the first MiB of its disk and powers off."""
    cli.ok("create", "--name", "disk", "--cmdline", f"{guest.cmdline} casemate.test=disk", "--disk", disk, "builtin")


def first_mib(image: Path) -> str:
    return hashlib.sha256(image.read_bytes()[: 1 << 20]).hexdigest()


def blank(path: Path) -> Path:
    path.write_bytes(bytes(DISK_BYTES))
    return path


def test_an_overlay_dies_with_the_vm(cli: Cli, guest: BuiltinGuest, tmp_path: Path) -> None:
    image = blank(tmp_path / "disk.raw")
    define_with_disk(cli, guest, f"{image}:raw")
    for _ in range(2):
        cli.ok("start", "disk")
        console = run_to_end(cli, "disk")
        assert f"disk before {BLANK_MIB}" in console
        assert "casemate-guest: disk ok" in console
    assert image.read_bytes() == bytes(DISK_BYTES)
    assert sorted(p.name for p in (cli.data / "vms").glob("*/*overlay*")) == []


def test_a_persistent_disk_keeps_what_the_guest_wrote(cli: Cli, guest: BuiltinGuest, tmp_path: Path) -> None:
    image = blank(tmp_path / "disk.raw")
    define_with_disk(cli, guest, f"{image}:raw,persistent")
    cli.ok("start", "disk")
    assert f"disk before {BLANK_MIB}" in run_to_end(cli, "disk")
    kept = first_mib(image)
    assert kept != BLANK_MIB
    cli.ok("start", "disk")
    assert f"disk before {kept}" in run_to_end(cli, "disk")


def test_a_persistent_qcow2_stays_sound(cli: Cli, guest: BuiltinGuest, tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, str(DISK_BYTES)], check=True)
    define_with_disk(cli, guest, f"{image}:qcow2,persistent")
    cli.ok("start", "disk")
    console = run_to_end(cli, "disk")
    assert f"disk before {BLANK_MIB}" in console
    written = console.partition("disk after ")[2].split()[0]
    subprocess.run(["qemu-img", "check", "-q", image], check=True)
    cli.ok("start", "disk")
    assert f"disk before {written}" in run_to_end(cli, "disk")


def test_a_read_only_disk_is_refused_by_the_guests_kernel(cli: Cli, guest: BuiltinGuest, tmp_path: Path) -> None:
    image = blank(tmp_path / "disk.raw")
    define_with_disk(cli, guest, f"{image}:raw,read-only")
    cli.ok("start", "disk")
    assert "casemate-guest: disk read-only" in run_to_end(cli, "disk")
    assert image.read_bytes() == bytes(DISK_BYTES)


def test_the_virtio_console_works_both_ways(cli: Cli, guest: BuiltinGuest, tmp_path: Path) -> None:
    spec = tmp_path / "vm.toml"
    cmdline = guest.cmdline.replace("console=ttyS0", "console=hvc0")
    spec.write_text(
        f'name = "hvc"\n[boot]\nkernel = "{guest.kernel}"\ninitrd = "{guest.initrd}"\ncmdline = "{cmdline}"\n'
        '[console]\ndevice = "virtio"\n'
    )
    cli.ok("run", "-d", spec)
    wait_logs(cli, "hvc", "casemate-guest: ready")
    with GuestShell(cli, "hvc") as shell:
        assert shell.last("cat /sys/class/tty/console/active") == "hvc0"
        assert shell.last("echo $((6*7))") == "42"
    cli.ok("stop", "hvc", timeout_s=DEADLINE_S)
    assert cli.json("inspect", "hvc", "--json")["exit"]["detail"] == ""


def test_a_bios_disk_boots_and_keeps_its_count(cli: Cli, tmp_path: Path) -> None:
    image = bios_disk(tmp_path / "bios.raw", "W")
    spec = tmp_path / "bios.toml"
    spec.write_text(
        f'name = "bios"\n[machine]\ntype = "q35"\n[boot]\nfirmware = "bios"\n'
        f'[[disk]]\npath = "{image}"\nformat = "raw"\nmode = "persistent"\n'
        "[limits]\nread_mib_s = 8\nwrite_mib_s = 4\n"  # through a throttle of the emulator's
    )
    cli.ok("create", spec)
    for count in (1, 2):
        cli.ok("start", "bios")
        console = run_to_end(cli, "bios")
        for line in (BIOS_UP, f"boot count: {count - 1}", BIOS_WROTE, BIOS_OFF):
            assert line in console
        assert boot_count(image) == count
    wall = {entry["control"]: entry["verdict"] for entry in cli.json("inspect", "bios", "--json")["wall"]}
    assert (wall["img.format-explicit"], wall["proc.drift"]) == ("pass", "pass")


def test_an_image_is_booted_as_an_overlay(cli: Cli, tmp_path: Path) -> None:
    """``casemate run IMAGE``: as with a container, the image is not changed."""
    image = bios_disk(tmp_path / "bios, with=odd%name.raw", "W")
    before = image.read_bytes()
    cli.ok("create", "--name", "image", "--firmware", "bios", image)
    for _ in range(2):
        cli.ok("start", "image")
        assert "boot count: 0" in run_to_end(cli, "image")
    assert image.read_bytes() == before


def test_firmware_cannot_write_to_a_read_only_disk(cli: Cli, tmp_path: Path) -> None:
    image = bios_disk(tmp_path / "bios.raw", "W")
    before = image.read_bytes()
    cli.ok("run", "-d", "--name", "bios", "--firmware", "bios", image, "--disk", f"{image}:read-only")
    wait_logs(cli, "bios", BIOS_FAILED)
    cli.ok("kill", "bios")
    assert image.read_bytes() == before


def test_a_guest_without_acpi_is_killed_after_the_grace_period(cli: Cli, tmp_path: Path) -> None:
    image = bios_disk(tmp_path / "bios.raw", "I")
    cli.ok("run", "-d", "--name", "bios", "--firmware", "bios", image)
    wait_logs(cli, "bios", BIOS_IDLE)
    cli.ok("stop", "--time", "1", "bios", timeout_s=DEADLINE_S)
    assert "killed" in cli.json("inspect", "bios", "--json")["exit"]["detail"]


def _need_kvm() -> KvmReport:
    report = cached_probe(Path(default_paths().cache) / "kvm.json")
    if report.verdict not in {Verdict.USABLE, Verdict.EMULATED}:
        pytest.skip(f"KVM is {report.verdict.value} here: {report.why}")
    return report


def test_kvm_starts_paused_is_read_back_and_released(cli: Cli, tmp_path: Path) -> None:
    """On demand also where KVM only emulates: QEMU, the read-back and the KVM filter are the real ones."""
    report = _need_kvm()
    kernel = pvh_kernel(tmp_path / "tiny")
    cli.ok("run", "-d", "--name", "kvm", "--accel", "kvm", "--kernel", kernel, "--memory-mib", "64")
    wait_logs(cli, "kvm", PVH_UP)
    document = cli.json("inspect", "kvm", "--json")
    assert (document["state"], document["accel"]) == ("running", "kvm")
    wall = wall_of(cli, "kvm")
    assert not [entry for entry in wall.values() if entry["verdict"] == "fail" and entry["gate"] == "launch"]
    assert wall["kvm.irqchip-split"]["verdict"] == "pass"
    assert wall["kvm.irqchip-split"]["evidence"] == "kvm.irqchip = split, observed from QMP qom-list"
    # Without the timer of the local APIC the guest needs the PIT, and the plan says so.
    tsc_deadline = report.cpuid is not None and report.cpuid.tsc_deadline
    for control, fact in (("kvm.no-pit", "kvm.pit"), ("kvm.no-pic", "kvm.pic")):
        assert wall[control]["evidence"].startswith(f"{fact} = {'no' if tsc_deadline else 'yes'}, observed from QMP")
        assert (wall[control]["verdict"] == "pass") is tsc_deadline
    assert wall["proc.seccomp-on"]["verdict"] == "pass"
    assert document["profile"].startswith("qemu-kvm")
    # KVM's own counters of this VM, through its supervisor, its emulator and the KVM filter: it printed and halted.
    exits = cli.json("surface", "kvm", "--json")["exits"]
    assert exits["exits"] > 0
    assert exits["halt_exits"] > 0
    cli.ok("kill", "kvm")


def test_kvm_boots_a_bios_disk_on_q35(cli: Cli, tmp_path: Path) -> None:
    """Firmware, PCI, virtio-blk in both directions and ACPI power-off under the KVM filter."""
    _need_kvm()
    image = bios_disk(tmp_path / "bios.raw", "W")
    words = ("--accel", "kvm", "--firmware", "bios", "--memory-mib", "64")
    cli.ok("run", "-d", "--name", "kvm", *words, image, "--disk", f"{image}:persistent")
    assert BIOS_OFF in run_to_end(cli, "kvm")
    assert boot_count(image) == 1
