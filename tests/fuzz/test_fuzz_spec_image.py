"""A short, bounded run of the fuzz targets for specifications and images."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.fuzzing import rss_limit_mb

from casemate.image.overlay import write_empty_qcow2

HERE = Path(__file__).parent
RUNS = 4000

pytestmark = pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris (x86-64 only) is missing")

SPEC_SEEDS = [
    b'name = "a"\n[machine]\ntype = "q35"\n[boot]\nfirmware = "uefi"\n[[disk]]\npath = "d"\nformat = "raw"\n',
    b'[boot]\nkernel = "k"\n[network]\nmode = "user"\negress = "list"\nallow = ["9.9.9.9"]\npublish = ["[::1]:1:2"]\n',
    b'[boot]\nkernel = "k"\n[[waiver]]\ncontrol = "a.b"\nreason = "long enough"\nexpires = 2027-01-01\n',
]


def fuzz(target: str, corpus: Path, findings: Path) -> str:
    """Run one target; the output of libFuzzer. Fails with the finding."""
    done = subprocess.run(
        [sys.executable, HERE / target, f"-runs={RUNS}", "-max_len=4096", "-seed=1", "-max_total_time=60",
         "-timeout=10", f"-rss_limit_mb={rss_limit_mb(512)}", f"-artifact_prefix={findings}/", corpus],
        check=False, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stderr


def test_spec(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(SPEC_SEEDS):
        (corpus / str(number)).write_bytes(seed)
    assert "Done " in fuzz("fuzz_spec.py", corpus, tmp_path)


def test_image(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    with (tmp_path / "image").open("w+b") as image:
        write_empty_qcow2(image.fileno(), 1 << 20)
        header = image.read(128)
    for choice in range(16):
        (corpus / str(choice)).write_bytes(bytes([choice]) + (header[8:] if choice & 8 else header))
    assert "Done " in fuzz("fuzz_image.py", corpus, tmp_path)


def test_a_finding_fails_the_run(tmp_path: Path) -> None:
    """The harness itself: a target that raises ends with a finding, not with success."""
    target = tmp_path / "fuzz_broken.py"
    target.write_text(
        "import atheris, sys\ndef run(data):\n    if data: raise RuntimeError('found')\n"
        "atheris.Setup(sys.argv, run)\natheris.Fuzz()\n"
    )
    with pytest.raises(AssertionError, match="found"):
        fuzz(str(target), tmp_path, tmp_path)
