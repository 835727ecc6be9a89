"""Running VMs of ours, from what their supervisors wrote down. Read only: looking must not settle or sweep anything."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from casemate.audit.live import OwnVm
from casemate.engine.paths import Paths, default_paths
from casemate.engine.vmfiles import RunningState, salvage_struct
from casemate.errors import HostError

_ID = re.compile(r"[0-9a-f]{16}")


def own_vms(paths: Paths | None = None) -> tuple[OwnVm, ...]:
    """The VMs of this user that are said to run; none where Casemate never ran."""
    try:
        return tuple(_running(paths or default_paths()))
    except (HostError, OSError):
        return ()


def _running(paths: Paths) -> Iterator[OwnVm]:
    for vm_id in sorted(name for name in os.listdir(f"{paths.runtime}/vms") if _ID.fullmatch(name)):  # noqa: PTH208  names, not paths
        state = salvage_struct(f"{paths.vm_runtime(vm_id)}/state.json", RunningState)
        if state is None or state.emulator is None:
            continue
        helpers = tuple((helper.pid, helper.start_ticks) for helper in state.helpers)
        yield OwnVm(state.id, state.name, state.emulator.pid, state.emulator.start_ticks, helpers)
