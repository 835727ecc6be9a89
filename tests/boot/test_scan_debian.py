"""The scan of a real Debian root with planted secrets, read through the cell. A clean one: test_image_chain.py."""

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


@pytest.fixture(scope="module")
def images() -> DebianImages:
    return debian_images()


def write_into(image: Path, source: Path, path: str) -> None:
    """A file into the ext4 of an image, without mounting it."""
    script = f"cd {path.rpartition('/')[0]}\nwrite {source} {path.rpartition('/')[2]}\n"
    subprocess.run(
        ["/usr/sbin/debugfs", "-w", "-f", "-", image], input=script.encode(), check=True, capture_output=True
    )


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
