"""One throwaway VM with one vCPU: load a small guest, run it until it ends, count and time its exits.

Only for a process of its own: a guest that never ends is stopped by SIGALRM, whose handler is the process's.

struct kvm_run, the fields used here: 1 immediate_exit u8 · 8 exit_reason u32 · 32 union: io (direction u8, size u8,
port u16, count u32, data_offset u64), internal error (suberror u32), fail entry (hardware reason u64).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Self

from casemate.facts import kvm_guest
from casemate.facts.kvm_guest import Program
from casemate.facts.kvm_names import exit_name
from casemate.facts.kvm_report import GuestRun, IrqchipMode, rate_per_s
from casemate.sys import kvm

CAP_SPLIT_IRQCHIP = 121
IOAPIC_PINS = 24
EXIT_IO = 2
EXIT_HLT = 5
EXIT_MMIO = 6
EXIT_FAIL_ENTRY = 9
EXIT_INTR = 10
EXIT_INTERNAL_ERROR = 17

GUEST_LIMIT_S = 0.5
"""Longest single run of a guest; a round that hits it counts as a guest that never ends."""

NEVER_ENDED = "it did not end in time"

_ALARM_REPEAT_S = 0.02
_ITERATIONS_MAX = 1 << 31
_EXITS_MAX = 1 << 22


@dataclass(frozen=True, slots=True)
class Finish:
    """How one run ended: ``error`` is empty when the program reached its finish. ``vector``: exception in the guest."""

    error: str
    exits: dict[str, int]
    wall_ns: int
    cpu_ns: int
    vector: int | None = None


class Machine:
    """A VM with 256 KiB and one vCPU. A context manager; all descriptors and mappings are its own.

    Args:
        kvm_fd: /dev/kvm, owned by the caller.
        mode: interrupt controller mode.
        cpuid: lines for KVM_SET_CPUID2; none leaves the vCPU without CPUID.

    Raises:
        OSError: an ioctl failed; its name is the file name. Nothing is left open.
    """

    def __init__(self, kvm_fd: int, mode: IrqchipMode, cpuid: Sequence[kvm.CpuidEntry] = ()) -> None:
        self.mode = mode
        self._fds: list[int] = []
        self._maps: list[mmap.mmap] = []
        try:
            self.vm_fd = self._own(kvm.create_vm(kvm_fd))
            with suppress(OSError):  # only Intel's real mode without unrestricted guest needs it
                kvm.set_tss_addr(self.vm_fd, kvm_guest.KVM_TSS_ADDRESS)
            self._create_irqchip()
            self.memory = mmap.mmap(-1, kvm_guest.MEMORY_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._maps.append(self.memory)
            # SAFETY: the mapping is closed after the VM (close()); the temporary view is dropped at once.
            address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
            kvm.set_user_memory_region(self.vm_fd, 0, 0, kvm_guest.MEMORY_BYTES, address)
            self.vcpu_fd = self._own(kvm.create_vcpu(self.vm_fd, 0))
            if cpuid:
                kvm.set_cpuid2(self.vcpu_fd, cpuid)
            self._run_area = mmap.mmap(self.vcpu_fd, kvm.get_vcpu_mmap_size(kvm_fd))
            self._maps.append(self._run_area)
            self._reset_sregs = bytes(kvm.get_sregs(self.vcpu_fd))
        except BaseException:
            self.close()
            raise

    def _own(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def _create_irqchip(self) -> None:
        if self.mode is IrqchipMode.KERNEL:
            kvm.create_irqchip(self.vm_fd)
            kvm.create_pit2(self.vm_fd)
        elif self.mode is IrqchipMode.SPLIT:
            kvm.enable_cap(self.vm_fd, CAP_SPLIT_IRQCHIP, IOAPIC_PINS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the vCPU, then the VM, then its memory."""
        while self._fds:
            os.close(self._fds.pop())
        while self._maps:
            self._maps.pop().close()

    def load(self, program: Program) -> None:
        """Put tables and program into memory and the vCPU into the program's mode."""
        for address, content in kvm_guest.memory_image().items():
            self.memory[address : address + len(content)] = content
        code = program.code
        self.memory[kvm_guest.CODE_ADDRESS : kvm_guest.CODE_ADDRESS + len(code)] = code
        self._settle()
        kvm.set_sregs(self.vcpu_fd, kvm_guest.special_registers(self._reset_sregs, program.cpu_mode))

    def start(self, program: Program, registers: dict[str, int]) -> None:
        """Set the general registers for a run from the program's beginning."""
        self._settle()
        kvm.set_regs(self.vcpu_fd, kvm_guest.general_registers(registers, program.cpu_mode))

    def registers(self) -> tuple[int, ...]:
        """General registers after a run, as KVM_GET_REGS gives them."""
        return kvm.get_regs(self.vcpu_fd)

    def code(self, size_bytes: int) -> bytes:
        """The program's bytes as they stand in guest memory now."""
        return bytes(self.memory[kvm_guest.CODE_ADDRESS : kvm_guest.CODE_ADDRESS + size_bytes])

    def _settle(self) -> None:
        """Let KVM finish the exit it is in: registers set before that may be changed again (KVM API, 5. kvm_run)."""
        self._run_area[1] = 1
        with suppress(OSError):
            kvm.run(self.vcpu_fd)
        self._run_area[1] = 0

    def run(self, program: Program, limit_s: float = GUEST_LIMIT_S) -> Finish:
        """Run until the program's finish, a fault, an unexpected exit, or ``limit_s``."""
        expired = False

        def on_alarm(_signal: int, _frame: FrameType | None) -> None:
            nonlocal expired
            expired = True
            self._run_area[1] = 1

        before = signal.signal(signal.SIGALRM, on_alarm)
        # Repeating: an alarm that falls between the last check and KVM_RUN is followed by one that does not.
        signal.setitimer(signal.ITIMER_REAL, limit_s, _ALARM_REPEAT_S)
        try:
            return self._run_to_finish(program, lambda: expired)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            self._run_area[1] = 0

    def _run_to_finish(self, program: Program, expired: Callable[[], bool]) -> Finish:
        exits: dict[str, int] = {}
        vector: int | None = None
        area, vcpu_fd = self._run_area, self.vcpu_fd
        reason_of, port_of = struct.Struct("<I"), struct.Struct("<H")
        io_exits = mmio_exits = 0
        wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
        while True:
            if expired() or io_exits + mmio_exits > _EXITS_MAX:
                error = NEVER_ENDED
                break
            if not kvm.run(vcpu_fd):
                continue
            reason = reason_of.unpack_from(area, 8)[0]
            if reason == EXIT_IO:
                io_exits += 1
                port = port_of.unpack_from(area, 34)[0]
                if port == kvm_guest.WORK_PORT:
                    continue
                vector = self._io_byte() if port == kvm_guest.FAULT_PORT else None
                error = "" if port == program.finish else _port_error(port, vector)
                break
            if reason == EXIT_MMIO:
                mmio_exits += 1
                continue
            if reason == EXIT_INTR:
                continue
            exits[exit_name(reason)] = 1
            error = "" if reason == EXIT_HLT and program.finish == "hlt" else self._exit_error(reason)
            break
        cpu_ns, wall_ns = time.thread_time_ns() - cpu, time.perf_counter_ns() - wall
        exits |= {name: count for name, count in (("io", io_exits), ("mmio", mmio_exits)) if count}
        return Finish(error, exits, wall_ns, cpu_ns, vector)

    def _io_byte(self) -> int | None:
        offset: int = struct.unpack_from("<Q", self._run_area, 40)[0]
        return self._run_area[offset] if offset < len(self._run_area) else None

    def _exit_error(self, reason: int) -> str:
        name = exit_name(reason)
        if reason == EXIT_INTERNAL_ERROR:
            return f"{name}, suberror {struct.unpack_from('<I', self._run_area, 32)[0]}"
        if reason == EXIT_FAIL_ENTRY:
            return f"{name}, hardware reason {struct.unpack_from('<Q', self._run_area, 32)[0]:#x}"
        return f"exit {name}"


def _port_error(port: int, vector: int | None) -> str:
    if vector is not None:
        return f"exception {kvm_guest.EXCEPTION_NAMES.get(vector, f'vector {vector}')} in the guest"
    return f"unexpected port {port:#x}"


def measure(machine: Machine, program: Program, target_ns: int, registers: dict[str, int] | None = None) -> GuestRun:
    """Run ``program`` with ever more iterations until a round takes ``target_ns`` of CPU time; keep the fastest round.

    The first rounds pay for page faults and warm caches; the fastest one is the machine's own speed.
    """
    machine.load(program)
    iterations, rounds = 500, 0
    best: tuple[float, int, Finish] | None = None
    while True:
        machine.start(program, {**(registers or {}), program.counter: iterations})
        finish = machine.run(program)
        rounds += 1
        if finish.error:
            break
        speed = iterations / max(finish.cpu_ns, 1)
        if best is None or speed > best[0]:
            best = (speed, iterations, finish)
        if finish.cpu_ns >= target_ns or finish.wall_ns >= 4 * target_ns or iterations == _ITERATIONS_MAX:
            break
        growth = min(32.0, max(2.0, 1.2 * target_ns / max(finish.cpu_ns, 1)))
        iterations = min(int(iterations * growth), _ITERATIONS_MAX)
    if best is None or finish.error not in ("", NEVER_ENDED):
        return _guest_run(program, rounds, 0, finish)
    return _guest_run(program, rounds, best[1], best[2])  # a round cut short on a busy host does not void the others


def _guest_run(program: Program, rounds: int, iterations: int, finish: Finish) -> GuestRun:
    instructions = iterations * program.per_iteration
    failed = bool(finish.error) or not instructions
    return GuestRun(
        name=program.name,
        cpu_mode=program.cpu_mode,
        rounds=rounds,
        iterations=iterations,
        instructions=instructions,
        exits=finish.exits,
        wall_ns=finish.wall_ns,
        cpu_ns=finish.cpu_ns,
        instructions_per_s=None if failed else rate_per_s(instructions, finish.cpu_ns),
        exits_per_s=None if failed else rate_per_s(sum(finish.exits.values()), finish.cpu_ns),
        error=finish.error,
    )


def run_once(machine: Machine, program: Program) -> GuestRun:
    """Run a guest that has no loop (HLT) once: no rates."""
    machine.load(program)
    machine.start(program, {})
    return _guest_run(program, 1, 0, machine.run(program))
