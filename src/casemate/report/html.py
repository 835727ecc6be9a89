"""One self-contained HTML page: nothing is loaded from anywhere, and a content security policy says so to the browser.

The policy names the digests of the page's own style and script, so that nothing else in it could run even if escaping
failed. The page works without scripts (details open by themselves); the script adds filters, search and printing.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from casemate.controls.audit_model import Report, TargetReport
from casemate.controls.model import Control, Finding
from casemate.report.pages import rendered
from casemate.report.paths import SCENARIOS, SHORT, paths_of
from casemate.report.view import (
    NO_CHANGES,
    SEVERITIES,
    WORDS,
    Changes,
    LayerView,
    TargetView,
    alike,
    controls_of,
    counts_of,
    severities_of,
    view_of,
    word_of,
    worst_first,
)

MARKS: Final = {
    "fail": "✕",
    "unknown": "?",
    "manual": "◉",
    "waived": "◷",
    "pending": "◌",
    "pass": "✓",
    "not-applicable": "–",
}
TITLES: Final = {
    "fail": "failed",
    "unknown": "unknown",
    "manual": "for a person",
    "waived": "waived",
    "pending": "declared, not read live",
    "pass": "passed",
    "not-applicable": "not applicable",
}
LOUD: Final = ("fail", "unknown", "manual", "waived")


class Item(msgspec.Struct, frozen=True):
    """One finding as the page shows it."""

    found: Finding
    word: str
    before: str


class Group(msgspec.Struct, frozen=True):
    """One target, or several that came to the same. ``bar``: (word, start, length) of 1000 of the stacked bar."""

    anchor: str
    label: str
    names: tuple[str, ...]
    view: TargetView
    layers: tuple[tuple[str, tuple[Item, ...], dict[str, int]], ...]
    bar: tuple[tuple[str, float, float], ...]
    failed: dict[str, int]


def to_html(report: Report, changes: Changes = NO_CHANGES) -> str:
    """The page."""
    style, script = _part("style.css"), _part("script.js")
    findings = [finding for entry in report.targets for finding in entry.findings]
    values: dict[str, Any] = {
        "report": report,
        "changes": changes,
        "groups": [_group(number, entries, changes) for number, entries in enumerate(alike(report.targets), 1)],
        "counts": counts_of(findings),
        "failed": severities_of(finding for finding in findings if word_of(finding) == "fail"),
        "live": sum(view_of(entry).live for entry in report.targets),
        "applicable": sum(view_of(entry).applicable for entry in report.targets),
        "layers": list(dict.fromkeys(layer.layer for entry in report.targets for layer in view_of(entry).layers)),
        "controls": [_control(control) for control in controls_of(report).values()],
        "first": _first(report),
        "words": WORDS,
        "loud": LOUD,
        "marks": MARKS,
        "titles": TITLES,
        "severities": [severity.value for severity in SEVERITIES],
        # Our own files, not anybody's text: the only two places that the template does not escape.
        "style": style,
        "script": script,
        "policy": (
            f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
            "base-uri 'none'; form-action 'none'"
        ),
    }
    return rendered("report.html.j2", values)


def _part(name: str) -> str:
    from importlib.resources import files

    return (files("casemate.report") / "page" / name).read_text("utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _group(number: int, entries: Sequence[TargetReport], changes: Changes) -> Group:
    view = view_of(entries[0])
    kind = view.entry.target.kind.value
    label = view.label if len(entries) == 1 else f"{len(entries)} {kind} targets alike"
    return Group(
        anchor=f"target-{number}",
        label=label,
        names=tuple(entry.target.name for entry in entries) if len(entries) > 1 else (),
        view=view,
        layers=tuple(_layer(layer, view.entry, changes) for layer in view.layers),
        bar=_bar(view.counts),
        failed=severities_of(view.failed()),
    )


def _layer(layer: LayerView, entry: TargetReport, changes: Changes) -> tuple[str, tuple[Item, ...], dict[str, int]]:
    items = tuple(Item(found, word_of(found), changes.was(entry, found)) for found in layer.findings)
    return layer.layer, items, counts_of(layer.findings)


def _bar(counts: dict[str, int]) -> tuple[tuple[str, float, float], ...]:
    total = sum(counts.values()) or 1
    parts = []
    start = 0.0
    for word, count in counts.items():
        length = 1000 * count / total
        parts.append((word, round(start, 1), round(length, 1)))
        start += length
    return tuple(parts)


def _first(report: Report) -> list[tuple[Finding, int]]:
    """What to look at first: the worst failed controls, with the number of targets that fail each."""
    failed: dict[str, list[Finding]] = {}
    for entry in report.targets:
        for finding in entry.findings:
            if word_of(finding) == "fail":
                failed.setdefault(finding.control_id, []).append(finding)
    worst = worst_first(findings[0] for findings in failed.values())
    return [(finding, len(failed[finding.control_id])) for finding in worst[:8]]


def _control(control: Control) -> dict[str, Any]:
    costs = (("performance", control.cost.performance), ("features", control.cost.features))
    return {
        "control": control,
        "paths": [[f"{step.value} {SHORT[step]}" for step in path.steps] for path in paths_of(control)],
        "scenarios": [SCENARIOS[scenario] for scenario in control.scenarios],
        "wants": [
            f"{check.fact}{f' apart from {check.minus}' if check.minus else ''}: {check.expect.describe()}"
            for check in control.checks
        ],
        "cost": "; ".join(f"{name}: {text}" for name, text in costs if text != "none") or "nothing",
        "sources": "; ".join(f"{source.work}: {source.place}" for source in control.sources),
    }
