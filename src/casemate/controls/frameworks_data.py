"""Measures that others published, as data: each with the controls that check it, or why one host cannot have it.

The words are ours; a measure's own text is at the source. ``read`` says how far that text was read when it was mapped.
"""

from __future__ import annotations

from typing import Final

from casemate.controls.frameworks_model import Framework, Measure, Read

_FLEET = "needs a fleet whose control plane trusts a host only after the host has proved how it booted"
_MAKER = "it is the work of whoever makes the hypervisor, and no state of a host"
_HARDWARE = "needs hardware of the provider's own between the host's processor and network, disks and management"

GCP7: Final = Framework(
    name="gcp7",
    title="Google: 7 ways we harden our KVM hypervisor",
    about="All seven. What is said about Google's organisation is not for a host to have.",
    sources=(
        "Andy Honig, Nelly Porter: 7 ways we harden our KVM hypervisor at Google Cloud: security in plaintext,"
        " 2017-01-25, cloud.google.com/blog",
    ),
    measures=(
        Measure(id="1", title="proactive vulnerability search", cannot=_MAKER),
        Measure(
            id="2",
            title="reduced attack surface area",
            controls=(
                *("dev.nodefaults", "dev.no-floppy", "dev.no-legacy-nic", "dev.no-legacy-disk", "dev.no-usb"),
                *("dev.no-display", "dev.platform-off", "kvm.irqchip-split", "kvm.no-pit", "kvm.no-pic"),
                *("kvm.nested-off", "kvm.no-vhost-net", "kvm.no-hyperv-xen", "kvm.force-emulation-prefix"),
                *("kvm.vmware-backdoor", "kvm.unrestricted-guest"),
            ),
            partly="which instructions KVM emulates is not for a host to choose",
        ),
        Measure(
            id="3",
            title="non-QEMU implementation: simple, few devices, one architecture",
            controls=(
                "bin.device-types",
                "bin.no-tcg",
                "bin.modules",
                "dev.machine",
                "dev.insecure-types",
                "dev.surface",
            ),
            partly="the emulator stays QEMU; what of it a guest reaches is judged instead",
        ),
        Measure(id="4", title="boot and jobs communication by keys of each host", cannot=_FLEET),
        Measure(
            id="5",
            title="code provenance from boot loader to guest",
            controls=("bin.provenance", "bin.owner", "proc.exe", "img.hash", "hk.secure-boot", "hk.measured-boot"),
            partly="no attestation by somebody else",
        ),
        Measure(
            id="6",
            title="rapid and graceful vulnerability response",
            controls=(
                *("bin.cve", "bin.version", "kvm.cve-level", "os.updates", "os.updates-kernel", "os.kernel-running"),
                "cpu.vulns",
            ),
            partly="how fast, and without stopping guests, is the operator's process",
        ),
        Measure(id="7", title="carefully controlled releases", cannot="staged roll-outs need more hosts than one"),
    ),
)

NITRO: Final = Framework(
    name="nitro",
    title="AWS: the security design of the Nitro System",
    about="The properties that the whitepaper claims. Most rest on Nitro cards; what a KVM host can have of them is"
    " mapped.",
    sources=(
        "The Security Design of the AWS Nitro System, whitepaper of 2024-02-15: introduction, the journey, the EC2"
        " approach to preventing side-channels (docs.aws.amazon.com); read in part",
        "AWS re:Invent 2025, CMP359, slides on the Nitro System: no operator access, encryption",
    ),
    measures=(
        Measure(id="cards", title="devices are emulated on cards, not on the host's processor", cannot=_HARDWARE),
        Measure(
            id="chip",
            title="secure boot of the system from a root of trust in hardware; firmware nobody can change",
            controls=("hk.secure-boot", "hk.secure-boot-setup", "hk.measured-boot", "os.updates-firmware"),
            partly="the board's own firmware is trusted; nothing watches its buses",
        ),
        Measure(
            id="hypervisor",
            title="a minimised hypervisor: nothing that running VMs does not need",
            controls=(
                *("os.minimal", "os.no-desktop", "os.no-containers", "os.no-mail", "bin.device-types", "bin.libraries"),
                *("bin.modules", "dev.surface", "kvm.vhost-net-host", "kvm.no-xen"),
            ),
            partly="there is still a Linux with a shell below the VMs",
        ),
        Measure(
            id="no-dom0",
            title="no privileged guest and no emulator with rights over others",
            controls=(
                "proc.uid",
                "proc.caps",
                "proc.ns",
                "proc.root",
                "proc.fds",
                "proc.seccomp-strength",
                "proc.helpers",
            ),
        ),
        Measure(
            id="side-channels",
            title="no sharing of cores, caches of cores and branch predictors among customers",
            controls=("cpu.core-sched", "cpu.smt", "cpu.ibpb", "cpu.stibp", "cpu.l1tf-flush-always", "cpu.vmscape"),
            partly="memory and last-level cache are shared: no bandwidth or cache partition is judged",
        ),
        Measure(
            id="memory",
            title="no sharing of memory pages among customers",
            controls=("cpu.ksm", "cpu.ksm-host", "cpu.ksm-pages", "mem.no-shared-backend", "mem.template"),
        ),
        Measure(
            id="operators",
            title="no operator can log in or reach a guest's memory",
            controls=("vmm.sock", "vmm.tcp", "vmm.polkit", "vmm.qmp", "guest.agent", "hk.lockdown", "hk.devmem"),
            partly="root of the host reads every guest that no processor encrypts: cc.launch",
        ),
        Measure(
            id="encryption-rest",
            title="disks are encrypted by keys that the host never sees",
            controls=("img.local-encrypted", "img.encrypted"),
            partly="the host holds the keys: nothing keeps them in hardware of its own",
        ),
        Measure(id="encryption-transit", title="traffic among hosts is encrypted by the cards", cannot=_HARDWARE),
        Measure(
            id="encryption-memory",
            title="memory is encrypted",
            controls=("cc.launch", "cc.no-debug", "cc.attest"),
            read=Read.TITLE,
        ),
        Measure(
            id="passive",
            title="the host never opens a connection to the parts that manage it",
            cannot=_HARDWARE,
            read=Read.TITLE,
        ),
        Measure(
            id="live-update",
            title="every part is replaced while guests run",
            cannot="needs parts outside of the host that keep its guests' devices alive meanwhile",
            read=Read.TITLE,
        ),
    ),
)

_BP028_TITLES = "by number and title in ComplianceAsCode's controls/anssi.yml"

ANSSI: Final = Framework(
    name="anssi",
    title="ANSSI-BP-028 v2.0: configuration of a GNU/Linux system",
    about="The rules that bear on a host of VMs. Accounts, passwords, sudo, partitions, mail and logging services are"
    " outside of the catalogue and not mapped. Of ANSSI's note on virtualisation (DAT-NT-011, 2013) five"
    " recommendations could be read, in copies by others; the rest is not mapped.",
    read=Read.TITLE,
    sources=(
        f"ANSSI-BP-028 v2.0 (2022), {_BP028_TITLES}",
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
        Measure(id="R14", title="file system settings", controls=("hk.fs-links",), read=Read.MEMORY),
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
        Measure(id="R73", title="system activity audited", controls=("os.audit", "os.audit-daemon"), read=Read.MEMORY),
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
        "DISA, RHEL 9 STIG V2R1 (numbers and titles, stigaview) and V2R8 (V-257799, stighub)",
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
        Measure(id="RHEL-09-213025", title="kernel addresses are hidden", controls=("hk.leak",), read=Read.MEMORY),
        Measure(id="RHEL-09-213070", title="addresses are random", controls=("hk.aslr",), read=Read.MEMORY),
        Measure(id="RHEL-09-213075", title="no BPF for users", controls=("hk.bpf",), read=Read.MEMORY),
        Measure(id="RHEL-09-213080", title="ptrace is restricted", controls=("hk.ptrace",), read=Read.MEMORY),
        Measure(
            id="RHEL-09-213085", title="no core dumps", controls=("os.core-dumps", "proc.rlimits"), read=Read.MEMORY
        ),
        Measure(id="RHEL-09-431010", title="SELinux enforces", controls=("os.mac",), read=Read.MEMORY),
        Measure(id="RHEL-09-653010", title="audit package and daemon", controls=("os.audit-daemon",), read=Read.MEMORY),
    ),
)
