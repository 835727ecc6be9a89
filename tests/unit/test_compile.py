"""Profiles to filters: what the rules say is what the filter does, whoever wrote the file in the cache."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.bpf import analyse
from casemate.bpf import instruction as bpf
from casemate.bpf.analyse import VerdictKind, survey
from casemate.bpf.evaluate import RET_ALLOW, RET_ERRNO, RET_KILL_PROCESS, RET_USER_NOTIF, SeccompData, evaluate
from casemate.bpf.instruction import Instruction, Program, decode, encode
from casemate.bpf.syscalls import AUDIT_ARCH_I386, X32_BIT, audit_arch, number_of
from casemate.jail import compile as compiler
from casemate.jail.choices import build_calls, canonical, decide, matches
from casemate.jail.compile import cached_program, compile_profile, expected_verdicts, explain, verify_program
from casemate.jail.rules import Arg, Op, Phase, Profile, Rule

U64 = 0xFFFF_FFFF_FFFF_FFFF
PROT_EXEC = 4


def rule(syscall: str, *args: Arg, phase: Phase = Phase.ALWAYS, errno: int | None = None) -> Rule:
    return Rule(syscall, "test", args, phase, errno=errno)


def profile(*rules: Rule) -> Profile:
    return Profile("test", rules)


MIXED = profile(
    rule("read"),
    rule("read"),
    rule("exit_group"),
    rule("execve", phase=Phase.STARTUP),
    rule("mmap", Arg(2, Op.MASKED_EQ, 0, PROT_EXEC)),
    rule("mmap", phase=Phase.STARTUP),
    rule("mprotect", Arg(2, Op.MASKED_EQ, PROT_EXEC, PROT_EXEC), phase=Phase.STARTUP),
    rule("mprotect", Arg(2, Op.MASKED_EQ, 0, PROT_EXEC)),
    rule("clone3", errno=38),
    rule("socket", Arg(0, Op.EQ, 1), Arg(1, Op.MASKED_EQ, 1, 0xF)),
    rule("socket", errno=97),
    rule("ioctl", Arg(1, Op.EQ, 0xAE80)),
    rule("ioctl", Arg(1, Op.EQ, 0xFFFF_FFFF_C008_AE67)),
    rule("ioctl", Arg(1, Op.EQ, 0x5401), phase=Phase.STARTUP),
    rule("ioctl", Arg(1, Op.EQ, 0x5413), errno=25),
    rule("prctl", Arg(0, Op.LE, 0x1_0000_0005)),
    rule("fcntl", Arg(1, Op.LT, 5), Arg(2, Op.NE, 7)),
    rule("fcntl", Arg(1, Op.GE, 0x2_0000_0000), Arg(0, Op.GT, 9)),
)


def answer(program: Program, syscall: str, *args: int, arch: str = "x86_64") -> int:
    padded = (*args, 0, 0, 0, 0, 0, 0)[:6]
    return evaluate(program, SeccompData(number_of(syscall, arch), audit_arch(arch), 0, padded))


@pytest.fixture(scope="module")
def mixed() -> Program:
    return decode(compile_profile(MIXED, "x86_64"))


@pytest.mark.parametrize(
    ("syscall", "args", "expected"),
    [
        ("read", (1, 2, 3), RET_ALLOW),
        ("write", (), RET_KILL_PROCESS),
        ("execve", (), RET_USER_NOTIF),
        ("mmap", (0, 0, 3), RET_ALLOW),
        ("mmap", (0, 0, 7), RET_USER_NOTIF),
        ("mmap", (0, 0, 1 << 32), RET_ALLOW),
        ("mprotect", (0, 0, 1), RET_ALLOW),
        ("mprotect", (0, 0, 5), RET_USER_NOTIF),
        ("clone3", (), RET_ERRNO | 38),
        ("socket", (1, 0x80001), RET_ALLOW),
        ("socket", (1, 2), RET_ERRNO | 97),
        ("socket", (1 << 32 | 1, 1), RET_ERRNO | 97),
        ("ioctl", (0, 0xAE80), RET_ALLOW),
        ("ioctl", (0, 0xC008AE67), RET_KILL_PROCESS),
        ("ioctl", (0, 0xFFFFFFFFC008AE67), RET_ALLOW),
        ("ioctl", (0, 0x5401), RET_USER_NOTIF),
        ("ioctl", (0, 0x5413), RET_ERRNO | 25),
        ("ioctl", (0, 0x5412), RET_KILL_PROCESS),
        ("prctl", (0x1_0000_0005,), RET_ALLOW),
        ("prctl", (0x1_0000_0006,), RET_KILL_PROCESS),
        ("prctl", (0x2_0000_0000,), RET_KILL_PROCESS),
        ("fcntl", (0, 4, 6), RET_ALLOW),
        ("fcntl", (0, 4, 7), RET_KILL_PROCESS),
        ("fcntl", (0, 5, 6), RET_KILL_PROCESS),
        ("fcntl", (10, 0x2_0000_0000), RET_ALLOW),
        ("fcntl", (9, 0x2_0000_0000), RET_KILL_PROCESS),
    ],
)
def test_each_kind_of_rule(mixed: Program, syscall: str, args: tuple[int, ...], expected: int) -> None:
    assert answer(mixed, syscall, *args) == expected


def test_survey_says_what_the_rules_say(mixed: Program) -> None:
    verdicts = survey((mixed,), "x86_64")
    assert verdicts == expected_verdicts(MIXED, "x86_64")
    assert verdicts["mmap"].returned == {RET_ALLOW, RET_USER_NOTIF}
    assert verdicts["clone3"].kind is VerdictKind.ERRNO
    assert verdicts["ptrace"].kind is VerdictKind.KILL
    assert sum(verdict.kind is not VerdictKind.KILL for verdict in verdicts.values()) == 10


def test_other_ways_into_the_kernel_are_closed(mixed: Program) -> None:
    assert analyse.survey_x32((mixed,)).returned == {RET_KILL_PROCESS}
    assert analyse.survey_other_arches((mixed,), "x86_64").returned == {RET_KILL_PROCESS}
    assert analyse.survey_beyond((mixed,), "x86_64").returned == {RET_KILL_PROCESS}
    assert evaluate(mixed, SeccompData(3, AUDIT_ARCH_I386)) == RET_KILL_PROCESS
    assert evaluate(mixed, SeccompData(X32_BIT, audit_arch("x86_64"))) == RET_KILL_PROCESS
    assert evaluate(mixed, SeccompData(-1, audit_arch("x86_64"))) == RET_KILL_PROCESS


def test_another_architecture_is_compiled_here() -> None:
    data = compile_profile(MIXED, "aarch64")
    assert survey((decode(data),), "aarch64") == expected_verdicts(MIXED, "aarch64")
    with pytest.raises(ValueError, match="the profile says"):
        verify_program(data, MIXED, "x86_64")


def test_alternatives_that_libseccomp_mixes_up_are_written_apart() -> None:
    """libseccomp 2.5.4 alone kills read(0, 1): having seen args[0] == 0 it only looks for args[1] == 0."""
    overlapping = profile(rule("read", Arg(0, Op.EQ, 0)), rule("read", Arg(1, Op.EQ, 0), Arg(0, Op.NE, 1)))
    program = decode(compile_profile(overlapping, "x86_64"))
    answers = {(a, b): answer(program, "read", a, b) == RET_ALLOW for a in range(3) for b in range(3)}
    assert answers == {(a, b): a == 0 or (b == 0 and a != 1) for a in range(3) for b in range(3)}


def test_calls_that_libseccomp_does_not_know_go_by_number() -> None:
    new = profile(rule("listmount"), rule("read"))
    program = decode(compile_profile(new, "x86_64"))
    assert answer(program, "listmount") == RET_ALLOW
    assert answer(program, "statmount") == RET_KILL_PROCESS


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (rule("no_such_call"), "no system call 'no_such_call' on x86_64"),
        (rule("read", errno=0), "errno is 1 to 4095"),
        (rule("read", errno=4096), "errno is 1 to 4095"),
        (rule("read", errno=1, phase=Phase.STARTUP), "whole life"),
        (rule("read", Arg(6, Op.EQ, 0)), "index is 0 to 5"),
        (rule("read", Arg(-1, Op.EQ, 0)), "index is 0 to 5"),
        (rule("read", Arg(0, Op.EQ, -1)), "unsigned 64-bit"),
        (rule("read", Arg(0, Op.EQ, 1 << 64)), "unsigned 64-bit"),
        (rule("read", Arg(0, Op.MASKED_EQ, 8, 7)), "no value"),
        (rule("read", Arg(0, Op.LT, 0)), "no value"),
        (rule("read", Arg(0, Op.GT, U64)), "no value"),
        (rule("read", Arg(0, Op.EQ, 1, 7)), "a mask counts only with"),
        (rule("read", Arg(0, Op.GE, 1), Arg(0, Op.LE, 5)), "two comparisons of one argument"),
    ],
)
def test_a_faulty_rule_is_refused_by_name(bad: Rule, message: str) -> None:
    with pytest.raises(ValueError, match=message) as fault:
        compile_profile(profile(rule("read"), bad, rule("nor_this")), "x86_64")
    assert f"test: rule for {bad.syscall}: " in str(fault.value)
    assert "nor_this" in str(fault.value)


def test_an_errno_that_can_never_be_given_is_refused() -> None:
    swallowed = profile(rule("mmap"), rule("mmap", Arg(2, Op.MASKED_EQ, PROT_EXEC, PROT_EXEC), errno=13))
    with pytest.raises(ValueError, match="a wider rule comes first"):
        build_calls(swallowed, "x86_64")
    assert build_calls(profile(rule("mmap"), rule("mmap", errno=13)), "x86_64")[0].choices[0].returned == RET_ALLOW


def test_no_rules_is_no_profile() -> None:
    with pytest.raises(ValueError, match="no rules"):
        compile_profile(profile(), "x86_64")
    with pytest.raises(ValueError, match="s390x"):
        compile_profile(MIXED, "s390x")


def test_what_decides_does_not_depend_on_the_order_of_rules() -> None:
    backwards = profile(*reversed(MIXED.rules))
    assert build_calls(backwards, "x86_64") == build_calls(MIXED, "x86_64")
    both = profile(rule("read", errno=5), rule("read", phase=Phase.STARTUP), rule("read", Arg(0, Op.EQ, 1)))
    (call,) = build_calls(both, "x86_64")
    assert [choice.returned for choice in call.choices] == [RET_ALLOW, RET_USER_NOTIF]


def test_order_and_wording_do_not_change_the_key() -> None:
    first = profile(rule("read"), rule("ioctl", Arg(1, Op.EQ, 1)), rule("ioctl", Arg(1, Op.EQ, 2)))
    second = Profile(
        "other", tuple(Rule(r.syscall, "other words", r.args) for r in (*reversed(first.rules), first.rules[0]))
    )
    keys = {canonical(build_calls(p, "x86_64"), "x86_64") for p in (first, second)}
    assert len(keys) == 1
    third = profile(*first.rules[:-1], rule("ioctl", Arg(1, Op.EQ, 3)))
    assert canonical(build_calls(third, "x86_64"), "x86_64") not in keys


# --- the proof ------------------------------------------------------------------------------------------------------


def test_every_change_of_an_answer_is_found() -> None:
    """Loosen and tighten every return, one at a time, where all of them can be reached."""
    changed = 0
    one_choice = profile(*(r for r in MIXED.rules if r.syscall not in {"mmap", "mprotect", "socket", "ioctl"}))
    program = decode(compile_profile(one_choice, "x86_64"))
    for at, instruction in enumerate(program):
        if instruction.code != bpf.RET_K:
            continue
        for value in {RET_ALLOW, RET_KILL_PROCESS, RET_USER_NOTIF, RET_ERRNO | 38, RET_ERRNO | 1} - {instruction.k}:
            changed += 1
            mutant = (*program[:at], instruction._replace(k=value), *program[at + 1 :])
            with pytest.raises(ValueError, match="the profile says"):
                verify_program(encode(mutant), one_choice, "x86_64")
    assert changed >= 4 * 4


def boundary_calls() -> list[SeccompData]:
    """Calls at and around every value of the rules, for every number that matters and some that do not."""
    calls = []
    for call in build_calls(MIXED, "x86_64"):
        args = [arg for choice in call.choices for alternative in choice.alternatives for arg in alternative]
        values = {0, 1, 1 << 32, U64}
        for arg in args:
            values |= {(arg.value + by) & U64 for by in (-1, 0, 1, 1 << 32)} | {arg.value ^ arg.mask}
        for index in {arg.index for arg in args} or {0}:
            for value in values:
                for others in (0, 1, 5, 10, 0x2_0000_0001):
                    vector = [others] * 6
                    vector[index] = value
                    calls.append(SeccompData(call.nr, audit_arch("x86_64"), 0, tuple(vector)))
    for nr in (1, 2, 101, 500, X32_BIT, X32_BIT | 9, 0x7FFF_FFFF, -1):
        calls += [SeccompData(nr, audit_arch("x86_64")), SeccompData(nr, AUDIT_ARCH_I386)]
    return calls


def test_what_the_proof_accepts_is_equal_on_every_boundary(mixed: Program) -> None:
    """Change constants and jumps at random: either the proof refuses, or no boundary call sees a difference."""
    calls = boundary_calls()
    truth = [evaluate(mixed, call) for call in calls]
    refused = accepted = 0
    for at, (code, jt, jf, k) in enumerate(mixed):
        mutants = [Instruction(code, jt, jf, k ^ bit) for bit in (1, 4, 1 << 16, 1 << 31)]
        if code in bpf.JUMPS:
            mutants += [
                Instruction(code, jf, jt, k),
                Instruction(code, jt + 1, jf, k),
                Instruction(code, jt, jf + 1, k),
            ]
        for mutant in mutants:
            if mutant == mixed[at]:
                continue
            program = (*mixed[:at], mutant, *mixed[at + 1 :])
            try:
                data = encode(program)
            except ValueError:
                continue
            try:
                verify_program(data, MIXED, "x86_64")
            except ValueError:
                refused += 1
                continue
            accepted += 1
            assert [evaluate(program, call) for call in calls] == truth, f"instruction {at}: {mutant}"
    assert refused > 300
    assert accepted < refused


def test_a_back_door_for_one_value_is_found(mixed: Program) -> None:
    """What sampling would miss: one magic argument of a call that the profile kills."""
    door = (
        Instruction(bpf.LD_ABS, 0, 0, 40),
        Instruction(bpf.JEQ_K, 0, 1, 0x1BAD_CAFE),
        Instruction(bpf.RET_K, 0, 0, RET_ALLOW),
    )
    with pytest.raises(ValueError, match=r"args\[3\]\.lo = 0x1badcafe"):
        verify_program(encode((*door, *mixed)), MIXED, "x86_64")


def test_what_cannot_be_proved_is_refused(mixed: Program) -> None:
    computing = (Instruction(bpf.LD_ABS, 0, 0, 0), Instruction(bpf.ADD_K, 0, 0, 1), *mixed)
    with pytest.raises(ValueError, match="not proved"):
        verify_program(encode(computing), MIXED, "x86_64")


# --- random profiles ------------------------------------------------------------------------------------------------

VALUES = st.one_of(
    st.integers(0, 9),
    st.sampled_from((U64, 1 << 32, (1 << 32) - 1, 1 << 63, 0xFFFF_FFFF_8000_0000)),
    st.integers(0, U64),
)
MASKS = st.one_of(st.sampled_from((1, 4, 0xFF, 0xFFFF_FFFF, U64, 0xF0_0000_000F)), st.integers(1, U64))


@st.composite
def args(draw: st.DrawFn) -> Arg:
    op = draw(st.sampled_from(Op))
    value = draw(VALUES)
    if op is Op.MASKED_EQ:
        mask = draw(MASKS)
        return Arg(draw(st.integers(0, 5)), op, value & mask, mask)
    value += (op is Op.LT and value == 0) - (op is Op.GT and value == U64)
    return Arg(draw(st.integers(0, 5)), op, value)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    name = draw(st.sampled_from(("read", "mmap", "ioctl", "futex", "clone3", "statmount")))
    comparisons = draw(st.lists(args(), max_size=3, unique_by=lambda arg: arg.index))
    kind = draw(st.sampled_from(("always", "always", "startup", "errno")))
    if kind == "errno":
        return rule(name, *comparisons, errno=draw(st.sampled_from((1, 38))))
    return rule(name, *comparisons, phase=Phase(kind))


@given(st.lists(rules(), min_size=1, max_size=10), st.lists(st.tuples(*[VALUES] * 6), max_size=8), st.data())
@settings(max_examples=150, deadline=None)
def test_random_profiles(some: list[Rule], vectors: list[tuple[int, ...]], data: st.DataObject) -> None:
    """Oracle: `decide` on plain integers, which shares nothing with libseccomp or the proof but the rules."""
    wanted = profile(*some)
    try:
        calls = build_calls(wanted, "x86_64")
    except ValueError as fault:
        if "a wider rule comes first" not in str(fault):
            raise
        return
    program = decode(compile_profile(wanted, "x86_64"))
    for call in calls:
        near = [arg for choice in call.choices for alternative in choice.alternatives for arg in alternative]
        for vector in vectors:
            values = list(vector)
            for arg in near:
                if data.draw(st.booleans()):
                    values[arg.index] = (arg.value + data.draw(st.sampled_from((-1, 0, 0, 1)))) & U64
            returned = evaluate(program, SeccompData(call.nr, audit_arch("x86_64"), 0, tuple(values)))
            assert returned == decide(call, tuple(values))
    by_name = survey((program,), "x86_64")
    for name, verdict in expected_verdicts(wanted, "x86_64").items():
        assert by_name[name].returned <= verdict.returned | {RET_KILL_PROCESS}


@given(args(), VALUES)
def test_comparisons_on_integers(arg: Arg, value: int) -> None:
    signs = {Op.EQ: "==", Op.NE: "!=", Op.LT: "<", Op.LE: "<=", Op.GT: ">", Op.GE: ">="}
    text = f"{value} & {arg.mask} == {arg.value}" if arg.op is Op.MASKED_EQ else f"{value} {signs[arg.op]} {arg.value}"
    assert matches(arg, value) is eval(text)


# --- the cache ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def forget() -> None:
    compiler._remembered.cache_clear()


def only_file(directory: Path) -> Path:
    (found,) = directory.iterdir()
    return found


def test_the_cache_is_written_once_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "a" / "filters"
    data = cached_program(MIXED, "x86_64", directory)
    path = only_file(directory)
    assert path.read_bytes() == data
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    compiler._remembered.cache_clear()
    monkeypatch.setattr(compiler, "compile_profile", lambda *_: pytest.fail("compiled although the cache holds it"))
    assert cached_program(MIXED, "x86_64", directory) == data
    path.unlink()
    assert cached_program(MIXED, "x86_64", directory) == data  # remembered within the process


def allow_all() -> bytes:
    return encode((Instruction(bpf.RET_K, 0, 0, RET_ALLOW),))


@pytest.mark.parametrize(
    "poison",
    [
        allow_all(),
        b"",
        b"\0" * 7,
        b"\xff" * 64,
        b"\x06\0\0\0\0\0\xff\x7f" * 5000,
        compile_profile(profile(rule("read"), rule("write")), "x86_64"),
    ],
    ids=["allow-all", "empty", "torn", "garbage", "too-long", "another-profile"],
)
def test_a_poisoned_cache_loosens_nothing(tmp_path: Path, poison: bytes) -> None:
    good = cached_program(MIXED, "x86_64", tmp_path)
    path = only_file(tmp_path)
    path.write_bytes(poison)
    compiler._remembered.cache_clear()
    assert cached_program(MIXED, "x86_64", tmp_path) == good
    assert path.read_bytes() == good
    assert only_file(tmp_path) == path


def test_a_file_that_others_can_write_or_a_link_is_not_read(tmp_path: Path) -> None:
    good = cached_program(MIXED, "x86_64", tmp_path)
    path = only_file(tmp_path)
    path.chmod(0o666)
    with pytest.raises(ValueError, match="only we can write"):
        compiler._read_own(path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(good)
    path.unlink()
    path.symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic"):
        compiler._read_own(path)
    compiler._remembered.cache_clear()
    assert cached_program(MIXED, "x86_64", tmp_path) == good
    assert not path.is_symlink()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="only we can write"):
        compiler._read_own(path)
    path.unlink()
    path.mkdir()
    compiler._remembered.cache_clear()
    assert cached_program(MIXED, "x86_64", tmp_path) == good
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([path.name, "elsewhere"])


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    data = cached_program(MIXED, "x86_64", blocked / "filters")
    verify_program(data, MIXED, "x86_64")


def test_the_launch_path_does_not_import_libseccomp(tmp_path: Path) -> None:
    cached_program(MIXED, "x86_64", tmp_path)
    code = (
        "import sys, pathlib\n"
        "from casemate.jail.compile import cached_program\n"
        "import msgspec\n"
        "from casemate.jail.rules import Profile\n"
        "profile = msgspec.json.decode(sys.stdin.buffer.read(), type=Profile)\n"
        "cached_program(profile, 'x86_64', pathlib.Path(sys.argv[1]))\n"
        "print('pyseccomp' in sys.modules)\n"
    )
    import msgspec

    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], input=msgspec.json.encode(MIXED), capture_output=True, check=True
    )
    assert done.stdout == b"False\n"


def test_explain_shows_the_program(mixed: Program) -> None:
    text = explain(encode(mixed))
    assert "A = arch" in text
    assert f"return {RET_KILL_PROCESS:#010x}" in text
