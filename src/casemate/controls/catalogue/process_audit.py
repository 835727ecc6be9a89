"""Layers confinement and emulator: what only a look at a live process and its helpers shows, whoever started it."""

from __future__ import annotations

from casemate.controls.catalogue.common import HOST, OTHERS, S2, S4, S5, S7, VM, cve, kernel, libvirt
from casemate.controls.expectations import AtLeast, Empty, Equals, OneOf, Present
from casemate.controls.model import Check, Condition, Control, Cost, Gate, Remedies, Severity, Source

_HAS_HELPERS = Condition("proc.helpers", Present(), "no helper process works for this VM")

_KNOWN_HISTORY = Condition("vm.vmm", Equals("qemu"), "the table of vulnerabilities is QEMU's")

CONTROLS: tuple[Control, ...] = (
    Control(
        id="dev.cve",
        title="No known, unfixed vulnerability of the emulator lies in a part that this VM has",
        question="Does each vulnerability that is open in the emulator need a device, back end or format that this VM"
        " does not have?",
        severity=Severity.HIGH,
        gate=Gate.REPORT,
        checks=(Check("dev.cves-open", Empty()), Check("dev.cves-unclear", Empty())),
        applies_when=(_KNOWN_HISTORY,),
        cuts=(S2,),
        scenarios=(HOST,),
        cost=Cost(features="what the part did that is removed, where no update is out"),
        remedies=Remedies(
            host="apply the distribution's updates and start the VM again; or remove the parts: casemate surface",
            libvirt="remove the devices and disks that casemate surface names",
            spec="remove the devices that casemate surface names",
        ),
        sources=(Source("CVE", "src/casemate/data/cves.toml"),),
        limits="Parts by QMP for VMs of Casemate, by the arguments of the live process for others: what their manager"
        " plugged in later is not seen. A document is judged in casemate risk, with the emulator that it names. What no"
        " table lists is not seen; a part that cannot be made out, or a fix that nobody recorded, is unknown.",
    ),
    Control(
        id="proc.helpers",
        title="The VM's helpers are confined too",
        question="Do swtpm, passt, virtiofsd and vhost-user processes run without root, host capabilities and new"
        " privileges, under a filter?",
        severity=Severity.HIGH,
        gate=Gate.REPORT,
        checks=(Check("proc.helpers-faults", Empty()),),
        applies_when=(_HAS_HELPERS,),
        cuts=(S4, S5),
        scenarios=(HOST, OTHERS),
        cost=Cost(features="virtiofsd without root cannot keep owners of files as they are"),
        remedies=Remedies(
            host="start helpers as users of their own; virtiofsd --sandbox namespace --seccomp kill; swtpm --seccomp"
            " action=kill --runas",
            libvirt='swtpm_user = "swtpm" in qemu.conf; <filesystem> with <idmap>; virtqemud keeps passt unprivileged',
            spec="none needed: helpers get walls of their own",
        ),
        sources=(
            cve("CVE-2020-35517", "CVE-2022-0358"),
            libvirt("qemu.conf: swtpm_user; formatdomain: filesystem, idmap"),
            Source("virtiofsd", "README: sandbox, seccomp"),
        ),
        limits="A helper is found by its name, its parent, a socket that both name, or a control group that they share;"
        " capabilities in a user namespace of its own do not count.",
    ),
    Control(
        id="proc.seccomp-default",
        title="Calls that nobody has thought of are refused",
        question="Does the live filter refuse the system calls that it does not name?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        checks=(Check("proc.seccomp-default", OneOf(("kill", "trap", "errno"))),),
        cuts=(S4,),
        scenarios=(HOST,),
        cost=Cost(features="a new C library may need a call that the list lacks"),
        remedies=Remedies(
            host="an allowlist around the emulator: systemd SystemCallFilter=, or a launcher with one",
            spec="none needed",
        ),
        sources=(
            kernel("userspace-api/seccomp_filter"),
            Source("QEMU", "system/qemu-seccomp.c: its own filter names what is refused and allows the rest"),
        ),
        limits="QEMU's -sandbox is a list of refused calls, so this fails for every VM that has only that.",
    ),
    Control(
        id="proc.seccomp-x32",
        title="The x32 numbers of system calls are closed",
        question="Is a call by an x32 number refused?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        checks=(Check("proc.seccomp-x32", OneOf(("kill", "trap", "errno", "none"))),),
        cuts=(S4,),
        scenarios=(HOST,),
        remedies=Remedies(host="a filter made by libseccomp refuses them by itself", spec="none needed"),
        sources=(kernel("userspace-api/seccomp_filter: pitfalls; x32 shares the architecture of x86-64"),),
        limits="Kernels without CONFIG_X86_X32_ABI refuse them anyway; that is a control of the kernel.",
    ),
    Control(
        id="proc.loader-environment",
        title="No variable puts foreign code into the emulator",
        question="Is the emulator's environment without LD_PRELOAD, LD_AUDIT, LD_LIBRARY_PATH and the like?",
        severity=Severity.HIGH,
        gate=Gate.REPORT,
        checks=(Check("proc.loader-environment", Empty()),),
        cuts=(S4,),
        scenarios=(HOST,),
        remedies=Remedies(
            host="start it with a clean environment (env -i)", libvirt="remove <qemu:env>", spec="none needed"
        ),
        sources=(kernel("ld.so(8): ENVIRONMENT"),),
        limits="Shows what it was started with. A variable whose library is root's may be meant.",
    ),
    Control(
        id="proc.personality",
        title="The emulator's addresses are random",
        question="Is no personality set that fixes addresses or makes memory executable?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        checks=(Check("proc.personality", Equals(0)),),
        cuts=(S4,),
        scenarios=(HOST,),
        remedies=Remedies(host="do not start it through setarch -R, -X or a debugger", spec="none needed"),
        sources=(kernel("personality(2): ADDR_NO_RANDOMIZE, READ_IMPLIES_EXEC"),),
        limits="Any personality other than the ordinary one fails, the harmless ones too.",
    ),
    Control(
        id="proc.oom-score-adj",
        title="A guest that eats memory is killed before others",
        question="Is the emulator not spared when the host's memory runs out?",
        severity=Severity.LOW,
        gate=Gate.REPORT,
        checks=(Check("proc.oom-score-adj", AtLeast(0)),),
        cuts=(S5,),
        scenarios=(OTHERS, HOST),
        cost=Cost(features="the VM may be killed where another process would have been"),
        remedies=Remedies(
            host="OOMScoreAdjust=0 or more in the unit that starts it; or a limit of memory: proc.cgroup"
        ),
        sources=(kernel("proc_pid_oom_score_adj(5)"),),
        limits="With a limit in its control group the emulator dies inside that before the host is short of memory.",
    ),
    Control(
        id="vmm.domain-drift",
        title="The running VM is the domain that is written down",
        question="Has the process exactly the disks, devices, memory, kernel and firmware of libvirt's definition?",
        severity=Severity.HIGH,
        gate=Gate.REPORT,
        checks=(Check("vmm.domain-drift", Empty()),),
        applies_when=(Condition("vmm.manager", Equals("libvirt"), "libvirt wrote down nothing about this VM"),),
        cuts=(S7,),
        scenarios=(VM, HOST),
        remedies=Remedies(
            libvirt="virsh dumpxml and virsh dumpxml --inactive show both; make the change in one of them undone, or"
            " restart the domain"
        ),
        sources=(
            libvirt("formatdomain; virsh dumpxml --inactive"),
            Source("Casemate", "design: declared and observed states are judged apart"),
        ),
        limits="Compares the files below /etc/libvirt/qemu and /run/libvirt/qemu with the process's arguments; devices"
        " plugged in past libvirt, over its monitor, show in neither.",
    ),
)
