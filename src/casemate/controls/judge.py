"""The one judge of all controls: facts in, findings out. Pure: no I/O, no clock, no privileges.

For each control, in this order:

1. **Does it apply?** A condition known not to hold makes it *not-applicable*; one that nobody knows, *unknown*.
2. **Manual?** A control that no fact can decide is *manual*.
3. **Read each fact.** A missing or unknown fact, or a value of the wrong kind, makes the check unknown. A declared
   value never satisfies a control that needs an observed one: while a plan is judged it is *unknown, pending*, later
   just unknown.
4. **Fold.** One failed check fails the control; else one unknown check makes it unknown; else it passes.
5. **Waive.** A fail or an unknown with an applied waiver becomes *waived* and remembers what it was.

Called wrongly (no controls, one id twice, one control waived twice) it raises RuntimeError: all of nothing proves
nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from casemate.controls.expectations import show
from casemate.controls.model import AppliedWaiver, Check, Condition, Control, Finding, Gate, Verdict
from casemate.errors import RefusedError
from casemate.facts.fact import Facts, Known, Stage, Unknown, Value


class _Answer(msgspec.Struct, frozen=True):
    """What one check or condition came to. ``holds`` None: unknown. ``names``: facts that were read, for evidence.
    ``pending``: holds, but only as declared."""

    holds: bool | None
    names: tuple[str, ...]
    why: str = ""
    pending: bool = False


_DISTINCT_MAX: Final = 64
_distinct: dict[int, Sequence[Control]] = {}
"""Tuples of controls that were found to hold none twice, by their identity."""
_TEXTS_MAX: Final = 4096
_texts: dict[int, tuple[Control, str, str]] = {}
"""By the identity of a control: itself, what it expects, its remedies. The same for every target that is judged."""


def judge(
    controls: Sequence[Control], facts: Facts, *, stage: Stage, waivers: Sequence[AppliedWaiver] = ()
) -> tuple[Finding, ...]:
    """Judge ``facts`` against ``controls``; one finding per control, in their order.

    Args:
        stage: DECLARED for a plan that has not started, OBSERVED for a live object. At OBSERVED nothing is pending.
        waivers: those the host's policy let through; a waiver for a control that is not judged here has no effect.

    Raises:
        RuntimeError: no controls, a control twice, a control waived twice.
    """
    if not controls:
        raise RuntimeError("no controls to judge: all of nothing proves nothing")
    if _distinct.get(id(controls)) is not controls:
        _refuse_repeats("control", [control.id for control in controls])
        _remember_distinct(controls)
    if not waivers:
        return tuple([_judge_one(control, facts, stage) for control in controls])
    _refuse_repeats("waiver", [waiver.control for waiver in waivers])
    waiver_of = {waiver.control: waiver for waiver in waivers}
    return tuple([_waive(_judge_one(control, facts, stage), waiver_of) for control in controls])


def refusals(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings that stop a launch: gate ``launch``, failed or unknown, not waived, not merely pending.

    Raises:
        RuntimeError: no findings at all, which would look like nothing to refuse.
    """
    if not findings:
        raise RuntimeError("no findings: a launch cannot be released on nothing")
    stops = (Verdict.FAIL, Verdict.UNKNOWN)
    return tuple(f for f in findings if f.gate is Gate.LAUNCH and f.verdict in stops and not f.pending)


def verified_live(findings: Sequence[Finding]) -> tuple[int, int]:
    """(controls that passed on observed facts, controls that apply): the "k of N verified live" of a report."""
    applicable = [f for f in findings if f.verdict is not Verdict.NOT_APPLICABLE]
    live = [f for f in applicable if f.verdict is Verdict.PASS and f.stage is Stage.OBSERVED]
    return len(live), len(applicable)


def refusal_error(refused: Sequence[Finding]) -> RefusedError:
    """One error for all refusals: the first in full, the others by id.

    Raises:
        RuntimeError: nothing was refused.
    """
    if not refused:
        raise RuntimeError("refusal_error needs at least one refusal")
    first, others = refused[0], refused[1:]
    also = f" (and {', '.join(f.control_id for f in others)})" if others else ""
    return RefusedError(
        first.control_id,
        f"{first.title}: {first.why}{also}",
        got=first.evidence,
        expected=first.expected,
        next_step=first.remedy,
    )


def _remember_distinct(controls: Sequence[Control]) -> None:
    """A tuple of controls, which cannot change; it is kept, so that its identity is not given to another one."""
    if isinstance(controls, tuple):
        if len(_distinct) >= _DISTINCT_MAX:
            _distinct.clear()
        _distinct[id(controls)] = controls


def _refuse_repeats(what: str, names: Iterable[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise RuntimeError(f"{what} given more than once: {', '.join(repeated)}")


def _judge_one(control: Control, facts: Facts, stage: Stage) -> Finding:
    # 1. Does it apply?
    undecided = []
    for condition in control.applies_when:
        answer = _ask(condition, control, facts, stage)
        if answer.holds is False:
            return _finding(control, facts, stage, Verdict.NOT_APPLICABLE, [answer], condition.otherwise)
        if answer.holds is None:
            undecided.append(answer)
    if undecided:
        why = "whether this applies is not known: " + "; ".join(answer.why for answer in undecided)
        return _finding(control, facts, stage, Verdict.UNKNOWN, undecided, why)
    # 2. Manual?
    if control.manual:
        return _finding(control, facts, stage, Verdict.MANUAL, [], control.manual)
    # 3. Read each fact.
    answers = [_ask(check, control, facts, stage) for check in control.checks]
    # 4. Fold.
    failed = [answer for answer in answers if answer.holds is False]
    if failed:
        return _finding(control, facts, stage, Verdict.FAIL, failed, "; ".join(answer.why for answer in failed))
    unknown = [answer for answer in answers if answer.holds is None]
    if unknown:
        return _finding(control, facts, stage, Verdict.UNKNOWN, unknown, "; ".join(answer.why for answer in unknown))
    if any(answer.pending for answer in answers):
        why = "declared so; the live process has still to be read"
        return _finding(control, facts, stage, Verdict.UNKNOWN, answers, why, pending=True)
    return _finding(control, facts, stage, Verdict.PASS, answers, "as expected")


def _ask(question: Check | Condition, control: Control, facts: Facts, stage: Stage) -> _Answer:
    """Read the fact (and the one set aside) and put the expectation to its value."""
    value, known, why = _read(question.fact, facts, control, stage)
    names: tuple[str, ...] = (question.fact,)
    if value is None:
        return _Answer(None, names, why)
    declared_only = known
    if isinstance(question, Check) and question.minus:
        aside, aside_declared, why = _read(question.minus, facts, control, stage)
        names = (question.fact, question.minus)
        if aside is None:
            return _Answer(None, names, why)
        if not isinstance(aside, tuple) or not isinstance(value, tuple):
            return _Answer(None, names, f"{question.fact} or {question.minus} is not a list")
        value = tuple(element for element in value if element not in aside)
        declared_only = declared_only or aside_declared
    holds = question.expect.holds(value)
    if holds is None:
        return _Answer(None, names, f"{question.fact} is of a kind this control cannot judge")
    # A condition settled by a declared fact leaves nothing pending: the observed stage asks it again.
    pending = holds and declared_only and isinstance(question, Check)
    return _Answer(holds, names, "" if holds else f"{question.fact}: {show(value)}", pending)


def _read(name: str, facts: Facts, control: Control, stage: Stage) -> tuple[Value | None, bool, str]:
    """(value or None, only declared although observed is due, why there is no value)."""
    fact = facts.get(name)
    if fact is None:
        return None, False, f"{name} was not collected"
    if isinstance(fact, Unknown):
        return None, False, f"{name} is unknown: {show(fact.why)}"
    too_weak = control.needs_stage is Stage.OBSERVED and fact.stage is not Stage.OBSERVED
    if too_weak and stage is Stage.OBSERVED:
        return None, False, f"{name} is only declared ({show(fact.source)}); nobody read it from the live object"
    return fact.value, too_weak, ""


def _evidence(name: str, facts: Facts) -> str:
    fact = facts.get(name)
    if isinstance(fact, Known):
        return f"{name} = {show(fact.value)}, {fact.stage} from {show(fact.source)}"
    return f"{name}: unknown"


def _finding(
    control: Control,
    facts: Facts,
    stage: Stage,
    verdict: Verdict,
    answers: Sequence[_Answer],
    why: str,
    *,
    pending: bool = False,
) -> Finding:
    known = _texts.get(id(control))
    if known is None or known[0] is not control:
        known = _texts_of(control)
    return Finding(
        control_id=control.id,
        title=control.title,
        severity=control.severity,
        gate=control.gate,
        stage=stage,
        verdict=verdict,
        evidence="; ".join([_evidence(name, facts) for answer in answers for name in answer.names]),
        expected=known[1],
        why=why,
        remedy="" if verdict in (Verdict.PASS, Verdict.NOT_APPLICABLE) else known[2],
        pending=pending,
    )


def _texts_of(control: Control) -> tuple[Control, str, str]:
    """What it expects and how to satisfy it, put together once."""
    expected = "; ".join(
        f"{check.fact}{f' apart from {check.minus}' if check.minus else ''}: {check.expect.describe()}"
        for check in control.checks
    )
    if len(_texts) >= _TEXTS_MAX:
        _texts.clear()
    # The control itself is kept beside its texts, so that its identity is not given to another one.
    _texts[id(control)] = control, expected, control.remedies.text()
    return _texts[id(control)]


def _waive(finding: Finding, waiver_of: dict[str, AppliedWaiver]) -> Finding:
    # 5. Waive.
    waiver = waiver_of.get(finding.control_id)
    if waiver is None or finding.pending or finding.verdict not in (Verdict.FAIL, Verdict.UNKNOWN):
        return finding
    why = f"{finding.why}; waived until {waiver.expires.isoformat()}: {show(waiver.reason)}"
    return msgspec.structs.replace(finding, verdict=Verdict.WAIVED, underlying=finding.verdict, why=why)
