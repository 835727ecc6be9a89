"""Speed of the audit beside its peers, in one run: ``python bench/audit.py [--khc DIR] [--vms N] [--quick]``.

Rows: the whole host with N of our VMs running, beside virt-host-validate, kernel-hardening-checker, systemd-analyze
security (offline) and lynis; reading one live VM back; domain XML judged from memory; captures of N hosts.

The rows about the host are interleaved: every round runs each once; lynis, which takes longer than all others together,
runs once and is cut off after 45 s. CPU is user and system time of the program and all its children. The guests halt as
soon as they are up, so that what is measured is the audit and not who shares the cores with it.

kernel-hardening-checker comes from PyPI into a throwaway environment, from ``--khc`` (a checkout of it), or from PATH;
what cannot be had is said. Needs root, because the VMs have uids of their own and lynis asks for it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.figures import machine, write_figures  # noqa: E402
from tests.support.tiny_guests import pvh_kernel  # noqa: E402

from casemate.audit.capture_collect import Taken, collect_capture  # noqa: E402
from casemate.audit.capture_write import write_capture  # noqa: E402
from casemate.audit.documents import report_document  # noqa: E402
from casemate.audit.judging import Setting  # noqa: E402
from casemate.audit.live import OwnVm, look_at_host  # noqa: E402
from casemate.audit.own import own_vms  # noqa: E402
from casemate.audit.run import HostAudit  # noqa: E402
from casemate.controls.audit_model import TargetKind  # noqa: E402
from casemate.controls.profiles import DEFAULT, named  # noqa: E402
from casemate.facts.root import Root  # noqa: E402
from casemate.facts.vmm_process import host_view, read_vmm, vmm_facts  # noqa: E402

CASEMATE = str(Path(sys.executable).with_name("casemate"))
HOST_AIM_S = 1.0
READ_BACK_AIM_MS = 10.0
DOMAINS_AIM = 1500
CAPTURES_AIM_S = 60.0
LYNIS_DEADLINE_S = 45


def setting() -> Setting:
    """What every judgement here uses."""
    import datetime

    return Setting(named(DEFAULT), datetime.datetime.now(datetime.UTC).date())


def timed(command: Sequence[str], *, deadline_s: float = 120.0, cwd: str = "/") -> tuple[float, float, str]:
    """(wall seconds, CPU seconds, output) of a program and its children."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=deadline_s,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, done.stdout + done.stderr


class Peer:
    """One program: how to run it and how to count what it judged."""

    def __init__(
        self, name: str, command: Sequence[str], count: Callable[[str], int], rounds: int, cwd: str = "/"
    ) -> None:
        self.name, self.command, self.count, self.rounds, self.cwd = name, command, count, rounds, cwd
        self.walls: list[float] = []
        self.cpus: list[float] = []
        self.judged = 0

    def run(self) -> None:
        """Once."""
        if len(self.walls) < self.rounds:
            wall, cpu, output = timed(self.command, cwd=self.cwd)
            self.walls.append(wall)
            self.cpus.append(cpu)
            self.judged = self.count(output)

    @property
    def per_check_ms(self) -> float:
        """CPU milliseconds for one thing judged."""
        return statistics.median(self.cpus) * 1000 / max(self.judged, 1)


def judged_by_casemate(output: str) -> int:
    """Controls judged, all targets together."""
    return sum(sum(target["counts"].values()) for target in json.loads(output)["targets"])


def peers(options: argparse.Namespace, scratch: Path) -> list[Peer]:
    """Ours first, then whatever is there."""
    rounds = 3 if options.quick else 7
    found = [Peer("casemate audit", (CASEMATE, "audit", "--json"), judged_by_casemate, rounds)]
    if shutil.which("virt-host-validate"):
        found.append(Peer("virt-host-validate", ("virt-host-validate",), lambda out: out.count(" : "), rounds))
    khc = checker(options.khc, scratch)
    if khc:
        count = r"'OK' - (\d+) / 'FAIL' - (\d+)"
        found.append(
            Peer(
                "kernel-hardening-checker",
                (*khc, "-a"),
                lambda out: sum(int(text) for found in re.findall(count, out)[:1] for text in found),
                rounds,
            )
        )
    if shutil.which("systemd-analyze"):
        units = [
            str(path) for path in sorted(Path("/usr/lib/systemd/system").glob("*.service")) if "@" not in path.name
        ]
        command = ("systemd-analyze", "security", "--offline=true", "--no-pager", *units[:50])
        found.append(
            Peer("systemd-analyze security", command, lambda out: len(re.findall(r"^[✓✗] ", out, re.M)), rounds)
        )
    if shutil.which("lynis") and not options.quick:
        command = ("timeout", str(LYNIS_DEADLINE_S), "lynis", "audit", "system", "--quick", "--no-colors", "--no-log")
        found.append(Peer(f"lynis (once, at most {LYNIS_DEADLINE_S} s)", command, lynis_tests, 1))
    return found


def lynis_tests(output: str) -> int:
    """Tests performed, as its end says; results shown so far when it was cut off."""
    match = re.search(r"Tests performed\s*:\s*(\d+)", output)
    return int(match[1]) if match else output.count("[ ")


def checker(place: str, scratch: Path) -> tuple[str, ...]:
    """How to run kernel-hardening-checker; nothing when it cannot be had."""
    if place:
        return (sys.executable, str(Path(place).resolve() / "bin" / "kernel-hardening-checker"))
    program = shutil.which("kernel-hardening-checker")
    if program:
        return (program,)
    environment = scratch / "khc"
    made = subprocess.run([sys.executable, "-m", "venv", str(environment)], capture_output=True, check=False)
    pip = [str(environment / "bin" / "pip"), "install", "-q", "kernel-hardening-checker"]
    with suppress(subprocess.TimeoutExpired):
        if made.returncode == 0 and subprocess.run(pip, capture_output=True, check=False, timeout=60).returncode == 0:
            return (str(environment / "bin" / "kernel-hardening-checker"),)
    print("kernel-hardening-checker is not to be had; --khc DIR names a checkout of it", file=sys.stderr)
    return ()


@contextmanager
def running(count: int, scratch: Path) -> Iterator[list[str]]:
    """Ids of that many VMs of ours, up and idle; ended afterwards."""
    ids: list[str] = []
    kernel = pvh_kernel(scratch / "halts.elf")
    spec = scratch / "halts.toml"
    spec.write_text(f'[machine]\nmemory_mib = 64\n[boot]\nkernel = "{kernel}"\n')
    command = [CASEMATE, "run", "-d", str(spec)]
    try:
        for _ in range(count):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                ids.append(done.stdout.split()[-1])
            else:
                print(f"a VM did not start: {done.stderr.strip()[:200]}", file=sys.stderr)
        wait_idle(ids, 15.0)
        yield ids
    finally:
        for start in range(0, len(ids), 10):
            subprocess.run([CASEMATE, "rm", "-f", *ids[start : start + 10]], capture_output=True, check=False)


def wait_idle(ids: Sequence[str], deadline_s: float) -> None:
    """Until the emulators of our VMs have booted their guests: less than a fifth of a core together."""
    end = time.monotonic() + deadline_s
    ticks = os.sysconf("SC_CLK_TCK")

    def spent() -> float:
        total = 0
        for vm in own_vms():
            try:
                if vm.id not in ids:
                    continue
                words = Path(f"/proc/{vm.pid}/stat").read_text().rpartition(")")[2].split()
                total += int(words[11]) + int(words[12])
            except (OSError, IndexError):
                continue
        return total / ticks

    before = spent()
    while time.monotonic() < end:
        time.sleep(2)
        now = spent()
        if now - before < 0.4:
            return
        before = now


def read_back(ids: Sequence[str]) -> tuple[float, float] | None:
    """(CPU ms, wall ms) to read one live VM of ours and turn it into facts, filters included; medians."""
    vms = [vm for vm in own_vms() if vm.id in ids]
    if not vms:
        return None
    root = Root()
    view = host_view(root)
    cpus: list[float] = []
    walls: list[float] = []

    def once(vm: OwnVm) -> None:
        cpu, wall = time.thread_time(), time.perf_counter()
        vmm_facts(read_vmm(vm.pid, vm.start_time, root, view), view, root)
        cpus.append((time.thread_time() - cpu) * 1000)
        walls.append((time.perf_counter() - wall) * 1000)

    end = time.monotonic() + 15
    for _ in range(30):
        for vm in vms[:3]:
            if time.monotonic() > end:
                break
            # A trace that did not come to a stop in time ends with its thread (sys/ptrace.py).
            thread = threading.Thread(target=once, args=(vm,))
            thread.start()
            thread.join()
    return statistics.median(cpus), statistics.median(walls)


def whole_in_process() -> tuple[float, float]:
    """(CPU ms of looking at all VMs, CPU ms of reporting one of them), in this process, caches warm."""
    audit = HostAudit(Root(), setting())
    look_at_host(audit.root, audit.own)
    cpu = time.process_time()
    vms = [vm for vm in audit.live.vms if vm.own is not None]
    look = (time.process_time() - cpu) * 1000
    assert audit.host
    if not vms:
        return look, 0.0
    audit.report_vm(vms[0])
    cpu = time.process_time()
    for vm in vms:
        audit.report_vm(vm)
    return look, (time.process_time() - cpu) * 1000 / len(vms)


def domains(seconds: float) -> tuple[float, int]:
    """(documents a second and core, by CPU time; how many different ones) judged from memory."""
    documents = [(path.name, path.read_bytes()) for path in sorted((ROOT / "tests/data/domains").rglob("*.xml"))]
    how = setting()
    for name, data in documents:
        report_document(TargetKind.DOMAIN, data, name, how)
    count, begin, end = 0, time.process_time(), time.monotonic() + seconds
    while time.monotonic() < end:
        for name, data in documents:
            report_document(TargetKind.DOMAIN, data, name, how)
        count += len(documents)
    return count / (time.process_time() - begin), len(documents)


def different(taken: Taken, number: int) -> Taken:
    """The capture of another host of the same fleet: its name, memory, and one setting differ."""
    import msgspec

    files = dict(taken.files)
    files["/proc/sys/kernel/hostname"] = f"host{number}\n".encode()
    files["/proc/meminfo"] = re.sub(rb"(MemAvailable:\s+)\d+", rb"\g<1>%d" % (1 << 20 | number), files["/proc/meminfo"])
    sysctls = sorted(path for path in files if path.startswith("/proc/sys/") and files[path] in (b"0\n", b"1\n"))
    path = sysctls[number % len(sysctls)]
    files[path] = b"1\n" if files[path] == b"0\n" else b"0\n"
    manifest = msgspec.structs.replace(taken.manifest, host=f"host{number}")
    return msgspec.structs.replace(taken, files=files, manifest=manifest)


def captures(count: int, kinds: int, scratch: Path) -> tuple[int, list[tuple[int, float, float, int]]]:
    """(bytes of one capture; rows of (captures, wall s, CPU s, peak MiB of one process)).

    ``kinds`` different archives are written, and each stands for count/kinds hosts by further names of the file.
    """
    taken = collect_capture(Root(), "bench", "bench")
    sources = []
    for number in range(kinds):
        path = scratch / f"source{number}.tar"
        write_capture(different(taken, number), str(path))
        sources.append(path)
    folder = scratch / "many"
    folder.mkdir()
    for number in range(count):
        os.link(sources[number % kinds], folder / f"{number:05}.tar")
    rows = []
    for part in (count // 10, count):
        names = [f"{number:05}.tar" for number in range(part)]
        begin = time.perf_counter()
        with subprocess.Popen(
            [CASEMATE, "audit", "--jobs", "2", "--format", "jsonl", *names], stdout=subprocess.PIPE, cwd=folder
        ) as process:
            assert process.stdout is not None
            lines = 0
            while block := process.stdout.read(1 << 20):
                lines += block.count(b"\n")
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode or lines < part:
            raise SystemExit(f"casemate audit of {part} captures: exit {process.returncode}, {lines} lines")
        wall = time.perf_counter() - begin
        rows.append((part, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss // 1024))
    return sources[0].stat().st_size, rows


def verdict(met: bool) -> str:
    """For the last column."""
    return "met" if met else "**missed**"


def host_table(rows: Sequence[Peer], vms: int) -> list[str]:
    """The host beside the peers."""
    lines = [f"### The whole host, {vms} of our VMs running", ""]
    lines += ["| program | judged | wall s (p50) | CPU s (p50) | CPU ms per check | ours / theirs | |"]
    lines += ["|---|---|---|---|---|---|---|"]
    ours = rows[0]
    for peer in rows:
        wall, cpu = statistics.median(peer.walls), statistics.median(peer.cpus)
        ratio, met = "", ""
        if peer is ours:
            met = f"≤ {HOST_AIM_S:g} s wall: {verdict(wall <= HOST_AIM_S)}"
        else:
            ratio = f"{ours.per_check_ms / peer.per_check_ms:.2f} ×" if peer.judged else ""
            if peer.name.startswith("kernel-hardening"):
                met = f"< 1 ×: {verdict(ours.per_check_ms < peer.per_check_ms)}"
        lines.append(
            f"| {peer.name} | {peer.judged} | {wall:.2f} | {cpu:.2f} | {peer.per_check_ms:.3f} | {ratio} | {met} |"
        )
    return lines


def measure(options: argparse.Namespace, scratch: Path) -> list[str]:
    """All rows."""
    lines = []
    begin = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - begin:5.0f} s  {what}", file=sys.stderr, flush=True)

    say(f"{options.vms} VMs")
    with running(options.vms, scratch) as ids:
        subprocess.run([CASEMATE, "audit", "--json"], capture_output=True, check=False)  # warm what is cached
        rows = peers(options, scratch)
        often = [peer for peer in rows if peer.rounds > 1]
        for number in range(max(peer.rounds for peer in often)):
            say(f"round {number + 1}")
            for peer in often:
                peer.run()
        for peer in rows:
            if peer not in often:
                say(peer.name)
                peer.run()
        lines += host_table(rows, len(ids))
        say("reading back")
        back = read_back(ids)
        look, report = whole_in_process()
    lines += ["", "| what | figure | aim | |", "|---|---|---|---|"]
    if back is not None:
        met = verdict(back[1] <= READ_BACK_AIM_MS)
        lines.append(f"| one live VM read back (CPU, wall) | {back[0]:.1f} ms, {back[1]:.1f} ms | ≤ 10 ms | {met} |")
    lines.append(f"| all VMs found and read, in process (CPU) | {look:.0f} ms | | |")
    lines.append(f"| one VM reported, its supervisor asked (CPU) | {report:.1f} ms | | |")
    gc.collect()
    say("domains")
    rate, kinds = domains(2.0 if options.quick else 5.0)
    met = verdict(rate >= DOMAINS_AIM)
    lines.append(
        f"| domain XML from memory, a second and core ({kinds} kinds) | {rate:.0f} | ≥ {DOMAINS_AIM} | {met} |"
    )
    say("captures")
    size, many = captures(options.captures, 50, scratch)
    for count, wall, cpu, peak in many:
        aim, met = ("< 60 s", verdict(wall < CAPTURES_AIM_S)) if count == 10_000 else ("", "")
        each = cpu * 1000 / count
        lines.append(f"| {count} captures of {size >> 10} KiB, 2 processes | {wall:.1f} s, {each:.1f} ms CPU each, peak"
                     f" {peak} MiB | {aim} | {met} |")  # fmt: skip
    growth = many[1][3] / max(many[0][3], 1)
    lines.append(f"| memory for ten times as many | {growth:.2f} × | ≤ 1.15 × | {verdict(growth <= 1.15)} |")
    return lines


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--khc", default="", metavar="DIR", help="a checkout of kernel-hardening-checker")
    parser.add_argument("--vms", type=int, default=20, metavar="N")
    parser.add_argument("--captures", type=int, default=10_000, metavar="N")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, no lynis")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/benchmarks.md")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("bench/audit.py: run it as root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the VMs are ended on the way out
    heading = machine()
    with tempfile.TemporaryDirectory(prefix="bench-audit-") as scratch:
        text = "\n".join([heading, "", *measure(options, Path(scratch))])
    print(text)
    if options.write:
        write_figures("bench/audit.py", text)


if __name__ == "__main__":
    main()
