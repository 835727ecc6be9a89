"""Facts of one target in, its report out: controls by subject, waivers and profile applied."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from functools import cache

import msgspec

from casemate.controls.audit_model import Target, TargetReport
from casemate.controls.catalogue.all import all_controls
from casemate.controls.judge import judge
from casemate.controls.model import Control, Finding, Subject
from casemate.controls.profiles import under
from casemate.controls.profiles_model import Profile
from casemate.controls.waivers import AuditWaiver, applied_to
from casemate.facts.cve_reach import undecided_of
from casemate.facts.cve_table import marks_of, reaching, table
from casemate.facts.fact import Facts, Stage

COMPARED = frozenset({"proc.drift"})
"""Controls whose finding comes from a comparison (`controls/drift.py`) and not from the judge."""


class Setting(msgspec.Struct, frozen=True):
    """What is the same for all targets of one audit."""

    profile: Profile
    today: datetime.date
    waivers: tuple[AuditWaiver, ...] = ()


@cache
def controls_for(*subjects: Subject) -> tuple[Control, ...]:
    """The judged controls about these subjects."""
    return tuple(c for c in all_controls() if c.subject in subjects and c.id not in COMPARED)


def report_on(
    target: Target,
    facts: Facts,
    subjects: Sequence[Subject],
    setting: Setting,
    *,
    stage: Stage,
    compared: Sequence[Finding] = (),
    notes: Sequence[str] = (),
    controls: Sequence[Control] = (),
) -> TargetReport:
    """Judge one target.

    Args:
        compared: findings of drift, made by whoever had both sides.
        controls: these, in place of all about ``subjects``.

    Raises:
        RuntimeError: no control is about these subjects.
    """
    waivers, stale = applied_to(target, setting.waivers, setting.today)
    findings = judge(controls or controls_for(*subjects), facts, stage=stage, waivers=waivers)
    weighed = under(setting.profile, (*findings, *compared))
    history = tuple(cve.id for cve in reaching(marks_of(facts))) if Subject.VM in subjects else ()
    maybe = undecided_of(facts, table()) if Subject.VM in subjects else None
    return TargetReport(
        target=target, stage=stage, findings=weighed, notes=(*notes, *stale), history=history, undecided=maybe
    )
