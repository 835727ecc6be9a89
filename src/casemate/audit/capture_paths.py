"""What a capture takes from a host: one table, for the collector in Python and for the shell script alike.

A test runs every collector of the audit over a recorder and holds this table against what they ask, so that neither can
change without the other. In patterns ``*`` stands for anything within one name, ``RELEASE`` for the running kernel's,
``PID`` for a process that is an emulator or helps one. Nothing that is not in this table is ever opened.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from casemate.facts.kernel_names_data import SYSCTLS
from casemate.facts.libvirt_names_data import SOCKETS
from casemate.facts.rpm_advisories import CACHES

KIB: Final = 1 << 10
MIB: Final = 1 << 20
TOTAL_BYTES: Final = 64 * MIB
"""All content of one capture together."""


class Kind(enum.StrEnum):
    """What is taken of a path: a file's content, the names in a directory, type with mode and owner, a link's text."""

    CONTENT = "c"
    NAMES = "n"
    STATUS = "s"
    LINK = "l"


class Take(msgspec.Struct, frozen=True):
    """One line of the table. ``through``: name of the filter that the content goes through (`capture_filters.py`).
    ``limit_bytes``: larger files stay behind, and the capture says so."""

    kind: Kind
    pattern: str
    through: str = "whole"
    limit_bytes: int = 64 * KIB


def _take(kind: Kind, text: str, through: str = "whole", limit_bytes: int = 64 * KIB) -> tuple[Take, ...]:
    return tuple(Take(kind, pattern, through, limit_bytes) for pattern in text.split())


_SYSCTL_FILES: Final = " ".join(f"/proc/sys/{name.replace('.', '/')}" for name in SYSCTLS)
_UNIT_DIRS: Final = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
_UNITS: Final = tuple(dict.fromkeys(f"{unit}.socket" for trio in SOCKETS.values() for unit, _ in trio))
_BIN: Final = "/usr/bin /usr/sbin /usr/libexec /usr/local/bin /usr/local/sbin /bin /sbin"
_MODPROBE: Final = "/etc/modprobe.d /run/modprobe.d /usr/local/lib/modprobe.d /usr/lib/modprobe.d /lib/modprobe.d"
_POLKIT: Final = (
    "/etc/polkit-1/rules.d /run/polkit-1/rules.d /usr/local/share/polkit-1/rules.d /usr/share/polkit-1/rules.d"
)
_PKLA: Final = "/etc/polkit-1/localauthority /var/lib/polkit-1/localauthority"

_DNF: Final = " ".join(CACHES)


def _below(folders: str, rest: str) -> str:
    return " ".join(f"{folder}/{name}" for folder in folders.split() for name in rest.split())


HARDWARE: Final[tuple[Take, ...]] = (
    *_take(Kind.CONTENT, "/proc/cpuinfo", "first-cpu", 8 * MIB),
    *_take(Kind.CONTENT, "/proc/meminfo /proc/swaps /sys/devices/system/cpu/online"),
    *_take(Kind.CONTENT, "/sys/devices/system/cpu/smt/active /sys/devices/system/cpu/smt/control"),
    *_take(Kind.NAMES, "/sys/devices/system/cpu/vulnerabilities /sys/class/powercap /sys/devices/system/edac/mc"),
    *_take(Kind.CONTENT, "/sys/devices/system/cpu/vulnerabilities/*"),
    *_take(Kind.CONTENT, "/sys/kernel/mm/ksm/run /sys/kernel/mm/ksm/pages_shared"),
    *_take(Kind.STATUS, "/sys/class/powercap/*/energy_uj"),
    *_take(Kind.NAMES, "/sys/devices/system/edac/mc/mc*"),
    *_take(Kind.CONTENT, "/sys/devices/system/edac/mc/mc*/*/dimm_edac_mode"),
    *_take(Kind.NAMES, "/sys/dev/block /sys/dev/block/*/slaves"),
    *_take(Kind.CONTENT, "/sys/class/block/*/dev /sys/dev/block/*/slaves/*/dev"),
    *_take(Kind.CONTENT, "/sys/dev/block/*/dm/uuid /sys/dev/block/*/backing_dev"),
    *_take(Kind.LINK, "/dev/mapper/*"),
    *_take(Kind.NAMES, "/sys/kernel/iommu_groups /sys/kernel/iommu_groups/*/devices /sys/firmware/acpi/tables"),
    *_take(Kind.CONTENT, "/sys/kernel/iommu_groups/*/type"),
    *_take(Kind.NAMES, "/sys/bus/pci/drivers/vfio-pci /sys/bus/pci/devices /sys/bus/pci/devices/*/vfio-dev"),
    *_take(Kind.LINK, "/sys/bus/pci/devices/*/driver /sys/bus/pci/devices/*/iommu_group"),
    *_take(Kind.CONTENT, "/sys/bus/pci/devices/*/class /sys/bus/pci/devices/*/reset_method"),
    *_take(Kind.STATUS, "/sys/bus/pci/devices/*/physfn /sys/bus/pci/devices/*/reset"),
    *_take(Kind.NAMES, "/sys/bus/thunderbolt/devices /dev/vfio /dev/vfio/devices"),
    *_take(Kind.CONTENT, "/sys/bus/thunderbolt/devices/domain*/iommu_dma_protection"),
    *_take(Kind.STATUS, "/dev/iommu /dev/vfio/* /dev/vfio/devices/*"),
)

KVM: Final[tuple[Take, ...]] = (
    *_take(Kind.STATUS, "/dev/kvm /dev/vhost-net /dev/vhost-scsi /dev/vhost-vsock /dev/vhost-vdpa"),
    *_take(Kind.NAMES, "/sys/module /sys/module/kvm* /sys/module/vfio* /sys/module/vhost*"),
    *_take(Kind.NAMES, "/sys/module/kvm/parameters /sys/module/kvm_intel/parameters /sys/module/kvm_amd/parameters"),
    *_take(Kind.CONTENT, "/sys/module/kvm*/parameters/* /sys/module/kvm*/taint"),
    *_take(Kind.CONTENT, "/sys/module/vfio*/parameters/* /sys/module/vfio*/taint /sys/module/vhost*/taint"),
    *_take(Kind.STATUS, "/proc/xen /usr/lib/xen/bin/xenstored"),
    *_take(Kind.CONTENT, "/sys/hypervisor/type /sys/hypervisor/properties/capabilities"),
    *_take(Kind.NAMES, _MODPROBE),
    *_take(Kind.CONTENT, _below(_MODPROBE, "*.conf"), "no-secrets", 256 * KIB),
    *_take(
        Kind.CONTENT,
        _below("/lib/modules/RELEASE /usr/lib/modules/RELEASE", "modules.builtin modules.dep"),
        "virt-modules",
        8 * MIB,
    ),
)

KERNEL: Final[tuple[Take, ...]] = (
    *_take(Kind.CONTENT, "/proc/version /proc/version_signature /proc/sys/kernel/osrelease /proc/sys/kernel/hostname"),
    *_take(Kind.CONTENT, "/proc/cmdline", "no-secrets"),
    *_take(
        Kind.CONTENT,
        "/proc/config.gz /boot/config-RELEASE /lib/modules/RELEASE/config /usr/lib/modules/RELEASE/config",
        limit_bytes=4 * MIB,
    ),
    *_take(Kind.CONTENT, _SYSCTL_FILES),
    *_take(Kind.CONTENT, "/proc/sys/kernel/core_pattern /proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
    *_take(Kind.CONTENT, "/proc/sys/kernel/unprivileged_userns_clone /proc/sys/kernel/modules_disabled"),
    *_take(Kind.CONTENT, "/proc/sys/kernel/kexec_load_disabled /proc/sys/kernel/unprivileged_bpf_disabled"),
    *_take(
        Kind.CONTENT, "/proc/sys/kernel/sysrq /proc/sys/kernel/io_uring_disabled /proc/sys/user/max_user_namespaces"
    ),
    *_take(Kind.CONTENT, "/proc/sys/kernel/yama/ptrace_scope /proc/sys/vm/unprivileged_userfaultfd"),
    *_take(Kind.STATUS, "/proc/modules /sys/firmware /sys/kernel/security/tpm0/binary_bios_measurements"),
    *_take(Kind.CONTENT, "/proc/sys/kernel/random/entropy_avail /proc/sys/kernel/random/poolsize"),
    *_take(Kind.CONTENT, "/sys/class/misc/hw_random/rng_current"),
    *_take(Kind.STATUS, "/var/lib/systemd/random-seed"),
    *_take(Kind.CONTENT, "/sys/kernel/security/lsm /sys/kernel/security/lockdown"),
    *_take(Kind.CONTENT, "/sys/module/module/parameters/sig_enforce /sys/module/apparmor/parameters/enabled"),
    *_take(Kind.CONTENT, "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"),
    *_take(Kind.CONTENT, "/sys/firmware/efi/efivars/SetupMode-8be4df61-93ca-11d2-aa0d-00e098032b8c"),
    *_take(Kind.NAMES, "/sys/class/tpm"),
    *_take(Kind.CONTENT, _below("/sys/class/dmi/id", "sys_vendor product_name bios_vendor board_vendor")),
)

HOST: Final[tuple[Take, ...]] = (
    *_take(Kind.NAMES, _BIN),
    *_take(Kind.STATUS, _below("/usr/bin /usr/sbin /bin /sbin /usr/local/bin", "passt swtpm newuidmap newgidmap")),
    *_take(Kind.CONTENT, "/etc/os-release", limit_bytes=16 * KIB),
    *_take(Kind.CONTENT, "/etc/passwd", "accounts", 4 * MIB),
    *_take(Kind.CONTENT, "/etc/group", "groups", 4 * MIB),
    *_take(Kind.CONTENT, "/etc/subuid /etc/subgid", limit_bytes=MIB),
    *_take(Kind.CONTENT, "/proc/net/tcp /proc/net/tcp6", "listeners", 16 * MIB),
    *_take(Kind.NAMES, "/sys/class/net /sys/block"),
    *_take(Kind.STATUS, "/sys/class/net/*/bridge /sys/class/net/*/tun_flags /sys/block/nbd*/pid"),
    *_take(Kind.CONTENT, "/sys/block/loop*/loop/backing_file"),
    *_take(Kind.CONTENT, "/proc/self/mountinfo", "no-secrets", 8 * MIB),
    *_take(Kind.CONTENT, "/proc/self/cgroup /proc/self/attr/current", limit_bytes=256 * KIB),
    *_take(Kind.CONTENT, "/sys/fs/selinux/enforce /sys/fs/selinux/booleans/virt_*"),
    *_take(Kind.CONTENT, "/sys/fs/selinux/booleans/staff_use_svirt /sys/fs/selinux/booleans/unprivuser_use_svirt"),
    *_take(Kind.NAMES, "/sys/fs/selinux/booleans /etc/systemd/coredump.conf.d /etc/audit/rules.d"),
    *_take(Kind.CONTENT, "/etc/systemd/coredump.conf /etc/systemd/coredump.conf.d/*", "no-secrets"),
    *_take(Kind.CONTENT, "/etc/audit/audit.rules /etc/audit/rules.d/*.rules", "no-secrets", MIB),
    *_take(Kind.CONTENT, "/var/lib/dpkg/status", "packages", 64 * MIB),
    *_take(Kind.STATUS, "/var/lib/rpm /usr/lib/sysimage/rpm /var/lib/pacman"),
    *_take(Kind.STATUS, _below("/var/lib/rpm /usr/lib/sysimage/rpm", "rpmdb.sqlite Packages Packages.db")),
    *_take(Kind.NAMES, _DNF),
    *_take(Kind.CONTENT, _below(_DNF, "*/repodata/repomd.xml"), "no-secrets", 4 * MIB),
    *_take(Kind.CONTENT, _below(_DNF, "*/repodata/*updateinfo.xml*"), "advisories", 64 * MIB),
    *_take(Kind.NAMES, "/var/lib/apt/lists"),
    *_take(Kind.CONTENT, "/var/lib/apt/lists/*Release", "release-head", 8 * MIB),
    *_take(Kind.CONTENT, "/var/lib/apt/lists/*-security_*_Packages*", "packages", 64 * MIB),
)

VMM: Final[tuple[Take, ...]] = (
    *_take(Kind.NAMES, "/etc/libvirt /etc/libvirt/qemu /etc/libvirt/hooks /run/libvirt/qemu"),
    *_take(Kind.STATUS, "/etc/libvirt /etc/libvirt/*.conf /etc/libvirt/qemu/*.xml /etc/libvirt/secrets"),
    *_take(Kind.STATUS, "/etc/libvirt/hooks /etc/libvirt/hooks/* /etc/pki/libvirt/private/serverkey.pem"),
    *_take(Kind.STATUS, "/run/libvirt/*-sock /run/libvirt/*-sock-ro"),
    *_take(
        Kind.CONTENT,
        _below("/etc/libvirt", f"qemu.conf {' '.join(f'{daemon}.conf' for daemon in SOCKETS)}"),
        "settings",
        MIB,
    ),
    *_take(Kind.CONTENT, "/etc/libvirt/qemu/*.xml /run/libvirt/qemu/*.xml", "no-secrets", 4 * MIB),
    *_take(Kind.NAMES, "/etc/systemd/system /run/systemd/system"),
    *_take(Kind.NAMES, _below("/etc/systemd/system /run/systemd/system", "*.wants *.requires")),
    *_take(Kind.CONTENT, _below(" ".join(_UNIT_DIRS), " ".join(_UNITS)), "no-secrets"),
    *_take(Kind.NAMES, _below(" ".join(_UNIT_DIRS), " ".join(f"{unit}.d" for unit in _UNITS))),
    *_take(Kind.CONTENT, _below(" ".join(_UNIT_DIRS), " ".join(f"{unit}.d/*.conf" for unit in _UNITS)), "no-secrets"),
    *_take(Kind.NAMES, f"{_POLKIT} {_PKLA} {_below(_PKLA, '*')}"),
    *_take(Kind.CONTENT, _below(_POLKIT, "*.rules"), "no-secrets", MIB),
    *_take(Kind.CONTENT, _below(_PKLA, "*/*.pkla"), "no-secrets", MIB),
    *_take(Kind.CONTENT, "/usr/share/polkit-1/actions/org.libvirt.unix.policy", limit_bytes=MIB),
)

EVERY_PROCESS: Final[tuple[Take, ...]] = (
    *_take(Kind.NAMES, "/proc"),
    *_take(Kind.STATUS, "/"),
    *_take(Kind.LINK, "/proc/1/ns/* /proc/self/ns/*"),
    *_take(Kind.CONTENT, "/proc/[0-9]*/stat", limit_bytes=4 * KIB),
)
"""Of other processes also the names below fd, but only those that lead to a machine of KVM (`capture_collect.py`)."""

VM_PROCESS: Final[tuple[Take, ...]] = (
    *_take(Kind.CONTENT, "/proc/PID/cmdline", "arguments", MIB),
    *_take(Kind.CONTENT, "/proc/PID/environ", "loader-variables", MIB),
    *_take(Kind.CONTENT, "/proc/PID/mountinfo", "no-secrets", 8 * MIB),
    *_take(Kind.CONTENT, "/proc/PID/maps", limit_bytes=16 * MIB),
    *_take(Kind.CONTENT, _below("/proc/PID", "status limits cgroup personality oom_score_adj attr/current")),
    *_take(Kind.NAMES, "/proc/PID/task /proc/PID/fd"),
    *_take(Kind.CONTENT, "/proc/PID/task/*/status /proc/PID/fdinfo/*"),
    *_take(Kind.LINK, "/proc/PID/exe /proc/PID/root /proc/PID/fd/* /proc/PID/ns/*"),
    *_take(Kind.STATUS, "/proc/PID/status /proc/PID/root /proc/PID/exe /proc/PID/fd/*"),
)

CGROUP_FILES: Final = (
    *("cgroup.controllers", "memory.max", "pids.max", "cpu.max", "io.max"),
    *("memory.limit_in_bytes", "cpu.cfs_quota_us", "cpu.cfs_period_us"),
)
CGROUP_TOP: Final = "/sys/fs/cgroup"
"""Taken of the groups that emulators, helpers and the capture itself are in, and of all groups above these."""

TABLE: Final[tuple[Take, ...]] = (*HARDWARE, *KVM, *KERNEL, *HOST, *VMM, *EVERY_PROCESS)

ANSWERS: Final[dict[str, tuple[str, ...]]] = {"machine": ("/usr/bin/uname", "-m")}
"""Programs that are asked, by the name of their answer in the capture."""

MERGED: Final = ("/bin", "/sbin", "/lib", "/lib64")
"""Top directories that may be links into /usr: taken as links, and never looked into through the link."""

EMULATOR_NAMES: Final = (
    *("qemu-system-*", "qemu-kvm", "kvm", "firecracker*", "cloud-hyperviso*", "crosvm", "lkvm*", "kvmtool"),
    *("stratovirt", "swtpm", "virtiofsd*", "passt*", "vhost-user-*", "vhost-device-*", "qemu-pr-helper"),
    "qemu-storage-d*",
)
"""Shell patterns of the names of emulators and helpers: at least what `facts/process_find.py` recognises."""

DENIED: Final = (
    *("/etc/shadow*", "/etc/gshadow*", "/etc/ssh/*", "/root/*", "/home/*", "/etc/ssl/private/*", "*/private/*"),
    *("/etc/libvirt/secrets/*", "/etc/libvirt/passwd.db", "*.key", "*key.pem", "*.p12", "*.kdbx", "*/.ssh/*"),
    *("/proc/*/mem", "/proc/kcore", "/proc/keys", "/proc/*/auxv", "/dev/mem", "/dev/sd*", "/dev/nvme*", "/dev/vd*"),
)
"""Never opened for their content, whatever the table says and whichever link leads there; ``*`` also stands for /."""
