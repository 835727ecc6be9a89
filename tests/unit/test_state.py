"""State on disk without a VM: locks, names, torn directories, damaged files, lost runs, and who may clean up."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from casemate.cli import life
from casemate.engine import aftermath, control, ending, files, sigsys, state
from casemate.engine.paths import Paths, prepare
from casemate.engine.sigsys import describe, killed_call
from casemate.engine.vmfiles import Definition, Exit, Process, RunMark, RunningState, this_process
from casemate.errors import CasemateError, HostError, InputError
from casemate.spec.override import builtin_spec
from casemate.sys.process import start_time_ticks

SPEC = builtin_spec("/k", "/i", "")
NOBODY = Process("ghost", 1, 1)  # pid 1 lives, and did not start at tick 1


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """Base directories of a test."""
    found = Paths(str(tmp_path / "run"), str(tmp_path / "data"), str(tmp_path / "cache"))
    prepare(found)
    return found


@pytest.fixture
def sleeper() -> Iterator[Process]:
    """A process of ours that waits."""
    child = subprocess.Popen(["/bin/sleep", "600"])
    yield Process("sleep", child.pid, start_time_ticks(child.pid))
    child.kill()
    child.wait()


def running(
    definition: Definition, supervisor: Process, emulator: Process | None = None, **more: object
) -> RunningState:
    """A state.json."""
    fields: dict[str, object] = {"cgroups": (), "health": (), **more}
    return RunningState(
        definition.id,
        definition.name,
        "running",
        supervisor,
        emulator,
        (),
        5,
        5,
        "tcg",
        "then",
        **fields,  # type: ignore[arg-type]
    )


def begin(paths: Paths, definition: Definition, supervisor: Process | None = NOBODY, **more: object) -> None:
    """The files of a run whose supervisor is (as a rule) gone."""
    runtime = paths.vm_runtime(definition.id)
    for directory in (runtime, f"{runtime}/root"):
        os.mkdir(directory, 0o700)
    Path(f"{runtime}/lock").touch(0o600)
    fields: dict[str, object] = {"boot_id": state.boot_id(), "started_at": "then", "supervisor": supervisor, **more}
    files.write_json(f"{paths.vm_data(definition.id)}/run.json", RunMark(**fields))  # type: ignore[arg-type]
    if supervisor is not None:
        files.write_json(f"{runtime}/state.json", running(definition, supervisor))


def names_in(directory: str) -> set[str]:
    """What is in a directory; empty when it is gone."""
    return set(os.listdir(directory)) if os.path.isdir(directory) else set()


# ---- files and locks ------------------------------------------------------------------------------------------------


def test_a_lock_belongs_to_its_descriptor_and_outlives_fork(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    assert not files.is_locked(path)
    lock = files.take_lock(path, wait=False)
    assert lock is not None
    assert files.take_lock(path, wait=False) is None
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    os.close(lock)
    assert files.is_locked(path)  # the child has a copy
    os.close(write_end)
    os.waitpid(child, 0)
    os.close(read_end)
    assert not files.is_locked(path)


def test_looking_at_a_lock_never_takes_it(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    Path(path).touch()
    over = threading.Event()
    watchers = [threading.Thread(target=lambda: [files.is_locked(path) for _ in iter(over.is_set, True)]) for _ in "ab"]
    for watcher in watchers:
        watcher.start()
    try:
        for _ in range(500):
            lock = files.take_lock(path, wait=False)
            assert lock is not None, "a mere look was in the way"
            os.close(lock)
    finally:
        over.set()
        for watcher in watchers:
            watcher.join()


def test_a_lock_file_that_was_replaced_is_taken_anew(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    first = files.take_lock(path, wait=False)
    os.unlink(path)
    second = files.take_lock(path, wait=False)
    assert first is not None
    assert second is not None
    assert files.is_locked(path)


def test_waiting_for_a_lock_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOCK_DEADLINE_S", 0.05)
    path = str(tmp_path / "lock")
    lock = files.take_lock(path, wait=True)
    with pytest.raises(HostError, match="another casemate command holds") as caught:
        files.take_lock(path, wait=True)
    assert "fuser" in caught.value.next_step
    assert lock is not None
    os.close(lock)


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    files.write_atomic(str(path), b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        files.write_atomic(str(path), b"new")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_reads_are_bounded_and_refuse_links_and_fifos(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    assert files.read_bounded(str(tmp_path / "f"), 5) == b"12345"
    with pytest.raises(OSError, match="File too large"):
        files.read_bounded(str(tmp_path / "f"), 4)
    (tmp_path / "link").symlink_to("f")
    with pytest.raises(OSError, match="symbolic links"):
        files.read_bounded(str(tmp_path / "link"))
    os.mkfifo(tmp_path / "fifo")
    assert files.read_bounded(str(tmp_path / "fifo")) == b""  # does not wait for a writer


# ---- definitions ----------------------------------------------------------------------------------------------------


def test_names_are_unique_and_found_by_prefix(paths: Paths) -> None:
    import msgspec

    first = state.create(paths, msgspec.structs.replace(SPEC, name="web"))
    with pytest.raises(InputError, match="the name web is taken"):
        state.create(paths, msgspec.structs.replace(SPEC, name="web"))
    assert state.resolve(paths, "web") == first
    assert state.resolve(paths, first.id[:6]) == first
    with pytest.raises(InputError, match="no such VM"):
        state.resolve(paths, "we")
    with pytest.raises(InputError, match="no such VM"):
        state.resolve(paths, "")
    second = Definition("f" * 16, "x", SPEC, "later")
    third = Definition("f" * 15 + "e", "y", SPEC, "later")
    for item in (second, third):
        os.mkdir(paths.vm_data(item.id), 0o700)
        files.write_json(f"{paths.vm_data(item.id)}/definition.json", item)
    with pytest.raises(InputError, match="names several VMs"):
        state.resolve(paths, "fff")


def test_torn_directories_are_swept_but_not_while_someone_creates(paths: Paths) -> None:
    torn = paths.vm_data("0" * 16)
    os.mkdir(torn)
    Path(f"{torn}/definition.json.abc.tmp").touch()
    lock = files.take_lock(f"{paths.data}/names.lock", wait=False)
    assert state.definitions(paths) == []
    assert os.path.exists(torn)
    assert lock is not None
    os.close(lock)
    assert state.definitions(paths) == []
    assert not os.path.exists(torn)


def test_what_is_not_a_vms_directory_is_left_alone(paths: Paths) -> None:
    for name in ("lost+found", "0" * 15, "G" * 16):
        os.mkdir(f"{paths.data}/vms/{name}")
        os.mkdir(f"{paths.runtime}/vms/{name}")
    state.definitions(paths)
    assert names_in(f"{paths.data}/vms") == {"lost+found", "0" * 15, "G" * 16}
    assert len(names_in(f"{paths.runtime}/vms")) == 3


def test_a_damaged_definition_is_not_deleted(paths: Paths) -> None:
    os.mkdir(paths.vm_data("0" * 16))
    Path(f"{paths.vm_data('0' * 16)}/definition.json").write_text("{")
    (found,) = state.definitions(paths)
    assert found.name == found.id == "0" * 16
    assert found.damaged.startswith("definition.json: ")
    assert state.look(paths, found).state == "damaged"
    assert names_in(paths.vm_data("0" * 16)) == {"definition.json"}


def test_a_damaged_definition_can_be_removed_and_nothing_else(paths: Paths) -> None:
    os.mkdir(paths.vm_data("0" * 16))
    Path(f"{paths.vm_data('0' * 16)}/definition.json").write_text("[]")
    found = state.resolve(paths, "0000")
    with pytest.raises(InputError, match="is damaged") as refused:
        state.claim(paths, found)
    assert refused.value.next_step == f"casemate rm {'0' * 16} removes that VM"
    state.remove(paths, found)
    assert state.definitions(paths) == []
    assert names_in(f"{paths.data}/vms") == names_in(f"{paths.runtime}/vms") == set()


def test_a_definition_that_cannot_be_written_leaves_nothing(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, durable: bool) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_atomic", full)
    with pytest.raises(OSError, match="No space"):
        state.create(paths, SPEC)
    assert names_in(f"{paths.data}/vms") == set()


# ---- runs that were lost --------------------------------------------------------------------------------------------


def test_a_lost_run_is_told_once_and_cleaned_up(paths: Paths) -> None:
    definition = state.create(paths, SPEC)
    begin(paths, definition, uid=77, accel="tcg")
    Path(f"{paths.vm_data(definition.id)}/supervisor.log").write_text("Traceback\nMemoryError: \x1b[31mout\n")
    vm = state.look(paths, definition)
    assert vm.state == "exited"
    assert vm.exit is not None
    assert (vm.exit.reason, vm.exit.code, vm.exit.uid, vm.exit.accel) == ("supervisor died", 5, 77, "tcg")
    assert vm.exit.detail.endswith("its last words: MemoryError: [31mout")
    assert names_in(paths.vm_runtime(definition.id)) == set()
    assert "run.json" not in names_in(paths.vm_data(definition.id))
    assert state.look(paths, definition) == vm


def test_another_boot_is_told_apart_and_kills_nobody(paths: Paths, sleeper: Process) -> None:
    definition = state.create(paths, SPEC)
    # After a reboot the numbers may fit a process that has nothing to do with us.
    begin(paths, definition, sleeper, boot_id="another")
    files.write_json(f"{paths.vm_runtime(definition.id)}/state.json", running(definition, sleeper, sleeper))
    vm = state.look(paths, definition)
    assert vm.exit is not None
    assert vm.exit.reason == "host rebooted"
    assert aftermath.is_alive(sleeper)


def test_an_emulator_that_outlived_its_supervisor_is_ended(paths: Paths, sleeper: Process) -> None:
    definition = state.create(paths, SPEC)
    begin(paths, definition)
    files.write_json(f"{paths.vm_runtime(definition.id)}/state.json", running(definition, NOBODY, sleeper))
    assert state.look(paths, definition).state == "exited"
    assert not aftermath.is_alive(sleeper)


def test_a_pid_that_belongs_to_someone_else_by_now_is_left_alone(paths: Paths, sleeper: Process) -> None:
    definition = state.create(paths, SPEC)
    begin(paths, definition)
    older = Process("qemu", sleeper.pid, sleeper.start_ticks - 1)
    files.write_json(f"{paths.vm_runtime(definition.id)}/state.json", running(definition, NOBODY, older))
    assert state.look(paths, definition).state == "exited"
    assert aftermath.is_alive(sleeper)


def test_an_end_that_the_supervisor_wrote_is_kept(paths: Paths) -> None:
    definition = state.create(paths, SPEC)
    begin(paths, definition)
    written = Exit("guest powered off", 0, "now", "then")
    files.write_json(f"{paths.vm_data(definition.id)}/exit.json", written)
    assert state.look(paths, definition).exit == written
    assert names_in(paths.vm_runtime(definition.id)) == set()


def test_an_end_of_an_earlier_run_is_not_taken_for_this_one(paths: Paths) -> None:
    definition = state.create(paths, SPEC)
    begin(paths, definition)
    files.write_json(f"{paths.vm_data(definition.id)}/exit.json", Exit("guest powered off", 0, "now", "earlier"))
    vm = state.look(paths, definition)
    assert vm.exit is not None
    assert vm.exit.reason == "supervisor died"


def test_an_end_kept_in_the_runtime_directory_is_used(paths: Paths) -> None:
    definition = state.create(paths, SPEC)
    begin(paths, definition)
    kept = Exit("time-out", 6, "now", "then")
    files.write_json(f"{paths.vm_runtime(definition.id)}/exit.json", kept)
    assert state.look(paths, definition).exit == kept
    assert names_in(paths.vm_runtime(definition.id)) == set()


@pytest.mark.parametrize("name", ["run.json", "state.json", "exit.json"])
@pytest.mark.parametrize("damage", [b"", b"{", b'{"reason": 1}', b"\xff\xff"])
def test_damaged_files_are_survived(paths: Paths, name: str, damage: bytes) -> None:
    definition = state.create(paths, SPEC)
    begin(paths, definition)
    where = paths.vm_runtime(definition.id) if name == "state.json" else paths.vm_data(definition.id)
    Path(f"{where}/{name}").write_bytes(damage)
    vm = state.look(paths, definition)
    assert vm.state == "exited"
    assert vm.exit is not None
    assert vm.exit.code == 5
    assert names_in(paths.vm_runtime(definition.id)) == set()


def test_a_damaged_end_without_a_lost_run_says_so(paths: Paths) -> None:
    definition = state.create(paths, SPEC)
    Path(f"{paths.vm_data(definition.id)}/exit.json").write_text("{")
    vm = state.look(paths, definition)
    assert vm.exit is not None
    assert vm.exit.reason == "unknown"


def test_reading_a_damaged_file_strictly_names_it(paths: Paths) -> None:
    path = f"{paths.data}/exit.json"
    Path(path).write_text("{")
    with pytest.raises(CasemateError, match="is damaged"):
        state.read_struct(path, Exit)


def test_a_vm_that_removes_itself_is_removed_with_its_lost_run(paths: Paths) -> None:
    definition = state.create(paths, SPEC, remove_on_exit=True)
    begin(paths, definition)
    vm = state.look(paths, definition)
    assert vm.exit is not None
    assert not os.path.exists(paths.vm_data(definition.id))
    assert state.definitions(paths) == []


def test_a_runtime_directory_without_a_definition_is_swept(paths: Paths) -> None:
    os.makedirs(f"{paths.vm_runtime('a' * 16)}/root")
    Path(f"{paths.vm_runtime('a' * 16)}/lock").touch()
    state.definitions(paths)
    assert names_in(f"{paths.runtime}/vms") == set()


def test_a_runtime_directory_in_use_is_not_swept(paths: Paths) -> None:
    os.makedirs(paths.vm_runtime("a" * 16))
    lock = files.take_lock(f"{paths.vm_runtime('a' * 16)}/lock", wait=False)
    state.definitions(paths)
    assert names_in(f"{paths.runtime}/vms") == {"a" * 16}
    assert lock is not None
    os.close(lock)


def test_two_looks_clean_up_once(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    definition = state.create(paths, SPEC)
    begin(paths, definition)
    calls: list[float] = []
    real: Callable[..., aftermath.Settled] = aftermath.settle

    def slow(*arguments: str) -> aftermath.Settled:
        calls.append(time.monotonic())
        time.sleep(0.2)
        return real(*arguments)

    monkeypatch.setattr(state, "settle", slow)
    found: list[state.Vm] = []
    threads = [threading.Thread(target=lambda: found.append(state.look(paths, definition))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert {vm.exit.reason for vm in found if vm.exit} == {"supervisor died"}
    assert len(found) == 4


# ---- who runs -------------------------------------------------------------------------------------------------------


def test_a_held_lock_and_a_live_supervisor_is_a_running_vm(paths: Paths) -> None:
    definition = state.create(paths, SPEC)
    begin(paths, definition, this_process("casemate-sup"))
    lock = files.take_lock(f"{paths.vm_runtime(definition.id)}/lock", wait=False)
    assert state.look(paths, definition).state == "running"
    with pytest.raises(InputError, match="already runs"):
        state.claim(paths, definition)
    with pytest.raises(InputError, match="already runs"):
        state.remove(paths, definition)
    os.unlink(f"{paths.vm_runtime(definition.id)}/state.json")
    assert state.look(paths, definition).state == "starting"
    assert lock is not None
    os.close(lock)


def test_a_run_under_another_runtime_directory_is_said_to_be_there(paths: Paths) -> None:
    """A session has XDG_RUNTIME_DIR, cron has none: the definitions are the same, locks and sockets are not."""
    definition = state.create(paths, SPEC)
    mark = RunMark(state.boot_id(), state.now(), this_process("casemate-sup"), runtime="/run/user/1000/casemate")
    files.write_json(f"{paths.vm_data(definition.id)}/run.json", mark)
    assert state.look(paths, definition).state == "elsewhere"
    assert "elsewhere" in life.ALIVE
    for act in (
        lambda: state.claim(paths, definition),
        lambda: control.connect(paths, definition),
        lambda: ending.remove(paths, definition, force=True),
        lambda: ending.end_run(paths, definition, "kill", wait=True),
    ):
        with pytest.raises(HostError, match="runs under another runtime directory") as caught:
            act()
        assert caught.value.next_step.startswith("XDG_RUNTIME_DIR=/run/user/1000 casemate")
    assert not os.path.lexists(paths.vm_runtime(definition.id)), "nothing of another's run was touched"
    files.write_json(f"{paths.vm_data(definition.id)}/run.json", msgspec.structs.replace(mark, boot_id="another"))
    assert state.look(paths, definition).state == "exited"


def test_a_lock_held_without_a_supervisor_is_waited_for_not_believed(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "LOOK_DEADLINE_S", 0.1)
    monkeypatch.setattr(state, "CLAIM_DEADLINE_S", 0.1)
    definition = state.create(paths, SPEC)
    begin(paths, definition)
    lock = files.take_lock(f"{paths.vm_runtime(definition.id)}/lock", wait=False)
    assert state.look(paths, definition).state == "stopping"
    with pytest.raises(InputError, match="another command is busy"):
        state.claim(paths, definition)
    assert lock is not None
    os.close(lock)
    assert state.look(paths, definition).state == "exited"


def test_a_claim_settles_and_excludes(paths: Paths) -> None:
    definition = state.create(paths, SPEC)
    begin(paths, definition)
    claimed = state.claim(paths, definition)
    assert names_in(paths.vm_runtime(definition.id)) == {"lock", "root"}
    vm = state.look(paths, definition)
    assert vm.exit is not None
    assert vm.exit.reason == "supervisor died"
    assert names_in(paths.vm_runtime(definition.id)) == {"lock", "root"}
    os.close(claimed)


def test_a_vm_removed_meanwhile_cannot_be_claimed(paths: Paths) -> None:
    definition = state.create(paths, SPEC)
    state.remove(paths, definition)
    with pytest.raises(InputError, match="was removed meanwhile"):
        state.claim(paths, definition)
    with pytest.raises(InputError, match="was removed meanwhile"):
        state.remove(paths, definition)
    assert names_in(f"{paths.runtime}/vms") == set()


def test_remove_takes_everything(paths: Paths) -> None:
    definition = state.create(paths, SPEC)
    begin(paths, definition)
    Path(f"{paths.vm_data(definition.id)}/vars.fd").touch()
    state.remove(paths, definition)
    assert not os.path.exists(paths.vm_data(definition.id))
    assert not os.path.exists(paths.vm_runtime(definition.id))


def test_processes_are_named_for_good(sleeper: Process) -> None:
    assert aftermath.is_alive(sleeper)
    assert not aftermath.is_alive(Process("x", sleeper.pid, sleeper.start_ticks + 1))
    assert not aftermath.is_alive(Process("x", 2**22 + 5, 1))
    assert not aftermath.is_alive(Process("x", 0, 1))
    assert not aftermath.is_alive(None)
    assert aftermath.end_process(Process("x", sleeper.pid, sleeper.start_ticks + 1))
    assert aftermath.is_alive(sleeper)
    assert aftermath.end_process(sleeper)
    assert not aftermath.is_alive(sleeper)  # a zombie by now, which nobody has reaped yet


def test_cgroups_that_cannot_go_are_named(tmp_path: Path) -> None:
    busy = tmp_path / "busy"
    busy.mkdir()
    (busy / "child").touch()  # an ordinary directory that rmdir refuses
    assert aftermath.remove_cgroups((str(busy), str(tmp_path / "none")), deadline_s=0.05) == [str(busy)]


# ---- the kernel's log -----------------------------------------------------------------------------------------------

RECORD = (
    b"4,1234,5678,-;audit: type=1326 audit(1795417786.720:32351): auid=4294967295 uid=1900000000 gid=1900000000"
    b' ses=4294967295 pid=18598 comm="CPU 0/TCG" exe="/usr/bin/qemu-system-x86_64" sig=31 arch=c000003e syscall=41'
    b" compat=0 ip=0x7fb62c759829 code=0x80000000\n"
)


def test_a_killed_call_in_words(tmp_path: Path) -> None:
    assert describe(RECORD) == 'call socket (41) in thread "CPU 0/TCG"'
    log = tmp_path / "kmsg"
    log.write_bytes(RECORD)
    assert killed_call(18598, str(log)) == 'call socket (41) in thread "CPU 0/TCG"'
    assert killed_call(18599, str(log)) == ""
    assert killed_call(18598, str(tmp_path / "none")) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((b"syscall=41", b"syscall=99999"), 'call unknown (99999) in thread "CPU 0/TCG"'),
        ((b"arch=c000003e", b"arch=40000003"), 'call unknown (41) in thread "CPU 0/TCG"'),
        ((b'comm="CPU 0/TCG"', b"comm=1B5B33316D"), 'call socket (41) in thread "?[31m"'),
        ((b'comm="CPU 0/TCG"', b"comm=1B5"), 'call socket (41) in thread "1B5"'),
        ((b"type=1326", b"type=1300"), ""),
        ((b"sig=31", b"sig=9"), ""),
    ],
)
def test_strange_records(change: tuple[bytes, bytes], words: str) -> None:
    assert describe(RECORD.replace(*change)) == words


def test_the_end_of_a_killed_call_is_completed_once(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    definition = state.create(paths, SPEC)
    data = paths.vm_data(definition.id)
    files.write_json(f"{data}/exit.json", Exit("emulator killed", 5, "now", "then", "by SIGSYS", 5, "tcg", 42))
    files.write_json(f"{data}/wall.json", {"profile": "qemu-tcg+rng", "findings": []})
    asked: list[int] = []

    def log(pid: int) -> str:
        asked.append(pid)
        return "call x (1)"

    monkeypatch.setattr(sigsys, "killed_call", log)
    vm = state.look(paths, definition)
    assert vm.exit is not None
    assert vm.exit.detail == "call x (1); profile qemu-tcg+rng; by SIGSYS"
    assert state.look(paths, definition) == vm
    assert asked == [42]
