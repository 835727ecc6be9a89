"""Findings of a scan as SARIF 2.1.0. Levels: critical and high ``error``, medium ``warning``, low and info ``note``."""

from __future__ import annotations

import json
from typing import Any, Final

from casemate.scan.model import Finding, Level, Place
from casemate.scan.outcome import Outcome
from casemate.scan.ruleset import RuleSet

SARIF_SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS: Final = {
    Level.CRITICAL: "error",
    Level.HIGH: "error",
    Level.MEDIUM: "warning",
    Level.LOW: "note",
    Level.INFO: "note",
}
_SCORES: Final = {
    Level.CRITICAL: "9.5",
    Level.HIGH: "8.0",
    Level.MEDIUM: "5.5",
    Level.LOW: "3.0",
    Level.INFO: "0.5",
}


def outcome_to_sarif(outcome: Outcome, rules: RuleSet, version: str) -> str:
    """One log with one run. Fingerprints are digests under the scan's key: give one to compare logs."""
    ids = sorted({finding.rule for finding in outcome.findings})
    known = rules.by_id()
    first = {finding.rule: finding for finding in reversed(outcome.findings)}
    run: dict[str, Any] = {
        "tool": {
            "driver": {
                "name": "Casemate image scan",
                "semanticVersion": version,
                "rules": [_rule(rule_id, known.get(rule_id), first[rule_id]) for rule_id in ids],
            }
        },
        "automationDetails": {"id": "casemate/image-scan/"},
        "invocations": [
            {
                "executionSuccessful": not outcome.not_scanned,
                "toolExecutionNotifications": [
                    *({"level": "error", "message": _message(f"not scanned: {note}")} for note in outcome.not_scanned),
                    *({"level": "note", "message": _message(note)} for note in outcome.notes),
                ],
            }
        ],
        "columnKind": "utf16CodeUnits",
        "results": [_result(outcome, finding, ids.index(finding.rule)) for finding in outcome.findings],
    }
    return json.dumps({"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1, ensure_ascii=True) + "\n"


def _rule(rule_id: str, rule: Any, finding: Finding) -> dict[str, Any]:
    return {
        "id": rule_id,
        "shortDescription": {"text": finding.title},
        "help": {"text": getattr(rule, "remedy", "") or finding.remedy or "remove it from the image"},
        "defaultConfiguration": {"level": _LEVELS[finding.severity]},
        "properties": {"tags": ["security", "secret"], "security-severity": _SCORES[finding.severity]},
    }


def _result(outcome: Outcome, finding: Finding, index: int) -> dict[str, Any]:
    from urllib.parse import quote

    region: dict[str, Any] = {}
    if finding.path:
        artifact = {"uri": quote(f"{outcome.image.rsplit('/', 1)[-1]}{finding.path}", safe="/._-~")}
    else:
        artifact = {"uri": quote(outcome.image, safe="/._-~")}
        if finding.offset >= 0:
            region = {"region": {"byteOffset": finding.offset, "byteLength": 0}}
    result: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": _LEVELS[finding.severity],
        "message": _message(f"{finding.title} ({where(finding)}): {finding.shown}"),
        "locations": [{"physicalLocation": {"artifactLocation": artifact, **region}}],
        "partialFingerprints": {"keyedDigest/v1": finding.digest},
        "properties": {"place": finding.place.value, "detail": finding.detail, "guestOffset": finding.guest_offset},
    }
    if finding.waived:
        result["suppressions"] = [{"kind": "external", "status": "accepted", "justification": finding.waived}]
    return result


def where(finding: Finding) -> str:
    """The place of a finding in words."""
    if finding.place is Place.FILE:
        return finding.path
    at = (
        f"byte {finding.guest_offset} of the disk"
        if finding.guest_offset >= 0
        else f"byte {finding.offset} of the file"
    )
    if finding.place is Place.SNAPSHOT:
        return f"only in snapshot {finding.snapshot}, {at}"
    if finding.place is Place.UNREFERENCED:
        return f"in space that qcow2 freed, {at}"
    return at


def _message(text: str) -> dict[str, str]:
    escaped = text.replace("{", "{{").replace("}", "}}")
    return {"text": escaped.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]")}
