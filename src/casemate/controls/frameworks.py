"""Measures that others published, held against findings. Pure: findings in, one verdict for each measure out.

1. A measure without controls is *cannot*, with its reason.
2. Each of its controls gathers the findings of every target; a control that nobody judged says so.
3. The worst word wins: fail, then unknown, manual, waived, pass, not-applicable. A measure of which nothing was judged
   is *not judged*; one of which a part was and holds, *partly judged*. A pass of a measure says that its controls hold,
   never that the measure as published is met.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from casemate.controls.audit_model import TargetReport
from casemate.controls.frameworks_government_data import ANSSI, STIG
from casemate.controls.frameworks_model import Framework, Measure
from casemate.controls.frameworks_provider_data import GCP7, NITRO
from casemate.controls.model import Verdict
from casemate.errors import InputError

FRAMEWORKS: Final[dict[str, Framework]] = {framework.name: framework for framework in (GCP7, NITRO, ANSSI, STIG)}
CANNOT: Final = "cannot"
NOT_JUDGED: Final = "not-judged"
PARTLY: Final = "partly-judged"
_WORST_FIRST: Final = (
    *(Verdict.FAIL.value, Verdict.UNKNOWN.value, Verdict.MANUAL.value, Verdict.WAIVED.value, Verdict.PASS.value),
    *(Verdict.NOT_APPLICABLE.value, NOT_JUDGED),
)


class ControlState(msgspec.Struct, frozen=True):
    """One control of a measure: its worst verdict, and the targets that have it."""

    id: str
    verdict: str
    targets: tuple[str, ...] = ()


class MeasureState(msgspec.Struct, frozen=True):
    """One measure: the worst verdict of its controls, or ``cannot``."""

    measure: Measure
    verdict: str
    controls: tuple[ControlState, ...] = ()


def framework_of(name: str) -> Framework:
    """The framework of this name.

    Raises:
        InputError: there is none.
    """
    if name not in FRAMEWORKS:
        raise InputError(f"no framework {name!r}", expected=", ".join(FRAMEWORKS))
    return FRAMEWORKS[name]


def states_of(framework: Framework, targets: Sequence[TargetReport]) -> tuple[MeasureState, ...]:
    """Each measure with its verdict over all targets, in the framework's order."""
    found: dict[str, dict[str, list[str]]] = {}
    for report in targets:
        for finding in report.findings:
            by_verdict = found.setdefault(finding.control_id, {})
            by_verdict.setdefault(finding.verdict.value, []).append(f"{report.target.kind.value} {report.target.name}")
    return tuple(_state(measure, found) for measure in framework.measures)


def _state(measure: Measure, found: dict[str, dict[str, list[str]]]) -> MeasureState:
    if not measure.controls:
        return MeasureState(measure, CANNOT)
    controls = []
    for name in measure.controls:
        verdicts = found.get(name, {})
        worst = next((word for word in _WORST_FIRST if word in verdicts), NOT_JUDGED)
        controls.append(ControlState(name, worst, tuple(dict.fromkeys(verdicts.get(worst, ())))))
    words = {state.verdict for state in controls}
    worst = min(words, key=_WORST_FIRST.index)
    if worst in (Verdict.PASS.value, Verdict.NOT_APPLICABLE.value) and NOT_JUDGED in words:
        worst = PARTLY
    return MeasureState(measure, worst, tuple(controls))
