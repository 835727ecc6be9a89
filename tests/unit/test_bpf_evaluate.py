"""Running programs: the kernel's arithmetic and precedence written out by hand; tests/walls asks the kernel itself."""

from __future__ import annotations

import pytest

from casemate.bpf import evaluate as ev
from casemate.bpf import instruction as bpf
from casemate.bpf.evaluate import Action, SeccompData, action_of, evaluate, strictest
from casemate.bpf.instruction import Instruction

DATA = SeccompData(1, 2, 0x1_0000_0003, (0x5_0000_0004, 6, 7, 8, 9, 0xFFFF_FFFF_FFFF_FFFE))


def run(*fields: tuple[int, int]) -> int:
    """Run (code, k) pairs and return A."""
    program = tuple(Instruction(code, 0, 0, k) for code, k in fields)
    return evaluate((*program, Instruction(bpf.RET_A, 0, 0, 0)), DATA)


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ([], 0),
        ([(bpf.LD_ABS, 0)], 1),
        ([(bpf.LD_ABS, 4)], 2),
        ([(bpf.LD_ABS, 8)], 3),
        ([(bpf.LD_ABS, 12)], 1),
        ([(bpf.LD_ABS, 16)], 4),
        ([(bpf.LD_ABS, 20)], 5),
        ([(bpf.LD_ABS, 56)], 0xFFFF_FFFE),
        ([(bpf.LD_LEN, 0)], 64),
        ([(bpf.LDX_LEN, 0), (bpf.TXA, 0)], 64),
        ([(bpf.LD_IMM, 7), (bpf.ADD_K, 0xFFFF_FFFF)], 6),
        ([(bpf.LD_IMM, 7), (bpf.SUB_K, 8)], 0xFFFF_FFFF),
        ([(bpf.LD_IMM, 0x8000_0001), (bpf.MUL_K, 2)], 2),
        ([(bpf.LD_IMM, 0xFFFF_FFFF), (bpf.DIV_K, 2)], 0x7FFF_FFFF),
        ([(bpf.LD_IMM, 1), (bpf.NEG, 0)], 0xFFFF_FFFF),
        ([(bpf.LD_IMM, 0x8000_0001), (bpf.LSH_K, 1)], 2),
        ([(bpf.LD_IMM, 0x8000_0000), (bpf.RSH_K, 31)], 1),
        ([(bpf.LD_IMM, 6), (bpf.XOR_K, 3)], 5),
        ([(bpf.LD_IMM, 6), (bpf.OR_K, 9)], 15),
        ([(bpf.LD_IMM, 6), (bpf.AND_K, 3)], 2),
        ([(bpf.LDX_IMM, 33), (bpf.LD_IMM, 1), (bpf.LSH_X, 0)], 2),
        ([(bpf.LDX_IMM, 3), (bpf.LD_IMM, 10), (bpf.DIV_X, 0)], 3),
        ([(bpf.LD_IMM, 9), (bpf.TAX, 0), (bpf.LD_IMM, 1), (bpf.SUB_X, 0)], 0xFFFF_FFF8),
        ([(bpf.LD_IMM, 9), (bpf.ST, 15), (bpf.LD_IMM, 1), (bpf.LDX_MEM, 15), (bpf.TXA, 0)], 9),
        ([(bpf.LDX_IMM, 8), (bpf.STX, 0), (bpf.LD_MEM, 0)], 8),
        ([(bpf.LD_IMM, 5), (bpf.DIV_X, 0), (bpf.LD_IMM, 0x7FFF_0000)], 0),  # X is 0: the program ends there
    ],
)
def test_arithmetic(program: list[tuple[int, int]], expected: int) -> None:
    assert run(*program) == expected


@pytest.mark.parametrize(
    ("code", "k", "taken"),
    [
        (bpf.JEQ_K, 5, True),
        (bpf.JEQ_K, 6, False),
        (bpf.JGT_K, 4, True),
        (bpf.JGT_K, 5, False),
        (bpf.JGE_K, 5, True),
        (bpf.JGE_K, 0x8000_0000, False),
        (bpf.JSET_K, 4, True),
        (bpf.JSET_K, 2, False),
    ],
)
@pytest.mark.parametrize("from_x", [False, True])
def test_jumps(code: int, k: int, taken: bool, from_x: bool) -> None:
    program = (
        Instruction(bpf.LD_IMM, 0, 0, 5),
        Instruction(bpf.LDX_IMM, 0, 0, k),
        Instruction(code | 0x08 if from_x else code, 1, 0, 0 if from_x else k),
        Instruction(bpf.RET_K, 0, 0, 0),
        Instruction(bpf.RET_K, 0, 0, 1),
    )
    assert evaluate(program, DATA) == int(taken)


@pytest.mark.parametrize(
    "instruction",
    [
        Instruction(bpf.JA, 0, 0, 9),
        Instruction(bpf.JEQ_K, 200, 200, 0),
        Instruction(bpf.LD_ABS, 0, 0, 64),
        Instruction(bpf.LD_ABS, 0, 0, 1),
        Instruction(bpf.LD_MEM, 0, 0, 99),
        Instruction(bpf.ST, 0, 0, 16),
        Instruction(0x94, 0, 0, 1),
        Instruction(0xFFFF, 0, 0, 0),
    ],
)
def test_a_program_that_the_kernel_would_not_take_has_no_verdict(instruction: Instruction) -> None:
    with pytest.raises(ValueError, match="instruction"):
        evaluate((instruction, Instruction(bpf.RET_K, 0, 0, 0x7FFF_0000)), DATA)


def test_the_number_is_an_int_of_the_kernel() -> None:
    assert SeccompData(-1, 0).words()[0] == 0xFFFF_FFFF
    assert SeccompData(0xFFFF_FFFF, 0).words() == SeccompData(-1, 0).words()
    with pytest.raises(ValueError, match="6 arguments"):
        SeccompData(0, 0, 0, (1, 2)).words()


def test_an_action_that_the_kernel_does_not_know_kills() -> None:
    assert action_of(0x7FFF_1234) is Action.ALLOW
    assert action_of(0x0005_0026) is Action.ERRNO
    assert action_of(0x1234_0000) is Action.KILL_PROCESS
    assert action_of(0) is Action.KILL_THREAD


def test_the_strictest_of_stacked_filters_counts() -> None:
    ladder = [
        ev.RET_KILL_PROCESS,
        ev.RET_KILL_THREAD,
        ev.RET_TRAP,
        ev.RET_ERRNO | 1,
        ev.RET_USER_NOTIF,
        ev.RET_TRACE,
        ev.RET_LOG,
        ev.RET_ALLOW,
    ]
    for at, value in enumerate(ladder):
        assert strictest(reversed(ladder[at:])) == value
    assert strictest([ev.RET_ERRNO | 2, ev.RET_ERRNO | 1]) == ev.RET_ERRNO | 2  # the most recent one's data
    with pytest.raises(ValueError, match="no filter"):
        strictest([])
