"""Sets of paths judged at once, beside each path judged by itself."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.scenarios.data import graph
from casemate.scenarios.formula import State, Value
from casemate.scenarios.model import Nature, Status
from casemate.scenarios.paths import bits_of, judge, numbers_of, table_of
from casemate.scenarios.search import find_paths
from casemate.scenarios.weigh import fulfil, weigher

GRAPH = graph()
TABLE = table_of(GRAPH)
COUNT = len(GRAPH.techniques)


def by_itself(row: tuple[int, ...], closings: list[Value], likelihoods: list[int]) -> tuple[Status, int]:
    """Steps 1 to 3 of `scenarios/paths.py`, for one path, as its docstring says them."""
    best = max(closings[index] for index in row)
    needs_bug = any(GRAPH.techniques[index].nature is Nature.UNKNOWN_BUG for index in row)
    harder = [likelihoods[i] for i in row if GRAPH.techniques[i].nature is not Nature.CONSEQUENCE]
    level = min(harder, default=4)
    if needs_bug:
        return (Status.CONTAINED if best is Value.YES else Status.RESIDUAL), level
    return {
        Value.YES: Status.CLOSED,
        Value.PAPER: Status.PAPER,
        Value.UNKNOWN: Status.UNKNOWN,
        Value.NO: Status.OPEN,
    }[best], level


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(list(Value)), min_size=COUNT, max_size=COUNT),
    st.lists(st.integers(1, 4), min_size=COUNT, max_size=COUNT),
)
def test_every_path_stands_as_it_would_by_itself(closings: list[Value], likelihoods: list[int]) -> None:
    judged = judge(TABLE, closings, likelihoods)
    expected = [by_itself(row, closings, likelihoods) for row in TABLE.rows]
    for status in Status:
        assert list(numbers_of(judged.by_status[status])) == [n for n, (is_, _) in enumerate(expected) if is_ is status]
    for level in (1, 2, 3, 4):
        found = list(numbers_of(judged.by_likelihood[level - 1]))
        assert found == [n for n, (_, is_) in enumerate(expected) if is_ == level]
    for variant in GRAPH.variants:
        paths = TABLE.of[variant.id]
        assert judged.likelihood(paths) == max((expected[n][1] for n in numbers_of(paths)), default=0)
        worst = list(judged.worst_first({status: paths & found for status, found in judged.by_status.items()}))
        order = list(Status)
        assert worst == sorted(
            worst, key=lambda item: (order.index(item[1]), -item[2], len(TABLE.rows[item[0]]), item[0])
        )
        assert {number for number, _, _ in worst} == set(numbers_of(paths))


def test_the_table_has_the_paths_of_each_scenario() -> None:
    for variant in GRAPH.variants:
        found = find_paths(GRAPH, variant)
        assert {TABLE.rows[number] for number in numbers_of(TABLE.of[variant.id])} == set(found.rows)
        assert TABLE.complete[variant.id] == found.complete
    for number, row in enumerate(TABLE.rows):
        assert TABLE.masks[number] == bits_of(row)
        assert TABLE.names[number] == tuple(GRAPH.techniques[index].id for index in row)
        assert all(TABLE.on[index] >> number & 1 for index in row)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_weighing_again_after_a_change_is_weighing_anew(data: st.DataObject) -> None:
    """What is remembered and what is left as it was is what would come out from the start."""
    own = weigher()
    states = {name: State(data.draw(st.sampled_from(list(Value))), data.draw(st.booleans())) for name in own.controls}
    codes = own.codes_of(states)
    changed = data.draw(st.lists(st.integers(0, len(own.controls) - 1), max_size=6, unique=True))
    after = fulfil(codes, changed)
    assert own.weigh_again(own.weigh(codes, ()), after, (), changed) == own.weigh(after, ())
