"""Raw system calls for the process that is about to be killed by one: no allocation, no lock, no other call around it.

Everything is resolved before the fork. The record lies in memory shared with the prover, because a process under a
filter may be unable to write anything anywhere.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Callable
from typing import Final

from casemate.bpf.syscalls import numbers
from casemate.jail.probe.model import Call, Entry, Got, Packed, Room, Value

# PyDLL keeps the GIL: giving it up would take calls of its own, which the filter might kill.
_lib = ctypes.PyDLL(None, use_errno=True)
_syscall = _lib.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long] * 7

_WORDS: Final = 24
STAGE, STEP, NR, RESULT, NUMBER, AMOUNT = range(6)
_ARGS: Final = 6
IN_CALL, FINISHED = 1, 2

# push rbx · mov eax, edi · mov ebx, esi · int 0x80 · pop rbx · ret
_INT80: Final = bytes.fromhex("5389f889f3cd805bc3")
# clone(flags rdi, stack rsi) with the other arguments 0; the new thread waits for ever in futex(rsp, FUTEX_WAIT, 0).
_THREAD: Final = bytes.fromhex(
    "31d24531d24531c0b8380000000f05"  # xor edx, edx · xor r10d, r10d · xor r8d, r8d · mov eax, 56 · syscall
    "85c07401c3"  # test eax, eax · jz +1 · ret
    "4889e731f631d24531d2b8ca0000000f05ebed"  # mov rdi, rsp · esi, edx, r10d = 0 · mov eax, 202 · syscall · jmp -19
)


class Board:
    """The shared record of the attempt under way."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, mmap.PAGESIZE)
        self._words = (ctypes.c_int64 * _WORDS).from_buffer(self._map)

    def clear(self) -> None:
        """Forget the last attempt."""
        ctypes.memset(self._words, 0, ctypes.sizeof(self._words))
        self._words[NR] = -2

    def __getitem__(self, index: int) -> int:
        return self._words[index]

    def __setitem__(self, index: int, value: int) -> None:
        self._words[index] = value

    @property
    def args(self) -> tuple[int, ...]:
        """Arguments of the last call, unsigned."""
        return tuple(value & 0xFFFF_FFFF_FFFF_FFFF for value in self._words[_ARGS : _ARGS + 6])

    def call(self, nr: int, args: tuple[int, ...]) -> int:
        """Make one call and note it; the result is -errno on failure."""
        words = self._words
        words[NR] = nr
        padded = (*args, 0, 0, 0, 0, 0, 0)[:6]
        for index in range(6):
            words[_ARGS + index] = padded[index]
        words[STAGE] = IN_CALL
        # SAFETY: hostile on purpose: invalid pointers are the kernel's to refuse, and this process exists to die.
        result: int = _syscall(nr, *padded)
        words[RESULT] = result
        if result == -1:
            words[NUMBER] = ctypes.get_errno()
            return -words[NUMBER]
        words[NUMBER] = 0
        return result


class Stubs:
    """Machine code that no library offers, made executable while that is still allowed. x86-64 only."""

    def __init__(self) -> None:
        self.int80: Callable[[int, int], int] | None = None
        self.thread: Callable[[int, int], int] | None = None
        if os.uname().machine != "x86_64":
            return
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(_INT80.ljust(64, b"\xcc") + _THREAD)
        self._page = page
        start = ctypes.addressof(ctypes.c_char.from_buffer(page))
        # SAFETY: both follow the C calling convention, touch no callee-saved register but rbx, which is restored.
        self.int80 = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int)(start)
        self.thread = ctypes.PYFUNCTYPE(ctypes.c_long, ctypes.c_long, ctypes.c_long)(start + 64)


class Prepared:
    """The calls of an attempt with numbers and pointers; keeps the buffers alive."""

    def __init__(self, steps: tuple[Call, ...], machine: str) -> None:
        self._buffers: list[ctypes.Array[ctypes.c_char]] = []
        table = numbers(machine)
        self.steps: list[tuple[int, Entry, tuple[int | Got, ...]]] = []
        for step in steps:
            nr = step.nr if step.nr is not None else table[step.name]
            self.steps.append((nr, step.entry, tuple(self._resolve(value) for value in step.args)))

    def _resolve(self, value: Value) -> int | Got:
        match value:
            case int() | Got():
                return value
            case bytes():
                return self._keep(ctypes.create_string_buffer(value))
            case Room(size_bytes=size):
                return self._keep(ctypes.create_string_buffer(size))
            case Packed(layout=layout, fields=fields):
                return self._keep(ctypes.create_string_buffer(self._pack(layout, fields)))

    def _pack(self, layout: str, fields: tuple[int | bytes | Room, ...]) -> bytes:
        resolved = [self._resolve(field) for field in fields]
        return struct.pack(layout, *resolved)

    def _keep(self, buffer: ctypes.Array[ctypes.c_char]) -> int:
        self._buffers.append(buffer)
        return ctypes.addressof(buffer)

    def run(self, board: Board, stubs: Stubs) -> bool:
        """Make the calls in order; False at the first that fails, whose errno the board then holds."""
        results: list[int] = []
        for index, (nr, entry, args) in enumerate(self.steps):
            board[STEP] = index
            values = tuple(results[value.step] if isinstance(value, Got) else value for value in args)
            result = _enter_int80(board, stubs, nr) if entry is Entry.INT80 else board.call(nr, values)
            if result < 0 and (board[RESULT] == -1 or entry is Entry.INT80):
                return False
            results.append(result)
        return True


def _enter_int80(board: Board, stubs: Stubs, nr: int) -> int:
    if stubs.int80 is None:
        raise RuntimeError("no i386 gate on this architecture; the attempt should have been left out")
    board[NR] = nr
    board[STAGE] = IN_CALL
    result = stubs.int80(nr, 0)
    board[RESULT] = -1 if -4096 < result < 0 else result
    board[NUMBER] = -result if -4096 < result < 0 else 0
    return result


def fork() -> int:
    """fork(2) without Python's hooks, which make calls of their own; single-threaded callers only."""
    # SAFETY: the child runs in a copy of this stack and leaves by _exit.
    return int(_lib.fork())
