"""One audit from its request to its report, target by target."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from casemate.audit.host import collect_host_facts
from casemate.audit.judging import Setting, report_on
from casemate.audit.live import LiveHost, LiveVm, live_facts, look_at_host
from casemate.audit.own import own_vms
from casemate.controls.audit_model import Report, Target, TargetKind, TargetReport
from casemate.controls.model import Subject
from casemate.errors import CasemateError, InputError
from casemate.facts.fact import Facts, Known, Stage
from casemate.facts.root import Root

HOST_NAMES: Final = ("host.", "run.rootless")
Progress = Callable[[int, int, str], None]
"""(done, how many there are as far as known, what comes next)."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to audit; with nothing named, this host, its emulators and every VM that runs.

    ``targets``: names of VMs of ours, files, directories, ``-`` for a document on standard input. ``command_line``: a
    QEMU command. ``root``: a tree in place of this host's.
    """

    targets: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()
    libvirt: str | None = None
    command_line: tuple[str, ...] = ()
    root: str | None = None

    @property
    def is_whole_host(self) -> bool:
        """Whether nothing was named."""
        return not (self.targets or self.pids or self.libvirt or self.command_line)


def audit_stream(
    request: Request,
    setting: Setting,
    *,
    jobs: int = 1,
    progress: Progress = lambda done, of, what: None,
    fault: Callable[[str], None] = lambda text: None,
) -> Iterator[TargetReport]:
    """Audit one target after the other; nothing of one is kept when the next begins.

    Args:
        fault: told each target that could not be audited at all, and why.

    Raises:
        InputError: what was named does not exist or is nothing that can be audited, and it was the only one.
    """
    root = Root(request.root) if request.root else Root()
    if request.is_whole_host:
        yield from _whole_host(root, setting, progress)
        return
    steps: list[tuple[str, Callable[[], Iterator[TargetReport]]]] = []
    if request.pids:
        steps.append(("processes", lambda: _processes(root, request.pids, setting)))
    for name in request.targets:
        steps.append((name, lambda name=name: _named(name, root, setting)))  # type: ignore[misc]
    for index, (what, step) in enumerate(steps):
        progress(index, len(steps), what)
        try:
            yield from step()
        except CasemateError as error:
            if len(steps) == 1:
                raise
            fault(str(error))


def _whole_host(root: Root, setting: Setting, progress: Progress) -> Iterator[TargetReport]:
    name = host_name(root)
    progress(0, 1, f"host {name}")
    facts, notes = collect_host_facts(root)
    target = Target(TargetKind.HOST, name, str(root.base))
    yield report_on(target, facts, (Subject.HOST,), setting, stage=Stage.OBSERVED, notes=notes)
    live = look_at_host(root, own_vms())
    shared = {key: fact for key, fact in facts.items() if key.startswith(HOST_NAMES)}
    for index, vm in enumerate(live.vms):
        progress(index + 1, len(live.vms) + 1, vm.name)
        yield _live_report(vm, live, root, shared, setting)


def _live_report(vm: LiveVm, live: LiveHost, root: Root, shared: Facts, setting: Setting) -> TargetReport:
    facts = shared | live_facts(vm, live, root, {}, ())
    kind = TargetKind.VM if vm.own is not None else TargetKind.PROCESS
    target = Target(kind, vm.name, f"/proc/{vm.found.pid} ({vm.origin})")
    return report_on(target, facts, (Subject.VM,), setting, stage=Stage.OBSERVED)


def _processes(root: Root, pids: Sequence[int], setting: Setting) -> Iterator[TargetReport]:
    live = look_at_host(root, own_vms())
    facts, _notes = collect_host_facts(root)
    shared = {key: fact for key, fact in facts.items() if key.startswith(HOST_NAMES)}
    by_pid = {vm.found.pid: vm for vm in live.vms}
    for pid in pids:
        if pid not in by_pid:
            raise InputError(
                f"process {pid} is no emulator that could be read",
                expected="the pid of a QEMU, Firecracker, cloud-hypervisor or other VMM",
                next_step="casemate audit lists every VM that runs",
            )
        yield _live_report(by_pid[pid], live, root, shared, setting)


def _named(name: str, root: Root, setting: Setting) -> Iterator[TargetReport]:
    live = look_at_host(root, own_vms())
    found = [vm for vm in live.vms if vm.own is not None and name in (vm.own.name, vm.own.id)]
    if not found:
        raise InputError(f"no such target: {name}", expected="a VM, a file, or a capture", next_step="casemate ps")
    facts, _notes = collect_host_facts(root)
    shared = {key: fact for key, fact in facts.items() if key.startswith(HOST_NAMES)}
    for vm in found:
        yield _live_report(vm, live, root, shared, setting)


def audit_targets(
    request: Request, setting: Setting, *, jobs: int = 1, progress: Progress = lambda done, of, what: None
) -> Report:
    """One whole report; see `audit_stream`."""
    faults: list[str] = []
    targets = tuple(audit_stream(request, setting, jobs=jobs, progress=progress, fault=faults.append))
    return report_of(targets, setting, faults)


def report_of(targets: Sequence[TargetReport], setting: Setting, faults: Sequence[str]) -> Report:
    """The report around the targets."""
    return Report(
        tool_version=tool_version(),
        catalogue=catalogue_version(),
        host=host_name(Root()),
        time=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        profile=setting.profile.name,
        targets=tuple(targets),
        faults=tuple(faults),
    )


def host_name(root: Root) -> str:
    """The name of the host that a tree belongs to."""
    fact = root.fact("/proc/sys/kernel/hostname", str.strip)
    if isinstance(fact, Known) and fact.value:
        return str(fact.value)
    return os.uname().nodename if root.is_live else root.base.name


def tool_version() -> str:
    """Ours."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("casemate")
    except PackageNotFoundError:
        return "unknown"


def catalogue_version() -> str:
    """A digest over all controls: two reports with the same one asked the same questions."""
    import hashlib

    from casemate.controls.catalogue.all import all_controls

    return hashlib.sha256(msgspec.json.encode(all_controls())).hexdigest()[:16]
