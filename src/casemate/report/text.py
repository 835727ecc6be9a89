"""Text of a report made safe once, before any format sees it.

Evidence comes from processes, files and guests that may be hostile. After `clean` every text of a report is printable
and bounded: no control character, no escape sequence, no mark that turns the direction of writing, no lone surrogate
and nothing that XML forbids. What a format then still has to escape is its own syntax only. Cleaning twice changes
nothing, so a report that was written as JSON and read back compares equal.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from casemate.controls.audit_model import FileRef, Report, Target, TargetReport, Unfixed
from casemate.controls.model import Finding

MAX_CHARS: Final = 4000
_CUT: Final = "… (cut)"


def one_line(text: str, limit: int = MAX_CHARS) -> str:
    """The text on one line: what is unprintable becomes ``\\xNN``, and more than ``limit`` characters are cut."""
    if len(text) > limit:
        text = text[: limit - len(_CUT)] + _CUT
    if text.isprintable():
        return text
    # Escaping makes it longer: cut again, so that cleaning what was cleaned changes nothing.
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return one_line(escaped, limit)


def lines(text: str) -> str:
    """Like `one_line`, but line breaks stay: for remedies, which are commands and XML over several lines."""
    if text.isprintable():
        return one_line(text)
    kept = "\n".join(one_line(line) for line in text[: 4 * MAX_CHARS].split("\n"))
    return kept[: 4 * MAX_CHARS]


def clean(report: Report) -> Report:
    """The report with every text in it made safe."""
    return msgspec.structs.replace(
        report,
        tool_version=one_line(report.tool_version),
        catalogue=one_line(report.catalogue),
        host=one_line(report.host),
        time=one_line(report.time),
        profile=one_line(report.profile),
        targets=tuple(_clean_target(entry) for entry in report.targets),
        faults=tuple(one_line(fault) for fault in report.faults),
    )


def _clean_target(entry: TargetReport) -> TargetReport:
    target = entry.target
    return TargetReport(
        target=Target(target.kind, one_line(target.name), one_line(target.origin), one_line(target.host)),
        stage=entry.stage,
        findings=tuple(_clean_finding(finding) for finding in entry.findings),
        notes=tuple(one_line(note) for note in entry.notes),
        history=tuple(one_line(number) for number in entry.history),
        undecided=None if entry.undecided is None else tuple(one_line(number) for number in entry.undecided),
        unfixed=entry.unfixed and _clean_unfixed(entry.unfixed),
        file=entry.file and _clean_file(entry.file),
        emulator=entry.emulator and _clean_file(entry.emulator),
        disks=None if entry.disks is None else tuple(_clean_file(disk) for disk in entry.disks),
    )


def _clean_unfixed(unfixed: Unfixed) -> Unfixed:
    return Unfixed(
        open=tuple(one_line(number) for number in unfixed.open),
        unrecorded=tuple(one_line(number) for number in unfixed.unrecorded),
    )


AnyRef = TypeVar("AnyRef", bound=FileRef)


def _clean_file(file: AnyRef) -> AnyRef:
    """A path that is more than one printable line is not comparable after this: it counts as not known."""
    path = file.path if one_line(file.path) == file.path else ""
    return msgspec.structs.replace(file, path=path, identity=one_line(file.identity), sha256=one_line(file.sha256))


def _clean_finding(finding: Finding) -> Finding:
    texts = (finding.control_id, finding.title, finding.evidence, finding.expected, finding.why, finding.remedy)
    if all(text.isprintable() and len(text) <= MAX_CHARS for text in texts):
        return finding
    return msgspec.structs.replace(
        finding,
        control_id=one_line(finding.control_id),
        title=one_line(finding.title),
        evidence=one_line(finding.evidence),
        expected=one_line(finding.expected),
        why=one_line(finding.why),
        remedy=lines(finding.remedy),
    )
