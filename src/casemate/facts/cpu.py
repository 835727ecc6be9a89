"""The host's CPUs as far as they matter to the separation of VMs, from /sys and /proc; nothing is executed."""

from __future__ import annotations

from casemate.facts.fact import Facts
from casemate.facts.root import Root


def collect_cpu(root: Root) -> Facts:
    """Facts ``cpu.*`` of a host; never raises for what the tree holds."""
    return {"cpu.ksm-run": root.fact("/sys/kernel/mm/ksm/run", str.strip)}
