"""Control groups, reading side only: which hierarchies are mounted, where this process is in them, what it may change.

Three layouts are common: ``v2`` (one unified hierarchy), ``v1`` (one or more controllers per hierarchy) and
``hybrid`` (v1 hierarchies hold the controllers, a unified one beside them holds none). A controller counts where it
really is: in a hybrid layout ``memory`` is a v1 controller although a unified hierarchy exists.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from casemate.facts.mountinfo import Mount, parse_mountinfo
from casemate.facts.root import Root

V1_CONTROLLERS: Final = frozenset(
    {"blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory"}
    | {"misc", "net_cls", "net_prio", "perf_event", "pids", "rdma"}
)


class CgroupPlace(msgspec.Struct, frozen=True):
    """One controller (or the unified hierarchy itself, ``unified``).

    ``version`` 1 or 2; ``mount`` where its hierarchy is mounted; ``own`` this process's group as the hierarchy names
    it; ``directory`` that group's directory, None when it lies outside what is mounted here.
    """

    version: int
    mount: str
    own: str
    directory: str | None


class CgroupLayout(msgspec.Struct, frozen=True):
    """``mode``: ``v2``, ``v1``, ``hybrid`` or ``none``; ``controllers`` by name; ``unified``: the v2 hierarchy."""

    mode: str
    controllers: dict[str, CgroupPlace]
    unified: CgroupPlace | None


class CgroupRights(msgspec.Struct, frozen=True):
    """What we may do in a group's directory: make child groups, move processes, hand controllers down (v2 only)."""

    create: bool
    move: bool
    delegate: bool


def parse_cgroup(text: str) -> dict[str, str]:
    """/proc/PID/cgroup as {controller, ``name=…`` or ``""`` for v2: path}; comma lists are taken apart.

    Raises:
        ValueError: a line that is not ``id:controllers:path``.
    """
    found: dict[str, str] = {}
    for line in text.split("\n"):
        if not line:
            continue
        number, colon, rest = line.partition(":")
        controllers, second, path = rest.partition(":")
        if not colon or not second or not number.isascii() or not number.isdigit() or not path.startswith("/"):
            raise ValueError(f"cgroup line {line[:120]!r}")
        for controller in controllers.split(","):
            found[controller] = path
    return found


def cgroup_layout(root: Root, pid: str = "self") -> CgroupLayout:
    """The layout as the process ``pid`` of ``root`` sees it.

    Raises:
        OSError: its files under /proc cannot be read.
        ValueError: they are not understood.
    """
    own = parse_cgroup(root.read_text(f"/proc/{pid}/cgroup", 1 << 18))
    mounts = parse_mountinfo(root.read_text(f"/proc/{pid}/mountinfo", 8 << 20))
    return build_layout(own, mounts, lambda directory: _controllers_file(root, directory))


def build_layout(
    own: dict[str, str], mounts: tuple[Mount, ...], v2_controllers: Callable[[str], Iterable[str]]
) -> CgroupLayout:
    """The layout from parsed files; ``v2_controllers(directory)`` names the controllers enabled for a v2 group."""
    controllers: dict[str, CgroupPlace] = {}
    unified: CgroupPlace | None = None
    has_v1 = False
    for mount in mounts:
        if mount.kind == "cgroup2" and unified is None and "" in own:
            unified = _place(2, mount, own[""])
        elif mount.kind == "cgroup":
            has_v1 = True
            for option in mount.super_options:
                if option in V1_CONTROLLERS and option in own and option not in controllers:
                    controllers[option] = _place(1, mount, own[option])
    if unified is not None and unified.directory is not None:
        for name in v2_controllers(unified.directory):
            controllers.setdefault(name, unified)
    modes = {(True, True): "hybrid", (True, False): "v2", (False, True): "v1", (False, False): "none"}
    return CgroupLayout(modes[unified is not None, has_v1], controllers, unified)


def cgroup_rights(root: Root, place: CgroupPlace) -> CgroupRights:
    """What this process may do in the group that ``place`` names; nothing when it has no directory here.

    A writable directory alone is not delegation: v2 refuses moves unless cgroup.procs of the common ancestor can be
    written too, which the kernel checks at the move itself.
    """
    if place.directory is None:
        return CgroupRights(False, False, False)
    directory = root.host_path(place.directory)

    def writable(name: str) -> bool:
        return os.access(directory / name, os.W_OK, effective_ids=True)

    delegate = place.version == 1 or writable("cgroup.subtree_control")
    return CgroupRights(create=writable(""), move=writable("cgroup.procs"), delegate=delegate)


def _place(version: int, mount: Mount, own: str) -> CgroupPlace:
    """Where the group ``own`` is below ``mount``, which may show only a part of its hierarchy."""
    point = mount.point.rstrip("/")
    base = mount.root.rstrip("/")
    directory: str | None = None
    parts = own.split("/")
    if ".." not in parts and (own == base or own.startswith(f"{base}/")):
        directory = f"{point}{own[len(base) :]}".rstrip("/") or "/"
    return CgroupPlace(version, mount.point, own, directory)


def _controllers_file(root: Root, directory: str) -> tuple[str, ...]:
    try:
        return tuple(root.read_text(f"{directory}/cgroup.controllers", 4096).split())
    except OSError:
        return ()
