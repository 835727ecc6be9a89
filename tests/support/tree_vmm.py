"""libvirt of a good host, and one change per control of it; the format is described in `host_tree`."""

from __future__ import annotations

from tests.support.host_tree import Content, File, Folder, Lines, Link, Mutation

from casemate.controls.catalogue import vmm_audit
from casemate.facts.libvirt_config import collect_libvirt

CONTROLS = vmm_audit.CONTROLS
COLLECTORS = (collect_libvirt,)

QEMU_CONF = "/etc/libvirt/qemu.conf"
DAEMON_CONF = "/etc/libvirt/libvirtd.conf"
WANTS = "/etc/systemd/system/sockets.target.wants"
RULE = "/etc/polkit-1/rules.d/50-vms.rules"
KEY = "/etc/pki/libvirt/private/serverkey.pem"
POLICY = "/usr/share/polkit-1/actions/org.libvirt.unix.policy"
GOOD_QEMU = {
    "security_require_confined": "1",
    "migrate_tls_force": "1",
    "migration_address": '"10.9.0.7"',
    "max_core": "0",
    "mac_filter": "1",
    "lock_manager": '"lockd"',
    "sched_core": '"full"',
}
GOOD_DAEMON = {
    "audit_level": "2",
    "access_drivers": '[ "polkit" ]',
    "tls_allowed_dn_list": '["CN=admin.example"]',
    "auth_tcp": '"sasl"',
}


def conf(good: dict[str, str], **changes: str) -> File:
    """A configuration file; an empty value leaves the setting out."""
    lines = (f"{name} = {value}\n" for name, value in (good | changes).items() if value)
    return File("# comment\n" + "".join(lines), 0o600)


def qemu(**changes: str) -> dict[str, Content]:
    return {QEMU_CONF: conf(GOOD_QEMU, **changes)}


def daemon(**changes: str) -> dict[str, Content]:
    return {DAEMON_CONF: conf(GOOD_DAEMON, **changes)}


def policy(manage: str = "auth_admin_keep", monitor: str = "yes") -> str:
    blocks = (
        f'<action id="org.libvirt.unix.{name}"><defaults><allow_any>{result}</allow_any></defaults></action>'
        for name, result in (("manage", manage), ("monitor", monitor))
    )
    return f"<policyconfig>{''.join(blocks)}</policyconfig>\n"


PASSING: dict[str, Content] = {
    **qemu(),
    **daemon(listen_tls="1"),
    f"{WANTS}/libvirtd.socket": Link("/usr/lib/systemd/system/libvirtd.socket"),
    "/usr/lib/systemd/system/libvirtd.socket": "[Socket]\nListenStream=/run/libvirt/libvirt-sock\nSocketMode=0666\n",
    "/run/libvirt/libvirt-sock-ro": File("", 0o660),
    "/run/libvirt/libvirt-admin-sock": File("", 0o600),
    "/etc/libvirt/qemu/web.xml": File("<domain/>", 0o600),
    "/etc/libvirt/hooks/qemu": File("#!/bin/sh\n", 0o755),
    "/etc/libvirt/secrets": Folder(0o700),
    KEY: File("key", 0o600),
    POLICY: policy(),
    "/usr/share/polkit-1/rules.d/60-libvirt.rules": (
        'polkit.addRule(function(a, s) { if (a.id == "org.libvirt.unix.manage" && s.isInGroup("libvirt"))'
        " { return polkit.Result.YES; } });\n"
    ),
    "/etc/passwd": Lines(
        "ada:x:1000:1000::/home/ada:/bin/bash\nbob:x:1001:1001::/home/bob:/bin/bash\n"
        "libvirt-qemu:x:64055:104::/var/lib/libvirt:/usr/sbin/nologin\n"
    ),
    "/etc/group": Lines("sudo:x:27:ada\nlibvirt:x:106:ada\ndisk:x:6:\nlibvirt-qemu:x:64055:\n"),
}

MUTATIONS: dict[str, Mutation | dict[str, Content]] = {
    "vmm.sock": daemon(auth_unix_rw='"none"', listen_tls="1"),
    "vmm.ro-sock": {"/run/libvirt/libvirt-sock-ro": File("", 0o666)},
    "vmm.admin-sock": {"/run/libvirt/libvirt-admin-sock": File("", 0o660)},
    "vmm.groups": {"/etc/group": Lines(minus="libvirt:x:106:ada", plus="libvirt:x:106:ada,bob")},
    "vmm.group-kvm": {"/etc/group": Lines(minus="kvm:x:104:", plus="kvm:x:104:bob")},
    "vmm.group-disk": {"/etc/group": Lines(minus="disk:x:6:", plus="disk:x:6:bob")},
    "vmm.polkit": {RULE: "polkit.addRule(function(a) { if (/^org.libvirt/.test(a.id)) return polkit.Result.YES; });\n"},
    "vmm.acl": daemon(access_drivers="", listen_tls="1"),
    "vmm.tcp": {f"{WANTS}/libvirtd-tcp.socket": Link("/usr/lib/systemd/system/libvirtd-tcp.socket")},
    "vmm.tcp-auth": daemon(auth_tcp='"none"', listen_tls="1"),
    "vmm.tls": daemon(tls_no_verify_certificate="1", listen_tls="1"),
    "vmm.tls-sanity": daemon(tls_no_sanity_certificate="1", listen_tls="1"),
    "vmm.tls-dn": daemon(tls_allowed_dn_list="", listen_tls="1"),
    "vmm.tls-key": {KEY: File("key", 0o640)},
    "vmm.qemu-user": qemu(user='"+0"'),
    "vmm.qemu-group": qemu(group='"root"'),
    "vmm.confined": qemu(security_driver='"none"'),
    "vmm.default-confined": qemu(security_default_confined="0"),
    "vmm.require-confined": qemu(security_require_confined=""),
    "vmm.seccomp": qemu(seccomp_sandbox="0"),
    "vmm.dev-acl": qemu(cgroup_device_acl='["/dev/kvm", "/dev/mem"]'),
    "vmm.namespaces": qemu(namespaces="[]"),
    "vmm.dynamic-ownership": qemu(dynamic_ownership="0"),
    "vmm.no-filters": qemu(capability_filters='[ "sandbox" ]'),
    "vmm.no-probing": qemu(allow_disk_format_probing="1"),
    "vmm.relaxed-acs": qemu(relaxed_acs_check="1"),
    "vmm.lock-manager": qemu(lock_manager=""),
    "vmm.sched-core": qemu(sched_core=""),
    "vmm.mac-filter": qemu(mac_filter="0"),
    "vmm.swtpm-user": qemu(swtpm_user='"root"'),
    "vmm.stdio": qemu(stdio_handler='"file"'),
    "vmm.migration": qemu(migrate_tls_force="0"),
    "vmm.migration-address": qemu(migration_address=""),
    "vmm.console": qemu(vnc_listen='"0.0.0.0"'),
    "vmm.spice-listen": qemu(spice_listen='"::"'),
    "vmm.rdp-listen": qemu(rdp_listen='"192.0.2.1"'),
    "vmm.console-password": qemu(vnc_password='"XYZ12345"'),
    "vmm.dump-guest-core": qemu(dump_guest_core="1"),
    "vmm.max-core": qemu(max_core=""),
    "vmm.conf-perm": {"/etc/libvirt/qemu/web.xml": File("<domain/>", 0o644)},
    "vmm.secrets-perm": {"/etc/libvirt/secrets": Folder(0o755)},
    "vmm.conf-writable": {QEMU_CONF: File(str(conf(GOOD_QEMU).text), 0o600, uid=1000)},
    "vmm.hooks": {"/etc/libvirt/hooks/qemu": File("#!/bin/sh\n", 0o757)},
    "vmm.audit": daemon(audit_level="1", listen_tls="1"),
}

MORE_FAILURES: tuple[tuple[str, Mutation | dict[str, Content]], ...] = (
    ("vmm.polkit", {POLICY: policy(manage="yes")}),
    ("vmm.groups", {"/etc/passwd": Lines(plus="eve:x:1002:106::/home/eve:/bin/bash")}),
    ("vmm.console-password", qemu(spice_password='"x"')),
    ("vmm.tcp", {"/etc/libvirt/libvirtd.conf": conf(GOOD_DAEMON, listen_tcp="1", listen_tls="1")}),
)

# Without a daemon there is nothing of libvirt to judge.
_GONE: dict[str, Content] = {"/etc/libvirt": None, WANTS: None}
NOT_APPLICABLE: dict[str, Mutation | dict[str, Content]] = {
    control.id: _GONE for control in CONTROLS if control.applies_when
}

UNKNOWN: dict[str, Mutation | dict[str, Content]] = {
    "vmm.qemu-user": {QEMU_CONF: "user = root\n"},
    "vmm.sock": {DAEMON_CONF: "auth_unix_rw\n"},
    "vmm.groups": {"/etc/group": None},
}
