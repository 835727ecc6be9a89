"""The risk of one VM, from where its controls stand to scenarios, residuals and the cheapest plan. Pure, no clock.

1. Every technique is weighed (`weigh.py`), every path gets its status (`paths.py`).
2. A scenario is as likely as its easiest path that is not closed by observed facts; a trusted start sets it aside, an
   acceptance in force marks it, neither changes its paths.
3. The plan is the cheapest set of controls that closes all open and unknown paths of the scenarios that count
   (`fixes.py`). Paths with an unknown bug are not asked to be closed: containing them is what the walls are for.
4. The likelihood after it comes from weighing again with these controls passing.
"""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from operator import attrgetter
from typing import Final

import msgspec

from casemate.scenarios.conflicts import conflicts_of
from casemate.scenarios.context import Context
from casemate.scenarios.fixes import Cost, Plan, Prices, cheapest
from casemate.scenarios.formula import State, Value
from casemate.scenarios.model import Status, Variant
from casemate.scenarios.paths import Bits, Judged, numbers_of
from casemate.scenarios.residuals import residuals_of
from casemate.scenarios.risk_model import Action, Fix, PathRisk, ScenarioRisk, VmRisk, level_of
from casemate.scenarios.weigh import Codes, Standing, Weigher, fulfil

ORDER: Final = tuple(Status)
"""Worst first."""
_NOT_SURE: Final = (Status.OPEN, Status.UNKNOWN, Status.PAPER, Status.RESIDUAL)
_TO_CLOSE: Final = (Status.OPEN, Status.UNKNOWN, Status.PAPER)
_UNSURE: Final = (Status.UNKNOWN, Status.PAPER)
SHOWN_PATHS: Final = 6
"""Paths of a scenario that are written out; the others are counted."""
_REMEMBERED: Final = 256


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


class Settings:
    """What is the same for all VMs of one analysis.

    Args:
        cost: of making a control pass, in points.
        today: the day that acceptances are judged by.
    """

    def __init__(self, weigher: Weigher, context: Context, cost: Cost, today: datetime.date) -> None:
        self.weigher = weigher
        self.context = context
        self.cost = cost
        self.today = today
        self.seen: dict[tuple[object, ...], VmRisk] = {}
        """What came out for VMs so far: those of a fleet are much alike."""

    @cached_property
    def prices(self) -> Prices:
        """What controls cost, by number."""
        return Prices([self.cost(control) for control in self.weigher.controls])

    @cached_property
    def set_aside(self) -> dict[str, str]:
        """By scenario, why it does not count, or empty."""
        return {variant.id: _set_aside(variant, self.context) for variant in self.weigher.graph.variants}

    @cached_property
    def accepted(self) -> dict[str, str]:
        """By scenario, until when and why its risk is borne."""
        return {
            item.scenario: f"until {item.until.isoformat()}: {item.reason}"
            for item in reversed(self.context.accept)
            if item.until >= self.today
        }

    @cached_property
    def counted(self) -> Bits:
        """The paths of the scenarios that count."""
        paths = 0
        for name, aside in self.set_aside.items():
            paths |= 0 if aside else self.weigher.paths.of[name]
        return paths


def _set_aside(variant: Variant, context: Context) -> str:
    """All its starts are trusted."""
    if all(start in context.trust for start in variant.starts):
        return "; ".join(f"{start.value} is trusted: {context.trust[start]}" for start in variant.starts)
    return ""


class _View(msgspec.Struct, frozen=True):
    """A machine weighed: its techniques, and every path."""

    codes: Codes
    standings: list[Standing]
    paths: Judged


def risk_of(subject: Subject, settings: Settings) -> VmRisk:
    """The whole analysis of one VM; one that differs only in its name from one before is not worked out again."""
    weigher = settings.weigher
    codes = weigher.codes_of(subject.states)
    gravities = settings.context.gravities(subject.name, weigher.graph.variants)
    key = codes, subject.history, gravities
    found = settings.seen.get(key)
    if found is None:
        found = _risk_of(subject, codes, gravities, settings)
        if len(settings.seen) >= _REMEMBERED:
            settings.seen.clear()
        settings.seen[key] = found
    return msgspec.structs.replace(
        found,
        name=subject.name,
        kind=subject.kind,
        host=subject.host,
        notes=subject.notes,
        evidence={control: subject.evidence[control] for control in weigher.controls if control in subject.evidence},
    )


def _risk_of(subject: Subject, codes: Codes, gravities: tuple[int, ...], settings: Settings) -> VmRisk:
    weigher = settings.weigher
    standings = weigher.weigh(codes, subject.history)
    now = _View(codes, standings, weigher.judge(standings))
    to_close = now.paths.any_of(*_TO_CLOSE) & settings.counted
    plan = _plan(to_close, standings, settings)
    done = fulfil(codes, plan.controls)
    later = weigher.weigh_again(standings, done, subject.history, plan.controls)
    after = weigher.judge(later)
    planned = [weigher.controls[number] for number in plan.controls]
    counts = dict.fromkeys((status.value for status in ORDER), 0)
    scenarios = tuple(_scenarios(now, after, gravities, settings))
    for scenario in scenarios:
        if not scenario.set_aside:
            for status, number in scenario.counts.items():
                counts[status] += number
    return VmRisk(
        name=subject.name,
        kind=subject.kind,
        host=subject.host,
        counts=counts,
        scenarios=scenarios,
        techniques=tuple([item.risk for item in standings]),
        residuals=residuals_of(weigher, standings, codes),
        fixes=_fixes(to_close, plan, now, settings),
        plan_cost=plan.cost,
        plan_exact=plan.exact,
        remaining=len(plan.remaining),
        conflicts=tuple(item.id for item in conflicts_of(planned)),
        notes=subject.notes,
    )


def _plan(to_close: Bits, standings: Sequence[Standing], settings: Settings) -> Plan:
    """Step 3: the open and unknown paths, each once; those on paper too, for they have to be verified."""
    masks = settings.weigher.paths.masks
    sets = {number: item.sets for number, item in enumerate(standings)}
    return cheapest([masks[number] for number in numbers_of(to_close)], sets, settings.prices)


def _scenarios(now: _View, after: Judged, gravities: tuple[int, ...], settings: Settings) -> Iterator[ScenarioRisk]:
    table = settings.weigher.paths
    not_sure, still = now.paths.any_of(*_NOT_SURE), after.any_of(*_NOT_SURE)
    written: dict[int, PathRisk] = {}
    for variant, gravity in zip(settings.weigher.graph.variants, gravities, strict=True):
        paths = table.of[variant.id]
        likelihood, later = now.paths.likelihood(paths & not_sure), after.likelihood(paths & still)
        by_status = {status: paths & found for status, found in now.paths.by_status.items()}
        worst = list(islice(now.paths.worst_first(by_status), SHOWN_PATHS))
        for number, status, level in worst:
            if number not in written:
                written[number] = _path(number, status, level, now, settings)
        yield ScenarioRisk(
            id=variant.id,
            letter=variant.letter.value,
            title=variant.title,
            status=worst[0][1] if worst else Status.CLOSED,
            counts={status.value: found.bit_count() for status, found in by_status.items() if found},
            gravity=gravity,
            likelihood=likelihood,
            likelihood_if_known=now.paths.likelihood(by_status[Status.OPEN] | by_status[Status.RESIDUAL]),
            after=later,
            level=level_of(gravity, likelihood),
            level_after=level_of(gravity, later),
            paths=tuple([written[number] for number, _, _ in worst]),
            complete=table.complete[variant.id],
            set_aside=settings.set_aside[variant.id],
            accepted=settings.accepted.get(variant.id, ""),
        )


def _path(number: int, status: Status, likelihood: int, now: _View, settings: Settings) -> PathRisk:
    table = settings.weigher.paths
    row = [now.standings[index] for index in table.rows[number]]
    best = max(row, key=_CLOSING)
    return PathRisk(
        techniques=table.names[number],
        status=status,
        likelihood=likelihood,
        unknown_bugs=table.bugs[number],
        closed_by=best.risk.id if best.closing > Value.UNKNOWN else "",
        settle=_settle(row) if status in _UNSURE else (),
    )


_CLOSING: Final = attrgetter("closing")


def _settle(row: Sequence[Standing]) -> tuple[str, ...]:
    """The fewest controls, none of them known to fail, that would close one of these techniques if observed to hold."""
    return min([item.settle for item in row if item.settle], default=(0, ()))[1]


def _fixes(to_close: Bits, plan: Plan, now: _View, settings: Settings) -> tuple[Fix, ...]:
    """Single controls by how many paths each closes alone, and the rest of the plan."""
    alone: defaultdict[int, Bits] = defaultdict(int)
    for paths, standing in zip(settings.weigher.paths.on, now.standings, strict=True):
        if paths & to_close:
            for option in standing.sets:
                if option.bit_count() == 1:
                    alone[option.bit_length() - 1] |= paths & to_close
    names, points = settings.weigher.controls, settings.prices.points
    closes = {number: alone[number].bit_count() for number in {*alone, *plan.controls}}
    chosen = sorted(closes, key=lambda number: (-closes[number], points[number], number))
    return tuple(
        [
            Fix(
                control=names[number],
                action=_action(now.codes[number]),
                cost=points[number],
                closes=closes[number],
                of_plan=number in plan.controls,
            )
            for number in chosen
        ]
    )


def _action(code: int) -> Action:
    value = code // 2
    if value == Value.NO:
        return Action.FIX
    return Action.VERIFY if value == Value.PAPER else Action.OBSERVE
