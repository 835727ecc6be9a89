"""The scan and the guest's audit on a real Debian root, its files read through the cell; one boot for each test.

The root is that of test_debian.py, from its cache: known for root without a password and for a fixed machine-id.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from tests.support.debian_image import DebianImages, copy_image, debian_images
from tests.support.scan_corpus import planted

from casemate import scans
from casemate.scan.model import Finding, Place
from casemate.scan.prefilter import has_hyperscan

pytestmark = [
    pytest.mark.boot,
    pytest.mark.skipif(not has_hyperscan(), reason="hyperscan is not installed here"),
    pytest.mark.skipif(shutil.which("debugfs", path="/usr/sbin:/sbin") is None, reason="needs debugfs (e2fsprogs)"),
]
EXPECTED = {"account.no-password", "machine-id.file", "machine-id.block"}
"""What test_debian.py's recipe leaves on purpose, and the machine-id that a package's script made before it."""


@pytest.fixture(scope="module")
def images() -> DebianImages:
    return debian_images()


def write_into(image: Path, source: Path, path: str) -> None:
    """A file into the ext4 of an image, without mounting it."""
    script = f"cd {path.rpartition('/')[0]}\nwrite {source} {path.rpartition('/')[2]}\n"
    subprocess.run(
        ["/usr/sbin/debugfs", "-w", "-f", "-", image], input=script.encode(), check=True, capture_output=True
    )


def test_a_clean_root_gives_no_false_alarm(images: DebianImages) -> None:
    outcome = scans.scan_image(str(images.root), image_format="raw")
    assert outcome.not_scanned == ()
    assert {finding.rule for finding in outcome.findings} <= EXPECTED
    paths = {finding.path for finding in outcome.findings if finding.place is Place.FILE}
    assert {"/etc/machine-id", "/etc/shadow"} <= paths


def test_planted_files_are_named_and_deleted_ones_located(images: DebianImages, tmp_path: Path) -> None:
    disk = copy_image(images.root, tmp_path / "root.img")
    source = tmp_path / "source"
    live, gone = planted("token.github", 71), planted("token.github", 72)
    for text, path in (
        (live.text, "/root/notes"),
        (gone.text, "/root/gone"),
        (planted("key.pem").text, "/etc/server.key"),
        (b"machine git.example.net login ana password s3cr3tW0rdX1\n", "/root/.netrc"),
        (
            b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJhc2U2NGJhc2U2NGJhc2U2NGJhc2U2NGJhc2U2NGJh ana\n",
            "/root/authorized_keys",
        ),
    ):
        source.write_bytes(text)
        write_into(disk, source, path)
    subprocess.run(["/usr/sbin/debugfs", "-w", "-R", "rm /root/gone", disk], check=True, capture_output=True)

    outcome = scans.scan_image(str(disk), image_format="raw")

    found: dict[tuple[str, str], Finding] = {(finding.rule, finding.path): finding for finding in outcome.findings}
    assert ("token.github", "/root/notes") in found
    assert found["token.github", ""].place is Place.GUEST_DISK, "deleted: located by its block"
    assert ("key.pem", "/etc/server.key") in found
    assert ("cred.netrc", "/root/.netrc") in found
    assert ("cred.file", "/root/.netrc") in found
    assert not any(item.secret.decode() in repr(outcome) for item in (live, gone))


def test_the_guest_is_judged_by_its_files(images: DebianImages) -> None:
    entry = scans.audit_image(str(images.disk))
    verdicts = {finding.control_id: finding.verdict.value for finding in entry.findings}
    assert verdicts["guest.no-empty-password"] == "fail"
    assert verdicts["guest.root-locked"] == "fail"
    assert verdicts["guest.own-identity"] == "fail"
    assert verdicts["guest.security-updates"] == "unknown", "its lists were removed: unknown is no pass"
    assert verdicts["guest.lockdown-ready"] == "fail", "the EFI system partition's entry was read"
    assert verdicts["guest.one-root"] == "pass"
    assert verdicts["guest.no-entropy-daemon"] == "pass"
    document = scans.bill_of_materials(str(images.disk), "cyclonedx", "0")
    names = {component["name"] for component in document["components"]}
    assert {"systemd", "libc6", "udev"} <= names
