"""Properties of judge, policy and record that hold for any facts, any text and any bytes."""

from __future__ import annotations

import datetime
import math
from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from casemate.controls.catalogue.launch import catalogue, launch_controls
from casemate.controls.drift import drift
from casemate.controls.judge import judge, refusals
from casemate.controls.model import AppliedWaiver, Gate, Verdict
from casemate.controls.policy import HostPolicy, WaiverRules, effective_waivers, parse_policy
from casemate.errors import InputError, SpecError
from casemate.evidence.record import parse_public_key, verify_record
from casemate.facts.fact import Fact, Facts, Known, Stage, Unknown, Value
from casemate.spec.model import Waiver

CONTROLS = launch_controls()
IDS = [control.id for control in catalogue()]
PASSING = msgspec.json.decode(
    (Path(__file__).parent.parent / "golden" / "facts_passing.json").read_bytes(), type=dict[str, Value]
)
KEY = bytes(range(32))

values: st.SearchStrategy[Value] = st.one_of(
    st.booleans(),
    st.integers(-2, 3),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.text(max_size=8), max_size=3).map(tuple),
)
stages = st.sampled_from(Stage)


@st.composite
def facts(draw: st.DrawFn) -> Facts:
    """Mostly good facts: some good, some of any value, some unknown, some missing, declared or observed."""
    drawn: Facts = {}
    for name, good in PASSING.items():
        kind = draw(st.sampled_from(("good", "good", "good", "any", "unknown", "missing")))
        if kind == "unknown":
            drawn[name] = Unknown(draw(st.text(max_size=20)))
        elif kind != "missing":
            drawn[name] = Known(good if kind == "good" else draw(values), "property", draw(stages))
    return drawn


@st.composite
def waivers(draw: st.DrawFn) -> tuple[AppliedWaiver, ...]:
    chosen = draw(st.lists(st.sampled_from(IDS), unique=True, max_size=5))
    return tuple(AppliedWaiver(control, "a property needs it", datetime.date(2030, 1, 1)) for control in chosen)


@given(facts(), stages, waivers())
def test_one_finding_per_control_whatever_the_facts(
    drawn: Facts, stage: Stage, waived: tuple[AppliedWaiver, ...]
) -> None:
    findings = judge(CONTROLS, drawn, stage=stage, waivers=waived)
    assert [f.control_id for f in findings] == [c.id for c in CONTROLS]
    assert all(text.isprintable() for f in findings for text in (f.evidence, f.why))


@given(facts(), stages)
def test_a_pass_rests_on_known_facts_strong_enough(drawn: Facts, stage: Stage) -> None:
    for control, finding in zip(CONTROLS, judge(CONTROLS, drawn, stage=stage), strict=True):
        if finding.verdict is Verdict.PASS:
            read = [drawn.get(name) for name in control.facts_read()]
            assert all(isinstance(fact, Known) for fact in read)
            if control.needs_stage is Stage.OBSERVED:
                assert all(isinstance(fact, Known) and fact.stage is Stage.OBSERVED for fact in read)


@given(facts(), st.sets(st.sampled_from(sorted(PASSING)), min_size=1))
def test_knowing_less_never_makes_a_pass(drawn: Facts, forgotten: set[str]) -> None:
    before = judge(CONTROLS, drawn, stage=Stage.OBSERVED)
    fewer: dict[str, Fact] = {n: f if n not in forgotten else Unknown("forgotten") for n, f in drawn.items()}
    for old, new in zip(before, judge(CONTROLS, fewer, stage=Stage.OBSERVED), strict=True):
        assert new.verdict is not Verdict.PASS or old.verdict is Verdict.PASS
        assert new.verdict is not Verdict.NOT_APPLICABLE or old.verdict is Verdict.NOT_APPLICABLE


@given(facts(), stages, waivers())
def test_waivers_turn_only_named_failures_and_unknowns(
    drawn: Facts, stage: Stage, waived: tuple[AppliedWaiver, ...]
) -> None:
    plain = judge(CONTROLS, drawn, stage=stage)
    named = {w.control for w in waived}
    for old, new in zip(plain, judge(CONTROLS, drawn, stage=stage, waivers=waived), strict=True):
        if old.control_id in named and old.verdict in (Verdict.FAIL, Verdict.UNKNOWN) and not old.pending:
            assert (new.verdict, new.underlying) == (Verdict.WAIVED, old.verdict)
        else:
            assert new == old


@given(facts(), stages)
def test_what_is_not_refused_is_settled_for_every_launch_control(drawn: Facts, stage: Stage) -> None:
    findings = judge(CONTROLS, drawn, stage=stage)
    refused = refusals(findings)
    for finding in findings:
        settled = finding.verdict in (Verdict.PASS, Verdict.NOT_APPLICABLE) or finding.pending
        assert (finding in refused) is (finding.gate is Gate.LAUNCH and not settled)
    if stage is Stage.OBSERVED:
        assert not any(finding.pending for finding in findings)


@given(st.dictionaries(st.sampled_from("abcdef"), values, min_size=1), facts())
def test_drift_passes_only_when_every_promise_was_observed(promised: dict[str, Value], noise: Facts) -> None:
    declared: Facts = {name: Known(value, "plan", Stage.DECLARED) for name, value in promised.items()}
    live: Facts = {name: Known(value, "proc", Stage.OBSERVED) for name, value in promised.items()}
    comparable = not any(isinstance(value, float) and math.isnan(value) for value in promised.values())
    verdicts = {f.verdict for f in drift(declared, {**noise, **live}, controls=CONTROLS)}
    assert verdicts == ({Verdict.PASS} if comparable else {Verdict.FAIL})
    lost = sorted(promised)[0]
    without = {name: fact for name, fact in live.items() if name != lost}
    assert Verdict.UNKNOWN in {f.verdict for f in drift(declared, without, controls=CONTROLS)}


@given(st.text())
def test_any_text_is_a_policy_or_a_fault(text: str) -> None:
    try:
        policy = parse_policy(text, "any")
    except SpecError:
        return
    assert "proc.drift" not in policy.waivers.allowed


@given(
    st.lists(st.tuples(st.sampled_from([*IDS, "no.such"]), st.integers(-400, 800)), max_size=8),
    st.sets(st.sampled_from(IDS), max_size=10),
)
def test_only_waivers_that_policy_and_date_allow_count(requests: list[tuple[str, int]], allowed: set[str]) -> None:
    today = datetime.date(2026, 6, 1)
    asked = [
        Waiver(control=control, reason="a property needs it", expires=today + datetime.timedelta(days=days))
        for control, days in requests
    ]
    policy = HostPolicy(waivers=WaiverRules(allowed=tuple(sorted(allowed)), max_days=90))
    applied, refused = effective_waivers(asked, policy, today)
    assert len(applied) + len(refused) == len(asked)
    for waiver in applied:
        assert waiver.control in allowed
        assert waiver.control != "proc.drift"
        assert 0 <= (waiver.expires - today).days <= 90
    assert len({w.control for w in applied}) == len(applied)
    judge(CONTROLS, {}, stage=Stage.OBSERVED, waivers=applied)


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_as_a_record(data: bytes) -> None:
    try:
        verify_record(data, KEY)
    except InputError:
        return
    raise AssertionError("random bytes verified")


@given(st.text(max_size=200))
def test_any_text_is_a_public_key_or_a_fault(text: str) -> None:
    try:
        key = parse_public_key(text)
    except InputError:
        return
    assert len(key) == 32
