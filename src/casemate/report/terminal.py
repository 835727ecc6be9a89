"""The report for people at a terminal, short: counts, then what does not hold, by target and layer of the lecture.

Without a terminal (a pipe, a file) there is no colour and nothing is wrapped, so that ``grep`` finds whole lines.
Targets that came to the same are shown once. Evidence and remedies are asked for with ``--explain`` (`explain.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from casemate.controls.audit_model import Report, TargetReport
from casemate.controls.model import Finding, Verdict
from casemate.facts.fact import Stage
from casemate.report.view import (
    NO_CHANGES,
    WORDS,
    Changes,
    TargetView,
    alike,
    counts_of,
    severities_of,
    view_of,
    word_of,
    worst_first,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rich.console import RenderableType

WIDEST: Final = 140
NARROW: Final = 72
STYLES: Final = {
    "fail": "bold red",
    "unknown": "yellow",
    "manual": "cyan",
    "waived": "yellow",
    "pending": "cyan",
    "pass": "green",
    "not-applicable": "dim",
    "critical": "bold red",
    "high": "red",
    "medium": "yellow",
    "low": "",
    "info": "dim",
}
COUNT_WORDS: Final = {
    "fail": "failed",
    "pass": "passed",
    "pending": "declared, not read live",
    "manual": "for a person",
}
NAMES_SHOWN: Final = 4
REMARK_MAX: Final = 160


class Row(msgspec.Struct, frozen=True):
    """One finding as shown: ``remark`` is the reason, below the title on a terminal."""

    word: str
    severity: str
    control: str
    title: str
    remark: str = ""


class Block(msgspec.Struct, frozen=True):
    """A layer of a target: its rows, and ids that are only named."""

    layer: str
    rows: tuple[Row, ...]
    unknown: tuple[str, ...] = ()


class Section(msgspec.Struct, frozen=True):
    """A target, or several that came to the same."""

    heading: str
    live: str
    counts: dict[str, int]
    origin: str
    notes: tuple[str, ...]
    blocks: tuple[Block, ...]


def to_text(
    report: Report,
    changes: Changes = NO_CHANGES,
    *,
    width: int | None = None,
    colour: bool = False,
    everything: bool = False,
) -> str:
    """The report as text.

    Args:
        width: columns of the terminal; None: nobody wraps lines.
        colour: whether to write escape sequences of our own (never anybody else's: the report is clean).
        everything: also list what passed, does not apply or is unknown, each with its reason.
    """
    sections = [_section(group, changes, everything) for group in alike(report.targets)]
    if width is None:
        return "\n".join(_plain(report, changes, sections)) + "\n"
    return _drawn(report, changes, sections, width=width, colour=colour)


def _section(group: list[TargetReport], changes: Changes, everything: bool) -> Section:
    view = view_of(group[0])
    stage = "" if view.entry.stage is Stage.OBSERVED else "declared, not read live"
    return Section(
        heading=_heading(group, view),
        live=f"{view.live} of {view.applicable} verified live",
        counts=view.counts,
        origin=" · ".join(part for part in (_origin(group), stage) if part),
        notes=view.entry.notes,
        blocks=tuple(
            _block(layer.layer, layer.findings, view.entry, changes, everything)
            for layer in view.layers
            if everything or any(_is_loud(finding) for finding in layer.findings)
        ),
    )


def _heading(group: list[TargetReport], view: TargetView) -> str:
    if len(group) == 1:
        return view.label
    names = [entry.target.name for entry in group]
    shown = ", ".join(names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")
    return f"{len(group)} {view.entry.target.kind.value} targets alike: {shown}"


def _origin(group: list[TargetReport]) -> str:
    origin = group[0].target.origin
    return origin if len(group) == 1 and origin not in ("", "/", group[0].target.name) else ""


def _is_loud(finding: Finding) -> bool:
    return finding.verdict not in (Verdict.PASS, Verdict.NOT_APPLICABLE) and not finding.pending


def _block(layer: str, findings: Sequence[Finding], entry: TargetReport, changes: Changes, everything: bool) -> Block:
    rows = []
    unknown = []
    for finding in findings:
        before = changes.was(entry, finding)
        if not everything and not before:
            if not _is_loud(finding):
                continue
            if finding.verdict is Verdict.UNKNOWN:
                unknown.append(finding.control_id)
                continue
        remark = "" if finding.verdict is Verdict.PASS else finding.why
        was = f"was {before}" if before and before != "new" else before
        remark = "; ".join(part for part in (was, remark) if part)
        if not everything and len(remark) > REMARK_MAX:
            remark = f"{remark[: REMARK_MAX - 1]}…"
        rows.append(Row(word_of(finding), finding.severity.value, finding.control_id, finding.title, remark))
    return Block(layer, tuple(rows), tuple(unknown))


def counts_text(counts: dict[str, int]) -> str:
    """``6 failed, 12 unknown, 47 passed``."""
    return ", ".join(f"{counts[word]} {COUNT_WORDS.get(word, word)}" for word in WORDS if counts.get(word))


def _head(report: Report, changes: Changes) -> Iterator[str]:
    yield f"Audit of {report.host} · {report.time} · profile {report.profile} · catalogue {report.catalogue[:12]}"
    if changes.since:
        yield f"Only what changed since {changes.since}"
    for text in changes.warnings:
        yield f"! {text}"
    for fault in report.faults:
        yield f"! not audited: {fault}"


def _tail(report: Report, changes: Changes) -> Iterator[str]:
    """Totals, and what to do next."""
    for title, names in (("new target", changes.new_targets), ("gone target", changes.gone_targets)):
        yield from (f"{title}: {name}" for name in names)
    for change in changes.gone:
        where = f"{change.target.kind} {change.target.name}"
        yield f"no longer judged: {change.finding.control_id} of {where}, was {change.finding.verdict}"
    findings = [finding for entry in report.targets for finding in entry.findings]
    if not findings:
        yield "nothing has changed" if changes.since else "there was nothing to audit"
        return
    failed = worst_first(finding for finding in findings if finding.verdict is Verdict.FAIL)
    by_severity = ", ".join(f"{count} {severity}" for severity, count in severities_of(failed).items())
    targets = f"{len(report.targets)} target{'' if len(report.targets) == 1 else 's'}"
    yield f"{targets}: {counts_text(counts_of(findings))}" + (f"; of the failed {by_severity}" if by_severity else "")
    unknown = worst_first(f for f in findings if f.verdict is Verdict.UNKNOWN and not f.pending)
    if failed:
        yield f"next: casemate audit … --explain {failed[0].control_id}    evidence, remedy and cost of one control"
    elif unknown:
        yield f"next: casemate audit … --explain {unknown[0].control_id}    why it is not known"


def _plain(report: Report, changes: Changes, sections: Sequence[Section]) -> Iterator[str]:
    yield from _head(report, changes)
    for section in sections:
        yield ""
        yield f"{section.heading}: {counts_text(section.counts)}; {section.live}"
        if section.origin:
            yield f"  {section.origin}"
        yield from (f"  note: {note}" for note in section.notes)
        for block in section.blocks:
            yield f"  {block.layer}"
            for row in block.rows:
                remark = f" ({row.remark})" if row.remark else ""
                yield f"    {row.word:<14} {row.severity:<8} {row.control:<22} {row.title}{remark}"
            if block.unknown:
                yield f"    {'unknown':<14} {'':<8} {', '.join(block.unknown)}"
    yield ""
    yield from _tail(report, changes)


def _drawn(report: Report, changes: Changes, sections: Sequence[Section], *, width: int, colour: bool) -> str:
    from io import StringIO

    from rich.console import Console
    from rich.text import Text

    out = StringIO()
    console = Console(
        file=out,
        width=max(20, min(width, WIDEST)),
        force_terminal=colour,
        color_system="standard" if colour else None,
        no_color=not colour,
        legacy_windows=False,
        highlight=False,
        markup=False,
        emoji=False,
    )
    head, *warnings = _head(report, changes)
    console.print(Text(head, style="dim"))
    for text in warnings:
        console.print(Text(text, style="yellow"))
    for section in sections:
        console.print()
        for part in _drawn_section(section, console.width):
            console.print(part)
    console.print()
    for text in _tail(report, changes):
        console.print(Text(text, style="dim" if text.startswith("next:") else ""))
    return out.getvalue()


def _drawn_section(section: Section, width: int) -> Iterator[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    title = Text(section.heading, style="bold")
    title.append(f"   {section.live}", style="dim")
    yield title
    counts = Text()
    for word in WORDS:
        if section.counts.get(word):
            counts.append("" if not counts else " · ")
            counts.append(f"{section.counts[word]} {COUNT_WORDS.get(word, word)}", style=STYLES[word])
    yield counts
    if section.origin:
        yield Text(section.origin, style="dim")
    for note in section.notes:
        yield Text(f"note: {note}", style="yellow")
    for block in section.blocks:
        yield Text(f"\n  {block.layer}", style="bold")
        yield Padding(_rows(block, width), (0, 0, 0, 2))


def _rows(block: Block, width: int) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    narrow = width < NARROW
    for _ in range(2 if narrow else 3):
        grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold", ratio=1)
    for row in block.rows:
        text = Text(row.title) if row.word != "fail" else Text(row.title, style="bold")
        if row.remark:
            text.append(f"\n{row.remark}", style="dim not bold")
        cells = [Text(row.word, style=STYLES[row.word]), Text(row.severity, style=STYLES[row.severity])]
        if narrow:
            grid.add_row(*cells, Text(f"{row.control}\n", style="cyan").append_text(text))
        else:
            grid.add_row(*cells, Text(row.control, style="cyan"), text)
    if block.unknown:
        label = [Text("unknown", style=STYLES["unknown"]), Text("")]
        names = Text(", ".join(block.unknown), style="dim")
        count = "1 control" if len(block.unknown) == 1 else f"{len(block.unknown)} controls"
        grid.add_row(*label, *([names] if narrow else [Text(count), names]))
    return grid
