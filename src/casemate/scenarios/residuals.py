"""What stays possible whatever one does: unknown bugs, what holds who used one, and what he reaches past that. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from casemate.scenarios.formula import Value
from casemate.scenarios.model import GOODS, Nature, Node
from casemate.scenarios.risk_model import Residual
from casemate.scenarios.weigh import HOLDS, Codes, Standing, Weigher


def residuals_of(weigher: Weigher, standings: Sequence[Standing], codes: Codes) -> tuple[Residual, ...]:
    """The unknown bugs that stay possible here, the likeliest first."""
    ways = _ways(weigher, standings)
    reached: dict[Node, tuple[Node, ...]] = {}
    found = []
    for technique, standing in zip(weigher.graph.techniques, standings, strict=True):
        if technique.nature is not Nature.UNKNOWN_BUG or standing.closing is Value.YES:
            continue
        if technique.target not in reached:
            reached[technique.target] = _reached_from(technique.target, ways)
        by_holding: tuple[list[str], list[str]] = ([], [])
        for control in technique.contained_by:
            by_holding[codes[weigher.number[control]] == HOLDS].append(control)
        found.append(
            Residual(
                technique=technique.id,
                likelihood=standing.likelihood,
                holding=tuple(by_holding[True]),
                missing=tuple(by_holding[False]),
                reaches=reached[technique.target],
            )
        )
    return tuple(sorted(found, key=lambda item: (-item.likelihood, -len(item.reaches), item.technique)))


def _ways(weigher: Weigher, standings: Sequence[Standing]) -> dict[Node, set[Node]]:
    """From each position, where techniques lead that are neither closed nor unknown bugs."""
    ways: dict[Node, set[Node]] = {node: set() for node in Node}
    for technique, standing in zip(weigher.graph.techniques, standings, strict=True):
        if technique.nature is not Nature.UNKNOWN_BUG and standing.closing is not Value.YES:
            for source in technique.sources:
                ways[source].add(technique.target)
    return ways


def _reached_from(start: Node, ways: dict[Node, set[Node]]) -> tuple[Node, ...]:
    """Goods within reach from a position."""
    seen, todo = {start}, [start]
    while todo:
        further = ways[todo.pop()] - seen
        seen |= further
        todo += further
    return tuple(good for good in GOODS if good in seen)
