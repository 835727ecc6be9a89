"""Whether this host can start confidential guests: one line of the doctor's report."""

from __future__ import annotations

import os
from pathlib import Path

from casemate.engine.paths import Paths
from casemate.errors import HostError
from casemate.facts.confidential import collect_confidential
from casemate.facts.cpu_info import CpuInfo, read_cpuinfo
from casemate.facts.kvm import cached_probe
from casemate.facts.qemu import describe_emulator, find_qemu
from casemate.facts.root import Root
from casemate.plan.confidential import NAMES, Offer, lacks
from casemate.spec.confidential import Kind

_KINDS = {"GenuineIntel": Kind.TDX}


def look(paths: Paths, root: Root) -> tuple[str, str, str, str]:
    """(status, what was found, why it matters, next step) of the kind that this processor's maker has."""
    cpu = read_cpuinfo(root)
    kind = _KINDS.get(cpu.vendor, Kind.SEV_SNP) if isinstance(cpu, CpuInfo) else Kind.SEV_SNP
    report = cached_probe(Path(paths.cache) / "kvm.json")
    there = collect_confidential(root, kind.value, report)
    path, version = "QEMU", tuple[int, ...]()
    try:
        emulator = describe_emulator(find_qemu(root), Path(paths.cache), root)
        path, version = emulator.path, emulator.version
    except HostError:
        pass  # the line of the emulator says why
    offer = Offer(
        machine=os.uname().machine,
        kvm_verdict=report.verdict.value,
        kvm_why=report.why,
        emulator=path,
        version=version,
        there=there,
        firmware=bool(there.firmware),
    )
    found = lacks(kind, offer)
    if not found:
        return "ok", f"{NAMES[kind]}, {there.firmware}", "", ""
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    return (
        "missing",
        f"no {NAMES[kind]}: {found[0]}{more}",
        "needed for [confidential]",
        f'casemate plan of a specification with kind = "{kind}" lists all of it (docs/confidential.md)',
    )
