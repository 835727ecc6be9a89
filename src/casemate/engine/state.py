"""The VMs of one user as files: definitions, running state, how they ended. See paths.py for the layout.

What a VM is doing follows from locks, never from a pid alone:

    runtime lock held, state.json     -> its phase (running, paused, stopping)
    runtime lock held, run.json only  -> starting
    lock free, run.json of this boot  -> its supervisor died: clean up, "exited (supervisor died)"
    run.json of another boot          -> "exited (host rebooted)"
    exit.json                         -> exited
    otherwise                         -> created
    run.json names another runtime directory, and its supervisor lives -> elsewhere

Locks, in the order in which they are taken: a VM's ``lock`` (start, rm, clean-up), then ``names.lock`` (create, rm).
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import time

import msgspec

from casemate.engine import files
from casemate.engine.aftermath import drop_runtime, foresee, is_alive, remove_cgroups, settle
from casemate.engine.paths import Paths, own_directory
from casemate.engine.vmfiles import (
    Definition,
    Exit,
    Process,
    RunMark,
    RunningState,
    Vm,
    boot_id,
    now,
    read_struct,
    salvage_struct,
)
from casemate.errors import CasemateError, HostError, InputError
from casemate.spec.model import Spec

__all__ = [
    "Definition",
    "Exit",
    "Process",
    "RunMark",
    "RunningState",
    "Vm",
    "boot_id",
    "claim",
    "create",
    "definitions",
    "find_by_name",
    "look",
    "now",
    "read_struct",
    "remove",
    "remove_cgroups",
    "resolve",
]

CLAIM_DEADLINE_S = 10.0
LOOK_DEADLINE_S = 8.0
KERNEL_LOG_LAG_S = 5.0
AT_REST = frozenset({"created", "exited", "damaged"})
"""States of a VM that has no process."""
_NEVER = "1970-01-01T00:00:00.000Z"
_ID = re.compile(r"[0-9a-f]{16}")


def create(
    paths: Paths,
    spec: Spec,
    *,
    timeout_s: float | None = None,
    remove_on_exit: bool = False,
    policy_file: str | None = None,
) -> Definition:
    """Write a definition; the name is claimed under names.lock.

    Raises:
        InputError: the name is taken.
        HostError: names.lock is held for too long.
        OSError: the disk refuses.
    """
    vm_id = os.urandom(8).hex()
    name = spec.name or f"vm-{vm_id[:8]}"
    definition = Definition(vm_id, name, spec, now(), timeout_s, remove_on_exit, policy_file)
    lock = files.take_lock(f"{paths.data}/names.lock", wait=True)
    assert lock is not None
    try:
        taken = find_by_name(paths, name)
        if taken is not None:
            raise InputError(
                f"the name {name} is taken",
                got=f"VM {taken.id[:12]}",
                next_step=f"casemate rm {name}, or choose another --name",
            )
        own_directory(paths.vm_data(vm_id))
        try:
            files.write_json(f"{paths.vm_data(vm_id)}/definition.json", definition)
        except BaseException:
            files.remove_tree(paths.vm_data(vm_id))
            raise
    finally:
        os.close(lock)
    return definition


def definitions(paths: Paths) -> list[Definition]:
    """Every definition, oldest first; one that cannot be read is ``damaged`` and has its id for a name.

    What a killed create or rm left behind is swept.
    """
    found, torn = [], []
    for vm_id in _ids(f"{paths.data}/vms"):
        try:
            data = files.read_bounded(f"{paths.vm_data(vm_id)}/definition.json")
            found.append(msgspec.json.decode(data, type=Definition))
        except FileNotFoundError:
            torn.append(vm_id)
        except (OSError, msgspec.MsgspecError) as fault:
            found.append(Definition(vm_id, vm_id, Spec(), _NEVER, damaged=f"definition.json: {str(fault)[:200]}"))
    if torn:
        _sweep_torn(paths, torn)
    _sweep_runtime(paths)
    return sorted(found, key=lambda item: (item.created_at, item.id))


def _ids(directory: str) -> list[str]:
    try:
        return [name for name in os.listdir(directory) if _ID.fullmatch(name)]
    except FileNotFoundError:
        return []


def _sweep_torn(paths: Paths, vm_ids: list[str]) -> None:
    """Data directories without a definition. create and rm hold names.lock while a directory looks like that."""
    lock = files.take_lock(f"{paths.data}/names.lock", wait=False)
    if lock is None:
        return
    try:
        for vm_id in vm_ids:
            if not os.path.lexists(f"{paths.vm_data(vm_id)}/definition.json"):
                with contextlib.suppress(CasemateError, OSError):  # what stays is swept by the next command
                    _discard_tpm(paths, vm_id)
                files.remove_tree(paths.vm_data(vm_id))
    finally:
        os.close(lock)


def _sweep_runtime(paths: Paths) -> None:
    """Runtime directories of VMs that are no more: a VM that removes itself was killed while it did."""
    for vm_id in _ids(f"{paths.runtime}/vms"):
        lock_path = f"{paths.vm_runtime(vm_id)}/lock"
        if os.path.lexists(f"{paths.vm_data(vm_id)}/definition.json") or not os.path.lexists(lock_path):
            continue
        try:
            lock = files.take_lock(lock_path, wait=False)
        except OSError:
            continue  # gone meanwhile
        if lock is not None:
            try:
                if settle(paths, vm_id).clean:
                    drop_runtime(paths, vm_id)
            finally:
                os.close(lock)


def find_by_name(paths: Paths, name: str) -> Definition | None:
    """The definition with exactly this name."""
    return next((item for item in definitions(paths) if item.name == name), None)


def resolve(paths: Paths, reference: str) -> Definition:
    """A VM by name, id, or unique id prefix, as podman does.

    Raises:
        InputError: no such VM, or several.
    """
    everything = definitions(paths)
    for item in everything:
        if reference in {item.name, item.id}:
            return item
    matches = [item for item in everything if reference and item.id.startswith(reference)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ", ".join(f"{item.id[:12]} ({item.name})" for item in matches[:5])
        raise InputError(f"{reference} names several VMs", got=names, expected="a longer prefix")
    raise InputError(f"no such VM: {reference}", next_step="casemate ps -a lists them")


def look(paths: Paths, definition: Definition) -> Vm:
    """What a VM is doing now; a run whose supervisor died is recorded as ended and cleaned up first.

    A full disk does not stop it: then the answer is right and the clean-up is left to a later command.
    """
    lock_path = f"{paths.vm_runtime(definition.id)}/lock"
    end = time.monotonic() + LOOK_DEADLINE_S
    while True:
        look_at = _look_locked if files.is_locked(lock_path) else _look_unlocked
        vm = look_at(paths, definition)
        if vm is not None:
            return vm
        if time.monotonic() > end:
            return Vm(definition, "stopping", None, None)
        time.sleep(0.005)


def _look_locked(paths: Paths, definition: Definition) -> Vm | None:
    """Someone holds the lock: a supervisor, or a command that starts, removes or cleans up. None: look again."""
    running = salvage_struct(f"{paths.vm_runtime(definition.id)}/state.json", RunningState)
    if running is not None:
        # A lock without a supervisor is a clean-up under way: it ends in a moment.
        return Vm(definition, running.phase, running, None) if is_alive(running.supervisor) else None
    mark = salvage_struct(f"{paths.vm_data(definition.id)}/run.json", RunMark)
    if mark is not None and mark.boot_id == boot_id():
        return Vm(definition, "starting", None, None)
    return _ended(paths, definition, None)


def _look_unlocked(paths: Paths, definition: Definition) -> Vm | None:
    """Nobody holds the lock: it does not run, or its runtime directory was taken away. None: look again."""
    runtime, mark_path = paths.vm_runtime(definition.id), f"{paths.vm_data(definition.id)}/run.json"
    if not os.path.lexists(mark_path) and not os.path.lexists(f"{runtime}/lock"):
        return _ended(paths, definition, None)
    mark = salvage_struct(mark_path, RunMark)
    if mark is not None and mark.boot_id == boot_id() and is_alive(mark.supervisor):
        if runs_elsewhere(paths, definition):
            return Vm(definition, "elsewhere", None, None)
        # About to exit; or it lost its runtime directory, which it notices and ends (see supervise.py).
        return None if os.path.lexists(f"{runtime}/lock") else Vm(definition, "stopping", None, None)
    try:
        own_directory(runtime)
        lock = files.take_lock(f"{runtime}/lock", wait=False)
    except FileNotFoundError:
        return None  # another command was faster
    except (OSError, HostError):
        if os.path.lexists(mark_path):
            return _ended(paths, definition, foresee(paths, definition.id))
        return _ended(paths, definition, None)
    if lock is None:
        return None
    try:
        settled = settle(paths, definition.id)
        vm = _ended(paths, definition, settled.lost)
        if settled.clean:
            drop_runtime(paths, definition.id)
            if definition.remove_on_exit and vm.exit is not None:
                _delete(paths, definition.id)
    finally:
        os.close(lock)
    return vm


def runs_elsewhere(paths: Paths, definition: Definition) -> str:
    """The base runtime directory of a run that lives under another one than ours; empty when there is none."""
    mark = salvage_struct(f"{paths.vm_data(definition.id)}/run.json", RunMark)
    if mark is None or mark.runtime in {"", paths.runtime} or mark.boot_id != boot_id():
        return ""
    return mark.runtime if is_alive(mark.supervisor) else ""


def refuse_elsewhere(paths: Paths, definition: Definition) -> None:
    """To be called where a VM is to be asked, or claimed.

    Raises:
        HostError: it runs under another runtime directory, where we have neither its lock nor its socket.
    """
    where = runs_elsewhere(paths, definition)
    if where:
        raise HostError(
            f"{definition.name} runs under another runtime directory",
            got=paths.runtime,
            expected=where,
            next_step=f"XDG_RUNTIME_DIR={shlex.quote(os.path.dirname(where))} casemate …; a login session sets it",
        )


def _ended(paths: Paths, definition: Definition, lost: Exit | None) -> Vm:
    ended = salvage_struct(f"{paths.vm_data(definition.id)}/exit.json", Exit) if lost is None else lost
    if ended is None and os.path.lexists(f"{paths.vm_data(definition.id)}/exit.json"):
        ended = Exit("unknown", 5, now(), detail="exit.json, which says how it ended, is damaged")
    if ended is not None and ended.sigsys_pid:
        ended = _explain_sigsys(paths, definition, ended)
    if definition.damaged:
        return Vm(definition, "damaged", None, ended)
    return Vm(definition, "exited" if ended else "created", None, ended)


def _explain_sigsys(paths: Paths, definition: Definition, ended: Exit) -> Exit:
    """Ask the kernel's log, once, which call it was: the supervisor may not read it."""
    from casemate.engine.sigsys import killed_call  # here: it brings the tables of system calls

    call = killed_call(ended.sigsys_pid)
    path = f"{paths.vm_data(definition.id)}/exit.json"
    if not call and _age_s(path) < KERNEL_LOG_LAG_S:
        return ended  # the kernel writes it a moment after the death: the next look asks again
    profile = salvage_struct(f"{paths.vm_data(definition.id)}/wall.json", _Profile)
    words = "; ".join(filter(None, [call, f"profile {profile.profile}" if profile else "", ended.detail]))
    ended = msgspec.structs.replace(ended, detail=words if call else ended.detail, sigsys_pid=0)
    try:
        files.write_json(path, ended)
    except OSError:
        return ended
    return ended


def _age_s(path: str) -> float:
    """Seconds since the last change; for ever when the file is not there."""
    try:
        return time.time() - os.lstat(path).st_mtime
    except OSError:
        return float("inf")


class _Profile(msgspec.Struct, frozen=True):
    """The part of wall.json that names the seccomp profile."""

    profile: str


def claim(paths: Paths, definition: Definition, *, to_remove: bool = False) -> int:
    """Take a VM's lock to start or remove it; a run that was lost has been settled then.

    Args:
        to_remove: the end of a lost run need not be written down: a full disk must not keep a VM from being removed.

    Returns:
        the descriptor that holds the lock; whoever inherits it holds it too.

    Raises:
        InputError: it runs, another command is busy with it, or it has been removed meanwhile.
        HostError: the runtime directory cannot be made, or what a lost run left cannot be cleaned up; it runs under
            another one.
    """
    if definition.damaged and not to_remove:
        raise InputError(
            f"{paths.vm_data(definition.id)} is damaged",
            got=definition.damaged,
            next_step=f"casemate rm {definition.id} removes that VM",
        )
    refuse_elsewhere(paths, definition)
    end = time.monotonic() + CLAIM_DEADLINE_S
    while True:
        lock = _try_claim(paths, definition)
        if lock is not None:
            break
        if time.monotonic() > end:
            raise InputError(
                f"another command is busy with {definition.name}",
                got=f"not done within {CLAIM_DEADLINE_S:.0f} s",
                next_step="casemate ps -a shows what it does; try again",
            )
        time.sleep(0.005)
    try:
        if not os.path.lexists(f"{paths.vm_data(definition.id)}/definition.json"):
            drop_runtime(paths, definition.id)
            raise InputError(f"{definition.name} was removed meanwhile", next_step="casemate ps -a lists what is there")
        settled = settle(paths, definition.id)
        if not (settled.gone if to_remove else settled.clean):
            raise HostError(
                f"what the last run of {definition.name} left behind cannot be cleaned up",
                got="its end cannot be written, or its processes or cgroups do not go away",
                next_step=f"df -h {paths.data}; dmesg; then try again",
            )
    except BaseException:
        os.close(lock)
        raise
    return lock


def _try_claim(paths: Paths, definition: Definition) -> int | None:
    """The lock; None when somebody else has it for a moment."""
    runtime = paths.vm_runtime(definition.id)
    try:
        own_directory(runtime)
        lock = files.take_lock(f"{runtime}/lock", wait=False)
    except FileNotFoundError:
        return None  # the one that had it has just removed the directory
    except OSError as fault:
        raise HostError(
            f"the lock in {runtime} cannot be made", got=str(fault.strerror), next_step=f"df -h {paths.runtime}"
        ) from fault
    if lock is None:
        running = salvage_struct(f"{runtime}/state.json", RunningState)
        if running is not None and is_alive(running.supervisor):
            raise InputError(
                f"{definition.name} already runs",
                got=f"state {running.phase}",
                next_step=f"casemate stop {definition.name}",
            )
        return None
    mark = salvage_struct(f"{paths.vm_data(definition.id)}/run.json", RunMark)
    if mark is None or mark.boot_id != boot_id() or not is_alive(mark.supervisor):
        return lock
    # Its runtime directory was taken away and the lock we have is a new one. It notices within a minute and stops.
    drop_runtime(paths, definition.id)
    os.close(lock)
    return None


def remove(paths: Paths, definition: Definition) -> None:
    """Delete a VM's definition and everything it owns; the definition goes first so that a cut is swept later.

    Raises:
        InputError: it runs, another command is busy with it, or it is gone already.
    """
    claimed = claim(paths, definition, to_remove=True)
    try:
        names = files.take_lock(f"{paths.data}/names.lock", wait=True)
        assert names is not None
        try:
            _delete(paths, definition.id)
        finally:
            os.close(names)
    finally:
        os.close(claimed)


def _delete(paths: Paths, vm_id: str) -> None:
    files.unlink_if_there(f"{paths.vm_data(vm_id)}/definition.json")
    try:
        _discard_tpm(paths, vm_id)
    finally:
        files.remove_tree(paths.vm_data(vm_id))
    files.remove_tree(paths.vm_runtime(vm_id))


def _discard_tpm(paths: Paths, vm_id: str) -> None:
    """The TPM's directory, which belongs to another uid.

    Raises:
        HostError: it is still there.
    """
    if os.path.lexists(f"{paths.vm_data(vm_id)}/tpm"):
        from casemate.engine import tpm_state  # here: ``ps`` shall not import what a launch needs

        tpm_state.discard(paths, vm_id)
