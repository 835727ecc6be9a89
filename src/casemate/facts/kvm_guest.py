"""The small guests of the KVM probe: machine code beside its assembly, and the memory they live in.

Guest-physical memory, 256 KiB in one slot (64-bit guests see it identity-mapped by one 2 MiB page)::

    0x00001000  the program
    0x00002000  GDT: null, code ring 0, data ring 0, code ring 3, data ring 3
    0x00003000  IDT: 32 gates of 16 bytes
    0x00004000  fault stubs, 8 bytes each: tell the vector through FAULT_PORT, then halt
    0x00005000  TSS: the stack that a fault in ring 3 switches to
    0x00008000  top of the stack
    0x00009000  PML4   0x0000a000  PDPT   0x0000b000  PD
    0x00100000  no memory slot: a store here is MMIO
    0x10000000  three pages for KVM_SET_TSS_ADDR

A program ends by writing to END_PORT. The listings are checked against a disassembler by a test.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from casemate.facts.kvm_report import CpuMode

MEMORY_BYTES = 0x4_0000
CODE_ADDRESS = 0x1000
GDT_ADDRESS = 0x2000
IDT_ADDRESS = 0x3000
STUBS_ADDRESS = 0x4000
TSS_ADDRESS = 0x5000
STACK_TOP = 0x8000
PML4_ADDRESS = 0x9000
PDPT_ADDRESS = 0xA000
PD_ADDRESS = 0xB000
MMIO_ADDRESS = 0x10_0000
KVM_TSS_ADDRESS = 0x1000_0000

END_PORT = 0x10
WORK_PORT = 0x11
FAULT_PORT = 0x12
VECTORS = 32
TSS_BYTES = 104

KERNEL_CODE, KERNEL_DATA, USER_CODE, USER_DATA = 0x08, 0x10, 0x1B, 0x23
_GDT = (0, 0x00AF9B00_0000FFFF, 0x00CF9300_0000FFFF, 0x00AFFB00_0000FFFF, 0x00CFF300_0000FFFF)

EXCEPTION_NAMES = {0: "#DE", 6: "#UD", 8: "#DF", 10: "#TS", 11: "#NP", 12: "#SS", 13: "#GP", 14: "#PF"}


@dataclass(frozen=True, slots=True)
class Program:
    """One guest.

    ``lines`` are (machine code as hex, assembly). ``counter`` is the register that holds the number of iterations,
    ``per_iteration`` the instructions of one iteration, ``finish`` the exit that ends it (a port number or ``hlt``).
    """

    name: str
    cpu_mode: CpuMode
    lines: tuple[tuple[str, str], ...]
    counter: str = "rcx"
    per_iteration: int = 0
    finish: int | str = END_PORT

    @property
    def code(self) -> bytes:
        """The machine code."""
        return bytes.fromhex("".join(code for code, _ in self.lines))


_END = (("e6 10", "out 0x10,al"), ("f4", "hlt"))

COUNT_REAL = Program(
    "count-real",
    CpuMode.REAL,
    (("66 49", "dec ecx"), ("75 fc", "jne 0x0"), *_END),
    per_iteration=2,
)
COUNT_KERNEL = Program(
    "count-kernel",
    CpuMode.KERNEL,
    (("ff c9", "dec ecx"), ("75 fc", "jne 0x0"), *_END),
    per_iteration=2,
)
COUNT_USER = Program("count-user", CpuMode.USER, COUNT_KERNEL.lines, per_iteration=2)
PORT_IO = Program(
    "port-io",
    CpuMode.KERNEL,
    (("e6 11", "out 0x11,al"), ("ff c9", "dec ecx"), ("75 fa", "jne 0x0"), *_END),
    per_iteration=3,
)
MMIO = Program(
    "mmio",
    CpuMode.KERNEL,
    (("89 03", "mov DWORD PTR [rbx],eax"), ("ff c9", "dec ecx"), ("75 fa", "jne 0x0"), *_END),
    per_iteration=3,
)
HALT = Program("hlt", CpuMode.KERNEL, (("f4", "hlt"),), finish="hlt")
CPUID = Program("cpuid", CpuMode.KERNEL, (("0f a2", "cpuid"), *_END))
ENDLESS = Program("endless", CpuMode.KERNEL, (("eb fe", "jmp 0x0"),))
"""Never ends: for tests of the deadlines."""


def _calls(name: str, code: str, text: str) -> Program:
    """A loop of ``edi`` times one instruction with the number in R8: RBX, RCX, RDX, RSI are the call's arguments."""
    lines = (("4c 89 c0", "mov rax,r8"), (code, text), ("ff cf", "dec edi"), ("75 f6", "jne 0x0"), *_END)
    return Program(name, CpuMode.KERNEL, lines, counter="rdi", per_iteration=4)


VMCALL = _calls("vmcall", "0f 01 c1", "vmcall")
VMMCALL = _calls("vmmcall", "0f 01 d9", "vmmcall")
CALL_BASELINE = _calls("call-baseline", "0f 1f 00", "nop DWORD PTR [rax]")
"""The same loop around a no-op of the same length: what the loop itself costs."""

CALL_OFFSET = 3
"""Where the three bytes of the call instruction stand in VMCALL and VMMCALL."""

PROGRAMS = (COUNT_REAL, COUNT_KERNEL, COUNT_USER, PORT_IO, MMIO, HALT, CPUID, ENDLESS, VMCALL, VMMCALL, CALL_BASELINE)


def memory_image() -> dict[int, bytes]:
    """The tables that every 64-bit guest needs, by guest-physical address."""
    gates = bytearray()
    stubs = bytearray()
    for vector in range(VECTORS):
        handler = STUBS_ADDRESS + 8 * vector
        # 64-bit interrupt gate, present, ring 0 (SDM volume 3, 6.14.1)
        gates += struct.pack("<HHBBHII", handler & 0xFFFF, KERNEL_CODE, 0, 0x8E, handler >> 16 & 0xFFFF, 0, 0)
        # mov al,vector; out FAULT_PORT,al; hlt; jmp to the hlt
        stubs += bytes((0xB0, vector, 0xE6, FAULT_PORT, 0xF4, 0xEB, 0xFD, 0x90))
    present_writable_user = 0x7
    large_page = 0x80
    return {
        GDT_ADDRESS: struct.pack(f"<{len(_GDT)}Q", *_GDT),
        IDT_ADDRESS: bytes(gates),
        STUBS_ADDRESS: bytes(stubs),
        TSS_ADDRESS: struct.pack("<IQ", 0, STACK_TOP).ljust(TSS_BYTES, b"\0"),
        PML4_ADDRESS: struct.pack("<Q", PDPT_ADDRESS | present_writable_user),
        PDPT_ADDRESS: struct.pack("<Q", PD_ADDRESS | present_writable_user),
        PD_ADDRESS: struct.pack("<Q", present_writable_user | large_page),
    }


_SREGS_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss")
_SREGS_TR = 24 * 6
_SREGS_GDT = 24 * 8
_SREGS_CONTROL = _SREGS_GDT + 2 * 16


def _segment(selector: int, kind: int, ring: int, long_mode: int) -> bytes:
    """struct kvm_segment of a flat segment: base limit selector type present dpl db s l g avl unusable."""
    return struct.pack(
        "<QIHBBBBBBBBBB", 0, 0xFFFF_FFFF, selector, kind, 1, ring, 1 - long_mode, 1, long_mode, 1, 0, 0, 0
    )


def special_registers(sregs: bytes | bytearray, cpu_mode: CpuMode) -> bytes:
    """struct kvm_sregs for ``cpu_mode``, from the reset values in ``sregs`` (312 bytes; LDT and APIC base stay)."""
    result = bytearray(sregs)
    if cpu_mode is CpuMode.REAL:
        struct.pack_into("<QIH", result, 0, 0, 0xFFFF, 0)  # CS at 0 instead of 0xffff0000
        return bytes(result)
    user = cpu_mode is CpuMode.USER
    code = _segment(USER_CODE if user else KERNEL_CODE, 11, 3 if user else 0, 1)
    data = _segment(USER_DATA if user else KERNEL_DATA, 3, 3 if user else 0, 0)
    for number, name in enumerate(_SREGS_SEGMENTS):
        result[24 * number : 24 * (number + 1)] = code if name == "cs" else data
    # A busy 64-bit TSS; the port permissions it lacks are what IOPL 3 stands for.
    struct.pack_into(
        "<QIHBBBBBBBBBB", result, _SREGS_TR, TSS_ADDRESS, TSS_BYTES - 1, 0x28, 11, 1, 0, 0, 0, 0, 0, 0, 0, 0
    )
    struct.pack_into("<QH", result, _SREGS_GDT, GDT_ADDRESS, 8 * len(_GDT) - 1)
    struct.pack_into("<QH", result, _SREGS_GDT + 16, IDT_ADDRESS, 16 * VECTORS - 1)
    # CR0 PE|ET|NE|PG, CR2, CR3, CR4 PAE, CR8, EFER LME|LMA
    struct.pack_into("<6Q", result, _SREGS_CONTROL, 0x8000_0031, 0, PML4_ADDRESS, 0x20, 0, 0x500)
    return bytes(result)


_REGISTERS = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *(f"r{number}" for number in range(8, 16)))


def general_registers(values: dict[str, int], cpu_mode: CpuMode) -> tuple[int, ...]:
    """The 18 numbers of KVM_SET_REGS: ``values`` by name, the stack, the program's address, the flags."""
    unknown = values.keys() - set(_REGISTERS)
    if unknown:
        raise RuntimeError(f"no such register: {sorted(unknown)}")
    registers = {"rsp": STACK_TOP, **values}
    flags = 0x3002 if cpu_mode is CpuMode.USER else 0x2  # ring 3 needs IOPL 3 for the port that ends the program
    return (*(registers.get(name, 0) for name in _REGISTERS), CODE_ADDRESS, flags)
