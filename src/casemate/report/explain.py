"""Everything about one control: what it asks, what was found on each target, and how to mend it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Final

from casemate.controls.audit_model import Report
from casemate.controls.layers import layer_of
from casemate.controls.model import Control, Verdict
from casemate.controls.profiles import severity_under
from casemate.controls.profiles_model import Profile
from casemate.report.paths import SCENARIOS, STEPS, paths_of
from casemate.report.view import NO_CHANGES, Changes, label_of, word_of

DEFAULT_WIDTH: Final = 100
_LABEL: Final = 12


def explain(report: Report, control: Control, changes: Changes = NO_CHANGES, *, width: int | None = None) -> str:
    """One control of a clean report, target by target, failures first."""
    parts = [*about(control, width), ""]
    found = [
        (entry, finding) for entry in report.targets for finding in entry.findings if finding.control_id == control.id
    ]
    order = (Verdict.FAIL, Verdict.UNKNOWN, Verdict.MANUAL, Verdict.WAIVED, Verdict.PASS, Verdict.NOT_APPLICABLE)
    found.sort(key=lambda pair: order.index(pair[1].verdict))
    if not found:
        parts.append(f"No target of this audit is judged by it: it is about the {control.subject.value}.")
    for entry, finding in found:
        before = changes.was(entry, finding)
        was = f", was {before}" if before else ""
        parts.append(f"{label_of(entry)}: {word_of(finding).upper()} ({finding.severity.value}){was}")
        fields = (("why", finding.why), ("evidence", finding.evidence), ("expected", finding.expected))
        for label, text in fields:
            parts += _field(label, text, width)
        parts.append("")
    if any(finding.verdict in (Verdict.FAIL, Verdict.UNKNOWN) for _, finding in found):
        parts += _remedies(control, width)
    return "\n".join(parts).rstrip("\n") + "\n"


def about(control: Control, width: int | None = None, profile: Profile | None = None) -> Iterator[str]:
    """The catalogue's entry as lines of text."""
    yield f"{control.id}: {control.title}"
    yield ""
    yield from _field("question", control.question, width)
    weight = control.severity.value
    if profile is not None:
        under = severity_under(profile, control.id, control.severity)
        weight = under.value if under is not None else "not asked"
        weight += f" under {profile.name}"
    layer = layer_of(control.id).value
    yield from _field("severity", f"{weight}; layer {layer}, about the {control.subject.value}", width)
    for check in control.checks:
        aside = f" apart from {check.minus}" if check.minus else ""
        yield from _field("wants", f"{check.fact}{aside}: {check.expect.describe()}", width)
    yield from _field("read", "from the live object" if control.needs_stage == "observed" else "as declared", width)
    for condition in control.applies_when:
        yield from _field(
            "applies", f"when {condition.fact} is {condition.expect.describe().removeprefix('= ')}", width
        )
    if control.manual:
        yield from _field("look at", control.manual, width)
    for path in paths_of(control):
        yield from _field("cuts", " → ".join(f"{step.value}: {STEPS[step]}" for step in path.steps), width)
    yield from _field("scenarios", ", ".join(SCENARIOS[scenario] for scenario in control.scenarios), width)
    costs = (("performance", control.cost.performance), ("features", control.cost.features))
    cost = "; ".join(f"{name}: {text}" for name, text in costs if text != "none")
    yield from _field("costs", cost or "nothing", width)
    yield from _field("limits", control.limits, width)
    yield from _field("from", "; ".join(f"{source.work}: {source.place}" for source in control.sources), width)


def with_remedies(control: Control, width: int | None = None, profile: Profile | None = None) -> str:
    """The catalogue's entry and the ways to satisfy it; what ``casemate controls ID`` prints."""
    return "\n".join([*about(control, width, profile), "", *_remedies(control, width)]).rstrip("\n") + "\n"


def _remedies(control: Control, width: int | None) -> list[str]:
    ways = (
        ("on the host", control.remedies.host),
        ("libvirt", control.remedies.libvirt),
        ("our spec", control.remedies.spec),
    )
    parts = ["Remedy"]
    for place, way in ways:
        parts += _field(place, way, width)
    return parts if len(parts) > 1 else []


def _field(label: str, text: str, width: int | None) -> list[str]:
    if not text:
        return []
    inside = max(30, (width or DEFAULT_WIDTH) - _LABEL - 2)
    rows: list[str] = []
    for line in text.split("\n"):
        rows += textwrap.wrap(line, inside, break_on_hyphens=False) or [""]
    return [f"  {label if not number else '':<{_LABEL}}{row}" for number, row in enumerate(rows)]
