"""[[passthrough]]: golden plan, and one check per thing that may be wrong with a device. Not run on hardware."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.support.hosts import EMULATOR, KVM_HOST, plan_of
from tests.unit.test_plan import SIZES, load

from casemate.errors import CasemateError, HostError, RefusedError
from casemate.facts.root import Root
from casemate.facts.vfio import PciFunction, read_function, unsafe_interrupts
from casemate.plan.model import Host, LaunchPlan

NEW_QEMU = msgspec.structs.replace(EMULATOR, version=(9, 2, 0))
GOOD = PciFunction(
    address="0000:3b:02.1",
    exists=True,
    driver="vfio-pci",
    class_code="0x020000",
    group="42",
    group_type="DMA",
    others=(("0000:3b:02.0", ""),),
    reset_methods=("flr",),
    is_virtual_function=True,
    device_node="vfio0",
)
HOST = msgspec.structs.replace(KVM_HOST, pci=(GOOD,), unsafe_interrupts=False)


def plan(host: Host = HOST) -> LaunchPlan:
    return plan_of(load("q35-passthrough"), host, SIZES, emulator=NEW_QEMU)


def test_a_good_device_is_handed_over_by_descriptor() -> None:
    made = plan()
    text = " ".join(made.wall.argv)
    numbers = {item.role: item.number for item in made.wall.descriptors}
    assert f"-object iommufd,id=iommufd0,fd={numbers['iommufd']}" in text
    assert f"vfio-pci,id=pass0,iommufd=iommufd0,fd={numbers['vfio0']},rombar=0" in text
    assert "vfio" in made.profile.name
    memlock = next(limit.value for limit in made.wall.rlimits if limit.name == "memlock")
    assert memlock >= 4096 << 20
    assert {file.path for file in made.files if file.access == "device"} == {"/dev/iommu", "/dev/vfio/devices/vfio0"}


@pytest.mark.parametrize(
    ("change", "kind", "word"),
    [
        ({"exists": False}, HostError, "no such function"),
        ({"driver": "ixgbevf"}, HostError, "driver ixgbevf"),
        ({"device_node": ""}, HostError, "not ready"),
        ({"group": ""}, RefusedError, "iommu.group-whole"),
        ({"others": (("0000:3b:02.0", "nvme"),)}, RefusedError, "0000:3b:02.0 (nvme)"),
        ({"group_type": "identity"}, RefusedError, "iommu.translate"),
        ({"group_type": ""}, RefusedError, "iommu.translate"),
        ({"reset_methods": ()}, RefusedError, "iommu.reset"),
        ({"is_virtual_function": False}, RefusedError, "iommu.vf-only"),
    ],
)
def test_each_fault_is_refused_by_its_own_control(
    change: dict[str, object], kind: type[CasemateError], word: str
) -> None:
    bad = msgspec.structs.replace(GOOD, **change)
    with pytest.raises(kind) as caught:
        plan(msgspec.structs.replace(HOST, pci=(bad,)))
    assert word in str(caught.value)
    assert caught.value.next_step


@pytest.mark.parametrize("value", [True, None])
def test_interrupts_must_be_known_to_be_remapped(value: bool | None) -> None:
    with pytest.raises(RefusedError, match="irq-remap"):
        plan(msgspec.structs.replace(HOST, unsafe_interrupts=value))


def test_an_old_qemu_is_told_apart() -> None:
    with pytest.raises(HostError, match="takes VFIO descriptors"):
        plan_of(load("q35-passthrough"), HOST, emulator=EMULATOR)


def test_sysfs_is_read(tmp_path: Path) -> None:
    device = tmp_path / "sys/bus/pci/devices/0000:3b:02.1"
    group = tmp_path / "sys/kernel/iommu_groups/42"
    (group / "devices").mkdir(parents=True)
    (group / "type").write_text("DMA\n")
    for name in ("0000:3b:02.1", "0000:3b:02.0"):
        (group / "devices" / name).mkdir()
    (device / "vfio-dev/vfio3").mkdir(parents=True)
    (device / "class").write_text("0x020000\n")
    (device / "reset_method").write_text("flr bus\n")
    (device / "physfn").mkdir()
    (device / "driver").symlink_to("../../../../bus/pci/drivers/vfio-pci")
    (device / "iommu_group").symlink_to("../../../../kernel/iommu_groups/42")
    parameters = tmp_path / "sys/module/vfio_iommu_type1/parameters"
    parameters.mkdir(parents=True)
    (parameters / "allow_unsafe_interrupts").write_text("N\n")
    found = read_function(Root(tmp_path), "0000:3b:02.1")
    assert found == msgspec.structs.replace(GOOD, reset_methods=("flr", "bus"), device_node="vfio3")
    assert found.is_network
    assert unsafe_interrupts(Root(tmp_path)) is False
    assert read_function(Root(tmp_path), "0000:00:00.0") == PciFunction("0000:00:00.0", exists=False)
    assert unsafe_interrupts(Root(tmp_path / "empty")) is None
