"""A short, bounded run of the fuzz target for what guests are given, LUKS headers and saved states."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.fuzzing import rss_limit_mb

from casemate.engine.statefile import MAGIC, Header, Manifest, StateWriter
from casemate.image.luks import HEADER_BYTES, ITERATIONS_MIN
from casemate.image.luks_keys import create

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris (x86-64 only) is missing")


def saved(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    writer = StateWriter(descriptor, Header("none"), None)
    writer.data(b"state")
    writer.finish(Manifest("a", "b", "{}", "c", "d", "microvm", "tcg", "7.2.0", {}, True, writer.stream_bytes))
    os.close(descriptor)
    return path.read_bytes()[len(MAGIC) :]


def test_provision(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    seeds = (
        b"users:\n  - name: a\nruncmd: [[sh, -c, x]]\n",
        b"network:\n  version: 2\n  ethernets: {eth0: {dhcp4: true}}\n",
        b'{"ignition": {"version": "3.4.0"}, "storage": {"files": [{"path": "/x", "contents": {"source": "data:,"}}]}}',
        create(b"key", ITERATIONS_MIN)[1][:HEADER_BYTES],
        saved(tmp_path / "state"),
    )
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(bytes([number]) + seed)
    done = subprocess.run(
        [sys.executable, HERE / "fuzz_provision.py", "-runs=6000", "-max_len=4096", "-seed=1", "-max_total_time=60",
         "-timeout=10", f"-rss_limit_mb={rss_limit_mb(512)}", f"-artifact_prefix={tmp_path}/", corpus],
        check=False, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Done " in done.stderr
