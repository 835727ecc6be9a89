"""The probe's questions to KVM, asked in a process of its own (see kvm_child). No judgement here.

1. the device node, opened only when it is character device 10:232. 2. API version, capabilities, limits. 3. CPUID.
4. each interrupt controller mode on a VM of its own. 5. the small guests. 6. the hypercalls.

Whatever fails is recorded and the next question is asked; only a device that does not answer at all ends it.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from casemate.facts import kvm_guest
from casemate.facts.kvm_guest import Program
from casemate.facts.kvm_machine import NEVER_ENDED, Machine, measure, run_once
from casemate.facts.kvm_names import CAPABILITIES, HYPERCALLS, PV_FEATURES, PV_HINTS, bit_names
from casemate.facts.kvm_report import (
    Cpuid,
    CpuMode,
    DeviceNode,
    Extension,
    Failure,
    GuestRun,
    Hypercall,
    Irqchip,
    IrqchipMode,
    KvmReport,
    Limits,
)
from casemate.sys import kvm

KVM_RDEV = (10, 232)
"""Character device of /dev/kvm: misc major, KVM_MINOR (linux/miscdevice.h)."""

LOOP_TARGET_NS = 20_000_000
EXIT_TARGET_NS = 8_000_000
CALL_TARGET_NS = 3_000_000
CALL_LIMIT_S = 0.03
"""A hypercall costs 1 to 10 microseconds; one that has not returned after this long never will."""

NEVER_RETURNED = "it never returned"

CAPABILITY_NUMBERS = range(300)
MSR_ARCH_CAPABILITIES = 0x10A

Stage = Callable[[str], None]
"""Called with the name of each step before it starts, so that a killed probe can say where it was."""


@dataclass(slots=True)
class _Notes:
    """What has been found so far."""

    stage: Stage
    budget_s: float
    began: float = field(default_factory=time.monotonic)
    cpuid: Cpuid | None = None
    failures: list[Failure] = field(default_factory=list)
    irqchips: list[Irqchip] = field(default_factory=list)
    guests: list[GuestRun] = field(default_factory=list)
    hypercalls: list[Hypercall] = field(default_factory=list)

    @contextlib.contextmanager
    def step(self, name: str, *, fatal: bool = False) -> Iterator[None]:
        """Name the step; turn an OSError in it into a recorded failure."""
        self.stage(name)
        try:
            yield
        except OSError as fault:
            what = fault.filename if isinstance(fault.filename, str) and fault.filename.startswith("KVM_") else name
            self.failures.append(failure_of(what, fault, fatal=fatal))

    def late(self, step: str) -> bool:
        """True, and on record, when the probe has used up its time and ``step`` is left out."""
        if time.monotonic() - self.began < self.budget_s:
            return False
        self.failures.append(Failure(step, "ETIME", f"left out: the probe had run for {self.budget_s:.1f} s"))
        return True

    def failed(self, step: str) -> bool:
        """Whether this step ended in a failure."""
        return any(failure.step == step for failure in self.failures)


def failure_of(step: str, fault: OSError, *, fatal: bool = False) -> Failure:
    """An OSError as a failure, errno by name."""
    number = fault.errno or 0
    return Failure(step, errno.errorcode.get(number, f"errno {number}"), fault.strerror or os.strerror(number), fatal)


def collect(device: str, machine: str, stage: Stage, budget_s: float) -> KvmReport:
    """Ask everything.

    Args:
        device: path of the KVM device.
        machine: the architecture as ``uname -m`` says it.
        stage: told of each step before it starts.
        budget_s: after this long the remaining guests are left out, so that a deadline does not cost what is known.
    """
    notes = _Notes(stage, budget_s)
    node: DeviceNode | None = None
    api_version: int | None = None
    extensions: tuple[Extension, ...] = ()
    limits = Limits()
    kvm_fd = -1
    with notes.step("open", fatal=True):
        node = _node(device)  # 1
        kvm_fd = _open_device(device)
    if kvm_fd >= 0:
        with notes.step("KVM_GET_API_VERSION", fatal=True):  # 2
            api_version = kvm.get_api_version(kvm_fd)
        with notes.step("extensions"):
            extensions = _extensions(kvm_fd)
    if api_version is not None and machine == "x86_64":
        entries: tuple[kvm.CpuidEntry, ...] = ()
        limits = _limits(kvm_fd, extensions, notes)
        with notes.step("KVM_GET_SUPPORTED_CPUID"):  # 3
            entries = kvm.get_supported_cpuid(kvm_fd)
            notes.cpuid = decode_cpuid(entries, extensions)
        with notes.step("KVM_CREATE_VM", fatal=True):
            os.close(kvm.create_vm(kvm_fd))
        if not notes.failed("KVM_CREATE_VM"):
            _irqchips(kvm_fd, entries, notes)  # 4
            _guests(kvm_fd, entries, notes)  # 5
            _guest_view(kvm_fd, entries, notes)
            _hypercalls(kvm_fd, entries, notes)  # 6
    if kvm_fd >= 0:
        os.close(kvm_fd)
    return KvmReport(
        device=device,
        machine=machine,
        kernel_release=os.uname().release,
        node=node,
        api_version=api_version,
        extensions=extensions,
        irqchips=tuple(notes.irqchips),
        limits=limits,
        cpuid=notes.cpuid,
        guests=tuple(notes.guests),
        hypercalls=tuple(notes.hypercalls),
        failures=tuple(notes.failures),
        elapsed_ms=int((time.monotonic() - notes.began) * 1000),
    )


def _node(device: str) -> DeviceNode:
    status = Path(device).stat()
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = str(status.st_gid)
    return DeviceNode(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, group)


def _open_device(device: str) -> int:
    """Open the KVM device; any other file is refused before it is opened, as opening some devices has effects.

    Raises:
        OSError: ENOTTY when it is not the KVM device, else what open(2) says.
    """
    if _is_kvm(Path(device).stat()):
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        if _is_kvm(os.fstat(fd)):
            return fd
        os.close(fd)
    raise OSError(errno.ENOTTY, "not the KVM device (character device 10:232)", device)


def _is_kvm(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and (os.major(status.st_rdev), os.minor(status.st_rdev)) == KVM_RDEV


def _extensions(kvm_fd: int) -> tuple[Extension, ...]:
    found = []
    for number in CAPABILITY_NUMBERS:
        value = kvm.check_extension(kvm_fd, number)
        if number in CAPABILITIES or value:
            found.append(Extension(number, CAPABILITIES.get(number, str(number)), value))
    return tuple(found)


def _limits(kvm_fd: int, extensions: tuple[Extension, ...], notes: _Notes) -> Limits:
    values = {item.name: item.value for item in extensions}
    area = state_msrs = feature_msrs = None
    with notes.step("KVM_GET_VCPU_MMAP_SIZE"):
        area = kvm.get_vcpu_mmap_size(kvm_fd)
    with notes.step("KVM_GET_MSR_INDEX_LIST"):
        state_msrs = len(kvm.get_msr_index_list(kvm_fd))
    with notes.step("KVM_GET_MSR_FEATURE_INDEX_LIST"):
        feature_msrs = len(kvm.get_msr_feature_index_list(kvm_fd))
    return Limits(
        recommended_vcpus=values.get("NR_VCPUS"),
        max_vcpus=values.get("MAX_VCPUS"),
        max_vcpu_id=values.get("MAX_VCPU_ID"),
        memory_slots=values.get("NR_MEMSLOTS"),
        run_area_bytes=area,
        state_msrs=state_msrs,
        feature_msrs=feature_msrs,
    )


def decode_cpuid(entries: tuple[kvm.CpuidEntry, ...], extensions: tuple[Extension, ...]) -> Cpuid:
    """Read the leaves that matter out of the supported CPUID; a missing leaf counts as all zero."""
    leaves = {entry.function: entry for entry in reversed(entries)}  # the first subleaf of each leaf wins
    none = kvm.CpuidEntry(0, 0, 0, 0, 0, 0, 0)
    basic, features = leaves.get(0, none), leaves.get(1, none)
    extended = leaves.get(0x8000_0001, none)
    encryption = leaves.get(0x8000_001F, none)
    signature, paravirt = leaves.get(0x4000_0000, none), leaves.get(0x4000_0001, none)
    deadline_capability = any(item.name == "TSC_DEADLINE_TIMER" and item.value for item in extensions)
    return Cpuid(
        entries=len(entries),
        vendor=_text(basic.ebx, basic.edx, basic.ecx),
        tsc_deadline=bool(features.ecx >> 24 & 1) or deadline_capability,
        x2apic=bool(features.ecx >> 21 & 1),
        hypervisor=bool(features.ecx >> 31 & 1),
        vmx=bool(features.ecx >> 5 & 1),
        svm=bool(extended.ecx >> 2 & 1),
        kvm_signature=_text(signature.ebx, signature.ecx, signature.edx),
        kvm_max_leaf=signature.eax,
        kvm_features=bit_names(paravirt.eax, PV_FEATURES),
        kvm_hints=bit_names(paravirt.edx, PV_HINTS),
        c_bit=encryption.ebx & 0x3F if encryption.eax & 2 else None,  # EAX bit 1: SEV
    )


def _text(*registers: int) -> str:
    """Twelve bytes of a CPUID signature as printable text."""
    raw = struct.pack("<3I", *registers).rstrip(b"\0")
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in raw)


def _irqchips(kvm_fd: int, entries: tuple[kvm.CpuidEntry, ...], notes: _Notes) -> None:
    for mode in IrqchipMode:
        notes.stage(f"interrupt controllers {mode}")
        try:
            with Machine(kvm_fd, mode, entries) as vm:
                chip = Irqchip(
                    mode,
                    available=True,
                    pic=_answers(lambda vm=vm: kvm.get_irqchip(vm.vm_fd, 0)),  # type: ignore[misc]
                    ioapic=_answers(lambda vm=vm: kvm.get_irqchip(vm.vm_fd, 2)),  # type: ignore[misc]
                    pit=_answers(lambda vm=vm: kvm.get_pit2(vm.vm_fd)),  # type: ignore[misc]
                    local_apic=_answers(lambda vm=vm: kvm.get_lapic(vm.vcpu_fd)),  # type: ignore[misc]
                    msrs_refused=_msrs_refused(kvm_fd, vm, notes),
                )
        except OSError as fault:
            chip = Irqchip(mode, available=False, error=f"{fault.filename}: {fault.strerror}")
        notes.irqchips.append(chip)


def _answers(question: Callable[[], object]) -> bool:
    try:
        question()
    except OSError:
        return False
    return True


def _msrs_refused(kvm_fd: int, vm: Machine, notes: _Notes) -> tuple[str, ...]:
    """State MSRs whose own value KVM does not take back, and ARCH_CAPABILITIES with the value it advertises.

    This is what QEMU does on reset; it aborts when one is refused (kvm_buf_set_msrs in target/i386/kvm/kvm.c).
    """
    refused = []
    with notes.step(f"MSRs {vm.mode}"):
        for index in kvm.get_msr_index_list(kvm_fd):
            feature = index == MSR_ARCH_CAPABILITIES
            try:
                value = kvm.get_msr(kvm_fd if feature else vm.vcpu_fd, index)
                if value is not None and not kvm.set_msr(vm.vcpu_fd, index, value):
                    refused.append(f"{index:#x}")
            except OSError:
                refused.append(f"{index:#x}")
    return tuple(refused)


def _guests(kvm_fd: int, entries: tuple[kvm.CpuidEntry, ...], notes: _Notes) -> None:
    plan: tuple[tuple[Program, int, dict[str, int]], ...] = (
        (kvm_guest.COUNT_KERNEL, LOOP_TARGET_NS, {}),
        (kvm_guest.COUNT_REAL, LOOP_TARGET_NS, {}),
        (kvm_guest.COUNT_USER, LOOP_TARGET_NS, {}),
        (kvm_guest.PORT_IO, EXIT_TARGET_NS, {}),
        (kvm_guest.MMIO, EXIT_TARGET_NS, {"rbx": kvm_guest.MMIO_ADDRESS}),
        (kvm_guest.HALT, 0, {}),
    )
    for program, target_ns, registers in plan:
        if notes.late(f"guest {program.name}"):
            continue
        with notes.step(f"guest {program.name}"), Machine(kvm_fd, IrqchipMode.USERSPACE, entries) as vm:
            run = measure(vm, program, target_ns, registers) if target_ns else run_once(vm, program)
            notes.guests.append(run)


def _guest_view(kvm_fd: int, entries: tuple[kvm.CpuidEntry, ...], notes: _Notes) -> None:
    """Add what the CPUID instruction says inside a guest that was given ``entries``."""
    if notes.cpuid is None:
        return
    with notes.step("guest cpuid"), Machine(kvm_fd, IrqchipMode.USERSPACE, entries) as vm:
        _, ebx, ecx, edx = _guest_cpuid(vm, 0x4000_0000)
        features = bit_names(_guest_cpuid(vm, 0x4000_0001)[0], PV_FEATURES)
        signature = _text(ebx, ecx, edx)
        notes.cpuid = msgspec.structs.replace(notes.cpuid, guest_kvm_signature=signature, guest_kvm_features=features)


def _guest_cpuid(vm: Machine, leaf: int) -> tuple[int, int, int, int]:
    """EAX, EBX, ECX, EDX that the CPUID instruction gives inside the guest.

    Raises:
        OSError: EIO when the guest did not get that far.
    """
    vm.load(kvm_guest.CPUID)
    vm.start(kvm_guest.CPUID, {"rax": leaf})
    finish = vm.run(kvm_guest.CPUID)
    if finish.error:
        raise OSError(errno.EIO, finish.error, "guest cpuid")
    rax, rbx, rcx, rdx = (value & 0xFFFF_FFFF for value in vm.registers()[:4])
    return rax, rbx, rcx, rdx


def _hypercalls(kvm_fd: int, entries: tuple[kvm.CpuidEntry, ...], notes: _Notes) -> None:
    """Issue the hypercalls with the local APIC in the kernel, where KICK_CPU has something to kick."""
    available = [chip.mode for chip in notes.irqchips if chip.available and chip.mode is not IrqchipMode.USERSPACE]
    mode = IrqchipMode.SPLIT if IrqchipMode.SPLIT in available else next(iter(available), IrqchipMode.USERSPACE)
    for cpu_mode in (CpuMode.KERNEL, CpuMode.USER):
        if notes.late(f"hypercalls {cpu_mode}"):
            continue
        baseline_ns = 0.0
        with notes.step(f"hypercall baseline {cpu_mode}"), Machine(kvm_fd, mode, entries) as vm:
            run = measure(vm, replace(kvm_guest.CALL_BASELINE, cpu_mode=cpu_mode), CALL_TARGET_NS)
            baseline_ns = run.cpu_ns / max(run.iterations, 1) if not run.error else 0.0
        for program in (kvm_guest.VMCALL, kvm_guest.VMMCALL):
            hung = False
            for number, name in HYPERCALLS.items():
                if hung:  # each one costs the probe CALL_LIMIT_S
                    notes.hypercalls.append(_no_answer(program, cpu_mode, number, name, False, "not tried: see above"))
                    continue
                with notes.step(f"hypercall {program.name} {name} {cpu_mode}"), Machine(kvm_fd, mode, entries) as vm:
                    call = _hypercall(vm, replace(program, cpu_mode=cpu_mode), number, name, baseline_ns)
                    notes.hypercalls.append(call)
                    hung = call.fault == NEVER_RETURNED


def _hypercall(vm: Machine, program: Program, number: int, name: str, baseline_ns: float) -> Hypercall:
    registers = {"r8": number}
    vm.load(program)
    vm.start(program, {**registers, program.counter: 1})
    first = vm.run(program, CALL_LIMIT_S)
    if first.error == NEVER_ENDED and first.cpu_ns < CALL_LIMIT_S * 5e8:  # the host was busy elsewhere half of the time
        vm.start(program, {**registers, program.counter: 1})
        first = vm.run(program, 10 * CALL_LIMIT_S)
    at = kvm_guest.CALL_OFFSET
    patched = vm.code(at + 3)[at:] != program.code[at : at + 3]
    if first.error:
        fault = NEVER_RETURNED if first.error == NEVER_ENDED else first.error
        return _no_answer(program, program.cpu_mode, number, name, patched, fault, first.exits)
    rax = vm.registers()[0]
    value = rax - (1 << 64) if rax >> 63 else rax
    run = measure(vm, program, CALL_TARGET_NS, registers)
    cost = None if run.error else max(0, round(run.cpu_ns / run.iterations - baseline_ns))
    in_kernel = first.exits == {"io": 1}  # the one exit is the end of the program
    return Hypercall(program.name, program.cpu_mode, number, name, value, in_kernel, patched, cost, run.error)


def _no_answer(
    program: Program,
    cpu_mode: CpuMode,
    number: int,
    name: str,
    patched: bool,
    fault: str,
    exits: dict[str, int] | None = None,
) -> Hypercall:
    in_kernel = False if exits and "hypercall" in exits else None
    return Hypercall(program.name, cpu_mode, number, name, None, in_kernel, patched, None, fault)
