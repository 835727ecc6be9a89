"""A Debian 12 guest in which Casemate runs under a real LSM: SELinux enforcing or AppArmor, by kernel command line.

    <user's cache>/tests/mac-<key>/     kernel, initrd, root.img (ext4, labelled with Debian's policy and our module)

Only root can build it: SELinux labels are ``security.`` attributes, which no user namespace may set.
"""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.support import guest_root
from tests.support.guest_root import OWN_MOUNTS, bootstrap, cached, fill_ext4, run_tool, write_hook

SCRIPT = Path(__file__).with_name("mac_guest.py")
POLICY = guest_root.SOURCE / "casemate" / "data" / "casemate.cil"
UNIT = "casemate-mac.service"
_ROOT_MIB = 900
_PACKAGES = (
    "systemd-sysv,linux-image-cloud-amd64,python3,qemu-system-x86,libseccomp2,procps,swtpm,"
    "selinux-policy-default,policycoreutils,selinux-utils,apparmor"
)
_UNIT_TEXT = """[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
ExecStartPre=/bin/mkdir -p /opt/casemate
ExecStartPre=/bin/tar -xf /dev/vdb -C /opt/casemate
ExecStart=/usr/bin/python3 /opt/casemate/tests/support/mac_guest.py
ExecStopPost=/bin/systemctl poweroff -ff
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
"""
_LABEL = "setfiles -F -e /proc /etc/selinux/default/contexts/files/file_contexts /"


@dataclass(frozen=True)
class MacImages:
    """Files of one build; nobody may write to them."""

    kernel: Path
    initrd: Path
    root: Path


def mac_images() -> MacImages:
    """The images, built when they are not in the cache (about two minutes).

    Raises:
        RuntimeError: a program failed; the message ends with its last words.
    """
    recipe = b"".join(path.read_bytes() for path in (Path(__file__), Path(guest_root.__file__), POLICY))
    place = cached("mac", hashlib.sha256(recipe).hexdigest()[:16], _build)
    return MacImages(place / "kernel", place / "initrd", place / "root.img")


def _build(place: Path) -> None:
    finish = (
        write_hook(
            {f"/etc/systemd/system/{UNIT}": _UNIT_TEXT, "/etc/machine-id": "6a1f2c0b9d3e4f5a8b7c6d5e4f3a2b1d\n"}
        ),
        'sed -i "s/^SELINUX=.*/SELINUX=enforcing/" "$1"/etc/selinux/config',
        f'cp {shlex.quote(str(POLICY))} "$1"/root/casemate.cil',
        'chroot "$1" semodule -n -i /root/casemate.cil',
    )
    root = bootstrap(place, _PACKAGES, finish)
    # mmdebstrap's own clean-up is over: nothing changes after the labels.
    label = f'mount -t proc proc "$1"/proc && chroot "$1" {_LABEL}'
    run_tool([*OWN_MOUNTS, "sh", "-ec", label, "sh", str(root)])
    fill_ext4(root, place / "root.img", _ROOT_MIB)
