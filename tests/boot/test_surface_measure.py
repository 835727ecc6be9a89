"""surface --measure for real: a guest in our wall, four devices, packets and blocks that are counted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.support.tiny_guests import pvh_kernel

from casemate.engine.kvmexits import read_exits
from casemate.engine.measure import Workload, measured_document, run_workload
from casemate.engine.measure_guest import MeasureGuest, measure_guest
from casemate.engine.measure_run import measuring_vm
from casemate.engine.paths import default_paths, prepare
from casemate.engine.policy_file import read_policy
from casemate.errors import HostError
from casemate.facts.kvm import cached_probe
from casemate.facts.kvm_report import Verdict
from casemate.spec.model import AccelChoice

pytestmark = [pytest.mark.boot]
FEW, MANY = 20, 60


def is_walled(pid: int) -> None:
    """The emulator with the old devices has the wall of every other: nothing was opened for it."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert "0" not in status["Uid"].split()
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"], status["Seccomp_filters"]) == ("1", "2", "2")
    own = {name: os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "pid", "net", "ipc", "uts")}
    assert all(os.readlink(f"/proc/{pid}/ns/{name}") != link for name, link in own.items())
    with pytest.raises(OSError, match=r"Read-only|denied"):
        Path(f"/proc/{pid}/root/x").write_text("")


def test_virtio_needs_less_of_the_emulator_than_old_hardware() -> None:
    paths = default_paths()
    prepare(paths)
    try:
        guest = measure_guest(paths.cache, lambda step: None)
    except HostError as error:
        pytest.skip(f"no plain kernel to be had: {error}")
    works = [
        Workload(d, way, 512, n)
        for d in ("e1000", "virtio-net")
        for way in ("transmit", "receive")
        for n in (FEW, MANY)
    ]
    works += [
        Workload(d, way, 4096, n) for d in ("ide", "virtio-blk") for way in ("read", "write") for n in (FEW, MANY)
    ]
    with measuring_vm(paths, guest, read_policy(None)) as running:
        is_walled(running.pid)
        counts = {(w.device, w.direction, w.units): run_workload(running, w) for w in works}
    for (device, direction, units), count in counts.items():
        assert count.moved == units
        assert count.interrupts > 0, (device, direction)
        if not device.startswith("virtio"):
            assert count.notifications == 0  # only virtio has queues to notify
        elif direction != "receive":
            assert count.notifications > 0
    # Interrupts of packets are taken several at once, the more the busier the host is. But an e1000 is told of each
    # packet by a write to its tail register (TDT), back to back too: 1.75 accesses each (docs/surface.md).
    assert all(counts["e1000", "transmit", units].accesses >= units for units in (FEW, MANY))
    # Each block is a request of its own.
    for device, direction in {(device, direction) for device, direction, _ in counts if direction in ("read", "write")}:
        few, many = counts[device, direction, FEW], counts[device, direction, MANY]
        assert many.interrupts > few.interrupts
        assert many.accesses > few.accesses
    for direction in ("transmit", "receive"):
        assert counts["virtio-net", direction, MANY].accesses < counts["e1000", direction, MANY].accesses
    for direction in ("read", "write"):
        disk, virtio = counts["ide", direction, MANY], counts["virtio-blk", direction, MANY]
        assert virtio.notifications == MANY
        assert virtio.accesses < 2 * MANY
        assert disk.accesses >= 10 * MANY
        assert disk.interrupts >= MANY
    assert all(isinstance(count.exits, dict) is (running.accel == "kvm") for count in counts.values())
    document = measured_document(tuple(counts.values()), running.qemu_version, guest.release, running.accel)
    assert set(document["per_unit"]) == {"e1000", "virtio-net", "ide", "virtio-blk"}


@pytest.mark.skipif(
    os.environ.get("CASEMATE_TEST_KVM_MEASURE") != "1",
    reason="SeaBIOS on a KVM that emulates takes some 7 s: CASEMATE_TEST_KVM_MEASURE=1 runs it",
)
def test_the_measuring_vm_under_kvm_tells_its_exits(tmp_path: Path) -> None:
    """The old board with its four devices in the wall of a VM of ours, under KVM: firmware, option ROMs, a kernel of
    forty instructions that says what the guest's init says. Where KVM executes guests, the test above runs under it."""
    report = cached_probe(Path(default_paths().cache) / "kvm.json")
    if report.verdict not in {Verdict.USABLE, Verdict.EMULATED}:
        pytest.skip(f"KVM is {report.verdict.value} here: {report.why}")
    kernel = pvh_kernel(tmp_path / "kernel", "cm ready a b c d")
    initrd = tmp_path / "initrd"
    initrd.write_bytes(bytes(4096))
    guest = MeasureGuest(
        kernel=str(kernel), initrd=str(initrd), kernel_sha256="", initrd_sha256="", release="tiny", sources={}
    )
    paths = default_paths()
    prepare(paths)
    with measuring_vm(paths, guest, read_policy(None), AccelChoice.KVM) as running:
        is_walled(running.pid)
        before = read_exits(running.link.command)
        running.link.command("stop")
        running.link.command("cont")
        after = read_exits(running.link.command)
    assert running.accel == "kvm"
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    assert before["exits"] > 0
    assert before["mmio_exits"] > 0, "firmware has set up PCI cards"
    assert set(after) == set(before)
    assert all(after[name] >= count for name, count in before.items())
