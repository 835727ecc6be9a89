"""/dev/kvm: request numbers and one thin wrapper per ioctl (x86-64 layouts; source: linux/kvm.h, asm/kvm.h).

Each wrapper takes an open descriptor, packs and unpacks the one structure of that ioctl, and raises OSError with the
name of the ioctl as its file name. Nothing is interpreted here.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

from casemate.sys.libc import libc

KVMIO = 0xAE
_NONE, _WRITE, _READ = 0, 1, 2


def _request(direction: int, number: int, size_bytes: int = 0) -> int:
    """The number of an ioctl as asm-generic/ioctl.h encodes it (x86, arm64; not powerpc or mips)."""
    return direction << 30 | size_bytes << 16 | KVMIO << 8 | number


KVM_GET_API_VERSION = _request(_NONE, 0x00)
KVM_CREATE_VM = _request(_NONE, 0x01)
KVM_GET_MSR_INDEX_LIST = _request(_READ | _WRITE, 0x02, 4)
KVM_CHECK_EXTENSION = _request(_NONE, 0x03)
KVM_GET_VCPU_MMAP_SIZE = _request(_NONE, 0x04)
KVM_GET_SUPPORTED_CPUID = _request(_READ | _WRITE, 0x05, 8)
KVM_GET_MSR_FEATURE_INDEX_LIST = _request(_READ | _WRITE, 0x0A, 4)
KVM_CREATE_VCPU = _request(_NONE, 0x41)
KVM_SET_USER_MEMORY_REGION = _request(_WRITE, 0x46, 32)
KVM_SET_TSS_ADDR = _request(_NONE, 0x47)
KVM_CREATE_IRQCHIP = _request(_NONE, 0x60)
KVM_GET_IRQCHIP = _request(_READ | _WRITE, 0x62, 520)
KVM_CREATE_PIT2 = _request(_WRITE, 0x77, 64)
KVM_RUN = _request(_NONE, 0x80)
KVM_GET_REGS = _request(_READ, 0x81, 144)
KVM_SET_REGS = _request(_WRITE, 0x82, 144)
KVM_GET_SREGS = _request(_READ, 0x83, 312)
KVM_SET_SREGS = _request(_WRITE, 0x84, 312)
KVM_GET_MSRS = _request(_READ | _WRITE, 0x88, 8)
KVM_SET_MSRS = _request(_WRITE, 0x89, 8)
KVM_GET_LAPIC = _request(_READ, 0x8E, 1024)
KVM_SET_CPUID2 = _request(_WRITE, 0x90, 8)
KVM_GET_PIT2 = _request(_READ, 0x9F, 112)
KVM_ENABLE_CAP = _request(_WRITE, 0xA3, 104)

CPUID_ENTRIES_MAX = 1024
MSR_ENTRIES_MAX = 8192

_ioctl = libc["ioctl"]  # a function object of our own: setting its types changes nothing for others
_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong)
_ioctl.restype = ctypes.c_int


class CpuidEntry(NamedTuple):
    """One line of a CPUID table (struct kvm_cpuid_entry2)."""

    function: int
    subleaf: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


def _named(error: OSError, what: str) -> OSError:
    number = error.errno or 0
    return OSError(number, os.strerror(number), what)


def _by_value(fd: int, request: int, value: int, what: str) -> int:
    """An ioctl whose argument is a plain number below 2**31; returns the kernel's answer (>= 0)."""
    try:
        return fcntl.ioctl(fd, request, value)
    except OSError as error:
        raise _named(error, what) from None


def _by_buffer(fd: int, request: int, buffer: bytearray, what: str) -> int:
    """An ioctl that reads and/or writes ``buffer`` in place; returns the kernel's answer (>= 0)."""
    try:
        # SAFETY: every caller sizes the buffer for the structure whose size is encoded in the request, or longer.
        result: int = fcntl.ioctl(fd, request, buffer, True)
    except OSError as error:
        raise _named(error, what) from None
    return result


def get_api_version(kvm_fd: int) -> int:
    """KVM_GET_API_VERSION: 12 on every kernel since 2.6.22."""
    return _by_value(kvm_fd, KVM_GET_API_VERSION, 0, "KVM_GET_API_VERSION")


def check_extension(fd: int, capability: int) -> int:
    """KVM_CHECK_EXTENSION on /dev/kvm or a VM: 0 when missing, else 1 or a capability-specific value."""
    return _by_value(fd, KVM_CHECK_EXTENSION, capability, "KVM_CHECK_EXTENSION")


def get_vcpu_mmap_size(kvm_fd: int) -> int:
    """KVM_GET_VCPU_MMAP_SIZE: bytes of a vCPU's shared run area."""
    return _by_value(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0, "KVM_GET_VCPU_MMAP_SIZE")


def create_vm(kvm_fd: int) -> int:
    """KVM_CREATE_VM: a new VM's descriptor (close-on-exec), owned by the caller."""
    return _by_value(kvm_fd, KVM_CREATE_VM, 0, "KVM_CREATE_VM")


def create_vcpu(vm_fd: int, vcpu_id: int) -> int:
    """KVM_CREATE_VCPU: a new vCPU's descriptor, owned by the caller."""
    return _by_value(vm_fd, KVM_CREATE_VCPU, vcpu_id, "KVM_CREATE_VCPU")


def create_irqchip(vm_fd: int) -> None:
    """KVM_CREATE_IRQCHIP: PIC, IOAPIC and local APICs in the kernel. Before any vCPU."""
    _by_value(vm_fd, KVM_CREATE_IRQCHIP, 0, "KVM_CREATE_IRQCHIP")


def create_pit2(vm_fd: int) -> None:
    """KVM_CREATE_PIT2: the i8254 timer in the kernel; needs create_irqchip first."""
    _by_buffer(vm_fd, KVM_CREATE_PIT2, bytearray(64), "KVM_CREATE_PIT2")


def set_tss_addr(vm_fd: int, guest_address: int) -> None:
    """KVM_SET_TSS_ADDR: three guest pages for Intel's real mode. ``guest_address`` < 2**31, in no memory slot."""
    _by_value(vm_fd, KVM_SET_TSS_ADDR, guest_address, "KVM_SET_TSS_ADDR")


def enable_cap(fd: int, capability: int, argument: int = 0) -> None:
    """KVM_ENABLE_CAP with one argument."""
    packed = bytearray(struct.pack("<IIQQQQ64x", capability, 0, argument, 0, 0, 0))
    _by_buffer(fd, KVM_ENABLE_CAP, packed, "KVM_ENABLE_CAP")


def set_user_memory_region(vm_fd: int, slot: int, guest_address: int, size_bytes: int, host_address: int) -> None:
    """KVM_SET_USER_MEMORY_REGION: map ``size_bytes`` at ``host_address`` into the guest.

    The mapping at ``host_address`` must outlive the VM.
    """
    packed = bytearray(struct.pack("<IIQQQ", slot, 0, guest_address, size_bytes, host_address))
    _by_buffer(vm_fd, KVM_SET_USER_MEMORY_REGION, packed, "KVM_SET_USER_MEMORY_REGION")


def get_regs(vcpu_fd: int) -> tuple[int, ...]:
    """KVM_GET_REGS: rax rbx rcx rdx rsi rdi rsp rbp r8..r15 rip rflags (18 numbers)."""
    buffer = bytearray(144)
    _by_buffer(vcpu_fd, KVM_GET_REGS, buffer, "KVM_GET_REGS")
    return struct.unpack("<18Q", buffer)


def set_regs(vcpu_fd: int, values: Sequence[int]) -> None:
    """KVM_SET_REGS: the 18 numbers of ``get_regs``."""
    _by_buffer(vcpu_fd, KVM_SET_REGS, bytearray(struct.pack("<18Q", *values)), "KVM_SET_REGS")


def get_sregs(vcpu_fd: int) -> bytearray:
    """KVM_GET_SREGS: struct kvm_sregs as 312 bytes."""
    buffer = bytearray(312)
    _by_buffer(vcpu_fd, KVM_GET_SREGS, buffer, "KVM_GET_SREGS")
    return buffer


def set_sregs(vcpu_fd: int, sregs: bytes | bytearray) -> None:
    """KVM_SET_SREGS: struct kvm_sregs as 312 bytes."""
    if len(sregs) != 312:
        raise RuntimeError(f"struct kvm_sregs has 312 bytes, not {len(sregs)}")
    _by_buffer(vcpu_fd, KVM_SET_SREGS, bytearray(sregs), "KVM_SET_SREGS")


def get_lapic(vcpu_fd: int) -> bytes:
    """KVM_GET_LAPIC: the local APIC's registers; EINVAL when the kernel does not emulate it."""
    buffer = bytearray(1024)
    _by_buffer(vcpu_fd, KVM_GET_LAPIC, buffer, "KVM_GET_LAPIC")
    return bytes(buffer)


def get_irqchip(vm_fd: int, chip: int) -> bytes:
    """KVM_GET_IRQCHIP of chip 0 (PIC master), 1 (PIC slave) or 2 (IOAPIC); ENXIO when it is not in the kernel."""
    buffer = bytearray(struct.pack("<II512x", chip, 0))
    _by_buffer(vm_fd, KVM_GET_IRQCHIP, buffer, "KVM_GET_IRQCHIP")
    return bytes(buffer)


def get_pit2(vm_fd: int) -> bytes:
    """KVM_GET_PIT2; ENXIO when the kernel does not emulate the timer."""
    buffer = bytearray(112)
    _by_buffer(vm_fd, KVM_GET_PIT2, buffer, "KVM_GET_PIT2")
    return bytes(buffer)


def get_supported_cpuid(kvm_fd: int) -> tuple[CpuidEntry, ...]:
    """KVM_GET_SUPPORTED_CPUID: every line KVM can give to a guest."""
    buffer = bytearray(8 + 40 * CPUID_ENTRIES_MAX)
    struct.pack_into("<I", buffer, 0, CPUID_ENTRIES_MAX)
    _by_buffer(kvm_fd, KVM_GET_SUPPORTED_CPUID, buffer, "KVM_GET_SUPPORTED_CPUID")
    count = min(struct.unpack_from("<I", buffer, 0)[0], CPUID_ENTRIES_MAX)
    return tuple(CpuidEntry(*struct.unpack_from("<7I", buffer, 8 + 40 * number)) for number in range(count))


def set_cpuid2(vcpu_fd: int, entries: Sequence[CpuidEntry]) -> None:
    """KVM_SET_CPUID2: what the CPUID instruction answers in the guest. Before the vCPU runs."""
    buffer = bytearray(struct.pack("<II", len(entries), 0))
    for entry in entries:
        buffer += struct.pack("<7I12x", *entry)
    _by_buffer(vcpu_fd, KVM_SET_CPUID2, buffer, "KVM_SET_CPUID2")


def get_msr_index_list(kvm_fd: int) -> tuple[int, ...]:
    """KVM_GET_MSR_INDEX_LIST: the MSRs that belong to a vCPU's state."""
    return _msr_list(kvm_fd, KVM_GET_MSR_INDEX_LIST, "KVM_GET_MSR_INDEX_LIST")


def get_msr_feature_index_list(kvm_fd: int) -> tuple[int, ...]:
    """KVM_GET_MSR_FEATURE_INDEX_LIST: the MSRs that describe what the host offers."""
    return _msr_list(kvm_fd, KVM_GET_MSR_FEATURE_INDEX_LIST, "KVM_GET_MSR_FEATURE_INDEX_LIST")


def _msr_list(kvm_fd: int, request: int, what: str) -> tuple[int, ...]:
    buffer = bytearray(4 + 4 * MSR_ENTRIES_MAX)
    struct.pack_into("<I", buffer, 0, MSR_ENTRIES_MAX)
    _by_buffer(kvm_fd, request, buffer, what)
    count = min(struct.unpack_from("<I", buffer, 0)[0], MSR_ENTRIES_MAX)
    return struct.unpack_from(f"<{count}I", buffer, 4)


def get_msr(fd: int, index: int) -> int | None:
    """KVM_GET_MSRS of one MSR, on a vCPU or (feature MSRs) on /dev/kvm; None when KVM has no value for it."""
    buffer = bytearray(struct.pack("<IIIIQ", 1, 0, index, 0, 0))
    if _by_buffer(fd, KVM_GET_MSRS, buffer, "KVM_GET_MSRS") != 1:
        return None
    value: int = struct.unpack_from("<Q", buffer, 16)[0]
    return value


def set_msr(vcpu_fd: int, index: int, value: int) -> bool:
    """KVM_SET_MSRS of one MSR; False when KVM refuses the value (QEMU aborts when that happens)."""
    buffer = bytearray(struct.pack("<IIIIQ", 1, 0, index, 0, value))
    return _by_buffer(vcpu_fd, KVM_SET_MSRS, buffer, "KVM_SET_MSRS") == 1


def run(vcpu_fd: int) -> bool:
    """KVM_RUN until the guest exits. False when a signal (or immediate_exit) ended it: nothing is retried here.

    Not ``fcntl.ioctl``: a Python that repeats interrupted calls would never return while immediate_exit is set.
    """
    # SAFETY: KVM_RUN takes no argument; descriptor and request are plain numbers.
    if _ioctl(vcpu_fd, KVM_RUN, 0) >= 0:
        return True
    number = ctypes.get_errno()
    if number == errno.EINTR:
        return False
    raise OSError(number, os.strerror(number), "KVM_RUN")
