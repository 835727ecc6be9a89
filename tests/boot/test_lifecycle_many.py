"""Several commands and several VMs at once: one winner, a clear word for the others, nothing leaked, memory counted."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.machines import READY, Machines, kill, machines, wait_dead, wait_for

from casemate.controls.policy import HostPolicy
from casemate.engine import state
from casemate.engine.start import start
from casemate.engine.vmfiles import Definition, RunningState
from casemate.errors import CasemateError, InputError

pytestmark = pytest.mark.boot
PSS_MAX_KIB = 8 * 1024
RACES = 6
GONE_S = 5.0


@pytest.fixture
def vms() -> Iterator[Machines]:
    """Machines of one test."""
    with machines() as found:
        yield found


def at_once(*jobs: Callable[[], Any]) -> list[Any]:
    """Run each job in a process of its own, released together; gives "ok" or (error class, message) of each."""
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(len(jobs))
    pipes = []
    for job in jobs:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_one, args=(gate, job, theirs))
        process.start()
        theirs.close()
        pipes.append((process, ours))
    results = [pipe.recv() for _, pipe in pipes]
    for process, _ in pipes:
        process.join()
    return results


def _one(gate: Any, job: Callable[[], Any], pipe: Any) -> None:
    gate.wait()
    try:
        job()
    except BaseException as fault:
        pipe.send((type(fault).__name__, str(fault)))
    else:
        pipe.send("ok")


def test_started_twice_at_once(vms: Machines) -> None:
    for _ in range(RACES):
        definition = vms.define(vms.spec())
        results = at_once(
            lambda d=definition: start(vms.paths, d, HostPolicy()),  # type: ignore[misc]
            lambda d=definition: start(vms.paths, d, HostPolicy()),  # type: ignore[misc]
        )
        assert results.count("ok") == 1, results
        (loser,) = (result for result in results if result != "ok")
        assert loser[0] == "InputError"
        assert "already runs" in loser[1]
        assert vms.look(definition).state == "running"
        end_now(vms, definition)


def test_started_and_removed_at_once(vms: Machines) -> None:
    for _ in range(RACES):
        definition = vms.define(vms.spec())
        started, removed = at_once(
            lambda d=definition: start(vms.paths, d, HostPolicy()),  # type: ignore[misc]
            lambda d=definition: state.remove(vms.paths, d),  # type: ignore[misc]
        )
        if started == "ok":
            assert removed[0] == "InputError", removed
            assert "already runs" in removed[1] or "busy" in removed[1]
            assert vms.look(definition).state == "running"
            end_now(vms, definition)
        else:
            assert removed == "ok", (started, removed)
            assert started[0] == "InputError", started
            assert "was removed meanwhile" in started[1]
        assert is_gone(vms.paths.vm_runtime(definition.id)), (started, removed)


def is_gone(path: str) -> bool:
    """Whether a directory goes away: the last thing that a supervisor does, after its word of the end is out."""
    end = time.monotonic() + GONE_S
    while os.path.exists(path):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def test_stopped_and_removed_at_once(vms: Machines) -> None:
    for _ in range(RACES):
        definition = vms.define(vms.spec())
        running = vms.start(definition)
        stopped, removed = at_once(
            lambda d=definition: vms.ask(d, "kill"),  # type: ignore[misc]
            lambda d=definition: state.remove(vms.paths, d),  # type: ignore[misc]
        )
        assert stopped == "ok"
        if removed != "ok":
            assert removed[0] == "InputError"
            assert "already runs" in removed[1]
            vms.wait_end(definition)
        vms.check_gone(definition, running)


def test_looked_at_while_it_starts_and_dies(vms: Machines) -> None:
    """Looking takes no lock and clean-up is done once, whoever looks."""
    definition = vms.define(vms.spec())
    seen: set[str] = set()
    faults: list[BaseException] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            try:
                seen.add(vms.look(definition).state)
            except BaseException as fault:
                faults.append(fault)

    watchers = [threading.Thread(target=watch) for _ in range(3)]
    for watcher in watchers:
        watcher.start()
    try:
        for _ in range(3):
            running = vms.start(definition)
            kill(running.supervisor.pid)
            vms.wait_end(definition)
            vms.check_gone(definition, running)
    finally:
        over.set()
        for watcher in watchers:
            watcher.join()
    assert faults == []
    assert seen <= {"created", "starting", "running", "exited"}
    assert {"running", "exited"} <= seen


def test_one_name_claimed_by_many(vms: Machines) -> None:
    import msgspec

    spec = msgspec.structs.replace(vms.spec(), name="wanted")
    results = at_once(*[lambda: state.create(vms.paths, spec)] * 8)
    assert results.count("ok") == 1
    for result in results:
        assert result == "ok" or (result[0] == "InputError" and "the name wanted is taken" in result[1])
    assert [definition.name for definition in state.definitions(vms.paths)] == ["wanted"]


def test_commands_killed_in_the_middle_leave_nothing_that_stays(vms: Machines) -> None:
    """A launch that is killed at some moment, many moments: the next command finds a VM that can start."""
    definition = vms.define(vms.spec())
    for delay_ms in (5, 20, 40, 60, 80, 100, 130, 160, 200, 260):
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                start(vms.paths, definition, HostPolicy())
            os._exit(0)
        time.sleep(delay_ms / 1000)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        # The supervisor-to-be goes on without the command that asked for it, or never began.
        vm = wait_for("a verdict", lambda: (v := vms.look(definition)).state != "starting" and v)
        if vm.running is not None:
            kill(vm.running.supervisor.pid)
            assert vms.wait_end(definition).reason == "supervisor died"
            vms.check_gone(definition, vm.running)
    vms.start(definition)
    vms.wait_console(definition, READY)


def test_supervisors_killed_during_the_launch(vms: Machines) -> None:
    """The process that launches is killed at some moment: no emulator, mount or cgroup is left."""
    definition = vms.define(vms.spec())
    mark_path = f"{vms.paths.vm_data(definition.id)}/run.json"
    told = 0
    for delay_ms in (0, 10, 20, 30, 40, 60, 80, 100, 130):
        result: list[CasemateError | None] = []

        def run(into: list[CasemateError | None] = result) -> None:
            try:
                start(vms.paths, definition, HostPolicy())
                into.append(None)
            except CasemateError as fault:
                into.append(fault)

        thread = threading.Thread(target=run)
        thread.start()
        wait_for("run.json", lambda into=result: into or os.path.exists(mark_path))
        mark = state.read_struct(mark_path, state.RunMark)
        time.sleep(delay_ms / 1000)
        assert mark is not None
        assert mark.supervisor is not None
        kill(mark.supervisor.pid)
        thread.join()
        assert wait_dead(mark.supervisor.pid, 20)
        if result[0] is not None:
            told += 1
            assert "the supervisor died during the launch" in str(result[0])
        assert vms.look(definition).state == "exited"
        running = RunningState(
            definition.id, "", "", mark.supervisor, None, (), mark.uid, 0, "", mark.started_at, mark.cgroups
        )
        vms.check_gone(definition, running)
        wait_for("no emulator", lambda: _emulators(definition) == [])
    assert told > 0
    vms.start(definition)


def _emulators(definition: Definition) -> list[int]:
    """Processes whose arguments name this VM."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{name}/cmdline").read_bytes()
                if f"guest=casemate-{definition.id}".encode() in command:
                    found.append(int(name))
    return found


def end_now(vms: Machines, definition: Definition) -> None:
    """Kill a VM and wait."""
    with contextlib.suppress(InputError):
        vms.ask(definition, "kill")
    vms.wait_end(definition)


def test_a_long_lived_caller_leaks_nothing(vms: Machines) -> None:
    warm = vms.define(vms.spec())
    vms.start(warm)
    end_now(vms, warm)
    before = descriptors()
    for _ in range(6):
        definition = vms.define(vms.spec())
        vms.start(definition)
        end_now(vms, definition)
        state.remove(vms.paths, definition)
        vms.made.remove(definition)
    assert descriptors() == before
    assert children() == []


def test_a_failed_start_leaks_nothing(vms: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    definition = vms.define(vms.spec())
    vms.start(definition)
    before = descriptors()
    for _ in range(5):
        with pytest.raises(InputError):
            start(vms.paths, definition, HostPolicy())
    monkeypatch.setattr("casemate.engine.start._launch_and_exec", None)  # the launch breaks in the supervisor-to-be
    other = vms.define(vms.spec())
    for _ in range(3):
        with pytest.raises(CasemateError, match="the launch failed"):
            start(vms.paths, other, HostPolicy())
        assert vms.look(other).state == "created"
        assert is_gone(vms.paths.vm_runtime(other.id))
    assert descriptors() == before
    assert children() == []


def descriptors() -> list[str]:
    """What our open descriptors are."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{name}").split(":")[0])
    return sorted(found)


def children() -> list[int]:
    """Children of ours, zombies too."""
    return [int(word) for word in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


@pytest.mark.parametrize("disposition", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_caller_with_threads_and_signals_of_its_own(vms: Machines, disposition: signal.Handlers) -> None:
    """Threads that hold locks and allocate, SIGCHLD ignored, SIGTERM blocked: none of it reaches the VM."""
    over = threading.Event()

    def busy() -> None:
        held: list[bytes] = []
        while not over.is_set():
            held = [os.urandom(4096) for _ in range(50)]
        del held

    threads = [threading.Thread(target=busy) for _ in range(4)]
    before = signal.signal(signal.SIGCHLD, disposition)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            definition = vms.define(vms.spec())
            running = vms.start(definition)
            wait_for("the supervisor", lambda r=running: _name(r.supervisor.pid) == "casemate-sup")
            status = Path(f"/proc/{running.supervisor.pid}/status").read_text()
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            assert int(fields["SigBlk"], 16) == 0
            assert not int(fields["SigIgn"], 16) >> (signal.SIGCHLD - 1) & 1
            os.kill(running.supervisor.pid, signal.SIGTERM)
            vms.ask(definition, "kill")
            vms.wait_end(definition)
            vms.check_gone(definition, running)
    finally:
        over.set()
        for thread in threads:
            thread.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGCHLD, before)


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def test_threads_that_start_vms_do_not_hold_each_others_locks(vms: Machines) -> None:
    definitions = [vms.define(vms.spec()) for _ in range(4)]
    faults: list[BaseException] = []

    def run(definition: Definition) -> None:
        try:
            running = vms.start(definition)
            wait_for("the supervisor", lambda: _name(running.supervisor.pid) == "casemate-sup")
            vms.ask(definition, "kill")
            vms.wait_end(definition)
            vms.start(definition)  # its lock is free although the others are being launched
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=run, args=(definition,)) for definition in definitions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    for definition in definitions:
        running = vms.look(definition).running
        assert running is not None
        links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{running.supervisor.pid}/fd")]
        locks = [link for link in links if link.endswith("/lock")]
        assert locks == [f"{vms.paths.vm_runtime(definition.id)}/lock"]


def test_many_at_once_all_come_up(vms: Machines) -> None:
    """Eight here; fifty by hand, see the decision record of the supervisor."""
    definitions = [vms.define(vms.spec()) for _ in range(8)]
    results = at_once(*[lambda d=d: start(vms.paths, d, HostPolicy()) for d in definitions])
    assert results == ["ok"] * 8
    for definition in definitions:
        vms.wait_console(definition, READY)
    states = [vms.look(definition).running for definition in definitions]
    assert len({running.uid for running in states if running is not None}) == 8
    for definition, running in zip(definitions, states, strict=True):
        assert running is not None
        kill(running.supervisor.pid)
        assert wait_dead(running.supervisor.pid, 20)
        assert vms.look(definition).state == "exited"
        vms.check_gone(definition, running)


def test_a_supervisor_is_small(vms: Machines) -> None:
    """Proportional set size, averaged over four; the promise is for twenty, which share more."""
    found = []
    for _ in range(4):
        definition, running = vms.boot(ready=False)
        wait_for("the supervisor", lambda r=running: _name(r.supervisor.pid) == "casemate-sup")
        vms.ask(definition, "status")
        found.append(pss_kib(running.supervisor.pid))
    assert sum(found) / len(found) <= PSS_MAX_KIB, found


def pss_kib(pid: int) -> int:
    """Pss of /proc/PID/smaps_rollup."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise AssertionError("no Pss")
