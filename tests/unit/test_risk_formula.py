"""Closing conditions: their four values, that fixing never opens anything, and the smallest sets that close."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.scenarios.formula import (
    Absent,
    Condition,
    Every,
    Holds,
    Never,
    Some,
    State,
    Value,
    closing_sets,
    controls_of,
    evaluate,
    every,
    fulfilled,
    some,
    text_of,
)

NO, UNKNOWN, PAPER, YES = Value.NO, Value.UNKNOWN, Value.PAPER, Value.YES
NAMES = ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("condition", "states", "expected"),
    [
        (every("a"), {}, UNKNOWN),  # nobody judged it
        (every("a"), {"a": State(YES)}, YES),
        (every("a", "b"), {"a": State(YES), "b": State(NO)}, NO),
        (every("a", "b"), {"a": State(YES), "b": State(UNKNOWN)}, UNKNOWN),
        (every("a", "b"), {"a": State(PAPER), "b": State(UNKNOWN)}, UNKNOWN),
        (every("a", "b"), {"a": State(PAPER), "b": State(YES)}, PAPER),
        (some("a", "b"), {"a": State(NO), "b": State(YES)}, YES),
        (some("a", "b"), {"a": State(NO), "b": State(UNKNOWN)}, UNKNOWN),
        (some("a", "b"), {"a": State(UNKNOWN), "b": State(PAPER)}, PAPER),
        (some("a", "b"), {"a": State(NO), "b": State(NO)}, NO),
        (every("a"), {"a": State(YES, absent=True)}, NO),  # not applicable closes nothing by itself
        (every(Holds("a", or_absent=True)), {"a": State(YES, absent=True)}, YES),
        (every(Holds("a", or_absent=True)), {"a": State(PAPER, absent=True)}, PAPER),
        (some(Absent("a")), {"a": State(YES, absent=True)}, YES),
        (some(Absent("a")), {"a": State(PAPER, absent=True)}, PAPER),
        (some(Absent("a")), {"a": State(YES)}, NO),  # it applies, and passes: the thing is there
        (some(Absent("a")), {"a": State(NO)}, NO),
        (some(Absent("a")), {}, UNKNOWN),
        (some(Never("so it is")), {"a": State(YES)}, NO),
        (some(Never("so it is"), "a"), {"a": State(YES)}, YES),
    ],
)
def test_values(condition: Condition, states: dict[str, State], expected: Value) -> None:
    assert evaluate(condition, states) is expected


def test_a_condition_of_nothing_is_an_error() -> None:
    for make in (every, some):
        with pytest.raises(RuntimeError, match="all of nothing"):
            make()


def test_text() -> None:
    condition = some(Absent("net.egress"), every("a", some("b", "c")), Never("code has bugs"))
    assert text_of(condition) == (
        "any of (net.egress does not apply, all of (a, any of (b, c)), nothing (code has bugs))"
    )
    assert text_of(every("a")) == "a"


leaves: st.SearchStrategy[Condition] = st.sampled_from(
    [*(Holds(name) for name in NAMES), Holds("a", or_absent=True), Absent("b"), Never("x")]
)
conditions: st.SearchStrategy[Condition] = st.recursive(
    leaves,
    lambda inner: st.builds(
        lambda kind, parts: kind(tuple(parts)), st.sampled_from([Every, Some]), st.lists(inner, min_size=1, max_size=3)
    ),
    max_leaves=8,
)
present = st.sampled_from([State(value) for value in Value])
any_state = present | st.sampled_from([State(YES, absent=True), State(PAPER, absent=True)])


@given(conditions, st.fixed_dictionaries(dict.fromkeys(NAMES, present)), st.sampled_from(NAMES), st.data())
def test_fixing_never_opens(condition: Condition, states: dict[str, State], name: str, data: st.DataObject) -> None:
    """Monotone in what passes, for formulas without `Absent` (a thing that is there cannot be made absent)."""
    if any(isinstance(part, Absent) for part in _leaves(condition)):
        return
    better = State(data.draw(st.sampled_from([value for value in Value if value >= states[name].value])))
    assert evaluate(condition, states | {name: better}) >= evaluate(condition, states)


def _leaves(condition: Condition) -> list[Condition]:
    if isinstance(condition, (Every, Some)):
        return [leaf for part in condition.parts for leaf in _leaves(part)]
    return [condition]


@settings(max_examples=300)
@given(conditions, st.fixed_dictionaries(dict.fromkeys(NAMES, any_state)))
def test_closing_sets_are_all_the_smallest_ones(condition: Condition, states: dict[str, State]) -> None:
    """Brute force over all subsets of the controls agrees."""
    found = closing_sets(condition, states)
    names = sorted(set(controls_of(condition)))
    closing = [
        frozenset(chosen)
        for size in range(len(names) + 1)
        for chosen in combinations(names, size)
        if all(_can_pass(states[name]) for name in chosen)
        and evaluate(condition, fulfilled(states, chosen)) is Value.YES
    ]
    smallest = {item for item in closing if not any(other < item for other in closing)}
    assert set(found) == smallest


def _can_pass(state: State) -> bool:
    """What is known to be absent cannot be made to pass, and needs nothing more."""
    return not (state.absent and state.value is Value.YES)
