"""Secrets and seeds in a real guest on q35: Debian's systemd and kernel read them; nobody else has them.

On microvm, where they come by another way: test_image_chain.py.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.cli_runner import Cli
from tests.support.debian_image import DebianImages, debian_images
from tests.support.planted import RUN, SCRIPT, Planted, holders

pytestmark = pytest.mark.boot

BOOT_S = 300.0


@pytest.fixture(scope="module")
def images() -> DebianImages:
    return debian_images()


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    found = Cli(tmp_path)
    yield found
    found.clean()


def specification(directory: Path, images: DebianImages) -> Path:
    file = directory / "vm.toml"
    quoted = RUN.replace('"', '\\"')
    file.write_text(
        f'name = "told"\n[machine]\ntype = "q35"\nmemory_mib = 512\n'
        f'[boot]\nkernel = "{images.kernel}"\ninitrd = "{images.initrd}"\n'
        f'cmdline = "root=/dev/vda console=ttyS0 rw quiet {quoted}"\n'
        f'[[disk]]\npath = "{images.root}"\nformat = "raw"\n'
        '[provision.cloud_init]\nuser_data = "user-data"\nhostname = "told"\n'
        '[secrets.db-password]\nfile = "db"\n'
        '[secrets.blob]\ncommand = ["/bin/cat", "BLOB"]\n'.replace("BLOB", str(directory / "blob.bin"))
    )
    (directory / "user-data").write_text(SCRIPT)
    return file


def wait_for(cli: Cli, words: str) -> str:
    end = time.monotonic() + BOOT_S
    while time.monotonic() < end:
        said = cli.ok("logs", "told")
        if words in said:
            return said
        time.sleep(0.3)
    raise AssertionError(f"no {words!r} on the console:\n{said[-2000:]}")


def test_the_guest_reads_its_secrets_and_the_host_keeps_none(images: DebianImages, cli: Cli, tmp_path: Path) -> None:
    planted = Planted(tmp_path)
    spec = specification(tmp_path, images)
    plan = cli.ok("plan", "--json", spec)
    cli.ok("run", "-d", spec)
    said = wait_for(cli, "@@ ready @@")
    assert f"@@ db-password {hashlib.sha256(planted.password).hexdigest()} @@" in said
    assert f"@@ blob {hashlib.sha256(planted.blob).hexdigest()} @@" in said
    assert "@@ names blob db-password  @@" in said
    assert "@@ pinned 1 @@" in said

    running = cli.json("inspect", "--json", "told")
    pid = running["pid"]
    assert not [entry for entry in running["wall"] if entry["verdict"] == "fail" and entry["gate"] == "launch"]
    shown = plan + "".join(cli.ok(*words) for words in (("inspect", "--json", "told"), ("logs", "--emulator", "told")))
    shown += cli.ok("events", "told") + cli.ok("ps", "--json")
    assert not [needle for needle in planted.needles if needle in shown.encode()]
    assert holders(planted.needles, (tmp_path,), planted.own) == []
    _check_root(pid)

    # The search does find what is there: the very same needles in a file of the state directory.
    bait = cli.data / "bait"
    bait.write_bytes(b"x" + planted.password)
    assert holders(planted.needles, (tmp_path,), planted.own) == [str(bait)]
    bait.unlink()

    cli.ok("kill", "told")
    assert holders(planted.needles, (tmp_path,), planted.own) == [], "after its end"
    # A second start asks the sources again, and has nothing of its own to fall back to.
    (tmp_path / "db").unlink()
    assert "cannot open the file of secret db-password" in cli.fails(2, "start", "told")
    cli.ok("rm", "told")


def _check_root(pid: int) -> None:
    """As root: the emulator's own root holds empty FIFOs, and the secret is in its memory only."""
    if os.geteuid() != 0:
        return
    for fifo in Path(f"/proc/{pid}/root/provision").iterdir():
        assert fifo.is_fifo()
        descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        assert os.read(descriptor, 100) == b""
        os.close(descriptor)
