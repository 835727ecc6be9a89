"""What the controls about libvirt share."""

from __future__ import annotations

from typing import Final

from casemate.controls.catalogue.common import HOST, S4, S7
from casemate.controls.expectations import Equals, Expectation
from casemate.controls.model import (
    AttackStep,
    Check,
    Condition,
    Control,
    Cost,
    Gate,
    Remedies,
    Scenario,
    Severity,
    Source,
    Subject,
)
from casemate.facts.fact import Stage

INSTALLED: Final = Condition("libvirt.installed", Equals(True), "libvirt is not installed here")
RESTART: Final = "A daemon that started before the file changed still runs with what it read then."


def vmm(
    control_id: str,
    checks: tuple[Check, ...],
    title: str,
    question: str,
    severity: Severity,
    remedy: str,
    sources: tuple[Source, ...],
    *,
    cuts: tuple[AttackStep, ...] = (S7,),
    scenarios: tuple[Scenario, ...] = (HOST,),
    cost: Cost = Cost(),  # noqa: B008  frozen
    limits: str = "",
    applies: tuple[Condition, ...] = (INSTALLED,),
) -> Control:
    """A control about libvirt; it applies where libvirt is, unless ``applies`` says otherwise."""
    return Control(
        id=control_id,
        title=title,
        question=question,
        severity=severity,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=checks,
        cuts=cuts,
        scenarios=scenarios,
        cost=cost,
        remedies=Remedies(host=remedy),
        sources=sources,
        limits=f"{limits} {RESTART}".strip() if applies else limits,
        applies_when=applies,
        needs_stage=Stage.DECLARED,
    )


def qemu_setting(
    control_id: str, key: str, expect: Expectation, title: str, question: str, severity: Severity, remedy: str,
    *, cuts: tuple[AttackStep, ...] = (S4,), scenarios: tuple[Scenario, ...] = (HOST,), cost: Cost = Cost(),  # noqa: B008  frozen
    limits: str = "",
    sources: tuple[Source, ...] = (),
) -> Control:  # fmt: skip
    """A control about one setting of qemu.conf."""
    return vmm(
        control_id,
        (Check(f"libvirt.qemu.{key}", expect),),
        title,
        question,
        severity,
        f"/etc/libvirt/qemu.conf: {remedy}; then restart libvirt",
        (Source("libvirt", f"qemu.conf: {key.replace('-', '_')}"), *sources),
        cuts=cuts,
        scenarios=scenarios,
        cost=cost,
        limits=limits,
    )
