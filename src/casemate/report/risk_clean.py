"""Makes every text of others in a risk analysis one printable line, before any form is made of it."""

from __future__ import annotations

import msgspec

from casemate.report.text import one_line
from casemate.scenarios.risk_model import RiskReport, ScenarioRisk, VmRisk


def clean(report: RiskReport) -> RiskReport:
    """The report with names, notes, reasons and evidence that cannot move a cursor or break a line."""
    return msgspec.structs.replace(
        report,
        tool_version=one_line(report.tool_version),
        catalogue=one_line(report.catalogue),
        time=one_line(report.time),
        audited=one_line(report.audited),
        context=one_line(report.context),
        assumed=tuple(map(one_line, report.assumed)),
        notes=tuple(map(one_line, report.notes)),
        vms=tuple(_clean_vm(vm) for vm in report.vms),
    )


def _clean_vm(vm: VmRisk) -> VmRisk:
    return msgspec.structs.replace(
        vm,
        name=one_line(vm.name),
        kind=one_line(vm.kind),
        host=one_line(vm.host),
        notes=tuple(map(one_line, vm.notes)),
        evidence={control: one_line(text) for control, text in vm.evidence.items()},
        scenarios=tuple(_clean_scenario(item) for item in vm.scenarios),
    )


def _clean_scenario(item: ScenarioRisk) -> ScenarioRisk:
    if not (item.set_aside or item.accepted):
        return item
    return msgspec.structs.replace(item, set_aside=one_line(item.set_aside), accepted=one_line(item.accepted))
