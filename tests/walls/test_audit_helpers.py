"""A real swtpm that works for a bare QEMU: found through the socket that both name, and judged by what it may do."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.careless import QEMU

from casemate import assess
from casemate.controls.model import Verdict

SWTPM = shutil.which("swtpm") or ""
DEADLINE_S = 20.0

pytestmark = [
    pytest.mark.wall,
    pytest.mark.skipif(not os.access(QEMU, os.X_OK), reason="QEMU is not installed"),
    pytest.mark.skipif(not SWTPM, reason="swtpm is not installed"),
]


def test_a_helper_without_a_filter_fails_the_control(tmp_path: Path) -> None:
    socket = f"{tmp_path}/swtpm.sock"
    state = tmp_path / "state"
    state.mkdir()
    swtpm = [SWTPM, "socket", "--tpm2", "--tpmstate", f"dir={state}", "--ctrl", f"type=unixio,path={socket}"]
    helper = subprocess.Popen([*swtpm, "--seccomp", "action=none"], stdin=subprocess.DEVNULL)
    emulator = None
    try:
        _until(Path(socket).exists)
        argv = [QEMU, "-name", "measured", "-M", "q35", "-accel", "tcg", "-m", "32", "-S", "-display", "none"]
        argv += ["-chardev", f"socket,id=tpm,path={socket}", "-tpmdev", "emulator,id=tpm0,chardev=tpm"]
        argv += ["-device", "tpm-tis,tpmdev=tpm0", "-serial", "none", "-monitor", "none", "-pidfile", f"{tmp_path}/pid"]
        emulator = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        _until((tmp_path / "pid").exists)
        (report,) = assess.audit(pid=[emulator.pid]).targets
    finally:
        for process in (emulator, helper):
            if process is not None:
                process.kill()
                process.wait()
    finding = next(finding for finding in report.findings if finding.control_id == "proc.helpers")
    assert finding.verdict is Verdict.FAIL
    assert f"swtpm {helper.pid}" in finding.why
    assert "no seccomp filter" in finding.why


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < end, "it did not come up"
        time.sleep(0.02)
