"""Every VM that runs on this host: found, read whole, put beside the others, and turned into facts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from casemate.audit.patience import Stuck, each
from casemate.audit.relations import Crowd, helper_faults, images_of_others, relation_facts
from casemate.controls.audit_model import DiskRef
from casemate.facts.fact import Facts, Known, Unknown
from casemate.facts.process_find import FoundProcess, FoundProcesses, find_processes
from casemate.facts.root import Root
from casemate.facts.vmm_process import HostView, VmmProcess, host_view, read_vmm, vmm_facts
from casemate.facts.vmm_process_limits import within_rounding
from casemate.facts.vmm_process_reach import Expected
from casemate.facts.vmm_process_seccomp import NEED_RIGHTS

PROCESS_DEADLINE_S = 3.0
_FILES_MAX = 256
_NO_VIEW = HostView({}, "", None, None, (), "", {})


class OwnVm(msgspec.Struct, frozen=True):
    """What is written down about a running VM of ours. ``recorded``: facts that its launch observed, or that its
    emulator told. ``filters``: those about its filters, which an ordinary user cannot read a second time.
    ``disks``: of its specification; None when that cannot be read. ``sealed``: digest of the emulator whose sealed copy
    it runs, if it runs one."""

    id: str
    name: str
    pid: int
    start_time: int
    helpers: tuple[tuple[int, int], ...] = ()
    declared: Facts = {}
    recorded: Facts = {}
    filters: Facts = {}
    plan: Expected | None = None
    notes: tuple[str, ...] = ()
    disks: tuple[DiskRef, ...] | None = None
    sealed: str = ""


class LiveVm(msgspec.Struct, frozen=True):
    """One VM that was read. ``origin``: ``casemate``, ``libvirt`` or the emulator's kind. ``helpers`` by name."""

    found: FoundProcess
    name: str
    origin: str
    read: VmmProcess
    helpers: tuple[tuple[str, VmmProcess], ...] = ()
    own: OwnVm | None = None


class LiveHost(msgspec.Struct, frozen=True):
    """All VMs of this host. ``notes``: what could not be looked at."""

    view: HostView
    vms: tuple[LiveVm, ...]
    crowd: Crowd
    notes: tuple[str, ...]


def look_at_host(root: Root, own: Sequence[OwnVm] = (), *, deadline_s: float = PROCESS_DEADLINE_S) -> LiveHost:
    """Find and read every VM.

    Args:
        own: VMs of ours that are said to run; matched by pid and start time.

    Raises:
        OSError: /proc cannot be listed.
    """
    found = find_processes(root)
    # Without any process to compare with it, nobody asks for it.
    view = host_view(root) if found.emulators or found.helpers else _NO_VIEW
    notes: list[str] = []
    read: dict[int, VmmProcess] = {}
    everybody = (*found.emulators, *found.helpers)
    for item, answer in each(everybody, lambda p: read_vmm(p.pid, p.start_time, root, view), deadline_s):
        if isinstance(answer, VmmProcess):
            read[item.pid] = answer
        elif not isinstance(answer, ProcessLookupError):
            notes.append(_not_read(item, answer))
        elif not item.is_helper:
            notes.append(f"{item.own_name} {item.pid} ended while it was looked at")
    ours = {(vm.pid, vm.start_time): vm for vm in own}
    vms = [
        _vm(item, read, found.helpers, ours.get((item.pid, item.start_time)))
        for item in found.emulators
        if item.pid in read
    ]
    members = {vm.found.pid: vm.read for vm in vms}
    crowd = Crowd(members, {vm.found.pid: vm.name for vm in vms}, _blind(found, notes))
    return LiveHost(view, tuple(vms), crowd, tuple(notes))


def _not_read(item: FoundProcess, error: Exception) -> str:
    why = str(error) if isinstance(error, (Stuck, ValueError)) else getattr(error, "strerror", None) or str(error)
    return f"{item.own_name} {item.pid} could not be read: {why}"


def _blind(found: FoundProcesses, notes: Sequence[str]) -> str:
    if notes:
        return notes[0]
    if found.unread:
        return f"{found.unread} processes are closed to uid {os.geteuid()}"
    return ""


def _vm(item: FoundProcess, read: dict[int, VmmProcess], helpers: Sequence[FoundProcess], own: OwnVm | None) -> LiveVm:
    process = read[item.pid].process
    mine = []
    for helper in helpers:
        if helper.pid in read and _helps(helper, read[helper.pid], item, read[item.pid], own):
            mine.append((f"{helper.kind} {helper.pid}", read[helper.pid]))
    if own is not None:
        return LiveVm(item, own.name, "casemate", read[item.pid], tuple(mine), own)
    name = guest_name(item.kind, process.command) or f"{item.own_name}-{item.pid}"
    return LiveVm(item, name, item.kind, read[item.pid], tuple(mine))


def _helps(helper: FoundProcess, its: VmmProcess, vm: FoundProcess, emulator: VmmProcess, own: OwnVm | None) -> bool:
    """Whether a helper works for this VM: its launch says so, it is the emulator's child, they name one socket, or
    they are alone together in one control group."""
    if own is not None and (helper.pid, helper.start_time) in own.helpers:
        return True
    if helper.parent == vm.pid:
        return True
    sockets = {path for word in its.process.command for path in _paths_in(word)}
    named = {path for word in emulator.process.command for path in _paths_in(word)}
    if sockets & named:
        return True
    groups = its.process.cgroups or {}
    return any(path != "/" and path.count("/") > 1 and "machine" in path for path in groups.values()) and (
        groups == emulator.process.cgroups
    )


def _paths_in(word: str) -> list[str]:
    """Socket paths inside an option: ``type=unixio,path=/run/x.sock``."""
    parts = word.replace(",,", "\0").split(",")
    values = [part.rpartition("=")[2].replace("\0", ",") for part in parts]
    return [value for value in values if value.startswith("/") and "sock" in value]


def guest_name(kind: str, command: Sequence[str]) -> str:
    """The guest's name on an emulator's command line; empty when it has none."""
    options = {"qemu": ("-name", "--name"), "firecracker": ("--id",), "crosvm": ("--name",), "kvmtool": ("--name",)}
    for option, value in pairwise(command):
        if option in options.get(kind, ()):
            return _first_field(value) if kind == "qemu" else value
    return ""


def _first_field(value: str) -> str:
    """The name in ``web``, ``guest=web,debug-threads=on``; a doubled comma stands for one."""
    fields = value.replace(",,", "\0").split(",")
    for field in fields:
        if field.startswith("guest="):
            return field.removeprefix("guest=").replace("\0", ",")
    return fields[0].replace("\0", ",") if "=" not in fields[0] else ""


def live_facts(vm: LiveVm, host: LiveHost, root: Root, described: Facts, files: Sequence[str]) -> Facts:
    """All facts of one live VM.

    Args:
        described: what its own command line says, observed (`facts/machine_facts.py`).
        files: paths that its description names; their identities are compared with its descriptors.
    """
    pid = vm.found.pid
    facts = dict(described)
    facts |= vmm_facts(
        vm.read,
        host.view,
        root,
        plan=vm.own.plan if vm.own is not None else None,
        named=_identities(root, files),
        foreign=images_of_others(pid, host.crowd),
        by_path=frozenset() if root.is_live else frozenset(files),
    )
    facts |= relation_facts(pid, host.crowd)
    if vm.own is not None:
        facts = facts | vm.own.recorded
        _settle_cgroup(facts, vm.own.declared)
        if vm.read.filters.why == NEED_RIGHTS:
            # A filter cannot be taken off again; its launch proved this one by the calls that it reported.
            facts |= vm.own.filters
    facts |= _helper_facts(vm, host, root)
    return facts


def _settle_cgroup(facts: Facts, declared: Facts) -> None:
    """Limits that the kernel rounded are the planned ones; then they are shown as planned."""
    live, plan = facts.get("proc.cgroup"), declared.get("proc.cgroup")
    if isinstance(live, Known) and isinstance(plan, Known):
        planned, found = plan.value, live.value
        if isinstance(planned, tuple) and isinstance(found, tuple) and within_rounding(planned, found):
            facts["proc.cgroup"] = Known(planned, live.source)


def _helper_facts(vm: LiveVm, host: LiveHost, root: Root) -> Facts:
    if not vm.helpers:
        nobody = "no helper process found"
        return {"proc.helpers": Known((), nobody), "proc.helpers-faults": Unknown(nobody)}
    each_one = [(name, vmm_facts(read, host.view, root)) for name, read in vm.helpers]
    return {
        "proc.helpers": Known(tuple(name for name, _ in each_one), "/proc"),
        "proc.helpers-faults": helper_faults(each_one),
    }


def _identities(root: Root, files: Sequence[str]) -> dict[tuple[int, int], str]:
    found = {}
    for path in files[:_FILES_MAX]:
        if not path.startswith("/"):
            continue
        try:
            status = root.stat(path)
        except OSError:
            continue
        found[status.st_dev, status.st_ino] = path
    return found
