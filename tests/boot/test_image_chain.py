"""One Debian root made by mmdebstrap, from a signed file to `image rm`: verified, scanned, audited, run twice.

It is that of test_debian.py, known for root without a password and for a fixed machine-id.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.cli_runner import Cli
from tests.support.debian_image import DebianImages, debian_images
from tests.support.planted import RUN, SCRIPT, Planted, holders
from tests.support.signing import Gpg, gpg_home

pytestmark = [
    pytest.mark.boot,
    pytest.mark.skipif(shutil.which("debugfs", path="/usr/sbin:/sbin") is None, reason="needs debugfs (e2fsprogs)"),
]
BOOT_S = 300.0
LEFT_BY_THE_RECIPE = {"account.no-password", "machine-id.file", "machine-id.block"}
"""What it leaves on purpose, and the machine-id that a package's script made before it."""


@pytest.fixture(scope="module")
def images() -> DebianImages:
    return debian_images()


@pytest.fixture
def gpg() -> Iterator[Gpg]:
    yield from gpg_home()


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    found = Cli(tmp_path)
    yield found
    found.clean()


def fails_with(cli: Cli, code: int, *words: str | Path) -> Any:
    """The document of a command that finds something."""
    done = cli(*words, "--json", timeout_s=180)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def wait_for(cli: Cli, words: str, count: int) -> str:
    end = time.monotonic() + BOOT_S
    while (said := cli.ok("logs", "web")).count(words) < count:
        assert time.monotonic() < end, f"no {words!r} on the console:\n{said[-2000:]}"
        time.sleep(0.3)
    return said


def signed(directory: Path, disk: Path, gpg: Gpg) -> tuple[str, list[str | Path]]:
    """A new key; SHA256SUMS, its signature and the key as flags, as distributions publish them."""
    sums, signature, keys = (directory / name for name in ("SHA256SUMS", "SHA256SUMS.gpg", "keys.asc"))
    key = gpg.key("Images <images@example.org>")
    keys.write_bytes(gpg.call("--armor", "--export"))
    digest = hashlib.file_digest(disk.open("rb"), "sha256").hexdigest()
    sums.write_text(f"{digest} *debian-12.raw\n{'0' * 64} *other.raw\n")
    gpg.call("--output", signature, "--detach-sign", sums)
    return key, ["--sums", sums, "--signature", signature, "--keyring", keys, "--listed-as", "debian-12.raw"]


def check_what_is_in_it(cli: Cli) -> None:
    """Scan, audit and bill of materials, the files read by the throwaway VM."""
    scan = fails_with(cli, 1, "image", "scan", "debian")
    assert scan["not_scanned"] == []
    assert {finding["rule"] for finding in scan["findings"]} <= LEFT_BY_THE_RECIPE, "a clean root gives no false alarm"
    assert {"/etc/machine-id", "/etc/shadow"} <= {finding["path"] for finding in scan["findings"]}
    (target,) = fails_with(cli, 1, "image", "audit", "debian")["targets"]
    verdicts = {finding["control"]: finding["verdict"] for finding in target["findings"]}
    expected = {
        "guest.no-empty-password": "fail",
        "guest.root-locked": "fail",
        "guest.own-identity": "fail",
        "guest.security-updates": "unknown",  # its lists were removed: unknown is no pass
        "guest.lockdown-ready": "fail",  # the EFI system partition's entry was read
        "guest.one-root": "pass",
        "guest.no-entropy-daemon": "pass",
    }
    assert {name: verdicts[name] for name in expected} == expected
    bill = json.loads(cli.ok("image", "sbom", "debian", timeout_s=120))
    assert {"systemd", "libc6", "udev"} <= {component["name"] for component in bill["components"]}


def test_a_debian_root_from_its_signed_file_to_rm(images: DebianImages, gpg: Gpg, cli: Cli, tmp_path: Path) -> None:
    planted = Planted(tmp_path)
    key, evidence = signed(tmp_path, images.disk, gpg)
    digest = cli.ok("image", "add", images.disk, "--name", "debian", *evidence).strip()
    assert [item["key"] for item in cli.json("image", "verify", "debian", "--json")["signers"]] == [f"openpgp:{key}"]
    check_what_is_in_it(cli)

    (tmp_path / "user-data").write_text(SCRIPT)
    quoted = RUN.replace('"', '\\"')
    spec = tmp_path / "web.toml"
    spec.write_text(
        f'name = "web"\n[machine]\ntype = "microvm"\nmemory_mib = 512\n'
        f'[boot]\nkernel = "{images.kernel}"\ninitrd = "{images.initrd}"\n'
        f'cmdline = "root=/dev/vda2 console=ttyS0 rw quiet {quoted}"\n'
        '[[disk]]\nimage = "debian"\n[provision.cloud_init]\nuser_data = "user-data"\nhostname = "web"\n'
        f'[secrets.db-password]\nfile = "db"\n[secrets.blob]\ncommand = ["/bin/cat", "{tmp_path}/blob.bin"]\n'
    )
    cli.ok("run", "-d", spec)
    assert "in use" in cli.fails(4, "image", "rm", "debian")
    said = wait_for(cli, "@@ ready @@", 1)
    for name, value in (("db-password", planted.password), ("blob", planted.blob)):
        assert f"@@ {name} {hashlib.sha256(value).hexdigest()} @@" in said
    assert "@@ names blob db-password  @@" in said
    assert "@@ pinned 1 @@" in said
    wall = cli.json("inspect", "--json", "web")["wall"]
    assert not [entry for entry in wall if entry["verdict"] == "fail" and entry["gate"] == "launch"]
    assert {entry["control"]: entry["verdict"] for entry in wall}["img.origin"] == "pass"
    assert holders(planted.needles, (tmp_path,), planted.own) == []

    # The second boot asks the sources again.
    cli.ok("kill", "web")
    (tmp_path / "db").write_bytes(b"another")
    cli.ok("start", "web")
    said = wait_for(cli, "@@ ready @@", 2)
    assert f"@@ db-password {hashlib.sha256(b'another').hexdigest()} @@" in said
    cli.ok("rm", "--force", "web")
    assert digest in cli.ok("image", "rm", "debian")
    assert cli.json("image", "ls", "--json")["images"] == []
