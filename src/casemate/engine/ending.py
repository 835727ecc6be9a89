"""End and delete VMs from outside their supervisor, which may end them by itself at the same moment."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from casemate.engine import control, files, state
from casemate.engine.paths import Paths
from casemate.engine.state import Definition
from casemate.errors import CasemateError, InputError


def is_alive(paths: Paths, definition: Definition) -> bool:
    """Whether it starts, runs, or has not quite ended."""
    return state.look(paths, definition).state not in state.AT_REST


def end_run(paths: Paths, definition: Definition, verb: str, *, wait: bool, **fields: Any) -> None:
    """Ask the supervisor to ``stop`` or ``kill``; a VM that does not run, or ends by itself meanwhile, is as good.

    Raises:
        VmError: the supervisor does not answer, and the VM runs on.
    """
    if not is_alive(paths, definition):
        return
    watch = control.EndWatch(paths, definition)
    try:
        control.request(paths, definition, verb, **fields)
        if wait:
            watch.wait()
    except CasemateError:
        if is_alive(paths, definition):
            raise
    finally:
        watch.close()


def remove(paths: Paths, definition: Definition, *, force: bool) -> None:
    """Delete a VM that does not run; with ``force`` kill it first.

    Raises:
        InputError: it runs and ``force`` is False.
    """
    vm = state.look(paths, definition)
    state.refuse_elsewhere(paths, definition)
    if vm.state not in state.AT_REST:
        if not force:
            raise InputError(
                f"{definition.name} is {vm.state}",
                next_step=f"casemate stop {definition.name}, or casemate rm --force {definition.name}",
            )
        end_run(paths, definition, "kill", wait=True)
        if definition.remove_on_exit and state.find_by_name(paths, definition.name) is None:
            return  # its supervisor has done it
    state.remove(paths, definition)


def forget(paths: Paths, definition: Definition) -> None:
    """Delete a VM whose first start failed; the failure, not what comes of this, is what the caller hears."""
    with contextlib.suppress(CasemateError, OSError):
        state.remove(paths, definition)
        return
    # Its lock is not to be had where the runtime directory cannot be written. Without a run nothing else is left.
    if not os.path.lexists(f"{paths.vm_data(definition.id)}/run.json"):
        files.remove_tree(paths.vm_data(definition.id))
