"""Files of a guest that its audit reads, as patterns (``*`` within a name, ``**`` across). Everything else is known by
name only."""

from __future__ import annotations

from typing import Final

WANTED: Final = (
    "/etc/os-release",
    "/usr/lib/os-release",
    "/etc/passwd",
    "/etc/shadow",
    "/etc/group",
    "/etc/sudoers",
    "/etc/sudoers.d/*",
    "/etc/ssh/sshd_config",
    "/etc/ssh/sshd_config.d/*",
    "/usr/lib/ssh/sshd_config",
    "/etc/sysctl.conf",
    "/etc/sysctl.d/*",
    "/usr/lib/sysctl.d/*",
    "/usr/local/lib/sysctl.d/*",
    "/etc/default/grub",
    "/etc/default/grub.d/*",
    "/boot/grub/grub.cfg",
    "/boot/grub2/grub.cfg",
    "/boot/loader/entries/*",
    "/boot/efi/loader/entries/*",
    "/boot/efi/EFI/*/grub.cfg",
    "/etc/kernel/cmdline",
    "/boot/config-*",
    "/usr/lib/modules/*/config",
    "/lib/modules/*/config",
    "/etc/cloud/cloud.cfg",
    "/etc/cloud/cloud.cfg.d/*",
    "/etc/apt/apt.conf.d/*",
    "/etc/dnf/automatic.conf",
    "/etc/machine-id",
    "/var/lib/dpkg/status",
    "/lib/apk/db/installed",
    "/var/lib/apt/lists/*Release",
    "/var/lib/apt/lists/*-security_*",
    "/var/lib/apt/lists/*security*_Packages*",
    "/var/lib/rpm/rpmdb.sqlite*",
    "/usr/lib/sysimage/rpm/rpmdb.sqlite*",
    "/var/lib/rpm/Packages*",
    "/usr/lib/sysimage/rpm/Packages*",
    "/var/cache/dnf/*/repodata/repomd.xml",
    "/var/cache/dnf/*/repodata/*updateinfo*",
    "/var/cache/libdnf5/*/repodata/repomd.xml",
    "/var/cache/libdnf5/*/repodata/*updateinfo*",
)
"""Sorted by subject, not by name."""

MAX_FILE_BYTES: Final = 192 << 20
"""rpm's database of a large installation."""
MAX_TOTAL_BYTES: Final = 384 << 20
