"""What changed between two audits: per target and control, new, gone, or another verdict. Pure.

Targets are the same when kind, name and host are; where they were found may differ. A control that the old audit did
not judge for a target is *new*, one that only the old one judged is *gone*: a changed catalogue shows as that.
"""

from __future__ import annotations

import enum

import msgspec

from casemate.controls.audit_model import Report, Target, TargetReport
from casemate.controls.model import Finding, Verdict

TargetKey = tuple[str, str, str]
"""(kind, name, host)."""


class ChangeKind(enum.StrEnum):
    """How a finding differs from the baseline's."""

    NEW = "new"
    CHANGED = "changed"
    GONE = "gone"


class Change(msgspec.Struct, frozen=True):
    """One difference. ``finding``: as it is now; for GONE as it was. ``before``: the old verdict, None for NEW."""

    target: Target
    kind: ChangeKind
    finding: Finding
    before: Verdict | None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """``report``: the new report with nothing but the findings that are new or changed; targets without any are left
    out. ``since``: time of the old audit. ``warnings``: what makes the comparison weaker than it looks."""

    report: Report
    since: str
    changes: tuple[Change, ...]
    new_targets: tuple[Target, ...]
    gone_targets: tuple[Target, ...]
    warnings: tuple[str, ...] = ()

    def before(self) -> dict[tuple[TargetKey, str], str]:
        """(target, control) to the old verdict as a word, ``new`` where there was none."""
        return {
            (key_of(change.target), change.finding.control_id): change.before.value if change.before else "new"
            for change in self.changes
            if change.kind is not ChangeKind.GONE
        }

    def gone(self) -> tuple[Change, ...]:
        """The findings that only the old audit had."""
        return tuple(change for change in self.changes if change.kind is ChangeKind.GONE)


def key_of(target: Target) -> TargetKey:
    """What makes two targets the same."""
    return target.kind.value, target.name, target.host


def compare(old: Report, new: Report) -> Comparison:
    """Every difference, in the order of the new report; what is gone comes after what is there."""
    old_targets = {key_of(entry.target): entry for entry in old.targets}
    new_keys = {key_of(entry.target) for entry in new.targets}
    changes: list[Change] = []
    kept: list[TargetReport] = []
    for entry in new.targets:
        found = _changes_of(old_targets.get(key_of(entry.target)), entry)
        changes += found
        changed_ids = {change.finding.control_id for change in found if change.kind is not ChangeKind.GONE}
        if changed_ids:
            findings = tuple(finding for finding in entry.findings if finding.control_id in changed_ids)
            kept.append(msgspec.structs.replace(entry, findings=findings))
    gone_targets = tuple(entry.target for entry in old.targets if key_of(entry.target) not in new_keys)
    known = old_targets.keys()
    return Comparison(
        report=msgspec.structs.replace(new, targets=tuple(kept)),
        since=old.time,
        changes=tuple(changes),
        new_targets=tuple(entry.target for entry in new.targets if key_of(entry.target) not in known),
        gone_targets=gone_targets,
        warnings=_warnings(old, new),
    )


def _changes_of(old: TargetReport | None, new: TargetReport) -> list[Change]:
    before = {finding.control_id: finding for finding in old.findings} if old else {}
    changes = []
    for finding in new.findings:
        was = before.pop(finding.control_id, None)
        if was is None:
            changes.append(Change(new.target, ChangeKind.NEW, finding, None))
        elif (was.verdict, was.severity) != (finding.verdict, finding.severity):
            changes.append(Change(new.target, ChangeKind.CHANGED, finding, was.verdict))
    changes += [Change(new.target, ChangeKind.GONE, finding, finding.verdict) for finding in before.values()]
    return changes


def _warnings(old: Report, new: Report) -> tuple[str, ...]:
    warnings = []
    if old.host != new.host:
        warnings.append(f"the baseline was made on another host: {old.host}, now {new.host}")
    if old.profile != new.profile:
        warnings.append(f"the baseline was made under another profile: {old.profile}, now {new.profile}")
    if old.catalogue != new.catalogue:
        warnings.append("the baseline was made with another catalogue: controls that are new or gone may be that")
    return tuple(warnings)
