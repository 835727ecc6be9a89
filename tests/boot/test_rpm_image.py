"""An image of a distribution of rpm through the real cell: packages that rpmbuild made and rpm installed, in ext4."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.cli_runner import Cli
from tests.unit.test_rpm_old_databases import LOAD, write_bdb
from tests.unit.test_updates_rpm import advisory, blobs_of

pytestmark = [
    pytest.mark.boot,
    pytest.mark.skipif(shutil.which("rpmbuild") is None, reason="package rpm is not installed"),
]

PACKAGES = {
    "almalinux-release": (
        "9.6",
        "1.el9",
        0,
        {"etc/os-release": 'ID="almalinux"\nVERSION_ID="9.6"\nPRETTY_NAME="Alma"\n'},
    ),
    "openssh-server": ("8.7p1", "45.el9", 0, {"etc/ssh/sshd_config": "PermitRootLogin yes\n", "usr/sbin/sshd": "x"}),
    "openssl-libs": ("3.2.2", "6.el9_5", 1, {"usr/lib64/libssl.so.3": "\x7fELF"}),
    "setup": (
        "2.13.7",
        "10.el9",
        0,
        {"etc/passwd": "root:x:0:0:root:/root:/bin/bash\n", "etc/shadow": "root:!:1:::::: \n"},
    ),
    "rng-tools": ("6.16", "7.el9", 0, {"usr/sbin/rngd": "x"}),
}


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    found = Cli(tmp_path)
    yield found
    found.clean()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root directory of a guest: rpm's own database, dnf's cache with an advisory, a key that was left behind."""
    base = tmp_path_factory.mktemp("rpm-root")
    work, place = base / "work", base / "root"
    work.mkdir()
    specs = []
    for name, (version, release, epoch, files) in PACKAGES.items():
        for path, text in files.items():
            (work / "files" / name / path).parent.mkdir(parents=True, exist_ok=True)
            (work / "files" / name / path).write_text(text)
        listed = "\n".join(f"/{path}" for path in files)
        (work / f"{name}.spec").write_text(
            f"Name: {name}\nVersion: {version}\nRelease: {release}\nEpoch: {epoch}\nSummary: test\nLicense: MIT\n"
            f"BuildArch: noarch\n%description\nx\n%install\ncp -r {work}/files/{name}/. %{{buildroot}}\n"
            f"%files\n{listed}\n"
        )
        specs.append(str(work / f"{name}.spec"))
    # Debian's rpm would strip and compress; these are files to be listed.
    flags = ("--define", "__os_install_post %{nil}", "--define", f"_topdir {work}")
    subprocess.run(["rpmbuild", "-bb", *flags, *specs], check=True, capture_output=True, timeout=120)
    place.mkdir()
    space = [] if os.geteuid() == 0 else ["unshare", "--map-root-user"]
    command = [*space, "rpm", "--root", str(place), "--dbpath", "/var/lib/rpm", "--nodeps", "-i"]
    subprocess.run([*command, *map(str, sorted(work.rglob("*.rpm")))], check=True, capture_output=True, timeout=120)
    repodata = place / "var/cache/dnf/baseos-0123456789abcdef/repodata"
    repodata.mkdir(parents=True)
    # Without one about a kernel it would be a repository of extras, which says nothing about the distribution.
    updates = advisory("kernel-core", "5.14.0", "570.99.1.el9_6", arch="noarch")
    updates += advisory("openssl-libs", "3.2.2", "6.el9_5.1", epoch="1", arch="noarch") + advisory("bash", "9", "9")
    (repodata / "updateinfo.xml").write_text(f"<updates>{updates}</updates>")
    (repodata / "repomd.xml").write_text(
        f"<repomd><revision>{int(time.time())}</revision>"
        '<data type="updateinfo"><location href="repodata/updateinfo.xml"/></data></repomd>'
    )
    key = place / "root/.ssh/id_ed25519"
    key.parent.mkdir(parents=True)
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return place


def image_of(root: Path, path: Path) -> Path:
    path.write_bytes(b"")
    os.truncate(path, 64 << 20)
    command = ["mkfs.ext4", "-q", "-F", "-d", str(root), str(path)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return path


def test_audit_and_scan(cli: Cli, root: Path, tmp_path: Path) -> None:
    disk = image_of(root, tmp_path / "alma.raw")
    done = cli("image", "audit", disk, "--format", "raw", "--json")
    assert done.returncode == 1, done.stdout + done.stderr
    findings = json.loads(done.stdout)["targets"][0]["findings"]
    found: dict[str, Any] = {entry["control"]: entry for entry in findings}
    updates = found["guest.security-updates"]
    assert updates["verdict"] == "fail"
    assert "openssl-libs 1:3.2.2-6.el9_5 -> 1:3.2.2-6.el9_5.1" in updates["evidence"]
    assert "bash" not in updates["evidence"], "it is not installed"
    assert found["guest.sshd-root"]["verdict"] == "fail"
    assert found["guest.root-locked"]["verdict"] == "pass"
    assert [entry for entry in findings if "rngd" in entry["evidence"] and entry["verdict"] == "fail"]
    done = cli("image", "scan", disk, "--format", "raw", "--json")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "/.ssh/id_ed25519" in done.stdout


@pytest.mark.skipif(LOAD is None, reason="package db5.3-util is not installed")
def test_parts_out_of_an_older_database(cli: Cli, root: Path, tmp_path: Path) -> None:
    """The same guest with the Berkeley DB of RHEL 8: the list of parts names every package."""
    older = tmp_path / "older"
    shutil.copytree(root, older, symlinks=True)
    blobs = blobs_of(older / "var/lib/rpm/rpmdb.sqlite")
    shutil.rmtree(older / "var/lib/rpm")
    write_bdb(older / "var/lib/rpm/Packages", blobs)
    document = cli.json("image", "sbom", image_of(older, tmp_path / "older.raw"), "--format", "raw")
    parts = {item["name"]: item for item in document["components"]}
    assert PACKAGES.keys() <= parts.keys()
    assert parts["openssl-libs"]["version"] == "1:3.2.2-6.el9_5"
    assert parts["openssl-libs"]["purl"].startswith("pkg:rpm/almalinux/openssl-libs@3.2.2-6.el9_5")
