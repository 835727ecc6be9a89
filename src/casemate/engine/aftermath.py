"""After a run that ended without a word: say how, and leave nothing of it behind.

Whoever calls `settle` holds the VM's lock, so the supervisor is gone (the kernel released the lock) and nobody else
starts, removes or settles this VM. In order, so that a second crash at any point is settled by the next command:

    1  the emulator and the helpers are dead (they carry PDEATHSIG; a moment passes between lock and signal)
    2  the cgroups are gone
    3  exit.json says how the run ended, events.jsonl too
    4  run.json and the runtime files
"""

from __future__ import annotations

import json
import os
import select
import signal
import time

import msgspec

from casemate.engine import files
from casemate.engine.paths import Paths
from casemate.engine.ringlog import RingLog
from casemate.engine.vmfiles import Exit, Process, RunMark, RunningState, boot_id, now, salvage_struct
from casemate.sys.process import start_time_ticks

DEATH_DEADLINE_S = 5.0
LAST_WORDS_MAX_BYTES = 2000
EVENTS_MAX_BYTES = 256 * 1024
RUNTIME_FILES = ("control.sock", "state.json", "state.json.tmp", "exit.json", "exit.json.tmp")


class Settled(msgspec.Struct, frozen=True):
    """What `settle` found and did.

    Attributes:
        lost: how the run ended that nobody wrote down; None when there was none.
        gone: no process and no cgroup of it is left.
        recorded: exit.json is on disk.
    """

    lost: Exit | None
    gone: bool
    recorded: bool

    @property
    def clean(self) -> bool:
        """Nothing is left to do for a later command."""
        return self.gone and self.recorded


def settle(paths: Paths, vm_id: str) -> Settled:
    """Clean up after the last run of a VM if that is still to be done. The caller holds the VM's lock.

    The lock and its directory stay: they are the caller's (see `drop_runtime`). A full disk keeps the end from being
    written: then everything that the next command needs to say it again stays too.
    """
    runtime, data = paths.vm_runtime(vm_id), paths.vm_data(vm_id)
    mark = salvage_struct(f"{data}/run.json", RunMark)
    running = salvage_struct(f"{runtime}/state.json", RunningState)
    lost: Exit | None = None
    rebooted = mark is not None and mark.boot_id != boot_id()
    gone = rebooted or (_end_processes(running) and not remove_cgroups(_cgroups(mark, running)))
    recorded = True
    if os.path.lexists(f"{data}/run.json"):
        lost, recorded = _write_end(runtime, data, mark, rebooted=rebooted)
    if gone:
        from casemate.engine.labels import restore_labels  # here: ``ps`` shall not import what a launch needs

        restore_labels(paths, vm_id)
    if gone and recorded:
        files.unlink_if_there(f"{data}/run.json")
        for name in RUNTIME_FILES:
            files.unlink_if_there(f"{runtime}/{name}")
    return Settled(lost, gone, recorded)


def drop_runtime(paths: Paths, vm_id: str) -> None:
    """Remove a VM's runtime directory with the lock in it, which the caller holds: nobody can start in between."""
    files.remove_tree(paths.vm_runtime(vm_id))


def foresee(paths: Paths, vm_id: str) -> Exit:
    """What `settle` would write; for a command that cannot even take the lock (a full runtime directory)."""
    mark = salvage_struct(f"{paths.vm_data(vm_id)}/run.json", RunMark)
    return _reconstruct(paths.vm_data(vm_id), mark, rebooted=mark is not None and mark.boot_id != boot_id())


def _cgroups(mark: RunMark | None, running: RunningState | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*(mark.cgroups if mark else ()), *(running.cgroups if running else ()))))


def _end_processes(running: RunningState | None) -> bool:
    if running is None:
        return True
    processes = [*running.helpers, *([running.emulator] if running.emulator else [])]
    ended = [end_process(process) for process in processes]  # every one, whatever the others do
    return all(ended)


def _write_end(runtime: str, data: str, mark: RunMark | None, *, rebooted: bool) -> tuple[Exit | None, bool]:
    """exit.json of the lost run. Returns it (None: its supervisor had written it) and whether it is on disk."""
    started_at = mark.started_at if mark else ""
    before = salvage_struct(f"{data}/exit.json", Exit)
    if before is not None and mark is not None and before.started_at == started_at:
        return None, True  # it was killed during its own clean-up
    kept = salvage_struct(f"{runtime}/exit.json", Exit)
    from_full_disk = kept is not None and kept.started_at == started_at
    ended = kept if kept is not None and from_full_disk else _reconstruct(data, mark, rebooted=rebooted)
    try:
        files.write_json(f"{data}/exit.json", ended)
    except OSError:
        return ended, False
    line = {"time": ended.finished_at, "event": "exit", "reason": ended.reason, "code": ended.code}
    log = RingLog(f"{data}/events.jsonl", EVENTS_MAX_BYTES)
    log.append(json.dumps(line).encode() + b"\n")
    log.close()
    return ended, True


def _reconstruct(data: str, mark: RunMark | None, *, rebooted: bool) -> Exit:
    if mark is None:
        return Exit("supervisor died", 5, now(), detail="and run.json, which says when it started, is damaged")
    if rebooted:
        reason, detail = "host rebooted", "the host was restarted while the VM ran"
    else:
        reason, detail = "supervisor died", "it was killed or failed; the emulator died with it"
        words = _last_words(f"{data}/supervisor.log")
        detail = f"{detail}; its last words: {words}" if words else detail
    return Exit(reason, 5, now(), mark.started_at, detail, mark.uid, mark.accel)


def _last_words(path: str) -> str:
    """The last line of the supervisor's own log, printable."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LAST_WORDS_MAX_BYTES))
            lines = file.read(LAST_WORDS_MAX_BYTES).decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "".join(c for c in lines[-1] if c.isprintable())[:300] if lines else ""


def is_alive(process: Process | None) -> bool:
    """Whether this very process still runs: pid and start time, and not a zombie."""
    if process is None:
        return False
    pidfd = _open(process)
    if pidfd < 0:
        return False
    try:
        return not _has_ended(pidfd, 0)
    finally:
        os.close(pidfd)


def end_process(process: Process, deadline_s: float = DEATH_DEADLINE_S) -> bool:
    """Kill this very process, and nobody who got its pid later, and wait for its end.

    Returns:
        whether it is gone.
    """
    pidfd = _open(process)
    if pidfd < 0:
        return True
    try:
        if _has_ended(pidfd, 0):
            return True
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # not ours to kill; its parent-death signal is under way
        return _has_ended(pidfd, deadline_s)
    finally:
        os.close(pidfd)


def _open(process: Process) -> int:
    """A pidfd of this very process, or -1. The start time is read after the open: the pidfd then names that process."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except (ProcessLookupError, ValueError, OSError):
        return -1
    try:
        if start_time_ticks(process.pid) == process.start_ticks:
            return pidfd
    except (OSError, ValueError, IndexError):
        pass
    os.close(pidfd)
    return -1


def _has_ended(pidfd: int, wait_s: float) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(wait_s * 1000))


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
        except (ProcessLookupError, PermissionError):
            continue
