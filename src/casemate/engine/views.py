"""A plan as plain data: what ``casemate plan --json`` prints. See docs/json.md.

Each document carries ``schema``: its name and version. Keys are added without a new version; a key that goes or
changes its meaning makes one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from casemate.controls.model import Finding
from casemate.jail.policy import NAMESPACES, Layer
from casemate.jail.rules import Arg, Op, Rule
from casemate.plan.model import LaunchPlan

PLAN_SCHEMA = "casemate.plan/1"


def plan_view(plan: LaunchPlan, findings: Iterable[Finding]) -> dict[str, Any]:
    """A launch plan with the findings on what it declares."""
    wall = plan.wall
    return {
        "schema": PLAN_SCHEMA,
        "name": plan.name,
        "machine": plan.machine,
        "accel": plan.accel,
        "accel_why": plan.accel_why,
        "argv": list(wall.argv),
        "environment": dict(wall.environment),
        "descriptors": msgspec.to_builtins(wall.descriptors),
        "files": msgspec.to_builtins(plan.files),
        "mounts": {
            "root": {"type": "tmpfs", "size_bytes": wall.root_size_bytes, "read_only": True},
            "entries": msgspec.to_builtins(wall.root),
        },
        "identity": msgspec.to_builtins(plan.run_as),
        "namespaces": list(NAMESPACES) if wall.has(Layer.NAMESPACES) else [],
        "limits": {
            "rlimits": {item.name: item.value for item in wall.rlimits},
            "cgroup": list(wall.cgroup.limits),
        },
        "profile": plan.profile.name,
        "syscalls": [_rule(rule) for rule in plan.profile.rules],
        "landlock": {"abi": wall.landlock_abi, "paths": msgspec.to_builtins(wall.landlock)},
        "cgroup": msgspec.to_builtins(wall.cgroup),
        "core_cookie": wall.core_cookie,
        "exec_label": wall.exec_label,
        "helpers": msgspec.to_builtins(plan.helpers),
        "controls": [_declared(finding) for finding in findings],
        "warnings": list(plan.warnings),
        "missing": list(plan.missing),
        "spec": msgspec.to_builtins(plan.spec),
    }


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "name": rule.syscall,
        "phase": rule.phase.value,
        "reason": rule.reason,
        "args": [_condition(arg) for arg in rule.args],
        "origin": rule.origin.value,
        "errno": rule.errno,
    }


def _condition(arg: Arg) -> dict[str, Any]:
    condition: dict[str, Any] = {"index": arg.index, "op": arg.op.value, "value": arg.value}
    if arg.op is Op.MASKED_EQ:
        condition["mask"] = arg.mask
    return condition


def _declared(finding: Finding) -> dict[str, Any]:
    return {
        **_finding(finding),
        "gate": finding.gate.value,
        "pending": finding.pending,
        "remedy": finding.remedy,
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "control": finding.control_id,
        "title": finding.title,
        "verdict": finding.verdict.value,
        "severity": finding.severity.value,
        "evidence": finding.evidence,
        "expected": finding.expected,
        "why": finding.why,
    }
