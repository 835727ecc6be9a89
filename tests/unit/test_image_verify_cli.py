"""image verify, image sign and image add with evidence, as a user runs them; keys by ssh-keygen and gpg."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.signing import gpg_home, need, run

from casemate.engine import origin_verify
from casemate.engine.origin_verify import note_tree, seal
from casemate.errors import InputError
from casemate.image.origin_check import Evidence, check_origin, distribution_keyrings
from casemate.image.ssh_sign import signer_for


@pytest.fixture
def casemate(tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    (tmp_path / "disk.raw").write_bytes(os.urandom(510) + b"\x55\xaa" + os.urandom(65_024))
    env = {**os.environ, "XDG_DATA_HOME": str(tmp_path / "data"), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    (tmp_path / "run").mkdir(mode=0o700)

    def call(*argv: str, stdin: bytes = b"") -> tuple[int, str, str]:
        # As root the store would be the system's: the paths are given to the library instead.
        code = (
            "import sys; from casemate.engine import paths; "
            f"own = paths.Paths({str(tmp_path / 'run')!r}, {str(tmp_path / 'data')!r}, {str(tmp_path / 'cache')!r}); "
            "paths.default_paths = lambda *a, **k: own; from casemate.cli.main import main; sys.exit(main())"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *argv], input=stdin, capture_output=True, cwd=tmp_path, env=env, check=False
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    return call


def report(result: tuple[int, str, str]) -> Any:
    document = json.loads(result[1])
    assert document["schema"] == "casemate.image-verify/1"
    assert document["ok"] == (result[0] == 0)
    return document


def test_sign_with_the_hosts_key_and_verify(casemate: Any, tmp_path: Path) -> None:
    rc, out, _ = casemate("image", "sign", "disk.raw", "--json")
    assert rc == 0
    signed = json.loads(out)
    assert signed["signature"] == str(tmp_path / "disk.raw.sig")
    found = report(casemate("image", "verify", "disk.raw", "--signature", "disk.raw.sig", "--json"))
    assert found["signers"][0]["key"] == signed["key"]
    public = casemate("key", "show")[1]
    (tmp_path / "allowed").write_text(f"host {public}")
    run(
        need("ssh-keygen", "openssh-client"),
        *("-Y", "verify", "-n", "file", "-I", "host", "-f", tmp_path / "allowed", "-s", tmp_path / "disk.raw.sig"),
        stdin=(tmp_path / "disk.raw").read_bytes(),
    )
    assert casemate("image", "sign", "disk.raw")[0] == 2  # an existing signature is not overwritten
    with (tmp_path / "disk.raw").open("r+b") as file:
        file.seek(40_000)
        file.write(b"changed")
    result = casemate("image", "verify", "disk.raw", "--signature", "disk.raw.sig", "--json")
    assert "does not fit the content" in report(result)["why"]


def test_an_image_of_the_store_from_unverified_to_vouched_for(casemate: Any) -> None:
    assert casemate("image", "add", "disk.raw", "--name", "web")[0] == 0
    assert "no signature" in report(casemate("image", "verify", "web", "--json"))["why"]
    assert casemate("image", "sign", "web")[0] == 0
    assert report(casemate("image", "verify", "web", "--json"))["signers"][0]["key"].startswith("ssh:SHA256:")
    policy = 'version = 1\n[[image.source]]\nmatch = "web"\nkeys = ["openpgp:' + "a" * 40 + '"]\n'
    code = casemate("image", "verify", "web", "--json", "--policy", _policy(policy))
    assert "wants openpgp:aaaa" in report(code)["why"]


def _policy(text: str) -> str:
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".toml", delete=False) as file:
        file.write(text)
    Path(file.name).chmod(0o600)
    return file.name


def test_add_with_evidence_keeps_only_what_was_verified(casemate: Any, tmp_path: Path) -> None:
    homes = gpg_home()
    gpg = next(homes)
    key = gpg.key("publisher")
    (tmp_path / "ring").write_bytes(gpg.call("--export", key))
    listed = run("env", "-C", tmp_path, "sha512sum", "disk.raw")
    (tmp_path / "SUMS").write_bytes(listed)
    gpg.call("--clearsign", "-o", tmp_path / "SUMS.asc", tmp_path / "SUMS")
    gpg.call("--detach-sign", "-o", tmp_path / "disk.gpg", tmp_path / "disk.raw")
    homes.close()
    flags = ("--sums", "SUMS.asc", "--keyring", "ring")
    assert casemate("image", "add", "disk.raw", "--name", "good", *flags)[0] == 0
    assert report(casemate("image", "verify", "good", "--json"))["signers"][0]["key"] == f"openpgp:{key}"
    found = report(casemate("image", "verify", "good", *flags, "--json"))
    assert (found["covered"], found["noted"]) == ("SUMS.asc: disk.raw", True)
    alone = report(casemate("image", "verify", "disk.raw", "--signature", "disk.gpg", "--keyring", "ring", "--json"))
    assert alone["sha256"] == found["sha256"]
    (tmp_path / "other.raw").write_bytes((tmp_path / "disk.raw").read_bytes()[:-512])
    (tmp_path / "sub").mkdir()
    (tmp_path / "other.raw").rename(tmp_path / "sub" / "disk.raw")
    both = casemate("image", "verify", "disk.raw", *flags, "--signature", "disk.gpg")
    assert (both[0], "one of the two" in both[2]) == (2, True)
    rc, _, err = casemate("image", "add", "sub/disk.raw", "--name", "bad", *flags)
    assert rc == 2
    assert "is not the file that SUMS.asc lists" in err
    assert "bad" not in casemate("image", "ls")[1]
    result = casemate("image", "verify", "sub/disk.raw", "--signature", "disk.gpg", "--keyring", "ring", "--json")
    assert "does not fit the content" in report(result)["why"]


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ((), "nothing to verify with"),
        (("--sums", "SUMS"), "has no signature"),
        (("--signature", "missing"), "cannot read missing"),
        (("--signature", "mini"), "is a minisign signature"),
        (("--signature", "bundle"), "is a sigstore bundle"),
        (("--signature", "bundle", "--identity", "a@b", "--issuer", "https://x"), "no trusted root"),
    ],
)
def test_what_is_missing_is_named(casemate: Any, tmp_path: Path, flags: tuple[str, ...], why: str) -> None:
    (tmp_path / "SUMS").write_text("a" * 64 + "  disk.raw\n")
    (tmp_path / "mini").write_text("untrusted comment: x\nAA\ntrusted comment: y\nAA\n")
    (tmp_path / "bundle").write_text("{}")
    rc, _, err = casemate("image", "verify", "disk.raw", *flags)
    assert rc == 2
    assert why in err


def test_sigstore_without_the_extra_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from casemate.errors import HostError

    monkeypatch.setitem(sys.modules, "sigstore", None)
    for name in ("disk", "bundle", "root"):
        (tmp_path / name).write_text("{}")
    evidence = Evidence(
        signature=str(tmp_path / "bundle"), identity="a@b", issuer="https://x", trusted_root=str(tmp_path / "root")
    )
    import datetime

    descriptor = os.open(tmp_path / "disk", os.O_RDONLY)
    with pytest.raises(HostError, match=r"casemate\[sigstore\]"):
        check_origin(descriptor, "disk", evidence, datetime.datetime.now(tz=datetime.UTC))
    os.close(descriptor)


def test_keys_from_files_and_from_an_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keygen, agent = need("ssh-keygen", "openssh-client"), need("ssh-agent", "openssh-client")
    run(keygen, "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "k")
    run(keygen, "-q", "-t", "ecdsa", "-m", "PEM", "-N", "secret", "-f", tmp_path / "pem")
    from casemate.image.ssh_keys import verify_with_key

    for path in ("k", "pem"):
        sign, public = signer_for(str(tmp_path / path), lambda: b"secret")
        assert verify_with_key(public, sign(b"message"), b"message", "t")
    with pytest.raises(InputError, match="cannot be read"):
        signer_for(str(tmp_path / "pem"), lambda: b"wrong")
    (tmp_path / "k").chmod(0o644)
    with pytest.raises(InputError, match="readable by others"):
        signer_for(str(tmp_path / "k"), lambda: b"")
    (tmp_path / "k").chmod(0o600)
    process = subprocess.Popen([agent, "-D", "-a", tmp_path / "agent"], stdout=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        for _ in range(200):
            if (tmp_path / "agent").exists():
                break
            subprocess.run(["sleep", "0.02"], check=True)
        run(need("ssh-add", "openssh-client"), "-q", tmp_path / "k", env=dict(os.environ))
        sign, public = signer_for(str(tmp_path / "k.pub"), lambda: b"")
        assert verify_with_key(public, sign(b"message"), b"message", "t")
    finally:
        process.terminate()
        process.wait(timeout=10)


def test_keyrings_of_the_distribution_leave_removed_keys_out() -> None:
    assert not any("removed" in path for path in distribution_keyrings())


def test_where_there_is_no_fs_verity_the_tree_is_noted(tmp_path: Path) -> None:
    from casemate.image import store_import
    from casemate.image.store import Store

    (tmp_path / "disk").write_bytes(b"x" * 4096)
    store = Store(str(tmp_path / "store"))
    descriptor = os.open(tmp_path / "disk", os.O_RDONLY)
    image = store_import.add(store, descriptor, name="a", image_format="raw", origin={}, seal=seal)
    os.close(descriptor)
    noted = note_tree(store, image)
    assert bool(noted.verity_digest) != ("tree" in noted.origin)
    assert note_tree(store, noted) == noted


def test_a_block_that_the_kernel_refuses_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fs-verity answers EIO for a block whose bytes changed below the file system."""
    disk = tmp_path / "disk.raw"
    disk.write_bytes(b"\x01" * 510 + b"\x55\xaa" + bytes(65_024))

    def refuse(*_arguments: object, **_more: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(origin_verify, "check_origin", refuse)  # a block in the middle
        middle = origin_verify.verify_reference(str(disk), Evidence())
    monkeypatch.setattr(os, "pread", refuse)  # the header's own
    header = origin_verify.verify_reference(str(disk), Evidence())
    for found in (middle, header):
        assert not found["ok"]
        assert "input/output error; next: dmesg says" in found["why"]
        assert "fs-verity" in found["why"]
