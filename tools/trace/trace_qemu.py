"""Trace QEMU workloads and write one JSON summary each: the evidence that the rule sets are reviewed and tested with.

    python tools/trace/trace_qemu.py --kernel-root UNPACKED_KERNEL_PACKAGE --work DIR --out tests/data/traces [NAME...]
    python tools/trace/trace_qemu.py ... --confirm     run under the compiled filter instead, and fail on a killed call

Needs root (chroot, strace across a change of user), strace, QEMU, cpio, busybox-static; gcc for the KVM guest. The
arguments are the plan's own.
"""

from __future__ import annotations

import argparse
import errno
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import kvm_guest
import linux_guest
from qemu_session import USER_ID, Emulator, Session, build_root, end, start_filtered, start_traced
from strace_summary import summarise, to_json
from workloads import WORKLOADS, Workload, begin

from casemate.jail.compile import compile_profile
from casemate.jail.profiles import qemu_profile
from casemate.plan.accel import Board
from casemate.plan.argv import Numbering, build_argv
from casemate.spec.model import (
    Boot,
    Console,
    ConsoleDevice,
    Disk,
    DiskFormat,
    DiskMode,
    Firmware,
    Machine,
    MachineType,
    Network,
    NetworkMode,
    Spec,
)

UEFI = (Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd"))
TSC_KHZ = 2_000_000


def injected(workload: Workload) -> tuple[str, ...]:
    """What strace must answer as the profile would: its rules that give an errno whatever the arguments."""
    rules = qemu_profile(workload.accel, frozenset(workload.devices.split())).rules
    sometimes = {rule.syscall for rule in rules if rule.errno is None}
    refused = [(rule.syscall, rule.errno) for rule in rules if rule.errno and not rule.args]
    return tuple(f"{name}:error={errno.errorcode[number]}" for name, number in refused if name not in sometimes)


def spec_of(workload: Workload) -> Spec:
    """The specification of the run."""
    disks: tuple[Disk, ...] = ()
    if "blk" in workload.devices:
        modes = {"overlay": DiskMode.OVERLAY, "raw": DiskMode.PERSISTENT, "read-only": DiskMode.READ_ONLY}
        disks = (Disk(path="/disk", format=DiskFormat.RAW, mode=modes[workload.disk]),)
    uefi = workload.guest == "uefi"
    boot = (
        Boot(firmware=Firmware.UEFI) if uefi else Boot(kernel="/k", initrd="/i" if workload.guest == "linux" else None)
    )
    return Spec(
        machine=Machine(type=MachineType(workload.machine), memory_mib=256, vcpus=workload.vcpus),
        boot=boot,
        disks=disks,
        network=Network(mode=NetworkMode.USER if "net" in workload.devices else NetworkMode.NONE),
        console=Console(device=ConsoleDevice(workload.console)),
    )


def board_of(workload: Workload) -> Board:
    """The board of the run: as `casemate.plan.accel` decides it, for a CPU that both QEMU and this KVM can give."""
    told = workload.machine == "microvm"
    console = "hvc0" if workload.console == "virtio" else "ttyS0"
    line = f"console={console} quiet panic=-1 reboot=t tsc_early_khz={TSC_KHZ} steps={workload.steps}"
    kvm = workload.accel == "kvm"
    return Board(
        accel=workload.accel,
        accel_why="traced",
        cpu="host,-vmx,-svm,-arch-capabilities" if kvm else "max,-svm,-la57",
        irqchip="split" if kvm else "none",
        pit=not told,
        pic=not told,
        rtc=True,
        timers_why="traced",
        cmdline=line,
    )


def open_roles(workload: Workload, work: Path, session_ends: dict[str, socket.socket]) -> dict[str, int]:
    """Open what each descriptor role stands for; the caller closes the numbers."""
    folder = work / "small" if workload.small_disk_fs else work
    base, overlay, variables = folder / "base.raw", folder / "overlay.qcow2", work / "vars.fd"
    with open(base, "wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(overlay), "64M"], check=True)
    roles = {"null": os.open("/dev/null", os.O_RDWR), "entropy": os.open("/dev/urandom", os.O_RDONLY)}
    roles["log"] = os.open(work / f"{workload.name}.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    roles["disk0"] = os.open(base, os.O_RDWR if workload.disk == "raw" else os.O_RDONLY)
    roles["overlay0"] = os.open(overlay, os.O_RDWR)
    if workload.guest == "uefi":
        variables.write_bytes(UEFI[1].read_bytes())
        roles["firmware-code"] = os.open(UEFI[0], os.O_RDONLY)
        roles["firmware-vars"] = os.open(variables, os.O_RDWR)
    for role, peer in session_ends.items():
        roles[role] = peer.detach()
    return roles


def start_swtpm(peer: socket.socket, state: Path) -> None:
    """A software TPM on ``peer``; it ends when QEMU closes its side."""
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir()
    words = [
        "swtpm",
        "socket",
        "--ctrl",
        f"type=unixio,clientfd={peer.fileno()}",
        "--tpm2",
        "--tpmstate",
        f"dir={state}",
    ]
    subprocess.Popen([*words, "--flags", "startup-clear"], pass_fds=[peer.fileno()])
    peer.close()


def start(workload: Workload, work: Path, *, confirm: bool) -> Session:
    """Start QEMU for ``workload``."""
    numbering = Numbering()
    argv = [*build_argv(spec_of(workload), board_of(workload), "trace", numbering), *workload.extra]
    argv = [word for word in argv if word != "-no-reboot"] + ([] if workload.reboots else ["-no-reboot"])
    argv = [word.replace("max-ports", "max_ports") for word in argv]
    # Board.cmdline is joined to the specification's by the plan; here it is the whole line.
    if "-append" not in argv and workload.guest != "uefi":
        argv += ["-append", board_of(workload).cmdline]
    if workload.guest == "small":
        argv[argv.index("-kernel") + 1] = "/boot/kvm-guest"
    pairs = {role: socket.socketpair() for role in ("qmp", "console", "net")}
    if "tpm" in workload.devices:
        number = numbering.inherit("tpm", "socket")
        argv += ["-chardev", f"socket,id=tpm0,fd={number}", "-tpmdev", "emulator,id=tpm,chardev=tpm0"]
        argv += ["-device", "tpm-tis,tpmdev=tpm"]
        pairs["tpm"] = socket.socketpair()
        start_swtpm(pairs["tpm"][0], work / "swtpm")
    roles = open_roles(workload, work, {role: pair[1] for role, pair in pairs.items()})
    targets = {descriptor.number: roles[descriptor.role] for descriptor in numbering.descriptors}
    if confirm:
        profile = qemu_profile(workload.accel, frozenset(workload.devices.split()))
        program = compile_profile(profile, platform.machine())
        handles = start_filtered(work / "root", argv, targets, program)
    else:
        handles = start_traced(work / "root", argv, targets, work / f"{workload.name}.log", injected(workload))
    for number in roles.values():
        os.close(number)
    network = pairs["net"][0] if "net" in workload.devices else None
    emulator_pid, wait, before_cont = handles
    return Session(emulator_pid, wait, pairs["qmp"][0], pairs["console"][0], network, before_cont)


def run(workload: Workload, emulator: Emulator, options: argparse.Namespace) -> None:
    """One workload: trace it and write its summary, or run it under the filter."""
    session = start(workload, options.work, confirm=options.confirm)
    try:
        begin(session)
        workload.drive(session)
    finally:
        end(session)
        (options.work / f"{workload.name}.console").write_bytes(session.console_text)
    if options.confirm:
        if session.wait(0) not in (0, 1):
            raise RuntimeError(f"QEMU ended with {session.wait(0)}")
        return
    summary = summarise((options.work / f"{workload.name}.log").read_text(errors="replace"), session.boundary)
    name = options.prefix + workload.name
    about: dict[str, object] = {
        "name": name, "program": "qemu", "version": emulator.version(), "accel": workload.accel,
        "devices": workload.devices.split(), "machine": workload.machine, "about": workload.about,
    }  # fmt: skip
    (options.out / f"{name}.json").write_text(to_json(summary, **about))
    notes = "".join(f"{call}: {note}\n" for call in sorted(summary.notes) for note in sorted(summary.notes[call]))
    (options.work / f"{name}.notes").write_text(notes)


def main() -> int:
    """Run the named workloads, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel-root", type=Path, required=True, help="an unpacked kernel package")
    parser.add_argument("--work", type=Path, required=True, help="scratch folder")
    parser.add_argument("--out", type=Path, required=True, help="where the summaries go")
    parser.add_argument("--qemu-root", type=Path, default=Path("/"), help="an unpacked newer QEMU")
    parser.add_argument("--prefix", default="", help="put before each summary's name, e.g. newer-")
    parser.add_argument("--confirm", action="store_true", help="run under the compiled filter, write nothing")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    kernel, initrd = linux_guest.build(options.kernel_root, Path("/bin/busybox"), options.work / "guest")
    guest = kvm_guest.build(options.work / "guest")
    emulator = Emulator(host_root=options.qemu_root)
    files = {"/boot/kernel": kernel, "/boot/initrd": initrd, "/boot/kvm-guest": guest}
    build_root(emulator, options.work / "root", files)
    small = options.work / "small"
    small.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size=2m,uid={USER_ID}", "trace-small", str(small)], check=True)
    failed = 0
    try:
        for workload in WORKLOADS:
            if options.names and workload.name not in options.names:
                continue
            began = time.monotonic()
            try:
                run(workload, emulator, options)
                print(f"{workload.name}: {time.monotonic() - began:.1f} s", file=sys.stderr)
            except (RuntimeError, TimeoutError, EOFError, OSError) as error:
                failed += 1
                print(f"{workload.name}: FAILED {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        subprocess.run(["umount", str(small)], check=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
