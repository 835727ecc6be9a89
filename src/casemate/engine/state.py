"""The VMs of one user as files: definitions, running state, how they ended. See paths.py for the layout.

What a VM is doing follows from locks, never from a pid alone:

    runtime lock held                 -> state.json tells (starting, running, paused, stopping)
    lock free, run.json of this boot  -> its supervisor died: clean up, "exited (supervisor died)"
    run.json of another boot          -> "exited (host rebooted)"
    exit.json                         -> exited
    otherwise                         -> created
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from typing import TypeVar

import msgspec

from casemate.engine import files
from casemate.engine.paths import Paths, own_directory
from casemate.errors import CasemateError, InputError
from casemate.spec.model import Spec

T = TypeVar("T")


class Process(msgspec.Struct, frozen=True):
    """A process named for good: pid and start time in clock ticks since boot."""

    name: str
    pid: int
    start_ticks: int


class Definition(msgspec.Struct, frozen=True):
    """What ``create`` wrote down."""

    id: str
    name: str
    spec: Spec
    created_at: str
    timeout_s: float | None = None
    remove_on_exit: bool = False
    policy_file: str | None = None


class RunningState(msgspec.Struct, frozen=True):
    """What state.json holds while the supervisor lives."""

    id: str
    name: str
    phase: str
    supervisor: Process
    emulator: Process | None
    helpers: tuple[Process, ...]
    uid: int
    gid: int
    accel: str
    started_at: str
    cgroups: tuple[str, ...] = ()
    console: str = ""
    health: tuple[str, ...] = ()


class RunMark(msgspec.Struct, frozen=True):
    """run.json: a run began; removed when exit.json is written."""

    boot_id: str
    started_at: str


class Exit(msgspec.Struct, frozen=True):
    """exit.json: how a run ended. ``code`` as in errors.ExitCode."""

    reason: str
    code: int
    finished_at: str
    started_at: str = ""
    detail: str = ""
    uid: int = 0
    accel: str = ""


class Vm(msgspec.Struct, frozen=True):
    """One VM as ``ps`` and ``inspect`` see it."""

    definition: Definition
    state: str
    running: RunningState | None
    exit: Exit | None


def boot_id() -> str:
    """The kernel's random id of this boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read(64).strip()


def now() -> str:
    """RFC 3339 in UTC, whole milliseconds."""
    seconds = time.time()
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds * 1000) % 1000:03d}Z"


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
    """
    vm_id = secrets.token_hex(8)
    name = spec.name or f"vm-{vm_id[:8]}"
    lock = files.take_lock(f"{paths.data}/names.lock", wait=True)
    try:
        taken = find_by_name(paths, name)
        if taken is not None:
            raise InputError(
                f"the name {name} is taken",
                got=f"VM {taken.id[:12]}",
                next_step=f"casemate rm {name}, or choose another --name",
            )
        definition = Definition(vm_id, name, spec, now(), timeout_s, remove_on_exit, policy_file)
        own_directory(paths.vm_data(vm_id))
        files.write_json(f"{paths.vm_data(vm_id)}/definition.json", definition)
    finally:
        if lock is not None:
            os.close(lock)
    return definition


def definitions(paths: Paths) -> list[Definition]:
    """Every readable definition, oldest first. A torn directory (killed during create or rm) is swept."""
    found = []
    try:
        names = os.listdir(f"{paths.data}/vms")
    except FileNotFoundError:
        return []
    for vm_id in names:
        try:
            data = files.read_bounded(f"{paths.vm_data(vm_id)}/definition.json")
            found.append(msgspec.json.decode(data, type=Definition))
        except FileNotFoundError:
            _sweep_torn(paths, vm_id)
        except (OSError, msgspec.MsgspecError):
            continue  # not ours to delete: inspect names it
    return sorted(found, key=lambda item: item.created_at)


def _sweep_torn(paths: Paths, vm_id: str) -> None:
    """A directory without a definition is a create or rm that was killed; half a minute tells it from one under way."""
    directory = paths.vm_data(vm_id)
    try:
        if time.time() - os.lstat(directory).st_mtime > 30:
            shutil.rmtree(directory, ignore_errors=True)
    except FileNotFoundError:
        return


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
    """What a VM is doing now; a run whose supervisor died is recorded as ended and cleaned up first."""
    runtime, data = paths.vm_runtime(definition.id), paths.vm_data(definition.id)
    if files.is_locked(f"{runtime}/lock"):
        running = read_struct(f"{runtime}/state.json", RunningState)
        return Vm(definition, running.phase if running else "starting", running, None)
    mark = read_struct(f"{data}/run.json", RunMark)
    if mark is not None:
        _record_lost_run(paths, definition, mark)
    ended = read_struct(f"{data}/exit.json", Exit)
    return Vm(definition, "exited" if ended else "created", None, ended)


def read_struct(path: str, kind: type[T]) -> T | None:
    """A JSON file as a struct; None when it is missing.

    Raises:
        CasemateError: it is there and cannot be read.
    """
    try:
        return msgspec.json.decode(files.read_bounded(path), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as fault:
        raise CasemateError(
            f"{path} is damaged", got=str(fault)[:200], next_step="casemate rm --force removes that VM"
        ) from fault


def _record_lost_run(paths: Paths, definition: Definition, mark: RunMark) -> None:
    """The supervisor is gone without a word: say how, and leave nothing behind."""
    runtime, data = paths.vm_runtime(definition.id), paths.vm_data(definition.id)
    lock = files.take_lock(f"{runtime}/lock", wait=False) if os.path.isdir(runtime) else -1
    if lock is None:
        return  # someone starts it, or cleans it up, right now
    try:
        if read_struct(f"{data}/run.json", RunMark) is None:
            return
        running = read_struct(f"{runtime}/state.json", RunningState)
        if mark.boot_id != boot_id():
            reason, detail = "host rebooted", "the host was restarted while the VM ran"
        else:
            reason, detail = "supervisor died", "the supervisor was killed; the emulator died with it"
            if running is not None:
                remove_cgroups(running.cgroups)
        uid, accel = (running.uid, running.accel) if running else (0, "")
        files.write_json(f"{data}/exit.json", Exit(reason, 5, now(), mark.started_at, detail, uid, accel))
        files.unlink_if_there(f"{data}/run.json")
        shutil.rmtree(runtime, ignore_errors=True)
    finally:
        if lock is not None and lock >= 0:
            os.close(lock)


def remove_cgroups(directories: tuple[str, ...], deadline_s: float = 2.0) -> list[str]:
    """Remove a VM's cgroups, killing what is still in them.

    Returns:
        directories that could not be removed in time.
    """
    left = list(directories)
    end = time.monotonic() + deadline_s
    while left:
        still = []
        for directory in left:
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                continue
            except OSError:
                _kill_cgroup(directory)
                still.append(directory)
        left = still
        if left:
            if time.monotonic() > end:
                return left
            time.sleep(0.005)
    return []


def _kill_cgroup(directory: str) -> None:
    """Kill every process of a cgroup: cgroup.kill in version 2, pid by pid in version 1."""
    try:
        with open(f"{directory}/cgroup.kill", "w", encoding="ascii") as file:
            file.write("1")
        return
    except OSError:
        pass
    try:
        with open(f"{directory}/cgroup.procs", encoding="ascii") as file:
            pids = [int(line) for line in file.read(65536).split()]
    except OSError:
        return
    for pid in pids:
        try:
            os.kill(pid, 9)  # read from the VM's own cgroup a moment ago; nothing else is ever put there
        except ProcessLookupError:
            continue


def remove(paths: Paths, definition: Definition) -> None:
    """Delete a VM's definition and everything it owns; the definition goes first so that a cut is swept later."""
    lock = files.take_lock(f"{paths.data}/names.lock", wait=True)
    try:
        files.unlink_if_there(f"{paths.vm_data(definition.id)}/definition.json")
        shutil.rmtree(paths.vm_data(definition.id), ignore_errors=True)
        shutil.rmtree(paths.vm_runtime(definition.id), ignore_errors=True)
    finally:
        if lock is not None:
            os.close(lock)
