"""The paths of a scenario through the graph: depth-first, bounded, and said when it had to stop.

A path is a row of techniques, each from where the attacker is to where he was not before. Detours are left out:

1. A technique that an earlier position of the path offers already is not used from a later one.
2. Where a consequence leads straight to a goal, nothing else is tried from there.

Paths depend on the data alone, not on what was found on a machine, so they are searched once and weighed many times.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

import msgspec

from casemate.scenarios.model import GOODS, Graph, Nature, Node, Technique, Variant

MAX_PATHS: Final = 4_000
MAX_STEPS: Final = 7
MAX_VISITS: Final = 100_000
"""Positions looked at for one scenario; a hostile graph stops here."""


class Paths(msgspec.Struct, frozen=True):
    """The paths of one scenario as rows of indices into the graph's techniques, in order of discovery; shorter and
    easier techniques first. ``complete``: whether the search got to its end."""

    rows: tuple[tuple[int, ...], ...]
    complete: bool


class _Search:
    def __init__(self, graph: Graph, variant: Variant, budget: Budget) -> None:
        self.techniques = graph.techniques
        self.via = frozenset(variant.via)
        self.budget = budget
        self.rows: list[tuple[int, ...]] = []
        self.from_node: dict[Node, list[int]] = defaultdict(list)
        for index, technique in enumerate(graph.techniques):
            for source in technique.sources:
                self.from_node[source].append(index)

    def to_(self, goal: Node, row: tuple[int, ...], visited: tuple[Node, ...]) -> None:
        """Go on from the last position visited."""
        if not self.budget.takes_one():
            return
        offered = [index for index in self.from_node[visited[-1]] if self._is_new(self.techniques[index], visited)]
        straight = [
            index
            for index in offered
            if self.techniques[index].nature is Nature.CONSEQUENCE and self.techniques[index].target is goal
        ]
        for index in straight or offered:  # 2. Straight to the goal.
            technique = self.techniques[index]
            longer = (*row, index)
            if technique.target is goal:
                if not self.via or any(self.techniques[step].id in self.via for step in longer):
                    self.rows.append(longer)
                    self.budget.found()
            elif technique.target not in GOODS and len(longer) < MAX_STEPS:
                self.to_(goal, longer, (*visited, technique.target))
            if self.budget.spent:
                return

    @staticmethod
    def _is_new(technique: Technique, visited: tuple[Node, ...]) -> bool:
        # 1. Not offered before, and not back to where he was.
        return technique.target not in visited and not any(node in technique.sources for node in visited[:-1])


class Budget:
    """What one search may still use."""

    def __init__(self, visits: int = MAX_VISITS, paths: int = MAX_PATHS) -> None:
        self._visits = visits
        self._paths = paths
        self.spent = False

    def takes_one(self) -> bool:
        """One position more; False when there is nothing left."""
        self._visits -= 1
        self.spent = self.spent or self._visits < 0
        return not self.spent

    def found(self) -> None:
        """One path more."""
        self._paths -= 1
        self.spent = self.spent or self._paths <= 0


def find_paths(graph: Graph, variant: Variant) -> Paths:
    """All paths of a scenario, or as many as the bounds allow."""
    search = _Search(graph, variant, Budget())
    for goal in variant.goals:
        for start in variant.starts:
            search.to_(goal, (), (start,))
    rows = sorted(dict.fromkeys(search.rows), key=lambda row: (len(row), row))
    return Paths(tuple(rows), not search.budget.spent)
