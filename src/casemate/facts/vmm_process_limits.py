"""Which limits hold a process: resource limits, control groups, memory that is writable and executable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from casemate.facts.cgroup import CgroupPlace, build_layout
from casemate.facts.fact import NO_LIMIT, Facts, Known, Unknown
from casemate.facts.mountinfo import Mount
from casemate.facts.process import ProcessFacts
from casemate.facts.root import Root

# controller -> (file of version 1, file of version 2) whose limit matters
_LIMIT_FILES: Final = {
    "memory": ("memory.limit_in_bytes", "memory.max"),
    "pids": ("pids.max", "pids.max"),
    "cpu": ("cpu.cfs_quota_us", "cpu.max"),
    "io": ("", "io.max"),
}
_V1_NAMES: Final = {"blkio": "io"}
_DEPTH_MAX: Final = 64
_PAGE_BYTES: Final = 4096


def limit_facts(base: str, process: ProcessFacts) -> Facts:
    """``proc.rlimit-core`` (bytes), ``proc.wx-maps``, ``proc.oom-score-adj``, ``proc.loader-environment``,
    ``proc.personality``."""
    facts: Facts = {}
    if process.limits is None or "core" not in process.limits:
        facts["proc.rlimit-core"] = Unknown(process.unknown.get("limits", "not readable").lower())
    else:
        hard = process.limits["core"][1]
        facts["proc.rlimit-core"] = Known(NO_LIMIT if hard is None else hard, f"{base}/limits: Max core file size")
    if process.writable_code is None:
        facts["proc.wx-maps"] = Unknown(process.unknown.get("writable_code", "not read").lower())
    else:
        facts["proc.wx-maps"] = Known(len(process.writable_code), f"{base}/maps")
    for name, value, field in (
        ("proc.oom-score-adj", process.oom_score_adj, "oom_score_adj"),
        ("proc.personality", process.personality, "personality"),
    ):
        if value is None:
            facts[name] = Unknown(process.unknown.get(field, "not readable").lower())
        else:
            facts[name] = Known(value, f"{base}/{field}")
    if process.loader_environment is None:
        facts["proc.loader-environment"] = Unknown(process.unknown.get("loader_environment", "not readable").lower())
    else:
        names = tuple(sorted(process.loader_environment))
        facts["proc.loader-environment"] = Known(names, f"{base}/environ: variables LD_*")
    return facts


def planned_rlimits(base: str, process: ProcessFacts, names: tuple[str, ...]) -> Facts:
    """``proc.rlimits``: those that a plan names, as ``nofile=64`` or ``nofile=64:128``."""
    if process.limits is None:
        return {"proc.rlimits": Unknown(process.unknown.get("limits", "not readable").lower())}
    shown = []
    for name in names:
        soft, hard = process.limits.get(name, (None, None))
        shown.append(f"{name}={hard}" if soft == hard else f"{name}={soft}:{hard}")
    return {"proc.rlimits": Known(tuple(sorted(shown)), f"{base}/limits")}


def cgroup_facts(base: str, process: ProcessFacts, mounts: tuple[Mount, ...], root: Root) -> Facts:
    """``proc.cgroup`` (effective limits as ``memory.max=N``) and ``proc.cgroup-controllers``.

    A controller counts when the process is in a group below the hierarchy's top. A limit counts wherever it stands
    between its group and the top: the kernel enforces all of them.

    Args:
        mounts: the reader's own mounts, where the hierarchies are.
    """
    names = ("proc.cgroup", "proc.cgroup-controllers")
    if process.cgroups is None:
        why = Unknown(process.unknown.get("cgroups", "not readable").lower())
        return dict.fromkeys(names, why)

    def read(path: str) -> str:
        return root.read_text(path, 65536).strip()

    def controllers(directory: str) -> tuple[str, ...]:
        try:
            return tuple(read(f"{directory}/cgroup.controllers").split())
        except OSError:
            return ()

    layout = build_layout(process.cgroups, mounts, controllers)
    present, limits, places = set(), [], set()
    for name, place in sorted(layout.controllers.items()):
        if place.own == "/":
            continue  # the top of the hierarchy: nothing limits it there
        if place.directory is None:
            return dict.fromkeys(names, Unknown(f"its group {place.own} lies outside of what is mounted here"))
        kind = _V1_NAMES.get(name, name)
        present.add(kind)
        file = _LIMIT_FILES.get(kind, ("", ""))[place.version - 1]
        if file:
            places.add(place.directory)
            limits.append(_limit(place, kind, file, read))
    source = f"{base}/cgroup; {', '.join(sorted(places)) or 'no group but the top'}"
    return {
        "proc.cgroup": Known(tuple(sorted(limits)), source),
        "proc.cgroup-controllers": Known(tuple(sorted(present)), source),
    }


def _limit(place: CgroupPlace, kind: str, file: str, read: Callable[[str], str]) -> str:
    """One limit in the words of version 2: ``memory.max=N``, ``cpu.max=QUOTA PERIOD``."""
    value = _effective(place, file, read)
    if place.version == 1 and kind == "cpu" and value not in ("max", ""):
        value = f"{value} {_effective(place, 'cpu.cfs_period_us', read)}"
    return f"{_LIMIT_FILES[kind][1]}={value}"


def within_rounding(planned: tuple[str, ...], found: tuple[str, ...]) -> bool:
    """Whether the limits found are the planned ones; version 1 rounds memory down to whole pages."""
    have = dict(item.partition("=")[::2] for item in found)
    for item in planned:
        name, _, want = item.partition("=")
        value = have.pop(name, "")
        close = value.isdigit() and want.isdigit() and 0 <= int(want) - int(value) < _PAGE_BYTES
        if value != want and not close:
            return False
    return not have


def _effective(place: CgroupPlace, file: str, read: Callable[[str], str]) -> str:
    """The limit of the group, or of the nearest one above it that has any; ``max`` when none has; empty: unreadable."""
    directory, top = place.directory or "", place.mount.rstrip("/")
    for _level in range(_DEPTH_MAX):
        try:
            text = read(f"{directory}/{file}")
        except FileNotFoundError:
            text = "max"  # the controller is not enabled this far down: what holds stands further up
        except OSError:
            return ""
        if not _is_open(text):
            return text
        directory = directory.rpartition("/")[0]
        if len(directory) <= len(top):
            return "max"
    return ""


def _is_open(text: str) -> bool:
    words = text.split()
    # Version 1 shows "no limit" of memory as the largest multiple of the page size below 2**63.
    return not words or words[0] in ("max", "-1") or (words[0].isdigit() and int(words[0]) >= NO_LIMIT)
