"""Run a seccomp filter on one system call, with the kernel's arithmetic: 32-bit unsigned, A = X = 0 at the start.

Constants follow include/uapi/linux/seccomp.h. Division by a zero in X ends the program with 0, which is KILL_THREAD
(``bpf_convert_filter`` gives classic programs that exit code); a shift by X uses the low 5 bits of X.
"""

from __future__ import annotations

import enum
import operator
import struct
import sys
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from casemate.bpf import instruction as bpf
from casemate.bpf.instruction import Program

RET_KILL_PROCESS: Final = 0x8000_0000
RET_KILL_THREAD: Final = 0x0000_0000
RET_TRAP: Final = 0x0003_0000
RET_ERRNO: Final = 0x0005_0000
RET_USER_NOTIF: Final = 0x7FC0_0000
RET_TRACE: Final = 0x7FF0_0000
RET_LOG: Final = 0x7FFC_0000
RET_ALLOW: Final = 0x7FFF_0000
RET_ACTION_FULL: Final = 0xFFFF_0000
RET_DATA: Final = 0x0000_FFFF

_U32: Final = 0xFFFF_FFFF
_DATA: Final = struct.Struct("=iIQ6Q")
_WORDS: Final = struct.Struct("=16I")


class Action(enum.StrEnum):
    """What the kernel does with a call, from the strictest to the loosest."""

    KILL_PROCESS = "kill-process"
    KILL_THREAD = "kill-thread"
    TRAP = "trap"
    ERRNO = "errno"
    NOTIFY = "notify"
    TRACE = "trace"
    LOG = "log"
    ALLOW = "allow"


_ACTIONS: Final = {
    RET_KILL_PROCESS: Action.KILL_PROCESS,
    RET_KILL_THREAD: Action.KILL_THREAD,
    RET_TRAP: Action.TRAP,
    RET_ERRNO: Action.ERRNO,
    RET_USER_NOTIF: Action.NOTIFY,
    RET_TRACE: Action.TRACE,
    RET_LOG: Action.LOG,
    RET_ALLOW: Action.ALLOW,
}


class SeccompData(NamedTuple):
    """``struct seccomp_data``: nr is what the kernel keeps as an int (-1 and 0xffffffff are the same call)."""

    nr: int
    arch: int
    instruction_pointer: int = 0
    args: tuple[int, ...] = (0, 0, 0, 0, 0, 0)

    def words(self) -> tuple[int, ...]:
        """The 16 32-bit words as a filter loads them (word i is at offset 4*i), in this machine's byte order.

        Raises:
            ValueError: not exactly six arguments.
        """
        if len(self.args) != 6:
            raise ValueError(f"a system call has 6 arguments, got {len(self.args)}")
        number = (self.nr & _U32 ^ 0x8000_0000) - 0x8000_0000
        wide = (value & 0xFFFF_FFFF_FFFF_FFFF for value in (self.instruction_pointer, *self.args))
        return _WORDS.unpack(_DATA.pack(number, self.arch & _U32, *wide))


def action_of(returned: int) -> Action:
    """The action in a filter's return value; the kernel treats one that it does not know as KILL_PROCESS."""
    return _ACTIONS.get(returned & RET_ACTION_FULL, Action.KILL_PROCESS)


def strictness(returned: int) -> int:
    """Sort key of a return value: the kernel compares the action bits as a signed number, smaller is stricter."""
    return ((returned & RET_ACTION_FULL) ^ 0x8000_0000) - 0x8000_0000


def strictest(returned: Iterable[int]) -> int:
    """The value that counts when several filters are stacked, most recently loaded first.

    Raises:
        ValueError: no value at all (no filter means no verdict, never a pass).
    """
    values = list(returned)
    if not values:
        raise ValueError("no filter, no verdict")
    return min(values, key=strictness)


def evaluate(program: Program, data: SeccompData) -> int:
    """The raw SECCOMP_RET value of ``program`` for ``data``.

    Raises:
        ValueError: the program is one that the kernel would not have taken (`decode` refuses those), so that it has
            no verdict: a jump past the end, an unknown instruction, a load outside of the data.
    """
    return run(program, data.words())


def run(program: Program, words: tuple[int, ...]) -> int:  # noqa: C901 - one loop over the instruction set
    """`evaluate` on words already laid out (see `SeccompData.words`)."""
    a = x = 0
    memory = [0] * bpf.SCRATCH_WORDS
    pc = 0
    try:
        while True:
            code, jt, jf, k = program[pc]
            pc += 1
            if code in bpf.JUMPS:
                pc += jt if compare(code, a, x if code & 0x08 else k) else jf
            elif code == bpf.LD_ABS:
                if k & 3:
                    raise ValueError(f"instruction {pc - 1}: load not aligned")
                a = words[k >> 2]
            elif code == bpf.RET_K:
                return k
            elif code in bpf.ALU_K or code in bpf.ALU_X:
                operand = x if code & 0x08 else k
                if code & 0xF0 == 0x30 and operand == 0:
                    return RET_KILL_THREAD
                a = compute(code, a, operand)
            elif code == bpf.JA:
                pc += k
            elif code == bpf.RET_A:
                return a
            elif code == bpf.NEG:
                a = -a & _U32
            elif code == bpf.TAX:
                x = a
            elif code == bpf.TXA:
                a = x
            elif code == bpf.ST:
                memory[k] = a
            elif code == bpf.STX:
                memory[k] = x
            else:
                a, x = load(code, k, a, x, memory)
    except IndexError:
        raise ValueError(f"instruction {pc}: runs outside of the program, its data or its memory") from None


def load(code: int, k: int, a: int, x: int, memory: list[int]) -> tuple[int, int]:
    """(A, X) after a load of a constant or of scratch memory; ValueError for any other instruction."""
    if code == bpf.LD_IMM:
        return k, x
    if code == bpf.LDX_IMM:
        return a, k
    if code == bpf.LD_MEM:
        return memory[k], x
    if code == bpf.LDX_MEM:
        return a, memory[k]
    if code == bpf.LD_LEN:
        return bpf.DATA_BYTES, x
    if code == bpf.LDX_LEN:
        return a, bpf.DATA_BYTES
    raise ValueError(f"not an instruction of seccomp's BPF: code {code:#04x}")


def compare(code: int, a: int, operand: int) -> bool:
    """The test of a conditional jump."""
    kind = code & 0xF0
    if kind == 0x10:
        return a == operand
    if kind == 0x30:
        return a >= operand
    if kind == 0x20:
        return a > operand
    return a & operand != 0


def compute(code: int, a: int, operand: int) -> int:
    """A two-operand ALU instruction; the caller has excluded a division by zero."""
    return _OPERATIONS[code & 0xF0](a, operand) & _U32


def _lsh(a: int, by: int) -> int:
    return a << (by & 31)


def _rsh(a: int, by: int) -> int:
    return a >> (by & 31)


_OPERATIONS: Final[dict[int, Callable[[int, int], int]]] = {
    0x00: operator.add,
    0x10: operator.sub,
    0x20: operator.mul,
    0x30: operator.floordiv,
    0x40: operator.or_,
    0x50: operator.and_,
    0x60: _lsh,
    0x70: _rsh,
    0xA0: operator.xor,
}


def word_offsets(index: int) -> tuple[int, int]:
    """Byte offsets of the (low, high) 32-bit halves of argument ``index`` in this machine's byte order."""
    base = 16 + 8 * index
    return (base, base + 4) if sys.byteorder == "little" else (base + 4, base)
