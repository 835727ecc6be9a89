"""Command line flags laid over a specification."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

from casemate.errors import ImageError, SpecError
from casemate.spec.model import (
    AccelChoice,
    Boot,
    Disk,
    DiskFormat,
    DiskMode,
    Egress,
    Firmware,
    MachineType,
    Network,
    NetworkMode,
    Publish,
    Spec,
)
from casemate.spec.override import builtin_spec, override, spec_for_image
from casemate.spec.parse import check_spec, parse_spec

TODAY = datetime.date(2026, 10, 1)
BASE = Path("/cwd")
KERNEL_SPEC = Spec(boot=Boot(kernel="/k", initrd="/i", cmdline="quiet"))
IMAGE_SPEC = spec_for_image("/images/root.qcow2", "qcow2")


def lay(spec: Spec, **flags: Any) -> Spec:
    return override(spec, base_dir=BASE, today=TODAY, **flags)


def faults_of(spec: Spec, **flags: Any) -> set[tuple[str, str]]:
    with pytest.raises(SpecError) as caught:
        lay(spec, **flags)
    assert caught.value.source == "command line"
    return {(fault.path, fault.fault_id) for fault in caught.value.faults}


@pytest.mark.parametrize("spec", [KERNEL_SPEC, IMAGE_SPEC], ids=["kernel", "image"])
def test_no_flags_change_nothing(spec: Spec) -> None:
    assert lay(spec) == spec


def test_plain_values() -> None:
    spec = lay(KERNEL_SPEC, name="web", memory_mib=512, vcpus=2, accel="tcg", initrd="new", cmdline="debug")
    assert spec.name == "web"
    assert (spec.machine.memory_mib, spec.machine.vcpus, spec.machine.accel) == (512, 2, AccelChoice.TCG)
    assert spec.boot == Boot(kernel="/k", initrd="/cwd/new", cmdline="debug")
    assert lay(KERNEL_SPEC, memory_mib="2G").machine.memory_mib == 2048
    assert lay(KERNEL_SPEC, memory_mib="300").machine.memory_mib == 300


def test_empty_command_line_is_given() -> None:
    assert lay(KERNEL_SPEC, cmdline="").boot.cmdline == ""


def test_kernel_replaces_firmware() -> None:
    spec = lay(IMAGE_SPEC, kernel="vmlinuz", cmdline="root=/dev/vda1")
    assert spec.boot == Boot(kernel="/cwd/vmlinuz", cmdline="root=/dev/vda1")
    assert spec.machine.type is MachineType.Q35
    assert spec.disks == IMAGE_SPEC.disks


def test_firmware_replaces_kernel_and_chooses_q35() -> None:
    spec = lay(KERNEL_SPEC, firmware="bios", disks=["root.img:raw"])
    assert spec.boot == Boot(firmware=Firmware.BIOS)
    assert spec.machine.type is MachineType.Q35


def test_kernel_and_firmware_flags_exclude_each_other() -> None:
    assert ("boot", "boot.both") in faults_of(KERNEL_SPEC, kernel="k", firmware="uefi", machine_type="q35")


def test_disks_are_added_with_overlay_as_default() -> None:
    spec = lay(KERNEL_SPEC, disks=["a.img:raw", "/b:qcow2,persistent", "c:d:ro,raw"])
    assert spec.disks == (
        Disk(path="/cwd/a.img", format=DiskFormat.RAW, mode=DiskMode.OVERLAY),
        Disk(path="/b", format=DiskFormat.QCOW2, mode=DiskMode.PERSISTENT),
        Disk(path="/cwd/c:d", format=DiskFormat.RAW, mode=DiskMode.READ_ONLY),
    )


def test_disk_of_the_specification_is_changed_in_place() -> None:
    spec = lay(IMAGE_SPEC, disks=["/images/root.qcow2:persistent"])
    assert spec.disks == (Disk(path="/images/root.qcow2", format=DiskFormat.QCOW2, mode=DiskMode.PERSISTENT),)


def test_colon_in_a_directory_is_no_option() -> None:
    assert lay(KERNEL_SPEC, disks=["/a:b/c"], format_of=lambda _: "raw").disks[0].path == "/a:b/c"


def test_format_is_asked_for_by_absolute_path() -> None:
    asked: list[str] = []

    def format_of(path: str) -> str:
        asked.append(path)
        return "qcow2"

    spec = lay(KERNEL_SPEC, disks=["a", "b:raw"], format_of=format_of)
    assert [disk.format for disk in spec.disks] == [DiskFormat.QCOW2, DiskFormat.RAW]
    assert asked == ["/cwd/a"]


def test_error_of_format_of_passes_through() -> None:
    def format_of(path: str) -> str:
        raise ImageError(f"cannot tell what {path} is")

    with pytest.raises(ImageError, match="cannot tell what /cwd/a is"):
        lay(KERNEL_SPEC, disks=["a"], format_of=format_of)


@pytest.mark.parametrize(
    ("disk", "fault_id"),
    [
        ("a", "disk.format"),
        ("a:persistant", "disk.option"),
        ("a:raw,qcow2", "disk.option"),
        ("a:ro,overlay", "disk.option"),
        ("a:raw,", "disk.option"),
        (":raw", "path.empty"),
        ("~/a:raw", "path.home"),
        ("a\nb:raw", "text.control"),
        ("nbd://host/x", "path.url"),
    ],
)
def test_bad_disk(disk: str, fault_id: str) -> None:
    assert faults_of(KERNEL_SPEC, disks=[disk]) == {("--disk", fault_id)}


def test_same_disk_twice() -> None:
    assert faults_of(KERNEL_SPEC, disks=["a:raw", "./a:raw"]) == {("--disk", "disk.duplicate")}
    assert faults_of(IMAGE_SPEC, disks=["/images/root.qcow2:ro", "/images/root.qcow2:ro"]) == {
        ("--disk", "disk.duplicate")
    }


def test_publish_implies_a_user_network() -> None:
    spec = lay(IMAGE_SPEC, publish=["2222:22"])
    assert spec.network.mode is NetworkMode.USER
    assert spec.network.publish == (Publish(host_port=2222, guest_port=22, address="127.0.0.1"),)


def test_publish_adds_to_the_specification() -> None:
    spec = lay(lay(IMAGE_SPEC, publish=["2222:22"]), publish=["[::1]:80:80/udp"], ipv6=True)
    assert [port.host_port for port in spec.network.publish] == [2222, 80]


def test_net_none_drops_the_network() -> None:
    spec = lay(IMAGE_SPEC, net="user", egress="list", allow=["9.9.9.9"], publish=["2222:22"], ipv6=True)
    assert spec.network.egress is Egress.LIST
    assert lay(spec, net="none") == IMAGE_SPEC
    for flag in ({"publish": ["1:1"]}, {"ipv6": True}):
        assert faults_of(spec, net="none", **flag) == {("--net", "flag.conflict")}


def test_ipv6_implies_a_network_and_is_asked_for() -> None:
    assert lay(IMAGE_SPEC, ipv6=True).network == Network(mode=NetworkMode.USER, ipv6=True)
    assert faults_of(IMAGE_SPEC, publish=["[::1]:1:1"]) == {("network.publish[0]", "ipv6.off")}


def test_all_faults_carry_the_flag() -> None:
    assert faults_of(
        KERNEL_SPEC, name="A", memory_mib="2.1M", vcpus=0, accel="kmv", net="bridge", disks=["a:rw"], kernel="~/k"
    ) == {
        ("--name", "value.pattern"),
        ("--memory-mib", "value.pattern"),
        ("--vcpus", "value.range"),
        ("--accel", "value.choice"),
        ("--net", "value.choice"),
        ("--disk", "disk.option"),
        ("--kernel", "path.home"),
    }


def test_invariants_hold_after_flags() -> None:
    assert faults_of(KERNEL_SPEC, firmware="uefi") == {("--firmware", "boot.needs-disk")}
    assert faults_of(IMAGE_SPEC, cmdline="x") == {("--cmdline", "boot.needs-kernel")}
    assert faults_of(IMAGE_SPEC, machine_type="microvm") == {("boot.firmware", "machine.needs-q35")}


def test_expired_waiver_of_the_specification_is_still_a_fault() -> None:
    text = "[boot]\nkernel='k'\n[[waiver]]\ncontrol='a.b'\nreason='long enough'\nexpires=2026-10-01"
    spec = parse_spec(text, "vm.toml", BASE, today=TODAY)
    assert lay(spec, vcpus=2).waivers == spec.waivers
    with pytest.raises(SpecError, match=r"waiver\.expired"):
        override(spec, base_dir=BASE, today=datetime.date(2026, 10, 2))


def test_image_is_not_changed_by_default() -> None:
    assert IMAGE_SPEC.disks == (Disk(path="/images/root.qcow2", format=DiskFormat.QCOW2, mode=DiskMode.OVERLAY),)
    assert IMAGE_SPEC.boot.firmware is Firmware.UEFI
    assert IMAGE_SPEC.machine.type is MachineType.Q35
    assert IMAGE_SPEC.network.mode is NetworkMode.NONE
    assert spec_for_image("/x", "raw", "bios", mode="persistent").disks[0].mode is DiskMode.PERSISTENT


@pytest.mark.parametrize("arguments", [("/x", "vmdk", "uefi"), ("/x", "raw", "efi"), ("/x\n", "raw", "bios")])
def test_bad_image_arguments(arguments: tuple[str, str, str]) -> None:
    with pytest.raises(SpecError):
        spec_for_image(*arguments)
    with pytest.raises(SpecError, match=r"boot\.missing"):
        spec_for_image("/x", "raw", "none")


def test_builtin() -> None:
    spec = builtin_spec("/cache/vmlinuz", "/cache/initrd")
    assert spec.machine.type is MachineType.MICROVM
    assert spec.disks == ()
    assert spec.network.mode is NetworkMode.NONE
    assert check_spec(spec, today=TODAY) == ()
