"""Verdicts on calls whose arguments are not known."""

from __future__ import annotations

import pytest

from casemate.bpf import analyse
from casemate.bpf import instruction as bpf
from casemate.bpf.analyse import UNKNOWN, Verdict, VerdictKind, survey, verdict_of, verdicts_at
from casemate.bpf.evaluate import (
    RET_ALLOW,
    RET_ERRNO,
    RET_KILL_PROCESS,
    RET_KILL_THREAD,
    RET_LOG,
    RET_TRACE,
    RET_TRAP,
    RET_USER_NOTIF,
    Action,
)
from casemate.bpf.instruction import Instruction, Program
from casemate.bpf.syscalls import AUDIT_ARCH_I386, AUDIT_ARCH_X86_64, X32_BIT, numbers


def assemble(*instructions: tuple[int, ...]) -> Program:
    program = tuple(
        Instruction(i[0], i[1], i[2], i[3]) if len(i) == 4 else Instruction(i[0], 0, 0, i[1]) for i in instructions
    )
    bpf.check(program)
    return program


LOAD_NR = (bpf.LD_ABS, 0)
LOAD_ARCH = (bpf.LD_ABS, 4)
LOAD_ARG = (bpf.LD_ABS, 16)
ALLOW = (bpf.RET_K, RET_ALLOW)
KILL = (bpf.RET_K, RET_KILL_PROCESS)
READ = assemble(LOAD_NR, (bpf.JEQ_K, 0, 1, 0), ALLOW, KILL)
BY_ARGUMENT = assemble(LOAD_ARG, (bpf.JEQ_K, 0, 1, 5), ALLOW, KILL)


def returns(*values: int) -> Program:
    """A filter whose answer depends on an argument and is one of ``values``."""
    body: list[tuple[int, ...]] = [LOAD_ARG]
    for value in values[:-1]:
        body += [(bpf.JEQ_K, 0, 1, value), (bpf.RET_K, value)]
    return assemble(*body, (bpf.RET_K, values[-1]))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ((RET_ALLOW,), VerdictKind.ALLOW),
        ((RET_LOG,), VerdictKind.ALLOW),
        ((RET_ALLOW, RET_LOG), VerdictKind.ALLOW),
        ((RET_ALLOW, RET_KILL_PROCESS), VerdictKind.CONDITIONAL),
        ((RET_ALLOW, RET_USER_NOTIF), VerdictKind.CONDITIONAL),
        ((RET_USER_NOTIF, RET_KILL_PROCESS), VerdictKind.NOTIFY),
        ((RET_TRACE, RET_USER_NOTIF), VerdictKind.TRACE),
        ((RET_ERRNO | 38, RET_KILL_THREAD), VerdictKind.ERRNO),
        ((RET_TRAP,), VerdictKind.TRAP),
        ((RET_KILL_THREAD,), VerdictKind.KILL),
        ((RET_KILL_PROCESS, RET_KILL_THREAD), VerdictKind.KILL),
        ((0x1234_5678,), VerdictKind.KILL),
    ],
)
def test_kinds(values: tuple[int, ...], kind: VerdictKind) -> None:
    verdict = verdict_of(returns(*values), "x86_64", 0)
    assert verdict == Verdict(kind, frozenset(values))
    assert verdict.may_pass == (kind in {VerdictKind.ALLOW, VerdictKind.CONDITIONAL})


def test_actions_of_a_verdict() -> None:
    assert verdict_of(returns(RET_ALLOW, RET_ERRNO | 1), "x86_64", 0).actions == {Action.ALLOW, Action.ERRNO}


def test_survey_names_every_call_once() -> None:
    verdicts = survey((READ,), "x86_64")
    assert list(verdicts) == list(numbers("x86_64"))
    assert [name for name, verdict in verdicts.items() if verdict.kind is not VerdictKind.KILL] == ["read"]
    assert [n for n, v in survey((READ,), "aarch64").items() if v.may_pass] == ["io_setup"]


def test_nothing_is_not_a_verdict() -> None:
    with pytest.raises(ValueError, match="no filter"):
        survey((), "x86_64")
    assert analyse.judge_returns(frozenset()) == UNKNOWN
    assert UNKNOWN.may_pass


def test_stacked_filters_give_the_strictest() -> None:
    first = assemble(LOAD_NR, (bpf.JGE_K, 0, 1, 2), (bpf.RET_K, RET_ERRNO | 1), ALLOW)
    verdicts = verdicts_at((first, READ, BY_ARGUMENT), AUDIT_ARCH_X86_64, (0, 1, 2))
    assert verdicts[0] == Verdict(VerdictKind.CONDITIONAL, frozenset({RET_ALLOW, RET_KILL_PROCESS}))
    assert verdicts[1] == Verdict(VerdictKind.KILL, frozenset({RET_KILL_PROCESS}))
    assert verdicts[2] == Verdict(VerdictKind.KILL, frozenset({RET_KILL_PROCESS}))
    errno = returns(RET_ERRNO | 5)
    assert verdicts_at((errno, BY_ARGUMENT), AUDIT_ARCH_X86_64, (0,))[0].returned == {RET_ERRNO | 5, RET_KILL_PROCESS}


def test_an_unknown_filter_under_one_that_kills() -> None:
    unbounded = assemble(LOAD_ARG, (bpf.RET_A, 0))
    assert verdict_of(unbounded, "x86_64", 0) == UNKNOWN
    assert verdicts_at((unbounded, READ), AUDIT_ARCH_X86_64, (0, 1))[0] == UNKNOWN
    assert verdicts_at((unbounded, READ), AUDIT_ARCH_X86_64, (0, 1))[1].kind is VerdictKind.KILL


def test_arithmetic_on_the_number_is_followed() -> None:
    """A filter may compute: here only calls whose number is 1 modulo 4 pass, said with AND, then with shifts."""
    for body in ([(bpf.AND_K, 3)], [(bpf.LSH_K, 30), (bpf.RSH_K, 30)]):
        program = assemble(LOAD_NR, *body, (bpf.JEQ_K, 0, 1, 1), ALLOW, KILL)
        allowed = {nr for nr, v in verdicts_at((program,), AUDIT_ARCH_X86_64, tuple(range(40))).items() if v.may_pass}
        assert allowed == set(range(1, 40, 4))


@pytest.mark.parametrize("code", sorted(bpf.JUMPS_K))
@pytest.mark.parametrize("k", range(8))
def test_each_test_on_many_numbers_at_once(code: int, k: int) -> None:
    """Numbers 1 to 6 together, plain and after an addition; each must get what it gets alone in plain arithmetic."""
    holds = {bpf.JEQ_K: k.__eq__, bpf.JGT_K: k.__lt__, bpf.JGE_K: k.__le__, bpf.JSET_K: k.__and__}[code]
    for added in (0, 2):
        shift = [(bpf.ADD_K, added)] if added else []
        program = assemble(LOAD_NR, *shift, (code, 0, 1, k), ALLOW, KILL)
        verdicts = verdicts_at((program,), AUDIT_ARCH_X86_64, tuple(range(1, 7)))
        allowed = [nr for nr, verdict in verdicts.items() if verdict.kind is VerdictKind.ALLOW]
        assert allowed == [nr for nr in range(1, 7) if holds(nr + added)]
        assert all(len(verdict.returned) == 1 for verdict in verdicts.values())


def test_a_number_kept_in_scratch_memory_is_followed() -> None:
    program = assemble(
        LOAD_NR, (bpf.ST, 3), LOAD_ARG, (bpf.LDX_MEM, 3), (bpf.TXA, 0), (bpf.JSET_K, 0, 1, 1), ALLOW, KILL
    )
    verdicts = verdicts_at((program,), AUDIT_ARCH_X86_64, (0, 1, 2, 3))
    assert [nr for nr, verdict in verdicts.items() if verdict.kind is VerdictKind.ALLOW] == [1, 3]


def test_division_by_an_unknown_may_kill_the_thread() -> None:
    program = assemble(LOAD_ARG, (bpf.TAX, 0), (bpf.LD_IMM, 1), (bpf.DIV_X, 0), ALLOW)
    assert verdict_of(program, "x86_64", 0).returned == {RET_ALLOW, RET_KILL_THREAD}
    zero = assemble((bpf.LD_IMM, 1), (bpf.DIV_X, 0), ALLOW)
    assert verdict_of(zero, "x86_64", 0).returned == {RET_KILL_THREAD}


def test_other_architectures_and_x32() -> None:
    no_arch_check = READ
    assert analyse.survey_other_arches((no_arch_check,), "x86_64").kind is VerdictKind.CONDITIONAL
    with_check = assemble(LOAD_ARCH, (bpf.JEQ_K, 1, 0, AUDIT_ARCH_X86_64), KILL, ALLOW)
    assert analyse.survey_other_arches((with_check,), "x86_64").kind is VerdictKind.KILL
    only_i386 = assemble(LOAD_ARCH, (bpf.JEQ_K, 0, 1, AUDIT_ARCH_I386), ALLOW, KILL)
    assert analyse.survey_other_arches((only_i386,), "x86_64").kind is VerdictKind.CONDITIONAL
    assert analyse.survey_x32((with_check,)).kind is VerdictKind.ALLOW
    bit = assemble(LOAD_NR, (bpf.JSET_K, 0, 1, X32_BIT), KILL, ALLOW)
    assert analyse.survey_x32((bit,)).kind is VerdictKind.KILL
    one_hole = assemble(LOAD_NR, (bpf.JEQ_K, 0, 1, X32_BIT | 520), ALLOW, KILL)
    assert analyse.survey_x32((one_hole,)).kind is VerdictKind.CONDITIONAL


def test_calls_beyond_the_table() -> None:
    assert analyse.survey_beyond((READ,), "x86_64").kind is VerdictKind.KILL
    denylist = assemble(LOAD_NR, (bpf.JGE_K, 1, 0, 462), KILL, ALLOW)
    assert analyse.survey_beyond((denylist,), "x86_64").kind is VerdictKind.CONDITIONAL


def test_a_program_made_to_explode_ends_as_unknown() -> None:
    """Every argument bit goes into another scratch word: 2**16 states at one place, times what follows."""
    body: list[tuple[int, ...]] = [(bpf.ST, word) for word in range(16)]
    for step in range(250):
        body += [LOAD_ARG, (bpf.JEQ_K, 0, 1, step), (bpf.ST, step % 16), (bpf.LD_IMM, step), (bpf.ST, (step * 7) % 16)]
    assert verdict_of(assemble(*body, ALLOW), "x86_64", 0) == UNKNOWN


def test_a_long_chain_of_joins_does_not_explode() -> None:
    body: list[tuple[int, ...]] = []
    for step in range(1300):
        body += [LOAD_ARG, (bpf.JEQ_K, 0, 1, step), LOAD_ARG]
    assert verdict_of(assemble(*body, ALLOW), "x86_64", 0).kind is VerdictKind.ALLOW


def test_a_malformed_program_is_an_error() -> None:
    bad = (Instruction(bpf.JA, 0, 0, 9), Instruction(bpf.RET_K, 0, 0, RET_ALLOW))
    with pytest.raises(ValueError, match="check it first"):
        verdict_of(bad, "x86_64", 0)
    with pytest.raises(ValueError, match="s390x"):
        verdict_of(READ, "s390x", 0)


def test_a_remembered_program_answers_for_itself_alone() -> None:
    """Evaluated before under another architecture, other numbers or beside another filter: no answer is mixed up."""
    other = assemble(LOAD_NR, (bpf.JEQ_K, 0, 1, 1), ALLOW, KILL)
    for _ in range(2):
        assert verdicts_at((READ,), AUDIT_ARCH_X86_64, (0,))[0].kind is VerdictKind.ALLOW
        assert verdicts_at((READ,), AUDIT_ARCH_X86_64, (1,))[1].kind is VerdictKind.KILL
        assert verdicts_at((other,), AUDIT_ARCH_X86_64, (1,))[1].kind is VerdictKind.ALLOW
        assert verdicts_at((READ, other), AUDIT_ARCH_X86_64, (0, 1))[0].kind is VerdictKind.KILL
        by_arch = assemble(LOAD_ARCH, (bpf.JEQ_K, 0, 1, AUDIT_ARCH_I386), KILL, ALLOW)
        assert verdicts_at((by_arch,), AUDIT_ARCH_I386, (0,))[0].kind is VerdictKind.KILL
        assert verdicts_at((by_arch,), AUDIT_ARCH_X86_64, (0,))[0].kind is VerdictKind.ALLOW
