"""The risk of one VM, from where its controls stand to scenarios, residuals and the cheapest plan. Pure, no clock.

1. Every technique is weighed, every path of every scenario gets its status (`weigh.py`).
2. A scenario is as likely as its easiest path that is not closed by observed facts; a trusted start sets it aside, an
   acceptance in force marks it, neither changes its paths.
3. The plan is the cheapest set of controls that closes all open and unknown paths of the scenarios that count
   (`fixes.py`). Paths with an unknown bug are not asked to be closed: containing them is what the walls are for.
4. The likelihood after it comes from weighing again with these controls passing.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from heapq import nsmallest
from typing import Final

import msgspec

from casemate.facts.cve_table import CveTable
from casemate.scenarios.conflicts import conflicts_of
from casemate.scenarios.context import Context
from casemate.scenarios.fixes import Cost, cheapest
from casemate.scenarios.formula import UNJUDGED, State, Value, fulfilled
from casemate.scenarios.model import GOODS, Nature, Node, Variant
from casemate.scenarios.risk_model import (
    Action,
    Fix,
    PathRisk,
    Residual,
    ScenarioRisk,
    TechniqueRisk,
    VmRisk,
    level_of,
)
from casemate.scenarios.weigh import (
    STATUS_OF,
    Prepared,
    Status,
    Weighed,
    judge_paths,
    masks_of,
    weigh,
)

ORDER: Final = (
    Status.OPEN,
    Status.UNKNOWN,
    Status.PAPER,
    Status.RESIDUAL,
    Status.CONTAINED,
    Status.CLOSED,
)
"""Worst first."""
_RANK: Final = {status: rank for rank, status in enumerate(ORDER)}
_SURE: Final = (Status.CLOSED, Status.CONTAINED)
_UNSURE: Final = (Status.UNKNOWN, Status.PAPER)
SHOWN_PATHS: Final = 6
"""Paths of a scenario that are written out; the others are counted."""


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """One VM with all that was found about it, its host and its emulator. ``history``: vulnerabilities of its
    devices."""

    name: str
    kind: str
    host: str
    states: dict[str, State]
    history: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    evidence: dict[str, str] = {}


class Settings(msgspec.Struct, frozen=True):
    """What is the same for all VMs of one analysis. ``cost``: of making a control pass."""

    prepared: Prepared
    context: Context
    table: CveTable
    cost: Cost
    today: datetime.date
    seen: dict[tuple[object, ...], VmRisk] = msgspec.field(default_factory=dict)
    """What came out for VMs so far: those of a fleet are much alike."""


class _View(msgspec.Struct, frozen=True):
    """A machine weighed: its techniques, and every path's status and likelihood by scenario."""

    weighed: tuple[Weighed, ...]
    paths: dict[str, tuple[tuple[Status, int], ...]]


_REMEMBERED: Final = 256


def risk_of(subject: Subject, settings: Settings) -> VmRisk:
    """The whole analysis of one VM; one that differs only in its name from one before is not worked out again."""
    prepared, context = settings.prepared, settings.context
    key = (
        tuple([subject.states.get(control) for control in prepared.controls]),
        subject.history,
        tuple(context.gravity(subject.name, item.harms or item.goals) for item in prepared.graph.variants),
    )
    found = settings.seen.get(key)
    if found is None:
        found = _risk_of(subject, settings)
        if len(settings.seen) >= _REMEMBERED:
            settings.seen.clear()
        settings.seen[key] = found
    return msgspec.structs.replace(
        found,
        name=subject.name,
        kind=subject.kind,
        host=subject.host,
        notes=subject.notes,
        evidence={control: subject.evidence[control] for control in prepared.controls if control in subject.evidence},
    )


def _risk_of(subject: Subject, settings: Settings) -> VmRisk:
    now = _view(subject.states, subject.history, settings)
    counted = [variant for variant in settings.prepared.graph.variants if not _set_aside(variant, settings.context)]
    rows = _rows_to_close(now, counted, settings)
    used = {index for row in rows for index in row}
    sets = {index: settings.prepared.closing(index, subject.states).sets for index in used}
    plan = cheapest(rows, sets, settings.cost)
    after = _view(fulfilled(subject.states, plan.controls), subject.history, settings)
    scenarios = tuple(_scenario(variant, now, after, subject, settings) for variant in settings.prepared.graph.variants)
    counts: Counter[str] = Counter()
    for scenario in scenarios:
        counts.update({} if scenario.set_aside else scenario.counts)
    return VmRisk(
        name=subject.name,
        kind=subject.kind,
        host=subject.host,
        counts={status.value: counts[status.value] for status in ORDER},
        scenarios=scenarios,
        techniques=tuple(_technique(index, now, subject.states, settings) for index in range(len(now.weighed))),
        residuals=_residuals(now, subject.states, settings),
        fixes=_fixes(rows, sets, plan.controls, subject.states, settings),
        plan_cost=plan.cost,
        plan_exact=plan.exact,
        remaining=len(plan.remaining),
        conflicts=tuple(item.id for item in conflicts_of(plan.controls)),
        notes=subject.notes,
    )


def _view(states: Mapping[str, State], history: Iterable[str], settings: Settings) -> _View:
    prepared = settings.prepared
    weighed = weigh(prepared, states, history, settings.table)
    masks = masks_of(prepared, weighed)
    bugs = prepared.unknown_bugs
    return _View(weighed, {name: judge_paths(rows, masks, bugs) for name, rows in prepared.masks.items()})


def _set_aside(variant: Variant, context: Context) -> str:
    """Why the scenario does not count, or empty: all its starts are trusted."""
    if all(start in context.trust for start in variant.starts):
        return "; ".join(f"{start.value} is trusted: {context.trust[start]}" for start in variant.starts)
    return ""


def _accepted(variant: Variant, settings: Settings) -> str:
    for item in settings.context.accept:
        if item.scenario == variant.id and item.until >= settings.today:
            return f"until {item.until.isoformat()}: {item.reason}"
    return ""


def _rows_to_close(now: _View, variants: Iterable[Variant], settings: Settings) -> list[tuple[int, ...]]:
    """Step 3: the open and unknown paths, each once; those on paper too, for they have to be verified."""
    rows: dict[tuple[int, ...], None] = {}
    for variant in variants:
        found = settings.prepared.paths[variant.id].rows
        for row, (status, _) in zip(found, now.paths[variant.id], strict=True):
            if status in (Status.OPEN, Status.UNKNOWN, Status.PAPER):
                rows[row] = None
    return list(rows)


def _scenario(variant: Variant, now: _View, after: _View, subject: Subject, settings: Settings) -> ScenarioRisk:
    paths = settings.prepared.paths[variant.id]
    judged = now.paths[variant.id]
    counts = Counter(status.value for status, _ in judged)
    likelihood = max((level for status, level in judged if status not in _SURE), default=0)
    known = max((level for status, level in judged if status not in (*_SURE, *_UNSURE)), default=0)
    later = max((level for status, level in after.paths[variant.id] if status not in _SURE), default=0)
    gravity = settings.context.gravity(subject.name, variant.harms or variant.goals)
    ranked = [
        (_RANK[status], -level, len(row), i)
        for i, (row, (status, level)) in enumerate(zip(paths.rows, judged, strict=True))
    ]
    order = [place[3] for place in nsmallest(SHOWN_PATHS, ranked)]
    return ScenarioRisk(
        id=variant.id,
        letter=variant.letter.value,
        title=variant.title,
        status=judged[order[0]][0] if order else Status.CLOSED,
        counts={status.value: counts[status.value] for status in ORDER if counts[status.value]},
        gravity=gravity,
        likelihood=likelihood,
        likelihood_if_known=known,
        after=later,
        level=level_of(gravity, likelihood),
        level_after=level_of(gravity, later),
        paths=tuple(_path(paths.rows[i], *judged[i], now, subject.states, settings) for i in order),
        complete=paths.complete,
        set_aside=_set_aside(variant, settings.context),
        accepted=_accepted(variant, settings),
    )


def _path(
    row: Sequence[int],
    status: Status,
    likelihood: int,
    now: _View,
    states: Mapping[str, State],
    settings: Settings,
) -> PathRisk:
    techniques = settings.prepared.graph.techniques
    best = max(row, key=lambda index: now.weighed[index].closing)
    return PathRisk(
        techniques=tuple(techniques[index].id for index in row),
        status=status,
        likelihood=likelihood,
        unknown_bugs=sum(techniques[index].nature is Nature.UNKNOWN_BUG for index in row),
        closed_by=techniques[best].id if now.weighed[best].closing > Value.UNKNOWN else "",
        settle=_settle(row, states, settings.prepared) if status in _UNSURE else (),
    )


def _settle(row: Sequence[int], states: Mapping[str, State], prepared: Prepared) -> tuple[str, ...]:
    """The fewest controls, none of them known to fail, that would close one of these techniques if observed to hold."""
    found: list[frozenset[str]] = [
        option
        for index in row
        for option in prepared.closing(index, states).sets
        if option and all(states.get(control, UNJUDGED).value is not Value.NO for control in option)
    ]
    fewest: frozenset[str] = min(found, key=lambda option: (len(option), sorted(option)), default=frozenset())
    return tuple(sorted(fewest))


def _technique(index: int, now: _View, states: Mapping[str, State], settings: Settings) -> TechniqueRisk:
    technique = settings.prepared.graph.techniques[index]
    weighed = now.weighed[index]
    by_value: dict[Value, list[str]] = {value: [] for value in Value}
    for control in settings.prepared.names[index]:
        by_value[states.get(control, UNJUDGED).value].append(control)
    return TechniqueRisk(
        id=technique.id,
        status=STATUS_OF[weighed.closing],
        likelihood=weighed.likelihood,
        failing=tuple(by_value[Value.NO]),
        unknown=tuple(by_value[Value.UNKNOWN]),
        on_paper=tuple(by_value[Value.PAPER]),
        passing=tuple(by_value[Value.YES]),
        slowed=weighed.slowed,
        history=weighed.history_count,
        history_weight=weighed.history_weight,
    )


def _residuals(now: _View, states: Mapping[str, State], settings: Settings) -> tuple[Residual, ...]:
    """The unknown bugs that stay possible here, with what holds who used one."""
    graph = settings.prepared.graph
    reached: dict[Node, tuple[Node, ...]] = {}
    found = []
    for technique, weighed in zip(graph.techniques, now.weighed, strict=True):
        if technique.nature is not Nature.UNKNOWN_BUG or weighed.closing is Value.YES:
            continue
        if technique.target not in reached:
            reached[technique.target] = _reached_from(technique.target, now, settings)
        contained_by: tuple[str, ...] = technique.contained_by
        holding = tuple(control for control in contained_by if _holds(control, states))
        missing = tuple(control for control in contained_by if control not in holding)
        found.append(
            Residual(
                technique=technique.id,
                likelihood=weighed.likelihood,
                holding=holding,
                missing=missing,
                reaches=reached[technique.target],
            )
        )
    return tuple(sorted(found, key=lambda item: (-item.likelihood, -len(item.reaches), item.technique)))


def _holds(control: str, states: Mapping[str, State]) -> bool:
    state = states.get(control)
    return state is not None and state.value is Value.YES and not state.absent


def _reached_from(start: Node, now: _View, settings: Settings) -> tuple[Node, ...]:
    """Goods within reach from a position by techniques that are neither closed nor unknown bugs."""
    passable = [
        technique
        for technique, weighed in zip(settings.prepared.graph.techniques, now.weighed, strict=True)
        if technique.nature is not Nature.UNKNOWN_BUG and weighed.closing is not Value.YES
    ]
    seen, todo = {start}, [start]
    while todo:
        node = todo.pop()
        for technique in passable:
            if technique.target not in seen and node in technique.sources:
                seen.add(technique.target)
                todo.append(technique.target)
    return tuple(good for good in GOODS if good in seen)


def _fixes(
    rows: Sequence[Sequence[int]],
    sets: Mapping[int, tuple[frozenset[str], ...]],
    planned: Sequence[str],
    states: Mapping[str, State],
    settings: Settings,
) -> tuple[Fix, ...]:
    """Single controls by how many paths each closes alone, and the rest of the plan."""
    alone: Counter[str] = Counter()
    single = {index: [next(iter(option)) for option in found if len(option) == 1] for index, found in sets.items()}
    for row in rows:
        alone.update({control for index in row for control in single[index]})
    chosen = sorted({*alone, *planned}, key=lambda control: (-alone[control], settings.cost(control), control))
    return tuple(
        Fix(
            control=control,
            action=_action(states.get(control, UNJUDGED)),
            cost=settings.cost(control),
            closes=alone[control],
            of_plan=control in planned,
        )
        for control in chosen
    )


def _action(state: State) -> Action:
    if state.value is Value.NO:
        return Action.FIX
    return Action.VERIFY if state.value is Value.PAPER else Action.OBSERVE
