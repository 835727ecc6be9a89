"""The cheapest set of controls that closes chosen paths: branch and bound, exact unless it says otherwise.

A path is closed when one of its techniques is; a technique is closed by any of its closing sets (`formula.py`). So each
path has *options*, sets of controls that would have to pass, and the cheapest plan is the union of one option of each
path with the least cost, where a control that several paths need is paid once. (A weighted hitting set of sets.)

1. Paths without an option cannot be closed by any control: they remain.
2. Paths with the same options are one; an option that contains another is no option.
3. The branch takes the open path with the fewest options, the cheapest option first.
4. The bound: the cheapest options of paths that share no control add up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

import msgspec

MAX_NODES: Final = 20_000
MAX_OPTIONS: Final = 96
"""Options of one path that are considered: the smallest ones."""

Cost = Callable[[str], float]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do. ``controls``: cheapest first. ``remaining``: numbers of the paths that nothing closes. ``exact``:
    whether no cheaper plan exists; otherwise the search stopped at its bound with the best one found so far."""

    controls: tuple[str, ...]
    cost: float
    remaining: tuple[int, ...]
    exact: bool


class _Problem:
    def __init__(self, paths: Sequence[tuple[frozenset[str], ...]], cost: Cost, nodes: int) -> None:
        self.paths = sorted(set(paths), key=lambda options: (len(options), sorted(map(sorted, options))))
        self.price = {control: cost(control) for options in self.paths for option in options for control in option}
        self.nodes = nodes
        self.best = self._greedy()
        self.best_cost = self.cost_of(self.best)

    def cost_of(self, controls: AbstractSet[str]) -> float:
        return sum(self.price[control] for control in sorted(controls))

    def _greedy(self) -> frozenset[str]:
        taken: frozenset[str] = frozenset()
        for options in self.paths:
            if not any(option <= taken for option in options):
                taken |= min(options, key=lambda option: (self.cost_of(option - taken), sorted(option)))
        return taken

    def bound(self, open_paths: Sequence[tuple[frozenset[str], ...]], taken: frozenset[str]) -> float:
        total, used = 0.0, set(taken)
        for options in open_paths:
            controls = {control for option in options for control in option} - taken
            if used.isdisjoint(controls):
                total += min(self.cost_of(option - taken) for option in options)
                used |= controls
        return total

    def search(self, taken: frozenset[str], open_paths: Sequence[tuple[frozenset[str], ...]]) -> None:
        self.nodes -= 1
        cost = self.cost_of(taken)
        left = [options for options in open_paths if not any(option <= taken for option in options)]
        if not left:
            if (cost, len(taken), sorted(taken)) < (self.best_cost, len(self.best), sorted(self.best)):
                self.best, self.best_cost = taken, cost
            return
        if self.nodes < 0 or cost + self.bound(left, taken) >= self.best_cost:
            return
        chosen = min(left, key=len)
        for option in sorted(chosen, key=lambda item: (self.cost_of(item - taken), sorted(item))):
            self.search(taken | option, left)


def cheapest(
    rows: Sequence[Sequence[int]],
    sets: Mapping[int, tuple[frozenset[str], ...]],
    cost: Cost,
    *,
    max_nodes: int = MAX_NODES,
) -> Plan:
    """The cheapest plan that closes these paths.

    Args:
        rows: paths, as numbers of techniques.
        sets: of each technique on a path, the sets of controls that would close it (`formula.closing_sets`).
        cost: of making one control pass, 0 or more.
    """
    options = [_options(row, sets) for row in rows]
    remaining = tuple(number for number, found in enumerate(options) if not found)
    problem = _Problem([found for found in options if found], cost, max_nodes)
    problem.search(frozenset(), problem.paths)
    controls = tuple(sorted(problem.best, key=lambda control: (problem.price[control], control)))
    return Plan(controls=controls, cost=problem.best_cost, remaining=remaining, exact=problem.nodes >= 0)


def _options(row: Sequence[int], sets: Mapping[int, tuple[frozenset[str], ...]]) -> tuple[frozenset[str], ...]:
    """The sets that close this path, the smallest ones, none containing another."""
    found = sorted({option for index in row for option in sets[index]}, key=lambda item: (len(item), sorted(item)))
    kept: list[frozenset[str]] = []
    for option in found:
        if len(kept) < MAX_OPTIONS and not any(other <= option for other in kept):
            kept.append(option)
    return tuple(kept)
