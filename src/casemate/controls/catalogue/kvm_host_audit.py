"""Layer KVM: vhost, /dev/kvm, other hypervisors, the level of fixes, hosts that should have no KVM."""

from __future__ import annotations

from casemate.controls.catalogue.common import BLUE_PILL, HOST, S3, S4, S7, S10, cve, kernel, lecture
from casemate.controls.catalogue.kvm_audit import PRESENT
from casemate.controls.expectations import Empty, Equals, NotEquals
from casemate.controls.model import Check, Condition, Control, Cost, Gate, Remedies, Severity, Source, Subject

_NO_VMM = Condition("kvm.vmm-installed", Empty(), "this host has a VMM, so KVM is there for a purpose")


def _no_vhost(name: str, severity: Severity, what: str, cost: str, ids: tuple[str, ...]) -> Control:
    """Neither the module nor the node of one vhost driver."""
    return Control(
        id=f"kvm.vhost-{name}-host",
        title=f"The host's kernel does not handle {what} (vhost-{name})",
        question=f"Is the module vhost_{name} not loaded, and /dev/vhost-{name} not there?",
        severity=severity,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=(Check(f"kvm.vhost-{name}-traces", Empty()),),
        cuts=(S3,),
        scenarios=(HOST,),
        cost=Cost(performance=cost),
        remedies=Remedies(
            host=f"rmmod vhost_{name}; install vhost_{name} /bin/false in /etc/modprobe.d; rm /dev/vhost-{name}"
        ),
        sources=(lecture("Durcissement KVM: pas de vhost-net, pas de vhost-scsi"), cve(*ids)),
        limits="virt-host-validate asks for the opposite. kmod makes the node at boot; opening it loads the module.",
    )


CONTROLS = (
    _no_vhost(
        "net",
        Severity.HIGH,
        "packets of guests",
        "a part of the network throughput and some CPU time",
        ("CVE-2019-14835", "CVE-2020-10942", "CVE-2018-16880", "CVE-2023-1838"),
    ),
    _no_vhost(
        "scsi", Severity.HIGH, "disk requests of guests", "vhost-scsi disks", ("CVE-2015-4036", "CVE-2025-38074")
    ),
    _no_vhost("vsock", Severity.HIGH, "sockets to guests", "none; vsock is not there", ("CVE-2018-14625",)),
    _no_vhost(
        "vdpa", Severity.MEDIUM, "vDPA queues of guests", "vDPA network cards", ("CVE-2021-29266", "CVE-2024-47748")
    ),
    Control(
        id="kvm.vhost-loadable",
        title="No vhost driver can be loaded",
        question="Are the vhost modules neither built in nor loadable?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=(Check("kvm.vhost-loadable", Empty()),),
        cuts=(S3, S4),
        scenarios=(HOST,),
        cost=Cost(performance="none as long as nobody uses vhost"),
        remedies=Remedies(
            host="install vhost_net /bin/false in /etc/modprobe.d, the same for vhost_scsi, vhost_vsock and vhost_vdpa;"
            " or kernel.modules_disabled=1 after boot"
        ),
        sources=(lecture("Durcissement KVM: pas de vhost-net"), kernel("modprobe.d(5): install, blacklist")),
        limits="root can still load a module by its path, unless modules are signed or disabled (hk.modules).",
    ),
    Control(
        id="kvm.vhost-cve-level",
        title="The kernel has the fixes of vhost",
        question="Where vhost is there or could be loaded, has the kernel the fix of every vulnerability of the table?",
        severity=Severity.HIGH,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=(Check("kvm.vhost-cve-open", Empty()),),
        applies_when=(Condition("kvm.vhost-possible", Equals(True), "this kernel has no vhost driver to load"),),
        cuts=(S3,),
        scenarios=(HOST,),
        remedies=Remedies(host="install the kernel's updates and reboot"),
        sources=(cve("CVE-2019-14835", "CVE-2024-0340", "CVE-2024-47748", "CVE-2025-38074"),),
        limits="By version, as in kvm.cve-level.",
    ),
    Control(
        id="kvm.cve-level",
        title="The kernel has the fixes of KVM",
        question="Is the kernel new enough for every KVM vulnerability of the table that concerns this CPU?",
        severity=Severity.HIGH,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=(Check("kvm.cve-open", Empty()),),
        applies_when=(PRESENT,),
        cuts=(S3,),
        scenarios=(HOST,),
        remedies=Remedies(host="install the kernel's updates and reboot; see also os.updates"),
        sources=(cve("CVE-2026-53359", "CVE-2026-64561", "CVE-2026-46113", "CVE-2021-22543", "CVE-2019-14821"),),
        limits=(
            "Compares the version with the fixed versions of the stable series. A vendor's kernel (a suffix behind the"
            " version) that is older by number may have the fix: unknown. One that is new enough passes by its number;"
            " code that the kernel's own source does not have (kvm_pvm) is not covered."
        ),
    ),
    Control(
        id="kvm.dev-acl",
        title="No access control list opens /dev/kvm further",
        question="Are owner and group all that its access control list names?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=(Check("kvm.device-acl", Empty()),),
        applies_when=(PRESENT,),
        cuts=(S7, S3),
        scenarios=(HOST,),
        cost=Cost(features="users at the console get no KVM by logging in"),
        remedies=Remedies(host="setfacl -b /dev/kvm; take TAG+=uaccess out of the udev rule for kvm"),
        sources=(cve("CVE-2026-64561"), kernel("acl(5); systemd: udev tag uaccess")),
        limits="ls -l shows such a list as a + behind the mode only. Mode and owner are kvm.dev-perm.",
    ),
    Control(
        id="kvm.one-hypervisor",
        title="No other hypervisor is in the kernel",
        question="Is no module of another hypervisor, and no vendor module from outside the kernel's source, loaded?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=(Check("kvm.foreign-hypervisors", Empty()),),
        cuts=(S3, S10),
        scenarios=(HOST, BLUE_PILL),
        cost=Cost(features="VirtualBox, VMware Workstation and their like beside KVM; KVM without VT-x (kvm_pvm)"),
        remedies=Remedies(host="rmmod the named module and uninstall its package"),
        sources=(
            lecture("Scénario d'attaque: virtualisation à la volée (Blue Pill)"),
            kernel("arch/x86/kvm: vendor modules"),
        ),
        limits="By the names of known modules: one that hides itself does not show here.",
    ),
    Control(
        id="kvm.module-taint",
        title="The modules of KVM, VFIO and vhost are the kernel's own, signed ones",
        question="Does none of them taint the kernel?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=(Check("kvm.taints", Empty()),),
        cuts=(S10, S3),
        scenarios=(BLUE_PILL, HOST),
        cost=Cost(features="modules built by yourself without a signature"),
        remedies=Remedies(host="use the distribution's modules, or sign yours; module.sig_enforce=1 (hk.modules)"),
        sources=(kernel("admin-guide/tainted-kernels"),),
        limits="What is built in shows no taint; a module that root loads with force does.",
    ),
    Control(
        id="kvm.no-xen",
        title="The host does not run on Xen and has none of its tools",
        question="Are hypervisor, tools and back-end modules of Xen absent?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=(Check("kvm.xen-traces", Empty()),),
        cuts=(S3, S7),
        scenarios=(HOST,),
        cost=Cost(features="Xen guests beside KVM guests"),
        remedies=Remedies(host="boot the kernel without Xen; apt purge xen-utils-common xen-hypervisor-common"),
        sources=(
            lecture("Eviter Xen"),
            Source("Google Cloud", "7 ways we harden our KVM hypervisor"),
            Source("The Register", "2017/01/30"),
        ),
    ),
    Control(
        id="kvm.xen-not-built",
        title="KVM was built without its imitation of Xen",
        question="Is CONFIG_KVM_XEN off in the host's kernel?",
        severity=Severity.LOW,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=(Check("kvm.built-xen", NotEquals("y")),),
        applies_when=(PRESENT,),
        cuts=(S3,),
        scenarios=(HOST,),
        cost=Cost(features="guests made for Xen on KVM"),
        remedies=Remedies(host="a kernel with CONFIG_KVM_XEN off; most distributions have it on"),
        sources=(kernel("arch/x86/kvm/Kconfig: KVM_XEN"), lecture("Durcissement KVM")),
        limits="An emulator that nobody has taken over does not use it; one that was can.",
    ),
    Control(
        id="kvm.hyperv-not-built",
        title="KVM was built without its imitation of Hyper-V",
        question="Is CONFIG_KVM_HYPERV off in the host's kernel?",
        severity=Severity.LOW,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=(Check("kvm.built-hyperv", Equals("n")),),
        applies_when=(
            PRESENT,
            Condition("kvm.built-hyperv", NotEquals("absent"), "before 6.8 KVM cannot be built without it"),
        ),
        cuts=(S3,),
        scenarios=(HOST,),
        cost=Cost(features="Windows guests lose enlightenments and run slower"),
        remedies=Remedies(host="a kernel with CONFIG_KVM_HYPERV off, on hosts without Windows guests"),
        sources=(kernel("arch/x86/kvm/Kconfig: KVM_HYPERV"),),
        limits="Most distributions have it on. For one VM: kvm.no-hyperv-xen.",
    ),
    Control(
        id="kvm.off-elsewhere",
        title="A host without VMs has no KVM running",
        question="Where no VMM is installed, is KVM not loaded?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=(Check("kvm.present", Equals(False)),),
        applies_when=(_NO_VMM,),
        cuts=(S10, S7),
        scenarios=(BLUE_PILL,),
        remedies=Remedies(host="rmmod kvm_intel kvm_amd kvm; blacklist them in /etc/modprobe.d"),
        sources=(
            Source("ANSSI-BP-028 v2.0", "R2, note on DAT-24 R15"),
            lecture("Scénario d'attaque: virtualisation à la volée (Blue Pill)"),
        ),
        limits="Looks for the usual VMMs in the usual places.",
    ),
    Control(
        id="kvm.off-loadable",
        title="On a host without VMs KVM cannot be loaded",
        question="Where no VMM is installed, are KVM's modules blocked?",
        severity=Severity.LOW,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=(Check("kvm.loadable", Empty()),),
        applies_when=(_NO_VMM,),
        cuts=(S10,),
        scenarios=(BLUE_PILL,),
        remedies=Remedies(host="blacklist kvm, kvm_intel and kvm_amd in /etc/modprobe.d"),
        sources=(Source("ANSSI-BP-028 v2.0", "R2, note on DAT-24 R15"), kernel("modprobe.d(5): blacklist")),
        limits="root can load a module all the same: hk.modules.",
    ),
    Control(
        id="kvm.off-firmware",
        title="On a host without VMs VT-x and AMD-V are off in the firmware",
        question="Where no VMM is installed, does the CPU show neither vmx nor svm?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=(Check("cpu.virtualization", Empty()),),
        applies_when=(_NO_VMM,),
        cuts=(S10,),
        scenarios=(BLUE_PILL,),
        remedies=Remedies(host="turn VT-x or SVM off and lock it in the firmware's set-up"),
        sources=(
            Source("ANSSI-BP-028 v2.0", "R2, note on DAT-24 R15"),
            lecture("Scénario d'attaque: virtualisation à la volée (Blue Pill)"),
        ),
        limits="A hypervisor below this system can hide both flags: hk.no-outer-vmm and `casemate detect`.",
    ),
)
