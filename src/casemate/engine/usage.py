"""What a running VM uses, from its cgroup (either version), its emulator's /proc entry, and QMP's block statistics."""

from __future__ import annotations

import os
import time
from typing import Any

from casemate.engine import control
from casemate.engine.paths import Paths
from casemate.engine.state import Definition, Process, RunningState, Vm
from casemate.errors import CasemateError
from casemate.sys.process import start_time_ticks

STATS_SCHEMA = "casemate.stats/1"
UNLIMITED_BYTES = 1 << 62
"""cgroup v1 writes "no limit" as a number near 2**63."""


def vm_usage(paths: Paths, vm: Vm, interval_s: float) -> dict[str, Any]:
    """One sample of a running VM: see docs/json.md. CPU is measured over ``interval_s``.

    What cannot be read is None, never 0.

    Raises:
        InputError: it is not running.
    """
    running = vm.running
    if running is None:
        raise control.not_running(paths, vm.definition)
    before, began = _cpu_s(running), time.monotonic()
    time.sleep(interval_s)
    after, elapsed_s = _cpu_s(running), time.monotonic() - began
    percent = None
    if before is not None and after is not None and elapsed_s > 0:
        percent = round(100 * (after - before) / elapsed_s, 1)
    limit = _cgroup_int(running, "memory.max", "memory.limit_in_bytes")
    return {
        "id": vm.definition.id,
        "name": vm.definition.name,
        "cpu_s": None if after is None else round(after, 3),
        "cpu_percent": percent,
        "memory_bytes": _cgroup_int(running, "memory.current", "memory.usage_in_bytes") or _rss_bytes(running),
        "memory_limit_bytes": None if limit is None or limit >= UNLIMITED_BYTES else limit,
        "pids": _cgroup_int(running, "pids.current"),
        "disks": _disks(paths, vm.definition),
    }


def _cgroup_text(running: RunningState, *names: str) -> str | None:
    for directory in running.cgroups:
        for name in names:
            try:
                with open(f"{directory}/{name}", encoding="ascii") as file:
                    return file.read(4096)
            except OSError:
                continue
    return None


def _cgroup_int(running: RunningState, *names: str) -> int | None:
    text = _cgroup_text(running, *names)
    try:
        return int(text) if text is not None else None
    except ValueError:  # "max"
        return None


def _cpu_s(running: RunningState) -> float | None:
    """CPU seconds used so far."""
    nanoseconds = _cgroup_int(running, "cpuacct.usage")
    if nanoseconds is not None:
        return nanoseconds / 1e9
    for line in (_cgroup_text(running, "cpu.stat") or "").splitlines():
        key, _, value = line.partition(" ")
        if key == "usage_usec" and value.isdigit():
            return int(value) / 1e6
    fields = _proc_stat(running.emulator)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else None


def _rss_bytes(running: RunningState) -> int | None:
    fields = _proc_stat(running.emulator)
    return int(fields[21]) * os.sysconf("SC_PAGE_SIZE") if fields else None


def _proc_stat(process: Process | None) -> list[str] | None:
    """Fields of /proc/<pid>/stat from the state on (proc(5) counts that one as 3); None if it is another process."""
    if process is None:
        return None
    try:
        with open(f"/proc/{process.pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read(4096).rpartition(")")[2].split()
        if start_time_ticks(process.pid) != process.start_ticks:
            return None
    except (OSError, ValueError):
        return None
    return fields if len(fields) > 21 else None


def _disks(paths: Paths, definition: Definition) -> list[dict[str, Any]] | None:
    """Bytes read and written per disk, as the emulator tells them: its word, not ours."""
    try:
        answer = control.request(paths, definition, "stats")
    except CasemateError:
        return None
    result = answer.get("result")
    found = []
    for item in result if isinstance(result, list) else []:
        stats = item.get("stats") if isinstance(item, dict) else None
        if not isinstance(stats, dict):
            continue
        read, written = stats.get("rd_bytes"), stats.get("wr_bytes")
        if isinstance(read, int) and isinstance(written, int):
            name = str(item.get("qdev") or item.get("node-name") or "")[:64]
            found.append({"device": name, "read_bytes": read, "written_bytes": written})
    return found
