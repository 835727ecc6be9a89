"""A short run of the fuzz target, so that it stays runnable; long runs are started by hand."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fuzz import bpf_cases

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_the_fuzz_target_runs(tmp_path: Path) -> None:
    limits = ["-runs=1500", "-seed=1", "-max_len=900", "-len_control=0", f"-artifact_prefix={tmp_path}/"]
    command = [sys.executable, "-m", "tests.fuzz.fuzz_bpf", *limits]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Done 1500 runs" in done.stderr


def test_the_fuzz_target_holds_without_atheris() -> None:
    rng = random.Random(7)
    for _ in range(300):
        bpf_cases.one_input(rng.randbytes(58 + 7 * rng.randint(0, 80)))
