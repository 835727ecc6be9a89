"""Settings of the kernel that matter to a host of VMs, as data: what is expected, why, and who says so.

The facts are read by facts/kernel_*.py. A setting belongs to exactly one control, so that one loosened switch is one
failed control. ``off`` and ``absent`` are both "not built": a configuration does not mention what cannot be chosen.

Not listed, on purpose: mitigations of CPU vulnerabilities (controls cpu.*), the IOMMU (iommu.*), page sharing,
options that only slow a developer down, and options that a distribution's kernel cannot do without (modules, kprobes,
hardware drivers).
"""

from __future__ import annotations

from typing import Final

import msgspec

from casemate.controls.expectations import Expectation, Matches, OneOf
from casemate.controls.model import Check, Source

KSPP: Final = "KSPP recommended settings"
ANSSI: Final = "ANSSI-BP-028 v2.0"
KHC: Final = "kernel-hardening-checker"
CAC: Final = "ComplianceAsCode"
KERNEL: Final = "Linux"


class Setting(msgspec.Struct, frozen=True):
    """One setting. ``group``: the control it belongs to. ``fact``: as facts/kernel_*.py name it."""

    group: str
    fact: str
    expect: Expectation
    reason: str
    source: Source

    @property
    def check(self) -> Check:
        """The setting as a check of its control."""
        return Check(self.fact, self.expect)


def _one(*values: str) -> OneOf:
    return OneOf(values)


# Decisions of kernel-hardening-checker that it takes from grsecurity's patch and from its own author.
GRSEC: Final = "checks.py: grsec"
AUTHOR: Final = "checks.py: a13xp0p0v"
ON: Final = _one("y")
ON_X86: Final = _one("y", "other-architecture")
OFF: Final = _one("n", "absent")
OFF_X86: Final = _one("n", "absent", "other-architecture")


def _set(group: str, fact: str, expect: Expectation, reason: str, place: str = "", by: str = KSPP) -> Setting:
    """``place``: requirement or document; without one, the section of ``by`` named after the kind of setting."""
    kind = {"kconfig": "kernel configuration", "sysctl": "sysctls", "kernel": "kernel command line"}
    return Setting(group, fact, expect, reason, Source(by, place or kind[fact.partition(".")[0]]))


SETTINGS: Final[tuple[Setting, ...]] = (
    # Memory allocators: what a heap overflow or use after free in KVM or vhost meets.
    _set(
        "hk.memory", "kconfig.SLAB_FREELIST_RANDOM", ON, "the order of free objects cannot be predicted", "R17", ANSSI
    ),
    _set("hk.memory", "kconfig.SLAB_FREELIST_HARDENED", ON, "a corrupted free list is noticed", "R17", ANSSI),
    _set("hk.memory", "kernel.slab-merge", _one("off"), "objects of other kinds do not share a slab", "R8", ANSSI),
    _set("hk.memory", "kernel.page-shuffle", _one("on"), "the order of free pages cannot be predicted", "R8", ANSSI),
    _set(
        "hk.memory",
        "kernel.usercopy",
        _one("on"),
        "copies to and from user space stay inside their object",
        "R15",
        ANSSI,
    ),
    _set("hk.memory", "kernel.list-hardened", _one("on"), "a corrupted linked list is noticed", "R16", ANSSI),
    _set("hk.zeroing", "kernel.init-on-alloc", _one("on"), "memory of one VM never shows up in another's"),
    _set("hk.zeroing", "kconfig.INIT_STACK_ALL_ZERO", ON, "variables on the stack start as zero"),
    _set("hk.init-on-free", "kernel.init-on-free", _one("on"), "freed memory holds no guest data", "init_on_free"),
    # Stack, text, addresses.
    _set("hk.stack", "kconfig.STACKPROTECTOR_STRONG", ON, "an overflow of a stack buffer is noticed", "R15", ANSSI),
    _set("hk.stack", "kconfig.VMAP_STACK", ON, "running off the stack hits a guard page", "R15", ANSSI),
    _set(
        "hk.stack", "kconfig.SCHED_STACK_END_CHECK", ON, "an overrun stack is noticed at the next switch", "R15", ANSSI
    ),
    _set("hk.stack", "kernel.kstack-offset", _one("on"), "each system call finds its stack elsewhere"),
    _set("hk.wx", "kconfig.STRICT_KERNEL_RWX", ON, "code is read-only, data is not executable", "R15", ANSSI),
    _set(
        "hk.wx",
        "kconfig.STRICT_MODULE_RWX",
        _one("y", "absent"),
        "the same for modules, where there are any",
        "R18",
        ANSSI,
    ),
    _set("hk.kaslr", "kernel.kaslr", _one("on"), "where the kernel lies is not known in advance", "R25", ANSSI),
    _set("hk.kaslr", "kconfig.RANDOMIZE_MEMORY", ON_X86, "nor where its view of all memory lies", "R25", ANSSI),
    _set("hk.cfi", "kernel.cfi", _one("kcfi", "ibt", "bti"), "a corrupted function pointer does not go anywhere"),
    _set("hk.fortify", "kconfig.FORTIFY_SOURCE", ON, "known sizes are checked by memcpy and its kin", "R15", ANSSI),
    _set(
        "hk.fortify",
        "kconfig.BUG_ON_DATA_CORRUPTION",
        ON,
        "damage stops the task instead of being logged",
        "R16",
        ANSSI,
    ),
    _set("hk.fortify", "kconfig.UBSAN_BOUNDS", ON, "an index beyond an array is noticed"),
    _set(
        "hk.aslr",
        "sysctl.kernel.randomize_va_space",
        _one("2"),
        "the emulator's memory is laid out at random",
        "R9",
        ANSSI,
    ),
    _set(
        "hk.mmap-min",
        "sysctl.vm.mmap_min_addr",
        Matches(r"32768|6553[6-9]|655[4-9]\d|65[6-9]\d\d|6[6-9]\d{3}|[7-9]\d{4}|[1-9]\d{5,8}", "65536 or more"),
        "a null pointer in the kernel leads nowhere",
        "R8",
        ANSSI,
    ),
    # What users and a broken-out emulator may learn or ask.
    _set("hk.leak", "sysctl.kernel.kptr_restrict", _one("2"), "addresses of the kernel are not printed", "R9", ANSSI),
    _set("hk.dmesg", "sysctl.kernel.dmesg_restrict", _one("1"), "the kernel's log needs rights", "R9", ANSSI),
    _set(
        "hk.debugfs",
        "kernel.debugfs",
        _one("off", "no-mount"),
        "no unchecked files into the kernel's inside",
        GRSEC,
        KHC,
    ),
    _set("hk.devmem", "kernel.devmem", _one("absent", "strict"), "physical memory is not a file", "R15", ANSSI),
    _set(
        "hk.perf",
        "sysctl.kernel.perf_event_paranoid",
        _one("2", "3", "4"),
        "users do not measure the kernel",
        "R9",
        ANSSI,
    ),
    _set(
        "hk.bpf-jit",
        "sysctl.net.core.bpf_jit_harden",
        _one("2"),
        "no chosen constants in executable memory",
        "R12",
        ANSSI,
    ),
    _set("hk.sysrq", "kernel.sysrq", _one("0", "absent"), "no command to the kernel from a console", "R9", ANSSI),
    _set("hk.tty", "sysctl.dev.tty.ldisc_autoload", _one("0"), "users load no rarely used line disciplines"),
    _set("hk.tty", "sysctl.dev.tty.legacy_tiocsti", _one("0"), "nobody types into another's terminal"),
    _set(
        "hk.panic-on-oops", "sysctl.kernel.panic_on_oops", _one("1"), "no second try on a damaged kernel", "R9", ANSSI
    ),
    _set("hk.fs-links", "sysctl.fs.protected_symlinks", _one("1"), "no following of planted links", "R14", ANSSI),
    _set(
        "hk.fs-links", "sysctl.fs.protected_hardlinks", _one("1"), "no linking of files one does not own", "R14", ANSSI
    ),
    _set("hk.fs-links", "sysctl.fs.protected_fifos", _one("2"), "no planted FIFO in a shared directory", "R14", ANSSI),
    _set(
        "hk.fs-links", "sysctl.fs.protected_regular", _one("2"), "no planted file in a shared directory", "R14", ANSSI
    ),
    _set("hk.vsyscall", "kernel.vsyscall", _one("none", "xonly", "other-architecture"), "no code at a fixed address"),
    _set("hk.compat", "kernel.ia32", _one("off"), "the 32-bit entries of the kernel are not reached"),
    _set("hk.compat", "kconfig.X86_X32_ABI", OFF_X86, "nor those of x32"),
    _set("hk.compat", "kconfig.MODIFY_LDT_SYSCALL", OFF_X86, "nor 16-bit segments", "R25", ANSSI),
    # The host's network stack, which guests on a bridge can reach.
    _set(
        "net.host-sysctl",
        "sysctl.net.ipv4.conf.all.accept_redirects",
        _one("0"),
        "no route from a neighbour",
        "R12",
        ANSSI,
    ),
    _set(
        "net.host-sysctl",
        "sysctl.net.ipv4.conf.default.accept_redirects",
        _one("0"),
        "nor on new interfaces",
        "R12",
        ANSSI,
    ),
    _set(
        "net.host-sysctl",
        "sysctl.net.ipv4.conf.all.send_redirects",
        _one("0"),
        "the host redirects nobody",
        "R12",
        ANSSI,
    ),
    _set(
        "net.host-sysctl",
        "sysctl.net.ipv4.conf.all.accept_source_route",
        _one("0"),
        "senders choose no route",
        "R12",
        ANSSI,
    ),
    _set(
        "net.host-sysctl",
        "sysctl.net.ipv4.conf.default.accept_source_route",
        _one("0"),
        "nor on new interfaces",
        "R12",
        ANSSI,
    ),
    _set(
        "net.host-sysctl",
        "sysctl.net.ipv4.conf.all.rp_filter",
        _one("1", "2"),
        "forged senders are dropped",
        "R12",
        ANSSI,
    ),
    _set(
        "net.host-sysctl",
        "sysctl.net.ipv4.tcp_syncookies",
        _one("1"),
        "half-open connections fill nothing up",
        "R12",
        ANSSI,
    ),
    _set(
        "net.host-sysctl",
        "sysctl.net.ipv4.icmp_echo_ignore_broadcasts",
        _one("1"),
        "no amplifier",
        "checks.py: cis",
        KHC,
    ),
    _set(
        "net.host-sysctl",
        "sysctl.net.ipv6.conf.all.accept_redirects",
        _one("0", "no-ipv6"),
        "the same for IPv6",
        "R13",
        ANSSI,
    ),
    _set(
        "net.host-sysctl",
        "sysctl.net.ipv6.conf.default.accept_redirects",
        _one("0", "no-ipv6"),
        "the same",
        "R13",
        ANSSI,
    ),
    _set(
        "net.host-sysctl",
        "sysctl.net.ipv6.conf.all.accept_source_route",
        _one("0", "no-ipv6"),
        "the same",
        "R13",
        ANSSI,
    ),
    # The rest of the set: each one small, listed together.
    _set("hk.khc-set", "kconfig.BUG", ON, "the kernel stops where it finds itself wrong", "R19", ANSSI),
    _set("hk.khc-set", "kconfig.SECCOMP", ON, "filters for system calls exist", "R20", ANSSI),
    _set("hk.khc-set", "kconfig.SECCOMP_FILTER", ON, "filters for system calls exist", "R20", ANSSI),
    _set("hk.khc-set", "kconfig.SLUB_DEBUG", ON, "slab checks can be turned on", "R17", ANSSI),
    _set("hk.khc-set", "kconfig.DEBUG_WX", ON, "writable and executable pages are reported at boot", "R15", ANSSI),
    _set("hk.khc-set", "kconfig.DEBUG_NOTIFIERS", ON, "corrupted notifier chains are noticed", "R16", ANSSI),
    _set("hk.khc-set", "kconfig.DEBUG_SG", ON, "corrupted scatter lists are noticed", "R16", ANSSI),
    _set("hk.khc-set", "kconfig.DEBUG_VIRTUAL", ON, "wrong address translations are noticed"),
    _set("hk.khc-set", "kconfig.KFENCE", ON, "some heap errors are caught in production"),
    _set("hk.khc-set", "kconfig.PAGE_TABLE_CHECK", ON, "a page mapped twice by error is noticed"),
    _set("hk.khc-set", "kconfig.RANDOM_KMALLOC_CACHES", ON, "heap spraying needs more luck (from 6.6)"),
    _set("hk.khc-set", "kconfig.ZERO_CALL_USED_REGS", ON, "fewer usable code fragments for an attacker"),
    _set("hk.khc-set", "kconfig.RESET_ATTACK_MITIGATION", ON, "firmware wipes memory after a sudden reset"),
    _set("hk.khc-set", "kconfig.EFI_DISABLE_PCI_DMA", ON_X86, "no DMA between firmware and the kernel's IOMMU"),
    _set(
        "hk.khc-set",
        "kconfig.X86_UMIP",
        ON_X86,
        "programs do not read where descriptor tables lie",
        "checks.py: defconfig",
        KHC,
    ),
    _set("hk.khc-set", "kconfig.SECURITY_SELINUX_DEVELOP", OFF, "SELinux cannot be put into permissive mode"),
    _set("hk.khc-set", "kconfig.SECURITY_WRITABLE_HOOKS", OFF, "LSM hooks are read-only after boot", "R20", ANSSI),
    _set("hk.khc-set", "kconfig.ACPI_CUSTOM_METHOD", OFF, "root writes no physical memory through ACPI", "R15", ANSSI),
    _set("hk.khc-set", "kconfig.ACPI_TABLE_UPGRADE", OFF, "an initrd replaces no ACPI table", "checks.py: clipos", KHC),
    _set("hk.khc-set", "kconfig.ACPI_APEI_EINJ", OFF, "no error injection into hardware", "kernel_lockdown(7)", KERNEL),
    _set("hk.khc-set", "kconfig.BINFMT_MISC", OFF, "users register no interpreters", "R23", ANSSI),
    _set("hk.khc-set", "kconfig.COMPAT_BRK", OFF, "the heap is placed at random", "R17", ANSSI),
    _set("hk.khc-set", "kconfig.COMPAT_VDSO", OFF_X86, "the vDSO is placed at random", "R15", ANSSI),
    _set("hk.khc-set", "kconfig.DEVKMEM", OFF, "kernel memory is not a file", "R15", ANSSI),
    _set("hk.khc-set", "kconfig.DEVPORT", OFF, "I/O ports are not a file", GRSEC, KHC),
    _set("hk.khc-set", "kconfig.FAULT_INJECTION", OFF, "no failures on request", AUTHOR, KHC),
    _set("hk.khc-set", "kconfig.GCOV_KERNEL", OFF, "no coverage interface", "dev-tools/gcov", KERNEL),
    _set("hk.khc-set", "kconfig.HIBERNATION", OFF, "memory of VMs is not written to disk", "R23", ANSSI),
    _set("hk.khc-set", "kconfig.HWPOISON_INJECT", OFF, "no memory errors on request", GRSEC, KHC),
    _set("hk.khc-set", "kconfig.INET_DIAG", OFF, "less of the network stack for users to reach"),
    _set("hk.khc-set", "kconfig.IP_DCCP", OFF, "a protocol nobody needs and that had escalations", AUTHOR, KHC),
    _set("hk.khc-set", "kconfig.KCOV", OFF, "no coverage interface", GRSEC, KHC),
    _set("hk.khc-set", "kconfig.LEGACY_PTYS", OFF, "no BSD terminals", "R23", ANSSI),
    _set("hk.khc-set", "kconfig.LKDTM", OFF, "no crashes on request", AUTHOR, KHC),
    _set("hk.khc-set", "kconfig.MMIOTRACE", OFF_X86, "no tracing of device access", AUTHOR, KHC),
    _set("hk.khc-set", "kconfig.NOTIFIER_ERROR_INJECTION", OFF, "no failures on request", GRSEC, KHC),
    _set("hk.khc-set", "kconfig.PAGE_OWNER", OFF, "no record of who owns which page", "mm/page_owner", KERNEL),
    _set("hk.khc-set", "kconfig.PROC_KCORE", OFF, "kernel memory is not a file"),
    _set("hk.khc-set", "kconfig.PROC_VMCORE", OFF, "nor that of a crashed kernel", GRSEC, KHC),
    _set(
        "hk.khc-set",
        "kconfig.PROVIDE_OHCI1394_DMA_INIT",
        OFF_X86,
        "no DMA by FireWire before the IOMMU is up",
        GRSEC,
        KHC,
    ),
    _set("hk.khc-set", "kconfig.PTDUMP_DEBUGFS", OFF, "page tables are not a file", GRSEC, KHC),
    _set("hk.khc-set", "kconfig.PUNIT_ATOM_DEBUG", OFF_X86, "no debugging files of a power unit", GRSEC, KHC),
    _set(
        "hk.khc-set",
        "kconfig.RDS",
        OFF,
        "a protocol nobody needs and that had escalations",
        "kernel_module_rds_disabled",
        CAC,
    ),
    _set("hk.khc-set", "kconfig.TIPC", OFF, "a protocol nobody needs and that had escalations", GRSEC, KHC),
    _set("hk.khc-set", "kconfig.USELIB", OFF, "a system call only libc5 used", GRSEC, KHC),
    _set("hk.khc-set", "kconfig.X86_16BIT", OFF_X86, "no 16-bit segments", GRSEC, KHC),
    _set("hk.khc-set", "kconfig.X86_MSR", OFF_X86, "root does not write processor registers from user space"),
    _set("hk.khc-set", "kconfig.X86_PTDUMP", OFF_X86, "page tables are not a file", GRSEC, KHC),
)

# Facts with a control of their own in kernel_audit.py.
SINGLE: Final = (
    "kernel.weakening",
    "kernel.lockdown",
    "kernel.module-signatures",
    "kernel.module-loading",
    "kernel.kexec",
    "kernel.bpf",
    "kernel.io-uring",
    "kernel.userfaultfd",
    "kernel.ptrace",
    "kernel.userns",
    "kernel.secure-boot",
    "kernel.secure-boot-setup",
    "kernel.tpm-log",
    "kernel.outer-vmm",
    "kernel.khc-imported",
)


def settings_of(group: str) -> tuple[Setting, ...]:
    """The settings of one control.

    Raises:
        RuntimeError: there are none: the control would pass on nothing.
    """
    found = tuple(setting for setting in SETTINGS if setting.group == group)
    if not found:
        raise RuntimeError(f"no kernel setting belongs to {group}")
    return found
