"""Published measures: every one leads to controls that exist or says why it cannot; their verdicts over findings."""

from __future__ import annotations

import json

import pytest

from casemate import assess, reports
from casemate.cli.main import main
from casemate.controls.audit_model import Report, Target, TargetKind, TargetReport
from casemate.controls.catalogue.all import all_controls
from casemate.controls.frameworks import CANNOT, FRAMEWORKS, NOT_JUDGED, PARTLY, states_of
from casemate.controls.frameworks_model import Framework, Measure, Read
from casemate.controls.model import Finding, Gate, Severity, Verdict
from casemate.errors import InputError
from casemate.facts.fact import Stage


def finding(control: str, verdict: Verdict) -> Finding:
    return Finding(
        control_id=control,
        title=control,
        severity=Severity.HIGH,
        gate=Gate.REPORT,
        stage=Stage.OBSERVED,
        verdict=verdict,
        evidence="",
        expected="",
        why="",
        remedy="",
    )


def target(name: str, **verdicts: Verdict) -> TargetReport:
    findings = tuple(finding(control.replace("_", "."), verdict) for control, verdict in verdicts.items())
    return TargetReport(target=Target(TargetKind.VM, name, name), stage=Stage.OBSERVED, findings=findings)


def report(*targets: TargetReport) -> Report:
    return Report(
        tool_version="1", catalogue="c", host="h", time="2026-01-01T00:00:00Z", profile="multi-tenant", targets=targets
    )


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_every_measure_has_existing_controls_or_a_reason(name: str) -> None:
    known = {control.id for control in all_controls()}
    framework = FRAMEWORKS[name]
    assert framework.sources
    ids = [measure.id for measure in framework.measures]
    assert len(ids) == len(set(ids))
    for measure in framework.measures:
        assert bool(measure.controls) != bool(measure.cannot), measure.id
        assert set(measure.controls) <= known, measure.id
        assert len(set(measure.controls)) == len(measure.controls), measure.id


def test_what_they_are_called() -> None:
    assert list(FRAMEWORKS) == ["gcp7", "nitro", "anssi", "stig"]
    assert len(FRAMEWORKS["gcp7"].measures) == 7
    assert all((measure.read or Read.TEXT) is Read.TEXT for measure in FRAMEWORKS["gcp7"].measures)


SMALL = Framework(
    name="small",
    title="Small",
    about="Two.",
    sources=("here",),
    measures=(Measure(id="1", title="one", controls=("a.x", "a.y")), Measure(id="2", title="two", cannot="because")),
)


@pytest.mark.parametrize(
    ("targets", "verdict"),
    [
        ((), NOT_JUDGED),
        ((target("v", a_x=Verdict.PASS),), PARTLY),
        ((target("v", a_x=Verdict.PASS, a_y=Verdict.PASS),), "pass"),
        ((target("v", a_x=Verdict.PASS, a_y=Verdict.NOT_APPLICABLE),), "pass"),
        ((target("v", a_x=Verdict.UNKNOWN, a_y=Verdict.PASS),), "unknown"),
        ((target("v", a_x=Verdict.UNKNOWN, a_y=Verdict.FAIL),), "fail"),
        ((target("v", a_x=Verdict.PASS, a_y=Verdict.PASS), target("w", a_x=Verdict.FAIL)), "fail"),
        ((target("v", a_x=Verdict.WAIVED, a_y=Verdict.PASS),), "waived"),
        ((target("v", a_x=Verdict.NOT_APPLICABLE, a_y=Verdict.NOT_APPLICABLE),), "not-applicable"),
    ],
)
def test_the_worst_word_wins(targets: tuple[TargetReport, ...], verdict: str) -> None:
    first, second = states_of(SMALL, targets)
    assert first.verdict == verdict
    assert (second.verdict, second.measure.cannot) == (CANNOT, "because")


def test_the_targets_that_failed_are_named() -> None:
    state = states_of(SMALL, (target("v", a_x=Verdict.FAIL), target("w", a_x=Verdict.PASS)))[0]
    assert [(c.id, c.verdict, c.targets) for c in state.controls] == [
        ("a.x", "fail", ("vm v",)),
        ("a.y", NOT_JUDGED, ()),
    ]


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_text_and_document_say_every_measure(name: str) -> None:
    whole = report(target("v", hk_lockdown=Verdict.FAIL))
    text = reports.framework_text(name, whole)
    document = reports.framework_document(name, whole)
    assert document["schema"] == "casemate.framework/1"
    assert [measure["id"] for measure in document["measures"]] == [m.id for m in FRAMEWORKS[name].measures]
    for measure in FRAMEWORKS[name].measures:
        assert f"{measure.id} {measure.title}" in " ".join(text.split())
    assert all(len(line) <= 120 for line in text.splitlines())
    assert "source: " in text
    catalogue = reports.framework_text(name)
    assert all(control in catalogue for measure in FRAMEWORKS[name].measures for control in measure.controls)


def test_what_was_not_read_is_said() -> None:
    assert "only the title was read" in reports.framework_text("anssi")
    assert {m["read"] for m in reports.framework_document("stig")["measures"]} == {"text", "title"}
    with pytest.raises(InputError, match="no framework"):
        reports.framework_document("iso")


def test_the_command_line_prints_measures_in_place_of_findings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = report(target("v", img_local_encrypted=Verdict.FAIL))
    monkeypatch.setattr(assess, "audit", lambda targets, **options: whole)
    assert main(["audit", "--framework", "nitro"]) == 0
    assert "fail: " not in capsys.readouterr().out.partition("no operator")[0]
    assert main(["audit", "--framework", "nitro", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["framework"] == "nitro"
    assert main(["controls", "--framework", "gcp7"]) == 0
    assert "proactive vulnerability search" in capsys.readouterr().out
    for wrong in (["--explain", "proc.caps"], ["--format", "sarif"], ["--baseline", "x.json"]):
        assert main(["audit", "--framework", "nitro", *wrong]) == 2
    assert main(["controls", "--framework", "gcp7", "proc.caps"]) == 2
