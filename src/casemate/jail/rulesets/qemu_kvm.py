"""What the KVM accelerator needs beyond the base: one rule per ioctl, by name.

Traced with a small guest of our own (see tools/trace/kvm_guest.c), because a stock kernel does not get through early
boot on a KVM that emulates each instruction. What only a full kernel, another host kernel or another interrupt
controller mode would show has origin SOURCE: it was read in QEMU's source and is not yet traced.
"""

from __future__ import annotations

from collections.abc import Iterable

from casemate.jail.rules import Origin, Phase, Rule
from casemate.jail.rulesets.kvm_ioctls import KVM_IOCTLS
from casemate.jail.rulesets.values import SIGUSR1, int_is


def _ioctls(
    names: Iterable[str], reason: str, phase: Phase = Phase.ALWAYS, origin: Origin = Origin.TRACED
) -> tuple[Rule, ...]:
    """One rule per KVM ioctl, all with the same reason."""
    return tuple(Rule("ioctl", f"{name}: {reason}", (int_is(1, KVM_IOCTLS[name]),), phase, origin) for name in names)


CREATION: tuple[Rule, ...] = (
    *_ioctls(
        ("KVM_GET_API_VERSION", "KVM_GET_VCPU_MMAP_SIZE", "KVM_GET_MSR_INDEX_LIST", "KVM_GET_MSR_FEATURE_INDEX_LIST",
         "KVM_GET_SUPPORTED_CPUID", "KVM_X86_GET_MCE_CAP_SUPPORTED", "KVM_GET_DEVICE_ATTR", "KVM_GET_TSC_KHZ"),
        "QEMU asks what the host's KVM can do",
        Phase.STARTUP,
    ),
    *_ioctls(
        ("KVM_CREATE_VM", "KVM_CREATE_VCPU", "KVM_ENABLE_CAP", "KVM_SET_TSS_ADDR", "KVM_SET_IDENTITY_MAP_ADDR",
         "KVM_X86_SET_MSR_FILTER"),
        "QEMU creates the VM and its vCPUs",
        Phase.STARTUP,
    ),
    *_ioctls(
        ("KVM_SET_CPUID2", "KVM_SET_TSC_KHZ", "KVM_X86_SETUP_MCE"),
        "QEMU sets up each vCPU",
        Phase.STARTUP,
    ),
    *_ioctls(
        ("KVM_REGISTER_COALESCED_MMIO", "KVM_UNREGISTER_COALESCED_MMIO"),
        "QEMU lets KVM batch writes to the ports of q35's clock and PCI configuration",
        Phase.STARTUP,
    ),
)  # fmt: skip

REGISTERS_GET = ("KVM_GET_REGS", "KVM_GET_SREGS2", "KVM_GET_XSAVE2", "KVM_GET_XCRS", "KVM_GET_MP_STATE",
                 "KVM_GET_LAPIC", "KVM_GET_VCPU_EVENTS", "KVM_GET_DEBUGREGS")  # fmt: skip
REGISTERS_SET = ("KVM_SET_REGS", "KVM_SET_SREGS2", "KVM_SET_XSAVE", "KVM_SET_XCRS", "KVM_SET_MSRS", "KVM_SET_MP_STATE",
                 "KVM_SET_LAPIC", "KVM_SET_VCPU_EVENTS", "KVM_SET_DEBUGREGS")  # fmt: skip

REGISTERS: tuple[Rule, ...] = (
    *_ioctls(REGISTERS_GET, "QEMU reads a vCPU's state (reset, crash report, firmware patching)"),
    *_ioctls(REGISTERS_SET, "QEMU writes a vCPU's state (reset, firmware patching)"),
    *_ioctls(("KVM_GET_MSRS",), "QEMU reads a vCPU's MSRs (time stamp counter at stop and cont, crash report)"),
    *_ioctls(
        ("KVM_GET_SREGS", "KVM_SET_SREGS", "KVM_GET_XSAVE"),
        "host kernels before 5.17 have no KVM_GET_SREGS2 or KVM_GET_XSAVE2",
        origin=Origin.SOURCE,
    ),
)

RUNNING: tuple[Rule, ...] = (
    *_ioctls(("KVM_RUN",), "the vCPU executes guest code"),
    *_ioctls(("KVM_IRQ_LINE_STATUS",), "QEMU's I/O APIC (irqchip=split) raises a guest interrupt"),
    *_ioctls(("KVM_SET_GSI_ROUTING",), "the guest programs QEMU's I/O APIC or MSI-X vectors"),
    *_ioctls(("KVM_SIGNAL_MSI",), "a PCI device raises MSI-X"),
    *_ioctls(("KVM_IRQFD",), "a PCI device's MSI-X vectors are bound to event descriptors"),
    *_ioctls(("KVM_INTERRUPT",), "QEMU's PIC (or with irqchip=off its local APIC) injects an interrupt"),
    *_ioctls(
        ("KVM_TPR_ACCESS_REPORTING", "KVM_SET_VAPIC_ADDR"),
        "the task priority register, at reset and by q35's option ROM",
    ),
    *_ioctls(("KVM_IOEVENTFD",), "virtio queues are bound to event descriptors when a driver starts or resets one"),
    *_ioctls(
        ("KVM_SET_USER_MEMORY_REGION",), "guest RAM, ROM and firmware windows are mapped; the guest may move them"
    ),
    *_ioctls(
        ("KVM_SET_USER_MEMORY_REGION2",), "the same where KVM offers guest_memfd, newer QEMU", origin=Origin.SOURCE
    ),
    *_ioctls(("KVM_GET_CLOCK", "KVM_SET_CLOCK", "KVM_KVMCLOCK_CTRL"), "the guest's clock at stop and cont"),
    *_ioctls(("KVM_CHECK_EXTENSION",), "QEMU asks for a capability again"),
    *_ioctls(("KVM_GET_STATS_FD",), "QMP query-stats"),
    Rule("pread64", "QMP query-stats reads KVM's counters at their offsets"),
)

SIGNALS: tuple[Rule, ...] = (
    Rule(
        "tgkill",
        "QEMU kicks a vCPU thread out of KVM_RUN; seccomp cannot see whose thread it is",
        (int_is(2, SIGUSR1),),
    ),
    Rule("uname", "QEMU asks for the host kernel's version", phase=Phase.STARTUP),
)

RULES: tuple[Rule, ...] = (*CREATION, *REGISTERS, *RUNNING, *SIGNALS)
