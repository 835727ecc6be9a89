"""Speed of the risk analysis: growth with the number of VMs, and a fleet of audits. Run: python bench/risk.py [--quick]

Facts are synthetic: the audit of one libvirt domain of the tests, with verdicts drawn anew for every VM (every VM
differs: the worst case for what is remembered), or drawn anew for each of ten kinds of VM (a fleet as fleets are).
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

import msgspec  # noqa: E402

from casemate import assess, reports, risks  # noqa: E402
from casemate.audit.capture_collect import collect_capture  # noqa: E402
from casemate.audit.capture_write import write_capture  # noqa: E402
from casemate.facts.root import Root  # noqa: E402

VERDICTS = ("pass", "pass", "pass", "fail", "unknown")


def one_domain() -> dict[str, Any]:
    report = reports.printable(assess.audit([str(ROOT / "tests/data/domains/nova.xml")]))
    document: dict[str, Any] = json.loads(reports.render(report, "json"))
    return document


def host_target(target: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    controls = [c["id"] for c in reports.catalogue_document(None, None, None)["controls"] if c["subject"] == "host"]
    findings = [dict(target["findings"][0], control=name, verdict=chance.choice(VERDICTS)) for name in controls]
    return dict(target, kind="host", name="h", stage="observed", findings=findings, history=[])


def vm_target(target: dict[str, Any], name: str, chance: random.Random) -> dict[str, Any]:
    findings = [
        dict(found, verdict=chance.choice(VERDICTS), stage="observed", pending=False) for found in target["findings"]
    ]
    return dict(target, kind="vm", name=name, stage="observed", findings=findings)


def fleet_audit(document: dict[str, Any], host: str, vms: int, seed: int, *, kinds: int | None) -> bytes:
    """An audit of one host; with ``kinds`` its VMs are alike but for so many kinds."""
    target = document["targets"][0]
    chance = random.Random(seed if kinds is None else 7)
    base = host_target(target, chance)
    made = [vm_target(target, f"vm{n}", chance) for n in range(min(vms, kinds or vms))]
    targets = [dict(made[n % len(made)], name=f"vm{n}") for n in range(vms)]
    return json.dumps(dict(document, host=host, targets=[base, *targets])).encode()


def growth(document: dict[str, Any], sizes: tuple[int, ...]) -> None:
    print("one host, every VM different")
    print(f"  {'VMs':>6} {'seconds':>8} {'of CPU':>8} {'ms of CPU a VM':>15}")
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            place = Path(folder) / "audit.json"
            place.write_bytes(fleet_audit(document, "h", size, 1, kinds=None))
            started, cpu = time.perf_counter(), time.process_time()
            sum(1 for _ in risks.analyse_stream([str(place)], jobs=1))
            taken, cpu = time.perf_counter() - started, time.process_time() - cpu
            print(f"  {size:>6} {taken:>8.2f} {cpu:>8.2f} {cpu / size * 1000:>15.2f}")


def fleet(document: dict[str, Any], hosts: int) -> None:
    print(f"{hosts} hosts of 20 VMs each, two processes")
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number in range(hosts):
            place = Path(folder) / f"{number}.json"
            # Fifty kinds of hosts, each with ten kinds of VMs.
            place.write_bytes(fleet_audit(document, f"h{number}", 20, number % 50, kinds=10 if number % 2 else None))
            files.append(str(place))
        run(files)


def run(files: list[str]) -> None:
    """Analyse the files and say what it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started, own = time.perf_counter(), time.process_time()
    total = sum(1 for _ in risks.lines_of_files(files, jobs=2))
    taken, own = time.perf_counter() - started, time.process_time() - own
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = own + after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    here = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"  {total} VMs in {taken:.1f} s (aim 60), {cpu:.1f} s of CPU, {cpu / total * 1000:.2f} ms of CPU a VM; "
        f"at most {after.ru_maxrss / 1024:.0f} MiB in a worker, {here:.0f} MiB in whoever takes the lines"
    )


def written_captures(folder: Path, kinds: int) -> list[Path]:
    """Captures of this host under other names, each with twenty libvirt domains and a sysctl that differ."""
    taken = collect_capture(Root(), "bench", "bench")
    # Only the domains: what runs here at the moment would make every run another one.
    taken.files = {path: data for path, data in taken.files.items() if not re.match(r"/proc/[0-9]+/", path)}
    sources = [path.read_bytes() for path in sorted((ROOT / "tests/data/domains").glob("*.xml"))]
    domains = [data for data in sources if b"<domain" in data]
    listed = {path: names for path, names in taken.manifest.names.items() if not re.match(r"/proc(/[0-9]+)?\b", path)}
    listed |= {"/etc/libvirt/qemu": tuple(f"vm{n}.xml" for n in range(20))}
    switches = sorted(path for path, data in taken.files.items() if path.startswith("/proc/sys/") and data == b"0\n")
    written = []
    for kind in range(kinds):
        chance = random.Random(kind)
        files = dict(taken.files) | {"/proc/sys/kernel/hostname": f"host{kind}\n".encode()}
        files[switches[kind % len(switches)]] = b"1\n"
        for number in range(20):
            name = f"<name>vm{number}</name>".encode()
            files[f"/etc/libvirt/qemu/vm{number}.xml"] = re.sub(
                b"<name>.*?</name>", name, chance.choice(domains), count=1
            )
        manifest = msgspec.structs.replace(taken.manifest, host=f"host{kind}", names=listed)
        written.append(folder / f"kind{kind}.tar")
        write_capture(msgspec.structs.replace(taken, files=files, manifest=manifest), str(written[-1]))
    return written


def captures(hosts: int) -> None:
    """From the archives themselves: audited and analysed in one go."""
    print(f"captures of {hosts} hosts, 20 libvirt domains each, two processes")
    with tempfile.TemporaryDirectory() as folder:
        kinds = written_captures(Path(folder), min(hosts, 50))
        files = []
        for number in range(hosts):
            files.append(f"{folder}/{number}.tar")
            os.link(kinds[number % len(kinds)], files[-1])
        run(files)


def main() -> None:
    quick = "--quick" in sys.argv
    document = one_domain()
    for hosts in (10,) if quick else (100, 1000):  # first: its memory is asked for
        fleet(document, hosts)
    for hosts in (10,) if quick else (100, 1000):
        captures(hosts)
    growth(document, (10, 100) if quick else (10, 100, 1000))


if __name__ == "__main__":
    main()
