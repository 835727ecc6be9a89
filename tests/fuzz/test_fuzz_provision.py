"""A short, bounded run of the fuzz target for what guests are given, LUKS headers and saved states."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.fuzzing import rss_limit_mb
from tests.unit.test_rpm_old_databases import write_ndb
from tests.unit.test_updates_rpm import header

from casemate.engine.statefile import MAGIC, Header, Manifest, StateWriter
from casemate.image.luks import HEADER_BYTES, ITERATIONS_MIN
from casemate.image.luks_keys import create
from casemate.image.overlay import write_empty_qcow2

LUKS2 = b"""{"keyslots":{"0":{"type":"luks2","key_size":64,"af":{"type":"luks1","stripes":4000,"hash":"sha256"},
"area":{"type":"raw","offset":"32768","size":"258048","encryption":"aes-xts-plain64","key_size":64},"kdf":{"type":
"pbkdf2","hash":"sha256","iterations":1000,"salt":"HODbW2wCi22pfIdqNP5OFM4xEUQMrCWfKX+N7VnGGng="}}},"tokens":{},
"segments":{"0":{"type":"crypt","offset":"16777216","size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64",
"sector_size":4096}},"digests":{"0":{"type":"pbkdf2","keyslots":["0"],"segments":["0"],"hash":"sha256","iterations":
1000,"salt":"kQqRqML1Pqsbrx52oLM+9OkWrLpf8Sf6jZ4dUoQhGsY=","digest":"O/Llhqj1giQdeLwyC4LznSYzsfG2W4WzC4xsOIH4NQ4="}},
"config":{"json_size":"12288","keyslots_size":"16744448"}}"""

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris (x86-64 only) is missing")


def saved(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    writer = StateWriter(descriptor, Header("none"), None)
    writer.data(b"state")
    writer.finish(Manifest("a", "b", "{}", "c", "d", "microvm", "tcg", "7.2.0", {}, True, writer.stream_bytes))
    os.close(descriptor)
    return path.read_bytes()[len(MAGIC) :]


def overlay_seed() -> bytes:
    """An empty overlay, as `fuzz_provision.overlay` takes it: size, then a piece for each part that is not zero."""
    descriptor = os.memfd_create("overlay")
    write_empty_qcow2(descriptor, 1 << 20)
    content = os.pread(descriptor, 1 << 20, 0)
    os.close(descriptor)
    pieces = b"".join(
        b"\0" + at.to_bytes(3, "little") + b"\x80" + content[at : at + 128]
        for at in range(0, len(content), 128)
        if content[at : at + 128].strip(b"\0")
    )
    return len(content).to_bytes(3, "little") + pieces


def ndb_seed(path: Path) -> bytes:
    write_ndb(path, [header("a", "1", "1")])
    return path.read_bytes()[:128] + path.read_bytes()[4096:]


def test_provision(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    seeds = (
        b"users:\n  - name: a\nruncmd: [[sh, -c, x]]\n",
        b"network:\n  version: 2\n  ethernets: {eth0: {dhcp4: true}}\n",
        b'{"ignition": {"version": "3.4.0"}, "storage": {"files": [{"path": "/x", "contents": {"source": "data:,"}}]}}',
        create(b"key", ITERATIONS_MIN)[1][:HEADER_BYTES],
        saved(tmp_path / "state"),
        LUKS2,
        overlay_seed(),
        b'{"auths": {"r": {"auth": "dTpw"}}, "credHelpers": {"r": "x"}, "credsStore": "x"}',
        ndb_seed(tmp_path / "Packages.db"),
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
