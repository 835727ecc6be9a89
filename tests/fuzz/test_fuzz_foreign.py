"""A short, bounded run of the fuzz target for images that are imported, from seeds made of sound ones and a kept
corpus."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.fuzzing import rss_limit_mb
from tests.unit.test_image_unpack import ova

HERE = Path(__file__).parent
RUNS = 600

pytestmark = pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris (x86-64 only) is missing")


def test_foreign(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for choice in (*range(8), *range(128, 136)):
        (corpus / f"none-{choice}").write_bytes(bytes([choice]))
        (corpus / f"patch-{choice}").write_bytes(bytes([choice]) + b"\x10\0\0\x08" + b"\xff" * 8)
    (corpus / "parent").write_bytes(b"\x00" + b"\x60\x02\0\x18" + b'parentFileNameHint="/x"\n')
    (corpus / "archive").write_bytes(b"\x07" + ova(b"disk")[:4096])
    done = subprocess.run(
        [sys.executable, HERE / "fuzz_foreign.py", f"-runs={RUNS}", "-max_len=4096", "-seed=1", "-max_total_time=30",
         "-timeout=10", f"-rss_limit_mb={rss_limit_mb(512)}", f"-artifact_prefix={tmp_path}/", corpus,
         HERE / "corpus-foreign"],
        check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Done " in done.stderr
