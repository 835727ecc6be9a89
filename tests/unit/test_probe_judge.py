"""The judges of the probe: pure, so every kind of record and of sight is a case here."""

from __future__ import annotations

import errno
import os
import signal
from typing import Any

import msgspec
import pytest

from casemate.bpf.syscalls import numbers
from casemate.jail.compile import compile_profile
from casemate.jail.policy import (
    BindFile,
    CgroupPlan,
    CopyFile,
    Descriptor,
    Device,
    Identity,
    IdentityMode,
    Layer,
    Rlimit,
    Wall,
)
from casemate.jail.probe.attempts import HARMLESS, HOSTILE, verify_controls
from casemate.jail.probe.judge import Judge, Outcome, ProbeFailedError, Result, judge_log
from casemate.jail.probe.judge_sight import judge_sight
from casemate.jail.probe.model import KERNEL, Attempt, Call, Entry, Group, Node, Record, Sight
from casemate.jail.rules import Arg, Op, Phase, Profile, Rule
from casemate.sys.caps import SECUREBITS_LOCKED

MACHINE = "x86_64"
change = msgspec.structs.replace
PROFILE = Profile(
    "test",
    (
        Rule("write", "log"),
        Rule("mmap", "memory", (Arg(2, Op.MASKED_EQ, 0, 4),)),
        Rule("openat", "start", phase=Phase.STARTUP),
        Rule("io_uring_setup", "probed", errno=errno.ENOSYS),
        Rule("statfs", "probed", errno=errno.ENOENT),
        Rule("eventfd2", "events"),
    ),
    ("test",),
)
UID = 1_900_000_001
NR = numbers(MACHINE)
U64 = 0xFFFF_FFFF_FFFF_FFFF


def make_wall(*without: Layer) -> Wall:
    return Wall(
        argv=("/bin/program",),
        environment=(),
        root=(BindFile("/host/program", "/bin/program"), CopyFile("kernel", "/boot/kernel", 10), Device("null")),
        root_size_bytes=1 << 20,
        identity=Identity(UID, UID, IdentityMode.ROOT),
        rlimits=(Rlimit("nofile", 64),),
        landlock_abi=6,
        landlock=(),
        cgroup=CgroupPlan(directories=("/cg",), limits=("memory.max=1",)),
        descriptors=(Descriptor(0, "null", "ro"), Descriptor(1, "log", "wo"), Descriptor(3, "disk0", "ro")),
        profile="test",
        without=without,
    )


def judge(*without: Layer, profile: Profile = PROFILE, dangerous: frozenset[str] = frozenset(), oom: int = 0) -> Judge:
    program = compile_profile(profile, MACHINE)
    return Judge(make_wall(*without), PROFILE, program, MACHINE, dangerous, oom, 0)


def by_number(name: str, entry: Entry = Entry.NATIVE) -> Attempt:
    step = Call(name, (-1,) * 6, NR[name], entry)
    return Attempt(id=f"calls.{name}", group=Group.CALLS, what="try", steps=(step,))


def aimed(name: str = "openat", **more: object) -> Attempt:
    values: dict[str, object] = {
        "errnos": ((errno.ENOENT, (Layer.ROOT,)), (errno.EPERM, (Layer.CAPABILITIES, Layer.IDENTITY))),
        "expected": (Layer.SECCOMP, Layer.ROOT),
        **more,
    }
    return Attempt(id="files.x", group=Group.FILES, what="try", steps=(Call(name),), **values)  # type: ignore[arg-type]


def record(name: str, *, args: tuple[int, ...] = (U64,) * 6, **more: Any) -> Record:
    values: dict[str, Any] = {"stage": 2, **more}
    return Record(id="x", nr=NR[name], args=args, **values)


class TestByNumber:
    @pytest.mark.parametrize(
        ("name", "happened", "outcome", "stopper", "declared"),
        [
            ("ptrace", {"stage": 1, "signal": 31}, Outcome.STOPPED, "seccomp", False),
            ("openat", {"result": -1, "number": errno.ENOSYS}, Outcome.STOPPED, "seccomp", False),
            ("io_uring_setup", {"result": -1, "number": errno.ENOSYS}, Outcome.STOPPED, "seccomp", False),
            ("statfs", {"result": -1, "number": errno.ENOENT}, Outcome.STOPPED, "seccomp", False),
            ("write", {"result": -1, "number": errno.EBADF}, Outcome.REACHED, "", True),
            ("write", {"result": 0}, Outcome.REACHED, "", True),
        ],
    )
    def test_as_declared(
        self, name: str, happened: dict[str, Any], outcome: Outcome, stopper: str, declared: bool
    ) -> None:
        found = judge().judge(by_number(name), record(name, **happened))
        assert (found.outcome, found.stopper, found.declared, found.unexpected) == (outcome, stopper, declared, "")

    @pytest.mark.parametrize(
        ("name", "happened", "says"),
        [
            ("ptrace", {"result": -1, "number": errno.ESRCH}, "the profile kills this call"),
            ("ptrace", {"result": 0}, "the profile kills this call"),
            ("ptrace", {"stage": 1, "signal": 11}, "the profile kills this call"),
            ("ptrace", {"stage": 1, "late": True, "signal": 9}, "the profile kills this call"),
            ("ptrace", {"stage": 1, "status": 3}, "the profile kills this call"),
            ("openat", {"result": -1, "number": errno.EBADF}, "the profile answers notify"),
            ("openat", {"stage": 1, "signal": 31}, "the call was killed"),
            ("io_uring_setup", {"result": -1, "number": errno.EFAULT}, "the profile answers errno"),
            ("write", {"stage": 1, "signal": 31}, "the profile answers allow; the call was killed"),
        ],
    )
    def test_anything_else_is_unexpected(self, name: str, happened: dict[str, Any], says: str) -> None:
        assert says in judge().judge(by_number(name), record(name, **happened)).unexpected

    def test_arguments_decide(self) -> None:
        with_exec, without = (0, 0, 5, 0, 0, 0), (0, 0, 3, 0, 0, 0)
        killed = judge().judge(by_number("mmap"), record("mmap", args=with_exec, stage=1, signal=31))
        made = judge().judge(by_number("mmap"), record("mmap", args=without, result=4096))
        assert (killed.unexpected, killed.declared) == ("", False)
        assert (made.unexpected, made.declared) == ("", True)
        slipped = judge().judge(by_number("mmap"), record("mmap", args=with_exec, result=4096))
        assert slipped.unexpected

    def test_a_dangerous_call_is_unexpected_even_when_the_profile_allows_it(self) -> None:
        found = judge(dangerous=frozenset({"write"})).judge(by_number("write"), record("write", result=0))
        assert "no emulator needs" in found.unexpected

    def test_other_ways_into_the_kernel_are_always_killed(self) -> None:
        x32 = Record(id="x", stage=2, nr=0x4000_0000 | NR["write"], args=(0,) * 6, result=-1, number=errno.ENOSYS)
        assert judge().judge(by_number("write"), x32).unexpected
        gate = by_number("write", Entry.INT80)
        assert judge().judge(gate, record("write", result=0)).unexpected
        assert judge().judge(gate, record("write", stage=1, signal=31)).unexpected == ""
        absent = judge().judge(gate, record("write", stage=1, signal=11))
        assert (absent.unexpected, absent.stopper) == ("", KERNEL)

    def test_calls_that_no_filter_is_asked_about(self) -> None:
        ways: tuple[dict[str, Any], ...] = ({"stage": 1, "signal": 4}, {"result": -1, "number": errno.ENXIO})
        for happened in ways:
            found = judge().judge(by_number("uprobe"), record("uprobe", **happened))
            assert (found.outcome, found.stopper, found.unexpected) == (Outcome.STOPPED, KERNEL, "")
        assert judge().judge(by_number("uprobe"), record("uprobe", result=0)).unexpected
        old_kernel = judge().judge(by_number("uprobe"), record("uprobe", stage=1, signal=31))
        assert old_kernel.stopper == "seccomp"


class TestAimed:
    def test_reached_and_not_declared_is_unexpected(self) -> None:
        found = judge(Layer.SECCOMP).judge(aimed(), record("openat", result=5))
        assert found.outcome is Outcome.REACHED
        assert found.unexpected
        assert judge(Layer.SECCOMP).judge(aimed(declared=True), record("openat", result=5)).unexpected == ""

    def test_the_stopper_is_the_first_layer_in_force_that_answers_so(self) -> None:
        refused = record("openat", result=-1, number=errno.EPERM)
        assert judge(Layer.SECCOMP).judge(aimed(), refused).stopper == "capabilities"
        wall = change(make_wall(), without=(Layer.SECCOMP, Layer.CAPABILITIES))
        bare = Judge(wall, PROFILE, compile_profile(PROFILE, MACHINE), MACHINE, frozenset(), 0, 0)
        assert bare.judge(aimed(), refused).stopper == "identity"

    def test_an_errno_that_no_layer_gives_is_the_kernels(self) -> None:
        found = judge(Layer.SECCOMP).judge(aimed(), record("openat", result=-1, number=errno.ENOTTY))
        assert (found.stopper, found.unexpected) == (KERNEL, "")

    def test_the_filters_own_answer_is_told_from_the_kernels(self) -> None:
        assert judge().judge(aimed(), record("openat", result=-1, number=errno.ENOSYS)).stopper == "seccomp"
        # Without the filter the same errno means that the kernel lacks the call.
        gone = judge(Layer.SECCOMP).judge(aimed(), record("openat", result=-1, number=errno.ENOSYS))
        assert gone.stopper == KERNEL

    def test_an_errno_after_the_permission_check_is_reached(self) -> None:
        attempt = aimed(past=(errno.ENOENT,))
        assert judge(Layer.SECCOMP).judge(attempt, record("openat", result=-1, number=errno.ENOENT)).unexpected

    def test_a_call_that_came_back_although_the_filter_kills_it(self) -> None:
        found = judge().judge(aimed("ptrace"), record("ptrace", result=-1, number=errno.EPERM))
        assert "although the filter kills it" in found.unexpected

    def test_a_process_that_became_another_program_reached_its_aim(self) -> None:
        assert judge(Layer.SECCOMP).judge(aimed("execve"), record("execve", stage=1)).unexpected

    def test_sigsys_without_a_filter_is_not_credited_to_one(self) -> None:
        assert judge(Layer.SECCOMP).judge(aimed(), record("openat", stage=1, signal=31)).stopper == KERNEL

    def test_a_child_that_never_began_proves_nothing(self) -> None:
        ways: tuple[dict[str, Any], ...] = (
            {},
            {"signal": 31},
            {"late": True},
            {"status": 86},
            {"stage": 2, "status": 86},
        )
        for happened in ways:
            with pytest.raises(ProbeFailedError):
                judge().judge(aimed(), record("openat", **{"stage": 0, **happened}))


class TestResources:
    def attempt(self, code: str, **more: object) -> Attempt:
        values: dict[str, object] = {"errnos": ((errno.EAGAIN, (Layer.RLIMITS, Layer.CGROUP)),), **more}
        return Attempt(id=f"resources.{code}", group=Group.RESOURCES, what="take", code=code, **values)  # type: ignore[arg-type]

    def test_killed_for_memory_counts_only_when_the_cgroup_says_so(self) -> None:
        killed = record("mmap", stage=1, signal=int(signal.SIGKILL), amount=99)
        assert judge(oom=1).judge(self.attempt("memory"), killed).stopper == "cgroup"
        assert judge(oom=0).judge(self.attempt("memory"), killed).unexpected

    def test_processes_are_the_cgroups_when_its_counter_moved(self) -> None:
        refused = record("clone", result=-1, number=errno.EAGAIN, amount=30)
        assert judge().judge(self.attempt("thread-bomb"), refused).stopper == "rlimits"
        program = compile_profile(PROFILE, MACHINE)
        counted = Judge(make_wall(), PROFILE, program, MACHINE, frozenset(), 0, 1)
        assert counted.judge(self.attempt("thread-bomb"), refused).stopper == "cgroup"

    def test_a_core_file_is_the_aim_of_a_crash(self) -> None:
        crash = self.attempt("crash")
        assert judge().judge(crash, record("write", stage=1, signal=11)).stopper == "rlimits"
        assert judge(Layer.RLIMITS).judge(crash, record("write", stage=1, signal=11)).stopper == "root"
        assert judge().judge(crash, record("write", stage=1, signal=11, core=True)).unexpected

    def test_a_log_is_bounded_or_not(self) -> None:
        flood = judge().judge(self.attempt("flood", declared=True), record("write", result=9, amount=1000))
        assert judge_log(flood, 100, 100).stopper == "supervisor"
        grown = judge_log(flood, 101, 100)
        assert grown.unexpected == "the log grew beyond its bound"


class TestControls:
    def result(self, name: str, outcome: Outcome, evidence: str) -> Result:
        return Result(
            id=name,
            group=Group.CONTROL,
            what="",
            outcome=outcome,
            stopper="",
            expected=(),
            declared=True,
            evidence=evidence,
        )

    def test_both_must_be_as_they_should(self) -> None:
        good = self.result(HARMLESS, Outcome.REACHED, "write returned 0")
        dead = self.result(HOSTILE, Outcome.STOPPED, "SIGSYS at open")
        verify_controls((good, dead), make_wall())
        verify_controls((good,), make_wall(Layer.SECCOMP))
        alive = self.result(HOSTILE, Outcome.STOPPED, "EPERM at open")
        broken = self.result(HARMLESS, Outcome.STOPPED, "SIGSYS at write")
        for results in ((), (good,), (dead,), (good, alive), (broken, dead)):
            with pytest.raises(ProbeFailedError):
                verify_controls(results, make_wall())


def node(path: str, kind: str, **more: object) -> Node:
    values: dict[str, object] = {
        "device": 1, "inode": 2, "rdev": 0, "mode": 0o555, "read_only": True, "nosuid": True, **more
    }  # fmt: skip
    return Node(path, kind, **values)  # type: ignore[arg-type]


SOURCES = {"/host/program": (1, 2)}
PASSING = Sight(
    pid=1,
    parent_pid=0,
    uids=(UID,) * 3,
    gids=(UID,) * 3,
    groups=(),
    effective=0,
    permitted=0,
    inheritable=0,
    bounding=0,
    ambient=0,
    no_new_privs=True,
    securebits=SECUREBITS_LOCKED,
    hostname="casemate",
    descriptors=((0, 2), (1, 1), (3, 0)),
    limits=(("nofile", 64, 64),),
    interfaces=("lo",),
    tree=(
        node("/bin", "directory"),
        node("/bin/program", "file"),
        node("/boot", "directory"),
        node("/boot/kernel", "file", inode=7),
        node("/dev", "directory"),
        node("/dev/null", "device", rdev=os.makedev(1, 3), mode=0o666),
    ),
)


def without_node(path: str) -> tuple[Node, ...]:
    return tuple(item for item in PASSING.tree if item.path != path)


MUTATIONS: list[tuple[str, dict[str, object]]] = [
    ("sight.uid", {"uids": (UID, 0, UID)}),
    ("sight.gid", {"gids": (UID, UID, 0)}),
    ("sight.groups", {"groups": (27,)}),
    ("sight.capabilities-effective", {"effective": 1}),
    ("sight.capabilities-permitted", {"permitted": 1 << 21}),
    ("sight.capabilities-inheritable", {"inheritable": 2}),
    ("sight.capabilities-bounding", {"bounding": 1 << 40}),
    ("sight.capabilities-ambient", {"ambient": 1}),
    ("sight.securebits", {"securebits": 0}),
    ("sight.no-new-privs", {"no_new_privs": False}),
    ("sight.pid", {"pid": 4711}),
    ("sight.hostname", {"hostname": "host"}),
    ("sight.interfaces", {"interfaces": ("lo", "eth0")}),
    ("sight.limit-nofile", {"limits": (("nofile", 64, 4096),)}),
    ("sight.limit-nofile", {"limits": ()}),
    ("sight.descriptors-extra", {"descriptors": ((0, 2), (1, 1), (3, 0), (9, 2))}),
    ("sight.descriptors-missing", {"descriptors": ((0, 2), (1, 1))}),
    ("sight.descriptor-3-disk0", {"descriptors": ((0, 2), (1, 1), (3, 2))}),
    ("sight.root-extra", {"tree": (*PASSING.tree, node("/bin/sh", "file"))}),
    ("sight.root-missing", {"tree": without_node("/bin/program")}),
    ("sight.root-other-file", {"tree": (*without_node("/bin/program"), node("/bin/program", "file", inode=3))}),
    ("sight.root-other-file", {"tree": (*without_node("/dev/null"), node("/dev/null", "device", rdev=1, mode=0o666))}),
    ("sight.root-writable", {"tree": (*without_node("/bin"), node("/bin", "directory", read_only=False))}),
    ("sight.root-suid", {"tree": (*without_node("/bin"), node("/bin", "directory", nosuid=False))}),
    ("sight.root-readable", {"tree_error": "EACCES"}),
    ("sight.root-readable", {"tree_cut": True}),
]


def faults(sight: Sight, wall: Wall) -> list[str]:
    return [item.id for item in judge_sight(sight, wall, SOURCES) if not item.holds]


def test_the_planned_wall_holds() -> None:
    assert faults(PASSING, make_wall()) == []


@pytest.mark.parametrize(("name", "difference"), MUTATIONS)
def test_one_change_flips_exactly_one_comparison(name: str, difference: dict[str, object]) -> None:
    assert faults(change(PASSING, **difference), make_wall()) == [name]


@pytest.mark.parametrize(
    ("layer", "difference"),
    [
        (Layer.IDENTITY, {"uids": (0, 0, 0)}),
        (Layer.CAPABILITIES, {"effective": 1}),
        (Layer.NAMESPACES, {"pid": 4711}),
        (Layer.RLIMITS, {"limits": ()}),
        (Layer.ROOT, {"tree": ()}),
    ],
)
def test_a_layer_that_was_left_out_is_not_compared(layer: Layer, difference: dict[str, object]) -> None:
    assert faults(change(PASSING, **difference), make_wall()) != []
    assert faults(change(PASSING, **difference), make_wall(layer)) == []
