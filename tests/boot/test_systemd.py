"""Casemate on a host as hosts are: systemd as pid 1, cgroups of version 2 alone, logind, AppArmor, fs-verity.

Inside a Debian 12 guest `tests/support/systemd_guest.py` runs VMs as root and as an ordinary user, by hand and as
units, reboots that guest, and prints one line per promise.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.cli_runner import Cli
from tests.support.guest_root import write_payload
from tests.support.systemd_image import SCRIPTS, systemd_images, write_disks
from tests.support.tiny_guests import bios_disk, pvh_kernel

pytestmark = [
    pytest.mark.boot,
    pytest.mark.skipif(os.geteuid() != 0, reason="the guest's root is built by root"),
    pytest.mark.skipif(
        os.environ.get("CASEMATE_TEST_SYSTEMD") != "1",
        reason="builds a Debian image and nests one TCG in another, ten minutes and more:"
        " CASEMATE_TEST_SYSTEMD=1 ./check runs it",
    ),
]
RUN_S = 5400
LIMITS = "limits-read in-cgroup born-there read-back cpu-enforced pids-enforced memory-enforced dies-of-memory"
PROMISES = {  # story -> what it must show, each name after that of its story unless said otherwise
    "root": f"starts survives-logout io-read io-enforced {LIMITS} end-told cgroup-removed",
    "unit": "made starts status journal read-back network owns-vm dies-with-main restarts-after-failure restart stop"
    " no-cgroup-left exit-read",
    "filtered": "refused nothing-left",
    "tpm": "starts labels read-back same-cgroup gone",
    "verity": "enabled immutable runs told boots read-error changed-not-run verify-told",
    "user": f"starts mac {LIMITS} cgroup-removed",
    "plain": "starts fails-openly doctor nothing-left",
    "user-unit": "starts status read-back network survives-logout restart stop no-cgroup-left ends-with-manager"
    " after-logout",
    "logout": "ends-detached told nothing-left",
}
OTHERS = {
    "user-unit": {"user-manager-no-cgroup-left"},
    "reboot": {"before-reboot", "unit-starts-at-boot", "reboot-told", "reboot-start"}
    | {"reset-told", "reset-start", "reset-no-cgroup-left"},
}
STORIES = " ".join((*PROMISES, "reboot"))


def expected(stories: list[str]) -> set[str]:
    names = {f"{story}-{name}" for story in stories for name in PROMISES.get(story, "").split()}
    return names.union(*(OTHERS.get(story, set()) for story in stories))


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    found = Cli(tmp_path)
    yield found
    found.clean()


def test_vms_on_a_host_with_systemd(cli: Cli, tmp_path: Path) -> None:
    images = systemd_images()
    root, store = write_disks(images, tmp_path)
    stories = os.environ.get("CASEMATE_TEST_SYSTEMD_STORIES", STORIES)  # some of them, for whoever works on one
    (tmp_path / "stories").write_text(stories)
    payload = tmp_path / "payload.tar"
    more = {"stories": tmp_path / "stories", "tiny.elf": pvh_kernel(tmp_path / "tiny.elf")}
    write_payload(payload, SCRIPTS, more | {"bios.img": bios_disk(tmp_path / "bios.img", size_bytes=8 << 20)})
    spec = tmp_path / "host.toml"
    spec.write_text(
        f'name = "host"\n[machine]\nmemory_mib = 1536\nvcpus = 2\naccel = "tcg"\n'
        f'[boot]\nkernel = "{images.kernel}"\ninitrd = "{images.initrd}"\n'
        'cmdline = "console=ttyS0 root=/dev/vda rw quiet systemd.show_status=0'
        ' systemd.mask=serial-getty@ttyS0.service"\n'
        f'[[disk]]\npath = "{root}"\nformat = "raw"\nmode = "persistent"\n'
        f'[[disk]]\npath = "{payload}"\nformat = "raw"\nmode = "read-only"\n'
        f'[[disk]]\npath = "{store}"\nformat = "raw"\nmode = "persistent"\n'
        "[console]\nlog_max_kib = 4096\n"
    )
    cli.ok("run", "-d", "--timeout-s", str(RUN_S), spec)
    cli("wait", "host", timeout_s=RUN_S + 60)
    console = cli.ok("logs", "host").replace("\r", "")
    found = re.findall(r"sysd: (PASS|FAIL) ([a-z-]+)", console)
    assert "sysd: done" in console, console[-8000:]
    assert {name for verdict, name in found if verdict == "FAIL"} == set(), console[-20000:]
    assert {name for _, name in found} == expected(stories.split()), console[-20000:]
    cli.ok("rm", "host")
