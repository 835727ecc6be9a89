"""The public API, third part: what can be done with the report of an audit, and with the catalogue it judged by.

Everything below is imported on use, as in ``app.py`` and ``assess.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casemate.errors import InputError

if TYPE_CHECKING:
    from casemate.controls.audit_model import Report, TargetReport
    from casemate.controls.model import Control, Finding
    from casemate.report.view import Changes

__all__ = [
    "catalogue_document",
    "catalogue_rows",
    "compare",
    "explain",
    "explain_control",
    "failed_at",
    "find_control",
    "format_of",
    "framework_document",
    "framework_text",
    "load",
    "printable",
    "render",
    "render_text",
    "report_of",
    "schema",
    "unused_waivers",
]

BASELINE_MAX_BYTES = 512 << 20


def schema() -> dict[str, Any]:
    """The JSON Schema of a report."""
    from casemate.report.document import audit_schema

    return audit_schema()


def printable(report: Report) -> Report:
    """The report with every text made safe to show."""
    from casemate.report.text import clean

    return clean(report)


def load(name: str) -> Report:
    """A report that was written as JSON.

    Raises:
        InputError: it cannot be read, or is none.
    """
    from casemate.audit.text import read_input
    from casemate.report.document import from_json

    return from_json(read_input(name, BASELINE_MAX_BYTES), name)


def compare(old: Report | None, report: Report) -> tuple[Report, Changes]:
    """What changed since ``old``: the report reduced to that, and the changes; all of it without an old one."""
    from casemate.controls.baseline import compare as compare_reports
    from casemate.report.view import NO_CHANGES, changes_of

    if old is None:
        return report, NO_CHANGES
    comparison = compare_reports(printable(old), report)
    return comparison.report, changes_of(comparison)


def format_of(place: str) -> str | None:
    """The format that a file's name tells; None when it tells none."""
    from casemate.report.formats import format_of as told

    return told(place)


def render(report: Report, name: str, changes: Changes | None = None) -> str:
    """The report as json, jsonl, sarif, junit, markdown, html or prometheus."""
    from casemate.report.formats import render as render_as
    from casemate.report.view import NO_CHANGES

    return render_as(report, name, NO_CHANGES if changes is None else changes)


def render_text(report: Report, changes: Changes, *, width: int | None, colour: bool, everything: bool) -> str:
    """The report for a terminal."""
    from casemate.report.terminal import to_text

    return to_text(report, changes, width=width, colour=colour, everything=everything)


def explain(report: Report, control: Control, changes: Changes, *, width: int | None) -> str:
    """All about one control, with what was found of it."""
    from casemate.report.explain import explain as explain_one

    return explain_one(report, control, changes, width=width)


def framework_document(name: str, report: Report | None = None) -> dict[str, Any]:
    """Published measures and the controls that check them; with a report, their verdicts.

    Raises:
        InputError: no framework of this name.
    """
    from casemate.report.framework import framework_document as document

    return document(name, report)


def framework_text(name: str, report: Report | None = None, *, width: int | None = None) -> str:
    """The same for people."""
    from casemate.report.framework import framework_text as text

    return text(name, report, width=width)


def report_of(entries: tuple[TargetReport, ...], *, time: str, profile: str | None, faults: tuple[str, ...]) -> Report:
    """A report about some targets of this host's audit, for reports that are written line by line."""
    from casemate.audit.run import catalogue_version, host_name
    from casemate.controls.audit_model import Report
    from casemate.controls.profiles import DEFAULT
    from casemate.facts.root import Root
    from casemate.installed import installed_version

    return Report(
        tool_version=installed_version(),
        catalogue=catalogue_version(),
        host=host_name(Root()),
        time=time,
        profile=profile or DEFAULT,
        targets=entries,
        faults=faults,
    )


def unused_waivers(name: str, report: Report) -> list[str]:
    """One line for each waiver of a file that waived nothing, or has expired."""
    import datetime

    from casemate.audit.text import read_document
    from casemate.controls.waivers import parse_waivers, unused

    today = datetime.datetime.now(datetime.UTC).date()
    return list(unused(parse_waivers(read_document(name), name), report, today))


def failed_at(report: Report, severity: str) -> tuple[list[Finding], list[Finding]]:
    """(failed, unknown) findings of this severity or a worse one; what is only pending counts as neither."""
    from casemate.controls.model import Verdict
    from casemate.report.view import SEVERITIES

    names = [known.value for known in SEVERITIES]
    counted = frozenset(names[: names.index(severity) + 1])
    bad = [f for entry in report.targets for f in entry.findings if f.severity.value in counted and not f.pending]
    failed = [finding for finding in bad if finding.verdict is Verdict.FAIL]
    return failed, [finding for finding in bad if finding.verdict is Verdict.UNKNOWN]


def find_control(control_id: str) -> Control:
    """The control of this id.

    Raises:
        InputError: there is none.
    """
    from casemate.controls.catalogue.all import all_controls

    known = {control.id: control for control in all_controls()}
    if control_id in known:
        return known[control_id]
    import difflib

    close = difflib.get_close_matches(control_id, known, 1)
    raise InputError(
        f"there is no control {control_id!r}",
        expected=f"did you mean {close[0]}?" if close else "",
        next_step="casemate controls",
    )


def catalogue_document(control_id: str | None, layer: str | None, profile: str | None) -> dict[str, Any]:
    """The document of ``casemate controls --json``: all controls, those of one layer, or one."""
    import msgspec

    from casemate.controls.catalogue.all import all_controls
    from casemate.controls.layers import Layer, layer_of
    from casemate.controls.profiles import DEFAULT, named, severity_under

    weights = named(profile or DEFAULT)
    chosen = [find_control(control_id)] if control_id else list(all_controls())
    order = {name: number for number, name in enumerate(Layer)}
    chosen = [control for control in chosen if not layer or layer_of(control.id).value == layer]
    chosen.sort(key=lambda control: (order[layer_of(control.id)], control.id))
    rows = [
        {
            **msgspec.to_builtins(control),
            "layer": layer_of(control.id).value,
            "severity": severity_under(weights, control.id, control.severity) or "not-asked",
        }
        for control in chosen
    ]
    return {"schema": "casemate.controls/1", "profile": weights.name, "controls": rows}


def catalogue_rows(document: dict[str, Any]) -> list[list[str]]:
    """The rows of the table: layer, control, severity, what holds."""
    return [
        [item["layer"], item["id"], item["severity"].replace("not-asked", "not asked"), item["title"]]
        for item in document["controls"]
    ]


def explain_control(control_id: str, profile: str | None, *, width: int | None) -> str:
    """One control in full, with its remedies."""
    from casemate.controls.profiles import named
    from casemate.report.explain import with_remedies

    return with_remedies(find_control(control_id), width, named(profile) if profile else None)
