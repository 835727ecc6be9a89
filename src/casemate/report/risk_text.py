"""The risk analysis for a terminal: one screen for one VM, one line for each of many.

A screen is what the terminal has, from 80 by 24 on: the worst scenarios, the first fixes and the likeliest unknown bugs
get as many lines as there are, and each part says how much it leaves out (``--all`` shows it).

Never a number of open paths without the residual ones beside it: no open path does not mean no risk.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from casemate.controls.catalogue.all import all_controls
from casemate.scenarios.conflicts import CONFLICTS
from casemate.scenarios.data import graph
from casemate.scenarios.model import Node, Status
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
ASIDES_SHOWN: Final = 2
"""Notes, and what-if statements: as many lines of each."""
_LEAST: Final = 18
"""Lines below which a summary says nothing any more; a smaller screen scrolls."""
_BESIDE_TITLE: Final = 53
"""Columns of the scenarios' table beside their titles."""
_COUNTED: Final = {"open": "open", "unknown": "unknown", "paper": "on-paper", "residual": "residual"}
"""Heading of a column, and the paths that it counts."""
_GOODS: Final = {
    Node.VM_DATA: "VM",
    Node.OTHER_VM_DATA: "other VMs",
    Node.HOST: "host",
    Node.SECRETS: "secrets",
    Node.AVAILABILITY: "uptime",
    Node.EVIDENCE: "evidence",
}
_COLOUR: Final = re.compile("(\x1b\\[[0-9;]*m)")
_FIRST: Final = (Action.FIX, Action.OBSERVE, Action.VERIFY)
"""What is known to be wrong comes before what may turn out well."""
_VERBS: Final = {Action.FIX: "fix", Action.OBSERVE: "look at", Action.VERIFY: "verify"}


class _Paint:
    def __init__(self, *, colour: bool) -> None:
        self.colour = colour

    def level(self, level: Level, text: str) -> str:
        return f"{STYLES[level]}{text}{_PLAIN}" if self.colour else text

    def heading(self, text: str) -> str:
        return f"{_BOLD}{text}{_PLAIN}" if self.colour else text


def to_text(
    report: RiskReport,
    *,
    colour: bool = False,
    everything: bool = False,
    width: int | None = None,
    height: int | None = None,
) -> str:
    """The analysis as text.

    Args:
        everything: also scenarios that are closed, every fix, every residual bug; then it is as long as it has to be.
        width, height: of the screen that it has to fit, in columns and lines; None for no limit.
    """
    paint = _Paint(colour=colour)
    if everything:
        width = height = None
    alone = report.vms[0] if len(report.vms) == 1 else None
    about = f"{alone.name} ({alone.kind} on {alone.host})" if alone else f"{len(report.vms)} VMs"
    head = [paint.heading(f"{about}, audited {report.audited or 'never'}, context: {report.context}")]
    head += _few([f"what if: {text}" for text in report.assumed], None if everything else ASIDES_SHOWN)
    head += _few([f"note: {text}" for text in report.notes], None if everything else ASIDES_SHOWN)
    # The line that is left is the shell's next prompt.
    rows = None if height is None else max(_LEAST, height - 1 - len(head))
    if alone:
        head += _vm(alone, paint, rows, width, everything=everything)
    else:
        head += _many(report.vms, paint, rows, everything=everything)
    return "".join(f"{_clipped(line, width)}\n" for line in head)


def _few(lines: list[str], limit: int | None) -> list[str]:
    if limit is None or len(lines) <= limit:
        return lines
    return [*lines[: limit - 1], f"and {len(lines) - limit + 1} more like: {lines[limit - 1]}"]


def _clipped(line: str, width: int | None) -> str:
    """No longer than the screen is wide; what colours it takes no place."""
    if width is None or _columns(_COLOUR.sub("", line)) <= width:
        return line
    kept, used = [], 0
    for part in _COLOUR.split(line):
        if _COLOUR.fullmatch(part):
            kept.append(part)
            continue
        for char in part:
            used += _columns(char)
            if used < width:
                kept.append(char)
    return "".join(kept) + "…"


def _columns(text: str) -> int:
    """What a terminal takes for it: wide letters take two."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def _shares(rows: int | None, wanted: tuple[int, int, int]) -> tuple[int, int, int]:
    """How many lines each part gets: what it wants while there is place, else half, three tenths and two tenths."""
    if rows is None or sum(wanted) <= rows:
        return wanted
    given = [0, 0, 0]
    for index, share in enumerate((0.5, 0.3, 0.2)):
        given[index] = min(wanted[index], max(1, int(rows * share)))
    for index in (0, 1, 2) * max(wanted):
        if sum(given) < rows and given[index] < wanted[index]:
            given[index] += 1
    return given[0], given[1], given[2]


def _vm(vm: VmRisk, paint: _Paint, rows: int | None, width: int | None, *, everything: bool) -> list[str]:
    """One VM. With ``rows``, that many lines at most: three parts, each with its heading and what is left out of it."""
    head = [_totals(vm.counts)]
    head += _few([f"  note: {note}" for note in vm.notes], None if everything else ASIDES_SHOWN)
    shown = sorted((item for item in vm.scenarios if everything or _counts(item)), key=_worst_first)
    aside = [] if everything else _quiet(vm)
    plan_head, planned, plan_end = _plan(vm, paint, everything=everything)
    place = None
    if rows is not None:
        # Around the parts: three empty lines, three headings, three lines that say what was left out.
        place = rows - len(head) - len(plan_end) - 9
        if place < 6:
            aside = aside[:0]
            plan_end = plan_end[:1]
            place = max(3, rows - len(head) - len(plan_end) - 9)
        else:
            place -= len(aside)
    wants_fixes = len(planned) if everything else min(len(planned), FIXES_SHOWN)
    wants_bugs = len(vm.residuals) if everything else min(len(vm.residuals), RESIDUALS_SHOWN)
    scenarios, fixes, bugs = _shares(place, (len(shown), wants_fixes, wants_bugs))
    lines = [*head, "", *_scenarios(shown, scenarios, paint, width)]
    lines += [*aside, "", plan_head, *planned[:fixes]]
    if len(planned) > fixes:
        lines.append(f"  and {len(planned) - fixes} more (--all)")
    lines += [*plan_end, "", paint.heading("What remains whatever one does"), *_residuals(vm.residuals[:bugs])]
    if len(vm.residuals) > bugs:
        lines.append(f"  and {len(vm.residuals) - bugs} more (--all)")
    return lines


def _quiet(vm: VmRisk) -> list[str]:
    """Scenarios that are not in the table, and why."""
    closed = [item.id for item in vm.scenarios if not _counts(item) and not item.set_aside]
    aside = [item.id for item in vm.scenarios if item.set_aside]
    lines = [f"  nothing open, unknown or residual: {', '.join(closed)}"] if closed else []
    return lines + ([f"  set aside, because who starts there is trusted: {', '.join(aside)}"] if aside else [])


def _worst_first(item: ScenarioRisk) -> tuple[int, bool, int, str, str]:
    return _LEVELS.index(item.level), not item.counts.get("open"), -item.likelihood, item.letter, item.id


def _scenarios(items: Sequence[ScenarioRisk], limit: int, paint: _Paint, width: int | None) -> Iterator[str]:
    titles = {variant.id: variant.title for variant in graph().variants}
    widest = max((len(titles.get(item.id, item.title)) for item in items[:limit]), default=0)
    title_width = widest if width is None else max(12, min(widest, width - _BESIDE_TITLE))
    yield f"  {'risk':<9} {'scenario':<{title_width}} {'now':<6} {'plan':<5}" + "".join(
        f"{name:>{len(name) + 1}}" for name in _COUNTED
    )
    for item in items[:limit]:
        title = titles.get(item.id, item.title)
        title = title if len(title) <= title_width else f"{title[: title_width - 1]}…"
        now = f"G{item.gravity} V{item.likelihood}" if item.likelihood else "-"
        after = f"V{item.after}" if item.after else "-"
        numbers = "".join(f"{item.counts.get(status, 0) or '-':>{len(name) + 1}}" for name, status in _COUNTED.items())
        remark = "".join(f"  {text}" for text in (item.accepted, item.set_aside) if text)
        word = paint.level(item.level, f"{item.level.value:<9}")
        yield f"  {word} {title:<{title_width}} {now:<6} {after:<5}{numbers}{remark}"
    if len(items) > limit:
        left = Counter(item.level.value for item in items[limit:])
        words = ", ".join(f"{count} {level}" for level, count in left.items())
        yield f"  and {len(items) - limit} more (--all): {words}"


def _counts(item: ScenarioRisk) -> bool:
    quiet = {Status.CLOSED.value, Status.CONTAINED.value}
    return not item.set_aside and bool(item.counts.keys() - quiet)


def _totals(counts: dict[str, int]) -> str:
    parts = [f"{counts['open']} open", f"{counts['residual']} residual"]
    parts += [f"{counts[name]} {name}" for name in ("unknown", "on-paper") if counts[name]]
    done = counts["closed"] + counts["contained"]
    return f"{', '.join(parts)} attack paths ({done} closed or contained)"


def _plan(vm: VmRisk, paint: _Paint, *, everything: bool) -> tuple[str, list[str], list[str]]:
    """(heading, a line for each control, lines below them)."""
    titles = {control.id: control.title for control in all_controls()}
    planned = sorted((fix for fix in vm.fixes if fix.of_plan), key=lambda fix: _FIRST.index(fix.action))
    if not planned:
        nothing = paint.heading("Plan: nothing to do about open or unknown paths")
        return nothing + (f"; {vm.remaining} paths that no control closes" if vm.remaining else ""), [], []
    kind = "cheapest plan" if vm.plan_exact else "cheapest plan found before the search stopped"
    words = Counter(_VERBS[fix.action] for fix in planned)
    what = ", ".join(f"{words[verb]} to {verb}" for verb in _VERBS.values() if words[verb])
    heading = paint.heading(f"{kind.capitalize()}: {len(planned)} controls, {vm.plan_cost:g} points ({what})")
    rows = [
        f"  {_VERBS[fix.action]:<8} {fix.control:<24} {fix.cost:>4g}  {titles.get(fix.control, '')}{_alone(fix)}"
        for fix in planned
    ]
    end = [f"  {vm.remaining} paths remain that no control closes"] if vm.remaining else []
    touched = [item for item in CONFLICTS if item.id in vm.conflicts]
    if everything:
        return heading, rows, [*end, *(f"  conflict: {item.title}: {item.advice}" for item in touched)]
    if touched:
        end.append(f"  works against other measures (--all says how): {', '.join(item.id for item in touched)}")
    return heading, rows, end


def _alone(fix: Fix) -> str:
    return f" (closes {fix.closes} alone)" if fix.closes else ""


def _residuals(residuals: Sequence[Residual]) -> Iterator[str]:
    titles = {technique.id: technique.title for technique in graph().techniques}
    for item in residuals:
        held = f"held by {len(item.holding)} of {len(item.holding) + len(item.missing)}"
        reach = ", ".join(_GOODS[node] for node in item.reaches)
        yield f"  V{item.likelihood} {titles[item.technique]}: {held}; reaches {reach or 'nothing'}"


def _many(vms: Sequence[VmRisk], paint: _Paint, rows: int | None, *, everything: bool) -> Iterator[str]:
    totals = Counter[str]()
    for vm in vms:
        totals.update(vm.counts)
    yield f"all together: {_totals({status.value: totals[status.value] for status in Status})}"
    yield ""
    ranked = sorted(vms, key=lambda vm: (worst_level(vm)[0], -vm.counts["open"], vm.host, vm.name))
    closes: Counter[str] = Counter()
    machines: Counter[str] = Counter()
    for vm in vms:
        for fix in vm.fixes:
            if fix.of_plan:
                closes[fix.control] += fix.closes
                machines[fix.control] += 1
    best = sorted(machines, key=lambda control: (-machines[control], -closes[control], control))
    # Around the two parts: the line above, two empty ones, two headings, one that says how many are left out.
    place = None if rows is None else rows - 6
    wanted = (len(ranked), len(best)) if everything else (min(len(ranked), VMS_SHOWN), min(len(best), FIXES_SHOWN))
    machines_shown, fixes, _ = _shares(place, (*wanted, 0))
    shown = ranked[:machines_shown]
    name = min(40, max((len(vm.name) for vm in shown), default=0))
    host = min(30, max((len(vm.host) for vm in shown), default=0))
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
    for control in best[:fixes]:
        yield f"  {control:<24} of the plan of {machines[control]} VMs, closes {closes[control]} paths alone"


def worst_level(vm: VmRisk) -> tuple[int, str]:
    """(rank of the worst level, 0 critical; title of that scenario) among the scenarios that count."""
    counted = [item for item in vm.scenarios if not item.set_aside]
    if not counted:
        return len(_LEVELS) - 1, ""
    worst = min(counted, key=_worst_first)
    return _LEVELS.index(worst.level), worst.title
