"""Running VMs of ours: what their launch wrote down, and what their emulators say now.

Read only: looking must not settle or sweep anything. A fact that only the launch could observe (Landlock, securebits,
a digest taken before the guest ran) is taken over when nothing can have changed it since: the process is the same one,
by pid and start time, and the kernel never takes such a wall down again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from casemate.audit.live import OwnVm
from casemate.audit.patience import Stuck, once
from casemate.audit.refs import ref_of_path, sealed_copy
from casemate.controls.audit_model import DiskRef
from casemate.engine import control
from casemate.engine.devicetree import device_types
from casemate.engine.paths import Paths, default_paths
from casemate.engine.vmfiles import Definition, RunningState, read_struct, salvage_struct
from casemate.engine.wallreport import Expectations
from casemate.errors import CasemateError, HostError
from casemate.facts.fact import Facts, Known
from casemate.facts.root import Root
from casemate.facts.vmm_process_reach import Expected
from casemate.spec.model import DiskMode

_ID: Final = re.compile(r"[0-9a-f]{16}")
_QMP_DEADLINE_S: Final = 2.0
_LASTING: Final = frozenset({"proc.landlock", "proc.securebits", "proc.parent-death-signal"})
"""Of the process's own facts, those that it keeps for its life: taken over although nobody else can see them."""
_LIVE_ONLY: Final = ("proc.", "host.", "run.", "vm.id", "vhost.", "img.shared-writable")


def own_vms(paths: Paths | None = None) -> tuple[OwnVm, ...]:
    """The VMs of this user that are said to run; none where Casemate never ran."""
    try:
        return tuple(_running(paths or default_paths()))
    except (HostError, OSError):
        return ()


def _running(paths: Paths) -> Iterator[OwnVm]:
    names = os.listdir(f"{paths.runtime}/vms")  # noqa: PTH208  names, not paths
    for vm_id in sorted(name for name in names if _ID.fullmatch(name)):
        state = salvage_struct(f"{paths.vm_runtime(vm_id)}/state.json", RunningState)
        if state is None or state.emulator is None:
            continue
        yield OwnVm(
            state.id,
            state.name,
            state.emulator.pid,
            state.emulator.start_ticks,
            tuple((helper.pid, helper.start_ticks) for helper in state.helpers),
        )


def filled(vm: OwnVm, paths: Paths | None = None) -> OwnVm:
    """The same VM with what its launch wrote down and what its emulator says of its devices."""
    where = paths or default_paths()
    notes: list[str] = []
    try:
        wall = read_struct(f"{where.vm_data(vm.id)}/wall.json", Expectations)
    except CasemateError as error:
        wall = None
        notes.append(f"the record of its launch cannot be read: {error.what}")
    if wall is None or not wall.declared:
        notes.append("its launch left no plan to compare it with: start it again with this version")
        wall = Expectations()
    recorded: Facts = {
        name: Known(fact.value, f"{fact.source}; read back at its launch")
        for name, fact in wall.observed.items()
        if isinstance(fact, Known) and (name in _LASTING or not name.startswith(_LIVE_ONLY))
    }
    asked = _ask_devices(where, vm)
    if isinstance(asked, str):
        notes.append(f"its emulator could not be asked for its devices ({asked}): they are those of its launch")
    else:
        recorded |= asked
    plan = None
    if wall.root:
        plan = Expected(wall.root, wall.files, wall.devices, wall.devices_writable, wall.rlimits)
    seccomp = {k: v for k, v in wall.observed.items() if k.startswith("proc.seccomp-") and isinstance(v, Known)}
    return msgspec.structs.replace(
        vm,
        declared=wall.declared,
        recorded=recorded,
        filters=seccomp,
        plan=plan,
        notes=tuple(notes),
        disks=_disks(where, vm.id),
        sealed=sealed_copy(f"{where.cache}/emulators", vm.pid),
    )


def _disks(paths: Paths, vm_id: str) -> tuple[DiskRef, ...] | None:
    """The images of its specification; a digest counts where the launch compared it."""
    try:
        definition = read_struct(f"{paths.vm_data(vm_id)}/definition.json", Definition)
    except CasemateError:
        return None
    if definition is None:
        return None
    found = []
    for disk in definition.spec.disks:
        file = ref_of_path(Root(), str(disk.path))
        # What is written to stays no digest's bytes.
        sha256 = disk.sha256 if disk.sha256 and disk.mode is not DiskMode.PERSISTENT else ""
        found.append(DiskRef(path=file.path, identity=file.identity, sha256=sha256))
    return tuple(found)


def _ask_devices(paths: Paths, vm: OwnVm) -> Facts | str:
    """Facts out of the live device tree, or why there are none."""
    try:
        definition = read_struct(f"{paths.vm_data(vm.id)}/definition.json", Definition)
        if definition is None:
            return "its definition is gone"
        return once(lambda: _devices(paths, definition), _QMP_DEADLINE_S)
    except (CasemateError, Stuck, OSError, ValueError) as error:
        return str(error).partition("\n")[0]


def _devices(paths: Paths, definition: Definition) -> Facts:
    with control.connect(paths, definition) as connection:
        ask = asker(connection)
        types = device_types(ask)
        kvm = ask("query-kvm")
    accel = "kvm" if isinstance(kvm, dict) and kvm.get("enabled") is True else "tcg"
    return {
        "dev.types": Known(tuple(sorted(types)), "QMP qom-list, through its supervisor"),
        "dev.accel": Known(accel, "QMP query-kvm, through its supervisor"),
    }


def asker(connection: Any) -> Callable[..., Any]:
    """QMP questions through a supervisor's control socket, as ``ask(name, **arguments)``."""

    def ask(name: str, **arguments: Any) -> Any:
        answer, _ = control.ask(connection, "look", question=name, arguments=arguments)
        return answer.get("result")

    return ask
