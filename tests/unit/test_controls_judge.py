"""The judge's rules, drift, and the invariants of the catalogue's data."""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from casemate.controls.catalogue.later import LATER
from casemate.controls.catalogue.launch import catalogue, launch_controls
from casemate.controls.drift import DRIFT, drift
from casemate.controls.expectations import (
    AtLeast,
    AtMost,
    EachMatches,
    Empty,
    Equals,
    Matches,
    NoneMatches,
    SubsetOf,
    show,
)
from casemate.controls.judge import judge, refusal_error, refusals, verified_live
from casemate.controls.model import (
    AppliedWaiver,
    AttackStep,
    Check,
    Condition,
    Control,
    Gate,
    Remedies,
    Scenario,
    Severity,
    Source,
    Subject,
    Verdict,
)
from casemate.errors import ExitCode
from casemate.facts.fact import NO_LIMIT, Facts, Known, Stage, Unknown

ROOT = Path(__file__).parent.parent.parent
TOMORROW = datetime.date(2026, 1, 2)


def control(control_id: str = "test.one", **changes: object) -> Control:
    base = Control(
        id=control_id,
        title="One",
        question="Is it one?",
        severity=Severity.HIGH,
        gate=Gate.LAUNCH,
        checks=(Check("a", Equals(1)),),
        cuts=(AttackStep.S2_GUEST_TO_EMULATOR,),
        scenarios=(Scenario.HOST,),
        remedies=Remedies(spec="make it one"),
        sources=(Source("test", "here"),),
    )
    return msgspec.structs.replace(base, **changes)


def live(**values: object) -> Facts:
    return {name: Known(value, f"/proc/7/{name}") for name, value in values.items()}  # type: ignore[arg-type]


def verdict_of(subject: Control, facts: Facts, stage: Stage = Stage.OBSERVED) -> Verdict:
    return judge((subject,), facts, stage=stage)[0].verdict


def test_judging_nothing_is_our_bug() -> None:
    with pytest.raises(RuntimeError, match="no controls"):
        judge((), live(a=1), stage=Stage.OBSERVED)
    with pytest.raises(RuntimeError, match="no findings"):
        refusals(())
    with pytest.raises(RuntimeError, match="at least one refusal"):
        refusal_error(())


def test_one_control_or_waiver_twice_is_our_bug() -> None:
    waiver = AppliedWaiver("test.one", "for a good reason", TOMORROW)
    with pytest.raises(RuntimeError, match="control given more than once"):
        judge((control(), control()), live(a=1), stage=Stage.OBSERVED)
    with pytest.raises(RuntimeError, match="waiver given more than once"):
        judge((control(),), live(a=1), stage=Stage.OBSERVED, waivers=(waiver, waiver))


def test_a_control_needs_checks_or_a_manual_question() -> None:
    with pytest.raises(RuntimeError, match="either checks or a manual"):
        control(checks=())
    with pytest.raises(RuntimeError, match="either checks or a manual"):
        control(manual="Look at it.")


@pytest.mark.parametrize("value", [True, 1.5, "1", ("1",)])
def test_a_value_of_another_kind_is_unknown(value: object) -> None:
    assert verdict_of(control(), live(a=value)) is Verdict.UNKNOWN


def test_a_failed_check_outweighs_an_unknown_one() -> None:
    two = control(checks=(Check("a", Equals(1)), Check("b", Equals(1))))
    assert verdict_of(two, live(a=2)) is Verdict.FAIL
    assert verdict_of(two, live(a=1)) is Verdict.UNKNOWN
    assert verdict_of(two, live(a=1, b=1)) is Verdict.PASS


def test_a_condition_known_not_to_hold_outweighs_an_unknown_one() -> None:
    conditions = (Condition("x", Equals(1), "no x"), Condition("y", Equals(1), "no y"))
    assert verdict_of(control(applies_when=conditions), live(a=1, y=2)) is Verdict.NOT_APPLICABLE
    assert verdict_of(control(applies_when=conditions), live(a=1, y=1)) is Verdict.UNKNOWN


def test_a_plan_that_contradicts_a_control_fails_before_anything_starts() -> None:
    facts: Facts = {"a": Known(2, "plan", Stage.DECLARED)}
    finding = judge((control(),), facts, stage=Stage.DECLARED)[0]
    assert (finding.verdict, finding.pending) == (Verdict.FAIL, False)
    assert refusals((finding,)) == (finding,)


def test_a_plan_that_says_nothing_is_unknown_and_refused() -> None:
    finding = judge((control(),), {}, stage=Stage.DECLARED)[0]
    assert (finding.verdict, finding.pending) == (Verdict.UNKNOWN, False)
    assert refusals((finding,)) == (finding,)


def test_elements_named_by_another_fact_are_set_aside() -> None:
    groups = control(checks=(Check("groups", Empty(), minus="kept"),))
    assert verdict_of(groups, live(groups=("104",), kept=("104",))) is Verdict.PASS
    assert verdict_of(groups, live(groups=("104", "27"), kept=("104",))) is Verdict.FAIL
    assert verdict_of(groups, live(groups=("104",))) is Verdict.UNKNOWN
    assert verdict_of(groups, live(groups=("104",), kept="104")) is Verdict.UNKNOWN
    declared: Facts = {**live(groups=("104",)), "kept": Known(("104",), "plan", Stage.DECLARED)}
    assert verdict_of(groups, declared) is Verdict.UNKNOWN


def test_a_manual_control_says_what_to_look_at() -> None:
    manual = control(checks=(), manual="Read the contract.", gate=Gate.REPORT)
    finding = judge((manual,), {}, stage=Stage.OBSERVED)[0]
    assert (finding.verdict, finding.why) == (Verdict.MANUAL, "Read the contract.")
    assert refusals((finding,)) == ()


@pytest.mark.parametrize(
    ("facts", "underlying"),
    [(live(a=2), Verdict.FAIL), ({"a": Unknown("gone")}, Verdict.UNKNOWN)],
    ids=["fail", "unknown"],
)
def test_a_waiver_covers_fail_and_unknown_and_remembers_which(facts: Facts, underlying: Verdict) -> None:
    waiver = AppliedWaiver("test.one", "the driver needs it", TOMORROW)
    finding = judge((control(),), facts, stage=Stage.OBSERVED, waivers=(waiver,))[0]
    assert (finding.verdict, finding.underlying) == (Verdict.WAIVED, underlying)
    assert "waived until 2026-01-02: the driver needs it" in finding.why
    assert refusals((finding,)) == ()


def test_a_waiver_changes_nothing_else() -> None:
    waiver = AppliedWaiver("test.one", "the driver needs it", TOMORROW)
    subjects = (control(), control("test.two"))
    findings = judge(subjects, live(a=2), stage=Stage.OBSERVED, waivers=(waiver,))
    assert [f.verdict for f in findings] == [Verdict.WAIVED, Verdict.FAIL]
    assert judge((control(),), live(a=1), stage=Stage.OBSERVED, waivers=(waiver,))[0].verdict is Verdict.PASS
    declared: Facts = {"a": Known(1, "plan", Stage.DECLARED)}
    assert judge((control(),), declared, stage=Stage.DECLARED, waivers=(waiver,))[0].pending


def test_report_controls_refuse_nothing() -> None:
    findings = judge((control(gate=Gate.REPORT),), live(a=2), stage=Stage.OBSERVED)
    assert refusals(findings) == ()


def test_verified_live_counts_observed_passes_among_what_applies() -> None:
    subjects = (
        control("test.one"),
        control("test.two", checks=(Check("b", Equals(1)),)),
        control("test.three", applies_when=(Condition("c", Equals(1), "no c"),)),
    )
    assert verified_live(judge(subjects, live(a=1, b=2, c=2), stage=Stage.OBSERVED)) == (1, 2)


def test_the_refusal_names_control_evidence_expectation_and_fix() -> None:
    findings = judge((control(), control("test.two")), live(a=2), stage=Stage.OBSERVED)
    error = refusal_error(refusals(findings))
    assert error.exit_code is ExitCode.REFUSED
    assert error.control == "test.one"
    assert str(error) == (
        "refused by control test.one: One: a: 2 (and test.two); got a = 2, observed from /proc/7/a; expected a: = 1\n"
        "  next: spec: make it one"
    )


def test_hostile_values_cannot_drive_a_terminal_or_flood_it() -> None:
    text = control(checks=(Check("a", Equals("x")),))
    finding = judge((text,), live(a="\x1b[2J\n\u202e" + "A" * 100_000), stage=Stage.OBSERVED)[0]
    assert all(c.isprintable() for c in finding.evidence + finding.why)
    assert len(finding.evidence) < 600
    assert "\\x1b[2J\\n\\u202e" in finding.evidence
    assert show(("a\nb", "c")) == "a\\nb, c"


def test_no_limit_is_shown_as_a_word() -> None:
    assert show(NO_LIMIT) == "unlimited"
    finding = judge((control(checks=(Check("a", Equals(0)),)),), live(a=NO_LIMIT), stage=Stage.OBSERVED)[0]
    assert (finding.verdict, finding.why) == (Verdict.FAIL, "a: unlimited")


def test_predicates_at_their_edges() -> None:
    assert AtLeast(1).holds(True) is None
    assert AtMost(1).holds(-1) is False
    assert EachMatches("a", "").holds(()) is False
    assert SubsetOf(("a",)).holds(()) is True
    assert SubsetOf(("a",)).holds(("a", "b")) is False
    assert Matches("a", "").holds("a\n") is False
    assert Empty().holds("") is None
    assert Equals(True).holds(1) is None


# --- drift ---------------------------------------------------------------------------------------------------------


def plan(**values: object) -> Facts:
    return {name: Known(value, "plan", Stage.DECLARED) for name, value in values.items()}  # type: ignore[arg-type]


def test_no_drift_is_one_pass_that_counts() -> None:
    findings = drift(plan(a=1, b=("x", "y")), live(a=1, b=("y", "x"), c=3), controls=(control(),))
    assert [(f.control_id, f.verdict) for f in findings] == [("proc.drift", Verdict.PASS)]
    assert findings[0].evidence.startswith("2 declared facts")


@pytest.mark.parametrize("value", [2, True, "1", ("1",), 1.0])
def test_each_difference_is_a_failed_finding_that_names_the_fact(value: object) -> None:
    findings = drift(plan(a=1, b=1), live(a=value, b=1), controls=(control(),))
    assert [f.verdict for f in findings] == [Verdict.FAIL]
    assert findings[0].why == "a is not as declared"
    assert "/proc/7/a" in findings[0].evidence
    assert refusals(findings) == findings


def test_repeated_elements_are_a_difference() -> None:
    assert drift(plan(a=("x",)), live(a=("x", "x")), controls=(control(),))[0].verdict is Verdict.FAIL


@pytest.mark.parametrize("observed", [{}, {"a": Unknown("EPERM")}, plan(a=1)], ids=["missing", "unknown", "declared"])
def test_what_was_not_observed_is_unknown(observed: Facts) -> None:
    findings = drift(plan(a=1), observed, controls=(control(),))
    assert [f.verdict for f in findings] == [Verdict.UNKNOWN]
    assert refusals(findings) == findings


def test_unobserved_facts_that_only_report_controls_read_do_not_stop_a_launch() -> None:
    findings = drift(plan(a=1), {}, controls=(control(gate=Gate.REPORT),))
    assert [f.gate for f in findings] == [Gate.REPORT]
    assert drift(plan(a=1), {}, controls=(control(gate=Gate.REPORT), control("test.two")))[0].gate is Gate.LAUNCH
    assert drift(plan(b=1), {}, controls=(control(),))[0].gate is Gate.LAUNCH
    assert drift(plan(a=1), live(a=2), controls=(control(gate=Gate.REPORT),))[0].gate is Gate.LAUNCH


def test_a_plan_without_promises_cannot_be_compared() -> None:
    with pytest.raises(RuntimeError, match="declares no facts"):
        drift({**live(a=1), "b": Unknown("no idea")}, live(a=1), controls=(control(),))


# --- the catalogue's data ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", catalogue(), ids=lambda c: c.id)
def test_every_control_is_complete(entry: Control) -> None:
    assert re.fullmatch(r"[a-z]+\.[a-z0-9-]+", entry.id)
    assert entry.question.endswith("?")
    assert entry.cuts
    assert entry.scenarios
    assert entry.remedies.text()
    assert entry.sources
    assert all(source.work and source.place for source in entry.sources)
    assert not entry.title.endswith((".", "?"))


def test_ids_are_unique_and_nothing_is_both_done_and_planned() -> None:
    ids = [c.id for c in catalogue()]
    planned = [i for ids_of in LATER.values() for i in ids_of]
    assert [i for i, n in Counter(ids + planned).items() if n > 1] == []


def test_only_controls_of_the_vm_stop_a_launch() -> None:
    assert {c.id for c in catalogue() if c.subject is Subject.HOST and c.gate is Gate.LAUNCH} == set()


def test_critical_controls_of_the_vm_stop_a_launch_unless_named_here() -> None:
    lenient = {c.id for c in launch_controls() if c.severity is Severity.CRITICAL and c.gate is Gate.REPORT}
    assert lenient == {"os.mac", "vmm.no-debug"}


def test_every_pattern_compiles_and_is_anchored_by_fullmatch() -> None:
    expectations = [check.expect for c in catalogue() for check in c.checks]
    expectations += [condition.expect for c in catalogue() for condition in c.applies_when]
    patterns = [e.pattern for e in expectations if isinstance(e, Matches | EachMatches | NoneMatches)]
    assert len(patterns) > 15
    for pattern in patterns:
        re.compile(pattern)
        assert not pattern.startswith("^")


def test_controls_are_data_that_survives_json() -> None:
    entries = catalogue()
    again = msgspec.json.decode(msgspec.json.encode(entries), type=tuple[Control, ...])
    assert again == entries


def test_documentation_and_golden_gates_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "controls_doc.py", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_drift_is_in_the_catalogue_and_not_judged() -> None:
    assert DRIFT in catalogue()
    assert DRIFT not in launch_controls()


@pytest.mark.parametrize(
    ("label", "confined"),
    [
        ("system_u:system_r:svirt_t:s0:c12,c900", True),
        ("system_u:system_r:svirt_tcg_t:s0:c1,c2", True),
        ("system_u:system_r:casemate_qemu_t:s0:c1,c1023", True),
        ("casemate-3fa1 (enforce)", True),
        ("libvirt-4dea22b3-1d52-d8f3-2516-782e98ab3fa0 (enforce)", True),
        ("casemate-3fa1 (complain)", False),
        ("unconfined", False),
        ("unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023", False),
        ("system_u:system_r:svirt_t:s0:c0.c1023", False),
        ("system_u:system_r:initrc_t:s0:c1,c2", False),
        ("system_u:system_r:svirt_t:s0:c1,c2\n", False),
        ("", False),
    ],
)
def test_which_labels_count_as_confined(label: str, confined: bool) -> None:
    entry = next(c for c in catalogue() if c.id == "proc.mac-label")
    assert entry.checks[0].expect.holds(label) is confined


@pytest.mark.parametrize(
    ("sandbox", "holds"),
    [
        ("on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny", True),
        ("on,spawn=deny,resourcecontrol=deny,obsolete=deny,elevateprivileges=deny", True),
        ("on,obsolete=deny,elevateprivileges=children,spawn=deny,resourcecontrol=deny", False),
        ("on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny,spawn=allow", False),
        ("on,obsolete=deny,elevateprivileges=deny,spawn=deny", False),
        ("off", False),
        ("", False),
    ],
)
def test_which_sandbox_arguments_count(sandbox: str, holds: bool) -> None:
    entry = next(c for c in catalogue() if c.id == "proc.qemu-sandbox")
    assert entry.checks[0].expect.holds(sandbox) is holds
