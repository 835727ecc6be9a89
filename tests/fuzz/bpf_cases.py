"""Valid programs from any bytes, and what must hold of them: shared by the fuzz target, property and kernel tests."""

from __future__ import annotations

import struct

from casemate.bpf import instruction as bpf
from casemate.bpf.analyse import UNKNOWN, verdict_of
from casemate.bpf.evaluate import SeccompData, evaluate
from casemate.bpf.instruction import Instruction, Program, decode, disassemble, encode
from casemate.bpf.paths import Region, paths
from casemate.bpf.syscalls import AUDIT_ARCH_X86_64

CHUNK = 7
BODY = (
    *((bpf.LD_ABS,) * 6),
    *sorted(bpf.JUMPS_K),
    *sorted(bpf.JUMPS_K),
    *sorted(bpf.JUMPS_X),
    *sorted(bpf.ALU_K),
    *sorted(bpf.ALU_X),
    *(bpf.LD_IMM, bpf.LD_LEN, bpf.LDX_IMM, bpf.LDX_LEN, bpf.JA, bpf.RET_K, bpf.RET_A, bpf.TAX, bpf.TXA, bpf.NEG),
    *sorted(bpf.SCRATCH),
)
CONSTANTS = (0, 1, 2, 4, 5, 16, 59, 0xFF, 0x4000_0000, 0x7FFF_0000, 0x8000_0000, 0xFFFF_FFFF, AUDIT_ARCH_X86_64)
RETURNS = (0x8000_0000, 0, 0x0003_0000, 0x0005_0001, 0x7FC0_0000, 0x7FF0_0000, 0x7FFC_0000, 0x7FFF_0000, 0x1234_5678)
SCRATCH_USED = 3


def program_from(recipe: bytes, offsets: tuple[int, ...] = tuple(range(0, 64, 4)), returns: bool = True) -> Program:
    """A program that the kernel takes, from any bytes: up to 200 instructions, every kind of them.

    Args:
        recipe: 7 bytes per instruction; missing bytes end the program.
        offsets: the words of seccomp_data that it may load.
        returns: whether it may return before its end.
    """
    chunks = [recipe[at : at + CHUNK] for at in range(0, min(len(recipe), 200 * CHUNK) - CHUNK + 1, CHUNK)]
    program = [Instruction(bpf.ST, 0, 0, word) for word in range(SCRATCH_USED)]
    for at, (kind, jt, jf, *rest) in enumerate(chunks):
        code = BODY[kind % len(BODY)]
        raw = int.from_bytes(bytes(rest), "little")
        k = CONSTANTS[raw % len(CONSTANTS)] if kind & 0x80 else raw
        left = len(chunks) - at
        if code in {bpf.RET_K, bpf.RET_A} and not returns:
            code = bpf.LD_IMM
        if code in bpf.JUMPS:
            program.append(Instruction(code, jt % min(left, 256), jf % min(left, 256), k))
        else:
            program.append(Instruction(code, 0, 0, _fit(code, k, left, offsets)))
    program.append(Instruction(bpf.RET_K, 0, 0, RETURNS[len(recipe) % len(RETURNS)]))
    return tuple(program)


def _fit(code: int, k: int, left: int, offsets: tuple[int, ...]) -> int:
    """``k`` as this instruction may have it."""
    if code == bpf.LD_ABS:
        return offsets[k % len(offsets)]
    if code == bpf.JA:
        return k % left
    if code in bpf.SCRATCH:
        return k % SCRATCH_USED
    if code in {bpf.LSH_K, bpf.RSH_K}:
        return k % 32
    if code == bpf.DIV_K:
        return k or 1
    return RETURNS[k % len(RETURNS)] if code == bpf.RET_K and k & 1 else k


def contains(region: Region, words: tuple[int, ...]) -> bool:
    """Whether a call with these words lies in ``region``."""
    for offset, word in region.words.items():
        value = words[offset >> 2]
        if value & word.mask != word.value or not word.low <= value <= word.high:
            return False
        if any(value & mask == excluded for mask, excluded in word.excluded):
            return False
    return True


def check_program(program: Program, data: SeccompData) -> None:
    """Everything that must hold of a valid program and one call."""
    assert decode(encode(program)) == program
    assert len(disassemble(program).splitlines()) == len(program)
    returned = evaluate(program, data)
    assert 0 <= returned <= 0xFFFF_FFFF
    nr = data.nr & 0xFFFF_FFFF
    if data.arch == AUDIT_ARCH_X86_64:
        verdict = verdict_of(program, "x86_64", nr)
        assert verdict == UNKNOWN or returned in verdict.returned
    words = data.words()
    try:
        found = [answer for region, answer in paths(program) if contains(region, words)]
    except ValueError as fault:
        if "not proved" not in str(fault):
            raise
    else:
        assert found == [returned]


def one_input(data: bytes) -> None:
    """One fuzz input: 58 bytes of a call, then a program."""
    head = data[:58].ljust(58, b"\0")
    nr, arch_kind, *rest = struct.unpack("=iBB6QI", head)
    arch = AUDIT_ARCH_X86_64 if arch_kind < 200 else 0x4000_0003
    call = SeccompData(nr, arch, rest[-1], tuple(rest[1:7]))
    body = data[58:]
    try:
        raw = decode(body)
    except ValueError:
        raw = None
    if raw is not None:
        check_program(raw, call)
    check_program(program_from(body), call)
