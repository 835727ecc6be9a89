"""JUnit XML, for CI servers: a suite for each target, a case for each control.

Fail is a failure. Unknown is an error: the check could not be carried out, and a green line would be a lie. Waived,
manual, not applicable and pending (declared as wanted, no live object read) are skipped cases with their reason.
"""

from __future__ import annotations

from casemate.controls.audit_model import Report, TargetReport
from casemate.controls.model import Finding
from casemate.report.view import NO_CHANGES, PENDING, Changes, label_of, layer_name, word_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_SKIPPED = frozenset({"waived", "manual", "not-applicable", PENDING})


def to_junit(report: Report, changes: Changes = NO_CHANGES) -> str:
    """The report as one XML document."""
    from xml.etree import ElementTree as ET

    top = ET.Element("testsuites", name=f"casemate audit of {report.host}")
    totals = [0, 0, 0, 0]
    for entry in report.targets:
        counts = _suite(top, entry, report, changes)
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
    if report.faults:
        suite = ET.SubElement(top, "testsuite", name="targets that could not be audited", timestamp=report.time)
        for fault in report.faults:
            case = ET.SubElement(suite, "testcase", classname="casemate.audit", name=fault)
            ET.SubElement(case, "error", type="fault", message=fault)
        _count(suite, [len(report.faults), 0, len(report.faults), 0])
        totals = [totals[0] + len(report.faults), totals[1], totals[2] + len(report.faults), totals[3]]
    _count(top, totals)
    ET.indent(top, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(top, encoding="unicode") + "\n"


def _suite(top: Element, entry: TargetReport, report: Report, changes: Changes) -> list[int]:
    """Add one target; returns (tests, failures, errors, skipped)."""
    from xml.etree import ElementTree as ET

    name = label_of(entry)
    suite = ET.SubElement(top, "testsuite", name=name, timestamp=report.time, hostname=entry.target.host or report.host)
    properties = ET.SubElement(suite, "properties")
    values = {"origin": entry.target.origin, "stage": entry.stage.value, "profile": report.profile}
    for key, value in {**values, "catalogue": report.catalogue, "version": report.tool_version}.items():
        ET.SubElement(properties, "property", name=key, value=value)
    counts = [0, 0, 0, 0]
    for finding in entry.findings:
        word = word_of(finding)
        counts[0] += 1
        counts[1] += word == "fail"
        counts[2] += word == "unknown"
        counts[3] += word in _SKIPPED
        _case(suite, name, finding, word, changes.was(entry, finding))
    _count(suite, counts)
    if entry.notes:
        ET.SubElement(suite, "system-out").text = "\n".join(entry.notes)
    return counts


def _case(suite: Element, target: str, finding: Finding, word: str, before: str) -> None:
    from xml.etree import ElementTree as ET

    classname = f"{target}.{layer_name(finding.control_id)}"
    case = ET.SubElement(suite, "testcase", classname=classname, name=f"{finding.control_id}: {finding.title}")
    if word == "pass":
        return
    was = f" (was {before})" if before else ""
    if word in _SKIPPED:
        ET.SubElement(case, "skipped", message=f"{word}{was}: {finding.why}")
        return
    tag = "failure" if word == "fail" else "error"
    element = ET.SubElement(case, tag, type=finding.severity.value, message=f"{finding.why}{was}")
    parts = (("evidence", finding.evidence), ("expected", finding.expected), ("remedy", finding.remedy))
    element.text = "\n".join(f"{key}: {text}" for key, text in parts if text)


def _count(element: Element, counts: list[int]) -> None:
    for key, count in zip(("tests", "failures", "errors", "skipped"), counts, strict=True):
        element.set(key, str(count))
