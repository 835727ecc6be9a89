"""The risk analysis for a terminal: one screen for one VM, one line for each of many.

Never a number of open paths without the residual ones beside it: no open path does not mean no risk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from casemate.controls.catalogue.all import all_controls
from casemate.scenarios.conflicts import CONFLICTS
from casemate.scenarios.data import graph
from casemate.scenarios.labels import NODES
from casemate.scenarios.model import Status
from casemate.scenarios.risk_model import Action, Fix, Level, Residual, RiskReport, ScenarioRisk, VmRisk

STYLES: Final = {
    Level.CRITICAL: "\x1b[1;31m",
    Level.HIGH: "\x1b[31m",
    Level.MODERATE: "\x1b[33m",
    Level.LOW: "\x1b[2m",
}
_BOLD: Final = "\x1b[1m"
_PLAIN: Final = "\x1b[0m"
_LEVELS: Final = (Level.CRITICAL, Level.HIGH, Level.MODERATE, Level.LOW)
FIXES_SHOWN: Final = 12
RESIDUALS_SHOWN: Final = 5
VMS_SHOWN: Final = 20
_VERBS: Final = {Action.FIX: "fix", Action.OBSERVE: "look at", Action.VERIFY: "verify"}


class _Paint:
    def __init__(self, *, colour: bool) -> None:
        self.colour = colour

    def level(self, level: Level, text: str) -> str:
        return f"{STYLES[level]}{text}{_PLAIN}" if self.colour else text

    def heading(self, text: str) -> str:
        return f"{_BOLD}{text}{_PLAIN}" if self.colour else text


def to_text(report: RiskReport, *, colour: bool = False, everything: bool = False) -> str:
    """The analysis as text.

    Args:
        everything: also scenarios that are closed, every fix, every residual bug.
    """
    paint = _Paint(colour=colour)
    lines = [f"{len(report.vms)} VM{'' if len(report.vms) == 1 else 's'}, audited {report.audited or 'never'}"]
    lines[0] += f", context: {report.context}"
    lines += [f"what if: {text}" for text in report.assumed]
    lines += [f"note: {text}" for text in report.notes]
    if len(report.vms) == 1:
        lines += _vm(report.vms[0], paint, everything=everything)
    else:
        lines += _many(report.vms, paint, everything=everything)
    return "\n".join(lines) + "\n"


def _vm(vm: VmRisk, paint: _Paint, *, everything: bool) -> Iterator[str]:
    titles = {variant.id: variant.title for variant in graph().variants}
    yield ""
    yield paint.heading(f"{vm.name} ({vm.kind} on {vm.host}): {_totals(vm.counts)}")
    for note in vm.notes:
        yield f"  note: {note}"
    yield ""
    shown = [item for item in vm.scenarios if everything or _counts(item)]
    width = max((len(titles.get(item.id, item.title)) for item in shown), default=0)
    yield f"  {'risk':<9} {'scenario':<{width}}  {'now':<7} {'after':<7} paths"
    for item in sorted(shown, key=lambda item: (_LEVELS.index(item.level), item.letter, item.id)):
        counts = ", ".join(f"{number} {status}" for status, number in item.counts.items())
        now = f"G{item.gravity} V{item.likelihood}" if item.likelihood else "-"
        after = f"V{item.after}" if item.after else "-"
        remark = "".join(f"; {text}" for text in (item.accepted, item.set_aside) if text)
        word = paint.level(item.level, f"{item.level.value:<9}")
        yield f"  {word} {titles.get(item.id, item.title):<{width}}  {now:<7} {after:<7} {counts}{remark}"
    closed = [item.id for item in vm.scenarios if not _counts(item) and not item.set_aside]
    aside = [item.id for item in vm.scenarios if item.set_aside]
    if closed and not everything:
        yield f"  nothing open, unknown or residual: {', '.join(closed)}"
    if aside and not everything:
        yield f"  set aside, because who starts there is trusted: {', '.join(aside)}"
    yield from _plan(vm, paint, everything=everything)
    yield from _residuals(vm.residuals, paint, everything=everything)


def _counts(item: ScenarioRisk) -> bool:
    quiet = {Status.CLOSED.value, Status.CONTAINED.value}
    return not item.set_aside and bool(item.counts.keys() - quiet)


def _totals(counts: dict[str, int]) -> str:
    parts = [f"{counts['open']} open", f"{counts['residual']} residual"]
    parts += [f"{counts[name]} {name}" for name in ("unknown", "on-paper") if counts[name]]
    done = counts["closed"] + counts["contained"]
    return f"{', '.join(parts)} attack paths ({done} closed or contained)"


def _plan(vm: VmRisk, paint: _Paint, *, everything: bool) -> Iterator[str]:
    titles = {control.id: control.title for control in all_controls()}
    planned = [fix for fix in vm.fixes if fix.of_plan]
    yield ""
    if not planned:
        yield paint.heading("Plan: nothing to do about open or unknown paths") + (
            f"; {vm.remaining} paths that no control closes" if vm.remaining else ""
        )
        return
    kind = "cheapest plan" if vm.plan_exact else "cheapest plan found before the search stopped"
    words = Counter(_VERBS[fix.action] for fix in planned)
    what = ", ".join(f"{number} to {verb}" for verb, number in words.items())
    yield paint.heading(f"{kind.capitalize()}: {len(planned)} controls, {vm.plan_cost:g} points ({what})")
    limit = len(planned) if everything else FIXES_SHOWN
    for fix in planned[:limit]:
        yield f"  {_VERBS[fix.action]:<8} {fix.control:<24} {fix.cost:>4g}  {titles.get(fix.control, '')}{_alone(fix)}"
    if len(planned) > limit:
        yield f"  and {len(planned) - limit} more: {', '.join(fix.control for fix in planned[limit:])}"
    if vm.remaining:
        yield f"  {vm.remaining} paths remain that no control closes"
    yield from (f"  conflict: {item.title}: {item.advice}" for item in CONFLICTS if item.id in vm.conflicts)


def _alone(fix: Fix) -> str:
    return f" (closes {fix.closes} alone)" if fix.closes else ""


def _residuals(residuals: Sequence[Residual], paint: _Paint, *, everything: bool) -> Iterator[str]:
    titles = {technique.id: technique.title for technique in graph().techniques}
    yield ""
    yield paint.heading("What remains whatever one does")
    limit = len(residuals) if everything else RESIDUALS_SHOWN
    for item in residuals[:limit]:
        held = f"held by {len(item.holding)} of {len(item.holding) + len(item.missing)}"
        reach = ", ".join(NODES[node][0] for node in item.reaches)
        yield f"  V{item.likelihood} {titles[item.technique]}: {held}; then in reach: {reach or 'nothing'}"
    if len(residuals) > limit:
        yield f"  and {len(residuals) - limit} more (--all)"


def _many(vms: Sequence[VmRisk], paint: _Paint, *, everything: bool) -> Iterator[str]:
    totals = Counter[str]()
    for vm in vms:
        totals.update(vm.counts)
    yield f"all together: {_totals({status.value: totals[status.value] for status in Status})}"
    yield ""
    ranked = sorted(vms, key=lambda vm: (worst_level(vm)[0], -vm.counts["open"], vm.host, vm.name))
    shown = ranked if everything else ranked[:VMS_SHOWN]
    name = min(40, max(len(vm.name) for vm in shown))
    host = min(30, max(len(vm.host) for vm in shown))
    header = f"  {'risk':<9} {'VM':<{name}} {'host':<{host}}"
    yield f"{header} {'open':>5} {'unknown':>7} {'residual':>8}  worst scenario"
    for vm in shown:
        rank, scenario = worst_level(vm)
        level = _LEVELS[rank]
        numbers = f"{vm.counts['open']:>5} {vm.counts['unknown']:>7} {vm.counts['residual']:>8}"
        word = paint.level(level, f"{level.value:<9}")
        yield f"  {word} {vm.name:<{name}} {vm.host:<{host}} {numbers}  {scenario}"
    if len(ranked) > len(shown):
        yield f"  and {len(ranked) - len(shown)} more (--all)"
    yield ""
    yield paint.heading("Fixes that help most VMs")
    closes: Counter[str] = Counter()
    machines: Counter[str] = Counter()
    for vm in vms:
        for fix in vm.fixes:
            if fix.of_plan:
                closes[fix.control] += fix.closes
                machines[fix.control] += 1
    best = sorted(machines, key=lambda control: (-machines[control], -closes[control], control))
    for control in best if everything else best[:FIXES_SHOWN]:
        yield f"  {control:<24} of the plan of {machines[control]} VMs, closes {closes[control]} paths alone"


def worst_level(vm: VmRisk) -> tuple[int, str]:
    """(rank of the worst level, 0 critical; title of that scenario) among the scenarios that count."""
    counted = [item for item in vm.scenarios if not item.set_aside]
    if not counted:
        return len(_LEVELS) - 1, ""
    worst = min(counted, key=lambda item: (_LEVELS.index(item.level), -item.likelihood, item.id))
    return _LEVELS.index(worst.level), worst.title
