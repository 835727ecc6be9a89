"""Secrets and seeds in a real guest: Debian's systemd and kernel read them; nobody else has them.

The guest prints digests only: what it printed itself would stand in the console's log.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.cli_runner import Cli
from tests.support.debian_image import DebianImages, debian_images

pytestmark = pytest.mark.boot

BOOT_S = 120.0
# A guest script of its own on the seed: the command line of a kernel is short, and visible to every user of the guest.
SCRIPT = """\
#!/bin/sh
for name in db-password blob; do
    sha256sum </run/credentials/@system/$name | sed "s/^\\\\([0-9a-f]*\\\\).*/@@ $name \\\\1 @@/"
done
ls /run/credentials/@system | sort | tr '\\\\n' ' ' | sed 's/.*/@@ names & @@/'
tr ' ' '\\\\n' </proc/cmdline | grep -c '^ci.ds=NoCloud$' | sed 's/.*/@@ pinned & @@/'
echo "@@ ready @@"
sleep 600
"""
RUN = (
    "systemd.run_success_action=none systemd.run_failure_action=none "
    "systemd.run=\"/bin/sh -c 'mount -r /dev/disk/by-label/CIDATA /mnt && exec sh /mnt/user-data >/dev/console'\""
)


@pytest.fixture(scope="module")
def images() -> DebianImages:
    return debian_images()


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    found = Cli(tmp_path)
    yield found
    found.clean()


class Planted:
    """Values that no file, argument or environment of the host may hold while the VM runs."""

    def __init__(self, directory: Path) -> None:
        self.password = secrets.token_hex(24).encode()
        self.blob = bytes(range(256)) + secrets.token_bytes(64)
        self.own = {directory / "db", directory / "blob.bin"}
        (directory / "db").write_bytes(self.password)
        (directory / "blob.bin").write_bytes(self.blob)
        for path in self.own:
            path.chmod(0o600)

    @property
    def needles(self) -> tuple[bytes, ...]:
        """In every form that a channel carries; the blob by a part that is its own."""
        import base64

        raw = (self.password, self.blob[-64:])
        return (
            *raw,
            base64.b64encode(self.password),
            base64.b64encode(self.blob)[-48:-4],
            self.password.hex().encode(),
        )


def specification(directory: Path, images: DebianImages, machine: str) -> Path:
    file = directory / "vm.toml"
    quoted = RUN.replace('"', '\\"')
    file.write_text(
        f'name = "told"\n[machine]\ntype = "{machine}"\nmemory_mib = 512\n'
        f'[boot]\nkernel = "{images.kernel}"\ninitrd = "{images.initrd}"\n'
        f'cmdline = "root=/dev/vda console=ttyS0 rw quiet {quoted}"\n'
        f'[[disk]]\npath = "{images.root}"\nformat = "raw"\n'
        '[provision.cloud_init]\nuser_data = "user-data"\nhostname = "told"\n'
        '[secrets.db-password]\nfile = "db"\n'
        '[secrets.blob]\ncommand = ["/bin/cat", "BLOB"]\n'.replace("BLOB", str(directory / "blob.bin"))
    )
    (directory / "user-data").write_text(SCRIPT.replace("\\\\", "\\"))
    return file


def wait_for(cli: Cli, words: str) -> str:
    end = time.monotonic() + BOOT_S
    while time.monotonic() < end:
        said = cli.ok("logs", "told")
        if words in said:
            return said
        time.sleep(0.3)
    raise AssertionError(f"no {words!r} on the console:\n{said[-2000:]}")


def holders(needles: tuple[bytes, ...], directories: tuple[Path, ...], own: set[Path]) -> list[str]:
    """Where any needle stands: arguments and environments of all processes, files they map, and whole directories."""
    found = []
    mapped: set[Path] = set()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        for name in ("cmdline", "environ", "comm"):
            try:
                data = (process / name).read_bytes()
            except OSError:
                continue
            found += [f"{process / name}" for needle in needles if needle in data]
        try:
            lines = (process / "maps").read_text().splitlines()
        except OSError:
            continue
        mapped |= {Path(line.split(None, 5)[5]) for line in lines if len(line.split(None, 5)) == 6}
    ours = [path for path in mapped if any(path.is_relative_to(directory) for directory in directories)]
    files = [path for directory in directories for path in directory.rglob("*")]
    for path in {*ours, *files} - own:
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            found += [str(path) for needle in needles if needle in data]
    return found


@pytest.mark.parametrize("machine", ["microvm", "q35"])
def test_the_guest_reads_its_secrets_and_the_host_keeps_none(
    machine: str, images: DebianImages, cli: Cli, tmp_path: Path
) -> None:
    planted = Planted(tmp_path)
    spec = specification(tmp_path, images, machine)
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
