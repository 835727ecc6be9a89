"""What a launch makes of an image's origin and content: refused, vouched for, tampered with, waived, given by path."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.cli_runner import Cli
from tests.support.tiny_guests import bios_disk

pytestmark = pytest.mark.boot

SPEC = """\
[machine]
type = "q35"
memory_mib = 64
accel = "tcg"
[boot]
firmware = "bios"
[[disk]]
{disk}
"""


class World:
    """A home of its own, a disk that boots within a second, and specifications."""

    def __init__(self, where: Path) -> None:
        (where / "home").mkdir()
        self.where, self.cli = where, Cli(where / "home")
        self.seen: set[Path] = set()
        self.disk = bios_disk(where / "disk.raw", "I", size_bytes=4 << 20)
        with self.disk.open("r+b") as file:
            file.seek(1 << 20)
            file.write(os.urandom(1 << 20))

    def run(self, disk: str, *flags: str, more: str = "") -> Any:
        """Start the VM, look at its console for a moment, end it."""
        spec = self.where / "vm.toml"
        spec.write_text(SPEC.format(disk=disk) + more)
        return self.cli("run", "-d", "--rm", "--name", "origin", *flags, spec)

    def policy(self, text: str) -> str:
        path = self.where / "policy.toml"
        path.write_text(f"version = 1\n{text}")
        path.chmod(0o600)
        return str(path)

    def digest(self) -> str:
        """Of the disk, in the launch record, which is written a moment after the guest was released."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            for path in self.cli.data.glob("records/[0-9]*.json"):
                record = json.loads(path.read_bytes()).get("record", {})
                roles = {item["role"]: item["sha256"] for item in record.get("files", ())}
                if "disk0" in roles and path not in self.seen:
                    self.seen.add(path)
                    return str(roles["disk0"])
            time.sleep(0.05)
        return "no record"

    def stop(self) -> None:
        self.cli("kill", "origin")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_an_image_of_the_store_runs_only_when_somebody_vouches_for_it(world: World) -> None:
    cli = world.cli
    digest = cli("image", "add", world.disk, "--name", "web").stdout.strip()
    assert len(digest) == 64
    refused = world.run('image = "web"')
    assert refused.returncode == 4, refused.stderr
    assert "img.origin" in refused.stderr
    assert "image sign" in refused.stderr
    # the host's policy lets a specification waive it, by name and for a time
    waiver = '[[waiver]]\ncontrol = "img.origin"\nreason = "a test of waivers"\nexpires = 2099-01-01\n'
    policy = world.policy('[waivers]\nallowed = ["img.origin"]\nmax_days = 3660\n')
    assert "does not allow" in world.run('image = "web"', more=waiver).stderr
    expires = (datetime.datetime.now(tz=datetime.UTC) + datetime.timedelta(days=9)).date().isoformat()
    waived = world.run('image = "web"', "--policy", policy, more=waiver.replace("2099-01-01", expires))
    assert waived.returncode == 0, waived.stderr
    world.stop()
    cli("image", "sign", "web", "-o", world.where / "web.sig")
    good = world.run('image = "web"')
    assert good.returncode == 0, good.stderr
    assert world.digest() == digest
    inspected = json.loads(cli("inspect", "origin", "--json").stdout)
    assert "img.origin" in json.dumps(inspected)
    world.stop()
    # a rule that this signature does not satisfy
    rule = world.policy('[[image.source]]\nmatch = "web"\nkeys = ["openpgp:' + "a" * 40 + '"]\n')
    assert "wants openpgp:" in world.run('image = "web"', "--policy", rule).stderr
    # one byte of the store, changed by its owner behind our back, size and time as before
    (image,) = (cli.data / "images" / "images").glob("*/image")
    before = image.stat()
    image.chmod(0o600)
    with image.open("r+b") as file:
        file.seek(1_500_000)
        byte = file.read(1)
        file.seek(1_500_000)
        file.write(bytes([byte[0] ^ 1]))
    image.chmod(0o400)
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    tampered = world.run('image = "web"')
    assert tampered.returncode == 4, tampered.stderr
    assert "img.hash" in tampered.stderr
    assert cli("ps", "-q").stdout == ""


def test_a_file_by_path_runs_unless_the_policy_says_otherwise(world: World) -> None:
    path = f'path = "{world.disk}"\nformat = "raw"\n'
    assert world.run(path).returncode == 0
    world.stop()
    policy = world.policy('[gates]\nlaunch = ["img.local-origin"]\n')
    refused = world.run(path, "--policy", policy)
    assert refused.returncode == 4
    assert "img.local-origin" in refused.stderr
    digest = hashlib.sha256(world.disk.read_bytes()).hexdigest()
    pinned = world.run(f'{path}sha256 = "{digest}"\n', "--policy", policy)
    assert pinned.returncode == 0, pinned.stderr
    assert world.digest() == digest
    world.stop()
    other = world.run(f'{path}sha256 = "{"0" * 64}"\n')
    assert other.returncode == 4
    assert "img.hash" in other.stderr
