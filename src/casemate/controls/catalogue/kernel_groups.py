"""Layer kernel: controls over the table of settings (controls/kernel_settings.py), one for each of its groups."""

from __future__ import annotations

from typing import Final

from casemate.controls.catalogue.common import HOST, OTHERS, S3, S4, S5, S6, S7, S9, VM
from casemate.controls.kernel_settings import settings_of
from casemate.controls.model import AttackStep, Control, Cost, Gate, Remedies, Scenario, Severity, Subject

_BUILD: Final = "a kernel built with these options; distributions' kernels have most of them"
_HIGH, _MEDIUM, _LOW = Severity.HIGH, Severity.MEDIUM, Severity.LOW


def _sysctls(group: str) -> str:
    """The remedy of a group of sysctls, made from the table."""
    lines = (
        f"sysctl {s.fact.removeprefix('sysctl.')}: {s.expect.describe()}"
        for s in settings_of(group)
        if s.fact.startswith("sysctl.")
    )
    return "; ".join(lines) + "; keep them in /etc/sysctl.d"


def _group(
    group: str,
    title: str,
    question: str,
    severity: Severity,
    remedy: str,
    *,
    cuts: tuple[AttackStep, ...] = (S3, S4),
    scenarios: tuple[Scenario, ...] = (HOST,),
    cost: Cost = Cost(),  # noqa: B008  frozen
    limits: str = "",
) -> Control:
    settings = settings_of(group)
    return Control(
        id=group,
        title=title,
        question=question,
        severity=severity,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=tuple(setting.check for setting in settings),
        cuts=cuts,
        scenarios=scenarios,
        cost=cost,
        remedies=Remedies(host=remedy),
        sources=tuple(dict.fromkeys(setting.source for setting in settings)),
        limits=limits,
    )


GROUPS: Final[tuple[Control, ...]] = (
    _group(
        "hk.memory",
        "The kernel's memory allocators are hardened",
        "Is an overflow or a use after free in the kernel (KVM, vhost) noticed, and is its outcome hard to plan?",
        _MEDIUM,
        "boot with slab_nomerge page_alloc.shuffle=1; the rest needs " + _BUILD,
        cost=Cost(performance="about one per cent"),
    ),
    _group(
        "hk.zeroing",
        "Fresh memory is empty",
        "Can memory that one VM used reach another one, or user space, with its old content?",
        _MEDIUM,
        "boot with init_on_alloc=1; CONFIG_INIT_STACK_ALL_ZERO needs a kernel built with it",
        cuts=(S4, S6),
        scenarios=(OTHERS, VM),
        cost=Cost(performance="about one per cent, more when memory is allocated and freed quickly"),
    ),
    _group(
        "hk.init-on-free",
        "Freed memory is wiped",
        "Does the memory of a VM that ended stay readable in the host until somebody overwrites it?",
        _LOW,
        "boot with init_on_free=1",
        cuts=(S9,),
        scenarios=(VM,),
        cost=Cost(performance="three to five per cent, more for work that frees much memory"),
    ),
    _group(
        "hk.stack",
        "The kernel's stacks are protected",
        "Is an overflow on a stack of the kernel noticed?",
        _MEDIUM,
        "boot with randomize_kstack_offset=on; the rest needs " + _BUILD,
    ),
    _group(
        "hk.wx",
        "No memory of the kernel is writable and executable",
        "Can code of the kernel be overwritten, or its data be run?",
        _HIGH,
        _BUILD,
    ),
    _group(
        "hk.kaslr",
        "The kernel lies at a random address",
        "Does an attacker know in advance where the kernel's code and data are?",
        _MEDIUM,
        "remove nokaslr from the command line; " + _BUILD,
        cost=Cost(features="no hibernation on some machines"),
    ),
    _group(
        "hk.cfi",
        "Indirect calls of the kernel are checked",
        "Can a corrupted function pointer of KVM or vhost jump anywhere?",
        _LOW,
        "a kernel with CONFIG_CFI (built by Clang) or CONFIG_X86_KERNEL_IBT on a processor with CET",
        limits="What the processor supports is not looked at: IBT without CET does nothing.",
    ),
    _group(
        "hk.fortify",
        "The kernel checks sizes and stops on damage",
        "Does the kernel notice a copy beyond an object, and stop?",
        _MEDIUM,
        _BUILD,
    ),
    _group(
        "hk.aslr",
        "Programs lie at random addresses",
        "Does an attacker know where the emulator's code and the guest's memory are in its process?",
        _HIGH,
        _sysctls("hk.aslr"),
        cuts=(S4,),
    ),
    _group(
        "hk.mmap-min",
        "Nothing is mapped at the lowest addresses",
        "Can a program place data where a null pointer of the kernel would find it?",
        _MEDIUM,
        _sysctls("hk.mmap-min"),
        cuts=(S4,),
        limits="SMAP stops most uses of it on processors that have it.",
    ),
    _group(
        "hk.leak",
        "Addresses of the kernel are not printed",
        "Can a user read from /proc where objects of the kernel are?",
        _MEDIUM,
        _sysctls("hk.leak"),
        cuts=(S4,),
    ),
    _group(
        "hk.dmesg",
        "The kernel's log is not for everybody",
        "Can a user read the kernel's log, with its addresses and what VMs did?",
        _MEDIUM,
        _sysctls("hk.dmesg"),
        cuts=(S4,),
    ),
    _group(
        "hk.debugfs",
        "debugfs is closed",
        "Are debugging files of the kernel (KVM's among them) reachable?",
        _LOW,
        "boot with debugfs=no-mount (kept for the kernel) or debugfs=off",
        cuts=(S4,),
        cost=Cost(features="KVM's statistics and tracing through /sys/kernel/debug"),
    ),
    _group(
        "hk.devmem",
        "Physical memory is not a file",
        "Can root read the memory of VMs, or write the kernel, through /dev/mem?",
        _MEDIUM,
        "a kernel with CONFIG_IO_STRICT_DEVMEM or without CONFIG_DEVMEM; remove iomem=relaxed",
        cuts=(S4,),
        cost=Cost(features="some firmware tools"),
    ),
    _group(
        "hk.perf",
        "Users do not measure the kernel",
        "Can a user watch the kernel and other VMs with performance counters?",
        _MEDIUM,
        _sysctls("hk.perf"),
        cuts=(S4, S6),
        scenarios=(HOST, OTHERS),
        cost=Cost(features="perf for users"),
    ),
    _group(
        "hk.bpf-jit",
        "The BPF compiler hides constants",
        "Can somebody place chosen bytes into executable memory of the kernel through a filter?",
        _LOW,
        _sysctls("hk.bpf-jit"),
        cuts=(S4,),
        cost=Cost(performance="BPF programs of root run slower"),
        limits="The file is readable by root only; for others this is unknown.",
    ),
    _group(
        "hk.sysrq",
        "No key combination commands the kernel",
        "Can whoever reaches a console (a serial line over the network) crash or dump the host?",
        _LOW,
        "sysctl kernel.sysrq=0; keep it in /etc/sysctl.d",
        cuts=(S7,),
        cost=Cost(features="no emergency sync or reboot from the keyboard"),
    ),
    _group(
        "hk.tty",
        "Terminals load nothing and take no forged input",
        "Can a user load old terminal drivers, or type into a terminal of root?",
        _LOW,
        _sysctls("hk.tty"),
        cuts=(S4, S7),
        limits="Kernels before 6.2 have no switch for TIOCSTI: there this fails.",
    ),
    _group(
        "hk.panic-on-oops",
        "A damaged kernel stops",
        "After a fault inside the kernel (perhaps a failed attack), do the VMs go on running on it?",
        _LOW,
        _sysctls("hk.panic-on-oops"),
        cuts=(S3, S4),
        cost=Cost(features="a fault in a driver stops every VM of the host"),
    ),
    _group(
        "hk.fs-links",
        "Shared directories cannot be booby-trapped",
        "Can a user make a service of the host (libvirt, QEMU as another user) open a file of his choosing?",
        _MEDIUM,
        _sysctls("hk.fs-links"),
        cuts=(S5, S7),
        scenarios=(HOST, OTHERS),
    ),
    _group(
        "hk.vsyscall",
        "No code lies at a fixed address",
        "Is there code at the same address in every process, ready to be jumped to?",
        _LOW,
        "boot with vsyscall=none",
        cuts=(S4,),
        cost=Cost(features="programs linked with a C library from before 2013"),
    ),
    _group(
        "hk.compat",
        "Old binary interfaces are off",
        "Can an emulator that was taken over reach the 32-bit, x32 and 16-bit entries of the kernel?",
        _LOW,
        "boot with ia32_emulation=0 (from 6.7 on); the rest needs a kernel built without it",
        cuts=(S4,),
        cost=Cost(features="32-bit programs on the host; guests are not concerned"),
        limits="VMs of ours have the x86-64 entries only, whatever the host offers (proc.seccomp-arch).",
    ),
    _group(
        "net.host-sysctl",
        "The host's network stack believes no strangers",
        "Can a guest or a neighbour change the host's routes or send it forged packets?",
        _MEDIUM,
        _sysctls("net.host-sysctl"),
        cuts=(S6, S7),
        scenarios=(HOST, OTHERS),
    ),
    _group(
        "hk.khc-set",
        "The rest of the kernel's hardening settings",
        "Which of the smaller hardening settings does this kernel not have?",
        _LOW,
        _BUILD + "; what stands here as missing is a list to choose from",
        cuts=(S4,),
        limits="Lists every miss as evidence. No distribution's kernel meets all of them.",
    ),
)
