"""Layer host: what every VM of this machine stands on.

A launch repeats these aloud; only a host policy makes them stop it.
"""

from __future__ import annotations

from casemate.controls.catalogue.common import HOST, OTHERS, S4, S5, S6, kernel, lecture, libvirt
from casemate.controls.expectations import AtLeast, ContainsAny, Equals
from casemate.controls.model import Check, Control, Cost, Gate, Remedies, Severity, Source, Subject

CONTROLS = (
    Control(
        id="os.mac",
        title="The host has mandatory access control",
        question="Is SELinux or AppArmor active on the host?",
        severity=Severity.CRITICAL,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=(Check("host.lsm", ContainsAny(("selinux", "apparmor"))),),
        cuts=(S4, S5),
        scenarios=(HOST, OTHERS),
        cost=Cost(features="programs of the host may need policy of their own"),
        remedies=Remedies(host="boot with lsm=…,apparmor or lsm=…,selinux; on Debian: apt install apparmor"),
        sources=(
            lecture("Isolation entre les machines virtuelles: SELinux, sVirt"),
            Source("ANSSI-BP-028 v2.0", "R45, R46"),
            libvirt("drvqemu: sVirt"),
        ),
        limits="Says that an LSM is active; whether this VM carries its label is proc.mac-label.",
    ),
    Control(
        id="hk.landlock",
        title="The host's kernel has Landlock",
        question="Can the emulator be taken all rights on files by Landlock?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=(Check("host.landlock-abi", AtLeast(1)),),
        cuts=(S4, S5),
        scenarios=(HOST, OTHERS),
        remedies=Remedies(host="a kernel from 5.13 on with CONFIG_SECURITY_LANDLOCK, and landlock in lsm="),
        sources=(kernel("userspace-api/landlock"),),
    ),
    Control(
        id="hk.core-sched",
        title="The host's kernel has core scheduling",
        question="Can VMs be kept from sharing a CPU core with each other at the same moment?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=(Check("host.core-sched", Equals(True)),),
        cuts=(S6,),
        scenarios=(OTHERS,),
        cost=Cost(performance="a sibling thread idles when no thread of the same VM can run"),
        remedies=Remedies(
            host="a kernel with CONFIG_SCHED_CORE, or SMT off: echo off > /sys/devices/system/cpu/smt/control"
        ),
        sources=(kernel("admin-guide/hw-vuln/core-scheduling"), lecture("Matériel: canaux cachés")),
    ),
    Control(
        id="os.userns",
        title="VMs can get a user namespace of their own",
        question="Does the host let Casemate make user namespaces?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=(Check("host.userns", Equals(True)),),
        cuts=(S4,),
        scenarios=(HOST,),
        cost=Cost(features="unprivileged user namespaces widen what users can reach in the kernel (hk.userns)"),
        remedies=Remedies(
            host="sysctl user.max_user_namespaces above 0; on Ubuntu 24.04 the profile from `casemate doctor`"
        ),
        sources=(kernel("user_namespaces(7)"),),
    ),
)
