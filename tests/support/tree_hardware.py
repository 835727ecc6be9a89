"""The hardware of a good host, and one change per control of it; the format is described in `host_tree`."""

from __future__ import annotations

from tests.support.host_tree import Content

from casemate.controls.catalogue import hardware_audit
from casemate.facts.cpu import collect_cpu

CONTROLS = hardware_audit.CONTROLS
COLLECTORS = (collect_cpu,)

PASSING: dict[str, Content] = {
    "/sys/kernel/mm/ksm/run": "0\n",
}

MUTATIONS: dict[str, dict[str, Content]] = {
    "cpu.ksm-host": {"/sys/kernel/mm/ksm/run": "1\n"},
}

UNKNOWN: dict[str, dict[str, Content]] = {
    "cpu.ksm-host": {"/sys/kernel/mm": None},
}
