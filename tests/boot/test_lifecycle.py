"""Life and death of one real VM: every way to end, every process killed, and nothing left each time."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import inject
from tests.support.machines import READY, Machines, kill, machines, wait_dead, wait_for
from tests.support.tiny_guests import BIOS_OFF, BIOS_UP, bios_disk

from casemate.controls.policy import HostPolicy
from casemate.engine import aftermath, attendance, files, state
from casemate.engine.sigsys import killed_call
from casemate.errors import InputError
from casemate.spec.model import (
    Boot,
    Console,
    ConsoleDevice,
    Disk,
    DiskFormat,
    DiskMode,
    Firmware,
    Machine,
    MachineType,
    Network,
    NetworkMode,
    Spec,
)

pytestmark = pytest.mark.boot


@pytest.fixture
def vms() -> Iterator[Machines]:
    """Machines of one test."""
    with machines() as found:
        yield found


# ---- the guest decides ----------------------------------------------------------------------------------------------


def test_power_off(vms: Machines) -> None:
    definition, running = vms.boot("poweroff")
    end = vms.wait_end(definition)
    assert (end.reason, end.code) == ("guest powered off", 0)
    assert (end.uid, end.accel) == (running.uid, running.accel)
    vms.check_gone(definition, running)


def test_a_run_that_is_over_before_anybody_looks(vms: Machines) -> None:
    """All that it printed and how it ended, of a VM that removed itself: the connections are older."""
    disk = Disk(
        path=str(bios_disk(Path(vms.paths.data) / "disk.raw", "P")), format=DiskFormat.RAW, mode=DiskMode.READ_ONLY
    )
    machine = Machine(type=MachineType.Q35, memory_mib=64)
    spec = Spec(machine=machine, boot=Boot(firmware=Firmware.BIOS), disks=(disk,))
    definition = vms.define(spec, remove_on_exit=True)
    started = attendance.start(vms.paths, definition, HostPolicy(), follow="console")
    assert started.watch is not None
    assert started.console is not None
    wait_for("the removal", lambda: not os.path.exists(vms.paths.vm_data(definition.id)))
    end = started.watch.wait(10)
    assert end is not None
    assert (end.reason, end.code) == ("guest powered off", 0)
    with started.console.socket as console:
        printed = b"".join(iter(lambda: console.recv(65536), b""))
    assert [printed.count(text.encode()) for text in (BIOS_UP, BIOS_OFF)] == [1, 1]
    assert state.definitions(vms.paths) == []


def test_kernel_panic(vms: Machines) -> None:
    definition, running = vms.boot("panic", ready=False)
    end = vms.wait_end(definition)
    assert (end.reason, end.code) == ("guest kernel panic", 5)
    vms.check_gone(definition, running)


def test_reboot_restarts_the_guest_in_place(vms: Machines) -> None:
    definition, running = vms.boot("reboot")
    vms.wait_console(definition, READY, count=2)
    vm = vms.look(definition)
    assert vm.running is not None
    assert vm.running.emulator == running.emulator
    assert [event["event"] for event in vms.events(definition)].count("reset") >= 1


def test_time_out(vms: Machines) -> None:
    definition, running = vms.boot("loop", ready=False, timeout_s=3.0)
    end = vms.wait_end(definition)
    assert (end.reason, end.code) == ("time-out", 6)
    vms.check_gone(definition, running)


# ---- the user decides -----------------------------------------------------------------------------------------------


def test_stop_presses_the_power_button(vms: Machines) -> None:
    definition, running = vms.boot()
    vms.ask(definition, "stop", grace_s=60)
    end = vms.wait_end(definition)
    assert (end.reason, end.code, end.detail) == ("stopped", 0, "")
    assert "powerdown" in [event["event"] for event in vms.events(definition)]
    vms.check_gone(definition, running)


def test_stop_kills_a_guest_that_does_not_hear(vms: Machines) -> None:
    definition, running = vms.boot(ready=False)
    # Paused before its kernel runs: with no grace at all nothing can answer the button.
    vms.ask(definition, "pause")
    vms.ask(definition, "stop", grace_s=0)
    end = vms.wait_end(definition)
    assert (end.reason, end.code) == ("stopped", 0)
    vms.check_gone(definition, running)


def test_stop_waits_for_the_grace_only(vms: Machines) -> None:
    definition, running = vms.boot("reboot")  # its init never gets to the button
    vms.ask(definition, "stop", grace_s=0.5)
    end = vms.wait_end(definition)
    assert end.reason == "stopped"
    vms.check_gone(definition, running)


def test_pause_stops_the_guests_time_and_unpause_goes_on(vms: Machines) -> None:
    definition, _ = vms.boot("logflood")
    vms.ask(definition, "pause")
    assert vms.look(definition).state == "paused"
    wait_for("the console to fall silent", lambda: _quiet(vms, definition))
    vms.ask(definition, "unpause")
    assert vms.look(definition).state == "running"
    wait_for("the console to speak again", lambda: not _quiet(vms, definition))


def _quiet(vms: Machines, definition: state.Definition) -> bool:
    path = f"{vms.paths.vm_data(definition.id)}/console.log"
    before = (os.stat(path).st_ino, os.stat(path).st_size)
    time.sleep(0.3)
    return (os.stat(path).st_ino, os.stat(path).st_size) == before


def test_stop_then_start_at_once(vms: Machines) -> None:
    definition, first = vms.boot()
    vms.ask(definition, "kill")
    wait_for("the end", lambda: vms.look(definition).state == "exited")
    second = vms.start(definition)
    assert second.supervisor != first.supervisor
    assert vms.look(definition).state == "running"


# ---- kill -9 --------------------------------------------------------------------------------------------------------


def test_supervisor_killed(vms: Machines) -> None:
    definition, running = vms.boot()
    assert running.emulator is not None
    kill(running.supervisor.pid)
    assert wait_dead(running.emulator.pid, 1.0), "the emulator outlived its supervisor by a second"
    vm = vms.look(definition)
    assert vm.state == "exited"
    assert vm.exit is not None
    assert (vm.exit.reason, vm.exit.code, vm.exit.uid) == ("supervisor died", 5, running.uid)
    vms.check_gone(definition, running)
    assert vms.events(definition)[-1]["reason"] == "supervisor died"
    assert vms.look(definition).exit == vm.exit


def test_start_right_after_the_supervisor_was_killed(vms: Machines) -> None:
    definition, first = vms.boot(ready=False)
    kill(first.supervisor.pid)
    assert wait_dead(first.supervisor.pid, 10)
    second = vms.start(definition)  # nobody looked in between
    assert second.started_at != first.started_at
    vms.wait_console(definition, READY)


def test_remove_right_after_the_supervisor_was_killed(vms: Machines) -> None:
    definition, running = vms.boot(ready=False)
    kill(running.supervisor.pid)
    assert wait_dead(running.supervisor.pid, 10)
    state.remove(vms.paths, definition)
    vms.check_gone(definition, running)
    assert not os.path.exists(vms.paths.vm_data(definition.id))


def test_a_vm_that_removes_itself_is_removed_after_a_crash_too(vms: Machines) -> None:
    definition, running = vms.boot(ready=False, remove_on_exit=True)
    kill(running.supervisor.pid)
    assert wait_dead(running.supervisor.pid, 10)
    vm = vms.look(definition)
    assert vm.exit is not None
    assert vm.exit.reason == "supervisor died"
    vms.check_gone(definition, running)
    assert state.definitions(vms.paths) == []


def test_emulator_killed(vms: Machines) -> None:
    definition, running = vms.boot(ready=False)
    assert running.emulator is not None
    kill(running.emulator.pid)
    end = vms.wait_end(definition)
    assert (end.reason, end.code) == ("emulator killed", 5)
    assert "SIGKILL" in end.detail
    vms.check_gone(definition, running)


def test_emulator_aborts(vms: Machines) -> None:
    """As pid 1 of its namespace it ignores its own SIGABRT; the C library then executes an illegal instruction."""
    definition, running = vms.boot(ready=False)
    assert running.emulator is not None
    inject.call(running.emulator.pid, "abort")
    end = vms.wait_end(definition)
    assert (end.reason, end.code) == ("emulator killed", 5)
    assert "it crashed or aborted" in end.detail
    vms.check_gone(definition, running)


@pytest.mark.skipif(os.geteuid() != 0, reason="the kernel's log is root's")
def test_a_call_outside_the_allowlist_is_explained(vms: Machines) -> None:
    definition, running = vms.boot(ready=False)
    assert running.emulator is not None
    inject.call(running.emulator.pid, "personality")
    end = vms.wait_end(definition)
    assert (end.reason, end.code) == ("emulator killed", 5)
    assert "SIGSYS: its seccomp allowlist forbids" in end.detail
    wait_for("the kernel's log, or its silence", lambda: (v := vms.look(definition).exit) and not v.sigsys_pid)
    if not killed_call(running.emulator.pid):
        pytest.skip("the kernel left this record out of its log: it limits their rate")
    found = vms.look(definition).exit
    assert found is not None
    end = found
    assert end.detail.startswith('call personality (135) in thread "qemu-system-x86"; profile qemu-tcg+rng+console')
    assert "SIGSYS" in end.detail
    vms.check_gone(definition, running)
    assert vms.look(definition).exit == end


def test_a_stopped_emulator_can_still_be_killed(vms: Machines) -> None:
    definition, running = vms.boot(ready=False)
    assert running.emulator is not None
    kill(running.emulator.pid, signal.SIGSTOP)
    vms.ask(definition, "stop", grace_s=0.3)
    assert vms.wait_end(definition).reason == "stopped"
    vms.check_gone(definition, running)


@pytest.mark.skipif(not shutil.which("passt"), reason="package passt is not installed")
@pytest.mark.parametrize("victim", ["passt", "broker"])
def test_a_network_helper_killed(vms: Machines, victim: str) -> None:
    """The guest goes on without a network, everybody is told, and nothing of the helpers stays."""
    definition, running = vms.boot(network=Network(mode=NetworkMode.USER))
    helpers = {process.name: process for process in running.helpers}
    assert set(helpers) == {"passt", "broker"}
    kill(helpers[victim].pid)
    told = wait_for("the news", lambda: vms.ask(definition, "status")["health"])
    assert any("no network until it is restarted" in text for text in told)
    vm = vms.look(definition)
    assert vm.state == "running"
    wait_for("both helpers to be gone", lambda: not any(aftermath.is_alive(item) for item in running.helpers))
    assert "helper-died" in [event["event"] for event in vms.events(definition)]
    vms.ask(definition, "stop", grace_s=60)
    assert vms.wait_end(definition).reason == "stopped"
    vms.check_gone(definition, running)


@pytest.mark.skipif(not shutil.which("passt"), reason="package passt is not installed")
def test_supervisor_killed_with_a_network(vms: Machines) -> None:
    definition, running = vms.boot(ready=False, network=Network(mode=NetworkMode.USER))
    kill(running.supervisor.pid)
    assert vms.wait_end(definition).reason == "supervisor died"
    vms.check_gone(definition, running)


# ---- the host -------------------------------------------------------------------------------------------------------


def test_host_reboot(vms: Machines) -> None:
    definition, running = vms.boot(ready=False)
    kill(running.supervisor.pid)
    assert wait_dead(running.supervisor.pid, 10)
    # What a reboot leaves: another boot id, an empty /run, no cgroups, and pids that may belong to anybody.
    mark = state.read_struct(f"{vms.paths.vm_data(definition.id)}/run.json", state.RunMark)
    assert mark is not None
    ours = state.Process("casemate-sup", os.getpid(), running.supervisor.start_ticks)
    files.write_json(
        f"{vms.paths.vm_data(definition.id)}/run.json",
        state.RunMark("00000000-0000-0000-0000-000000000000", mark.started_at, ours, mark.cgroups),
    )
    for name in os.listdir(vms.paths.vm_runtime(definition.id)):
        path = Path(vms.paths.vm_runtime(definition.id)) / name
        path.rmdir() if path.is_dir() else path.unlink()
    os.rmdir(vms.paths.vm_runtime(definition.id))
    assert state.remove_cgroups(running.cgroups) == []
    vm = vms.look(definition)
    assert vm.exit is not None
    assert (vm.state, vm.exit.reason, vm.exit.code) == ("exited", "host rebooted", 5)
    again = vms.start(definition)
    vms.wait_console(definition, READY)
    assert again.started_at > running.started_at


def test_runtime_directory_taken_away(vms: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    """As logind does at logout. Nobody can reach the VM any more; it is not forgotten, and it can be ended."""
    definition, running = vms.boot()
    shutil.rmtree(vms.paths.vm_runtime(definition.id))
    assert vms.look(definition).state == "stopping"
    monkeypatch.setattr(state, "CLAIM_DEADLINE_S", 0.5)
    with pytest.raises(InputError, match="busy with"):
        state.claim(vms.paths, definition)
    os.kill(running.supervisor.pid, signal.SIGTERM)  # what its own check does within half a minute
    end = vms.wait_end(definition)
    assert end.reason in {"stopped", "runtime directory removed"}
    vms.check_gone(definition, running)


# ---- console --------------------------------------------------------------------------------------------------------


def test_a_guest_that_floods_its_console(vms: Machines) -> None:
    definition, running = vms.boot("logflood", console=Console(device=ConsoleDevice.VIRTIO, log_max_kib=64))
    directory = Path(vms.paths.vm_data(definition.id))
    sleeper, awake = vms.connect(definition), vms.connect(definition)
    for connection in (sleeper, awake):
        connection.sendall(b'{"do": "attach"}\n')
    received, largest, resident = 0, 0, []
    awake.settimeout(60)
    while received < 1 << 20:
        data = awake.recv(1 << 16)
        assert data, "the client that reads was dropped"
        received += len(data)
        largest = max(largest, sum(path.stat().st_size for path in directory.glob("console.log*")))
        resident.append(_rss_kib(running.supervisor.pid))
    assert 0 < largest <= 64 * 1024
    assert max(resident) - resident[0] < 1024
    sleeper.settimeout(60)
    total = 0
    while data := sleeper.recv(1 << 20):  # it ends: the one that slept was dropped
        total += len(data)
    assert total < received
    awake.close()
    sleeper.close()
    assert vms.ask(definition, "status")["phase"] == "running"


def _rss_kib(pid: int) -> int:
    line = next(row for row in Path(f"/proc/{pid}/status").read_text().splitlines() if row.startswith("VmRSS:"))
    return int(line.split()[1])
