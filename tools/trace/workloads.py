"""The traced runs of QEMU as data, and what the driver does in each."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from qemu_session import Session

QUERIES = (
    "query-status", "query-version", "query-block", "query-blockstats", "query-chardev", "query-memory-devices",
    "query-cpus-fast", "query-iothreads", "query-named-block-nodes", "query-kvm", "query-rx-filter", "query-pci",
    "query-machines", "query-commands", "query-fdsets", "query-tpm", "query-memory-size-summary", "query-target",
)  # fmt: skip


@dataclass
class Workload:
    """One run: the machine, its devices, the guest's steps, and what the driver does after ``cont``."""

    name: str
    accel: str
    devices: str
    drive: Callable[[Session], None]
    about: str
    machine: str = "microvm"
    guest: str = "linux"
    steps: str = "off"
    vcpus: int = 1
    disk: str = "overlay"
    console: str = "serial"
    small_disk_fs: bool = False
    reboots: bool = False
    extra: tuple[str, ...] = ()


def query_all(session: Session) -> None:
    """Every read-only QMP command that Casemate may use."""
    for name in QUERIES:
        session.command(name)
    for path in (
        "/machine",
        "/machine/peripheral",
        "/machine/peripheral-anon",
        "/machine/unattached",
        "/objects",
        "/chardevs",
    ):
        session.command("qom-list", path=path)
    session.command("qom-get", path="/machine", property="type")
    session.command("device-list-properties", typename="virtio-blk-device")
    session.command("query-stats", target="vm")
    session.command("query-stats", target="vcpu")
    session.command("query-stats-schemas")


def begin(session: Session) -> None:
    """Greeting, negotiation, read-back; then the boundary and ``cont``."""
    session.read_message(time.monotonic() + 120)
    session.command("qmp_capabilities")
    query_all(session)
    session.cont()


def drive_steps(session: Session) -> None:
    """The guest does its steps and ends by itself; the host asks, pauses and resumes meanwhile."""
    session.wait_console(b"TRACE-READY", 300)
    with contextlib.suppress(EOFError, OSError):
        query_all(session)
        session.command("stop")
        session.command("cont")
    session.wait_exit(300)


def drive_quit(session: Session) -> None:
    """The host ends it: power button, then QMP quit."""
    session.wait_console(b"TRACE-READY", 300)
    session.command("system_powerdown")
    session.command("quit")
    session.wait_exit()


def drive_input(session: Session) -> None:
    """Somebody types on the console; then the host resets the machine (-no-reboot ends it)."""
    session.wait_console(b"step wait", 300)
    session.console.sendall(b"hello\n")
    session.wait_console(b"got hello")
    session.command("system_reset")
    session.wait_exit()


def drive_hvc(session: Session) -> None:
    """A virtio console shows nothing until its driver is loaded."""
    session.wait_console(b"hello", 300)
    session.wait_exit()


def drive_peers_gone(session: Session) -> None:
    """QMP and console peers vanish, as when the supervisor dies; then SIGTERM ends it."""
    session.wait_console(b"TRACE-READY", 300)
    session.qmp.close()
    time.sleep(1)
    session.console.close()
    time.sleep(2)
    os.kill(session.emulator_pid(), 15)
    session.wait_exit()


def drive_net_gone(session: Session) -> None:
    """The network peer (passt) dies while the guest sends."""
    session.wait_console(b"step net", 300)
    if session.network is not None:
        session.network.close()
    session.wait_exit()


def drive_enospc(session: Session) -> None:
    """The overlay's file system is full: QEMU pauses the guest and says so."""
    deadline = time.monotonic() + 120
    while "BLOCK_IO_ERROR" not in session.events:
        if time.monotonic() > deadline:
            raise TimeoutError("no BLOCK_IO_ERROR")
        session.command("query-block")
        time.sleep(0.2)
    session.command("cont")
    time.sleep(1)
    session.command("quit")
    session.wait_exit()


def drive_snapshot(session: Session) -> None:
    """Internal snapshot, delete, resize of a running guest's disk."""
    session.wait_console(b"step hang", 300)
    session.command("blockdev-snapshot-internal-sync", device="disk0", name="one")
    session.command("blockdev-snapshot-delete-internal-sync", device="disk0", name="one")
    session.command("block_resize", node_name="disk0", size=80 << 20)
    session.command("query-named-block-nodes")
    session.command("quit")
    session.wait_exit()


def drive_sigterm(session: Session) -> None:
    """SIGTERM while the guest runs."""
    session.wait_console(b"TRACE-READY", 300)
    os.kill(session.emulator_pid(), 15)
    session.wait_exit()


def drive_firmware(session: Session) -> None:
    """The firmware finds nothing to boot and says so; then quit."""
    session.wait_console(b"BdsDxe", 300)
    time.sleep(3)
    query_all(session)
    session.command("quit")
    session.wait_exit()


def drive_reboot(session: Session) -> None:
    """The guest resets itself and comes up again; then the host resets it; then quit."""
    for count in (2, 3):
        deadline = time.monotonic() + 300
        while session.console_text.count(b"TRACE-READY") < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"boot {count}")
            session.command("query-status")
            time.sleep(0.1)
        session.command("system_reset")
    session.command("quit")
    session.wait_exit()


def drive_crash(session: Session) -> None:
    """The guest dies of a triple fault; where KVM cannot emulate that, QEMU stops with an internal error instead."""
    session.wait_console(b"TRACE-DONE", 300)
    deadline = time.monotonic() + 5
    while session.wait(0) is None and time.monotonic() < deadline:
        session.pump(0.1)
    with contextlib.suppress(EOFError, OSError):
        session.command("query-status")
        session.command("quit")
    session.wait_exit()


def drive_hang(session: Session) -> None:
    """The guest halts for ever; the host presses the power button, then resets."""
    session.wait_console(b"TRACE-DONE", 300)
    session.command("system_powerdown")
    session.command("system_reset")
    session.wait_exit()


CORE, NET = "blk rng console", "blk rng console net"

WORKLOADS: tuple[Workload, ...] = (
    Workload(
        "tcg-boot", "tcg", "rng console", drive_steps, "Linux boots, prints 200 KB, powers off", steps="flood,off"
    ),
    Workload("tcg-core", "tcg", CORE, drive_steps, "I/O, flush and discard on an overlay, rng", steps="blk,rng,off"),
    Workload("tcg-raw", "tcg", CORE, drive_steps, "the same on a raw image, reboot", steps="blk,reboot", disk="raw"),
    Workload("tcg-read-only", "tcg", CORE, drive_steps, "a read-only disk", steps="blk,off", disk="read-only"),
    Workload("tcg-smp", "tcg", CORE, drive_steps, "two vCPU threads", steps="smp,blk,off", vcpus=2),
    Workload("tcg-net", "tcg", NET, drive_steps, "network over an inherited socket pair", steps="net,blk,off"),
    Workload("tcg-net-gone", "tcg", NET, drive_net_gone, "the network peer dies", steps="net,net,off"),
    Workload("tcg-vcon", "tcg", CORE, drive_hvc, "virtio console", steps="vcon,off", console="virtio"),
    Workload("tcg-panic", "tcg", CORE, drive_steps, "guest kernel panic", steps="panic", machine="q35"),
    Workload("tcg-quit", "tcg", CORE, drive_quit, "power button, QMP quit", steps="hang"),
    Workload("tcg-input", "tcg", CORE, drive_input, "console input, QMP reset", steps="wait,hang"),
    Workload(
        "tcg-peers-gone", "tcg", CORE, drive_peers_gone, "QMP and console peers close, SIGTERM", steps="flood,hang"
    ),
    Workload("tcg-sigterm", "tcg", CORE, drive_sigterm, "SIGTERM while the guest runs", steps="hang"),
    Workload(
        "tcg-enospc", "tcg", CORE, drive_enospc, "the overlay's disk is full", steps="fill,hang", small_disk_fs=True
    ),
    Workload("tcg-q35", "tcg", NET, drive_steps, "q35, virtio-pci", machine="q35", steps="blk,rng,net,off", vcpus=2),
    Workload("tcg-uefi", "tcg", CORE, drive_firmware, "q35 with UEFI, no boot loader", machine="q35", guest="uefi"),
    Workload("tcg-snapshot", "tcg", CORE, drive_snapshot, "internal snapshot, resize", steps="blk,hang"),
    Workload("tcg-reboot", "tcg", NET, drive_reboot, "guest and host reset it", steps="net,reboot", reboots=True),
    Workload("tcg-tpm", "tcg", "blk rng console tpm", drive_steps, "TPM by swtpm", machine="q35", steps="tpm,off"),
    Workload("tcg-small", "tcg", NET, drive_steps, "the KVM guest under TCG", guest="small", vcpus=2),
    Workload("kvm-core", "kvm", CORE, drive_steps, "our guest: serial, blk, rng, power off", guest="small"),
    Workload(
        "kvm-raw", "kvm", CORE, drive_steps, "our guest on a raw image, reset", guest="small", steps="reset", disk="raw"
    ),
    Workload("kvm-reboot", "kvm", NET, drive_reboot, "resets", guest="small", steps="reset", reboots=True),
    Workload("kvm-hang", "kvm", CORE, drive_hang, "our guest halts; button, reset", guest="small", steps="hang"),
    Workload("kvm-crash", "kvm", CORE, drive_crash, "triple fault or KVM internal error", guest="small", steps="crash"),
    Workload("kvm-net", "kvm", NET, drive_steps, "our guest with network", guest="small"),
    Workload("kvm-smp", "kvm", CORE, drive_steps, "two vCPUs", guest="small", vcpus=2),
    Workload("kvm-q35", "kvm", NET, drive_steps, "q35, PCI devices with MSI-X", guest="small", machine="q35", vcpus=2),
    Workload("kvm-sigterm", "kvm", CORE, drive_sigterm, "SIGTERM while the guest runs", guest="small", steps="hang"),
)
