"""Labels under a real LSM: a Debian guest in which Casemate runs VMs, once with SELinux enforcing, once with AppArmor.

Inside, `tests/support/mac_guest.py` starts two VMs with a disk each and prints one line per promise: process and image
carry the same pair, the kernel refuses the other VM's image, `prove` names the LSM, labels are restored, and a host
that cannot label refuses to launch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.cli_runner import Cli
from tests.support.guest_root import write_payload
from tests.support.mac_image import SCRIPT, UNIT, MacImages, mac_images
from tests.support.tiny_guests import bios_disk

from casemate.engine.paths import default_paths

pytestmark = [
    pytest.mark.boot,
    pytest.mark.skipif(os.geteuid() != 0, reason="SELinux labels can only be written into an image by root"),
    pytest.mark.skipif(
        os.environ.get("CASEMATE_TEST_MAC") != "1",
        reason="builds Debian images and nests one TCG in another, which takes longer than all other tests together:"
        " CASEMATE_TEST_MAC=1 ./check runs it",
    ),
]
RUN_S = 900
COMMON = {
    "starts-a",
    "starts-b",
    "labels-differ",
    "read-back",
    "own-image",
    "other-image-refused",
    "tpm-starts",
    "tpm-boots",
    "tpm-read-back",
    "tpm-label",
    "tpm-nothing-denied",
    "prove",
    "prove-names-lsm",
    "dies-with-supervisor",
    "labels-restored",
    "refused-without-label",
}
SELINUX = ("security=selinux selinux=1 enforcing=1", COMMON | {"same-pair", "unique"})
APPARMOR = ("security=apparmor apparmor=1", COMMON | {"enforced", "profiles-removed"})


@pytest.fixture(scope="module")
def images() -> MacImages:
    return mac_images()


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    found = Cli(tmp_path)
    yield found
    found.clean()


@pytest.mark.parametrize(("words", "promises"), [SELINUX, APPARMOR], ids=["selinux", "apparmor"])
def test_vms_under_a_real_lsm(words: str, promises: set[str], images: MacImages, cli: Cli, tmp_path: Path) -> None:
    payload = tmp_path / "payload.tar"
    more = {"cache/guest": Path(default_paths().cache) / "guest", "bios.img": bios_disk(tmp_path / "bios.img")}
    write_payload(payload, (SCRIPT,), more)
    cmdline = f"console=ttyS0 root=/dev/vda rw quiet systemd.unit={UNIT} systemd.show_status=0 {words}"
    spec = tmp_path / "mac.toml"
    spec.write_text(
        f'name = "mac"\n[machine]\nmemory_mib = 1536\nvcpus = 2\naccel = "tcg"\n'
        f'[boot]\nkernel = "{images.kernel}"\ninitrd = "{images.initrd}"\ncmdline = "{cmdline}"\n'
        f'[[disk]]\npath = "{images.root}"\nformat = "raw"\nmode = "overlay"\n'
        f'[[disk]]\npath = "{payload}"\nformat = "raw"\nmode = "read-only"\n'
        "[console]\nlog_max_kib = 1024\n"
    )
    cli.ok("run", "-d", "--timeout-s", str(RUN_S), spec)
    cli("wait", "mac", timeout_s=RUN_S + 60)
    console = cli.ok("logs", "mac").replace("\r", "")
    found = {name: verdict for verdict, name in re.findall(r"mac: (PASS|FAIL) ([a-z-]+)", console)}
    assert "mac: done" in console, console[-4000:]
    assert found == dict.fromkeys(promises, "PASS"), console[-8000:]
    cli.ok("rm", "mac")
