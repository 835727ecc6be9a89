"""The operating system of a good host, and one change per control of it; the format is described in `host_tree`."""

from __future__ import annotations

import datetime

from tests.support.host_tree import KERNEL_RELEASE, Content, Folder, Lines, Mutation

from casemate.controls.catalogue import host_audit
from casemate.facts.os_collect import collect_os

# A manual control has no facts to change.
CONTROLS = tuple(control for control in host_audit.CONTROLS if not control.manual)
COLLECTORS = (collect_os,)

LISTS = "/var/lib/apt/lists/mirror.example_debian-security_dists_trixie-security"
PACKAGES = f"{LISTS}_main_binary-amd64_Packages"
INSTALLED = {
    "qemu-system-x86": "1:10.0.2+ds-2",
    "linux-image-amd64": "6.12.110-1",
    f"linux-image-{KERNEL_RELEASE}": "6.12.110-1",
    "libvirt0": "11.3.0-3",
    "ovmf": "2025.02-8",
    "passt": "0.0~git20250503-1",
    "intel-microcode": "3.20250812.1",
    "bash": "5.2",
}
TCP = "/proc/net/tcp"
HEADING = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
MOUNTINFO = "22 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw\n"


def status(**versions: str) -> str:
    """dpkg's status; an underscore stands for a dash."""
    packages = INSTALLED | {name.replace("_", "-"): version for name, version in versions.items()}
    return "\n".join(
        f"Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {version}\n"
        for name, version in packages.items()
    )


def offers(**versions: str) -> dict[str, Content]:
    packages = {name.replace("_", "-"): version for name, version in versions.items()} or {"qemu-system-x86": "1:9.2-1"}
    text = "\n".join(f"Package: {n}\nArchitecture: amd64\nVersion: {v}\n" for n, v in packages.items())
    return {PACKAGES: text}


def release(days: int) -> dict[str, Content]:
    """A Release file that was made ``days`` ago."""
    made = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days, hours=1)
    date = made.strftime("%a, %d %b %Y %H:%M:%S UTC")
    head = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nOrigin: Debian\nLabel: Debian-Security\n"
    return {f"{LISTS}_InRelease": f"{head}Suite: stable-security\nDate: {date}\nSHA256:\n 00 1 x\n"}


def listening(*sockets: str) -> dict[str, Content]:
    """/proc/net/tcp with these ``ADDRESS:PORT`` in the kernel's hexadecimal form."""
    rows = (f"   {n}: {s} 00000000:0000 0A 00000000:00000000 00:00000000 0 0 35 1\n" for n, s in enumerate(sockets))
    return {TCP: HEADING + "".join(rows)}


def present(path: str) -> dict[str, Content]:
    return {path: "program"}


PASSING: dict[str, Content] = {
    "/var/lib/dpkg/status": status(),
    **offers(),
    **release(1),
    **listening("0100007F:170C", "00000000:0050"),
    "/proc/net/tcp6": HEADING,
    "/proc/self/mountinfo": Lines(MOUNTINFO),
    "/sys/block/vda": Folder(),
    "/sys/block/loop0": Folder(),
    "/sys/class/net/eth0": Folder(),
    "/usr/bin/env": "program",
    "/usr/sbin/auditd": "program",
    "/etc/systemd/system/multi-user.target.wants/auditd.service": "unit",
    "/etc/audit/rules.d/vms.rules": (
        "-w /dev/kvm -p rw -k kvm\n-w /etc/libvirt -p wa -k libvirt\n-w /usr/bin/qemu-system-x86_64 -p x -k qemu\n"
    ),
    "/proc/sys/kernel/core_pattern": "|/lib/systemd/systemd-coredump %P %u\n",
    "/etc/systemd/coredump.conf.d/none.conf": "[Coredump]\nStorage=none\n",
    "/sys/fs/selinux/enforce": "1",
    "/sys/fs/selinux/booleans/virt_use_nfs": "0 0",
}

_LOOP: dict[str, Content] = {"/sys/block/loop0/loop/backing_file": "/srv/vms/web.qcow2\n"}

MUTATIONS: dict[str, Mutation | dict[str, Content]] = {
    "os.updates": offers(qemu_system_x86="1:10.0.2+ds-2+deb13u1"),
    "os.updates-kernel": offers(linux_image_amd64="6.12.111-1"),
    "os.updates-libvirt": offers(libvirt0="11.3.0-3+deb13u1"),
    "os.updates-firmware": offers(ovmf="2025.02-8+deb13u1"),
    "os.updates-helpers": offers(passt="0.0~git20250910-1"),
    "os.updates-microcode": offers(intel_microcode="3.20251111.1"),
    "os.package-lists": release(10),
    "os.kernel-running": {"/var/lib/dpkg/status": status(**{"linux-image-6.12.111": "6.12.111-1"})},
    "os.no-guest-mount": {"/proc/self/mountinfo": Lines(plus="30 22 43:1 / /mnt rw - ext4 /dev/nbd0p1 rw")},
    "os.no-nbd": {"/sys/block/nbd0/pid": "812\n"},
    "os.no-loop-image": _LOOP,
    "os.core-dumps": {"/proc/sys/kernel/core_pattern": "core\n"},
    "os.svirt-bools": {"/sys/fs/selinux/booleans/virt_use_nfs": "1 1"},
    "os.no-desktop": present("/usr/bin/gnome-shell"),
    "os.no-containers": present("/usr/bin/dockerd"),
    "os.minimal": present("/usr/bin/gcc"),
    "os.no-mail": present("/usr/sbin/postfix"),
    "os.audit-daemon": {"/etc/systemd/system/multi-user.target.wants/auditd.service": None},
    "os.audit": {"/etc/audit/rules.d/vms.rules": "-w /dev/kvm -p rw\n# -w /etc/libvirt\n-w /usr/bin/qemu-kvm -p x\n"},
    "net.host-exposure": listening("00000000:170C"),
    "net.listen-libvirt": listening("00000000:407D"),
    "net.listen-migration": listening("0A00A8C0:C000"),
    "net.listen-debug": listening("00000000:04D2"),
    "net.admin-listeners": listening("00000000:0016"),
}

MORE_FAILURES: tuple[tuple[str, Mutation | dict[str, Content]], ...] = (
    ("os.core-dumps", {"/proc/sys/fs/suid_dumpable": "1\n"}),
    ("os.core-dumps", {"/etc/systemd/coredump.conf.d/none.conf": "[Coredump]\nStorage=external\n"}),
    (
        "os.no-guest-mount",
        Mutation(
            {**_LOOP, "/proc/self/mountinfo": Lines(plus="30 22 7:0 / /mnt rw - ext4 /dev/loop0p1 rw")},
            also=("os.no-loop-image",),
        ),
    ),
    ("os.no-guest-mount", {"/proc/self/mountinfo": Lines(plus="30 22 0:9 / /mnt rw - fuse.guestmount /dev/fuse rw")}),
    ("net.listen-debug", {"/proc/net/tcp6": HEADING + f"   0: {'0' * 32}:04D2 {'0' * 32}:0000 0A 0 0 0\n"}),
)

_NO_PACKAGES: dict[str, Content] = {"/var/lib/dpkg/status": "Package: bash\nStatus: install ok installed\nVersion: 5\n"}
NOT_APPLICABLE: dict[str, Mutation | dict[str, Content]] = {
    **{
        control.id: _NO_PACKAGES for control in CONTROLS if control.id.startswith("os.updates") and control.applies_when
    },
    "os.svirt-bools": {"/sys/fs/selinux": None},
}

UNKNOWN: dict[str, Mutation | dict[str, Content]] = {
    "os.updates-kernel": _NO_PACKAGES,
    "os.updates": release(31),
    "os.updates-libvirt": {PACKAGES: None},
    "os.package-lists": {f"{LISTS}_InRelease": None},
    "os.kernel-running": {"/proc/sys/kernel/osrelease": "6.1.0-self-made\n"},
    "os.no-guest-mount": {"/sys/block": None},
    "net.host-exposure": {TCP: "nonsense\n"},
    "os.minimal": {"/usr/bin": None},
}
