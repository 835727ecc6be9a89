"""Techniques from a guest straight into the host's kernel, and from a guest to another without any bug."""

from __future__ import annotations

from typing import Final

from casemate.controls.model import AttackStep
from casemate.scenarios.formula import Absent, Holds, Never, every, some
from casemate.scenarios.model import Nature, Node, Technique

_S3, _S6 = AttackStep.S3_GUEST_TO_HOST_KERNEL, AttackStep.S6_GUEST_TO_GUEST
_KERNEL: Final = (Node.GUEST_KERNEL,)
_ANY_GUEST: Final = (Node.GUEST_USER, Node.GUEST_ROOT, Node.GUEST_KERNEL)
_NO_KVM: Final = Absent("kvm.irqchip-split")
"""This control does not apply only under TCG: then KVM emulates nothing for the guest."""
_HARDENED: Final = ("hk.kaslr", "hk.wx", "hk.stack", "hk.memory", "hk.fortify", "hk.weakening")
_FIXED: Final = every("os.updates-kernel", "os.kernel-running")

INTO_THE_HOST_KERNEL: Final = (
    Technique(
        id="kvm.vhost",
        title="bug in a vhost driver of the host's kernel",
        nature=Nature.WEAKNESS,
        sources=_KERNEL,
        target=Node.HOST_ROOT,
        closed_when=every("kvm.no-vhost-net", "kvm.no-vhost-other"),
        steps=(_S3,),
        slows=_HARDENED,
        effort=3,
        history=("vhost-net", "vhost-scsi", "vhost-vsock", "vhost-vdpa"),
        references=("lecture: no vhost-net and vhost-scsi",),
    ),
    Technique(
        id="kvm.irqchip",
        title="bug in the PIC, PIT or IOAPIC that KVM emulates in the kernel",
        nature=Nature.WEAKNESS,
        sources=_KERNEL,
        target=Node.HOST_ROOT,
        closed_when=some(_NO_KVM, every("kvm.irqchip-split", "kvm.no-pic", "kvm.no-pit")),
        steps=(_S3,),
        slows=_HARDENED,
        effort=3,
        history=("kvm-ioapic", "kvm-pit"),
        references=("lecture: no PIC, APIC, IOAPIC in the kernel",),
    ),
    Technique(
        id="kvm.nested",
        title="bug in KVM's nested virtualisation",
        nature=Nature.WEAKNESS,
        sources=_KERNEL,
        target=Node.HOST_ROOT,
        closed_when=some(_NO_KVM, "kvm.nested-off", Holds("kvm.nested-host", or_absent=True)),
        steps=(_S3,),
        slows=_HARDENED,
        effort=3,
        history=("kvm-nested",),
        references=(
            "CVE-2021-3653, CVE-2021-29657",
            "cves.md: KVM nested",
        ),
    ),
    Technique(
        id="kvm.shadow-paging",
        title="bug in KVM's shadow page tables",
        nature=Nature.WEAKNESS,
        sources=_KERNEL,
        target=Node.HOST_ROOT,
        closed_when=some(_NO_KVM, Holds("kvm.two-dim-paging", or_absent=True)),
        steps=(_S3,),
        slows=_HARDENED,
        effort=3,
        history=("kvm-mmu",),
        references=(
            "CVE-2026-53359, CVE-2026-64561",
            "cves.md: KVM MMU",
        ),
    ),
    Technique(
        id="kvm.foreign-interfaces",
        title="bug in an interface of another hypervisor that KVM imitates (Hyper-V, Xen, VMware)",
        nature=Nature.WEAKNESS,
        sources=_KERNEL,
        target=Node.HOST_ROOT,
        closed_when=some(
            _NO_KVM, every(Holds("kvm.no-hyperv-xen", or_absent=True), Holds("kvm.vmware-backdoor", or_absent=True))
        ),
        steps=(_S3,),
        slows=_HARDENED,
        effort=3,
        references=(
            "cves.md: KVM emulator",
            "lecture: avoid Xen",
        ),
    ),
    Technique(
        id="kvm.unsafe-setting",
        title="setting of KVM that is meant for tests",
        nature=Nature.WEAKNESS,
        sources=_KERNEL,
        target=Node.HOST_ROOT,
        closed_when=some(
            _NO_KVM,
            every(
                Holds("kvm.allow-unsafe-mappings", or_absent=True), Holds("kvm.force-emulation-prefix", or_absent=True)
            ),
        ),
        steps=(_S3,),
        effort=3,
        references=(
            "CVE-2021-22543",
            "Linux, virt/kvm: module parameters",
        ),
    ),
    Technique(
        id="kvm.known-bug",
        title="bug of KVM that is known and not yet fixed here",
        nature=Nature.WEAKNESS,
        sources=_KERNEL,
        target=Node.HOST_ROOT,
        closed_when=some(_NO_KVM, every(Holds("kvm.cve-level", or_absent=True), _FIXED)),
        steps=(_S3,),
        slows=_HARDENED,
        effort=2,
        history=("kvm-core", "kvm-mmu", "kvm-lapic"),
        references=(
            "cves.md: KVM",
            "CVE-2022-1158",
        ),
    ),
    Technique(
        id="kvm.passthrough",
        title="device of the host in the guest's hands (DMA, firmware)",
        nature=Nature.WEAKNESS,
        sources=_KERNEL,
        target=Node.HOST_ROOT,
        closed_when=some(
            "iommu.no-hostdev",
            every(
                "iommu.on",
                "iommu.translate",
                "iommu.no-off-switch",
                Holds("iommu.irq-remap", or_absent=True),
                Holds("iommu.no-noiommu", or_absent=True),
                Holds("iommu.group-whole", or_absent=True),
                "iommu.acs",
            ),
        ),
        steps=(_S3,),
        slows=("iommu.strict", "iommu.vf-only", "iommu.reset"),
        effort=3,
        history=("vfio",),
        references=("lecture: PCI passthrough and SR-IOV to avoid",),
    ),
    Technique(
        id="kvm.cpu-leak",
        title="transient execution past KVM into the host's memory",
        nature=Nature.WEAKNESS,
        sources=_ANY_GUEST,
        target=Node.SECRETS,
        closed_when=every(
            "cpu.no-off-switch",
            "cpu.guest-vectors",
            "cpu.l1tf-vmx",
            "cpu.mds",
            "cpu.spectre-v2",
            "cpu.retbleed",
            "cpu.srso",
            "cpu.its",
            "cpu.vmscape",
            "cpu.bhi",
            "cpu.vulns",
        ),
        steps=(_S3, _S6),
        effort=3,
        history=("cpu",),
        references=(
            "CVE-2018-3646 (L1TF), CVE-2025-40300 (VMScape)",
            "lecture: hardware, covert channels",
        ),
    ),
    Technique(
        id="kvm.unknown-bug",
        title="unknown bug in KVM or in the CPU's virtualisation",
        nature=Nature.UNKNOWN_BUG,
        sources=_KERNEL,
        target=Node.HOST_ROOT,
        closed_when=some(_NO_KVM),
        steps=(_S3,),
        slows=_HARDENED,
        effort=4,
        history=("kvm-lapic", "kvm-core", "kvm-mmu"),
        contained_by=_HARDENED,
        references=(
            "lecture: KVM, 30,000 lines in the kernel",
            "KVM Forum 2014, Honig",
        ),
    ),
)

TO_OTHER_GUESTS: Final = (
    Technique(
        id="side.sibling-thread",
        title="side channel between two threads of one core",
        nature=Nature.WEAKNESS,
        sources=_ANY_GUEST,
        target=Node.OTHER_VM_DATA,
        closed_when=some("cpu.smt", Holds("cpu.core-sched")),
        steps=(_S6,),
        slows=("cpu.smt-clean", "cpu.stibp"),
        effort=3,
        history=("cpu",),
        references=(
            "CVE-2018-12126 (MDS)",
            "Linux, hw-vuln/core-scheduling",
        ),
    ),
    Technique(
        id="side.same-core",
        title="side channel between guests that run on one core in turn",
        nature=Nature.WEAKNESS,
        sources=_ANY_GUEST,
        target=Node.OTHER_VM_DATA,
        closed_when=every(
            "cpu.no-off-switch", "cpu.guest-vectors", "cpu.ibpb", "cpu.l1tf", "cpu.mds", "cpu.gds", "cpu.vulns"
        ),
        steps=(_S6,),
        slows=("cpu.microcode", "kvm.vpmu"),
        effort=3,
        history=("cpu",),
        references=(
            "CVE-2018-3646",
            "Linux, hw-vuln/spectre",
        ),
    ),
    Technique(
        id="side.unknown-channel",
        title="side channel or memory fault of the hardware that nobody knows yet",
        nature=Nature.UNKNOWN_BUG,
        sources=_ANY_GUEST,
        target=Node.OTHER_VM_DATA,
        closed_when=Never("the VMs share a processor, its caches and its memory"),
        steps=(_S6,),
        slows=("cpu.ecc",),
        effort=4,
        contained_by=("cpu.smt", "cpu.core-sched", "cpu.ecc", "cpu.microcode"),
        references=("lecture: secure hardware?",),
    ),
    Technique(
        id="side.merged-pages",
        title="timing of memory pages that the host merges between VMs",
        nature=Nature.WEAKNESS,
        sources=_ANY_GUEST,
        target=Node.OTHER_VM_DATA,
        closed_when=some("cpu.ksm", "cpu.ksm-host"),
        steps=(_S6,),
        effort=3,
        references=(
            "Suzaki et al. 2011, memory deduplication as a threat to the guest OS",
            "Firecracker, prod-host-setup",
        ),
    ),
    Technique(
        id="side.shared-disk",
        title="image that two VMs write",
        nature=Nature.WEAKNESS,
        sources=(Node.GUEST_ROOT, Node.GUEST_KERNEL),
        target=Node.OTHER_VM_DATA,
        closed_when=every("img.exclusive"),
        steps=(_S6,),
        slows=("vmm.lock-manager",),
        effort=2,
        references=(
            "libvirt, locking",
            "OpenStack security guide",
        ),
    ),
    Technique(
        id="side.same-bridge",
        title="forged or overheard packets on a bridge with other VMs",
        nature=Nature.WEAKNESS,
        sources=(Node.GUEST_ROOT, Node.GUEST_KERNEL),
        target=Node.OTHER_VM_DATA,
        closed_when=every(Holds("net.antispoof", or_absent=True), Holds("net.isolated", or_absent=True)),
        steps=(_S6,),
        slows=("vmm.mac-filter",),
        effort=1,
        references=(
            "libvirt, nwfilter: clean-traffic",
            "lecture: more networks to manage",
        ),
    ),
    Technique(
        id="side.takes-all",
        title="one guest takes the memory, processor, disk or interrupts of all",
        nature=Nature.WEAKNESS,
        sources=_ANY_GUEST,
        target=Node.AVAILABILITY,
        closed_when=every(
            "proc.cgroup", "proc.cgroup-cpu", Holds("cpu.itlb-multihit"), "vmm.console-bounded", "img.size"
        ),
        steps=(_S6, _S3),
        slows=("ent.rate", "kvm.min-timer-period"),
        effort=1,
        references=(
            "CVE-2018-12207 (iTLB multihit)",
            "Linux, cgroup-v2",
        ),
    ),
    Technique(
        id="net.host-services",
        title="services of the host that the guest can reach",
        nature=Nature.WEAKNESS,
        sources=_ANY_GUEST,
        target=Node.HOST_USER,
        closed_when=some(
            Absent("net.egress"), every("net.host-loopback", Holds("net.bridge-input", or_absent=True), "net.egress")
        ),
        steps=(AttackStep.S7_USER_TO_VMM,),
        slows=("net.admin-listeners",),
        effort=2,
        references=(
            "passt(1), --no-map-gw",
            "lecture: more administration interfaces",
        ),
    ),
)

KERNEL_TECHNIQUES: Final = INTO_THE_HOST_KERNEL + TO_OTHER_GUESTS
