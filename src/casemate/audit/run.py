"""One audit from its request to its report, target by target."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache, cached_property, partial
from pathlib import Path

import msgspec

from casemate.audit.ahead import Ahead
from casemate.audit.definitions import definition_facts, manager_of
from casemate.audit.documents import read_command, report_document
from casemate.audit.host import collect_host_facts
from casemate.audit.judging import Setting, report_on
from casemate.audit.live import LiveHost, LiveVm, OwnVm, live_facts, look_at_host
from casemate.audit.monitors import monitor_facts
from casemate.audit.own import filled, own_vms
from casemate.audit.refs import disks_of, emulator_of
from casemate.audit.targets import Named, named_targets
from casemate.controls.audit_model import DiskRef, FileRef, Report, Target, TargetKind, TargetReport
from casemate.controls.catalogue.launch import launch_controls
from casemate.controls.drift import drift
from casemate.controls.model import Finding, Subject
from casemate.errors import CasemateError, HostError, InputError
from casemate.facts.cve_reach import machine_cve_facts, outcome, shortened, undecided_of
from casemate.facts.cve_table import marks_of, reaching, table
from casemate.facts.fact import Facts, Known, Stage, Unknown
from casemate.facts.machine_facts import machine_facts
from casemate.facts.root import Root
from casemate.installed import installed_version

HOST_NAMES = ("host.", "run.rootless")
_NOT_PROMISED = ("host.", "run.rootless", "vm.id", "dev.types")
"""Declared facts that are no promise about the VM: found out about the host, or the board's own devices."""
_READABLE = ("qemu", "firecracker", "cloud-hypervisor", "crosvm")
Step = tuple[str, Callable[[], Iterator[TargetReport]]]
"""What comes next, and how to get its reports."""
Progress = Callable[[int, int, str], None]
"""(done, how many there are as far as known, what comes next)."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to audit; with nothing named, this host, its emulators and every VM that runs.

    ``targets``: names of VMs of ours, files, directories, ``-`` for a document on standard input. ``command_line``: a
    QEMU command. ``root``: a tree in place of this host's. ``with_host``: this host and its emulators as well, when
    something that was named runs on it. ``jobs``: how many processes judge files. ``imported``: facts about the host
    that another tool told.
    """

    targets: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()
    libvirt: str | None = None
    command_line: tuple[str, ...] = ()
    root: str | None = None
    with_host: bool = False
    jobs: int = 1
    imported: Facts = {}

    @property
    def is_whole_host(self) -> bool:
        """Whether nothing was named."""
        return not (self.targets or self.pids or self.libvirt or self.command_line)


class HostAudit:
    """What is looked at once and used by several targets.

    ``origin``: what the tree is, for one that is not this host's own. ``belongs``: name of the host that its targets
    belong to, when that is not this one. ``imported``: facts about the host that another tool told.
    """

    def __init__(self, root: Root, setting: Setting, *, origin: str = "", belongs: str = "") -> None:
        self.root = root
        self.setting = setting
        self.origin = origin
        self.belongs = belongs
        self.imported: Facts = {}
        self.ahead: Ahead | None = None

    @cached_property
    def host(self) -> tuple[Facts, tuple[str, ...]]:
        """Facts of the host, and notes."""
        facts, notes = collect_host_facts(self.root)
        return facts | self.imported, notes

    @cached_property
    def own(self) -> tuple[OwnVm, ...]:
        """VMs of ours that are said to run."""
        return own_vms() if self.root.is_live else ()

    @cached_property
    def live(self) -> LiveHost:
        """Every VM that runs."""
        return look_at_host(self.root, self.own)

    @cached_property
    def emulators(self) -> tuple[TargetReport, ...]:
        """Every emulator of the host, judged."""
        from casemate.audit.emulators import report_emulators

        return tuple(report_emulators(self.root, self.setting, self._running()[0]))

    def close(self) -> None:
        """End what works in the background."""
        if self.ahead is not None:
            self.ahead.close()

    def report_host(self) -> TargetReport:
        facts, notes = self.host
        target = Target(
            TargetKind.HOST, self.belongs or host_name(self.root), self.origin or str(self.root.base), self.belongs
        )
        stage = Stage.OBSERVED
        return report_on(target, facts, (Subject.HOST,), self.setting, stage=stage, notes=notes)

    def report_vm(self, vm: LiveVm) -> TargetReport:
        if vm.own is not None:
            vm = msgspec.structs.replace(vm, own=filled(vm.own))
        described, files, notes, ways, used = described_by(vm, self.root)
        described |= monitor_facts(vm, self.live, self.root, described, ways)
        if not self.root.is_live:
            described = _without_descriptors(described)
        shared = {name: fact for name, fact in self.host[0].items() if name.startswith(HOST_NAMES)}
        facts = shared | live_facts(vm, self.live, self.root, described, files)
        runs = emulator_of(vm, self.root)
        facts |= self._cves(facts, runs)
        kind = TargetKind.VM if vm.own is not None else TargetKind.PROCESS
        where = f"{self.origin} " if self.origin else ""
        target = Target(kind, vm.name, f"{where}/proc/{vm.found.pid} ({vm.origin})", self.belongs)
        if vm.own is not None:
            notes = (*notes, *vm.own.notes)
        compared = _compare(vm, facts)
        report = report_on(
            target, facts, (Subject.VM,), self.setting, stage=Stage.OBSERVED, compared=compared, notes=notes
        )
        disks = vm.own.disks if vm.own is not None else used
        return msgspec.structs.replace(report, emulator=runs, disks=disks)

    def _cves(self, facts: Facts, runs: FileRef | None) -> Facts:
        """What is known against the very emulator that a VM runs, and reaches this VM."""
        maybe = undecided_of(facts, table())
        if maybe is None:
            return {}
        same = [entry for entry in self.emulators if runs and entry.file is not None and runs.is_same(entry.file)]
        if not same or same[0].unfixed is None:
            why = "the version of the emulator that it runs is not known"
            return machine_cve_facts(why, "")
        left = same[0].unfixed
        history = {cve.id for cve in reaching(marks_of(facts))}
        found = outcome(history, maybe, left.open, left.unrecorded)
        there = f"{same[0].target.name} (open in it: {shortened(left.open) or 'none'})"
        return machine_cve_facts(found, f"{there} and this machine's parts")

    def report_pid(self, pid: int) -> Iterator[TargetReport]:
        found = [vm for vm in self.live.vms if vm.found.pid == pid]
        if not found:
            said = next((note for note in self.live.notes if f" {pid} " in note), "")
            raise InputError(
                f"process {pid} is no emulator that could be read",
                got=said,
                expected="the pid of a QEMU, Firecracker, cloud-hypervisor or other VMM",
                next_step="casemate audit lists every VM that runs",
            )
        yield self.report_vm(found[0])

    def report_base(self) -> Iterator[TargetReport]:
        """The host and its emulators: what every VM stands on."""
        yield self.report_host()
        yield from self.emulators

    def report_whole(self, progress: Progress, fault: Callable[[str], None]) -> Iterator[TargetReport]:
        """The host, every VM that runs, the emulators; of a tree also the domains that libvirt has there.

        Args:
            fault: told each domain that cannot be read, and why.
        """
        progress(0, 1, f"host {host_name(self.root)}")
        report = self.report_host()
        vms, notes = self._running()
        yield msgspec.structs.replace(report, notes=(*report.notes, *notes))
        for index, vm in enumerate(vms):
            progress(index + 1, len(vms) + 2, vm.name)
            yield self.report_vm(vm)
        progress(len(vms) + 1, len(vms) + 2, "emulators")
        yield from self.emulators
        if not self.root.is_live:
            from casemate.audit.trees import domain_files, report_domain

            for file in domain_files(self.root):
                try:
                    yield report_domain(self.root, str(self.root.base), file, self.setting, host_name(self.root))
                except InputError as error:
                    fault(str(error).replace("\n", "; "))

    def _running(self) -> tuple[tuple[LiveVm, ...], tuple[str, ...]]:
        """(every VM that runs, what could not be looked at). A tree need not have processes.

        Raises:
            OSError: the processes of this host cannot be listed.
        """
        try:
            return self.live.vms, self.live.notes
        except OSError as error:
            if self.root.is_live:
                raise
            return (), (f"the processes of this tree cannot be read: /proc: {(error.strerror or str(error)).lower()}",)


def described_by(
    vm: LiveVm, root: Root
) -> tuple[Facts, tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[DiskRef, ...] | None]:
    """(facts out of the VM's own command line, files that it names, notes, its monitors, its disks)."""
    source = f"/proc/{vm.found.pid}/cmdline"
    try:
        if vm.found.kind not in _READABLE:
            return {}, (), (f"the command line of {vm.found.kind} is not read: see its configuration file",), (), None
        machine = read_command(vm.read.process.command, source, vm.found.kind)
    except InputError as error:
        return {}, (), (f"its command line is not understood: {error.what}",), (), None
    files = [disk.path for disk in machine.disks] + [backend.path for backend in machine.backends]
    files += [machine.kernel, machine.initrd, *machine.firmware]
    notes = tuple(f"not understood: {part}" for part in machine.unreadable[:4])
    facts = machine_facts(machine, Stage.OBSERVED)
    if vm.found.kind == "qemu":
        manager = "casemate" if vm.own is not None else manager_of(vm.read.process.command)
        descriptors = vm.read.process.descriptors
        held = None if descriptors is None else frozenset(item.target for item in descriptors)
        facts |= definition_facts(machine, manager, root, held)
    return facts, tuple(path for path in files if path), notes, machine.monitors, disks_of(machine, root)


def _without_descriptors(described: Facts) -> Facts:
    """Of a tree nobody can tell what a descriptor leads to that was handed over under a number."""
    why = Unknown("its command line names a descriptor, and what that leads to was not captured")
    is_number = {
        name: isinstance(fact, Known) and str(fact.value).startswith("/dev/fdset/") for name, fact in described.items()
    }
    return {name: why if is_number[name] else fact for name, fact in described.items()}


def _compare(vm: LiveVm, facts: Facts) -> tuple[Finding, ...]:
    """Drift between what the launch promised and what is there; nothing when nobody promised anything."""
    if vm.own is None:
        return ()
    promised: Facts = {
        name: fact
        for name, fact in vm.own.declared.items()
        if isinstance(fact, Known) and not name.startswith(_NOT_PROMISED)
    }
    if not isinstance(vm.own.declared.get("proc.cgroup"), Known):
        # It has no cgroup of its own: what limits it, if anything does, is its caller's and may change.
        promised.pop("proc.cgroup-controllers", None)
    return drift(promised, facts, controls=launch_controls()) if promised else ()


def audit_stream(
    request: Request,
    setting: Setting,
    *,
    progress: Progress = lambda done, of, what: None,
    fault: Callable[[str], None] = lambda text: None,
) -> Iterator[TargetReport]:
    """Audit one target after the other; nothing of one is kept when the next begins.

    Args:
        fault: told each target that could not be audited at all, and why.

    Raises:
        InputError: what was named does not exist or is nothing that can be audited, and it was the only one.
    """
    audit = HostAudit(_tree(request.root) if request.root else _this_host(), setting)
    audit.imported = request.imported
    if request.is_whole_host:
        yield from audit.report_whole(progress, fault)
        return
    try:
        yield from _one_by_one(request, audit, list(_steps(request, audit)), progress, fault)
    finally:
        audit.close()


def _tree(path: str) -> Root:
    """A tree in place of this host's.

    Raises:
        InputError: it is no directory.
    """
    if not Path(path).is_dir():
        raise InputError(
            f"{path} is no directory", expected="--root DIR: a tree with proc, sys, etc of a host below it"
        )
    return Root(path)


def _this_host() -> Root:
    """This host, with our own place for what takes long to work out."""
    from casemate.engine.paths import default_paths

    root = Root()
    with suppress(HostError, OSError):
        root.cache = Path(default_paths().cache)
    return root


def _one_by_one(
    request: Request, audit: HostAudit, steps: Sequence[Step], progress: Progress, fault: Callable[[str], None]
) -> Iterator[TargetReport]:
    runs_here = False
    for index, (what, step) in enumerate(steps):
        progress(index, len(steps), what)
        try:
            for report in step():
                here = report.target.kind in (TargetKind.VM, TargetKind.PROCESS) and not report.target.host
                runs_here = runs_here or here
                yield report
        except CasemateError as error:
            if len(steps) == 1:
                raise
            fault(str(error).replace("\n", "; "))
    if request.with_host and runs_here:
        progress(len(steps), len(steps) + 1, "this host")
        yield from audit.report_base()
    progress(len(steps), len(steps), "")


def _steps(request: Request, audit: HostAudit) -> Iterator[Step]:
    for pid in request.pids:
        yield f"process {pid}", partial(audit.report_pid, pid)
    if request.command_line:
        yield "command line", partial(_command_line, request.command_line, audit.setting)
    if request.libvirt is not None:
        from casemate.audit.libvirt import report_libvirt

        yield f"libvirt {request.libvirt}", partial(report_libvirt, request.libvirt, audit.root, audit.setting)
    targets = named_targets(request.targets)
    ours = {target.name for target in targets if any(target.is_vm(vm.id, vm.name) for vm in audit.own)}
    audit.ahead = Ahead([t.name for t in targets if t.name not in ours and t.name != "-"], audit.setting, request.jobs)
    for target in targets:
        if target.name in ours:
            yield target.name, partial(_named, target, audit)
        elif audit.ahead.is_worth_it and target.name != "-":
            yield target.name, audit.ahead.reports
        else:
            yield target.name, partial(target.reports, audit.setting)


def _command_line(command: Sequence[str], setting: Setting) -> Iterator[TargetReport]:
    data = "\0".join(command).encode("utf-8", "surrogateescape") + b"\0"
    yield report_document(TargetKind.COMMAND_LINE, data, "command line", setting)


def _named(target: Named, audit: HostAudit) -> Iterator[TargetReport]:
    vms = [vm for vm in audit.live.vms if vm.own is not None and target.is_vm(vm.own.id, vm.own.name)]
    if vms:
        yield from (audit.report_vm(vm) for vm in vms)
        return
    yield from target.reports(audit.setting)


def audit_targets(request: Request, setting: Setting, *, progress: Progress = lambda done, of, what: None) -> Report:
    """One whole report; see `audit_stream`."""
    faults: list[str] = []
    targets = tuple(audit_stream(request, setting, progress=progress, fault=faults.append))
    return report_of(targets, setting, faults)


def report_of(targets: Sequence[TargetReport], setting: Setting, faults: Sequence[str]) -> Report:
    """The report around the targets."""
    return Report(
        tool_version=installed_version(),
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


@cache
def catalogue_version() -> str:
    """A digest over all controls: two reports with the same one asked the same questions."""
    import hashlib

    from casemate.controls.catalogue.all import all_controls

    return hashlib.sha256(msgspec.json.encode(all_controls())).hexdigest()[:16]
