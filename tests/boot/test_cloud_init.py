"""The how-to of docs/provision.md, as it is written there: Debian's own cloud-init, a secret, a second boot, rm.

Three to four minutes under TCG, so it runs when it is asked for: CASEMATE_SLOW=1. `test_provisioned.py` runs always.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.cli_runner import Cli
from tests.support.cloud_image import cloud_image
from tests.support.debian_image import copy_image

pytestmark = [
    pytest.mark.boot,
    pytest.mark.skipif(
        os.environ.get("CASEMATE_SLOW") != "1", reason="takes minutes under TCG: CASEMATE_SLOW=1 runs it"
    ),
]

FIRST_BOOT_S, SECOND_BOOT_S = 300.0, 200.0
USER_DATA = """\
#cloud-config
users:
  - name: ana
    lock_passwd: true
runcmd:
  - [sh, -c, "install -m 600 /run/credentials/@system/db-password /root/db-password"]
  - [sh, -c, "echo @@ $(sha256sum </root/db-password | cut -c1-64) $(hostname) $(id -un ana) @@ >/dev/console"]
final_message: "@@ done @@"
"""


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    found = Cli(tmp_path)
    yield found
    found.clean()


def wait_for(cli: Cli, words: str, deadline_s: float, count: int = 1) -> str:
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        said = cli.ok("logs", "web")
        if said.count(words) >= count:
            return said
        time.sleep(1)
    raise AssertionError(f"no {words!r} on the console:\n{said[-2000:]}")


def read_file(disk: Path, path: str) -> bytes:
    return subprocess.run(["/usr/sbin/debugfs", "-R", f"cat {path}", disk], capture_output=True, check=True).stdout


def test_cloud_init_from_first_boot_to_rm(cli: Cli, tmp_path: Path) -> None:
    image = cloud_image()
    disk = copy_image(image.root, tmp_path / "root.img")
    (tmp_path / "user-data.yaml").write_text(USER_DATA)
    (tmp_path / "db").write_bytes(os.urandom(24))
    (tmp_path / "db").chmod(0o600)
    spec = tmp_path / "web.toml"
    spec.write_text(
        'name = "web"\n[machine]\nmemory_mib = 1024\nvcpus = 2\n'
        f'[boot]\nkernel = "{image.kernel}"\ninitrd = "{image.initrd}"\n'
        'cmdline = "root=/dev/vda console=ttyS0 rw"\n'
        '[[disk]]\npath = "root.img"\nformat = "raw"\nmode = "persistent"\n'
        '[network]\nmode = "user"\negress = "none"\n'
        '[provision.cloud_init]\nuser_data = "user-data.yaml"\nhostname = "web"\n'
        '[secrets.db-password]\nfile = "db"\n'
    )
    cli.ok("run", "-d", spec)
    said = wait_for(cli, "@@ done @@", FIRST_BOOT_S)
    digest = hashlib.sha256((tmp_path / "db").read_bytes()).hexdigest()
    assert f"@@ {digest} web ana @@" in said
    cli.ok("stop", "--time", "90", "web", timeout_s=120)
    pinned = read_file(disk, "/etc/cloud/cloud.cfg.d/99_casemate_datasource.cfg")
    assert pinned == b"datasource_list: [ NoCloud, None ]\n"
    assert read_file(disk, "/root/db-password") == (tmp_path / "db").read_bytes()

    # The second boot has the secret again, and is no first boot: cloud-init's own record has one instance.
    (tmp_path / "db").write_bytes(b"another")
    cli.ok("start", "web")
    wait_for(cli, "web login:", SECOND_BOOT_S, count=2)
    assert cli.ok("logs", "web").count("@@ done @@") == 1
    cli.ok("stop", "--time", "90", "web", timeout_s=120)
    cli.ok("rm", "web")
    assert "no such VM" in cli.fails(2, "inspect", "web")
