"""What the KVM probe found, as frozen types, and the pure judgement of it. No I/O.

A report is JSON-able: ``msgspec.json.encode(report)`` and ``msgspec.json.decode(data, type=KvmReport)``.
Rates are per second of CPU time of the probe's thread (guest time included), so that a busy host does not turn a fast
KVM into a slow one.
"""

from __future__ import annotations

import enum

import msgspec

REPORT_FORMAT = 2
EXPECTED_API_VERSION = 12

USABLE_MIN_INSTRUCTIONS_PER_S = 100_000_000
"""Guest kernel code below this rate is emulated, not executed.

KVM's instruction emulator does 1 to 10 million a second (1.6 measured); a processor that executes the two-instruction
loop does 1,000 million or more at 1 GHz; KVM inside a VM that QEMU's TCG emulates does 400 to 700 million, and is still
the faster choice there. The threshold lies a factor of 4 or more from each.
"""

KERNEL_BOOT_INSTRUCTIONS = 2_000_000_000
"""Order of magnitude of what a distribution's kernel executes from its entry to init; only used in a message."""


class Verdict(enum.StrEnum):
    """What KVM on this host is good for."""

    USABLE = "usable"
    EMULATED = "emulated"
    DENIED = "denied"
    ABSENT = "absent"
    BROKEN = "broken"
    UNKNOWN = "unknown"


class IrqchipMode(enum.StrEnum):
    """Where interrupt controllers live; QEMU's ``kernel-irqchip=`` on, split, off."""

    KERNEL = "on"
    SPLIT = "split"
    USERSPACE = "off"


class CpuMode(enum.StrEnum):
    """Mode in which a guest of the probe runs: 16-bit, 64-bit ring 0, 64-bit ring 3."""

    REAL = "real"
    KERNEL = "kernel"
    USER = "user"


class Failure(msgspec.Struct, frozen=True):
    """Something that did not work. ``fatal``: nothing after it could be looked at."""

    step: str
    error: str
    message: str
    fatal: bool = False


class DeviceNode(msgspec.Struct, frozen=True):
    """The device node as the probe saw it. ``mode`` are the permission bits; ``group`` is the name of ``gid``."""

    mode: int
    uid: int
    gid: int
    group: str


class Extension(msgspec.Struct, frozen=True):
    """One capability (KVM_CAP_* without the prefix) and the kernel's answer; 0 means missing."""

    number: int
    name: str
    value: int


class Irqchip(msgspec.Struct, frozen=True):
    """One interrupt controller mode, tried on a VM of its own.

    ``pic``, ``ioapic``, ``pit`` and ``local_apic`` say whether the kernel answered for its own emulation of that part.
    ``msrs_refused``: MSRs whose value KVM refuses to take back; QEMU aborts when it has to set such an MSR.
    """

    mode: IrqchipMode
    available: bool
    error: str = ""
    pic: bool = False
    ioapic: bool = False
    pit: bool = False
    local_apic: bool = False
    msrs_refused: tuple[str, ...] = ()


class Limits(msgspec.Struct, frozen=True):
    """Numbers that bound a VM; None where the kernel gave no answer."""

    recommended_vcpus: int | None = None
    max_vcpus: int | None = None
    max_vcpu_id: int | None = None
    memory_slots: int | None = None
    run_area_bytes: int | None = None
    state_msrs: int | None = None
    feature_msrs: int | None = None


class Cpuid(msgspec.Struct, frozen=True):
    """What KVM would show a guest, from KVM_GET_SUPPORTED_CPUID, and what the guest then really read.

    ``tsc_deadline`` is true when KVM can give the guest a TSC deadline timer (leaf 1 ECX bit 24 or
    KVM_CAP_TSC_DEADLINE_TIMER, both only with the local APIC in the kernel). ``c_bit``: place of the encryption bit of
    SEV (leaf 8000001Fh, EBX 5:0), None without that leaf.
    """

    entries: int
    vendor: str
    tsc_deadline: bool
    x2apic: bool
    hypervisor: bool
    vmx: bool
    svm: bool
    kvm_signature: str
    kvm_max_leaf: int
    kvm_features: tuple[str, ...]
    kvm_hints: tuple[str, ...]
    guest_kvm_signature: str | None = None
    guest_kvm_features: tuple[str, ...] | None = None
    c_bit: int | None = None


class GuestRun(msgspec.Struct, frozen=True):
    """One small guest: the best of several rounds, and how it ended.

    ``exits`` counts exits to user space by reason in that round. ``error`` is empty when the guest did what it should;
    otherwise the rates are None. ``exits_per_s`` includes the probe's own handling (about 1 microsecond an exit).
    """

    name: str
    cpu_mode: CpuMode
    rounds: int
    iterations: int
    instructions: int
    exits: dict[str, int]
    wall_ns: int
    cpu_ns: int
    instructions_per_s: int | None = None
    exits_per_s: int | None = None
    error: str = ""


def rate_per_s(count: int, elapsed_ns: int) -> int:
    """Events per second, whole; an interval too short to be measured counts as 1 ns."""
    return count * 1_000_000_000 // max(elapsed_ns, 1)


class Hypercall(msgspec.Struct, frozen=True):
    """One hypercall, issued by one instruction in one mode, with the local APIC in the kernel where KVM can.

    ``return_value`` is RAX, signed: -1 is KVM_EPERM (the right answer to ring 3), -1000 KVM_ENOSYS. ``in_kernel``:
    answered without an exit to user space; None when no answer came. ``patched``: KVM replaced the instruction by the
    processor's own. ``cost_ns``: CPU time per call, without the loop around it. ``fault``: what happened instead.
    """

    instruction: str
    cpu_mode: CpuMode
    number: int
    name: str
    return_value: int | None
    in_kernel: bool | None
    patched: bool
    cost_ns: int | None
    fault: str = ""


class KvmReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the probe found about one KVM device on one host."""

    device: str
    machine: str
    kernel_release: str
    verdict: Verdict = Verdict.UNKNOWN
    why: str = "not judged"
    next_step: str = ""
    format: int = REPORT_FORMAT
    node: DeviceNode | None = None
    api_version: int | None = None
    extensions: tuple[Extension, ...] = ()
    irqchips: tuple[Irqchip, ...] = ()
    limits: Limits = Limits()
    cpuid: Cpuid | None = None
    guests: tuple[GuestRun, ...] = ()
    hypercalls: tuple[Hypercall, ...] = ()
    failures: tuple[Failure, ...] = ()
    elapsed_ms: int = 0

    def guest(self, name: str) -> GuestRun | None:
        """The run of the small guest ``name`` (``count-kernel``), or None when it was not run."""
        return next((run for run in self.guests if run.name == name), None)

    def irqchip(self, mode: IrqchipMode) -> Irqchip | None:
        """The interrupt controller mode as tried, or None when it was not tried."""
        return next((chip for chip in self.irqchips if chip.mode == mode), None)

    def extension(self, name: str) -> int | None:
        """The value of a capability by name, or None when it was not asked for."""
        return next((item.value for item in self.extensions if item.name == name), None)


def judge_report(report: KvmReport) -> KvmReport:
    """Fill in verdict, why and next step.

    1. A fatal failure decides by its kind. 2. Not x86-64: unknown, because the small guests are x86 code. 3. A foreign
    API version, or no guest in kernel mode that ran to its end: broken. 4. The rate of guest kernel code against
    USABLE_MIN_INSTRUCTIONS_PER_S.
    """
    verdict, why, next_step = _judge(report)
    return msgspec.structs.replace(report, verdict=verdict, why=why, next_step=next_step)


def _judge(report: KvmReport) -> tuple[Verdict, str, str]:
    fatal = next((failure for failure in report.failures if failure.fatal), None)
    if fatal is not None:  # 1: an absent device is absent on every machine
        return _judge_failure(report, fatal)
    if report.machine != "x86_64":  # 2
        return (
            Verdict.UNKNOWN,
            f"{report.machine} is not supported by this probe: its guests are x86-64 code, so nothing was executed",
            'choose accel = "kvm" yourself if you know that it works here',
        )
    if report.api_version != EXPECTED_API_VERSION:  # 3
        return (
            Verdict.BROKEN,
            f"KVM_GET_API_VERSION answered {report.api_version}, expected {EXPECTED_API_VERSION}",
            f"check that {report.device} belongs to the kernel's KVM",
        )
    return _judge_speed(report)


def _judge_failure(report: KvmReport, fatal: Failure) -> tuple[Verdict, str, str]:
    what = f"{fatal.step} failed: {fatal.error} ({fatal.message})"
    if fatal.error in ("EACCES", "EPERM"):
        return Verdict.DENIED, what, _denied_next_step(report, fatal)
    if fatal.step == "open" and fatal.error in ("ENOENT", "ENODEV", "ENXIO", "ENOTDIR"):
        return (
            Verdict.ABSENT,
            f"no KVM at {report.device}: {fatal.error} ({fatal.message})",
            "switch on VT-x or AMD-V in the firmware and load kvm_intel or kvm_amd (`modprobe kvm_intel`); "
            "in a VM, ask its provider for nested virtualisation",
        )
    if fatal.step == "open":
        return Verdict.BROKEN, what, f"give the KVM device, not {report.device}"
    if fatal.error == "EBUSY":
        return (
            Verdict.BROKEN,
            what,
            "another hypervisor holds the processor's virtualisation: stop VirtualBox or VMware",
        )
    return Verdict.BROKEN, what, 'read `dmesg | grep -i kvm`; choose accel = "tcg" meanwhile'


def _denied_next_step(report: KvmReport, fatal: Failure) -> str:
    if fatal.step != "open":
        return "a security module forbids it to this process: read `dmesg | grep -iE 'denied|avc'`"
    node = report.node
    if node is None or (node.group == "kvm" and node.mode & 0o060 == 0o060):
        return 'join group kvm, then log in again: `sudo usermod -aG kvm "$USER"`'
    return (
        f"{report.device} is {node.mode & 0o777:04o}, group {node.group}: "
        f"`sudo chown root:kvm {report.device} && sudo chmod 0660 {report.device}` (group kvm; udev does this where it "
        'runs), then join it: `sudo usermod -aG kvm "$USER"`'
    )


def _judge_speed(report: KvmReport) -> tuple[Verdict, str, str]:
    kernel = report.guest("count-kernel")
    rate = kernel.instructions_per_s if kernel is not None else None
    if rate is None:  # 3
        reason = kernel.error if kernel is not None and kernel.error else "it was not run"
        return (
            Verdict.BROKEN,
            f"a counting loop in 64-bit kernel mode did not finish: {reason}",
            'read `dmesg | grep -i kvm`; choose accel = "tcg" meanwhile',
        )
    if rate >= USABLE_MIN_INSTRUCTIONS_PER_S:  # 4
        port = report.guest("port-io")
        exits = f", {port.exits_per_s:,} port exits/s" if port is not None and port.exits_per_s else ""
        return Verdict.USABLE, f"guest kernel code runs at {_millions(rate)} M instructions/s{exits}", ""
    user = report.guest("count-user")
    user_rate = user.instructions_per_s if user is not None else None
    aside = f" (user mode: {_millions(user_rate)} M/s)" if user_rate else ""
    minutes = KERNEL_BOOT_INSTRUCTIONS / max(rate, 1) / 60
    return (
        Verdict.EMULATED,
        f"KVM emulates guest kernel code one instruction at a time: {_millions(rate)} M instructions/s{aside}; a "
        f"processor that executes it does at least {_millions(USABLE_MIN_INSTRUCTIONS_PER_S)} M/s; a boot would "
        f"take about {minutes:.0f} minutes",
        'use accel = "tcg" here (faster, but not a security boundary), or a host with VT-x or AMD-V: bare metal, or '
        "nested virtualisation switched on by the provider",
    )


def _millions(rate: int) -> str:
    return f"{rate / 1e6:,.1f}" if rate < 100_000_000 else f"{rate / 1e6:,.0f}"
