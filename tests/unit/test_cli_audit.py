"""casemate audit and controls as commands: arguments, outputs, exit codes. The audit itself is a given report here,
except in the last tests, which look at this host for real."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.cli_runner import COMMAND
from tests.support.reports import DOMAIN, HOST, VM, finding, report, target

from casemate import assess
from casemate.cli import audit as command
from casemate.cli import progress as progress_bar
from casemate.cli.main import main
from casemate.cli.parser import build_parser
from casemate.controls.audit_model import Report, TargetKind
from casemate.controls.catalogue.all import all_controls
from casemate.controls.model import Severity, Verdict
from casemate.errors import InputError


class Given:
    """Stands in for the audit; remembers how it was asked."""

    def __init__(self) -> None:
        self.report = report(HOST, VM)
        self.asked: dict[str, Any] = {}

    def audit(self, targets: Any, **more: Any) -> Report:
        self.asked = {"targets": targets, **more}
        more["progress"](0, 2, "host")
        return self.report

    def stream(self, targets: Any, **more: Any) -> Any:
        yield from self.report.targets
        for fault in self.report.faults:
            more["fault"](fault)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Given:
    stand_in = Given()
    monkeypatch.setattr(assess, "audit", stand_in.audit)
    monkeypatch.setattr(assess, "audit_stream", stand_in.stream)
    return stand_in


@pytest.mark.parametrize(
    ("words", "targets", "command_line"),
    [
        (["audit"], [], []),
        (["audit", "a", "b"], ["a", "b"], []),
        (["audit", "a", "--", "qemu", "-m", "1G", "--", "x"], ["a"], ["qemu", "-m", "1G", "--", "x"]),
        (["audit", "--json", "--", "qemu", "--help"], [], ["qemu", "--help"]),
    ],
)
def test_what_follows_dashes_is_a_command_line(words: list[str], targets: list[str], command_line: list[str]) -> None:
    found = build_parser().parse_args(words)
    assert (found.targets, found.command_line) == (targets, command_line)


def test_everything_is_handed_on(given: Given) -> None:
    words = ["--pid", "1", "--pid", "2", "--libvirt", "qemu:///system", "--root", "/r", "--jobs", "3", "--khc", "k"]
    assert main(["audit", "vm", *words, "--profile", "laptop", "--", "qemu", "-s"]) == 0
    del given.asked["progress"]
    assert given.asked == {
        "targets": ["vm"],
        "pid": [1, 2],
        "libvirt": "qemu:///system",
        "command_line": ["qemu", "-s"],
        "root": "/r",
        "khc": "k",
        "profile": "laptop",
        "waivers": None,
        "jobs": 3,
    }


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--"], 2, "there is no command after --"),
        (["--profile", "latop"], 2, "did you mean laptop?"),
        (["--fail-on", "hihg"], 2, "did you mean high?"),
        (["--json", "--format", "html"], 2, "exclude each other"),
        (["--explain", "os.mak"], 2, "did you mean os.mac?"),
        (["--baseline", "/nonexistent"], 2, "cannot read /nonexistent"),
        (["--baseline", __file__], 2, "cannot be read as an audit's JSON"),
        (["--baseline", "a\0b"], 2, "embedded null byte"),
        (["-o", "/nonexistent/x.html"], 2, "cannot write"),
    ],
)
def test_wrong_use(given: Given, capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str) -> None:
    assert main(["audit", *words]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("casemate: error: ")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 0),
        (["--fail-on", "critical"], 1),
        (["--fail-on", "info"], 1),
        (["--fail-on", "info", "--format", "jsonl"], 1),
    ],
)
def test_exit_code_follows_fail_on(given: Given, words: list[str], code: int) -> None:
    assert main(["audit", *words]) == code


def test_fail_on_counts_the_severity_and_worse_ones_only(given: Given, capsys: pytest.CaptureFixture[str]) -> None:
    low = finding("proc.caps", severity=Severity.LOW)
    unknown = finding("proc.uid", Verdict.UNKNOWN, severity=Severity.CRITICAL)
    pending = finding("proc.gid", Verdict.UNKNOWN, severity=Severity.CRITICAL, pending=True)
    given.report = report(target(TargetKind.VM, "web", low, unknown, pending))
    assert main(["audit", "--fail-on", "low"]) == 1
    assert main(["audit", "--fail-on", "medium"]) == 0
    assert "nothing failed at medium or above, but 1 are unknown: proc.uid" in capsys.readouterr().err
    assert main(["audit", "--fail-on", "medium", "--unknown-fails"]) == 1


def test_a_waived_failure_does_not_fail(given: Given) -> None:
    given.report = report(target(TargetKind.VM, "web", finding("proc.caps", Verdict.WAIVED, underlying=Verdict.FAIL)))
    assert main(["audit", "--fail-on", "info", "--unknown-fails"]) == 0


@pytest.mark.parametrize("form", ["text", "json", "jsonl", "html"])
def test_a_target_that_could_not_be_audited_is_bad_input(given: Given, form: str) -> None:
    given.report = report(VM, faults=("x.xml: no such file",))
    assert main(["audit", "--format", form]) == 2


def test_several_outputs_of_one_audit(given: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("a.html", "a.sarif", "a.json", "a.xml", "a.md", "a.prom")
    assert main(["audit", *(word for name in names for word in ("-o", str(tmp_path / name)))]) == 0
    assert capsys.readouterr().out == ""
    starts = ("<!doctype html>", '{\n "$schema"', '{\n  "schema"', "<?xml", "# Audit", "# HELP")
    for name, start in zip(names, starts, strict=True):
        assert (tmp_path / name).read_text().startswith(start), name
        mode = stat.S_IMODE((tmp_path / name).stat().st_mode)
        assert mode == (0o644 if name == "a.prom" else 0o600)
    assert len(list(tmp_path.iterdir())) == len(names), "no temporary file is left"


def test_a_file_is_replaced_whole_and_keeps_its_mode(tmp_path: Path) -> None:
    path, link = tmp_path / "r.html", tmp_path / "link"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to(path)
    command.write_whole(link, "new", mode=0o600)
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode), link.is_symlink()) == ("new", 0o640, True)
    command.write_whole(Path("/dev/null"), "x", mode=0o600)
    with pytest.raises(InputError, match="cannot write"):
        command.write_whole(tmp_path, "x", mode=0o600)


def test_baseline_from_a_file(given: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = tmp_path / "old.json"
    assert main(["audit", "--json", "-o", str(old)]) == 0
    assert main(["audit", "--baseline", str(old), "--fail-on", "info"]) == 0, "nothing new has failed"
    assert "nothing has changed" in capsys.readouterr().out
    given.report = report(HOST, VM, DOMAIN)
    assert main(["audit", "--baseline", str(old), "--fail-on", "medium"]) == 1
    shown = capsys.readouterr().out
    assert "new target: domain win" in shown
    assert "os.mac" not in shown


def test_explain_prints_one_control(given: Given, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "--explain", "os.mac"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("os.mac: ")
    assert "evidence" in shown
    assert "proc.caps" not in shown


def test_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["$id"] == "urn:casemate:audit:1"


def test_progress_is_for_terminals_and_for_what_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    for patience_s, is_shown in ((0.0, True), (1e9, False)):
        screen = Screen()
        monkeypatch.setattr(sys, "stderr", screen)
        monkeypatch.setattr(progress_bar, "PATIENCE_S", patience_s)
        monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((80, 24)))
        with progress_bar.progress_bar() as progress:
            progress(1, 2, "vm \x1b[2J")
        assert ("1/2" in screen.getvalue()) is is_shown
        assert "\x1b" not in screen.getvalue()
    assert progress_bar.bar(0, 0, "").startswith("[" + "." * progress_bar.BAR_COLUMNS)
    assert progress_bar.bar(3, 2, "").startswith("[" + "#" * progress_bar.BAR_COLUMNS)


def test_controls_lists_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["controls"]) == 0
    shown = capsys.readouterr().out
    for control in all_controls():
        assert f" {control.id} " in shown
    assert main(["controls", "--layer", "entropy", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "casemate.controls/1"
    assert {item["layer"] for item in document["controls"]} == {"entropy"}
    assert main(["controls", "cpu.ksm", "--profile", "laptop"]) == 0
    assert "low under laptop" in capsys.readouterr().out
    assert main(["controls", "nosuch"]) == 2


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=60, check=False)


def test_help_teaches_and_completion_knows_the_commands() -> None:
    shown = run("audit", "--help").stdout
    for word in ("examples:", "verdicts:", "--fail-on", "never a pass"):
        assert word in shown
    script = run("completion", "bash").stdout
    assert "_shtab_casemate_audit_option_strings" in script
    assert "--baseline" in script


def test_this_host_for_real() -> None:
    done = run("audit", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["targets"][0]["kind"] == "host"
    assert document["targets"][0]["applicable"] > 10
    text = run("audit")
    assert "\x1b" not in text.stdout
    assert text.stdout.startswith("Audit of ")
