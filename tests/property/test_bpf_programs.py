"""Programs from any bytes: round trips, and that analyses contain what evaluation gives."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz import bpf_cases

from casemate.bpf.analyse import UNKNOWN, verdicts_at
from casemate.bpf.evaluate import SeccompData, evaluate
from casemate.bpf.instruction import decode, encode
from casemate.bpf.paths import FULL, Word
from casemate.bpf.syscalls import AUDIT_ARCH_I386, AUDIT_ARCH_X86_64

WORDS = st.one_of(st.sampled_from(bpf_cases.CONSTANTS), st.integers(0, 0xFFFF_FFFF))
WIDE = st.one_of(WORDS, st.builds(lambda high, low: high << 32 | low, WORDS, WORDS))
CALLS = st.builds(
    SeccompData,
    st.one_of(st.integers(0, 470), WORDS),
    st.sampled_from((AUDIT_ARCH_X86_64, AUDIT_ARCH_I386)),
    WIDE,
    st.tuples(WIDE, WIDE, WIDE, WIDE, WIDE, WIDE),
)
RECIPES = st.binary(max_size=60 * bpf_cases.CHUNK)
# What libseccomp and most hand-written filters consist of, so that `paths` can follow more than a few instructions.
PLAIN = [kind for kind, code in enumerate(bpf_cases.BODY) if code in {0x20, 0x15, 0x25, 0x35, 0x45, 0x54, 0x05, 0x06}]
PLAIN_RECIPES = st.lists(
    st.builds(
        lambda kind, jt, jf, k: bytes((kind, jt, jf)) + struct.pack("<I", k),
        st.sampled_from(PLAIN),
        st.integers(0, 6),
        st.integers(0, 6),
        st.one_of(st.integers(0, 20), WORDS),
    ),
    max_size=40,
).map(b"".join)


@given(RECIPES, CALLS)
@settings(max_examples=300, deadline=None)
def test_all_instructions(recipe: bytes, call: SeccompData) -> None:
    bpf_cases.check_program(bpf_cases.program_from(recipe), call)


@given(PLAIN_RECIPES, CALLS)
@settings(max_examples=300, deadline=None)
def test_plain_filters(recipe: bytes, call: SeccompData) -> None:
    bpf_cases.check_program(bpf_cases.program_from(recipe), call)


@given(st.binary(max_size=200), CALLS)
@settings(max_examples=200, deadline=None)
def test_any_bytes(data: bytes, call: SeccompData) -> None:
    try:
        program = decode(data)
    except ValueError:
        return
    assert encode(program) == data
    bpf_cases.check_program(program, call)


@given(PLAIN_RECIPES, st.lists(st.integers(0, 20), min_size=1, max_size=12, unique=True), st.lists(CALLS, max_size=20))
@settings(max_examples=200, deadline=None)
def test_one_walk_for_many_numbers_agrees_with_one_walk_each(
    recipe: bytes, nrs: list[int], calls: list[SeccompData]
) -> None:
    program = bpf_cases.program_from(recipe, offsets=(0, 0, 0, 4, 16, 20))
    together = verdicts_at((program,), AUDIT_ARCH_X86_64, tuple(nrs))
    for nr in nrs:
        assert together[nr] == verdicts_at((program,), AUDIT_ARCH_X86_64, (nr,))[nr]
        for call in calls:
            returned = evaluate(program, call._replace(nr=nr, arch=AUDIT_ARCH_X86_64))
            assert together[nr] == UNKNOWN or returned in together[nr].returned


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just(None), st.integers(1, 15), st.booleans()),
        st.tuples(st.sampled_from((1, 2, 3, 4, 5, 8, 12, 15, FULL)), st.integers(0, 15), st.booleans()),
    ),
    max_size=12,
)


@given(STEPS)
@settings(max_examples=500, deadline=None)
def test_sets_of_words_never_lose_a_value(steps: list[tuple[int | None, int, bool]]) -> None:
    """Against the plain set of all values below 16, for words whose upper bits are 0."""
    model = set(range(16))
    word: Word | None = Word(mask=FULL & ~15, value=0, low=0, high=15)
    for mask, k, truth in steps:
        assert word is not None
        holds = {value: value >= k if mask is None else value & mask == k for value in model}
        answer = word.at_least(k) if mask is None else word.equals(mask, k)
        if answer is not None:
            assert set(holds.values()) <= {answer}
        model = {value for value in model if holds[value] is truth}
        word = word.with_at_least(k, truth) if mask is None else word.with_equals(mask, k, truth)
        if word is None:
            assert not model
            return
        assert all(word.low <= value <= word.high and value & word.mask == word.value for value in model)
        assert all(value & m != v for value in model for m, v in word.excluded)
