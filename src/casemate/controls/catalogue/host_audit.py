"""Layer host: what else is on the machine that runs VMs, and how current it is. Only audits judge these."""

from __future__ import annotations

from typing import Final

from casemate.controls.catalogue.common import HOST, OTHERS, S2, S3, S4, S5, S6, S7, S8, S9, VM, kernel, lecture
from casemate.controls.expectations import AtMost, Empty, Equals, Expectation, OneOf, Present
from casemate.controls.model import (
    AttackStep,
    Check,
    Condition,
    Control,
    Cost,
    Gate,
    Remedies,
    Scenario,
    Severity,
    Source,
    Subject,
)

_C, _H, _M, _L = Severity.CRITICAL, Severity.HIGH, Severity.MEDIUM, Severity.LOW
_SECURE_USAGE: Final = Source("libvirt", "kbase/secureusage: disk image data access")
_SVIRT: Final = Source("ComplianceAsCode", "selinux-booleans: sebool_virt_*")
_APT: Final = "apt update && apt upgrade; then restart every VM that runs the old version"


def _host(
    control_id: str,
    checks: tuple[Check, ...],
    title: str,
    question: str,
    severity: Severity,
    cuts: tuple[AttackStep, ...],
    remedy: str,
    sources: tuple[Source, ...],
    *,
    scenarios: tuple[Scenario, ...] = (HOST,),
    cost: Cost = Cost(),  # noqa: B008  frozen
    limits: str = "",
    applies: tuple[Condition, ...] = (),
) -> Control:
    return Control(
        id=control_id,
        title=title,
        question=question,
        severity=severity,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=checks,
        cuts=cuts,
        scenarios=scenarios,
        cost=cost,
        remedies=Remedies(host=remedy),
        sources=sources,
        limits=limits,
        applies_when=applies,
    )


def _one(fact: str, expect: Expectation | None = None) -> tuple[Check, ...]:
    return (Check(fact, expect or Empty()),)


def _update(control_id: str, family: str, what: str, severity: Severity, cuts: tuple[AttackStep, ...]) -> Control:
    """No security update of one family waits."""
    return _host(
        control_id,
        _one(f"updates.{family}"),
        f"No security update of {what} waits",
        f"Does this host run {what} with holes that the distribution has already closed?",
        severity,
        cuts,
        _APT,
        (Source("ANSSI-BP-028 v2.0", "R61"), lecture("Systeme d'exploitation: l'hôte est un système classique")),
        scenarios=(HOST, OTHERS),
        limits=f"Compares with the lists of security suites that are on this host (age: os.package-lists); {what} that "
        "no package brought is not seen.",
        # A kernel that no package brought is no reason to be calm: that is unknown.
        applies=()
        if family == "kernel"
        else (Condition(f"updates.has-{family}", Equals(True), f"no package of {what} is installed"),),
    )


CONTROLS: Final = (
    _update("os.updates", "qemu", "QEMU", _H, (S2,)),
    _update("os.updates-kernel", "kernel", "the kernel", _H, (S3, S4)),
    _update("os.updates-libvirt", "libvirt", "libvirt", _H, (S7,)),
    _update("os.updates-firmware", "firmware", "the guests' firmware", _M, (S2,)),
    _update("os.updates-helpers", "helpers", "swtpm, passt and other helpers", _H, (S2,)),
    _update("os.updates-microcode", "microcode", "the processor's microcode", _H, (S6,)),
    _host(
        "os.package-lists",
        _one("updates.age-days", AtMost(7)),
        "The package lists are fresh",
        "Does this host know of this week's security updates?",
        _M,
        (S2, S3),
        "apt update; systemctl enable --now apt-daily.timer",
        (Source("ANSSI-BP-028 v2.0", "R61"),),
        limits="Counts from the date that the archive signed. Lists older than 30 days make os.updates unknown.",
    ),
    _host(
        "os.kernel-running",
        _one("updates.running-kernel", Equals("newest")),
        "The newest installed kernel runs",
        "Was the host restarted since its last kernel update?",
        _H,
        (S3,),
        "reboot, with the VMs shut down or migrated first",
        (Source("ANSSI-BP-028 v2.0", "R61"),),
        scenarios=(HOST, OTHERS),
        limits="Live patches are not looked at.",
    ),
    _host(
        "os.no-guest-mount",
        _one("os.guest-mounts"),
        "No image of a guest is mounted",
        "Does the host's kernel parse a file system that a guest wrote?",
        _C,
        (S8,),
        "umount it, and look into images with guestfish (a VM of its own) or `casemate image`",
        (_SECURE_USAGE, lecture("Hôte et système de fichier: ne pas monter une image sur la machine hôte")),
        limits="Device mapper over an image is not followed back.",
    ),
    _host(
        "os.no-nbd",
        _one("os.nbd-attached"),
        "No image is attached as a network block device",
        "Is an image attached where the host's kernel scans its partitions?",
        _H,
        (S8,),
        "qemu-nbd --disconnect /dev/nbdN",
        (_SECURE_USAGE,),
    ),
    _host(
        "os.no-loop-image",
        _one("os.loop-images"),
        "No image is attached as a loop device",
        "Is an image attached where the host's kernel scans its partitions?",
        _H,
        (S8,),
        "losetup --detach /dev/loopN",
        (_SECURE_USAGE,),
        limits="An image is known by where it lies or by its ending.",
    ),
    _host(
        "os.core-dumps",
        (
            Check("os.core-handler", OneOf(("none", "systemd-none"))),
            Check("sysctl.fs.suid_dumpable", OneOf(("0",))),
        ),
        "Crashes leave no memory of VMs behind",
        "Is the memory of a crashed emulator (and so of its guest) written to disk?",
        _M,
        (S9,),
        "/etc/systemd/coredump.conf: Storage=none and ProcessSizeMax=0; or sysctl kernel.core_pattern='|/bin/false'; "
        "sysctl fs.suid_dumpable=0",
        (Source("libvirt", "qemu.conf: max_core"), Source("ANSSI-BP-028 v2.0", "R14"), kernel("core(5)")),
        scenarios=(VM,),
        cost=Cost(features="crashes of any program are harder to look into"),
        limits="VMs of ours cannot dump core whatever the host does (proc.dumpable, proc.rlimits).",
    ),
    _host(
        "os.svirt-bools",
        _one("os.svirt-booleans"),
        "SELinux gives VMs nothing extra",
        "Was SELinux's policy opened for VMs: network file systems, USB, serial ports, the X server?",
        _M,
        (S4, S5),
        "setsebool -P NAME off, for each that no VM needs",
        (_SVIRT,),
        cost=Cost(features="images on NFS, Samba or FUSE, passed-through USB"),
        applies=(Condition("os.selinux", Equals(True), "this host has no SELinux"),),
    ),
    _host(
        "os.no-desktop",
        _one("os.desktop"),
        "No desktop runs beside the VMs",
        "Is there a graphical system on the host, with all that it brings?",
        _L,
        (S4,),
        "remove what is listed; consoles of VMs are reached from another machine",
        (Source("ANSSI-BP-028 v2.0", "R58, R62"),),
    ),
    _host(
        "os.no-containers",
        _one("os.containers"),
        "No container engine runs beside the VMs",
        "Does another engine share the host's kernel, with a socket that is as good as root?",
        _L,
        (S4, S7),
        "run containers in a VM of their own",
        (Source("ANSSI-BP-028 v2.0", "R58, R62"),),
    ),
    _host(
        "os.minimal",
        _one("os.compilers"),
        "No compiler lies on the host",
        "Does an intruder find tools to build the next stage?",
        _L,
        (S4,),
        "apt purge gcc clang binutils; build elsewhere",
        (Source("ANSSI-BP-028 v2.0", "R58"),),
        limits="Found by the names of their programs.",
    ),
    _host(
        "os.no-mail",
        _one("os.mail"),
        "No mail server runs on the host",
        "Is there a mail server, which a host of VMs does not need?",
        _L,
        (S7,),
        "apt purge postfix exim4; forward with a client only",
        (Source("ANSSI-BP-028 v2.0", "R58, R62"),),
    ),
    _host(
        "os.audit-daemon",
        _one("os.audit-daemon", Equals("enabled")),
        "The audit daemon runs from boot on",
        "Is there a record of who did what on this host?",
        _L,
        (S7,),
        "apt install auditd; systemctl enable --now auditd",
        (Source("ANSSI-BP-028 v2.0", "R73"), kernel("auditd(8)")),
        cost=Cost(performance="grows with the number of rules"),
    ),
    _host(
        "os.audit",
        _one("os.audit-missing"),
        "Access to VMs is recorded",
        "Would anybody notice a use of /dev/kvm, a start of QEMU, a change of libvirt's configuration?",
        _L,
        (S7,),
        "/etc/audit/rules.d/vms.rules: -w /dev/kvm -p rw -k kvm; -w /etc/libvirt -p wa -k libvirt; "
        "-w /usr/bin/qemu-system-x86_64 -p x -k qemu; then augenrules --load",
        (Source("ANSSI-BP-028 v2.0", "R73"), Source("libvirt", "auditlog")),
        limits="Reads the rules' files; whether the kernel has loaded them is not looked at.",
    ),
    _host(
        "net.host-exposure",
        _one("host.listen-consoles"),
        "No console of a VM is on the network",
        "Does something listen on the ports of VNC, SPICE or their web sockets beyond this host?",
        _H,
        (S7,),
        "bind consoles to 127.0.0.1 or a Unix socket, and reach them through ssh",
        (Source("libvirt", "qemu.conf: remote_display_port_min"),),
        scenarios=(VM, HOST),
        limits="TCP 5700-5799 and 5900-5999 of this network namespace; a firewall in front is not looked at.",
    ),
    _host(
        "net.listen-libvirt",
        _one("host.listen-libvirt"),
        "libvirt's ports are closed",
        "Does something listen on libvirt's ports 16509 and 16514 beyond this host?",
        _C,
        (S7,),
        "systemctl disable --now libvirtd-tcp.socket libvirtd-tls.socket; use qemu+ssh://",
        (Source("libvirt", "remote"),),
        limits="What is configured is judged by vmm.tcp; this looks at what listens.",
    ),
    _host(
        "net.listen-migration",
        _one("host.listen-migration"),
        "No migration port is open",
        "Does an emulator wait for the memory of a VM from the network?",
        _H,
        (S7, S9),
        "bind migration to a network of its own (vmm.migration-address) and encrypt it (vmm.migration)",
        (Source("libvirt", "qemu.conf: migration_port_min"),),
        scenarios=(VM, HOST),
        limits="TCP 49152-49215, which other programs may be given by chance; look at who listens.",
    ),
    _host(
        "net.listen-debug",
        _one("host.listen-debug"),
        "No debugger of a VM is on the network",
        "Can somebody attach to a VM's processor through QEMU's GDB stub?",
        _C,
        (S7,),
        "start QEMU without -s and -gdb",
        (Source("QEMU", "system/gdb"),),
        scenarios=(VM,),
        limits="TCP 1234, the stub's usual port.",
    ),
    _host(
        "net.admin-listeners",
        _one("host.admin-listeners"),
        "Administration is not offered on every network",
        "Do administration interfaces of the host listen where guests may reach them?",
        _M,
        (S7,),
        "bind ssh, cockpit and the like to the address of the administration network (ListenAddress), and drop "
        "the rest in the firewall",
        (Source("ANSSI-BP-028 v2.0", "R80"), Source("OpenStack security guide", "Management interfaces")),
        cost=Cost(features="an address for administration has to exist"),
        limits="Known ports on any address but loopback: on one that only administrators reach, waive it.",
    ),
    Control(
        id="net.bridge-input",
        title="Guests on a bridge do not reach the host",
        question="Do the host's firewall rules drop what comes in from the bridges of guests?",
        severity=_H,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        manual="Look at `nft list ruleset`: from each bridge (fact host.bridges) nothing but DHCP and DNS may reach "
        "the host itself. Rules are programs of the kernel; this tool does not run them.",
        applies_when=(Condition("host.bridges", Present(), "this host has no bridge"),),
        cuts=(S7,),
        scenarios=(HOST,),
        remedies=Remedies(host="nft add rule inet filter input iifname BRIDGE drop, after what you need"),
        sources=(
            Source("OpenStack security guide", "Hardening the virtualization layers: virtual hardware, iptables"),
        ),
    ),
)
