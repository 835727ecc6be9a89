"""Measures that governments published (ANSSI, DISA), as data: each with the controls that check it,
or why one host cannot have it.

The words are ours; a measure's own text is at the source. ``read`` says how far that text was read when it was mapped.
"""

from __future__ import annotations

from typing import Final

from casemate.controls.frameworks_model import Framework, Measure, Read

ANSSI: Final = Framework(
    name="anssi",
    title="ANSSI-BP-028 v2.0: configuration of a GNU/Linux system",
    about="The rules that bear on a host of VMs. Accounts, passwords, sudo, partitions, mail and logging services are"
    " outside of the catalogue and not mapped. Of ANSSI's note on virtualisation (DAT-NT-011, 2013) five"
    " recommendations could be read, in copies by others; the rest is not mapped.",
    read=Read.TITLE,
    sources=(
        "ANSSI-BP-028 v2.0 (2022), by number and title in ComplianceAsCode's controls/anssi.yml",
        "ANSSI, Problématiques de sécurité associées à la virtualisation, DAT-NT-011 v1.1 of 2013-09-26: title page,"
        " and parts of its recommendations as 123dok.net and memoireonline.com quote them",
    ),
    measures=(
        Measure(
            id="R1", title="hardware support", controls=("cpu.supervisor-guards", "iommu.on"), partly="DAT-24 asks more"
        ),
        Measure(
            id="R2",
            title="hardware configuration",
            controls=("iommu.on", "iommu.firmware", "kvm.off-firmware"),
            partly="a password of the firmware and its boot order cannot be read",
        ),
        Measure(id="R3", title="UEFI Secure Boot", controls=("hk.secure-boot", "hk.secure-boot-setup")),
        Measure(
            id="R4",
            title="keys of one's own in the firmware",
            cannot="whose the enrolled keys are is the owner's to say",
        ),
        Measure(id="R6", title="command line of the kernel protected", controls=("hk.lockdown", "hk.measured-boot")),
        Measure(
            id="R7",
            title="IOMMU forced on",
            controls=(
                "iommu.on",
                "iommu.no-off-switch",
                "iommu.translate",
                "iommu.no-passthrough-mode",
                "iommu.strict",
            ),
        ),
        Measure(
            id="R8",
            title="memory options on the kernel's command line",
            controls=(
                *("cpu.l1tf", "cpu.l1tf-vmx", "cpu.meltdown", "cpu.spectre-v2", "cpu.ssb", "cpu.mds", "cpu.smt"),
                *("hk.memory", "hk.zeroing", "hk.mmap-min", "hk.weakening"),
            ),
        ),
        Measure(
            id="R9",
            title="kernel settings at run time",
            controls=("hk.dmesg", "hk.leak", "hk.perf", "hk.aslr", "hk.sysrq", "hk.bpf", "hk.panic-on-oops"),
        ),
        Measure(id="R10", title="no more modules are loaded", controls=("hk.modules-disabled", "hk.modules")),
        Measure(id="R11", title="Yama", controls=("hk.ptrace",)),
        Measure(id="R12", title="IPv4 settings", controls=("net.host-sysctl", "hk.bpf-jit")),
        Measure(
            id="R13", title="IPv6 settings", controls=("net.host-sysctl",), partly="redirects and source routes only"
        ),
        Measure(id="R14", title="file system settings", controls=("hk.fs-links", "os.core-dumps"), read=Read.TITLE),
        Measure(id="R15", title="build options: memory", controls=("hk.wx", "hk.stack", "hk.fortify", "hk.vsyscall")),
        Measure(id="R16", title="build options: kernel data structures", controls=("hk.khc-report",)),
        Measure(id="R17", title="build options: allocator", controls=("hk.memory",)),
        Measure(id="R18", title="build options: modules", controls=("hk.modules",)),
        Measure(id="R19", title="build options: abnormal situations", controls=("hk.panic-on-oops",)),
        Measure(id="R20", title="build options: security functions", controls=("hk.landlock", "hk.ptrace")),
        Measure(id="R21", title="build options: compiler plug-ins", controls=("hk.stack", "hk.zeroing")),
        Measure(id="R23", title="build options: kernel behaviours", controls=("hk.kexec",)),
        Measure(id="R25", title="build options: x86-64", controls=("hk.kaslr", "hk.mmap-min", "hk.compat")),
        Measure(
            id="R35",
            title="an account of its own for each service",
            controls=("proc.uid", "proc.uid-unique", "vmm.qemu-user", "vmm.swtpm-user"),
        ),
        Measure(
            id="R37",
            title="mandatory access control",
            controls=("os.mac", "proc.mac-label", "proc.mcs-unique", "vmm.confined", "vmm.default-confined"),
        ),
        Measure(id="R48", title="SELinux booleans", controls=("os.svirt-bools",), partly="those of sVirt"),
        Measure(
            id="R50",
            title="rights of sensitive files",
            controls=("vmm.conf-perm", "vmm.secrets-perm", "vmm.tls-key", "bin.owner"),
        ),
        Measure(
            id="R52",
            title="access to sockets and pipes",
            controls=("vmm.sock", "vmm.ro-sock", "vmm.admin-sock", "vmm.qmp"),
        ),
        Measure(id="R56", title="setuid and setgid programs", controls=("bin.setuid", "bin.bridge-helper")),
        Measure(id="R57", title="setuid root as seldom as possible", controls=("bin.setuid", "bin.bridge-helper")),
        Measure(id="R58", title="few packages", controls=("os.minimal", "os.no-desktop", "os.no-mail")),
        Measure(id="R59", title="official repositories", controls=("bin.provenance",), partly="of the emulator only"),
        Measure(
            id="R61",
            title="regular updates",
            controls=(
                *("os.updates", "os.updates-kernel", "os.updates-libvirt", "os.updates-firmware", "os.updates-helpers"),
                *("os.package-lists", "os.kernel-running", "guest.updates"),
            ),
        ),
        Measure(id="R62", title="few services", controls=("os.no-containers", "os.no-mail", "ent.no-haveged")),
        Measure(
            id="R63",
            title="few features of services",
            controls=("vmm.tcp", "vmm.no-probing", "vmm.hooks", "dev.nodefaults", "vmm.no-raw-args"),
        ),
        Measure(
            id="R64",
            title="least privilege for services",
            controls=("proc.caps", "proc.no-new-privs", "proc.seccomp-on", "proc.fds", "proc.helpers"),
        ),
        Measure(id="R65", title="services apart from each other", controls=("proc.ns", "proc.root", "proc.landlock")),
        Measure(
            id="R66",
            title="components of virtualisation hardened against exploits",
            controls=(
                *("bin.pie", "bin.relro", "bin.nx", "bin.canary", "bin.fortify", "bin.cfi", "proc.no-rwx"),
                *("proc.seccomp-strength", "vmm.seccomp", "dev.surface", "kvm.irqchip-split"),
            ),
        ),
        Measure(
            id="R73",
            title="system activity logged by auditd",
            controls=("os.audit", "os.audit-daemon"),
            partly="only the events that concern VMs are asked for",
            read=Read.TITLE,
        ),
        Measure(
            id="DAT-NT-011, administration",
            title="how hosts and guests are administered is written down; remote access is authenticated and encrypted",
            controls=("vmm.tcp", "vmm.tcp-auth", "vmm.tls", "vmm.polkit", "vmm.sock", "vmm.console-tls"),
            partly="whether it is written down",
            read=Read.TEXT,
        ),
        Measure(
            id="DAT-NT-011, configuration",
            title="the configuration that systems should have is described",
            controls=("vmm.domain-drift", "proc.drift"),
            partly="compares what runs with what is defined; whether that is what should be is the owner's to say",
            read=Read.TEXT,
        ),
        Measure(
            id="DAT-NT-011, updates",
            title="guests are brought up to date in whatever state they are",
            controls=("guest.updates", "os.updates"),
            partly="a guest at rest has to be looked into: casemate audit --guest IMAGE",
            read=Read.TEXT,
        ),
        Measure(
            id="DAT-NT-011, inventory",
            title="where each VM is can be told at any moment",
            cannot="needs an inventory of all hosts",
            read=Read.TEXT,
        ),
        Measure(
            id="DAT-NT-011, partitioning",
            title="the architecture keeps flows apart",
            controls=(
                "net.isolated",
                "net.antispoof",
                "net.egress",
                "net.bridge-input",
                "proc.ns",
                "iommu.group-whole",
            ),
            read=Read.TEXT,
        ),
    ),
)

_DOCTRINE = "banners, accounts, certificates and audit content of a department are outside of this catalogue"

STIG: Final = Framework(
    name="stig",
    title="DISA: Virtual Machine Manager SRG and RHEL 9 STIG",
    about="Requirements about isolation, integrity and attack surface. Of the SRG's 198 requirements most are about"
    f" accounts, banners, sessions and audit records: {_DOCTRINE}.",
    sources=(
        "DISA, Virtual Machine Manager Security Requirements Guide V2R3 of 2025-09-10, as stighub and stigviewer"
        " show it",
        "DISA, RHEL 9 STIG V2R1 (numbers and titles, stigaview) and V2R8 (V-257799, stighub); numbers and checks of"
        " RHEL-09-213025 to 653015 also in InSpec profiles of the STIG and in ComplianceAsCode's list, 2026-11-23",
    ),
    measures=(
        Measure(
            id="V-207497",
            title="a separate execution domain for each guest",
            controls=("dev.kvm", "proc.uid-unique", "proc.mcs-unique", "mem.no-shared-backend", "cpu.ksm"),
        ),
        Measure(
            id="V-207496",
            title="a separate execution domain for each process",
            controls=("proc.ns", "proc.uid", "hk.ptrace"),
        ),
        Measure(
            id="V-207472",
            title="only what is signed is installed: guests, patches, components",
            controls=("bin.provenance", "img.hash", "img.origin", "hk.modules"),
            partly="the package manager's own configuration is not read",
        ),
        Measure(
            id="V-207474",
            title="redundant guests cannot be misused",
            controls=("vmm.domain-drift",),
            partly="which guests are redundant is the owner's to say",
        ),
        Measure(
            id="VMM SRG, ASLR",
            title="address space layout randomisation",
            controls=("hk.aslr", "hk.kaslr", "bin.pie", "proc.personality"),
            read=Read.TITLE,
        ),
        Measure(
            id="VMM SRG, denial of service",
            title="rate limits against denial of service on interfaces",
            controls=("ent.rate", "proc.cgroup", "proc.cgroup-cpu"),
            partly="rates of network interfaces are not judged",
            read=Read.TITLE,
        ),
        Measure(
            id="V-207508",
            title="anomalies of security functions are noticed",
            controls=("proc.drift", "vmm.domain-drift", "os.audit-daemon"),
        ),
        Measure(id="VMM SRG, accounts", title="accounts, banners, sessions", cannot=_DOCTRINE, read=Read.TITLE),
        Measure(
            id="RHEL-09-211015", title="security updates are installed", controls=("os.updates", "os.package-lists")
        ),
        Measure(
            id="RHEL-09-211030",
            title="no graphical target",
            controls=("os.no-desktop",),
            read=Read.TITLE,
        ),
        Measure(id="RHEL-09-211035", title="hardware random numbers feed the pool", controls=("ent.host-sources",)),
        Measure(id="RHEL-09-212035", title="no virtual system calls", controls=("hk.vsyscall",), read=Read.TITLE),
        Measure(id="RHEL-09-212040", title="pages are cleared", controls=("hk.zeroing",), read=Read.TITLE),
        Measure(id="RHEL-09-212045", title="slab objects are cleared", controls=("hk.memory",), read=Read.TITLE),
        Measure(
            id="RHEL-09-212050",
            title="mitigations of processor vulnerabilities",
            controls=("cpu.meltdown", "cpu.no-off-switch", "cpu.vulns"),
            read=Read.TITLE,
        ),
        Measure(id="RHEL-09-213010", title="kernel messages are restricted", controls=("hk.dmesg",), read=Read.TITLE),
        Measure(id="RHEL-09-213015", title="no profiling by users", controls=("hk.perf",), read=Read.TITLE),
        Measure(id="V-257799", title="no other kernel is loaded", controls=("hk.kexec",)),
        Measure(id="RHEL-09-213025", title="kernel addresses are hidden", controls=("hk.leak",), read=Read.TITLE),
        Measure(id="RHEL-09-213070", title="addresses are random", controls=("hk.aslr",), read=Read.TITLE),
        Measure(id="RHEL-09-213075", title="no BPF for users", controls=("hk.bpf",), read=Read.TITLE),
        Measure(id="RHEL-09-213080", title="ptrace is restricted", controls=("hk.ptrace",), read=Read.TITLE),
        Measure(id="RHEL-09-213040", title="no core dumps are stored", controls=("os.core-dumps",), read=Read.TITLE),
        Measure(id="RHEL-09-431010", title="SELinux enforces", controls=("os.mac",), read=Read.TITLE),
        Measure(id="RHEL-09-653015", title="the audit service runs", controls=("os.audit-daemon",), read=Read.TITLE),
    ),
)
