"""What the findings of one VM and its host make of each technique. Pure.

1. The closing condition is evaluated over where its controls stand (`formula.py`).
2. The likelihood starts from the effort, goes up with the history (only vulnerabilities of devices that the machine
   really has), down when everything that slows it holds.

Where controls stand is a *code* for each control that counts (`codes_of`). A technique depends on a handful of them:
what it came to is remembered by these few, for VMs of one host are much alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from operator import itemgetter
from typing import Any, Final

import msgspec

from casemate.facts.cve_table import CveTable, table
from casemate.scenarios.data import graph as own_graph
from casemate.scenarios.formula import UNJUDGED, State, Value, closing_sets, controls_of, evaluate
from casemate.scenarios.model import Graph, Status, Technique
from casemate.scenarios.paths import Bits, Judged, Table, bits_of, judge, table_of
from casemate.scenarios.risk_model import TechniqueRisk

HEAVY_HISTORY: Final = 40
"""From this weight on, a component's past makes its technique one step more likely (table of vulnerabilities: one that
may run code on the host weighs 10)."""
HOLDS: Final = 2 * Value.YES
"""The code of a control that applies and passes on observed facts."""
STATUS_OF: Final = {
    Value.NO: Status.OPEN,
    Value.UNKNOWN: Status.UNKNOWN,
    Value.PAPER: Status.PAPER,
    Value.YES: Status.CLOSED,
}
_STATES: Final = tuple(State(value, absent) for value in Value for absent in (False, True))
_REMEMBERED: Final = 256
"""Ways to stand that are remembered for one technique: a fleet has few, a hostile report must not have more."""
Codes = bytes
"""By control that counts, in the order of their names: twice its value, and one more for one that does not apply."""


class Past(msgspec.Struct, frozen=True):
    """Vulnerabilities of the table that count for one technique here. ``is_heavy``: enough to make it likelier."""

    count: int = 0
    weight: int = 0
    is_heavy: bool = False


class Standing(msgspec.Struct, frozen=True):
    """One technique here. ``sets``: the smallest sets of controls, by number, that would close it (`closing_sets`).
    ``settle``: the smallest of them without a control that is known to fail, as its size and names."""

    closing: Value
    likelihood: int
    sets: tuple[Bits, ...]
    settle: tuple[int, tuple[str, ...]] | None
    risk: TechniqueRisk


class _Edge:
    """A technique with what it depends on, and what it came to so far."""

    def __init__(self, technique: Technique, number: Mapping[str, int]) -> None:
        self.technique = technique
        self.names = tuple(dict.fromkeys(controls_of(technique.closed_when)))
        numbers = [number[name] for name in (*self.names, *technique.slows)]
        self.pick: Callable[[Codes], Any] = itemgetter(*numbers) if numbers else lambda codes: None
        self.slows = tuple(number[name] for name in technique.slows)
        self.seen: dict[tuple[Any, Past], Standing] = {}


class Weigher:
    """Weighs the techniques of a graph, machine after machine.

    ``paths``: all paths of the graph. ``controls``: ids of all controls that count anywhere, sorted; their places are
    their numbers. ``affects``: by control, the techniques that depend on it.
    """

    def __init__(self, graph: Graph, vulnerabilities: CveTable) -> None:
        self.graph = graph
        self.paths: Table = table_of(graph)
        self.controls = tuple(sorted({name for item in graph.techniques for name in _all_of(item)}))
        self.number = {name: number for number, name in enumerate(self.controls)}
        self._edges = tuple(_Edge(item, self.number) for item in graph.techniques)
        self.affects: tuple[tuple[int, ...], ...] = tuple(
            tuple(index for index, edge in enumerate(self._edges) if name in edge.names or name in edge.technique.slows)
            for name in self.controls
        )
        self._components = _by_component(vulnerabilities)
        self._pasts: dict[tuple[str, ...], tuple[Past, ...]] = {}

    def codes_of(self, states: Mapping[str, State]) -> Codes:
        """Where each control that counts stands; one without a state is unknown."""
        found = [states.get(name, UNJUDGED) for name in self.controls]
        return bytes([2 * state.value + state.absent for state in found])

    def weigh(self, codes: Codes, history: tuple[str, ...]) -> list[Standing]:
        """Each technique of the graph on this machine.

        Args:
            history: numbers of the vulnerabilities that would have reached the machine's devices.
        """
        pasts = self._past_of(history)
        return [self._standing(edge, codes, past) for edge, past in zip(self._edges, pasts, strict=True)]

    def weigh_again(
        self, before: Sequence[Standing], codes: Codes, history: tuple[str, ...], changed: Iterable[int]
    ) -> list[Standing]:
        """The same machine, when only these controls, by number, stand otherwise."""
        pasts = self._past_of(history)
        after = list(before)
        for index in {index for control in changed for index in self.affects[control]}:
            after[index] = self._standing(self._edges[index], codes, pasts[index])
        return after

    def judge(self, standings: Sequence[Standing]) -> Judged:
        """Every path, by where the techniques stand."""
        closings = [item.closing for item in standings]
        return judge(self.paths, closings, [item.likelihood for item in standings])

    def _past_of(self, history: tuple[str, ...]) -> tuple[Past, ...]:
        found = self._pasts.get(history)
        if found is None:
            reached = frozenset(history)
            found = tuple(_past(edge.technique, reached, self._components) for edge in self._edges)
            if len(self._pasts) >= _REMEMBERED:
                self._pasts.clear()
            self._pasts[history] = found
        return found

    def _standing(self, edge: _Edge, codes: Codes, past: Past) -> Standing:
        key = edge.pick(codes), past
        found = edge.seen.get(key)
        if found is None:
            found = self._stand(edge, codes, past)
            if len(edge.seen) >= _REMEMBERED:
                edge.seen.clear()
            edge.seen[key] = found
        return found

    def _stand(self, edge: _Edge, codes: Codes, past: Past) -> Standing:
        """Steps 1 and 2."""
        technique = edge.technique
        states = {name: _STATES[codes[self.number[name]]] for name in edge.names}
        closing = evaluate(technique.closed_when, states)
        sets = closing_sets(technique.closed_when, states)
        slowed = bool(edge.slows) and all(codes[number] == HOLDS for number in edge.slows)
        likelihood = min(4, max(1, 5 - technique.effort + past.is_heavy - slowed))
        by_value: dict[Value, list[str]] = {value: [] for value in Value}
        for name, state in states.items():
            by_value[state.value].append(name)
        possible = [
            (len(option), tuple(sorted(option)))
            for option in sets
            if option and all(states[name].value is not Value.NO for name in option)
        ]
        return Standing(
            closing=closing,
            likelihood=likelihood,
            sets=tuple(bits_of(self.number[name] for name in option) for option in sets),
            settle=min(possible, default=None),
            risk=TechniqueRisk(
                id=technique.id,
                status=STATUS_OF[closing],
                likelihood=likelihood,
                failing=tuple(by_value[Value.NO]),
                unknown=tuple(by_value[Value.UNKNOWN]),
                on_paper=tuple(by_value[Value.PAPER]),
                passing=tuple(by_value[Value.YES]),
                slowed=slowed,
                history=past.count,
                history_weight=past.weight,
            ),
        )


@cache
def weigher() -> Weigher:
    """Of Casemate's own graph and table of vulnerabilities."""
    return Weigher(own_graph(), table())


def fulfil(codes: Codes, controls: Iterable[int]) -> Codes:
    """The codes when these controls, by number, were made to pass, or what is absent was observed to be."""
    done = bytearray(codes)
    for number in controls:
        done[number] = HOLDS | (done[number] & 1)
    return bytes(done)


def _all_of(technique: Technique) -> Iterator[str]:
    yield from controls_of(technique.closed_when)
    yield from technique.slows
    yield from technique.contained_by


class _Cve(msgspec.Struct, frozen=True):
    id: str
    weight: int
    has_exploit: bool


def _by_component(vulnerabilities: CveTable) -> dict[str, tuple[_Cve, ...]]:
    found: dict[str, list[_Cve]] = {}
    for cve in vulnerabilities.cves:
        found.setdefault(cve.component, []).append(_Cve(cve.id, cve.weight, cve.public_exploit))
    return {component: tuple(items) for component, items in found.items()}


def _past(technique: Technique, reached: frozenset[str], components: Mapping[str, tuple[_Cve, ...]]) -> Past:
    items = [item for name in technique.history for item in components.get(name, ()) if item.id in reached]
    weight = sum(item.weight for item in items)
    return Past(len(items), weight, weight >= HEAVY_HISTORY or any(item.has_exploit for item in items))
