"""The cheapest plan against brute force over all subsets, and its bound."""

from __future__ import annotations

import random
from itertools import combinations
from typing import NamedTuple

import pytest

from casemate.scenarios.fixes import MAX_OPTIONS, Cost, Prices
from casemate.scenarios.fixes import cheapest as cheapest_of
from casemate.scenarios.formula import (
    Condition,
    Never,
    State,
    Value,
    closing_sets,
    controls_of,
    evaluate,
    every,
    fulfilled,
    some,
)
from casemate.scenarios.model import Graph, Nature, Node, Technique
from casemate.scenarios.paths import bits_of

NAMES = tuple("abcdefg")


class Chosen(NamedTuple):
    """A plan with its controls by name."""

    controls: tuple[str, ...]
    cost: float
    remaining: tuple[int, ...]
    exact: bool


def cheapest(
    graph: Graph, rows: list[tuple[int, ...]], states: dict[str, State], cost: Cost, max_nodes: int = 20_000
) -> Chosen:
    names = sorted({name for item in graph.techniques for name in controls_of(item.closed_when)})
    sets = {
        index: tuple(bits_of(map(names.index, option)) for option in closing_sets(item.closed_when, states))
        for index, item in enumerate(graph.techniques)
    }
    prices = Prices([cost(name) for name in names])
    plan = cheapest_of([bits_of(row) for row in rows], sets, prices, max_nodes=max_nodes)
    return Chosen(tuple(names[number] for number in plan.controls), plan.cost, plan.remaining, plan.exact)


def _technique(number: int, condition: Condition) -> Technique:
    return Technique(
        id=f"t{number}",
        title="",
        nature=Nature.WEAKNESS,
        sources=(Node.NETWORK,),
        target=Node.HOST,
        closed_when=condition,
    )


def _random_condition(chance: random.Random, depth: int = 0) -> Condition:
    if chance.random() < 0.08:
        return Never("so it is")
    parts = [
        _random_condition(chance, depth + 1) if depth < 2 and chance.random() < 0.3 else chance.choice(NAMES)
        for _ in range(chance.randint(1, 3))
    ]
    return chance.choice((every, some))(*parts)


@pytest.mark.parametrize("seed", range(200))
def test_brute_force_agrees(seed: int) -> None:
    chance = random.Random(seed)
    graph = Graph(tuple(_technique(i, _random_condition(chance)) for i in range(chance.randint(2, 6))), ())
    states = {name: State(chance.choice(list(Value))) for name in NAMES if chance.random() < 0.9}
    costs = {name: chance.choice((0.0, 1.0, 1.5, 2.0, 5.0)) for name in NAMES}
    rows = [
        tuple(chance.sample(range(len(graph.techniques)), chance.randint(1, min(3, len(graph.techniques)))))
        for _ in range(chance.randint(1, 6))
    ]
    plan = cheapest(graph, rows, states, costs.__getitem__)
    assert plan.exact

    def closed(row: tuple[int, ...], chosen: tuple[str, ...]) -> bool:
        done = fulfilled(states, chosen)
        return any(evaluate(graph.techniques[index].closed_when, done) is Value.YES for index in row)

    subsets = [chosen for size in range(len(NAMES) + 1) for chosen in combinations(NAMES, size)]
    possible = [row for row in rows if closed(row, NAMES)]
    assert [number for number, row in enumerate(rows) if row not in possible] == list(plan.remaining)
    best = min(
        sum(costs[name] for name in chosen) for chosen in subsets if all(closed(row, chosen) for row in possible)
    )
    assert plan.cost == pytest.approx(best)
    fewest = min(
        len(chosen)
        for chosen in subsets
        if sum(costs[name] for name in chosen) == best and all(closed(row, chosen) for row in possible)
    )
    assert len(plan.controls) == fewest, "of plans that cost the same, one with the fewest controls"
    assert all(closed(row, plan.controls) for row in possible)


def test_what_two_paths_share_is_paid_once() -> None:
    """Two paths, each closable alone for 2, together by one control for 3."""
    graph = Graph((_technique(0, some("a", "c")), _technique(1, some("b", "c"))), ())
    plan = cheapest(graph, [(0,), (1,)], {}, {"a": 2.0, "b": 2.0, "c": 3.0}.__getitem__)
    assert (plan.controls, plan.cost) == (("c",), 3.0)


def test_the_bound_is_said() -> None:
    """An odd cycle of choices, large: the search stops, and the plan still closes everything."""
    size = 61
    names = [f"n{i}" for i in range(size)]
    techniques = tuple(
        _technique(i, some(names[i], names[(i + 1) % size], names[(i * 7 + 3) % size])) for i in range(size)
    )
    graph = Graph(techniques, ())
    rows: list[tuple[int, ...]] = [(i,) for i in range(size)]
    plan = cheapest(graph, rows, {}, lambda _: 1.0, max_nodes=50)
    assert not plan.exact
    done = fulfilled({}, plan.controls)
    assert all(evaluate(item.closed_when, done) is Value.YES for item in techniques)


def test_options_left_out_are_said() -> None:
    """One path with more ways to close it than are looked at; the one left out costs nothing."""
    dear = [_technique(i, every(f"a{i:03}", f"b{i:03}")) for i in range(MAX_OPTIONS)]
    free = _technique(MAX_OPTIONS, every("x", "y", "z"))
    prices = dict.fromkeys("xyz", 0.0)
    for ways, exact, cost in ((dear[1:], True, 0.0), (dear, False, 20.0)):
        graph = Graph((*ways, free), ())
        plan = cheapest(graph, [tuple(range(len(ways) + 1))], {}, lambda name: prices.get(name, 10.0))
        assert (plan.exact, plan.cost) == (exact, cost)


def test_a_condition_of_ours_with_too_many_ways_is_our_bug() -> None:
    """Two to the seventh: none may be left out in silence."""
    condition = every(*(some(f"a{i}", f"b{i}") for i in range(7)))
    with pytest.raises(RuntimeError, match="more than 64"):
        closing_sets(condition, {})
    assert len(closing_sets(condition, {}, limit=128)) == 128


def test_nothing_to_do() -> None:
    graph = Graph((_technique(0, every("a")), _technique(1, Never("x"))), ())
    assert cheapest(graph, [(0,)], {"a": State(Value.YES)}, lambda _: 1.0).controls == ()
    plan = cheapest(graph, [(1,)], {}, lambda _: 1.0)
    assert (plan.controls, plan.remaining, plan.cost) == ((), (0,), 0)
