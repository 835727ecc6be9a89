"""SARIF 2.1.0, for code scanning and other dashboards.

What becomes what (sections of the OASIS standard):

- fail: kind ``fail``; level by severity: critical and high ``error``, medium ``warning``, low and info ``note``
  (3.27.10).
- unknown: kind ``open``, which the standard has for "not enough information to decide" (3.27.9); manual: ``review``.
- waived: the underlying kind with a suppression that carries reason and expiry (3.27.23).
- the attack paths that a control cuts are its ``codeFlows``; the step that it cuts is marked essential (3.36).
- a target that is a file gets a physical location. Others get one below ``TARGETS`` as well, which is a name and no
  directory, because some readers show no result without one.
"""

from __future__ import annotations

from typing import Any, Final

from casemate.controls.audit_model import Report, Target, TargetKind, TargetReport
from casemate.controls.model import Control, Finding, Severity, Verdict
from casemate.report.paths import STEPS, Path, paths_of
from casemate.report.view import NO_CHANGES, Changes, controls_of, layer_name

SARIF_SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
LEVELS: Final = {
    Severity.CRITICAL: "error",
    Severity.HIGH: "error",
    Severity.MEDIUM: "warning",
    Severity.LOW: "note",
    Severity.INFO: "note",
}
# How code scanning sorts security results: critical above 9.0, high 7.0-8.9, medium 4.0-6.9, low below.
SCORES: Final = {
    Severity.CRITICAL: "9.5",
    Severity.HIGH: "8.0",
    Severity.MEDIUM: "5.5",
    Severity.LOW: "3.0",
    Severity.INFO: "0.5",
}
KINDS: Final = {
    Verdict.PASS: "pass",
    Verdict.FAIL: "fail",
    Verdict.NOT_APPLICABLE: "notApplicable",
    Verdict.UNKNOWN: "open",
    Verdict.MANUAL: "review",
}
_FILES: Final = frozenset({TargetKind.DOMAIN, TargetKind.VMM_CONFIG, TargetKind.IMAGE, TargetKind.EMULATOR})
_BASE: Final = "TARGETS"


def to_sarif(report: Report, changes: Changes = NO_CHANGES) -> str:
    """The report as one SARIF log with one run."""
    import json

    return json.dumps(sarif_log(report, changes), indent=1, ensure_ascii=True) + "\n"


def sarif_log(report: Report, changes: Changes = NO_CHANGES) -> dict[str, Any]:
    """The log as plain data."""
    controls = controls_of(report)
    ids = list(dict.fromkeys(finding.control_id for entry in report.targets for finding in entry.findings))
    order = {control_id: index for index, control_id in enumerate(sorted(ids))}
    first = {finding.control_id: finding for entry in report.targets for finding in entry.findings}
    results = [
        _result(entry, finding, order[finding.control_id], controls.get(finding.control_id), changes)
        for entry in report.targets
        for finding in entry.findings
    ]
    run: dict[str, Any] = {
        "tool": {
            "driver": {
                "name": "Casemate",
                "semanticVersion": report.tool_version,
                "shortDescription": {"text": "Audit of hosts, emulators and virtual machines"},
                "rules": [_rule(first[control_id], controls.get(control_id)) for control_id in order],
                "properties": {"catalogue": report.catalogue, "profile": report.profile},
            }
        },
        "automationDetails": {"id": f"casemate/audit/{_uri(report.profile)}/"},
        "originalUriBaseIds": {
            _BASE: {"description": {"text": "Names of audited things that are no files: hosts, VMs, processes."}}
        },
        "invocations": [_invocation(report, changes)],
        "columnKind": "utf16CodeUnits",
        "results": results,
        "properties": {"host": report.host},
    }
    return {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}


def _invocation(report: Report, changes: Changes) -> dict[str, Any]:
    notes = [("error", fault) for fault in report.faults]
    notes += [("warning", text) for text in changes.warnings]
    notes += [("note", f"{entry.target.name}: {note}") for entry in report.targets for note in entry.notes]
    return {
        "executionSuccessful": not report.faults,
        "endTimeUtc": report.time,
        "toolExecutionNotifications": [{"level": level, "message": _message(text)} for level, text in notes],
    }


def _rule(finding: Finding, control: Control | None) -> dict[str, Any]:
    rule: dict[str, Any] = {
        "id": finding.control_id,
        "name": "".join(word.capitalize() for word in finding.control_id.replace(".", "-").split("-")),
        "shortDescription": {"text": finding.title or finding.control_id},
        "properties": {"tags": ["security", layer_name(finding.control_id)]},
    }
    if control is None:
        return rule
    rule["defaultConfiguration"] = {"level": LEVELS[control.severity]}
    rule["fullDescription"] = {"text": control.question}
    sources = "; ".join(f"{source.work}: {source.place}" for source in control.sources)
    helps = [control.remedies.text(), f"Costs: {control.cost.performance}; {control.cost.features}", f"From: {sources}"]
    rule["help"] = {"text": "\n".join(part for part in helps if part)}
    rule["properties"] |= {
        "security-severity": SCORES[control.severity],
        "cuts": [step.value for step in control.cuts],
        "scenarios": [scenario.value for scenario in control.scenarios],
        "subject": control.subject.value,
    }
    return rule


def _result(
    entry: TargetReport, finding: Finding, index: int, control: Control | None, changes: Changes
) -> dict[str, Any]:
    verdict = finding.verdict
    shown = finding.underlying or Verdict.FAIL if verdict is Verdict.WAIVED else verdict
    kind = KINDS[shown]
    text = f"{entry.target.kind.value} {entry.target.name}: {finding.title}"
    if verdict is not Verdict.PASS:
        text += f": {finding.why}"
    result: dict[str, Any] = {
        "ruleId": finding.control_id,
        "ruleIndex": index,
        "kind": kind,
        "level": LEVELS[finding.severity] if kind == "fail" else "none",
        "message": _message(text),
        "locations": [_location(entry.target)],
        "partialFingerprints": {"targetAndControl/v1": _fingerprint(entry.target, finding.control_id)},
        "properties": {
            "verdict": verdict.value,
            "pending": finding.pending,
            "severity": finding.severity.value,
            "stage": finding.stage.value,
            "evidence": finding.evidence,
            "expected": finding.expected,
            "remedy": finding.remedy,
        },
    }
    if verdict is Verdict.WAIVED:
        result["suppressions"] = [{"kind": "external", "status": "accepted", "justification": finding.why}]
    before = changes.was(entry, finding)
    if before:
        result["baselineState"] = "new" if before == "new" else "updated"
        result["properties"]["before"] = before
    if control is not None and kind in ("fail", "open", "review"):
        result["codeFlows"] = [_flow(path, entry.target) for path in paths_of(control)]
    return result


def _flow(path: Path, target: Target) -> dict[str, Any]:
    locations = [
        {
            "location": {**_location(target), "message": {"text": STEPS[step]}},
            "importance": "essential" if step is path.steps[-1] else "important",
            "executionOrder": number,
            "properties": {"step": step.value},
        }
        for number, step in enumerate(path.steps, 1)
    ]
    text = f"The control stands in the way of {path.steps[-1].value}: {STEPS[path.steps[-1]]}."
    return {"message": {"text": text}, "threadFlows": [{"locations": locations}]}


def _location(target: Target) -> dict[str, Any]:
    name = target.name
    qualified = f"{target.host}/{target.kind.value}/{name}" if target.host else f"{target.kind.value}/{name}"
    logical = {"name": name, "fullyQualifiedName": qualified, "kind": target.kind.value}
    artifact: dict[str, Any] = {"uri": _uri(qualified), "uriBaseId": _BASE}
    if target.kind in _FILES and not any(char.isspace() for char in target.origin) and "/" in target.origin:
        # An absolute path alone is no URI in the sense of the standard: it would be relative to nothing.
        artifact = {"uri": f"file://{_uri(target.origin)}" if target.origin.startswith("/") else _uri(target.origin)}
    return {"physicalLocation": {"artifactLocation": artifact}, "logicalLocations": [logical]}


def _message(text: str) -> dict[str, str]:
    """A message whose text is data: ``{0}`` and ``[link](place)`` mean something in SARIF's (3.11.5, 3.11.6)."""
    escaped = text.replace("{", "{{").replace("}", "}}")
    return {"text": escaped.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]")}


def _uri(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="/._-~")


def _fingerprint(target: Target, control_id: str) -> str:
    import hashlib

    parts = (target.kind.value, target.host, target.name, control_id)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
