"""Find a place where we may make cgroups, make them, and put limits in before anything runs there.

Below our own group when it is delegated to us: a unit with ``Delegate=`` (what ``casemate unit`` prints), or
``systemd-run --user --scope -p Delegate=yes``. The VM then lives and dies with that unit. Version 2 wants processes in
leaves only, so we move ourselves into one first. Otherwise root makes ``<mount>/casemate/<id>`` in every hierarchy,
and an ordinary user has nowhere.
"""

from __future__ import annotations

import contextlib
import errno
import os

from casemate.engine.state import remove_cgroups
from casemate.errors import HostError
from casemate.facts.cgroup import CgroupLayout, CgroupPlace, cgroup_layout
from casemate.facts.root import Root
from casemate.jail.policy import CgroupPlan
from casemate.plan.model import CgroupBase

WANTED = ("memory", "cpu", "pids", "io")
"""By their names in version 2; version 1 has no ``io``."""
LEAF = "casemate-supervisor"


def find_base(root: Root) -> CgroupBase:
    """Where a VM's cgroups can be made; version 0 with the reason where nowhere."""
    try:
        layout = cgroup_layout(root)
    except (OSError, ValueError) as fault:
        return CgroupBase(0, why_none=f"cgroups cannot be read: {fault}")
    if os.geteuid() != 0:
        return _delegated(layout)
    if layout.mode == "v2" and layout.unified is not None and _is_delegated(layout.unified):
        base = _delegated(layout)
        if {"memory", "pids"} <= set(base.parents):
            return base
    return _as_root(layout)


def _parent(own: str) -> str:
    """The group below which VMs go: ours, or the one above when we moved into the leaf already."""
    return os.path.dirname(own) if os.path.basename(own) == LEAF else own


def _is_delegated(place: CgroupPlace) -> bool:
    """Whether systemd has said that this group is ours to divide (CGROUP_DELEGATION; ``user.`` since version 251).

    Root may write to every group, so that it can is no sign: systemd may at any time tidy up in one of its own.
    """
    if place.directory is None:
        return False
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(_parent(place.directory), name) == b"1":
                return True
    return False


def _as_root(layout: CgroupLayout) -> CgroupBase:
    parents = {}
    version = 1
    for name in WANTED:
        place = layout.controllers.get(name)
        if place is None or place.version != 1:
            continue
        parents[name] = f"{place.mount}/casemate"
    if not parents and layout.unified is not None:
        version = 2
        parent = f"{layout.unified.mount}/casemate"
        why = _enable(layout.unified.mount, parent)
        if why:
            return CgroupBase(0, why_none=why)
        parents = dict.fromkeys(_enabled(parent), parent)
    for parent in dict.fromkeys(parents.values()):
        try:
            os.makedirs(parent, mode=0o755, exist_ok=True)
        except OSError as fault:
            return CgroupBase(0, why_none=f"{parent} cannot be made: {fault.strerror}")
    if not {"memory", "pids"} <= set(parents):
        return CgroupBase(
            0, why_none=f"controllers memory and pids are not to be had (found: {', '.join(parents) or 'none'})"
        )
    return CgroupBase(version, parents)


def _delegated(layout: CgroupLayout) -> CgroupBase:
    own = layout.unified.directory if layout.unified is not None else None
    hint = "run it with: systemd-run --user --scope -p Delegate=yes casemate ..."
    if own is None:
        return CgroupBase(0, why_none="no cgroup version 2 for an ordinary user")
    parent = _parent(own)
    if not os.access(parent, os.W_OK) or not os.access(f"{parent}/cgroup.subtree_control", os.W_OK):
        return CgroupBase(0, why_none=f"no cgroup is delegated to this user; {hint}")
    if parent == own:
        leaf = f"{parent}/{LEAF}"
        try:
            os.makedirs(leaf, exist_ok=True)
            _write(f"{leaf}/cgroup.procs", "0")
        except OSError as fault:
            return CgroupBase(0, why_none=f"cannot move into a leaf of {parent}: {fault.strerror}; {hint}")
    why = _enable(parent, None)
    if why:
        return CgroupBase(0, why_none=f"{why}; {hint}")
    return CgroupBase(2, dict.fromkeys(_enabled(parent), parent))


def _enabled(directory: str) -> list[str]:
    """Controllers that children of ``directory`` get."""
    with open(f"{directory}/cgroup.subtree_control", encoding="ascii") as file:
        found = file.read(4096).split()
    return [name for name in WANTED if name in found]


def _enable(parent: str, child: str | None) -> str:
    """Hand the wanted controllers down from ``parent`` (and from ``child``); the reason when that fails."""
    try:
        for directory in (parent, child):
            if directory is None:
                continue
            os.makedirs(directory, mode=0o755, exist_ok=True)
            with open(f"{directory}/cgroup.controllers", encoding="ascii") as file:
                offered = file.read(4096).split()
            for name in WANTED:
                if name in offered:
                    _write(f"{directory}/cgroup.subtree_control", f"+{name}")
    except OSError as fault:
        if fault.errno == errno.EBUSY:
            return f"{parent} holds processes, so it cannot hand controllers down"
        return f"controllers of {parent} cannot be enabled: {fault.strerror}"
    return ""


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def make(plan: CgroupPlan) -> None:
    """Make the directories and write the limits; on any failure remove what was made.

    Raises:
        HostError: naming the file.
    """
    try:
        for directory in plan.directories:
            os.mkdir(directory, 0o755)
        for path, text in plan.writes:
            try:
                _write(path, text)
            except FileNotFoundError:
                # Absent without swap accounting, and without CONFIG_BLK_DEV_THROTTLING (the emulator throttles too).
                if not path.endswith(("memory.swap.max", "memory.oom.group", "io.max")):
                    raise
    except OSError as fault:
        with contextlib.suppress(OSError):
            remove_cgroups(plan.directories)
        raise HostError(
            "the VM's cgroup cannot be set up",
            got=f"{fault.filename}: {fault.strerror}",
            next_step="casemate doctor shows which controllers this host offers",
        ) from fault
