"""The wall as ``inspect`` prints it: what does not hold comes first, with what would mend it."""

from __future__ import annotations

import pytest

from casemate.cli.listing import _attestation_key, _print_wall
from casemate.controls.model import Severity, Verdict
from casemate.errors import InputError


def entry(control: str, verdict: str, severity: str, **more: str) -> dict[str, str]:
    return {
        "control": control,
        "verdict": verdict,
        "severity": severity,
        "evidence": "some.fact = 1, observed from somewhere",
        "why": "as expected",
        "expected": "some.fact: = 1",
        "remedy": "",
        **more,
    }


def test_what_fails_comes_first_and_then_what_nobody_knows(capsys: pytest.CaptureFixture[str]) -> None:
    _print_wall(
        [
            entry("a.none", "not-applicable", "critical"),
            entry("a.pass", "pass", "low"),
            entry("a.unknown", "unknown", "critical", remedy="host: look"),
            entry("a.low", "fail", "low", why="some.fact: 2", expected="some.fact: = 1", remedy="host: set it to 1"),
            entry("a.critical", "fail", "critical", why="some.fact: (none)", expected="some.fact: all of b, c"),
            entry("a.waived", "waived", "high", remedy="host: not asked for"),
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "Wall, read back from the live process: 1 of 6 controls pass"
    assert [line.split()[2] for line in lines[3:9]] == [
        "a.critical",
        "a.low",
        "a.unknown",
        "a.waived",
        "a.pass",
        "a.none",
    ]
    assert lines[3].endswith("some.fact: (none); expected all of b, c")
    assert lines[4].endswith("some.fact: 2; expected 1")
    assert lines[7].endswith("some.fact = 1, observed from somewhere")
    assert lines[9:] == ["", "What would mend it", "  a.low: host: set it to 1", "  a.unknown: host: look"]


def test_a_wall_without_a_flaw_has_nothing_to_mend(capsys: pytest.CaptureFixture[str]) -> None:
    _print_wall([entry("a.pass", "pass", "low")])
    assert "mend" not in capsys.readouterr().out


def test_every_verdict_and_severity_has_a_rank() -> None:
    from casemate.cli.listing import SEVERITIES, VERDICTS

    assert set(VERDICTS) == {verdict.value for verdict in Verdict}
    assert set(SEVERITIES) == {severity.value for severity in Severity}


@pytest.mark.parametrize(("tpm", "words"), [(None, "has no TPM"), ({"attestation_key": ""}, "has not been made yet")])
def test_no_attestation_key_is_an_error_and_not_an_empty_file(tpm: dict[str, str] | None, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        _attestation_key({"name": "a", "tpm": tpm})
    assert caught.value.next_step
    assert _attestation_key({"name": "a", "tpm": {"attestation_key": "PEM"}}) == "PEM"
