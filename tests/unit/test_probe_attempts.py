"""The attempts as data: complete, harmless where they succeed, and true to the tables. Nothing is run here."""

from __future__ import annotations

import os

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from casemate.bpf.evaluate import RET_ALLOW, RET_KILL_PROCESS
from casemate.bpf.syscalls import numbers
from casemate.jail.choices import build_calls, decide, matches
from casemate.jail.policy import (
    CgroupPlan,
    Descriptor,
    Device,
    Identity,
    IdentityMode,
    LandlockPath,
    Layer,
    Rlimit,
    Wall,
)
from casemate.jail.probe.attempts import all_attempts
from casemate.jail.probe.model import STOPPERS, Attempt, Bait, Call, Entry, Got, Group, Room
from casemate.jail.probe.raw import Board, Prepared, Stubs
from casemate.jail.probe.routines import ROUTINES
from casemate.jail.probe.sweep import satisfying, sweep_attempts, violating
from casemate.jail.profiles import qemu_profile
from casemate.jail.rules import Arg, Op, Profile, Rule

PROFILE = qemu_profile("tcg", frozenset({"rng", "console", "blk"}))
DANGEROUS = frozenset({"ptrace", "mount"})
BAIT = Bait(
    pid=4242,
    tcp_port=5001,
    udp_port=5002,
    abstract="bait",
    socket_path="/run/bait.sock",
    secret_path="/run/bait",
    paths=(("image-0", "/images/a"),),
    sockets=(("control-x", "/run/x/control.sock"),),
    program="/usr/bin/program",
    memory_try_mib=100,
    pids_try=40,
    nofile_try=1056,
    log_bytes=1 << 20,
    why_not=(("file-size", "no file"),),
)


def make_wall(*without: Layer) -> Wall:
    return Wall(
        argv=("/usr/bin/program",),
        environment=(),
        root=(Device("null"), Device("urandom")),
        root_size_bytes=1 << 20,
        identity=Identity(1_900_000_001, 1_900_000_001, IdentityMode.ROOT),
        rlimits=(Rlimit("nofile", 1024),),
        landlock_abi=6,
        landlock=(LandlockPath("/", ("read",)), LandlockPath("/dev/urandom", ("read",))),
        cgroup=CgroupPlan(),
        descriptors=(Descriptor(0, "null", "ro"), Descriptor(1, "log", "wo"), Descriptor(3, "disk0", "ro")),
        profile=PROFILE.name,
        without=without,
    )


def every(machine: str = "x86_64", *without: Layer, quick: bool = False) -> tuple[Attempt, ...]:
    return all_attempts(
        BAIT,
        make_wall(*without),
        PROFILE if machine == "x86_64" else Profile("small", (Rule("write", "log"),), ()),
        machine,
        images=frozenset({"disk0"}),
        dangerous=DANGEROUS,
        quick=quick,
    )


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_attempt_is_complete(machine: str) -> None:
    attempts = every(machine)
    assert len({attempt.id for attempt in attempts}) == len(attempts)
    for attempt in attempts:
        assert attempt.id.startswith(f"{attempt.group}."), attempt.id
        assert bool(attempt.steps) != bool(attempt.code), attempt.id
        assert attempt.code == "" or attempt.code in ROUTINES, attempt.id
        assert attempt.what, attempt.id
        assert set(attempt.expected) <= set(STOPPERS), attempt.id
        assert {name for _, names in attempt.errnos for name in names} <= set(STOPPERS), attempt.id
        assert bool(attempt.only_with) == bool(attempt.harm), attempt.id
        assert attempt.skip or all(step.nr is not None or step.name in numbers(machine) for step in attempt.steps)


def test_everything_that_is_tried_must_be_stopped_by_something() -> None:
    for attempt in every():
        assert attempt.expected or attempt.declared, attempt.id


def test_signals_to_others_are_only_asked_about() -> None:
    """Signal 0 delivers nothing, so a wall with a hole costs no process its life."""
    position = {"kill": 1, "tkill": 1, "tgkill": 2}
    found = 0
    for attempt in every():
        if attempt.group is Group.CALLS:
            continue
        for step in attempt.steps:
            if step.name in position:
                assert step.args[position[step.name]] == 0, attempt.id
                found += 1
    assert found == 4


def test_what_is_created_is_removed_again() -> None:
    for attempt in every():
        if attempt.group is Group.FILES and any(
            step.name in {"mkdirat", "symlinkat", "mknodat"} for step in attempt.steps
        ):
            assert attempt.undo, attempt.id


def test_without_the_filter_nothing_is_tried_that_only_a_filter_makes_harmless() -> None:
    left = [a for a in every("x86_64", Layer.SECCOMP) if Layer.SECCOMP in a.only_with and not a.skip]
    assert left == []
    reasons = {a.skip for a in every("x86_64", Layer.SECCOMP) if a.group is Group.CALLS}
    assert reasons == {"not without seccomp: without a filter the call would be made"}


def test_a_reason_of_the_bait_is_kept() -> None:
    skipped = {attempt.id: attempt.skip for attempt in every() if attempt.skip}
    assert skipped == {"resources.file-size": "no file"}


def test_kvm_is_bait_only_for_a_vm_that_does_not_have_it() -> None:
    assert "files.read-kvm" in {attempt.id for attempt in every()}
    with_kvm = msgspec.structs.replace(BAIT, has_kvm=True)
    ids = {
        attempt.id
        for attempt in all_attempts(
            with_kvm, make_wall(), PROFILE, "x86_64", images=frozenset(), dangerous=DANGEROUS, quick=True
        )
    }
    assert "files.read-kvm" not in ids


class TestSweep:
    def test_every_number_of_the_table_is_tried(self) -> None:
        tried = {
            step.nr
            for a in sweep_attempts(PROFILE, "x86_64", DANGEROUS, machine_code=True, quick=False)
            for step in a.steps
        }
        assert set(numbers("x86_64").values()) <= tried
        assert {max(numbers("x86_64").values()) + 1, 512, 547, 0x4000_0000, 0x7FFF_FFFF} <= tried

    def test_quick_keeps_the_profile_and_the_dangerous(self) -> None:
        quick = sweep_attempts(PROFILE, "x86_64", DANGEROUS, machine_code=True, quick=True)
        tried = {step.nr for a in quick for step in a.steps if step.entry is Entry.NATIVE}
        wanted = {numbers("x86_64")[name] for name in DANGEROUS | {rule.syscall for rule in PROFILE.rules}}
        assert wanted <= tried
        assert len(quick) < len(sweep_attempts(PROFILE, "x86_64", DANGEROUS, machine_code=True, quick=False)) / 2

    def test_without_machine_code_the_other_gate_is_left_out(self) -> None:
        left = [a for a in sweep_attempts(PROFILE, "x86_64", DANGEROUS, machine_code=False, quick=True) if a.skip]
        assert {step.entry for a in left for step in a.steps} == {Entry.INT80}
        assert left

    def test_each_narrowed_rule_is_tried_from_both_sides(self) -> None:
        calls = {call.nr: call for call in build_calls(PROFILE, "x86_64")}
        answers: dict[int, set[int]] = {}
        for attempt in sweep_attempts(PROFILE, "x86_64", DANGEROUS, machine_code=True, quick=False):
            (step,) = attempt.steps
            if step.entry is Entry.NATIVE and step.nr in calls:
                args = tuple(value & 0xFFFF_FFFF_FFFF_FFFF for value in step.args if isinstance(value, int))
                answers.setdefault(step.nr, set()).add(decide(calls[step.nr], args))
        mmap = answers[numbers("x86_64")["mmap"]]
        assert len(mmap) == 2, "executable and not"
        assert RET_ALLOW in mmap
        clone = answers[numbers("x86_64")["clone"]]
        assert clone == {RET_KILL_PROCESS}, "its allowed form would start a thread on no stack"

    @given(
        st.sampled_from(list(Op)),
        st.integers(0, 2**64 - 1),
        st.integers(1, 2**64 - 1),
    )
    def test_values_are_on_their_side_of_the_comparison(self, op: Op, value: int, mask: int) -> None:
        if op is Op.MASKED_EQ:
            arg = Arg(0, op, value & mask, mask)
        else:
            assume(not (op in {Op.LT, Op.GE} and value == 0) and not (op in {Op.GT, Op.LE} and value == 2**64 - 1))
            arg = Arg(0, op, value)
        assert matches(arg, satisfying(arg))
        assert not matches(arg, violating(arg))


class TestPrepared:
    def test_every_attempt_can_be_prepared(self) -> None:
        for attempt in every():
            Prepared(attempt.steps, "x86_64")
            Prepared(attempt.undo, "x86_64")

    def test_calls_run_in_order_and_hand_results_on(self) -> None:
        machine = os.uname().machine
        board = Board()
        pair = Prepared(
            (
                Call("eventfd2", (7, 0)),
                Call("read", (Got(0), Room(8), 8)),
                Call("close", (Got(0),)),
                Call("close", (Got(0),)),
            ),
            machine,
        )
        board.clear()
        assert not pair.run(board, Stubs())
        assert board[1] == 3, "the second close is the step that fails"
        assert board[4] == 9, "EBADF"

    def test_a_failure_is_noted_with_its_arguments(self) -> None:
        board = Board()
        board.clear()
        nr = numbers(os.uname().machine)["close"]
        assert board.call(nr, (-1,)) == -9
        assert board[2] == nr
        assert board.args == (0xFFFF_FFFF_FFFF_FFFF, 0, 0, 0, 0, 0)
