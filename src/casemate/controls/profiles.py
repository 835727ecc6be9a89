"""Profiles: for whom a host runs its VMs, and what that changes about the weight of each control.

A profile is data. It changes the severity of a control or says that it does not apply, each with a reason that the
report repeats; it never changes what a control expects, so a fact that fails under one profile fails under all where
the control applies. The catalogue's own severities are those of ``multi-tenant``, which therefore changes nothing and
is the default: VMs of people who do not trust each other are what the separation is for, and whoever has less to
separate can say so, while a default that assumed friendly neighbours would be wrong without anybody noticing.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Final

import msgspec

from casemate.controls.model import Finding, Severity, Verdict
from casemate.controls.profiles_data import PROFILES
from casemate.controls.profiles_model import Adjustment, Profile
from casemate.errors import InputError

DEFAULT: Final = "multi-tenant"
NEVER_OFF: Final = frozenset({"proc.drift"})
"""Controls whose failure means that the other verdicts are about something else; no profile lays them aside."""


def names() -> tuple[str, ...]:
    """The profiles there are, from the least to the most demanding."""
    return tuple(profile.name for profile in PROFILES)


def named(name: str) -> Profile:
    """The profile of this name.

    Raises:
        InputError: there is none.
    """
    for profile in PROFILES:
        if profile.name == name:
            return profile
    raise InputError("there is no such profile", got=repr(name), expected=f"one of {', '.join(names())}")


def adjustment_for(profile: Profile, control_id: str) -> Adjustment | None:
    """What the profile says about a control; the first entry that matches counts."""
    return next((entry for entry in profile.adjustments if fnmatchcase(control_id, entry.control)), None)


def under(profile: Profile, findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings as this profile weighs them, in their order; what was read and expected stays as it is."""
    if not profile.adjustments:
        return tuple(findings)
    return tuple(_weigh(profile, finding) for finding in findings)


def severity_under(profile: Profile, control_id: str, severity: Severity) -> Severity | None:
    """The severity of a control under this profile; None when it does not apply."""
    entry = adjustment_for(profile, control_id)
    return severity if entry is None else entry.severity


def _weigh(profile: Profile, finding: Finding) -> Finding:
    entry = adjustment_for(profile, finding.control_id)
    if entry is None:
        return finding
    if entry.severity is None:
        if finding.verdict is Verdict.NOT_APPLICABLE:
            return finding
        why = f"not asked of {profile.name}: {entry.reason}"
        return msgspec.structs.replace(
            finding, verdict=Verdict.NOT_APPLICABLE, why=why, remedy="", pending=False, underlying=None
        )
    if entry.severity is finding.severity:
        return finding
    why = f"{finding.why}; {entry.severity.value} under {profile.name} ({finding.severity.value} otherwise)"
    return msgspec.structs.replace(finding, severity=entry.severity, why=f"{why}: {entry.reason}")
