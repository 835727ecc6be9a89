"""A VM that runs, captured by the program and by the shell script, and judged from the capture as it is judged live."""

from __future__ import annotations

import datetime
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.careless import FAILS, QEMU, careless_qemu

from casemate.audit.capture_collect import collect_capture
from casemate.audit.capture_script import script
from casemate.audit.capture_write import write_capture
from casemate.audit.captures import report_capture
from casemate.audit.judging import Setting
from casemate.audit.run import HostAudit
from casemate.controls.audit_model import TargetReport
from casemate.controls.model import Verdict
from casemate.controls.profiles import DEFAULT, named
from casemate.facts.root import Root

pytestmark = [pytest.mark.wall, pytest.mark.skipif(not os.access(QEMU, os.X_OK), reason="QEMU is not installed")]

SETTING = Setting(named(DEFAULT), datetime.datetime.now(datetime.UTC).date())
PLANTED = "hunter2-PLANTED"
NOT_IN_A_CAPTURE = {"proc.seccomp-strength", "proc.seccomp-arch", "vmm.qmp"}
"""Of what the careless QEMU fails, what is read from the kernel alone, or from sockets of other processes."""


@pytest.fixture
def talkative() -> Iterator[subprocess.Popen[bytes]]:
    """A QEMU that was given a password on its command line."""
    argv = [QEMU, "-M", "none", "-S", "-display", "none", "-object", f"secret,id=s0,data={PLANTED}"]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 20
        while not os.readlink(f"/proc/{process.pid}/exe").endswith("qemu-system-x86_64"):
            assert time.monotonic() < end
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()


def capture_with(how: str, folder: Path) -> bytes:
    out = folder / "c.tar"
    if how == "program":
        write_capture(collect_capture(Root(), "here", "test"), str(out))
    else:
        (folder / "take.sh").write_text(script("test"))
        subprocess.run(
            ["dash", str(folder / "take.sh"), "--yes", str(out)], check=True, timeout=120, capture_output=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    return out.read_bytes()


def report_of(pid: int, data: bytes) -> TargetReport:
    found = [r for r in report_capture(data, "c.tar", SETTING) if f"/proc/{pid} " in r.target.origin]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("how", ["program", "script"])
def test_a_captured_vm_fails_what_the_live_one_fails(
    how: str, talkative: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """Beside another VM of the same user: who else has one comes and goes between the two looks, this one stays."""
    with careless_qemu() as process:
        assert talkative.poll() is None
        data = capture_with(how, tmp_path)
        audit = HostAudit(Root(), SETTING)
        vm = next(vm for vm in audit.live.vms if vm.found.pid == process.pid)
        live = {finding.control_id: finding.verdict for finding in audit.report_vm(vm).findings}
    report = report_of(process.pid, data)
    then = {finding.control_id: finding.verdict for finding in report.findings}
    assert report.target.name == "careless"
    assert report.target.host
    failed = {control for control, verdict in then.items() if verdict is Verdict.FAIL}
    assert {c for c in FAILS if live[c] is Verdict.FAIL} - NOT_IN_A_CAPTURE <= failed
    unknown = (Verdict.UNKNOWN, Verdict.MANUAL)
    better = {c: (live[c], v) for c, v in then.items() if v is not live.get(c) and v not in unknown}
    assert better == {}, "what a capture cannot tell is unknown, and nothing looks better or worse than it is"
    assert then["proc.uid-unique"] is Verdict.FAIL


@pytest.mark.parametrize("how", ["program", "script"])
def test_a_secret_on_a_command_line_is_found_and_not_taken(
    how: str, talkative: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    data = capture_with(how, tmp_path)
    assert PLANTED.encode() not in data
    assert b"data=redacted" in data
    findings = {finding.control_id: finding for finding in report_of(talkative.pid, data).findings}
    secrets = [f for f in findings.values() if "secret" in f.control_id and f.verdict is Verdict.FAIL]
    assert secrets, "that there was one is still a finding"
