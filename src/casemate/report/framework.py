"""A framework of published measures as text and as a document, with or without the findings of an audit."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from casemate.controls.audit_model import Report
from casemate.controls.catalogue.all import all_controls
from casemate.controls.frameworks import CANNOT, NOT_JUDGED, PARTLY, MeasureState, framework_of, states_of
from casemate.controls.frameworks_model import Framework, Measure, Read

SCHEMA: Final = "casemate.framework/1"
_WIDTH: Final = 120
_WORDS: Final = {NOT_JUDGED: "not judged", PARTLY: "partly judged", "not-applicable": "does not apply"}
_HOW: Final = {
    Read.TITLE: "only its title was read",
}


def framework_document(name: str, report: Report | None = None) -> dict[str, Any]:
    """The framework for ``--json``; with a report, verdicts too.

    Raises:
        InputError: no such framework.
    """
    framework = framework_of(name)
    states = states_of(framework, report.targets) if report is not None else ()
    return {
        "schema": SCHEMA,
        "framework": framework.name,
        "title": framework.title,
        "about": framework.about,
        "sources": list(framework.sources),
        **({"time": report.time, "host": report.host, "catalogue": report.catalogue} if report is not None else {}),
        "measures": [
            _measure(measure, framework.read, states[number] if states else None)
            for number, measure in enumerate(framework.measures)
        ],
    }


def _measure(measure: Measure, read: Read, state: MeasureState | None) -> dict[str, Any]:
    found: dict[str, Any] = {"id": measure.id, "title": measure.title, "read": (measure.read or read).value}
    if measure.cannot:
        found["cannot"] = measure.cannot
    if measure.partly:
        found["partly"] = measure.partly
    if state is None:
        return {**found, "controls": list(measure.controls)}
    controls = [{"id": c.id, "verdict": c.verdict, "targets": list(c.targets)} for c in state.controls]
    return {**found, "verdict": state.verdict, "controls": controls}


def framework_text(name: str, report: Report | None = None, *, width: int | None = None) -> str:
    """The framework for people.

    Args:
        report: findings to hold against it; without them the controls are listed.

    Raises:
        InputError: no such framework.
    """
    framework = framework_of(name)
    columns = min(width or _WIDTH, _WIDTH)
    about = framework.about
    if framework.read is not Read.TEXT:
        about = f"{about} Where nothing else is said, {_HOW[framework.read].replace('its title', 'the title')}."
    lines = [framework.title, *_wrapped(about, columns, "  "), ""]
    if report is None:
        titles = {control.id: control.title for control in all_controls()}
        for measure in framework.measures:
            lines += _described(measure, titles, columns)
    else:
        states = states_of(framework, report.targets)
        for state in states:
            lines += _judged(state, columns)
        lines += ["", _summary(states, len(report.targets))]
    return "\n".join([*lines, "", *_sources(framework, columns)]) + "\n"


def _described(measure: Measure, titles: dict[str, str], columns: int) -> list[str]:
    lines = _wrapped(f"{measure.id}  {measure.title}", columns, "", rest="  ")
    if measure.cannot:
        lines += _wrapped(f"cannot be had on one host: {measure.cannot}", columns, "    ")
    lines += [f"    {name:<24} {titles.get(name, '')}" for name in measure.controls]
    return [*lines, *_remarks(measure, columns)]


def _judged(state: MeasureState, columns: int) -> list[str]:
    measure = state.measure
    word = "cannot" if state.verdict == CANNOT else _WORDS.get(state.verdict, state.verdict)
    lines = _wrapped(f"{word:<14} {measure.id}  {measure.title}", columns, "", rest=" " * 15)
    if measure.cannot:
        return [*lines, *_wrapped(f"on one host: {measure.cannot}", columns, " " * 15), *_remarks(measure, columns)]
    for verdict in ("fail", "unknown", "manual", "waived", "pass", "not-applicable", NOT_JUDGED):
        named = [c for c in state.controls if c.verdict == verdict]
        if named:
            shown = ", ".join(_named(c.id, c.targets, verdict) for c in named)
            lines += _wrapped(f"{_WORDS.get(verdict, verdict)}: {shown}", columns, " " * 15)
    return [*lines, *_remarks(measure, columns)]


def _named(name: str, targets: Sequence[str], verdict: str) -> str:
    if verdict != "fail" or not targets:
        return name
    more = f" and {len(targets) - 2} more" if len(targets) > 2 else ""
    return f"{name} ({', '.join(targets[:2])}{more})"


def _remarks(measure: Measure, columns: int) -> list[str]:
    lines = _wrapped(f"not covered: {measure.partly}", columns, " " * 15) if measure.partly else []
    how = _HOW.get(measure.read) if measure.read is not None else None
    return [*lines, *(_wrapped(how, columns, " " * 15) if how else ())]


def _summary(states: Sequence[MeasureState], targets: int) -> str:
    counts = Counter(state.verdict for state in states)
    shown = ", ".join(f"{count} {_WORDS.get(word, word)}" for word, count in counts.most_common())
    return f"{len(states)} measures over {targets} target{'s' if targets != 1 else ''}: {shown}"


def _sources(framework: Framework, columns: int) -> list[str]:
    return [line for source in framework.sources for line in _wrapped(f"source: {source}", columns, "")]


def _wrapped(text: str, columns: int, indent: str, *, rest: str = "") -> list[str]:
    return textwrap.wrap(text, columns, initial_indent=indent, subsequent_indent=rest or f"{indent}  ")
