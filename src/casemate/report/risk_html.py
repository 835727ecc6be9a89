"""The risk analysis as one self-contained page: pictures, matrices, plans, and the evidence behind each.

Without scripts: a click on an edge goes to its techniques below. A content security policy lets nothing else run.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any, Final

import msgspec

from casemate.controls.catalogue.all import all_controls
from casemate.report.pages import rendered
from casemate.report.risk_picture import GIVEN, Edge, edges_of, to_svg
from casemate.report.risk_text import worst_level
from casemate.scenarios.conflicts import CONFLICTS, Conflict
from casemate.scenarios.data import graph
from casemate.scenarios.formula import text_of
from casemate.scenarios.labels import GRAVITIES, LEVELS, LIKELIHOODS, NODES, STATUSES
from casemate.scenarios.model import GOODS, Status, Technique
from casemate.scenarios.risk_model import Action, Fix, Level, RiskReport, ScenarioRisk, VmRisk, level_of

MAX_VMS: Final = 60
"""VMs with a section of their own; the others are in the table."""
MARKS: Final = {
    Status.OPEN: "✕",
    Status.UNKNOWN: "?",
    Status.PAPER: "◌",
    Status.RESIDUAL: "△",
    Status.CONTAINED: "▽",
    Status.CLOSED: "✓",
}
_ACTIONS: Final = {Action.FIX: "fix", Action.OBSERVE: "look at", Action.VERIFY: "verify live"}
_LEVELS: Final = (Level.CRITICAL, Level.HIGH, Level.MODERATE, Level.LOW)


class _Cell(msgspec.Struct, frozen=True):
    """One field of the matrix: scenarios by number, now and after the plan."""

    level: Level
    now: tuple[int, ...]
    after: tuple[int, ...]


class _Section(msgspec.Struct, frozen=True):
    """One VM as the page shows it. ``svg``: ours, from `risk_picture`."""

    anchor: str
    vm: VmRisk
    level: Level
    svg: str
    scenarios: tuple[tuple[int, ScenarioRisk], ...]
    quiet: tuple[ScenarioRisk, ...]
    matrix: tuple[tuple[int, tuple[_Cell, ...]], ...]
    edges: tuple[Edge, ...]
    planned: tuple[Fix, ...]
    useful: tuple[Fix, ...]
    conflicts: tuple[Conflict, ...]


def to_html(report: RiskReport) -> str:
    """The page."""
    style = page_style()
    ranked = sorted(report.vms, key=lambda vm: (worst_level(vm)[0], -vm.counts["open"], vm.host, vm.name))
    techniques = {item.id: item for item in graph().techniques}
    values: dict[str, Any] = {
        "report": report,
        "sections": [_section(number, vm) for number, vm in enumerate(ranked[:MAX_VMS], 1)],
        "others": ranked[MAX_VMS:],
        "techniques": techniques,
        "variants": {item.id: item for item in graph().variants},
        "titles": {control.id: control.title for control in all_controls()},
        "remedies": {control.id: control.remedies for control in all_controls()},
        "condition": _condition,
        "nodes": {node: names[0] for node, names in NODES.items()},
        "goods": GOODS,
        "statuses": {status: names[0] for status, names in STATUSES.items()},
        "levels": {level: names[0] for level, names in LEVELS.items()},
        "likelihoods": [names[0] for names in LIKELIHOODS],
        "gravities": [names[0] for names in GRAVITIES],
        "marks": MARKS,
        "actions": _ACTIONS,
        "given": GIVEN,
        "worst": worst_level,
        "ranks": _LEVELS,
        # Our own files, not anybody's text: the only place that the template does not escape, beside the pictures.
        "style": style,
        "policy": page_policy(style),
    }
    return rendered("risk.html.j2", values)


def page_style(*more: str) -> str:
    """The style of pages about risk, and what one of them has besides."""
    from importlib.resources import files

    page = files("casemate.report") / "page"
    return "".join((page / name).read_text("utf-8") for name in ("style.css", "risk.css", *more))


def page_policy(style: str) -> str:
    """A content security policy under which nothing but this style is used."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _condition(technique: Technique) -> str:
    return text_of(technique.closed_when)


def _section(number: int, vm: VmRisk) -> _Section:
    anchor = f"vm{number}-"
    loud = sorted(
        (item for item in vm.scenarios if item.likelihood or item.set_aside),
        key=lambda item: (bool(item.set_aside), _LEVELS.index(item.level), -item.likelihood, item.id),
    )
    numbered = tuple(enumerate(loud, 1))
    return _Section(
        anchor=anchor,
        vm=msgspec.structs.replace(vm, name=vm.name, host=vm.host),
        level=_LEVELS[worst_level(vm)[0]],
        svg=to_svg(vm, prefix=anchor),
        scenarios=numbered,
        quiet=tuple(item for item in vm.scenarios if not (item.likelihood or item.set_aside)),
        matrix=_matrix(numbered),
        edges=tuple(edge for edge in edges_of(vm) if edge.look != GIVEN),
        planned=tuple(fix for fix in vm.fixes if fix.of_plan),
        useful=tuple(fix for fix in vm.fixes if not fix.of_plan and fix.closes)[:10],
        conflicts=tuple(item for item in CONFLICTS if item.id in vm.conflicts),
    )


def _matrix(scenarios: tuple[tuple[int, ScenarioRisk], ...]) -> tuple[tuple[int, tuple[_Cell, ...]], ...]:
    """Rows by gravity, worst on top; columns by likelihood, V1 to V4."""
    counted = [(number, item) for number, item in scenarios if not item.set_aside]
    return tuple(
        (
            gravity,
            tuple(
                _Cell(
                    level_of(gravity, likelihood),
                    tuple(n for n, item in counted if (item.gravity, item.likelihood) == (gravity, likelihood)),
                    tuple(n for n, item in counted if (item.gravity, item.after) == (gravity, likelihood)),
                )
                for likelihood in (1, 2, 3, 4)
            ),
        )
        for gravity in (4, 3, 2, 1)
    )
