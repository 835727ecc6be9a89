"""Profiles, waiver files and baselines: what they change about findings, and what they may not."""

from __future__ import annotations

import datetime
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.reports import HOST, VM, finding, report, target

from casemate.cli.args_audit import LAYERS, PROFILES, SEVERITIES
from casemate.controls import profiles
from casemate.controls.audit_model import Target, TargetKind
from casemate.controls.baseline import ChangeKind, compare
from casemate.controls.catalogue.all import all_controls
from casemate.controls.catalogue.later import LATER
from casemate.controls.layers import Layer
from casemate.controls.model import Severity, Verdict
from casemate.controls.profiles_model import Adjustment
from casemate.controls.waivers import AuditWaiver, applied_to, parse_waivers, unused
from casemate.errors import InputError, SpecError

TODAY = datetime.date(2026, 11, 23)
GOOD = """
version = 1
[[waiver]]
control = "proc.caps"
target = "vm:web-*"
reason = "needs CAP_NET_ADMIN until the bridge is gone"
expires = 2027-01-31
"""


def test_words_of_the_command_line_are_those_of_the_types() -> None:
    assert profiles.names() == PROFILES
    assert tuple(severity.value for severity in Severity) == SEVERITIES
    assert tuple(layer.value for layer in Layer) == LAYERS


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_are_consistent_data(name: str) -> None:
    profile = profiles.named(name)
    entries = [entry.control for entry in profile.adjustments]
    assert len(entries) == len(set(entries))
    for entry in profile.adjustments:
        assert len(entry.reason) > 10
        assert not any(fnmatchcase(never, entry.control) for never in profiles.NEVER_OFF)
    assert profile.about
    assert profile.threat


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_name_controls_that_exist_or_are_planned(name: str) -> None:
    ids = {control.id for control in all_controls()} | {planned for group in LATER.values() for planned in group}
    lost = [e.control for e in profiles.named(name).adjustments if not any(fnmatchcase(i, e.control) for i in ids)]
    assert lost == []


def test_the_default_changes_nothing() -> None:
    assert profiles.DEFAULT == "multi-tenant"
    assert profiles.named(profiles.DEFAULT).adjustments == ()
    assert profiles.under(profiles.named(profiles.DEFAULT), HOST.findings) == HOST.findings
    with pytest.raises(InputError, match="no such profile"):
        profiles.named("cloud")


def test_a_profile_changes_severity_and_says_why() -> None:
    (weighed,) = profiles.under(profiles.named("laptop"), [finding("cpu.ksm", severity=Severity.HIGH)])
    assert (weighed.verdict, weighed.severity) == (Verdict.FAIL, Severity.LOW)
    assert "low under laptop (high otherwise): merged pages" in weighed.why


@pytest.mark.parametrize("verdict", list(Verdict))
def test_what_is_not_asked_does_not_apply_whatever_it_came_to(verdict: Verdict) -> None:
    (weighed,) = profiles.under(profiles.named("laptop"), [finding("cc.launch", verdict, underlying=Verdict.FAIL)])
    assert weighed.verdict is Verdict.NOT_APPLICABLE
    if verdict is not Verdict.NOT_APPLICABLE:
        assert weighed.why.startswith("not asked of laptop: ")
        assert weighed.underlying is None


@pytest.mark.parametrize("name", PROFILES)
def test_no_profile_makes_a_pass(name: str) -> None:
    for control in all_controls():
        for verdict in (Verdict.FAIL, Verdict.UNKNOWN):
            (weighed,) = profiles.under(profiles.named(name), [finding(control.id, verdict)])
            assert weighed.verdict in (verdict, Verdict.NOT_APPLICABLE)


def test_an_adjustment_needs_a_reason() -> None:
    with pytest.raises(RuntimeError, match="needs a reason"):
        Adjustment("cpu.smt", None, "")


def test_a_waiver_covers_what_its_patterns_name() -> None:
    (waiver,) = parse_waivers(GOOD, "w.toml")
    assert waiver.covers(Target(TargetKind.VM, "web-1", "x"))
    assert not waiver.covers(Target(TargetKind.PROCESS, "web-1", "x"))
    assert not waiver.covers(Target(TargetKind.VM, "db", "x"))
    path = AuditWaiver(control="proc.caps", target="C:*", reason="a reason", expires=TODAY, host="rack*")
    assert path.covers(Target(TargetKind.IMAGE, "C:x", "x", "rack7"))
    assert not path.covers(Target(TargetKind.IMAGE, "C:x", "x", "lab1"))


def test_the_longest_waiver_counts_and_expired_ones_are_said() -> None:
    def waiver(control: str, expires: datetime.date) -> AuditWaiver:
        return AuditWaiver(control=control, target="*", reason="because of this", expires=expires)

    day = datetime.timedelta(days=1)
    several = (waiver("a", TODAY), waiver("a", TODAY + day), waiver("a", TODAY - day), waiver("b", TODAY - day))
    applied, notes = applied_to(Target(TargetKind.VM, "x", ""), several, TODAY)
    assert [(item.control, item.expires) for item in applied] == [("a", TODAY + day)]
    assert notes == ("the waiver for b expired on 2026-11-22 and does not count",)


def test_unused_waivers_are_said() -> None:
    used = AuditWaiver(control="os.userns", target="host:*", reason="because of this", expires=TODAY)
    lost = AuditWaiver(control="proc.caps", target="vm:nobody", reason="because of this", expires=TODAY)
    assert unused((used, lost), report(), TODAY) == ("the waiver for proc.caps on vm:nobody waived nothing",)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (GOOD.replace("version = 1", ""), "missing; write version = 1"),
        (GOOD.replace("version = 1", "version = 2"), "version"),
        (GOOD.replace("[[waiver]]", "[waiver]"), "expected [[waiver]] tables"),
        (GOOD.replace("proc.caps", "proc.cap"), "did you mean proc.caps?"),
        (GOOD.replace("proc.caps", "proc.drift"), "cannot be waived"),
        (GOOD.replace("expires = 2027-01-31", ""), "expires"),
        (GOOD.replace("2027-01-31", '"soon"'), "expires"),
        (GOOD.replace("needs CAP_NET_ADMIN until the bridge is gone", "x"), "reason"),
        (GOOD + 'owner = "me"\n', "owner"),
        (GOOD + "[extra]\na = 1\n", "unknown"),
        ("version = ", "Invalid value"),
        ("a = " + "[" * 5000, "waivers.toml"),
    ],
)
def test_faults_of_a_waiver_file(text: str, fault: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_waivers(text, "w.toml")
    assert fault in str(caught.value)


@given(st.text(max_size=80))
def test_any_text_is_waivers_or_faults(text: str) -> None:
    try:
        parsed = parse_waivers(text, "w.toml")
    except SpecError as error:
        parsed = ()
        if not error.faults:
            raise
    assert all(isinstance(item, AuditWaiver) for item in parsed)


def test_compare_says_new_changed_and_gone() -> None:
    now = target(TargetKind.VM, "web", finding("proc.caps", Verdict.PASS), finding("proc.gid"))
    found = compare(report(HOST, VM), report(HOST, now))
    kinds = {change.finding.control_id: (change.kind, change.before) for change in found.changes}
    assert kinds == {
        "proc.caps": (ChangeKind.CHANGED, Verdict.FAIL),
        "proc.gid": (ChangeKind.NEW, None),
        "proc.uid": (ChangeKind.GONE, Verdict.PASS),
    }
    assert [entry.target.name for entry in found.report.targets] == ["web"]
    assert (found.new_targets, found.gone_targets, found.warnings) == ((), (), ())


def test_compare_with_itself_is_empty_and_other_conditions_are_said() -> None:
    assert compare(report(), report()).changes == ()
    other = report(host="rack8", profile="laptop", catalogue="f")
    assert len(compare(report(), other).warnings) == 3
    gone = compare(report(HOST, VM), report(HOST))
    assert [item.name for item in gone.gone_targets] == ["web"]
