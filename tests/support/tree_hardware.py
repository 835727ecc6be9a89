"""CPU, IOMMU and KVM of a good host, and one change per control of them; the format is described in `host_tree`.

The host: a bare-metal Intel machine that has L1TF and iTLB multihit with everything done against them, SMT off, an
IOMMU with one network function set aside for guests, kvm_intel loaded, and QEMU.
"""

from __future__ import annotations

from tests.support.host_tree import KERNEL_RELEASE, Content, File, Folder, Lines, Link, Mutation, Node, Words
from tests.support.tree_kernel import CONFIG, config

from casemate.controls.catalogue import (
    hardware_audit,
    iommu_audit,
    kvm,
    kvm_audit,
    kvm_host_audit,
    vulnerabilities_audit,
)
from casemate.controls.model import Control, Verdict
from casemate.facts.cpu import collect_cpu
from casemate.facts.fact import Facts, Known
from casemate.facts.iommu import collect_iommu
from casemate.facts.kvm_module import collect_kvm_module

_DEV_PERM = tuple(control for control in kvm.CONTROLS if control.id == "kvm.dev-perm")
CONTROLS: tuple[Control, ...] = (
    *hardware_audit.CONTROLS,
    *vulnerabilities_audit.CONTROLS,
    *iommu_audit.CONTROLS,
    *kvm_audit.CONTROLS,
    *kvm_host_audit.CONTROLS,
    *_DEV_PERM,
)
COLLECTORS = (collect_cpu, collect_iommu, collect_kvm_module)

VULNERABILITIES = "/sys/devices/system/cpu/vulnerabilities"
SMT = "/sys/devices/system/cpu/smt"
KVM = "/sys/module/kvm/parameters"
KVM_INTEL = "/sys/module/kvm_intel/parameters"
KVM_AMD = "/sys/module/kvm_amd/parameters"
GROUPS = "/sys/kernel/iommu_groups"
PCI = "/sys/bus/pci/devices"
NIC = "0000:3b:02.1"
SOUND = "0000:3b:02.2"
RELEASE = "/proc/sys/kernel/osrelease"
TYPICAL = "Mitigation: Clear CPU buffers; SMT disabled"
SPECTRE_V2 = (
    "Mitigation: Enhanced / Automatic IBRS; IBPB: conditional; RSB filling; PBRSB-eIBRS: SW sequence; BHI: BHI_DIS_S"
)


def modules(release: str, built_in: str = "kernel/fs/ext4/ext4.ko\n") -> dict[str, Content]:
    """What depmod wrote for a kernel."""
    return {
        f"/lib/modules/{release}/modules.builtin": built_in,
        f"/lib/modules/{release}/modules.dep": (
            "kernel/arch/x86/kvm/kvm.ko.xz:\nkernel/arch/x86/kvm/kvm-intel.ko.xz: kernel/arch/x86/kvm/kvm.ko.xz\n"
            "kernel/drivers/vhost/vhost_net.ko.xz: kernel/drivers/vhost/vhost.ko.xz\n"
        ),
    }


def running(release: str) -> dict[str, Content]:
    """Another version of the kernel, with all that belongs to it."""
    return {RELEASE: f"{release}\n", f"/boot/config-{release}": config(), **modules(release)}


def text(kind: str, said: str) -> dict[str, Content]:
    """What the kernel says about one vulnerability class."""
    return {f"{VULNERABILITIES}/{kind}": f"{said}\n"}


PASSING: dict[str, Content] = {
    "/proc/cpuinfo": Lines("processor\t: 0\nvendor_id\t: GenuineIntel\nbugs\t\t: l1tf mds itlb_multihit\n"),
    **text("gather_data_sampling", "Mitigation: Microcode"),
    **text("ghostwrite", "Not affected"),
    **text("indirect_target_selection", "Mitigation: Aligned branch/return thunks"),
    **text("itlb_multihit", "KVM: Mitigation: Split huge pages"),
    **text("l1tf", "Mitigation: PTE Inversion; VMX: cache flushes, SMT disabled"),
    **text("mds", TYPICAL),
    **text("meltdown", "Mitigation: PTI"),
    **text("mmio_stale_data", TYPICAL),
    **text("old_microcode", "Not affected"),
    **text("reg_file_data_sampling", "Mitigation: Clear Register File"),
    **text("retbleed", "Mitigation: Enhanced IBRS"),
    **text("spec_rstack_overflow", "Not affected"),
    **text("spec_store_bypass", "Mitigation: Speculative Store Bypass disabled via prctl"),
    **text("spectre_v1", "Mitigation: usercopy/swapgs barriers and __user pointer sanitization"),
    **text("spectre_v2", SPECTRE_V2),
    **text("srbds", "Mitigation: Microcode"),
    **text("tsa", "Not affected"),
    **text("tsx_async_abort", "Mitigation: TSX disabled"),
    **text("vmscape", "Mitigation: IBPB before exit to userspace"),
    f"{SMT}/control": "off\n",
    f"{SMT}/active": "0\n",
    "/sys/kernel/mm/ksm/run": "0\n",
    "/sys/kernel/mm/ksm/pages_shared": "0\n",
    "/proc/swaps": "Filename\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/dm-0   partition\t1048572\t0\t-2\n",
    "/sys/class/block/dm-0/dev": "253:0\n",
    "/sys/dev/block/253:0/dm/uuid": "CRYPT-PLAIN-swap\n",
    "/sys/class/powercap/intel-rapl:0/energy_uj": File("123\n", mode=0o400),
    "/sys/devices/system/edac/mc/mc0/dimm0/dimm_edac_mode": "SECDED\n",
    # IOMMU
    f"{GROUPS}/0/type": "DMA\n",
    f"{GROUPS}/7/type": "DMA\n",
    f"{GROUPS}/7/devices/{NIC}": Link(f"../../../../bus/pci/devices/{NIC}"),
    "/sys/firmware/acpi/tables/DMAR": "DMAR",
    f"{PCI}/{NIC}/class": "0x020000\n",
    f"{PCI}/{NIC}/reset_method": "flr\n",
    f"{PCI}/{NIC}/iommu_group": Link("../../../../kernel/iommu_groups/7"),
    f"{PCI}/{NIC}/driver": Link("../../drivers/vfio-pci"),
    f"{PCI}/{NIC}/physfn": Link("../0000:3b:00.0"),
    f"{PCI}/0000:3b:00.0/class": "0x020000\n",
    f"/sys/bus/pci/drivers/vfio-pci/{NIC}": Link(f"../../devices/{NIC}"),
    "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts": "N\n",
    "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode": "N\n",
    "/dev/vfio/vfio": Node(mode=0o666),
    "/dev/vfio/7": Node(mode=0o600),
    "/sys/bus/thunderbolt/devices/domain0/iommu_dma_protection": "1\n",
    "/proc/cmdline": Words("mitigations=auto,nosmt iommu.passthrough=0 iommu.strict=1 efi=disable_early_pci_dma"),
    # KVM
    "/dev/kvm": Node(mode=0o660, gid=104),
    f"{KVM}/allow_unsafe_mappings": "N\n",
    f"{KVM}/enable_pmu": "N\n",
    f"{KVM}/enable_vmware_backdoor": "N\n",
    f"{KVM}/force_emulation_prefix": "0\n",
    f"{KVM}/ignore_msrs": "N\n",
    f"{KVM}/min_timer_period_us": "200\n",
    f"{KVM}/mitigate_smt_rsb": "N\n",
    f"{KVM}/nx_huge_pages": "Y\n",
    f"{KVM}/report_ignored_msrs": "Y\n",
    f"{KVM}/tdp_mmu": "Y\n",
    f"{KVM_INTEL}/dump_invalid_vmcs": "N\n",
    f"{KVM_INTEL}/ept": "Y\n",
    f"{KVM_INTEL}/nested": "N\n",
    f"{KVM_INTEL}/pt_mode": "0\n",
    f"{KVM_INTEL}/unrestricted_guest": "Y\n",
    f"{KVM_INTEL}/vmentry_l1d_flush": "always\n",
    "/sys/module/kvm_intel/taint": "\n",
    "/proc/modules": "kvm_intel 1 0 - Live 0x0\nkvm 1 1 kvm_intel, Live 0x0\n",
    "/usr/bin/qemu-system-x86_64": File("ELF", mode=0o755),
    "/etc/modprobe.d/vms.conf": "install vhost_net /bin/false\n",
    **modules(KERNEL_RELEASE),
}

# A tree keeps no access control lists.
FACTS: Facts = {"kvm.device-acl": Known((), "test")}

_NO_KVM: dict[str, Content] = {"/dev/kvm": None, "/sys/module/kvm": None, "/sys/module/kvm_intel": None}
_KVM_AGAIN = {path: content for path, content in PASSING.items() if path.startswith(("/dev/kvm", "/sys/module/kvm"))}
_ABOUT_KVM = (
    "kvm.dev-perm",
    "cpu.l1tf-flush-always",
    *(
        control.id
        for control in CONTROLS
        if {"kvm.present", "kvm.vendor-modules"} & {condition.fact for condition in control.applies_when}
        and control.id not in ("kvm.dump-vmcb", "kvm.hyperv-not-built")
    ),
)
_NO_VMM: dict[str, Content] = {"/usr/bin/qemu-system-x86_64": None}
_NO_FLAG: dict[str, Content] = {
    "/proc/cpuinfo": Lines(
        minus="flags\t\t: fpu vme de pse msr nx vmx smep smap ibt", plus="flags\t\t: fpu nx smep smap ibt"
    )
}
_SMT_ON: dict[str, Content] = {f"{SMT}/control": "on\n", f"{SMT}/active": "1\n"}
_ARM: dict[str, Content] = {"/proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\n"}
_UNBOUND: dict[str, Content] = {f"/sys/bus/pci/drivers/vfio-pci/{NIC}": None}
_SHARED: dict[str, Content] = {
    f"{GROUPS}/7/devices/{SOUND}": Link(f"../../../../bus/pci/devices/{SOUND}"),
    f"{PCI}/{SOUND}/class": "0x040300\n",
    f"{PCI}/{SOUND}/driver": Link("../../drivers/snd_hda_intel"),
}

# The package database of the good host knows its own kernel only.
_OTHER_KERNEL = dict.fromkeys(("os.kernel-running", "os.updates-kernel"), Verdict.UNKNOWN)
_VHOST = {"kvm.vhost-cve-level": Verdict.PASS}

CONTEXT: dict[str, dict[str, Content]] = {
    "cpu.stibp": _SMT_ON | text("spectre_v2", SPECTRE_V2.replace("RSB", "STIBP: conditional; RSB")),
    "cpu.smt-rsb": _SMT_ON
    | {
        f"{KVM}/mitigate_smt_rsb": "Y\n",
        "/proc/cpuinfo": Lines(minus="bugs\t\t: l1tf mds itlb_multihit", plus="bugs\t: smt_rsb"),
    },
    "kvm.dump-vmcb": {f"{KVM_AMD}/dump_invalid_vmcb": "N\n", f"{KVM_AMD}/nested": "0\n"},
    "kvm.hyperv-not-built": {CONFIG: config(KVM_HYPERV="n")},
    "kvm.vhost-cve-level": {"/dev/vhost-net": Node()},
    "kvm.off-elsewhere": _NO_KVM | _NO_VMM,
    "kvm.off-loadable": _NO_KVM | _NO_VMM,
    "kvm.off-firmware": _NO_KVM | _NO_VMM | _NO_FLAG,
}

MUTATIONS: dict[str, Mutation | dict[str, Content]] = {
    "cpu.no-off-switch": {"/proc/cmdline": Words(plus="nospectre_v2")},
    "cpu.guest-vectors": {
        "/proc/cmdline": Words(minus="mitigations=auto,nosmt", plus="mitigations=auto,no_guest_host")
    },
    "cpu.smt": Mutation(_SMT_ON, other={"cpu.stibp": Verdict.PASS}),
    "cpu.tsx": {
        "/proc/cpuinfo": Lines(
            minus="flags\t\t: fpu vme de pse msr nx vmx smep smap ibt",
            plus="flags\t\t: fpu vme de pse msr nx vmx smep smap ibt rtm",
        )
    },
    "cpu.smt-rsb": {f"{KVM}/mitigate_smt_rsb": "N\n"},
    "cpu.sysret": Mutation(running("3.14.10"), also=("kvm.cve-level", "iommu.cve-level"), other=_OTHER_KERNEL),
    "cpu.supervisor-guards": {
        "/proc/cpuinfo": Lines(
            minus="flags\t\t: fpu vme de pse msr nx vmx smep smap ibt",
            plus="flags\t\t: fpu vme de pse msr nx vmx smep ibt",
        )
    },
    "cpu.ksm-host": {"/sys/kernel/mm/ksm/run": "1\n"},
    "cpu.ksm-pages": {"/sys/kernel/mm/ksm/pages_shared": "12\n"},
    "cpu.swap": {"/sys/dev/block/253:0/dm/uuid": "LVM-abc\n", "/sys/dev/block/253:0/slaves": Folder()},
    "cpu.energy-counters": {"/sys/class/powercap/intel-rapl:0/energy_uj": File("123\n", mode=0o444)},
    "cpu.ecc": {"/sys/devices/system/edac/mc/mc0/dimm1/dimm_edac_mode": "None\n"},
    "cpu.l1tf": text("l1tf", "Vulnerable; VMX: cache flushes, SMT disabled"),
    "cpu.l1tf-vmx": text("l1tf", "Mitigation: PTE Inversion; VMX: vulnerable, SMT disabled"),
    "cpu.l1tf-flush-always": {f"{KVM_INTEL}/vmentry_l1d_flush": "cond\n"},
    "cpu.mds": text("mds", "Vulnerable: Clear CPU buffers attempted, no microcode; SMT disabled"),
    "cpu.taa": text("tsx_async_abort", "Vulnerable"),
    "cpu.mmio-stale-data": text("mmio_stale_data", "Vulnerable"),
    "cpu.rfds": text("reg_file_data_sampling", "Vulnerable: No microcode"),
    "cpu.gds": text("gather_data_sampling", "Vulnerable: No microcode"),
    "cpu.srbds": text("srbds", "Vulnerable: No microcode"),
    "cpu.meltdown": text("meltdown", "Vulnerable"),
    "cpu.spectre-v1": text("spectre_v1", "Vulnerable: __user pointer sanitization and usercopy barriers only"),
    "cpu.spectre-v2": text("spectre_v2", SPECTRE_V2.replace("Mitigation", "Vulnerable")),
    "cpu.ibpb": text("spectre_v2", SPECTRE_V2.replace("IBPB: conditional", "IBPB: disabled")),
    "cpu.stibp": text("spectre_v2", SPECTRE_V2.replace("RSB", "STIBP: disabled; RSB")),
    "cpu.bhi": text("spectre_v2", SPECTRE_V2.replace("BHI: BHI_DIS_S", "BHI: Vulnerable")),
    "cpu.pbrsb": text("spectre_v2", SPECTRE_V2.replace("SW sequence", "Vulnerable")),
    "cpu.ssb": text("spec_store_bypass", "Vulnerable"),
    "cpu.retbleed": text("retbleed", "Vulnerable"),
    "cpu.srso": text("spec_rstack_overflow", "Vulnerable: Safe RET, no microcode"),
    "cpu.tsa": text("tsa", "Mitigation: Clear CPU buffers: user/kernel boundary"),
    "cpu.its": text("indirect_target_selection", "Vulnerable"),
    "cpu.vmscape": text("vmscape", "Vulnerable"),
    "cpu.itlb-multihit": text("itlb_multihit", "KVM: Vulnerable"),
    "cpu.microcode": text("old_microcode", "Vulnerable"),
    "cpu.vulns": text("ghostwrite", "Vulnerable"),
    "cpu.smt-clean": text("mds", "Mitigation: Clear CPU buffers; SMT vulnerable"),
    "iommu.on": Mutation(
        {GROUPS: Folder()},
        other=dict.fromkeys(("iommu.strict", "iommu.translate"), Verdict.NOT_APPLICABLE),
    ),
    "iommu.firmware": {"/sys/firmware/acpi/tables/DMAR": None, "/sys/firmware/acpi/tables/APIC": "APIC"},
    "iommu.no-off-switch": {"/proc/cmdline": Words(plus="intremap=off")},
    "iommu.translate": {f"{GROUPS}/0/type": "identity\n"},
    "iommu.no-passthrough-mode": {"/proc/cmdline": Words(plus="iommu=pt")},
    "iommu.strict": {f"{GROUPS}/0/type": "DMA-FQ\n"},
    "iommu.early-dma": {"/proc/cmdline": Words(minus="efi=disable_early_pci_dma", plus="efi=no_disable_early_pci_dma")},
    "iommu.irq-remap": {"/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts": "Y\n"},
    "iommu.no-noiommu": {"/sys/module/vfio/parameters/enable_unsafe_noiommu_mode": "Y\n"},
    "iommu.acs": {"/proc/cmdline": Words(plus="pcie_acs_override=downstream")},
    "iommu.group-whole": _SHARED,
    "iommu.reset": {f"{PCI}/{NIC}/reset_method": "\n"},
    "iommu.vf-only": {f"{PCI}/{NIC}/physfn": None},
    "iommu.nodes": {"/dev/vfio/7": Node(mode=0o666)},
    "iommu.thunderbolt": {"/sys/bus/thunderbolt/devices/domain0/iommu_dma_protection": "0\n"},
    "iommu.cve-level": Mutation(running("5.4.10"), also=("kvm.cve-level",), other=_OTHER_KERNEL),
    "kvm.nested-host": {f"{KVM_INTEL}/nested": "Y\n"},
    "kvm.two-dim-paging": {f"{KVM_INTEL}/ept": "N\n"},
    "kvm.tdp-mmu": {f"{KVM}/tdp_mmu": "N\n"},
    "kvm.unrestricted-guest": {f"{KVM_INTEL}/unrestricted_guest": "N\n"},
    "kvm.nx-huge-pages": {f"{KVM}/nx_huge_pages": "never\n"},
    "kvm.allow-unsafe-mappings": {f"{KVM}/allow_unsafe_mappings": "Y\n"},
    "kvm.vmware-backdoor": {f"{KVM}/enable_vmware_backdoor": "Y\n"},
    "kvm.force-emulation-prefix": {f"{KVM}/force_emulation_prefix": "3\n"},
    "kvm.ignore-msrs": {f"{KVM}/ignore_msrs": "Y\n"},
    "kvm.report-ignored-msrs": {f"{KVM}/report_ignored_msrs": "N\n"},
    "kvm.min-timer-period": {f"{KVM}/min_timer_period_us": "0\n"},
    "kvm.vpmu": {f"{KVM}/enable_pmu": "Y\n"},
    "kvm.pt-mode": {f"{KVM_INTEL}/pt_mode": "1\n"},
    "kvm.dump-vmcs": {f"{KVM_INTEL}/dump_invalid_vmcs": "Y\n"},
    "kvm.dump-vmcb": {f"{KVM_AMD}/dump_invalid_vmcb": "Y\n"},
    "kvm.vhost-net-host": Mutation({"/sys/module/vhost_net/parameters/experimental_zcopytx": "0\n"}, other=_VHOST),
    "kvm.vhost-scsi-host": Mutation({"/sys/module/vhost_scsi/refcnt": "0\n"}, other=_VHOST),
    "kvm.vhost-vsock-host": Mutation({"/dev/vhost-vsock": Node(mode=0o660)}, other=_VHOST),
    "kvm.vhost-vdpa-host": Mutation({"/sys/module/vhost_vdpa/refcnt": "0\n"}, other=_VHOST),
    "kvm.vhost-loadable": Mutation(modules(KERNEL_RELEASE, "kernel/drivers/vhost/vhost_vsock.ko\n"), other=_VHOST),
    "kvm.vhost-cve-level": Mutation(running("6.1.77"), also=("kvm.cve-level",), other=_OTHER_KERNEL),
    "kvm.cve-level": Mutation(running("6.12.94"), other=_OTHER_KERNEL),
    "kvm.dev-acl": Mutation(facts={"kvm.device-acl": Known(("user 1000 rw",), "test")}),
    "kvm.one-hypervisor": {"/sys/module/vboxdrv/refcnt": "1\n"},
    "kvm.module-taint": {"/sys/module/kvm_intel/taint": "OE\n"},
    "kvm.no-xen": {"/usr/sbin/xl": "ELF"},
    "kvm.xen-not-built": {CONFIG: config(KVM_XEN="y")},
    "kvm.hyperv-not-built": {CONFIG: config(KVM_HYPERV="y")},
    "kvm.off-elsewhere": Mutation(_KVM_AGAIN, other=dict.fromkeys(_ABOUT_KVM, Verdict.PASS)),
    "kvm.off-loadable": modules(KERNEL_RELEASE, "kernel/arch/x86/kvm/kvm.ko\n"),
    "kvm.off-firmware": {"/proc/cpuinfo": Lines()},
    "kvm.dev-perm": {"/dev/kvm": Node(mode=0o666, gid=104)},
}

MORE_FAILURES: tuple[tuple[str, Mutation | dict[str, Content]], ...] = (
    ("cpu.no-off-switch", {"/proc/cmdline": Words(minus="mitigations=auto,nosmt", plus="mitigations=off")}),
    ("cpu.swap", {"/sys/dev/block/253:0/dm/uuid": None}),
    ("cpu.vulns", text("new_class", "Vulnerable: no microcode")),
    ("iommu.reset", {f"{PCI}/{NIC}/reset_method": None}),
    ("kvm.no-xen", Mutation({"/sys/hypervisor/type": "xen\n"}, also=("hk.no-outer-vmm",))),
    (
        "kvm.vhost-loadable",
        Mutation(
            {"/proc/sys/kernel/modules_disabled": "0\n", "/etc/modprobe.d/vms.conf": "options kvm_intel nested=0\n"},
            also=("hk.modules-disabled",),
            other=_VHOST,
        ),
    ),
)


def _when(change: dict[str, Content], *control_ids: str) -> dict[str, dict[str, Content]]:
    return dict.fromkeys(control_ids, change)


NOT_APPLICABLE: dict[str, dict[str, Content]] = {
    "cpu.l1tf-flush-always": text("l1tf", "Not affected"),
    "cpu.stibp": {},
    "cpu.smt-rsb": {},
    **_when(_ARM, "cpu.tsx", "cpu.supervisor-guards", "kvm.two-dim-paging", "kvm.min-timer-period"),
    **_when({GROUPS: Folder()}, "iommu.translate", "iommu.strict"),
    "iommu.early-dma": {"/sys/firmware/efi": None},
    "iommu.irq-remap": {"/sys/module/vfio_iommu_type1": None},
    "iommu.no-noiommu": {"/sys/module/vfio": None},
    **_when(_UNBOUND, "iommu.group-whole", "iommu.reset", "iommu.vf-only"),
    "iommu.thunderbolt": {"/sys/bus/thunderbolt": None},
    "iommu.cve-level": {"/sys/module/vfio": None},
    **_when(_NO_KVM, "kvm.nested-host", "kvm.cve-level", "kvm.dev-acl", "kvm.xen-not-built"),
    "kvm.nx-huge-pages": text("itlb_multihit", "Not affected"),
    **{
        control_id: {f"{KVM}/{parameter}": None}
        for control_id, parameter in (
            ("kvm.tdp-mmu", "tdp_mmu"),
            ("kvm.allow-unsafe-mappings", "allow_unsafe_mappings"),
            ("kvm.vmware-backdoor", "enable_vmware_backdoor"),
            ("kvm.force-emulation-prefix", "force_emulation_prefix"),
            ("kvm.ignore-msrs", "ignore_msrs"),
            ("kvm.report-ignored-msrs", "report_ignored_msrs"),
            ("kvm.vpmu", "enable_pmu"),
        )
    },
    "kvm.pt-mode": {f"{KVM_INTEL}/pt_mode": None},
    **_when({"/sys/module/kvm_intel": None}, "kvm.unrestricted-guest", "kvm.dump-vmcs"),
    **_when({}, "kvm.dump-vmcb", "kvm.vhost-cve-level", "kvm.hyperv-not-built"),
    **_when({}, "kvm.off-elsewhere", "kvm.off-loadable", "kvm.off-firmware"),
}

UNKNOWN: dict[str, dict[str, Content]] = {
    **_when({"/sys/kernel/mm": None}, "cpu.ksm-host", "cpu.ksm-pages"),
    **_when({VULNERABILITIES: None}, "cpu.vulns", "cpu.smt-clean", "cpu.vmscape", "cpu.l1tf-vmx", "cpu.ibpb"),
    "cpu.mds": text("mds", "Unknown: No mitigations"),
    "cpu.l1tf-vmx": text("l1tf", "Mitigation: PTE Inversion"),
    "cpu.bhi": text("spectre_v2", "Mitigation: Retpolines, IBPB: conditional"),
    "cpu.smt-clean": text("mds", "Mitigation: Clear CPU buffers; SMT Host state unknown"),
    **_when(
        {"/proc/cpuinfo": "processor : 0\nvendor_id : AuthenticAMD\nflags : fpu nx smep smap hypervisor\n"},
        "cpu.smt",
        "cpu.microcode",
    ),
    **_when({"/proc/cmdline": None}, "cpu.no-off-switch", "iommu.acs", "cpu.guest-vectors"),
    "cpu.ecc": {"/sys/devices/system/edac": None},
    "cpu.swap": {"/sys/dev/block": None},
    "iommu.firmware": {"/sys/firmware/acpi": None},
    "iommu.translate": {f"{GROUPS}/0/type": None},
    "iommu.irq-remap": {"/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts": "maybe\n"},
    "kvm.nested-host": {f"{KVM_INTEL}/nested": None},
    **_when({"/sys/module": None}, "kvm.vhost-net-host", "kvm.one-hypervisor", "kvm.module-taint", "kvm.no-xen"),
    "kvm.vhost-loadable": {f"/lib/modules/{KERNEL_RELEASE}": None},
    "kvm.cve-level": running("6.12.94-1-amd64"),
    "kvm.dev-perm": {"/dev/kvm": None},
    "kvm.hyperv-not-built": {CONFIG: None},
}
