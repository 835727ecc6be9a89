"""A disk that is encrypted on the host: the guest sees it plain, and its key stays nowhere."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.cli_runner import Cli

pytestmark = pytest.mark.boot


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    found = Cli(tmp_path)
    yield found
    found.clean()


def key_file(path: Path) -> Path:
    path.write_bytes(base64.b64encode(secrets.token_bytes(32)))
    path.chmod(0o600)
    return path


def run_disk_test(cli: Cli, directory: Path, disk: Path, key: Path, *, code: int = 0, image_format: str = "raw") -> str:
    """The built-in guest reads the first MiB, writes another, reads it back, and powers off; what it said."""
    boot = cli.json("plan", "builtin", "--json")["spec"]["boot"]
    spec = directory / "vm.toml"
    spec.write_text(
        f'name = "crypt"\n[boot]\nkernel = "{boot["kernel"]}"\ninitrd = "{boot["initrd"]}"\n'
        f'cmdline = "{boot["cmdline"]} casemate.test=disk"\n'
        f'[[disk]]\npath = "{disk}"\nformat = "{image_format}"\nmode = "persistent"\n'
        'encryption = "luks"\nkey = "data"\n'
        f'[secrets.data]\nfile = "{key}"\nuse = "disk"\n'
    )
    done = cli("run", "--rm", spec)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_encrypt_run_rekey(cli: Cli, tmp_path: Path) -> None:
    plain, disk = tmp_path / "plain.raw", tmp_path / "data.luks"
    content = secrets.token_bytes(2 << 20)
    plain.write_bytes(content)
    old, new = key_file(tmp_path / "old"), key_file(tmp_path / "new")
    cli.ok("image", "encrypt", plain, disk, "--key-file", old)
    assert disk.stat().st_mode & 0o777 == 0o600
    assert "is there already" in cli.fails(2, "image", "encrypt", plain, disk, "--key-file", old)

    said = run_disk_test(cli, tmp_path, disk, old)
    assert f"disk before {hashlib.sha256(content[: 1 << 20]).hexdigest()}" in said
    assert "disk ok" in said
    written = re.search(r"disk after ([0-9a-f]{64})", said)
    assert written is not None

    assert "opens none" in cli.fails(2, "image", "rekey", disk, "--key-file", new, "--new-key-file", old)
    cli.ok("image", "rekey", disk, "--key-file", old, "--new-key-file", new)
    assert "the key does not open the disk" in run_disk_test(cli, tmp_path, disk, old, code=2)
    assert f"disk before {written[1]}" in run_disk_test(cli, tmp_path, disk, new)
    state = b"".join(path.read_bytes() for path in cli.data.rglob("*") if path.is_file())
    for key in (old, new):
        assert key.read_bytes() not in state


def test_inside_qcow2(cli: Cli, tmp_path: Path) -> None:
    """A file that grows with its disk: the guest reads and writes, and a weak header never starts."""
    plain, disk, key = tmp_path / "plain.raw", tmp_path / "data.qcow2", key_file(tmp_path / "key")
    content = secrets.token_bytes(1 << 20) + bytes(63 << 20)
    plain.write_bytes(content)
    cli.ok("image", "encrypt", "--format", "qcow2", plain, disk, "--key-file", key)
    assert disk.stat().st_size < 8 << 20
    said = run_disk_test(cli, tmp_path, disk, key, image_format="qcow2")
    assert f"disk before {hashlib.sha256(content[: 1 << 20]).hexdigest()}" in said
    assert "disk ok" in said
    whole = bytearray(disk.read_bytes())
    whole[65536 + 8 : 65536 + 40] = b"cipher_null".ljust(32, b"\0")
    disk.write_bytes(whole)
    assert "cipher_null" in run_disk_test(cli, tmp_path, disk, key, code=2, image_format="qcow2")


def test_an_image_that_is_not_encrypted_as_it_says_never_starts(cli: Cli, tmp_path: Path) -> None:
    plain, disk, key = tmp_path / "plain.raw", tmp_path / "data.luks", key_file(tmp_path / "key")
    plain.write_bytes(bytes(1 << 20))
    assert "no LUKS header" in run_disk_test(cli, tmp_path, plain, key, code=2)
    cli.ok("image", "encrypt", plain, disk, "--key-file", key)
    whole = bytearray(disk.read_bytes())
    whole[8:40] = b"cipher_null".ljust(32, b"\0")
    disk.write_bytes(whole)
    assert "cipher_null" in run_disk_test(cli, tmp_path, disk, key, code=2)
    short = tmp_path / "short"
    short.write_bytes(b"password")
    short.chmod(0o600)
    assert "20 or more" in cli.fails(2, "image", "encrypt", plain, tmp_path / "x", "--key-file", short)
    short.write_bytes(os.urandom(31) + b"\xff")
    assert "not UTF-8" in cli.fails(2, "image", "encrypt", plain, tmp_path / "x", "--key-file", short)
    assert not (tmp_path / "x").exists()


def test_key_from_systemd_creds(cli: Cli, tmp_path: Path) -> None:
    if shutil.which("systemd-creds") is None:
        pytest.skip("systemd-creds is not installed")
    plain, key, sealed = tmp_path / "plain.raw", key_file(tmp_path / "key"), tmp_path / "key.cred"
    plain.write_bytes(bytes(1 << 20))
    command = ["systemd-creds", "encrypt", "--with-key=tpm2-absent", "--name=data", str(key), str(sealed)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"systemd-creds cannot encrypt without a host key: {done.stderr.decode()[:200]}")
    words = ("--key-creds", sealed, "--key-name", "data")
    cli.ok("image", "encrypt", plain, tmp_path / "data.luks", *words)
    cli.ok("image", "rekey", tmp_path / "data.luks", *words, "--new-key-file", key_file(tmp_path / "new"))
