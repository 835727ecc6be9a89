"""Sets of calls and the paths they take."""

from __future__ import annotations

import pytest

from casemate.bpf import instruction as bpf
from casemate.bpf.instruction import Instruction
from casemate.bpf.paths import FULL, Question, Region, Word, paths


def narrowed(*steps: tuple[int | None, int, bool]) -> Word | None:
    word: Word | None = Word()
    for mask, k, truth in steps:
        assert word is not None
        word = word.with_at_least(k, truth) if mask is None else word.with_equals(mask, k, truth)
    return word


def test_an_interval_with_its_ends_cut_off_becomes_a_value() -> None:
    word = narrowed((None, 4, True), (None, 7, False), (FULL, 4, False), (FULL, 6, False))
    assert word == Word(FULL, 5, 5, 5)


def test_the_last_open_bit_is_decided_by_an_exclusion() -> None:
    word = narrowed((0xFFFF_FFFE, 6, True), (FULL, 6, False))
    assert word == Word(FULL, 7, 7, 7)
    assert narrowed((4, 4, False)) == Word(4, 0, 0, FULL & ~4)


def test_contradictions_are_empty() -> None:
    assert narrowed((None, 7, True), (None, 7, False)) is None
    assert narrowed((4, 4, True), (FULL, 3, True)) is None
    assert narrowed((FULL, 3, True), (FULL, 3, False)) is None
    assert narrowed((None, 0, False)) is None
    assert narrowed((3, 4, True)) is None
    assert narrowed((0x8000_0000, 0, True), (None, 0x8000_0000, True)) is None


def test_questions_are_answered_three_ways() -> None:
    word = narrowed((4, 4, True), (None, 100, False), (FULL, 12, False), (0x30, 0x10, False))
    assert word is not None
    assert word.equals(4, 4) is True
    assert word.equals(4, 0) is False
    assert word.equals(FULL, 12) is False
    assert word.equals(FULL, 13) is None
    assert word.equals(FULL, 0x14) is False
    assert word.equals(0x70, 0x10) is False
    assert word.equals(FULL, 104) is False
    assert word.equals(1, 2) is False
    assert word.equals(0, 0) is True
    assert word.at_least(4) is True
    assert word.at_least(100) is False
    assert word.at_least(50) is None


def test_regions_do_not_change() -> None:
    start = Region({})
    test = Question(16, None, 5)
    assert start.decide(test) is None
    above, below = start.assume(test, True), start.assume(test, False)
    assert above is not None
    assert below is not None
    assert above.decide(test) is True
    assert below.decide(test) is False
    assert start.decide(test) is None
    assert above.assume(test, False) is None
    assert str(start) == "any call"
    assert str(below) == "args[0].lo & 0xfffffff8 = 0x0, args[0].lo in 0x0..0x4"
    assert str(test) == "args[0].lo >= 0x5"


def test_paths_of_a_small_filter() -> None:
    program = (
        Instruction(bpf.LD_ABS, 0, 0, 0),
        Instruction(bpf.JGT_K, 2, 0, 9),
        Instruction(bpf.AND_K, 0, 0, 1),
        Instruction(bpf.JEQ_K, 1, 0, 1),
        Instruction(bpf.RET_K, 0, 0, 1),
        Instruction(bpf.RET_K, 0, 0, 2),
    )
    found = {str(region): returned for region, returned in paths(program)}
    assert found == {
        "nr in 0xa..0xffffffff": 1,
        "nr & 0xfffffff1 = 0x0, nr in 0x0..0x9": 1,
        "nr & 0xfffffff1 = 0x1, nr in 0x1..0x9": 2,
    }


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ([(bpf.ADD_K, 1)], "computes with nr"),
        ([(bpf.TAX, 0), (bpf.LD_IMM, 1), (bpf.ADD_X, 0)], "needs nr as a constant"),
        ([(bpf.AND_K, 6), (bpf.JGE_K, 3)], "orders a part of nr"),
        ([(bpf.RET_A, 0)], "needs nr as a constant"),
    ],
)
def test_what_cannot_be_followed_is_not_proved(body: list[tuple[int, int]], why: str) -> None:
    program = tuple(Instruction(code, 0, 0, k) for code, k in [(bpf.LD_ABS, 0), *body, (bpf.RET_K, 0)])
    with pytest.raises(ValueError, match=f"not proved.*{why}"):
        list(paths(program))


def test_a_program_made_to_explode_is_not_proved() -> None:
    body = []
    for bit in range(30):
        body += [Instruction(bpf.LD_ABS, 0, 0, 16), Instruction(bpf.JSET_K, 0, 0, 1 << bit)]
    with pytest.raises(ValueError, match="more than 20000 branches"):
        list(paths((*body, Instruction(bpf.RET_K, 0, 0, 0))))
