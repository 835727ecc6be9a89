"""Classic BPF as seccomp accepts it: read, check, write and print programs.

A program is an array of ``struct sock_filter`` (8 bytes each, native byte order: u16 code, u8 jt, u8 jf, u32 k). The
checks repeat what the kernel does before it takes a filter: ``bpf_check_classic`` in net/core/filter.c (known code,
jump targets, shift and division constants, last instruction returns, scratch memory written before it is read) and
``seccomp_check_filter`` in kernel/seccomp.c (a smaller set of codes, aligned loads within ``struct seccomp_data``).
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

MAX_INSTRUCTIONS: Final = 4096
INSTRUCTION_BYTES: Final = 8
DATA_BYTES: Final = 64
"""sizeof(struct seccomp_data): nr, arch, instruction_pointer, args[6]."""
SCRATCH_WORDS: Final = 16

_LAYOUT: Final = struct.Struct("=HBBI")
_U32: Final = 0xFFFF_FFFF


class Instruction(NamedTuple):
    """One instruction: operation, jump distances (when true, when false) and constant."""

    code: int
    jt: int
    jf: int
    k: int


Program = tuple[Instruction, ...]

LD_ABS: Final = 0x20
LD_IMM: Final = 0x00
LD_MEM: Final = 0x60
LD_LEN: Final = 0x80
LDX_IMM: Final = 0x01
LDX_MEM: Final = 0x61
LDX_LEN: Final = 0x81
ST: Final = 0x02
STX: Final = 0x03
JA: Final = 0x05
RET_K: Final = 0x06
RET_A: Final = 0x16
TAX: Final = 0x07
TXA: Final = 0x87
NEG: Final = 0x84

JEQ_K, JEQ_X = 0x15, 0x1D
JGT_K, JGT_X = 0x25, 0x2D
JGE_K, JGE_X = 0x35, 0x3D
JSET_K, JSET_X = 0x45, 0x4D

ADD_K, ADD_X = 0x04, 0x0C
SUB_K, SUB_X = 0x14, 0x1C
MUL_K, MUL_X = 0x24, 0x2C
DIV_K, DIV_X = 0x34, 0x3C
OR_K, OR_X = 0x44, 0x4C
AND_K, AND_X = 0x54, 0x5C
LSH_K, LSH_X = 0x64, 0x6C
RSH_K, RSH_X = 0x74, 0x7C
XOR_K, XOR_X = 0xA4, 0xAC

JUMPS_K: Final = frozenset({JEQ_K, JGT_K, JGE_K, JSET_K})
JUMPS_X: Final = frozenset({JEQ_X, JGT_X, JGE_X, JSET_X})
JUMPS: Final = JUMPS_K | JUMPS_X
ALU_K: Final = frozenset({ADD_K, SUB_K, MUL_K, DIV_K, OR_K, AND_K, LSH_K, RSH_K, XOR_K})
ALU_X: Final = frozenset({ADD_X, SUB_X, MUL_X, DIV_X, OR_X, AND_X, LSH_X, RSH_X, XOR_X})
SCRATCH: Final = frozenset({LD_MEM, LDX_MEM, ST, STX})

# BPF_MOD is not here: the kernel's table for seccomp leaves it out.
CODES: Final = (
    frozenset({LD_ABS, LD_IMM, LD_LEN, LDX_IMM, LDX_LEN, JA, RET_K, RET_A, TAX, TXA, NEG})
    | JUMPS
    | ALU_K
    | ALU_X
    | SCRATCH
)

_ALU_SIGNS: Final = {
    0x00: "+",
    0x10: "-",
    0x20: "*",
    0x30: "/",
    0x40: "|",
    0x50: "&",
    0x60: "<<",
    0x70: ">>",
    0xA0: "^",
}
_JUMP_SIGNS: Final = {0x10: "==", 0x20: ">", 0x30: ">=", 0x40: "&"}
_WORD_NAMES: Final = {0: "nr", 4: "arch", 8: "ip.lo", 12: "ip.hi"}


def decode(data: bytes) -> Program:
    """Read a program and check it as the kernel does.

    Args:
        data: 1 to 4096 instructions of 8 bytes in native byte order, as PTRACE_SECCOMP_GET_FILTER gives them.

    Raises:
        ValueError: wrong size, or a program that the kernel refuses; the message names the instruction.
    """
    if not data or len(data) % INSTRUCTION_BYTES or len(data) > MAX_INSTRUCTIONS * INSTRUCTION_BYTES:
        raise ValueError(
            f"a filter is 1 to {MAX_INSTRUCTIONS} instructions of {INSTRUCTION_BYTES} bytes; got {len(data)} bytes"
        )
    program = tuple(map(Instruction._make, _LAYOUT.iter_unpack(data)))
    check(program)
    return program


def encode(program: Program) -> bytes:
    """The bytes of a program, checked first.

    Raises:
        ValueError: the kernel would refuse the program, or a field does not fit.
    """
    check(program)
    return b"".join(_LAYOUT.pack(*instruction) for instruction in program)


def check(program: Program) -> None:
    """Raise ValueError if the kernel would refuse ``program`` as a seccomp filter."""
    length = len(program)
    if not 1 <= length <= MAX_INSTRUCTIONS:
        raise ValueError(f"a filter has 1 to {MAX_INSTRUCTIONS} instructions, got {length}")
    for at, instruction in enumerate(program):
        fault = _fault(at, instruction, length)
        if fault:
            raise ValueError(f"instruction {at} ({_show_raw(instruction)}): {fault}")
    if program[-1].code not in {RET_K, RET_A}:
        raise ValueError(f"instruction {length - 1} ({_show_raw(program[-1])}): the last instruction must return")
    _check_scratch(program)


def _fault(at: int, instruction: Instruction, length: int) -> str:
    """Why the kernel refuses one instruction, empty when it does not."""
    code, jt, jf, k = instruction
    if not (0 <= code <= 0xFFFF and 0 <= jt <= 0xFF and 0 <= jf <= 0xFF and 0 <= k <= _U32):
        return "a field does not fit"
    if code in JUMPS:
        return "jumps beyond the end" if at + 1 + max(jt, jf) >= length else ""
    if code == LD_ABS:
        return "" if k < DATA_BYTES and not k & 3 else "loads outside of seccomp_data or not aligned"
    if code not in CODES:
        return "not an instruction of seccomp's BPF"
    if code == JA and at + 1 + k >= length:
        return "jumps beyond the end"
    if code == DIV_K and k == 0:
        return "divides by the constant 0"
    if code in {LSH_K, RSH_K} and k >= 32:
        return "shifts by 32 or more"
    if code in SCRATCH and k >= SCRATCH_WORDS:
        return f"scratch memory has {SCRATCH_WORDS} words"
    return ""


def _check_scratch(program: Program) -> None:
    """Each scratch word must be written on every path before it is read (``check_load_and_stores``)."""
    if not any(instruction.code in SCRATCH for instruction in program):
        return
    everything = 0xFFFF
    reached = [everything] * len(program)
    written = 0
    for at, (code, jt, jf, k) in enumerate(program):
        written &= reached[at]
        if code in {ST, STX}:
            written |= 1 << k
        elif code in {LD_MEM, LDX_MEM} and not written >> k & 1:
            raise ValueError(
                f"instruction {at} ({_show_raw(program[at])}): reads scratch word {k} before it is written"
            )
        elif code == JA:
            reached[at + 1 + k] &= written
            written = everything
        elif code in JUMPS:
            reached[at + 1 + jt] &= written
            reached[at + 1 + jf] &= written
            written = everything


def disassemble(program: Program) -> str:
    """One line per instruction: index, what it does, where it goes. For people and error messages."""
    return "\n".join(f"{at:4}  {show(at, instruction)}" for at, instruction in enumerate(program))


def show(at: int, instruction: Instruction) -> str:
    """One instruction in words; ``at`` is its index, so that jump targets are absolute."""
    code, jt, jf, k = instruction
    simple = {
        LD_IMM: f"A = {k:#x}",
        LD_MEM: f"A = M[{k}]",
        LD_LEN: f"A = {DATA_BYTES}",
        LDX_IMM: f"X = {k:#x}",
        LDX_MEM: f"X = M[{k}]",
        LDX_LEN: f"X = {DATA_BYTES}",
        ST: f"M[{k}] = A",
        STX: f"M[{k}] = X",
        TAX: "X = A",
        TXA: "A = X",
        NEG: "A = -A",
        RET_A: "return A",
        RET_K: f"return {k:#010x}",
        JA: f"goto {at + 1 + k}",
    }
    if code in simple:
        return simple[code]
    if code == LD_ABS:
        return f"A = {word_name(k)}"
    operand = "X" if code & 0x08 else f"{k:#x}"
    if code in JUMPS:
        return f"if A {_JUMP_SIGNS[code & 0xF0]} {operand} goto {at + 1 + jt} else {at + 1 + jf}"
    if code in ALU_K or code in ALU_X:
        return f"A {_ALU_SIGNS[code & 0xF0]}= {operand}"
    return f"({_show_raw(instruction)})"


def word_name(offset: int) -> str:
    """Name of a 32-bit word of seccomp_data on a little-endian machine, e.g. ``args[1].hi``."""
    if offset in _WORD_NAMES:
        return _WORD_NAMES[offset]
    index, high = divmod(offset - 16, 8)
    return (
        f"args[{index}].{'hi' if high else 'lo'}" if 16 <= offset < DATA_BYTES and not offset & 3 else f"data[{offset}]"
    )


def _show_raw(instruction: Instruction) -> str:
    return f"code={instruction.code:#04x} jt={instruction.jt} jf={instruction.jf} k={instruction.k:#x}"
