"""Markdown for issues, wikis and change requests (GitHub's dialect).

Text that is not ours stands in ``<code>`` elements with every character that Markdown or HTML gives a meaning written
as an entity: inside them nothing becomes a link, a mention, a picture, an emoji or a second table cell. Backticks
cannot do that: in a table cell a ``|`` inside backticks still needs an escape that a backslash before it undoes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from casemate.controls.audit_model import Report
from casemate.controls.model import Finding, Verdict
from casemate.report.view import NO_CHANGES, WORDS, Changes, TargetView, view_of, word_of, worst_first

_SPECIAL: Final = frozenset("\\`*_{}[]()<>#+!|~@&:$^=\"'")
MARKS: Final = {
    "fail": "❌",
    "unknown": "❔",
    "manual": "👁",
    "waived": "⏳",
    "pending": "📄",
    "pass": "✅",
    "not-applicable": "➖",
}
_SHOWN: Final = (Verdict.FAIL, Verdict.UNKNOWN, Verdict.MANUAL, Verdict.WAIVED)


def to_markdown(report: Report, changes: Changes = NO_CHANGES) -> str:
    """The report: an overview, then what needs somebody for each target, then what is fine in one line."""
    return "\n".join(_lines(report, changes)) + "\n"


def _lines(report: Report, changes: Changes) -> Iterator[str]:
    yield f"# Audit of {inert(report.host)}"
    yield ""
    yield f"{inert(report.time)} · profile {inert(report.profile)} · Casemate {inert(report.tool_version)}" + (
        f" · catalogue {inert(report.catalogue)}"
    )
    yield ""
    yield from _since(changes)
    for fault in report.faults:
        yield f"- ⚠ not audited: {inert(fault)}"
    if report.faults:
        yield ""
    views = [view_of(entry) for entry in report.targets]
    words = [word for word in WORDS if any(word in view.counts for view in views)]
    if not views:
        yield "Nothing has changed." if changes.since else "There was no target."
        return
    yield "| target | " + " | ".join(f"{MARKS[word]} {word}" for word in words) + " | verified live |"
    yield "|---|" + "---:|" * (len(words) + 1)
    for view in views:
        numbers = " | ".join(str(view.counts.get(word, 0)) for word in words)
        yield f"| {inert(view.label)} | {numbers} | {view.live} of {view.applicable} |"
    for view in views:
        yield ""
        yield from _target(view, changes)


def _since(changes: Changes) -> Iterator[str]:
    if not changes.since:
        return
    yield f"Only what changed since {inert(changes.since)}."
    yield ""
    for title, names in (("new target", changes.new_targets), ("gone target", changes.gone_targets)):
        for name in names:
            yield f"- {title}: {inert(name)}"
    for change in changes.gone:
        name = f"{change.target.kind} {change.target.name}"
        yield f"- no longer judged: {inert(change.finding.control_id)} of {inert(name)}, was {change.finding.verdict}"
    for text in changes.warnings:
        yield f"- ⚠ {inert(text)}"
    yield ""


def _target(view: TargetView, changes: Changes) -> Iterator[str]:
    entry = view.entry
    yield f"## {inert(view.label)}"
    yield ""
    yield f"From {inert(entry.target.origin)}, {entry.stage.value}."
    for note in entry.notes:
        yield f"- note: {inert(note)}"
    loud = [finding for finding in worst_first(entry.findings) if finding.verdict in _SHOWN and not finding.pending]
    if loud:
        yield ""
        yield "| verdict | severity | control | what holds | why |"
        yield "|---|---|---|---|---|"
        for finding in loud:
            yield _row(finding, changes.was(entry, finding))
    remedies = [finding for finding in loud if finding.verdict is Verdict.FAIL and finding.remedy]
    if remedies:
        yield ""
        yield "<details><summary>Remedies</summary>"
        yield ""
        for finding in remedies:
            text = "<br>".join(inert(line) for line in finding.remedy.split("\n"))
            yield f"- {inert(finding.control_id)}: {text}"
        yield ""
        yield "</details>"
    for word in ("pending", "pass", "not-applicable"):
        ids = [inert(finding.control_id) for finding in entry.findings if word_of(finding) == word]
        if ids:
            yield ""
            yield f"<details><summary>{MARKS[word]} {word}: {len(ids)}</summary>"
            yield ""
            yield ", ".join(ids)
            yield ""
            yield "</details>"


def _row(finding: Finding, before: str) -> str:
    word = word_of(finding)
    was = f" (was {before})" if before else ""
    cells = (inert(finding.control_id), inert(finding.title), inert(finding.why))
    return f"| {MARKS[word]} {word}{was} | {finding.severity.value} | {' | '.join(cells)} |"


def inert(text: str) -> str:
    """Text as code in which nothing has a meaning."""
    safe = "".join(f"&#{ord(char)};" if char in _SPECIAL else char for char in text.replace("\n", " "))
    # Autolinks of the form www.example need no colon.
    return f"<code>{safe.replace('www.', 'www&#46;')}</code>" if safe.strip() else ""
