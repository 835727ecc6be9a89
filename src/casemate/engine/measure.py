"""Work per packet and per block, counted on a live VM: four devices, two directions, three sizes.

Sizes of packets: 64 (the smallest that Ethernet carries), 512, 1514 (the largest without jumbo frames, header
included): what depends on the size, and what does not, is then visible. Of blocks: 4096 (a page, what file systems ask
for; smaller ones the guest's page cache would gather), 16384, 65536 (many segments in one request).

Units follow each other with a pause, so that each is seen alone; once more without a pause, the devices may take
several at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec

from casemate.controls.policy import HostPolicy
from casemate.engine.kvmexits import difference, read_exits
from casemate.engine.measure_count import EVENTS, TraceCounter
from casemate.engine.measure_guest import measure_guest
from casemate.engine.measure_run import Running, measuring_vm
from casemate.engine.paths import Paths
from casemate.errors import VmError
from casemate.spec.model import AccelChoice

PACKET_BYTES: Final = (64, 512, 1514)
BLOCK_BYTES: Final = (4096, 16384, 65536)
SHOWN: Final = {"packet": 512, "block": 4096}
"""Sizes whose figures stand in the pictures."""
UNITS: Final = 200
GAP_S: Final = 0.002
_SETTLE_S: Final = 0.05
_MAC: Final = b"\xff" * 6 + b"\x02\x00\x00\x00\x00\x01"
_ETHERTYPE: Final = b"\x88\xb5"
"""For local experiments (IEEE 802): the guest's kernel takes the frame and drops it."""

NO_EXITS: Final = "unknown: counted under TCG, where there are no exits; KVM tells them where it executes guests"
EXITS: Final = "KVM's own counters (QMP query-stats), the guest's timer and its waiting included"
NO_VHOST: Final = "not measured: its worker is in the host's kernel; /dev/vhost-net is not handed to a VM of ours"

Progress = Callable[[int, int, str], None]


class Workload(msgspec.Struct, frozen=True):
    """So many packets or blocks of one size through one device. ``paced``: with a pause after each."""

    device: str
    direction: str
    size_bytes: int
    units: int
    paced: bool = True

    @property
    def unit(self) -> str:
        """packet or block."""
        return "packet" if self.device in ("e1000", "virtio-net") else "block"

    @property
    def text(self) -> str:
        """In one line."""
        return f"{self.device}, {self.direction}, {self.units} × {self.size_bytes} bytes"


class Count(msgspec.Struct, frozen=True, kw_only=True):
    """What one workload needed, in all. ``regions``: accesses by register block. ``moved``: units that arrived.
    ``exits`` by reason; under TCG, or where KVM does not tell, why there are none."""

    workload: Workload
    accesses: int
    notifications: int
    interrupts: int
    regions: dict[str, int]
    moved: int
    exits: dict[str, int] | str = NO_EXITS

    def per_unit(self) -> dict[str, float]:
        """The three numbers per packet or block."""
        units = self.workload.units
        named = {"accesses": self.accesses, "notifications": self.notifications, "interrupts": self.interrupts}
        return {name: round(value / units, 3) for name, value in named.items()}


def all_workloads(units: int = UNITS) -> tuple[Workload, ...]:
    """Everything that a whole measurement does."""
    found = []
    for device in ("e1000", "virtio-net"):
        for direction in ("transmit", "receive"):
            found += [Workload(device, direction, size, units) for size in PACKET_BYTES]
            found.append(Workload(device, direction, PACKET_BYTES[-1], units, paced=False))
    for device in ("ide", "virtio-blk"):
        found += [Workload(device, way, size, units) for way in ("read", "write") for size in BLOCK_BYTES]
    return tuple(found)


def measure(
    paths: Paths,
    policy: HostPolicy,
    accel: AccelChoice = AccelChoice.AUTO,
    *,
    workloads: Sequence[Workload] = (),
    report: Callable[[str], None] = lambda step: None,
    progress: Progress = lambda done, of, what: None,
) -> dict[str, Any]:
    """Boot the guest and count.

    Args:
        accel: with ``auto`` KVM where it executes guests.
        workloads: which; all without any.
        report: told one line per long step before the guest runs.
        progress: told (done, how many, what comes next).

    Returns:
        the ``measured`` part of a surface document.

    Raises:
        HostError: no kernel package, or no wall. VmError: emulator or guest failed, or packets were lost.
    """
    chosen = tuple(workloads) or all_workloads()
    guest = measure_guest(paths.cache, report)
    report("booting the measuring guest")
    with measuring_vm(paths, guest, policy, accel) as running:
        counts = tuple(_counted(running, chosen, progress))
    return measured_document(counts, running.qemu_version, guest.release, running.accel)


def _counted(running: Running, chosen: Sequence[Workload], progress: Progress) -> Iterator[Count]:
    for number, workload in enumerate(chosen):
        progress(number, len(chosen), workload.text)
        yield run_workload(running, workload)
    progress(len(chosen), len(chosen), "")


def run_workload(running: Running, workload: Workload) -> Count:
    """Move the units with the trace switched on.

    Raises:
        VmError: not all of them arrived.
    """
    link = running.link
    before = _arrived(running, workload)
    link.rest(_SETTLE_S)
    counter = link.counter = TraceCounter()
    _trace(running, on=True)
    exits = _exits(running)
    _move(running, workload)
    link.rest(_SETTLE_S)
    exits = _since(exits, _exits(running))
    _trace(running, on=False)
    link.rest(_SETTLE_S)
    moved = _arrived(running, workload) - before if workload.unit == "packet" else workload.units
    if moved != workload.units:
        raise VmError(f"{workload.text}: not everything arrived", got=f"{moved}", expected=f"{workload.units}")
    regions = counter.accesses(workload.device)
    return Count(
        workload=workload,
        accesses=sum(regions.values()),
        notifications=counter.notifications,
        interrupts=counter.interrupts(workload.device),
        regions=regions,
        moved=moved,
        exits=exits,
    )


def _exits(running: Running) -> dict[str, int] | str:
    return read_exits(running.link.command) if running.accel == "kvm" else NO_EXITS


def _since(before: dict[str, int] | str, after: dict[str, int] | str) -> dict[str, int] | str:
    if isinstance(before, str) or isinstance(after, str):
        return before if isinstance(before, str) else after
    return difference(before, after)


def _arrived(running: Running, workload: Workload) -> int:
    """Packets that came through so far: at our end of the cable, or in the guest's own count."""
    if workload.unit == "block":
        return 0
    if workload.direction == "transmit":
        return running.peers[workload.device].frames
    answer = running.link.ask(f"received {workload.device}")
    return int(answer) if answer.isascii() and answer.isdigit() else 0


def _trace(running: Running, *, on: bool) -> None:
    for event in EVENTS:
        running.link.command("trace-event-set-state", name=event, enable=on)


def _move(running: Running, workload: Workload) -> None:
    link = running.link
    size, units = workload.size_bytes, workload.units
    gap_ns = int(GAP_S * 1e9) if workload.paced else 0
    if workload.direction != "receive":
        answer = link.ask(f"{workload.direction} {workload.device} {size} {units} {gap_ns}", 60 + units * 0.1)
        words = answer.split()
        if not words or words[0].partition("+")[0] != str(units):
            raise VmError(f"the measuring guest did less than {workload.text}", got=answer[:100])
        return
    frame = _MAC + _ETHERTYPE + bytes(size - 14)
    peer = running.peers[workload.device]
    for _ in range(units):
        link.send_frame(peer, frame)
        if workload.paced:
            link.rest(GAP_S)
    end = time.monotonic() + 10
    expected = None
    while time.monotonic() < end:  # the emulator reads at its own pace
        link.rest(_SETTLE_S)
        found = link.counter.interrupts(workload.device)
        if found == expected:
            return
        expected = found


def measured_document(counts: Sequence[Count], qemu_version: str, release: str, accel: str = "tcg") -> dict[str, Any]:
    """The ``measured`` part of a surface document."""
    rows = []
    per_unit: dict[str, dict[str, dict[str, float]]] = {}
    for count in counts:
        work = count.workload
        numbers = count.per_unit()
        rows.append(
            {
                "device": work.device,
                "direction": work.direction,
                "unit": work.unit,
                "size_bytes": work.size_bytes,
                "paced": work.paced,
                "units": work.units,
                "accesses": count.accesses,
                "notifications": count.notifications,
                "interrupts": count.interrupts,
                "per_unit": numbers,
                "regions": count.regions,
                "exits": count.exits if isinstance(count.exits, dict) else None,
            }
        )
        if work.paced and work.size_bytes == SHOWN[work.unit]:
            per_unit.setdefault(work.device, {})[work.direction] = numbers
    why = next((count.exits for count in counts if isinstance(count.exits, str)), EXITS)
    how = (
        f"Counted with QEMU {qemu_version} under {accel.upper()}, Linux {release} as guest, in the wall of a VM of "
        f"ours: accesses to the device's registers, queue notifications, interrupts. ioeventfd is off, so that each "
        f"notification is an access too. In pictures: packets of {SHOWN['packet']} bytes, blocks of {SHOWN['block']}, "
        f"one at a time."
    )
    return {
        "how": how,
        "accel": accel,
        "qemu": qemu_version,
        "kernel": release,
        "rows": rows,
        "per_unit": per_unit,
        "exits": why,
        "vhost_net": NO_VHOST,
    }
