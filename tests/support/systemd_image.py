"""A Debian 12 guest that boots as hosts do: systemd as pid 1, one cgroup hierarchy of version 2, logind, AppArmor.

    <user's cache>/tests/systemd-<key>/     kernel, initrd, root.img (ext4)

A unit runs `systemd_guest.py` after multi-user.target at each boot: it finds out by itself which boot this is.
"""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support import guest_root
from tests.support.guest_root import bootstrap, cached, fill_ext4, run_tool, write_hook

SCRIPTS = tuple(sorted(Path(__file__).parent.glob("systemd_guest*.py")))
USER = "ada"
STORE_MIB = 64
_ROOT_MIB = 900
_PACKAGES = (
    "systemd-sysv,udev,dbus,dbus-user-session,libpam-systemd,linux-image-cloud-amd64,python3,qemu-system-x86,"
    "libseccomp2,procps,uidmap,apparmor,swtpm,passt,iproute2,e2fsprogs"
)
_UNIT = "casemate-guest.service"
# What no test looks at and costs whole seconds where the emulator translates every instruction.
_MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer"),
    *("e2scrub_reap.service", "systemd-pstore.service", "systemd-binfmt.service", "getty@tty1.service"),
)
_FILES = {
    f"/etc/systemd/system/{_UNIT}": """[Unit]
After=multi-user.target
[Service]
Type=exec
WorkingDirectory=-/opt/casemate
ExecStartPre=+/bin/mkdir -p /opt/casemate
ExecStartPre=+/bin/tar -xf /dev/vdb -C /opt/casemate
ExecStart=/usr/bin/python3 -m tests.support.systemd_guest
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
KillMode=process
TimeoutStopSec=30
[Install]
WantedBy=multi-user.target
""",
    "/etc/machine-id": "6a1f2c0b9d3e4f5a8b7c6d5e4f3a2b1e\n",
    "/etc/fstab": "/dev/vdc /var/lib/casemate ext4 defaults,nofail 0 0\n",
    "/etc/hostname": "casemate-systemd\n",
    "/etc/hosts": "127.0.0.1 localhost casemate-systemd\n",
    "/etc/systemd/system.conf.d/patient.conf": "[Manager]\nDefaultTimeoutStartSec=600\nDefaultTimeoutStopSec=120\n",
    "/etc/systemd/user.conf.d/patient.conf": "[Manager]\nDefaultTimeoutStartSec=600\nDefaultTimeoutStopSec=120\n",
}


@dataclass(frozen=True)
class SystemdImages:
    """Files of one build; nobody may write to them."""

    kernel: Path
    initrd: Path
    root: Path


def systemd_images() -> SystemdImages:
    """The images, built when they are not in the cache (about two minutes).

    Raises:
        RuntimeError: a program failed; the message ends with its last words.
    """
    recipe = b"".join(Path(path).read_bytes() for path in (__file__, guest_root.__file__))
    place = cached("systemd", hashlib.sha256(recipe).hexdigest()[:16], _build)
    return SystemdImages(place / "kernel", place / "initrd", place / "root.img")


def write_disks(images: SystemdImages, directory: Path) -> tuple[Path, Path]:
    """A root of its own for one run, which lives through a reboot, and an empty ext4 with fs-verity."""
    root, store = directory / "root.img", directory / "store.img"
    subprocess.run(["cp", "--sparse=always", str(images.root), str(root)], check=True)
    # Small blocks would be another case: fs-verity of Linux 6.1 wants blocks of one page.
    run_tool(["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-O", "verity,^has_journal", str(store), f"{STORE_MIB}M"])
    return root, store


def _build(place: Path) -> None:
    finish = (
        write_hook(_FILES),
        f'chroot "$1" useradd --create-home --shell /bin/bash {USER}',
        'chroot "$1" passwd --quiet --delete root',
        f'chroot "$1" systemctl --quiet enable {_UNIT}',
        f'chroot "$1" systemctl --quiet mask {" ".join(_MASKED)}',
        'touch "$1"/usr "$1"/etc/.updated "$1"/var/.updated',
    )
    root = bootstrap(place, _PACKAGES, finish)
    fill_ext4(root, place / "root.img", _ROOT_MIB)
