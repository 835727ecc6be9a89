"""Full disks: a small tmpfs over the data or the runtime directory, in a mount namespace of the test's own."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.machines import Machines, kill, machines, wait_dead, wait_for

from casemate.engine import state
from casemate.engine.paths import prepare
from casemate.errors import HostError
from casemate.sys import mount, process

pytestmark = [
    pytest.mark.boot,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs"),
]
TMPFS_BYTES = 2 << 20


def in_private_mounts(scenario: Callable[[Machines], None], where: str) -> None:
    """Run ``scenario`` in a child with a tmpfs of 2 MiB over the machines' ``where`` (data or run)."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        said = b"ok"
        try:
            process.unshare(process.CLONE_NEWNS)
            mount.mount(None, "/", None, mount.MS_REC | mount.MS_PRIVATE)
            with machines() as vms:
                place = os.path.dirname(vms.paths.data) + f"/{where}"
                mount.mount("small", place, "tmpfs", mount.MS_NOSUID, f"size={TMPFS_BYTES},mode=700")
                try:
                    prepare(vms.paths)
                    scenario(vms)
                finally:
                    give_room(place)
                    vms.end_all()
                    vms.made.clear()
                    mount.umount2(place, mount.MNT_DETACH)
        except BaseException:
            said = traceback.format_exc().encode()
        os.write(write_end, said)
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    assert said == b"ok", said.decode()


def fill(directory: str) -> None:
    """Until not one more byte fits."""
    descriptor = os.open(f"{directory}/ballast", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while os.write(descriptor, b"x" * size):
                    pass
            except OSError:
                continue
    finally:
        os.close(descriptor)


def give_room(directory: str) -> None:
    """Undo `fill`."""
    Path(f"{directory}/ballast").unlink(missing_ok=True)


def test_launch_on_a_full_data_disk_is_refused() -> None:
    def scenario(vms: Machines) -> None:
        definition = vms.define(vms.spec())
        fill(vms.paths.data)
        with pytest.raises(HostError) as caught:
            vms.start(definition)
        assert "no room for the VM's files" in str(caught.value)
        assert "No space left on device" in caught.value.got
        assert "df -h" in caught.value.next_step
        assert vms.look(definition).state == "created"
        assert not os.path.exists(vms.paths.vm_runtime(definition.id))
        give_room(vms.paths.data)
        vms.start(definition)

    in_private_mounts(scenario, "data")


def test_define_on_a_full_data_disk_leaves_nothing() -> None:
    def scenario(vms: Machines) -> None:
        fill(vms.paths.data)
        with pytest.raises(OSError, match="No space left"):
            vms.define(vms.spec())
        assert os.listdir(f"{vms.paths.data}/vms") == []

    in_private_mounts(scenario, "data")


def test_data_disk_fills_up_while_the_vm_runs() -> None:
    def scenario(vms: Machines) -> None:
        definition, running = vms.boot("logflood")
        fill(vms.paths.data)
        dropped = wait_for("lost console bytes", lambda: vms.ask(definition, "status")["console_dropped_bytes"])
        assert dropped > 0
        assert vms.ask(definition, "pause") == {"ok": True, "result": {}}
        vms.ask(definition, "kill")
        # exit.json has no room; the end is told all the same, and told again, until there is room.
        end = vms.wait_end(definition)
        assert (end.reason, end.code) == ("killed", 5)
        again = vms.look(definition).exit
        assert again is not None
        assert (again.reason, again.finished_at) == ("killed", end.finished_at)
        give_room(vms.paths.data)
        assert vms.look(definition).exit == again
        vms.check_gone(definition, running)
        assert os.path.exists(f"{vms.paths.vm_data(definition.id)}/exit.json")

    in_private_mounts(scenario, "data")


def test_supervisor_killed_while_the_data_disk_is_full() -> None:
    def scenario(vms: Machines) -> None:
        definition, running = vms.boot(ready=False)
        fill(vms.paths.data)
        kill(running.supervisor.pid, signal.SIGKILL)
        assert wait_dead(running.supervisor.pid, 10)
        vm = vms.look(definition)
        assert vm.exit is not None
        assert vm.exit.reason == "supervisor died"
        with pytest.raises(HostError, match="cannot be cleaned up"):
            vms.start(definition)
        state.remove(vms.paths, definition)  # a full disk must not keep anybody from deleting
        vms.check_gone(definition, running)

    in_private_mounts(scenario, "data")


def test_launch_with_a_full_runtime_directory_is_refused() -> None:
    def scenario(vms: Machines) -> None:
        definition = vms.define(vms.spec())
        fill(vms.paths.runtime)
        with pytest.raises(HostError) as caught:
            vms.start(definition)
        assert "No space left on device" in str(caught.value)
        assert vms.look(definition).state == "created"
        give_room(vms.paths.runtime)
        vms.start(definition)

    in_private_mounts(scenario, "run")


def test_runtime_directory_fills_up_while_the_vm_runs() -> None:
    def scenario(vms: Machines) -> None:
        definition, running = vms.boot(ready=False)
        fill(vms.paths.runtime)
        vms.ask(definition, "pause")
        assert vms.look(definition).state == "running"  # the last state that could be written
        assert vms.ask(definition, "status")["phase"] == "paused"
        vms.ask(definition, "kill")
        end = vms.wait_end(definition)
        assert end.reason == "killed"
        vms.check_gone(definition, running)

    in_private_mounts(scenario, "run")


def test_supervisor_killed_while_the_runtime_directory_is_full() -> None:
    def scenario(vms: Machines) -> None:
        definition, running = vms.boot(ready=False)
        fill(vms.paths.runtime)
        kill(running.supervisor.pid, signal.SIGKILL)
        assert wait_dead(running.supervisor.pid, 10)
        vm = vms.look(definition)
        assert vm.exit is not None
        assert vm.exit.reason == "supervisor died"
        vms.check_gone(definition, running)

    in_private_mounts(scenario, "run")
