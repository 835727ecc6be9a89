"""The risk analysis as SARIF 2.1.0: a rule for each scenario, a result for each VM and scenario, paths as code flows.

Open scenarios are failures, unknown and on-paper ones ``open`` (not enough information to decide, 3.27.9), residual
ones ``informational``, closed ones passes.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

from casemate.report.sarif import SARIF_SCHEMA
from casemate.scenarios.data import graph
from casemate.scenarios.labels import NODES
from casemate.scenarios.model import Status
from casemate.scenarios.risk_model import Level, PathRisk, RiskReport, ScenarioRisk, VmRisk

_KINDS: Final = {
    Status.OPEN: "fail",
    Status.UNKNOWN: "open",
    Status.PAPER: "open",
    Status.RESIDUAL: "informational",
    Status.CONTAINED: "pass",
    Status.CLOSED: "pass",
}
_LEVELS: Final = {Level.CRITICAL: "error", Level.HIGH: "error", Level.MODERATE: "warning", Level.LOW: "note"}
_SCORES: Final = {Level.CRITICAL: "9.5", Level.HIGH: "8.0", Level.MODERATE: "5.5", Level.LOW: "3.0"}


def to_sarif(report: RiskReport) -> str:
    """One log with one run."""
    return json.dumps(sarif_log(report), indent=1, ensure_ascii=True) + "\n"


def sarif_log(report: RiskReport) -> dict[str, Any]:
    """The log as plain data."""
    order = {variant.id: index for index, variant in enumerate(graph().variants)}
    run: dict[str, Any] = {
        "tool": {
            "driver": {
                "name": "Casemate risk",
                "semanticVersion": report.tool_version,
                "shortDescription": {"text": "Attack paths of virtual machines"},
                "rules": [_rule(report, name) for name in order],
                "properties": {"catalogue": report.catalogue},
            }
        },
        "automationDetails": {"id": "casemate/risk/"},
        "originalUriBaseIds": {"TARGETS": {"description": {"text": "Names of VMs, which are no files."}}},
        "invocations": [
            {
                "executionSuccessful": True,
                "endTimeUtc": report.time,
                "toolExecutionNotifications": [
                    {"level": "note", "message": {"text": text}} for text in (*report.assumed, *report.notes)
                ],
            }
        ],
        "columnKind": "utf16CodeUnits",
        "results": [_result(vm, item, order[item.id]) for vm in report.vms for item in vm.scenarios],
        "properties": {"context": report.context, "audited": report.audited},
    }
    return {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(report: RiskReport, name: str) -> dict[str, Any]:
    variant = next(item for item in graph().variants if item.id == name)
    levels = [item.level for vm in report.vms for item in vm.scenarios if item.id == name]
    worst = min(levels, key=list(_SCORES).index, default=Level.LOW)
    return {
        "id": name,
        "name": "".join(word.capitalize() for word in name.split("-")),
        "shortDescription": {"text": variant.title},
        "fullDescription": {"text": variant.story},
        "properties": {
            "tags": ["security", "virtualisation", f"scenario-{variant.letter.value}"],
            "security-severity": _SCORES[worst],
        },
    }


def _result(vm: VmRisk, item: ScenarioRisk, index: int) -> dict[str, Any]:
    kind = "notApplicable" if item.set_aside else _KINDS[item.status]
    name, host = vm.name, vm.host
    counts = ", ".join(f"{number} {status}" for status, number in item.counts.items())
    text = f"{name} on {host}: {item.title}: G{item.gravity} V{item.likelihood}, {item.level.value} ({counts} paths)"
    result: dict[str, Any] = {
        "ruleId": item.id,
        "ruleIndex": index,
        "kind": kind,
        "level": _LEVELS[item.level] if kind == "fail" else "none",
        "message": {"text": text},
        "locations": [_location(host, name)],
        "partialFingerprints": {
            "vmAndScenario/v1": hashlib.sha256(f"{host}\0{name}\0{item.id}".encode()).hexdigest()[:32]
        },
        "codeFlows": [_flow(path) for path in item.paths if path.status not in (Status.CLOSED, Status.CONTAINED)],
        "properties": {
            "gravity": item.gravity,
            "likelihood": item.likelihood,
            "likelihoodAfterPlan": item.after,
            "counts": item.counts,
            "setAside": item.set_aside,
        },
    }
    if not result["codeFlows"]:
        del result["codeFlows"]
    if item.accepted:
        result["suppressions"] = [{"kind": "external", "status": "accepted", "justification": item.accepted}]
    return result


def _location(host: str, name: str) -> dict[str, Any]:
    from urllib.parse import quote

    place = quote(f"{host}/{name}", safe="/")
    return {
        "physicalLocation": {"artifactLocation": {"uri": place, "uriBaseId": "TARGETS"}, "region": {"startLine": 1}},
        "logicalLocations": [{"name": name, "fullyQualifiedName": f"{host}/{name}", "kind": "resource"}],
    }


def _flow(path: PathRisk) -> dict[str, Any]:
    techniques = {technique.id: technique for technique in graph().techniques}
    steps = []
    for name in path.techniques:
        technique = techniques[name]
        steps.append(
            {
                "location": {
                    "logicalLocations": [{"name": name, "kind": "resource"}],
                    "message": {"text": f"{technique.title}: now {NODES[technique.target][0]}"},
                },
                "importance": "essential",
            }
        )
    return {
        "message": {"text": f"{path.status.value}, V{path.likelihood}"},
        "threadFlows": [{"locations": steps}],
    }
