"""The wall, attacked: the harmless program exits 0, the hostile one dies by SIGSYS, a failed step starts nothing."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path

import msgspec
import pytest
from tests.support.walls import BUSYBOX, Pipe, finish, identity, program, staging, wall

from casemate.engine.copies import CopyDigests
from casemate.errors import HostError, RefusedError, VmError
from casemate.facts.process import own_namespaces, read_process
from casemate.jail.policy import BindFile, CopyFile, Layer
from casemate.jail.spawn import kill_and_reap, spawn
from casemate.jail.steps import describe, inner_steps, outer_steps

pytestmark = [
    pytest.mark.wall,
    pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="package busybox-static is not installed"),
]


def children() -> set[int]:
    """Pids of our own children."""
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        return {int(word) for word in file.read().split()}


def test_a_harmless_program_exits_0(tmp_path: Path) -> None:
    pipe = Pipe()
    spawned = spawn(wall("echo", "inside"), program(), pipe.sources, staging(tmp_path))
    assert finish(spawned) == ("exited", 0)
    assert pipe.text() == "inside\n"


@pytest.mark.parametrize(
    ("argv", "call"),
    [
        (("chroot", "/", "/bin/busybox", "true"), "chroot"),
        (("mkdir", "/x"), "mkdir"),
        (("kill", "-9", "-1"), "kill"),
        (("hostname", "owned"), "sethostname"),
        (("mknod", "/n", "c", "1", "3"), "mknod"),
        (("ls", "/"), "getdents64"),
    ],
)
def test_a_hostile_program_dies_with_sigsys(tmp_path: Path, argv: tuple[str, ...], call: str) -> None:
    spawned = spawn(wall(*argv), program(), Pipe().sources, staging(tmp_path))
    assert finish(spawned) == ("killed", signal.SIGSYS), call


def test_the_root_holds_only_what_is_listed(tmp_path: Path) -> None:
    pipe = Pipe()
    spawned = spawn(wall("find", "/"), program(("getdents64", "newfstatat", "lstat")), pipe.sources, staging(tmp_path))
    assert finish(spawned) == ("exited", 0)
    assert set(pipe.text().split()) == {"/", "/bin", "/bin/busybox", "/dev", "/dev/null"}


def test_everything_is_in_force_seen_from_outside(tmp_path: Path) -> None:
    spawned = spawn(wall("sleep", "60"), program(), Pipe().sources, staging(tmp_path))
    try:
        seen = read_process(spawned.pid)
        (thread,) = seen.threads
        who = identity()
        assert set(thread.uids) == {who.uid}
        assert set(thread.gids) == {who.gid}
        held = thread.cap_inheritable | thread.cap_permitted | thread.cap_effective
        assert held | thread.cap_bounding | thread.cap_ambient == 0
        assert thread.no_new_privs
        assert thread.seccomp == 2
        ours = own_namespaces()
        same = {kind for kind in ours if kind != "time" and seen.namespaces[kind] == ours[kind]}
        assert same == set()
        assert seen.limits is not None
        assert seen.limits["core"] == (0, 0)
        assert all("ro" in item.options for item in seen.mounts or () if item.point == "/")
    finally:
        kill_and_reap(spawned)


def test_without_seccomp_other_layers_still_stop_it(tmp_path: Path) -> None:
    """One layer removed: the mount fails by capability, not by signal."""
    pipe = Pipe()
    loose = wall("mount", "-t", "tmpfs", "none", "/dev", without=(Layer.SECCOMP,))
    kind, status = finish(spawn(loose, b"", pipe.sources, staging(tmp_path)))
    assert (kind, status != 0) == ("exited", True)
    assert "denied" in pipe.text() or "not permitted" in pipe.text() or status == 1


def test_a_missing_file_stops_the_launch_and_names_it(tmp_path: Path) -> None:
    before = children()
    broken = wall("true", root=(BindFile("/does/not/exist", "/lib/x"),))
    with pytest.raises(HostError, match="NewRoot") as caught:
        spawn(broken, program(), Pipe().sources, staging(tmp_path))
    assert "/does/not/exist" in caught.value.got or "/lib/x" in caught.value.got
    assert children() == before


def test_a_program_that_is_not_there_is_an_error_not_a_hang(tmp_path: Path) -> None:
    missing = msgspec.structs.replace(wall("true"), argv=("/bin/nothing",))
    spawned = spawn(missing, program(), Pipe().sources, staging(tmp_path))
    assert finish(spawned)[1] != 0


def test_a_copied_file_is_hashed_and_compared(tmp_path: Path) -> None:
    source = tmp_path / "kernel"
    source.write_bytes(b"kernel" * 1000)
    pipe = Pipe()
    sources = {**pipe.sources, "kernel": os.open(source, os.O_RDONLY)}
    copying = wall("cat", "/boot/kernel", root=(CopyFile("kernel", "/boot/kernel", 1 << 20),))
    wanted = hashlib.sha256(source.read_bytes()).hexdigest()
    spawned = spawn(copying, program(("sendfile", "fadvise64", "copy_file_range")), sources, staging(tmp_path))
    copies = CopyDigests(spawned, copying)
    copies.begin()
    assert copies.result({"kernel": wanted}) == {"kernel": wanted}
    with pytest.raises(RefusedError, match=r"img\.hash"):
        copies.result({"kernel": "0" * 64})
    source.write_bytes(b"too late")
    assert finish(spawned) == ("exited", 0)
    assert pipe.text() == "kernel" * 1000


def test_a_file_that_grows_beyond_its_limit_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "kernel"
    source.write_bytes(b"x" * 4096)
    sources = {**Pipe().sources, "kernel": os.open(source, os.O_RDONLY)}
    with pytest.raises(HostError, match="NewRoot"):
        spawn(wall("true", root=(CopyFile("kernel", "/k", 4095),)), program(), sources, staging(tmp_path))


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    place = staging(tmp_path)
    parent = os.fork()
    if parent == 0:
        try:
            spawned = spawn(wall("sleep", "60"), program(), Pipe().sources, place)
            os.write(write_end, str(spawned.pid).encode())
            time.sleep(60)
        finally:
            os._exit(1)
    os.close(write_end)
    pid = int(os.read(read_end, 32))
    pidfd = os.pidfd_open(pid)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    import select

    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    assert poller.poll(5000), "the confined program outlived its supervisor"


def test_a_filter_that_kills_the_child_early_is_reported(tmp_path: Path) -> None:
    """A profile without execve even as a start-up call: SIGSYS at exec, exactly."""
    from casemate.jail.compile import compile_profile
    from casemate.jail.rules import Phase, Profile, Rule

    rules = (Rule("read", "a test"), Rule("uname", "a test", phase=Phase.STARTUP))
    bare = compile_profile(Profile("bare", rules, ("bare",)), os.uname().machine)
    outcome: tuple[str, int] | str
    try:
        outcome = finish(spawn(wall("true"), bare, Pipe().sources, staging(tmp_path)))
    except VmError as fault:  # it died before its listener could be taken
        outcome = str(fault)
    assert outcome == ("killed", signal.SIGSYS) or "died" in outcome


def test_what_is_described_is_what_is_run() -> None:
    made = wall("true")
    shown = describe(made)
    assert len(shown) == len(outer_steps(made)) + len(inner_steps(made)) + 2
    assert any("/bin/busybox <- " in line for line in shown)
