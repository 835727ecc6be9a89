"""What counts the work per packet: the trace's reader, the loop around a hostile emulator, the guest's cache."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.engine import measure_guest
from casemate.engine.measure import (
    BLOCK_BYTES,
    PACKET_BYTES,
    Count,
    Workload,
    all_workloads,
    measured_document,
)
from casemate.engine.measure_count import EVENTS, LINE_MAX_BYTES, TraceCounter
from casemate.engine.measure_guest import INIT, MODULES, MeasureGuest
from casemate.engine.measure_link import Link, Peer
from casemate.engine.measure_run import measure_argv
from casemate.errors import HostError, VmError
from casemate.facts.fact import Known, Stage
from casemate.facts.machine_facts import machine_facts
from casemate.facts.qemu_argv import read_argv
from casemate.surface.pictures import document_svg, document_text

TRACE = b"""\
memory_region_ops_write cpu 0 mr 0x55e addr 0xfebc3818 value 0x7 size 4 name 'e1000-mmio'
12@1700000000.000001:memory_region_ops_read cpu 0 mr 0x55e addr 0xfebc00c0 value 0x2 size 4 name 'e1000-mmio'
memory_region_ops_write cpu 0 mr 0x5 addr 0x3f8 value 0x41 size 1 name 'serial'
memory_region_ops_write cpu 0 mr 0x5 addr 0xfee000b0 value 0x0 size 4 name 'apic-msi'
memory_region_ops_read cpu 0 mr 0x5 addr 0x170 value 0x0 size 1 name 'ide'
memory_region_ops_write cpu 0 mr 0x5 addr 0xc040 value 0x0 size 1 name 'piix-bmdma'
memory_region_ops_write cpu 0 mr 0x5 addr 0x1 value 0x1 size 2 name 'virtio-pci-notify-virtio-net'
virtio_queue_notify vdev 0x55d n 1 vq 0x55f
virtio_notify vdev 0x55d vq 0x55f
ioapic_set_irq vector: 11 level: 1
ioapic_set_irq vector: 11 level: 0
ioapic_set_irq vector: 4 level: 1
apic_deliver_irq dest 1 dest_mode 1 delivery_mode 0 vector 45 trigger_mode 1
qemu-system-x86_64: warning: something else
"""


def counted(data: bytes) -> TraceCounter:
    counter = TraceCounter()
    counter.feed(data)
    return counter


def sums(counter: TraceCounter) -> tuple[object, ...]:
    return counter.regions, counter.notifications, counter.virtio_interrupts, counter.lines, counter.other


def test_each_device_gets_what_is_its_own() -> None:
    counter = counted(TRACE)
    assert counter.accesses("e1000") == {"read e1000-mmio": 1, "write e1000-mmio": 1}
    assert counter.accesses("ide") == {"read ide": 1, "write piix-bmdma": 1}
    assert counter.accesses("virtio-net") == {"write virtio-pci-notify-virtio-net": 1}
    assert counter.accesses("virtio-blk") == {}
    assert counter.notifications == 1
    assert counter.interrupts("virtio-net") == 1
    assert counter.interrupts("e1000") == 1
    assert counter.other == 2


@settings(deadline=None)
@given(st.lists(st.integers(0, len(TRACE)), max_size=12))
def test_wherever_the_bytes_are_cut_the_sums_are_the_same(cuts: list[int]) -> None:
    counter, edges = TraceCounter(), sorted({0, len(TRACE), *cuts})
    for start, end in pairwise(edges):
        counter.feed(TRACE[start:end])
    assert sums(counter) == sums(counted(TRACE))


@settings(deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=20))
def test_any_bytes_are_counted_within_bounds(chunks: list[bytes]) -> None:
    counter = TraceCounter()
    for chunk in chunks:
        counter.feed(chunk)
    assert len(counter._pending) <= LINE_MAX_BYTES
    assert counter.interrupts("e1000") == sum(counter.lines.values()) - sum(
        n for line, n in counter.lines.items() if line in {0, 1, 2, 4, 8, 9, 12}
    )


def test_a_flood_of_names_and_an_endless_line_cost_no_memory() -> None:
    counter = counted(b"".join(b"memory_region_ops_read x name '%d'\n" % number for number in range(5000)))
    assert len(counter.regions) <= 256
    for _ in range(100):
        counter.feed(b"x" * 1000)
    assert len(counter._pending) <= LINE_MAX_BYTES
    assert counted(b"ioapic_set_irq vector: 999 level: 1\n").lines == {}


def test_frames_are_cut_by_their_length() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = Peer(ours)
        data = b"".join(len(frame).to_bytes(4, "big") + frame for frame in (b"a" * 60, b"b" * 1514))
        for position in range(0, len(data), 7):
            peer.feed(data[position : position + 7])
        assert (peer.frames, peer.payload_bytes) == (2, 1574)
        for lie in (b"\0\0\0\0", b"\xff\xff\xff\xff"):
            with pytest.raises(VmError, match="make no sense"):
                Peer(ours).feed(lie)


class FakeVm:
    """The other ends of a link, and a child that can end."""

    def __init__(self) -> None:
        self.control, control = socket.socketpair()
        self.console, console = socket.socketpair()
        self.cable, cable = socket.socketpair()
        log_read, self.log = os.pipe()
        self.child = subprocess.Popen(["/bin/sleep", "60"])
        self.pidfd = os.pidfd_open(self.child.pid)
        self._ours = (control, console, cable)
        self._log_read = log_read
        self.link = Link(self.pidfd, control, console, log_read, {"e1000": Peer(cable)})

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        for end in (self.control, self.console, self.cable, *self._ours):
            end.close()
        for descriptor in (self.pidfd, self.log, self._log_read):
            os.close(descriptor)


@pytest.fixture
def vm() -> Iterator[FakeVm]:
    fake = FakeVm()
    yield fake
    fake.close()


def test_answers_are_found_behind_control_sequences_and_echo(vm: FakeVm) -> None:
    vm.console.sendall(b"received e1000\r\n\x1b[2Jcm done 42\r\n")
    assert vm.link.ask("received e1000") == "42"
    assert vm.console.recv(100) == b"received e1000\n"


def test_a_complaint_of_the_guest_is_an_error(vm: FakeVm) -> None:
    vm.console.sendall(b"cm fault module e1000\n")
    with pytest.raises(VmError, match="could not"):
        vm.link.ask("received e1000")


def test_commands_take_their_own_answer_only(vm: FakeVm) -> None:
    vm.control.sendall(b'{"event": "RESUME"}\n{"return": {}, "id": 1}\n{"return": {"a": 1}, "id": 5001}\n')
    assert vm.link.command("query-status") == {"a": 1}
    vm.control.sendall(b'{"error": {"class": "x", "desc": "no"}, "id": 5002}\n')
    with pytest.raises(VmError, match="refused"):
        vm.link.command("cont")


@pytest.mark.parametrize("said", [b"{" * 100 + b"\n", b"\xff\xfe\n", b"[]\n"])
def test_nonsense_on_qmp_is_an_error(vm: FakeVm, said: bytes) -> None:
    vm.control.sendall(said)
    with pytest.raises(VmError, match="does not speak QMP"):
        vm.link.command("cont")


def test_an_emulator_that_ends_is_noticed_with_its_last_words(vm: FakeVm) -> None:
    os.write(vm.log, b"Bail out!\n")
    vm.link.rest(0.05)
    vm.child.kill()
    vm.child.wait()
    with pytest.raises(VmError, match="ended") as caught:
        vm.link.ask("off")
    assert "Bail out!" in str(caught.value)


def test_waiting_has_an_end(vm: FakeVm) -> None:
    with pytest.raises(VmError, match="too slow"):
        vm.link.run_until(lambda: False, "word", 0.05)


def test_the_machine_has_the_four_devices_and_nothing_of_the_host() -> None:
    argv = measure_argv()
    machine = read_argv(argv, "measure")
    assert machine.unreadable == ()
    facts = machine_facts(machine, Stage.DECLARED)
    types = facts["dev.types"]
    assert isinstance(types, Known)
    assert {"e1000", "virtio-net-pci", "ide-hd", "virtio-blk-pci"} <= set(types.value)  # type: ignore[arg-type]
    assert [disk.path for disk in machine.disks if disk.path] == []
    assert machine.monitors == ("fd",)
    assert "spawn=deny" in machine.sandbox
    assert {"-nodefaults", "-no-user-config"} <= set(machine.flags)
    assert machine.accel == "tcg"


def test_workloads_cover_devices_directions_and_sizes() -> None:
    every = all_workloads()
    for device in ("e1000", "virtio-net"):
        for direction in ("transmit", "receive"):
            mine = [work for work in every if (work.device, work.direction) == (device, direction)]
            assert [work.size_bytes for work in mine if work.paced] == list(PACKET_BYTES)
            assert [work.size_bytes for work in mine if not work.paced] == [PACKET_BYTES[-1]]
    for device in ("ide", "virtio-blk"):
        assert {work.size_bytes for work in every if work.device == device} == set(BLOCK_BYTES)
    assert len(set(every)) == len(every)


def test_the_document_divides_and_the_pictures_show_it() -> None:
    count = Count(
        workload=Workload("e1000", "transmit", 512, 200),
        accesses=1200,
        notifications=0,
        interrupts=200,
        regions={"write e1000-mmio": 1200},
        moved=200,
    )
    measured = measured_document([count], "7.2", "6.1")
    assert measured["per_unit"] == {"e1000": {"transmit": {"accesses": 6.0, "notifications": 0.0, "interrupts": 1.0}}}
    assert measured["rows"][0]["accesses"] == 1200
    assert measured["exits"].startswith("unknown")
    document = {"paths": ["e1000"], "accel": "tcg", "measured": measured}
    assert "6.0 per packet" in document_svg(document)
    assert "[6.0 per packet]" in " ".join(" ".join(document_text(document)).split())
    assert EVENTS[0] in TRACE.decode()


def elf(depends: str) -> bytes:
    return b"\x7fELF\0depends=" + depends.encode() + b"\0"


def test_modules_come_after_what_they_depend_on() -> None:
    found = dict.fromkeys(MODULES, elf("")) | {"e1000": elf("pktgen"), "pktgen": elf("crc")}
    found["crc"] = elf("")
    order = list(measure_guest._ordered(found, frozenset({"virtio_pci"})))
    assert order.index("crc") < order.index("pktgen") < order.index("e1000")
    assert "virtio_pci" not in order
    del found["crc"]
    with pytest.raises(HostError, match="e1000 -> pktgen -> crc"):
        measure_guest._ordered(found, frozenset())
    found |= {"crc": elf("e1000")}
    with pytest.raises(HostError, match="circular"):
        measure_guest._ordered(found, frozenset())


def sound(place: Path) -> MeasureGuest:
    import hashlib

    place.mkdir()
    for name in ("kernel", "initrd"):
        (place / name).write_bytes(name.encode())
    guest = MeasureGuest(
        kernel=f"{place}/kernel",
        initrd=f"{place}/initrd",
        kernel_sha256=hashlib.sha256(b"kernel").hexdigest(),
        initrd_sha256=hashlib.sha256(b"initrd").hexdigest(),
        release="6.1",
        sources={},
    )
    (place / "manifest.json").write_bytes(msgspec.json.encode(guest))
    return guest


@pytest.mark.parametrize(
    "damage",
    [
        lambda place: (place / "kernel").write_bytes(b"other"),
        lambda place: (place / "initrd").unlink(),
        lambda place: (place / "manifest.json").write_text("{}"),
        lambda place: (place / "manifest.json").write_bytes(b"\xff"),
        lambda place: shutil.move(place, f"{place}2") and (place.symlink_to(f"{place}2"), (place / "kernel").unlink()),
    ],
)
def test_a_cached_guest_is_taken_only_whole(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    place = tmp_path / "guest"
    guest = sound(place)
    assert measure_guest._load(str(place)) == guest
    damage(place)
    assert measure_guest._load(str(place)) is None


@pytest.mark.skipif(shutil.which("busybox") is None, reason="busybox-static is not installed")
def test_the_guests_script_is_shell() -> None:
    done = subprocess.run(["busybox", "sh", "-n"], input=INIT, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (0, "")
