"""Layer vmm: who may command libvirt, and how it confines the emulators it starts. Only audits judge these.

These controls are about libvirt's configuration, so a documented default (a declared fact) is enough to judge them.
"""

from __future__ import annotations

from typing import Final

from casemate.controls.catalogue.common import HOST, OTHERS, S3, S5, S7, S9, VM, cve, lecture
from casemate.controls.catalogue.vmm_groups import INSTALLED, qemu_setting, vmm
from casemate.controls.catalogue.vmm_qemu import CONFINEMENT
from casemate.controls.expectations import (
    EachMatches,
    Empty,
    Equals,
    Matches,
    NoneMatches,
    OneOf,
    Present,
)
from casemate.controls.model import Check, Condition, Cost, Severity, Source

_QEMU_CONF: Final = Source("libvirt", "qemu.conf")
_DAEMON_CONF: Final = Source("libvirt", "libvirtd.conf")
_C, _H, _M, _L = Severity.CRITICAL, Severity.HIGH, Severity.MEDIUM, Severity.LOW
_LOOPBACK: Final = Matches(r"127\.\d{1,3}\.\d{1,3}\.\d{1,3}|::1|localhost", "a loopback address")
_CLIENTS: Final = Condition("libvirt.group.libvirt", Present(), "nobody but root may manage VMs")
_TLS_ON: Final = Condition("libvirt.tls", Present(), "libvirt does not listen for TLS")
_HAS_KEY: Final = Condition("libvirt.tls-key", Matches(r"[0-7]{4}", "there is a key"), "libvirt has no server key")


def _each(pattern: str, meaning: str) -> EachMatches:
    return EachMatches(rf"[a-z]+=(?:{pattern})", meaning)


_ACCESS: Final = (
    vmm(
        "vmm.sock",
        (
            Check(
                "libvirt.rw-sockets",
                EachMatches(
                    r"\S+ (?:0[0-7][0-7]0 \S+|[0-7]{4} (?:polkit|sasl))",
                    "closed to others, or guarded by polkit or SASL",
                ),
            ),
        ),
        "libvirt's management socket is closed or guarded",
        "Can any user open the socket through which VMs, and so the host, are commanded as root?",
        _C,
        'keep SocketMode=0666 only with auth_unix_rw = "polkit"; else systemctl edit libvirtd.socket: SocketMode=0660',
        (_DAEMON_CONF, cve("CVE-2020-15708")),
    ),
    vmm(
        "vmm.ro-sock",
        (
            Check(
                "libvirt.ro-sockets",
                EachMatches(
                    r"\S+ (?:0[0-7][0-7]0 \S+|[0-7]{4} (?:sasl|polkit:(?:auth_\w+|no)))",
                    "closed to others, or asking who it is",
                ),
            ),
        ),
        "libvirt's read-only socket is not open to everybody",
        "Can any user talk to libvirt's daemon, even if only to read?",
        _H,
        "systemctl edit libvirtd-ro.socket: SocketMode=0660 and SocketGroup=libvirt; or a polkit rule for "
        'org.libvirt.unix.monitor; or auth_unix_ro = "sasl"',
        (_DAEMON_CONF, cve("CVE-2019-10161")),
        cost=Cost(features="monitoring tools need to be in that group"),
        limits="Reading alone was enough to run code as root in 2019.",
    ),
    vmm(
        "vmm.admin-sock",
        (Check("libvirt.admin-sockets", EachMatches(r"\S+ 0[0-7]00", "root only")),),
        "libvirt's administration socket is root's",
        "Can anybody but root change the daemon itself?",
        _C,
        "systemctl edit libvirtd-admin.socket: SocketMode=0600",
        (Source("libvirt", "libvirtd.conf: unix_sock_admin_perms"),),
    ),
    vmm(
        "vmm.groups",
        (Check("libvirt.group.libvirt", Empty(), minus="host.admins"),),
        "Only administrators manage VMs",
        "Is there a user who may command libvirt (which is as good as root) and who is no administrator?",
        _C,
        "gpasswd -d USER libvirt; give such users an API that checks what they ask (libvirt's access driver polkit)",
        (_DAEMON_CONF, lecture("Gestionnaire de machines virtuelles: accès au VMM = root")),
        cost=Cost(features="these users can no longer start VMs of the system"),
        limits="Administrator: member of sudo, wheel, admin or root. Groups of directory services are not looked at.",
    ),
    vmm(
        "vmm.group-kvm",
        (Check("libvirt.group.kvm", Empty(), minus="host.admins"),),
        "Only VMMs may open /dev/kvm",
        "May a person who is no administrator reach KVM's attack surface directly?",
        _H,
        "gpasswd -d USER kvm, and take away the access list that logind's uaccess tag sets on /dev/kvm",
        (cve("CVE-2026-64561"),),
        cuts=(S7, S3),
        cost=Cost(features="rootless VMs of these users: on a host for that, waive it"),
        limits="Service accounts (libvirt-qemu) are not counted.",
        applies=(),
    ),
    vmm(
        "vmm.group-disk",
        (Check("libvirt.group.disk", Empty(), minus="host.admins"),),
        "Nobody reads disks past the file system",
        "May a person who is no administrator open the block devices that hold images and the host?",
        _C,
        "gpasswd -d USER disk",
        (Source("Debian", "SystemGroups: disk"),),
        cuts=(S5, S7, S9),
        applies=(),
    ),
    vmm(
        "vmm.polkit",
        (
            Check("libvirt.polkit-grants", NoneMatches(r"(?!group:libvirtd? ).*", "no grant beyond the group libvirt")),
            Check("libvirt.polkit-manage", OneOf(("auth_admin", "auth_admin_keep", "no"))),
        ),
        "polkit grants the management of VMs to nobody else",
        "Does a rule let users command libvirt without a password?",
        _C,
        "remove the rule in /etc/polkit-1/rules.d, or narrow it to a group of administrators and auth_admin",
        (Source("libvirt", "auth: polkit"), _DAEMON_CONF),
        limits="Rules are searched, not run: one that grants everything without naming libvirt is not found.",
    ),
    vmm(
        "vmm.acl",
        (Check("libvirt.access-drivers", _each(r"(?:.*,)?polkit(?:,.*)?", "polkit")),),
        "libvirt checks each call of its clients",
        "Is a user who may open libvirt's socket allowed everything with every VM?",
        _M,
        '/etc/libvirt/libvirtd.conf: access_drivers = [ "polkit" ], and rules for org.libvirt.api.*',
        (Source("libvirt", "acl: default none"), _DAEMON_CONF),
        scenarios=(OTHERS, HOST),
        cost=Cost(features="every right has to be granted by a rule"),
        applies=(INSTALLED, _CLIENTS),
    ),
    vmm(
        "vmm.tcp",
        (Check("libvirt.tcp", Empty()),),
        "libvirt does not listen on plain TCP",
        "Can libvirt be commanded over an unencrypted network connection?",
        _C,
        "systemctl disable --now libvirtd-tcp.socket virtproxyd-tcp.socket; listen_tcp = 0; use qemu+ssh://",
        (Source("libvirt", "libvirtd.conf: listen_tcp"),),
    ),
    vmm(
        "vmm.tcp-auth",
        (Check("libvirt.auth-tcp", _each("sasl|polkit", "sasl")),),
        "libvirt on TCP asks who it is",
        "Is whoever reaches libvirt's port already allowed in?",
        _C,
        '/etc/libvirt/libvirtd.conf: auth_tcp = "sasl" and tcp_min_ssf = 112; better no TCP at all (vmm.tcp)',
        (Source("libvirt", "libvirtd.conf: auth_tcp, tcp_min_ssf"),),
    ),
    vmm(
        "vmm.tls",
        (Check("libvirt.tls-no-verify-certificate", _each("0", "0")),),
        "libvirt checks its clients' certificates",
        "Is any client let in by TLS, whoever signed its certificate?",
        _H,
        "/etc/libvirt/libvirtd.conf: remove tls_no_verify_certificate",
        (Source("libvirt", "libvirtd.conf: tls_no_verify_certificate"),),
    ),
    vmm(
        "vmm.tls-sanity",
        (Check("libvirt.tls-no-sanity-certificate", _each("0", "0")),),
        "libvirt checks its own certificate",
        "Would the daemon start with a certificate that is expired or not its own?",
        _M,
        "/etc/libvirt/libvirtd.conf: remove tls_no_sanity_certificate",
        (Source("libvirt", "libvirtd.conf: tls_no_sanity_certificate"),),
    ),
    vmm(
        "vmm.tls-dn",
        (Check("libvirt.tls-allowed-dn-list", _each(".+", "names are listed")),),
        "libvirt names the clients it accepts",
        "Is every certificate of the authority good enough to command this host?",
        _H,
        '/etc/libvirt/libvirtd.conf: tls_allowed_dn_list = [ "CN=…" ]',
        (Source("libvirt", "libvirtd.conf: tls_allowed_dn_list"),),
        applies=(INSTALLED, _TLS_ON),
    ),
    vmm(
        "vmm.tls-key",
        (Check("libvirt.tls-key", Matches(r"0[0-7]00", "readable by its owner only")),),
        "libvirt's key is secret",
        "Can somebody else read the key with which this host proves who it is?",
        _H,
        "chmod 0600 /etc/pki/libvirt/private/serverkey.pem",
        (Source("libvirt", "tlscerts"),),
        applies=(INSTALLED, _HAS_KEY),
    ),
)

_SECRETS: Final = (
    qemu_setting(
        "vmm.migration",
        "migrate-tls-force",
        Equals("1"),
        "Migration is encrypted",
        "Can a VM's memory cross the network in clear?",
        _H,
        "migrate_tls_force = 1, with certificates in place",
        cuts=(S9,),
        scenarios=(VM,),
        sources=(Source("libvirt", "kbase/secureusage: guest migration network"),),
        cost=Cost(features="migration without certificates fails"),
    ),
    qemu_setting(
        "vmm.migration-address",
        "migration-address",
        Matches(r"(?!(?:0\.0\.0\.0|::)$).+", "one address"),
        "Migration arrives on one network",
        "Is an incoming VM accepted on every interface?",
        _M,
        'migration_address = "…", the address in the network that is for it',
        cuts=(S7, S9),
        scenarios=(VM, HOST),
    ),
    qemu_setting(
        "vmm.console",
        "vnc-listen",
        _LOOPBACK,
        "VNC consoles are not on the network",
        "Is every VM's screen and keyboard offered to the network?",
        _H,
        "remove vnc_listen, or vnc_auto_unix_socket = 1",
        cuts=(S7,),
        scenarios=(VM,),
    ),
    qemu_setting(
        "vmm.spice-listen",
        "spice-listen",
        _LOOPBACK,
        "SPICE consoles are not on the network",
        "Is every VM's screen and keyboard offered to the network by SPICE?",
        _H,
        "remove spice_listen, or spice_auto_unix_socket = 1",
        cuts=(S7,),
        scenarios=(VM,),
    ),
    qemu_setting(
        "vmm.rdp-listen",
        "rdp-listen",
        _LOOPBACK,
        "RDP consoles are not on the network",
        "Is every VM's screen and keyboard offered to the network by RDP?",
        _H,
        "remove rdp_listen",
        cuts=(S7,),
        scenarios=(VM,),
    ),
    vmm(
        "vmm.console-password",
        tuple(Check(f"libvirt.qemu.{kind}-password", Equals("")) for kind in ("vnc", "spice", "rdp")),
        "No password of consoles stands in a file",
        "Is there one password for the screens of all VMs, in clear?",
        _M,
        "/etc/libvirt/qemu.conf: remove vnc_password, spice_password and rdp_password; use SASL or a Unix socket",
        (_QEMU_CONF,),
        cuts=(S7, S9),
        scenarios=(VM,),
        limits="A VNC password has eight characters that count.",
    ),
    qemu_setting(
        "vmm.dump-guest-core",
        "dump-guest-core",
        Equals("0"),
        "Crash dumps hold no guest memory",
        "Is the memory of a VM written to the host's disk when its emulator crashes?",
        _M,
        "remove dump_guest_core = 1",
        cuts=(S9,),
        scenarios=(VM,),
    ),
    qemu_setting(
        "vmm.max-core",
        "max-core",
        Equals("0"),
        "Emulators dump no core",
        "May an emulator write a core file at all?",
        _L,
        "max_core = 0",
        cuts=(S9,),
        scenarios=(VM,),
        cost=Cost(features="crashes of QEMU are harder to report"),
    ),
    vmm(
        "vmm.conf-perm",
        (Check("libvirt.readable-domains", Empty()),),
        "Definitions of VMs are root's",
        "Can users read (passwords of consoles) or write the definitions of VMs?",
        _M,
        "chmod 0600 /etc/libvirt/qemu/*.xml",
        (Source("ANSSI-BP-028 v2.0", "R50"),),
        cuts=(S7, S9),
        scenarios=(VM,),
    ),
    vmm(
        "vmm.secrets-perm",
        (Check("libvirt.secrets-mode", OneOf(("0700", "0500", "absent"))),),
        "libvirt's secrets are root's",
        "Can somebody else list or read the keys of encrypted disks?",
        _H,
        "chmod 0700 /etc/libvirt/secrets",
        (Source("libvirt", "formatsecret"),),
        cuts=(S9,),
        scenarios=(VM,),
    ),
    vmm(
        "vmm.conf-writable",
        (Check("libvirt.writable-configs", Empty()),),
        "Only root writes libvirt's configuration",
        "Can somebody else change how VMs are confined?",
        _C,
        "chown root:root and chmod go-w what is listed",
        (Source("ANSSI-BP-028 v2.0", "R50"),),
    ),
    vmm(
        "vmm.hooks",
        (Check("libvirt.hooks-writable", Empty()),),
        "Only root writes libvirt's hooks",
        "Can somebody else place a script that libvirt runs as root?",
        _C,
        "chown root:root and chmod go-w /etc/libvirt/hooks and what is in it",
        (Source("libvirt", "hooks"),),
    ),
    vmm(
        "vmm.audit",
        (Check("libvirt.audit-level", _each("2", "2")),),
        "libvirt insists on audit records",
        "Is it recorded which VM was given which disk and device, or does libvirt go on without?",
        _L,
        "/etc/libvirt/libvirtd.conf: audit_level = 2, with auditd running",
        (Source("libvirt", "libvirtd.conf: audit_level"), Source("libvirt", "auditlog")),
        cost=Cost(features="libvirt does not start while the kernel's audit is off"),
    ),
)

CONTROLS: Final = (*_ACCESS, *CONFINEMENT, *_SECRETS)
