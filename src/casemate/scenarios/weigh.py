"""What the findings of one VM and its host make of each technique and each path. Pure.

For each technique:

1. Its closing condition is evaluated over the verdicts (`formula.py`).
2. Its likelihood starts from its effort, goes up with its history (only vulnerabilities of devices that the machine
   really has), down when everything that slows it holds.

For each path:

3. It is closed as well as its best-closed technique: *closed*, *on paper*, *unknown* or *open*.
4. With an unknown bug in it, it is never open, nor closed for good: *residual*, or *contained* when something else on
   it is closed by observed facts.
5. Its likelihood is that of its hardest technique.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Final

import msgspec

from casemate.controls.model import Verdict
from casemate.facts.cve_table import CveTable
from casemate.facts.fact import Stage
from casemate.scenarios.data import graph as own_graph
from casemate.scenarios.formula import UNJUDGED, State, Value, closing_sets, controls_of, evaluate
from casemate.scenarios.model import Graph, Nature, Technique
from casemate.scenarios.search import Paths, find_paths

HEAVY_HISTORY: Final = 40
"""From this weight on, a component's past makes its technique one step more likely (table of vulnerabilities: one that
may run code on the host weighs 10)."""


class Status(enum.StrEnum):
    """Of a path; see the module. Of a technique: all but the last two."""

    OPEN = "open"
    UNKNOWN = "unknown"
    PAPER = "on-paper"
    CLOSED = "closed"
    RESIDUAL = "residual"
    CONTAINED = "contained"


STATUS_OF: Final = {
    Value.NO: Status.OPEN,
    Value.UNKNOWN: Status.UNKNOWN,
    Value.PAPER: Status.PAPER,
    Value.YES: Status.CLOSED,
}


class Verdicts(msgspec.Struct, frozen=True):
    """The verdict of one control, as little of a finding as risk needs."""

    control: str
    verdict: Verdict
    stage: Stage = Stage.OBSERVED
    pending: bool = False
    evidence: str = ""
    why: str = ""


class Weighed(msgspec.Struct, frozen=True):
    """One technique here. ``closing``: how far its closing condition is met. ``likelihood``: 1 to 4 (V1 to V4).
    ``slowed``: all that slows it holds. ``history``: weight and number of vulnerabilities that count."""

    closing: Value
    likelihood: int
    slowed: bool
    history_weight: int
    history_count: int


_REMEMBERED: Final = 1024
"""Combinations remembered for one technique: a fleet has few, a hostile report must not have more."""


class Closing(msgspec.Struct, frozen=True):
    """How far a technique is closed, and the smallest sets of controls that would close it (`closing_sets`)."""

    value: Value
    sets: tuple[frozenset[str], ...]


class Prepared(msgspec.Struct, frozen=True):
    """A graph with what can be worked out before anything is known of a machine.

    ``paths``: by scenario. ``masks``: the same rows as bit masks of techniques. ``names``: the controls of each
    technique's closing condition. ``controls``: all that count anywhere. ``seen``: what each technique came to by where
    its controls stand: VMs of one fleet are much alike.
    """

    graph: Graph
    paths: dict[str, Paths]
    masks: dict[str, tuple[int, ...]]
    unknown_bugs: int
    consequences: int
    names: tuple[tuple[str, ...], ...]
    controls: tuple[str, ...]
    seen: tuple[dict[tuple[State, ...], Closing], ...]

    def closing(self, index: int, states: Mapping[str, State]) -> Closing:
        """How one technique is closed here, worked out once for each way its controls can stand."""
        key = tuple([states.get(control, UNJUDGED) for control in self.names[index]])
        seen = self.seen[index]
        found = seen.get(key)
        if found is None:
            condition = self.graph.techniques[index].closed_when
            found = Closing(evaluate(condition, states), closing_sets(condition, states))
            if len(seen) >= _REMEMBERED:
                seen.clear()
            seen[key] = found
        return found


def prepare(graph: Graph) -> Prepared:
    """Search all scenarios of a graph once."""
    paths = {variant.id: find_paths(graph, variant) for variant in graph.variants}
    masks = {name: tuple(_mask(row) for row in found.rows) for name, found in paths.items()}
    return Prepared(
        graph,
        paths,
        masks,
        _mask(index for index, item in enumerate(graph.techniques) if item.nature is Nature.UNKNOWN_BUG),
        _mask(index for index, item in enumerate(graph.techniques) if item.nature is Nature.CONSEQUENCE),
        tuple(tuple(dict.fromkeys(controls_of(item.closed_when))) for item in graph.techniques),
        tuple(sorted({control for item in graph.techniques for control in _all_of(item)})),
        tuple({} for _ in graph.techniques),
    )


@cache
def prepared() -> Prepared:
    """Casemate's own graph."""
    return prepare(own_graph())


def _all_of(technique: Technique) -> Iterator[str]:
    yield from controls_of(technique.closed_when)
    yield from technique.slows
    yield from technique.contained_by


def _mask(indices: Iterable[int]) -> int:
    mask = 0
    for index in indices:
        mask |= 1 << index
    return mask


def states_of(findings: Iterable[Verdicts]) -> dict[str, State]:
    """Where each control stands. A control with several findings stands where the worst of them does.

    What only a declared document says is on paper; waived is not met; manual and unknown are unknown.
    """
    states: dict[str, State] = {}
    for finding in findings:
        state = _state(finding)
        known = states.get(finding.control)
        if known is None or _badness(state) < _badness(known):
            states[finding.control] = state
    return states


def _badness(state: State) -> tuple[int, int]:
    """Lower is worse; something present that is met as well as an absence is the worse of the two."""
    return state.value, int(state.absent)


def _state(finding: Verdicts) -> State:
    best = Value.PAPER if finding.stage is Stage.DECLARED else Value.YES
    if finding.verdict is Verdict.PASS:
        return State(best)
    if finding.verdict is Verdict.NOT_APPLICABLE:
        return State(best, absent=True)
    if finding.verdict in (Verdict.FAIL, Verdict.WAIVED):
        return State(Value.NO)
    return State(Value.PAPER if finding.pending else Value.UNKNOWN)


def weigh(
    prepared_graph: Prepared, states: Mapping[str, State], history: Iterable[str], table: CveTable
) -> tuple[Weighed, ...]:
    """Each technique of the graph on this machine.

    Args:
        history: numbers of the vulnerabilities that would have reached the machine's devices.
    """
    reached = frozenset(history)
    by_component = _by_component(table)
    return tuple(
        _weigh(technique, prepared_graph.closing(index, states).value, states, reached, by_component)
        for index, technique in enumerate(prepared_graph.graph.techniques)
    )


class _Past(msgspec.Struct, frozen=True):
    id: str
    weight: int
    has_exploit: bool


@cache
def _by_component(table: CveTable) -> dict[str, tuple[_Past, ...]]:
    found: dict[str, list[_Past]] = {}
    for cve in table.cves:
        found.setdefault(cve.component, []).append(_Past(cve.id, cve.weight, cve.public_exploit))
    return {component: tuple(items) for component, items in found.items()}


def _weigh(
    technique: Technique,
    closing: Value,
    states: Mapping[str, State],
    reached: frozenset[str],
    by_component: dict[str, tuple[_Past, ...]],
) -> Weighed:
    past = [item for name in technique.history for item in by_component.get(name, ()) if item.id in reached]
    weight = sum(item.weight for item in past)
    slowed = bool(technique.slows) and all(
        (state := states.get(control)) is not None and state.value is Value.YES and not state.absent
        for control in technique.slows
    )
    likelihood = 5 - technique.effort
    likelihood += weight >= HEAVY_HISTORY or any(item.has_exploit for item in past)
    likelihood -= slowed
    return Weighed(closing, min(4, max(1, likelihood)), slowed, weight, len(past))


class Masks(msgspec.Struct, frozen=True):
    """The techniques of one machine by how far they are closed, and by likelihood, as bit masks."""

    closed: int
    paper: int
    unknown: int
    hard: tuple[int, int, int, int]
    """``hard[n]``: techniques, consequences apart, whose likelihood is at most ``n + 1``."""


def masks_of(prepared_graph: Prepared, weighed: tuple[Weighed, ...]) -> Masks:
    """Bit masks for `judge_paths`."""
    by_value = {value: _mask(i for i, item in enumerate(weighed) if item.closing is value) for value in Value}
    hard = [
        _mask(i for i, item in enumerate(weighed) if item.likelihood <= level) & ~prepared_graph.consequences
        for level in (1, 2, 3, 4)
    ]
    return Masks(
        by_value[Value.YES], by_value[Value.PAPER], by_value[Value.UNKNOWN], (hard[0], hard[1], hard[2], hard[3])
    )


def judge_paths(rows: Iterable[int], masks: Masks, unknown_bugs: int) -> tuple[tuple[Status, int], ...]:
    """Steps 3 to 5 for paths given as masks: status and likelihood of each."""
    closed, paper, unknown = masks.closed, masks.paper, masks.unknown
    one, two, three, _ = masks.hard
    found = []
    for row in rows:
        level = 1 if row & one else 2 if row & two else 3 if row & three else 4
        if row & unknown_bugs:
            status = Status.CONTAINED if row & closed else Status.RESIDUAL
        elif row & closed:
            status = Status.CLOSED
        elif row & paper:
            status = Status.PAPER
        else:
            status = Status.UNKNOWN if row & unknown else Status.OPEN
        found.append((status, level))
    return tuple(found)
