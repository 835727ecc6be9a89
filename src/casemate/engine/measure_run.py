"""The measuring VM in our wall: an old board with four devices, from its plan to its end. Under KVM where that executes
guests (`casemate doctor`), under TCG otherwise.

    parent (here)                             emulator, in the wall of a VM of ours
      plan, wall, descriptors                   pc board: e1000, virtio-net, IDE, virtio-blk
      spawn ─────────────────────────────────►  exec, QMP greeting
      ◄── console: the guest's init is ready
      trace-event-set-state on ──────────────►  one line per device access, on its standard error, our pipe
      request on the console ────────────────►  so many packets or blocks
      trace-event-set-state off

The wall is the one that a VM of ours gets (namespaces, root, identity, filter); only arguments and descriptors differ.
Nothing of it is offered to `casemate run`: devices like these do not pass the controls of a launch.

    runtime/proofs/<id>/       lock, cgroups, root/: as for a proof, and swept with those (`prove.sweep_stale`)
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from casemate.controls.policy import HostPolicy
from casemate.engine import cgroups, files, identity, labels
from casemate.engine.aftermath import remove_cgroups
from casemate.engine.measure_guest import CMDLINE, READY, MeasureGuest
from casemate.engine.measure_link import Link, Peer
from casemate.engine.opening import Opened, open_spec_files
from casemate.engine.paths import Paths, own_directory
from casemate.engine.prove import sweep_stale
from casemate.engine.start import make_plan
from casemate.engine.startup import Startup
from casemate.errors import VmError
from casemate.jail.compile import cached_program
from casemate.jail.policy import Descriptor
from casemate.jail.profiles import qemu_profile
from casemate.jail.spawn import Spawned, kill_and_reap, spawn
from casemate.plan.argv import INITRD, KERNEL, PROGRAM, SANDBOX
from casemate.plan.model import LaunchPlan
from casemate.spec.model import AccelChoice, Boot, Machine, MachineType, Spec

MEMORY_MIB: Final = 256
DISK_BYTES: Final = 64 << 20
NICS: Final = ("e1000", "virtio-net")
_BOOT_DEADLINE_S: Final = 120.0
_START_DEADLINE_S: Final = 60.0
_DESCRIPTORS: Final = (
    Descriptor(0, "null", "ro"),
    Descriptor(1, "log", "wo"),
    Descriptor(2, "log", "wo"),
    Descriptor(3, "qmp", "socket"),
    Descriptor(4, "console", "socket"),
    Descriptor(5, "net-e1000", "socket"),
    Descriptor(6, "net-virtio-net", "socket"),
)


def measure_argv(accel: str, cpu: str) -> tuple[str, ...]:
    """The emulator's arguments. ``ioeventfd=off``: each notification is then an access that the trace shows.

    Args:
        accel: ``kvm`` or ``tcg``. cpu: model and flags, as a VM of ours gets them on this host.
    """
    argv = [PROGRAM, "-nodefaults", "-no-user-config", "-S", "-name", "guest=casemate-measure", "-sandbox", SANDBOX]
    argv += ["-display", "none", "-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control"]
    board = "pc,usb=off,vmport=off,mem-merge=off,dump-guest-core=off,graphics=off"
    argv += ["-machine", f"{board},smm=off,kernel_irqchip=split" if accel == "kvm" else board]
    argv += ["-cpu", cpu, "-smp", "1", "-m", f"size={MEMORY_MIB}M"]
    argv += ["-accel", "kvm" if accel == "kvm" else "tcg,thread=multi,tb-size=128", "-rtc", "base=utc"]
    argv += ["-kernel", KERNEL, "-initrd", INITRD, "-append", CMDLINE]
    argv += ["-chardev", "socket,id=console,fd=4", "-serial", "chardev:console"]
    for name in ("ide", "vblk"):
        argv += ["-blockdev", f"null-co,node-name={name},size={DISK_BYTES},read-zeroes=on"]
    argv += ["-device", "ide-hd,drive=ide"]
    argv += ["-device", "virtio-blk-pci,drive=vblk,ioeventfd=off,disable-legacy=on"]
    for number, nic in ((5, "e1000"), (6, "virtio-net-pci,ioeventfd=off,disable-legacy=on")):
        argv += ["-netdev", f"stream,id=n{number},server=off,addr.type=fd,addr.str={number}"]
        argv += ["-device", f"{nic},netdev=n{number},romfile="]
    return tuple(argv)


class Running(msgspec.Struct, frozen=True):
    """A measuring VM whose guest is ready. ``pid`` of its emulator; ``peers`` by device."""

    pid: int
    link: Link
    peers: dict[str, Peer]
    qemu_version: str
    accel: str = "tcg"


@contextlib.contextmanager
def measuring_vm(
    paths: Paths, guest: MeasureGuest, policy: HostPolicy, accel: AccelChoice = AccelChoice.AUTO
) -> Iterator[Running]:
    """Start it, and take everything away again.

    Raises:
        HostError: the wall cannot be built. VmError: emulator or guest failed.
    """
    sweep_stale(paths)
    run_id = f"measure{secrets.token_hex(5)}"
    home = f"{paths.runtime}/proofs/{run_id}"
    own_directory(f"{paths.runtime}/proofs")
    own_directory(home)
    lock = files.take_lock(f"{home}/lock", wait=False)
    opened, own = Opened(), Paths(home, f"{home}/data", paths.cache)
    uid_lock = -1
    try:
        for part in ("root", "data", "data/vms", f"data/vms/{run_id}"):
            own_directory(f"{home}/{part}")
        spec = Spec(
            name="measure",
            machine=Machine(type=MachineType.Q35, memory_mib=MEMORY_MIB, accel=accel),
            boot=Boot(kernel=guest.kernel, initrd=guest.initrd, cmdline=CMDLINE),
        )
        opened = open_spec_files(spec)
        who, uid_lock = identity.claim(paths, policy.identity.uids())
        plan = measure_plan(make_plan(spec, paths, run_id, "measure", who, opened.sizes))
        labels.apply_labels(plan, opened, own, foreign=True)
        with _walled(plan, paths, opened, home) as running:
            yield running
    finally:
        opened.close()
        labels.restore_labels(own, run_id)
        files.remove_tree(home)
        for descriptor in (lock, uid_lock):
            if descriptor is not None and descriptor >= 0:
                os.close(descriptor)


def measure_plan(plan: LaunchPlan) -> LaunchPlan:
    """The plan of a VM of ours with the measuring machine's arguments, descriptors and device parts of the filter."""
    profile = qemu_profile(plan.accel, frozenset({"blk", "rng", "console", "net"}))
    argv = measure_argv(plan.accel, plan.wall.argv[plan.wall.argv.index("-cpu") + 1])
    wall = msgspec.structs.replace(plan.wall, argv=argv, descriptors=_DESCRIPTORS, profile=profile.name)
    files_ = tuple(file for file in plan.files if file.role in ("kernel", "initrd"))
    return msgspec.structs.replace(plan, wall=wall, profile=profile, files=files_)


@contextlib.contextmanager
def _walled(plan: LaunchPlan, paths: Paths, opened: Opened, home: str) -> Iterator[Running]:
    program = cached_program(plan.profile, os.uname().machine, Path(paths.cache) / "filters")
    spawned: Spawned | None = None
    with contextlib.ExitStack() as held:
        pairs = {role: _pair(held) for role in ("qmp", "console", *(f"net-{nic}" for nic in NICS))}
        log_read, log_write = os.pipe2(os.O_CLOEXEC)
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        held.callback(os.close, null)
        held.callback(os.close, log_read)
        try:
            if plan.cgroup.directories:
                files.write_json(f"{home}/cgroups", plan.cgroup.directories)
                cgroups.make(plan.cgroup)
            sources = {**opened.by_role, "null": null, "log": log_write}
            sources |= {role: pair[1].fileno() for role, pair in pairs.items()}
            try:
                spawned = spawn(plan.wall, program, sources, f"{home}/root")
            finally:
                os.close(log_write)
                for _, theirs in pairs.values():
                    theirs.close()
            control, console = pairs["qmp"][0], pairs["console"][0]
            startup = Startup(spawned, control, log_read, os.uname().machine, _START_DEADLINE_S)
            version = startup.greeting()
            _cables_plugged(startup)
            startup.end_notifications()
            startup.command("cont")
            peers = {nic: Peer(pairs[f"net-{nic}"][0]) for nic in NICS}
            link = Link(spawned.pidfd, control, console, log_read, peers)
            link.run_until(lambda: bool(link.answers), "word that the guest is ready", _BOOT_DEADLINE_S)
            answer = link.answers.pop(0)
            if not answer.startswith(READY) or len(answer.split()) != 2 + 4:
                raise VmError("the measuring guest lacks a device", got=answer[:200])
            yield Running(spawned.pid, link, peers, version, plan.accel)
        finally:
            if spawned is not None:
                kill_and_reap(spawned)
            if plan.cgroup.directories:
                remove_cgroups(plan.cgroup.directories)


def _cables_plugged(startup: Startup) -> None:
    """Wait for both network back ends: their sockets are set up in the main loop, with calls of start-up."""
    end = time.monotonic() + _START_DEADLINE_S
    while sum(event.get("event") == "NETDEV_STREAM_CONNECTED" for event in startup.pending_events) < len(NICS):
        if time.monotonic() > end:
            raise VmError("the emulator does not take its network sockets", got=startup.log_tail())
        startup.command("query-status")
        time.sleep(0.005)


def _pair(held: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    held.callback(ours.close)
    held.callback(theirs.close)
    return ours, theirs
