"""What `casemate surface` looks at: a VM of ours, live or only defined, a document, a process, a command line.

1. A process, by pid: its command line and its descriptors.
2. Several words, or one that is a QEMU program: a command line.
3. A name of ours: live over QMP while it runs, its plan otherwise.
4. A path: by content, a libvirt domain, a command line, a configuration of another VMM, or a specification.

Beside each machine stands what hardening makes of it: the same rules as `casemate harden`, their result read again.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from casemate.audit.documents import HEAD_BYTES, kind_of, read_command, read_machine
from casemate.audit.live import LiveHost, LiveVm, live_facts, look_at_host
from casemate.audit.own import filled, own_vms
from casemate.audit.text import DOCUMENT_BYTES, read_input
from casemate.controls.audit_model import TargetKind
from casemate.engine.paths import default_paths, prepare
from casemate.errors import CasemateError, InputError
from casemate.facts.fact import Known, Stage
from casemate.facts.machine import Machine
from casemate.facts.machine_facts import machine_facts
from casemate.facts.qemu_argv import read_argv
from casemate.facts.root import Root
from casemate.facts.vmm_command import reader_of
from casemate.facts.xen_text import looks_like_xl
from casemate.spec.model import Spec
from casemate.surface.build import Hardened, Look

Report = Callable[[str], None]
_OURS: Final = "Casemate starts nothing that harden would change"
_BUILTIN: Final = "builtin"
_LOOK_BYTES: Final = 64 << 10


def look_at(target: Sequence[str], pid: int | None = None, report: Report = lambda step: None) -> Look:
    """The machine that the user named.

    Args:
        report: told one line per long step.

    Raises:
        InputError: nothing named, not there, or nothing that describes a machine.
    """
    if pid is not None:
        if target:
            raise InputError("--pid and a target", expected="one of them")
        return _live_process(pid)  # 1
    if not target:
        raise InputError(
            "nothing to look at",
            expected="a VM, a libvirt domain, a specification, a QEMU command line after --, or --pid",
            next_step="casemate surface builtin",
        )
    if len(target) > 1 or target[0].rpartition("/")[2].startswith(("qemu-system-", "qemu-kvm")):  # 2
        if not _is_program(target[0]) and reader_of(target[0]) is None:
            raise InputError(
                "several targets, and the first is no emulator",
                got=" ".join(target[:3])[:80],
                expected="one target, or a command line: qemu-system-x86_64 …",
            )
        machine = read_command(tuple(target), "command line")
        return _described(machine, "command line", Stage.DECLARED)
    name = target[0]
    if name != _BUILTIN:
        found = _ours(name)  # 3
        if found is not None:
            return found
        if name == "-" or _is_document(name):
            return _document(name)  # 4
    return _specification(name, report)


def _is_program(word: str) -> bool:
    return word.rpartition("/")[2].startswith(("-", "qemu", "kvm"))


def _is_document(name: str) -> bool:
    """Whether a path holds something other than a specification or an image.

    Raises:
        InputError: it is something that describes no machine.
    """
    from casemate.audit.text import open_regular

    try:
        descriptor = open_regular(name)
    except OSError:
        return False  # the reader of specifications says what is wrong
    try:
        head = os.pread(descriptor, _LOOK_BYTES, 0)
        kind = kind_of(head[:HEAD_BYTES])
    finally:
        os.close(descriptor)
    if kind in ("emulator", "capture"):
        raise InputError(
            f"{name} describes no machine", got=kind, expected="a domain, a specification or a command line"
        )
    if b"\0" not in head and looks_like_xl(head.decode("utf-8", "replace")):
        raise InputError(
            f"{name} is a Xen domain",
            expected="a machine of KVM: the history of Xen is not in the table",
            next_step=f"casemate harden {name} -o vm.toml makes a specification of it",
        )
    return kind in (TargetKind.DOMAIN, TargetKind.VMM_CONFIG, TargetKind.COMMAND_LINE)


def _document(name: str) -> Look:
    data = read_input(name, DOCUMENT_BYTES)
    source = "standard input" if name == "-" else name
    kind = kind_of(data[:HEAD_BYTES])
    if kind not in (TargetKind.DOMAIN, TargetKind.VMM_CONFIG, TargetKind.COMMAND_LINE):
        raise InputError(f"{source} describes no machine", got=kind, expected="a libvirt domain or a QEMU command line")
    machine = read_machine(TargetKind(kind), data, source)
    hardened = _hardened_domain(data, source) if kind == TargetKind.DOMAIN else None
    return _described(machine, source, Stage.DECLARED, hardened)


def _described(machine: Machine, source: str, stage: Stage, hardened: Hardened | None = None) -> Look:
    return Look(
        name=machine.name or source.rpartition("/")[2],
        source=source,
        stage=stage.value,
        facts=machine_facts(machine, stage),
        counts=Counter(device.type for device in machine.devices),
        helpers=helper_types(machine),
        hardened=hardened or _hardened_machine(machine),
        notes=tuple(f"not understood: {part}" for part in machine.unreadable[:8]),
    )


def helper_types(machine: Machine) -> frozenset[str]:
    """Types of device whose other half is a process of its own."""
    found = {d.type for d in machine.devices if d.type.startswith("vhost-user-")}
    if any(backend.kind == "tpmdev" and backend.type == "emulator" for backend in machine.backends):
        found |= {d.type for d in machine.devices if d.type.startswith("tpm-")}
    return frozenset(found)


def _hardened_domain(data: bytes, source: str) -> Hardened:
    from casemate.facts.domain import read_domain
    from casemate.harden.domain import harden_domain

    try:
        done = harden_domain(data, source)
        after = read_domain(done.after.encode(), f"{source}, hardened")
    except CasemateError as error:
        return Hardened(why=str(error).partition("\n")[0])
    left = sum(item.reason == "decide" for item in done.left)
    how = f"casemate harden: {len(done.changes)} changes" + (f", {left} left for its owner to decide" if left else "")
    return Hardened(facts=machine_facts(after, Stage.DECLARED), how=how)


def _hardened_machine(machine: Machine) -> Hardened:
    """The specification that harden makes of a command line, planned as under KVM, and read again."""
    if machine.vmm != "qemu":
        return Hardened(why="harden knows libvirt domains, QEMU command lines and Xen domains")
    from casemate.harden.machine import harden_machine
    from casemate.plan.accel import Board
    from casemate.plan.argv import Numbering, build_argv

    try:
        done = harden_machine(machine)
    except CasemateError as error:
        return Hardened(why=str(error).partition("\n")[0])
    board = Board("kvm", "", "host,-vmx,-svm", "split", pit=False, pic=False, rtc=True, timers_why="")
    argv = build_argv(done.spec, board, "0" * 16, Numbering())
    after = read_argv(argv, f"{machine.source}, hardened")
    left = sum(item.reason == "decide" for item in done.hardened.left)
    how = f"casemate harden: a specification, {len(done.hardened.changes)} changes"
    how += f", {left} left for its owner to decide" if left else ""
    return Hardened(facts=machine_facts(after, Stage.DECLARED), how=how)


def _specification(name: str, report: Report) -> Look:
    from casemate.engine import target as targets

    spec = targets.load_target(name, {}, paths=default_paths(), base_dir=Path.cwd(), report=report)
    return _planned(spec, name)


def _planned(spec: Spec, source: str) -> Look:
    from casemate.engine.dryrun import plan_launch

    paths = default_paths()
    prepare(paths)  # a plan claims an identity for a moment
    plan = plan_launch(spec, paths, None)
    machine = read_argv(tuple(plan["argv"]), source)
    look = _described(machine, source, Stage.DECLARED, Hardened(why=_OURS))
    return msgspec.structs.replace(
        look, name=spec.name or source.rpartition("/")[2], hardened=Hardened(facts=look.facts, how=_OURS)
    )


def _ours(name: str) -> Look | None:
    """A VM of ours; None when it is none."""
    from casemate.engine import state

    if "/" in name:
        return None
    paths = default_paths()
    try:
        definition = state.resolve(paths, name)
    except InputError:
        return None
    root = Root()
    live = look_at_host(root, own_vms(paths))
    for vm in live.vms:
        if vm.own is not None and vm.own.id == definition.id:
            return _live(vm, live, root)
    spec = msgspec.structs.replace(definition.spec, name=definition.name)
    look = _planned(spec, f"definition of {definition.name}")
    return msgspec.structs.replace(look, notes=(*look.notes, "it does not run: this is its plan"))


def _live_process(pid: int) -> Look:
    root = Root()
    live = look_at_host(root, own_vms())
    for vm in live.vms:
        if vm.found.pid == pid:
            return _live(vm, live, root)
    said = next((note for note in live.notes if f" {pid} " in note), "")
    raise InputError(
        f"process {pid} is no emulator that could be read",
        got=said,
        expected="the pid of a running QEMU",
        next_step="casemate audit lists every VM that runs",
    )


def _live(vm: LiveVm, host: LiveHost, root: Root) -> Look:
    """A running VM: what its command line says, what it holds open, and for one of ours its device tree."""
    source = f"/proc/{vm.found.pid}/cmdline"
    if vm.found.kind != "qemu":
        raise InputError(
            f"process {vm.found.pid} is {vm.found.kind}",
            expected="QEMU",
            next_step="name its configuration file instead: its command line does not list its devices",
        )
    machine = read_argv(vm.read.process.command, source)
    look = _described(machine, source, Stage.OBSERVED, Hardened(why=_OURS) if vm.own is not None else None)
    notes = look.notes
    if vm.own is None:
        facts = live_facts(vm, host, root, look.facts, ())
        notes += ("its devices are those of its command line: nobody but its manager may ask its QMP socket",)
        return msgspec.structs.replace(look, name=vm.name, facts=facts, notes=notes)
    from casemate.audit.surface_live import exits, positions
    from casemate.engine import state

    paths = default_paths()
    vm = msgspec.structs.replace(vm, own=filled(vm.own))
    assert vm.own is not None
    facts = live_facts(vm, host, root, look.facts, ())
    definition = state.resolve(paths, vm.own.id)
    where = positions(paths, definition)
    accel = facts.get("dev.accel")
    under_kvm = isinstance(accel, Known) and accel.value == "kvm"
    if where.note:
        notes += (where.note,)
    types = facts.get("dev.types")
    known = set(types.value) if isinstance(types, Known) and isinstance(types.value, tuple) else set()
    return msgspec.structs.replace(
        look,
        name=vm.name,
        source=f"QMP, {source}",
        facts=facts,
        counts={kind: number for kind, number in where.counts.items() if kind in known} or look.counts,
        buses=where.buses,
        hardened=Hardened(facts=facts, how=_OURS),
        notes=(*notes, *vm.own.notes),
        exits=exits(paths, definition) if under_kvm else None,
    )
