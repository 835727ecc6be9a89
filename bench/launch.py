"""Launch benchmarks, interleaved in one run beside the peers: ``python bench/launch.py [--rounds N] [--write]``.

Rows: bare QEMU from exec to QMP greeting; ``virsh create`` of the same kernel and initrd (libvirt started here as root
with TCP off, and ended here); our library call in three states; our command line; ``ps`` and ``--help``; 1, 10 and 50
at once; memory; the guest's boot to its init with and without the wall; where the time of a launch goes.

Every round runs every row once, so that a busy moment hits all of them. ``--write`` puts them into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.figures import machine, write_figures  # noqa: E402
from bench.libvirt_peer import Libvirt  # noqa: E402

from casemate.controls.policy import HostPolicy  # noqa: E402
from casemate.engine import paths as enginepaths  # noqa: E402
from casemate.engine import start as starting  # noqa: E402
from casemate.engine import state  # noqa: E402
from casemate.image.builtin import BuiltinGuest, build_builtin  # noqa: E402
from casemate.jail.policy import Identity, IdentityMode  # noqa: E402
from casemate.spec.model import Spec  # noqa: E402
from casemate.spec.override import builtin_spec  # noqa: E402

CASEMATE = str(Path(sys.executable).with_name("casemate"))
MARKER = b"casemate-guest: ready"


@dataclass
class Row:
    """Seconds per round, by row; and the aim as (row to divide by, factor)."""

    name: str
    action: Callable[[], float]
    against: str = ""
    aim: str = ""
    seconds: list[float] = field(default_factory=list)


class Bench:
    """The guest, the directories, and everything that is started; `close` ends what is left."""

    def __init__(self) -> None:
        self.paths = enginepaths.default_paths()
        enginepaths.prepare(self.paths)
        self.guest: BuiltinGuest = build_builtin(Path(self.paths.cache), lambda text: print(text, file=sys.stderr))
        self.cmdline = f"{self.guest.cmdline} casemate.test=idle"
        self.spec: Spec = builtin_spec(str(self.guest.kernel), str(self.guest.initrd), self.cmdline)

    # ---- rows -------------------------------------------------------------------------------------------------------

    def bare(self) -> float:
        """Bare QEMU, the same board, from exec to the QMP greeting."""
        with self._bare_qemu("-S") as (process, qmp, _):
            begin = self._begin
            qmp.recv(4096)
            taken = time.perf_counter() - begin
            process.kill()
        return taken

    def bare_built(self) -> float:
        """Bare QEMU, from exec until it answers its first command: the machine is built and could be released."""
        with self._bare_qemu("-S") as (process, qmp, _):
            begin = self._begin
            qmp.recv(4096)
            qmp.sendall(b'{"execute": "qmp_capabilities"}\n')
            qmp.recv(4096)
            taken = time.perf_counter() - begin
            process.kill()
        return taken

    def library(self) -> float:
        """The library call in this long-lived process, from call to released guest."""
        begin = time.perf_counter()
        vm_id = self.start()
        taken = time.perf_counter() - begin
        self.end(vm_id)
        return taken

    def fresh_process(self, cache: str | None = None) -> float:
        """The library call in a process of its own, timed inside it without the interpreter's start."""
        code = (
            "import sys,time,json; begin=time.perf_counter();"
            "from casemate.controls.policy import HostPolicy; from casemate.engine import paths,start,state;"
            "from casemate.spec.override import builtin_spec; import msgspec;"
            "p=paths.default_paths(); p=msgspec.structs.replace(p,cache=sys.argv[4]) if sys.argv[4] else p;"
            "paths.prepare(p); d=state.create(p,builtin_spec(*sys.argv[1:4])); start.start(p,d,HostPolicy());"
            "print(json.dumps([d.id,time.perf_counter()-begin]))"
        )
        arguments = [str(self.guest.kernel), str(self.guest.initrd), self.cmdline, cache or ""]
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        vm_id, taken = json.loads(done.stdout)
        self.end(vm_id)
        return float(taken)

    def fresh_empty(self) -> float:
        """As above, with an empty cache: emulator asked, closure read, filter compiled."""
        directory = tempfile.mkdtemp(prefix="casemate-bench-")
        try:
            return self.fresh_process(f"{directory}/cache")
        finally:
            shutil.rmtree(directory)

    def command_line(self) -> float:
        """``casemate run -d builtin``, whole command."""
        begin = time.perf_counter()
        done = subprocess.run(
            [CASEMATE, "run", "-d", "--cmdline", self.cmdline, "builtin"], capture_output=True, text=True, check=True
        )
        taken = time.perf_counter() - begin
        self.end(done.stdout.strip())
        return taken

    def command(self, *arguments: str) -> Callable[[], float]:
        """A whole command that starts nothing."""

        def run() -> float:
            begin = time.perf_counter()
            subprocess.run([CASEMATE, *arguments], capture_output=True, check=True)
            return time.perf_counter() - begin

        return run

    def boot_in_wall(self) -> float:
        """From the call of the library to the guest's init speaking, minus nothing."""
        begin = time.perf_counter()
        vm_id = self.start()
        log = Path(self.paths.vm_data(vm_id)) / "console.log"
        _wait(lambda: log.exists() and MARKER in log.read_bytes(), 60)
        taken = time.perf_counter() - begin
        self.end(vm_id)
        return taken

    def boot_bare(self) -> float:
        """The same kernel, initrd and board in bare QEMU, from exec to the guest's init speaking."""
        with self._bare_qemu() as (process, _, console):
            begin, seen = self._begin, b""
            while MARKER not in seen:
                chunk = console.recv(65536)
                if not chunk:
                    raise RuntimeError("bare QEMU ended before the guest was up")
                seen += chunk
            taken = time.perf_counter() - begin
            process.kill()
        return taken

    # ---- parts ------------------------------------------------------------------------------------------------------

    def start(self) -> str:
        """Start one VM through the library."""
        definition = state.create(self.paths, self.spec)
        starting.start(self.paths, definition, HostPolicy())
        return definition.id

    def end(self, vm_id: str) -> None:
        """Kill and remove one VM."""
        subprocess.run([CASEMATE, "rm", "-f", vm_id], capture_output=True, check=True)

    @contextlib.contextmanager
    def _bare_qemu(self, *extra: str) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket, socket.socket]]:
        definition = state.create(self.paths, self.spec)
        plan = starting.make_plan(self.spec, self.paths, definition.id, "bench", _identity(), {})
        state.remove(self.paths, definition)
        argv = list(plan.wall.argv)
        machine, cpu = argv[argv.index("-machine") + 1], argv[argv.index("-cpu") + 1]
        append = argv[argv.index("-append") + 1]
        ours, theirs = socket.socketpair()
        console, console_theirs = socket.socketpair()
        command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", *extra]
        command += ["-machine", machine, "-cpu", cpu, "-accel", "tcg,thread=multi", "-m", "256M"]
        command += ["-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control"]
        command += ["-chardev", f"socket,id=con,fd={console_theirs.fileno()}", "-serial", "chardev:con"]
        command += ["-kernel", str(self.guest.kernel), "-initrd", str(self.guest.initrd), "-append", append]
        command += ["-object", "rng-random,id=r,filename=/dev/urandom", "-device", "virtio-rng-device,rng=r"]
        self._begin = time.perf_counter()
        process = subprocess.Popen(
            command, pass_fds=[theirs.fileno(), console_theirs.fileno()], stdin=subprocess.DEVNULL
        )
        theirs.close()
        console_theirs.close()
        try:
            yield process, ours, console
        finally:
            process.kill()
            process.wait()
            ours.close()
            console.close()

    # ---- many at once, memory ---------------------------------------------------------------------------------------

    def at_once(self, count: int) -> tuple[float, int, list[str]]:
        """``count`` command lines at once: seconds until the last is released, how many came up, their ids."""
        begin = time.perf_counter()
        command = [CASEMATE, "run", "-d", "--memory-mib", "64", "--cmdline", self.cmdline, "builtin"]
        running = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(count)
        ]
        ids = []
        for process in running:
            out, error = process.communicate(timeout=600)
            if process.returncode == 0:
                ids.append(out.strip())
            else:
                print(error, file=sys.stderr)
        return time.perf_counter() - begin, len(ids), ids

    def supervisor_pss_mib(self, ids: list[str]) -> float:
        """PSS of the supervisors, MiB on average."""
        return statistics.mean(_pss_mib(self._pids(vm_id)[0]) for vm_id in ids)

    def emulator_pss_mib(self, vm_id: str, guest_mib: int) -> float:
        """PSS of one emulator without its guest's RAM."""
        return _pss_mib(self._pids(vm_id)[1], without_mapping_kib=guest_mib * 1024)

    def _pids(self, vm_id: str) -> tuple[int, int]:
        running = json.loads((Path(self.paths.vm_runtime(vm_id)) / "state.json").read_bytes())
        return running["supervisor"]["pid"], running["emulator"]["pid"]

    def timings(self) -> dict[str, float]:
        """Where the time of one launch goes, as the launch itself measured it."""
        vm_id = self.start()
        report = json.loads((Path(self.paths.vm_data(vm_id)) / "wall.json").read_bytes())
        self.end(vm_id)
        return dict(report["timings_ms"])


def _identity() -> Identity:
    return Identity(1_900_065_000, 1_900_065_000, IdentityMode.ROOT)


def _wait(condition: Callable[[], bool], deadline_s: float) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError("not in time")
        time.sleep(0.002)


def _pss_mib(pid: int, without_mapping_kib: int | None = None) -> float:
    total = skipped = 0
    size = 0
    with open(f"/proc/{pid}/smaps", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("Size:"):
                size = int(line.split()[1])
            elif line.startswith("Pss:"):
                amount = int(line.split()[1])
                total += amount
                if without_mapping_kib is not None and size == without_mapping_kib:
                    skipped += amount
    return (total - skipped) / 1024


def _percentile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(part * (len(ordered) - 1)))]


def measure(rounds: int) -> str:
    """Run everything and give the report as Markdown."""
    # As tools/setup.sh leaves it: where sources changed since, each process of ours would compile them again.
    compileall.compile_dir(str(ROOT / "src"), quiet=2)
    bench = Bench()
    lines = [_heading()]
    with Libvirt(bench.guest, bench.cmdline) as libvirt:
        rows = [
            Row("bare QEMU, exec to QMP greeting", bench.bare),
            Row("bare QEMU, exec to first command answered", bench.bare_built, "bare"),
            Row("library, fresh process, empty caches", bench.fresh_empty, "bare"),
            Row("library, fresh process, closure cached", bench.fresh_process, "bare", "4.0"),
            Row("library, long-lived process", bench.library, "bare", "2.0"),
            Row("`casemate run -d`", bench.command_line, "virsh", "0.5"),
            Row("`casemate ps`", bench.command("ps"), "", "80 ms"),
            Row("`casemate --help`", bench.command("--help"), "", "80 ms"),
            Row("guest to init, bare QEMU", bench.boot_bare),
            Row("guest to init, in the wall", bench.boot_in_wall, "boot", "1.05"),
        ]
        if libvirt.available:
            rows.insert(1, Row("`virsh create`, the same guest (q35)", libvirt.create))
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            for row in rows:
                row.seconds.append(row.action())
        lines += _table(rows, libvirt)
        lines += _many(bench, libvirt)
    lines += ["", "### Where the time of one launch goes", "", "| part | ms |", "|---|---|"]
    lines += [f"| {name} | {value:.1f} |" for name, value in bench.timings().items()]
    return "\n".join(lines) + "\n"


def _heading() -> str:
    qemu = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
    return f"{machine()} {qemu.splitlines()[0]}, TCG (KVM is emulated on this machine), as root.\n"


def _table(rows: list[Row], libvirt: Libvirt) -> list[str]:
    medians = {row.name: statistics.median(row.seconds) for row in rows}
    bases = {
        "bare": medians[rows[0].name],
        "virsh": medians.get("`virsh create`, the same guest (q35)"),
        "boot": medians["guest to init, bare QEMU"],
    }
    lines = ["### Launch", "", "| what | p50 ms | p95 ms | ratio | aim | |", "|---|---|---|---|---|---|"]
    for row in rows:
        median, high = medians[row.name] * 1000, _percentile(row.seconds, 0.95) * 1000
        base = bases.get(row.against)
        ratio = medians[row.name] / base if base else None
        verdict = ""
        if row.aim.endswith("ms"):
            verdict = "met" if median <= float(row.aim.split()[0]) else "**missed**"
        elif row.aim and ratio is not None:
            verdict = "met" if ratio <= float(row.aim) else "**missed**"
        shown = f"{ratio:.2f} × {row.against}" if ratio is not None else ""
        aim = f"≤ {row.aim}" + ("" if row.aim.endswith("ms") or not row.aim else " ×") if row.aim else ""
        lines.append(f"| {row.name} | {median:.0f} | {high:.0f} | {shown} | {aim} | {verdict} |")
    if not libvirt.available:
        lines.append(f"\n`virsh create` is missing: {libvirt.why_not}.")
    lines.append(
        "\nQEMU greets before it builds the machine: no launch can be released before its first command is answered."
    )
    return [*lines, ""]


def _many(bench: Bench, libvirt: Libvirt) -> list[str]:
    lines = [
        "### Many at once (`casemate run -d`, 64 MiB each)",
        "",
        "| at once | came up | seconds | PSS per supervisor |",
    ]
    lines.append("|---|---|---|---|")
    for count in (1, 10, 20, 50):
        seconds, came_up, ids = bench.at_once(count)
        time.sleep(2)
        pss = f"{bench.supervisor_pss_mib(ids):.1f} MiB" if ids else ""
        lines.append(f"| {count} | {came_up} | {seconds:.1f} | {pss} |")
        for vm_id in ids:
            bench.end(vm_id)
    vm_id = bench.start()
    time.sleep(5)
    ours = bench.emulator_pss_mib(vm_id, 256)
    bench.end(vm_id)
    lines += ["", f"Memory of one emulator without guest RAM: {ours:.0f} MiB."]
    if libvirt.available:
        lines.append(f"libvirt's daemon with one VM: {libvirt.daemon_pss_mib():.0f} MiB.")
    lines.append("Aim for supervisors: at most 8 MiB each, averaged over 20 VMs.")
    return lines


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="put the figures into docs/benchmarks.md")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("bench/launch.py: run it as root: it starts libvirt")
    report = measure(options.rounds)
    print(report)
    if options.write:
        write_figures("bench/launch.py", report)


if __name__ == "__main__":
    main()
