"""Settings of libvirt that the catalogue judges, with the value libvirt takes where a file does not say one.

Defaults as documented in src/qemu/qemu.conf.in and src/remote/libvirtd.conf.in; numbers are texts here.
"""

from __future__ import annotations

from typing import Final

DEFAULT_DEVICES: Final = (
    "/dev/null",
    "/dev/full",
    "/dev/zero",
    "/dev/random",
    "/dev/urandom",
    "/dev/ptmx",
    "/dev/kvm",
    "/dev/userfaultfd",
)

# ``user`` and ``group`` are chosen when libvirt is built; libvirt_config.py works them out.
QEMU: Final[dict[str, str | tuple[str, ...]]] = {
    "security_driver": ("(automatic)",),
    "security_default_confined": "1",
    "security_require_confined": "0",
    "dynamic_ownership": "1",
    "seccomp_sandbox": "-1",
    "namespaces": ("mount",),
    "cgroup_device_acl": DEFAULT_DEVICES,
    "migrate_tls_force": "0",
    "migration_address": "0.0.0.0",  # noqa: S104  what libvirt does
    "vnc_listen": "127.0.0.1",
    "spice_listen": "127.0.0.1",
    "rdp_listen": "127.0.0.1",
    "vnc_password": "",
    "spice_password": "",
    "rdp_password": "",
    "dump_guest_core": "0",
    "max_core": "unlimited",
    "mac_filter": "0",
    "relaxed_acs_check": "0",
    "lock_manager": "",
    "stdio_handler": "logd",
    "sched_core": "none",
    "swtpm_user": "tss",
    "capability_filters": (),
    "allow_disk_format_probing": "0",
}

DAEMON: Final[dict[str, str | tuple[str, ...]]] = {
    "listen_tcp": "0",
    "auth_tcp": "sasl",
    "tls_no_verify_certificate": "0",
    "tls_no_sanity_certificate": "0",
    "tls_allowed_dn_list": (),
    "access_drivers": (),
    "audit_level": "1",
}

# Daemon: (systemd unit without .socket, socket below /run/libvirt) for the read-write, read-only and admin socket.
SOCKETS: Final[dict[str, tuple[tuple[str, str], tuple[str, str], tuple[str, str]]]] = {
    "libvirtd": (
        ("libvirtd", "libvirt-sock"),
        ("libvirtd-ro", "libvirt-sock-ro"),
        ("libvirtd-admin", "libvirt-admin-sock"),
    ),
    "virtqemud": (
        ("virtqemud", "virtqemud-sock"),
        ("virtqemud-ro", "virtqemud-sock-ro"),
        ("virtqemud-admin", "virtqemud-admin-sock"),
    ),
    "virtproxyd": (
        ("virtproxyd", "libvirt-sock"),
        ("virtproxyd-ro", "libvirt-sock-ro"),
        ("virtproxyd-admin", "virtproxyd-admin-sock"),
    ),
}
PERMISSION_KEYS: Final = (
    ("unix_sock_rw_perms", "0777"),
    ("unix_sock_ro_perms", "0777"),
    ("unix_sock_admin_perms", "0700"),
)
