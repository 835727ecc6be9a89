"""From the findings of an audit to where each control stands. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from casemate.controls.model import Verdict
from casemate.facts.fact import Stage
from casemate.scenarios.formula import State, Value


class Verdicts(msgspec.Struct, frozen=True):
    """The verdict of one control, as little of a finding as risk needs."""

    control: str
    verdict: Verdict
    stage: Stage = Stage.OBSERVED
    pending: bool = False
    evidence: str = ""
    why: str = ""


_PASSES: Final = {Stage.DECLARED: State(Value.PAPER), Stage.OBSERVED: State(Value.YES)}
_ABSENT: Final = {Stage.DECLARED: State(Value.PAPER, absent=True), Stage.OBSERVED: State(Value.YES, absent=True)}
_FAILS: Final = State(Value.NO)
_UNKNOWN: Final = State(Value.UNKNOWN)


def states_of(findings: Iterable[Verdicts]) -> dict[str, State]:
    """Where each control stands. A control with several findings stands where the worst of them does.

    What only a declared document says is on paper; waived is not met; manual and unknown are unknown.
    """
    states: dict[str, State] = {}
    for finding in findings:
        state = _state(finding)
        known = states.get(finding.control)
        if known is None or _badness(state) < _badness(known):
            states[finding.control] = state
    return states


def _badness(state: State) -> tuple[int, int]:
    """Lower is worse; something present that is met as well as an absence is the worse of the two."""
    return state.value, int(state.absent)


def _state(finding: Verdicts) -> State:
    if finding.verdict is Verdict.PASS:
        return _PASSES[finding.stage]
    if finding.verdict is Verdict.NOT_APPLICABLE:
        return _ABSENT[finding.stage]
    if finding.verdict is Verdict.FAIL or finding.verdict is Verdict.WAIVED:
        return _FAILS
    return _PASSES[Stage.DECLARED] if finding.pending else _UNKNOWN
