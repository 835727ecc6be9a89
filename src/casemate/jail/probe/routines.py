"""Attempts that no list of calls can say: they repeat something until it is refused or their bound is reached.

Each runs in a child of the prover, counts what it got in ``board[AMOUNT]``, and returns True when it got ``amount``.
"""

from __future__ import annotations

import ctypes
import errno
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from casemate.bpf.syscalls import numbers
from casemate.jail.probe.raw import AMOUNT, IN_CALL, NR, NUMBER, RESULT, STAGE, Board, Stubs, fork

MIB: Final = 1 << 20
_STEP_MIB: Final = 8
_PROT_READ_WRITE: Final = 3
_PRIVATE_ANONYMOUS: Final = 0x22
_SIGCHLD: Final = 17
# VM | FS | FILES | SIGHAND | THREAD | SYSVSEM | SETTLS | PARENT_SETTID | CHILD_CLEARTID: what glibc asks for.
_CLONE_THREAD: Final = 0x003D_0F00
_EFD_NONBLOCK: Final = 0x800
_CHUNK_BYTES: Final = 65536
LOG_FD: Final = 1

Routine = Callable[[Board, Stubs, int, str], bool]


def fork_bomb(board: Board, stubs: Stubs, amount: int, machine: str) -> bool:
    """Processes that stay: until EAGAIN or ``amount`` of them. The prover kills the whole process group."""
    board[NR] = numbers(machine)["clone"]  # what libc's fork makes; the call `fork` is tried by number
    board[STAGE] = IN_CALL
    for _ in range(amount):
        child = fork()
        if child == 0:
            while True:
                time.sleep(60)
        if child < 0:
            board[RESULT], board[NUMBER] = -1, ctypes.get_errno() or errno.EAGAIN
            return False
        board[AMOUNT] += 1
    return True


def thread_bomb(board: Board, stubs: Stubs, amount: int, machine: str) -> bool:
    """Threads that stay, with the very flags that the filter allows."""
    assert stubs.thread is not None
    page = board.call(numbers(machine)["mmap"], (0, 4096, _PROT_READ_WRITE, _PRIVATE_ANONYMOUS, -1, 0))
    if page < 0:
        return False
    board[NR] = numbers(machine)["clone"]
    board[STAGE] = IN_CALL
    for _ in range(amount):
        result = stubs.thread(_CLONE_THREAD, page + 2048)
        if result < 0:
            board[RESULT], board[NUMBER] = -1, -result
            return False
        board[AMOUNT] += 1
    return True


def take_memory(board: Board, stubs: Stubs, amount: int, machine: str) -> bool:
    """Touch ``amount`` MiB, a few at a time."""
    mmap_nr = numbers(machine)["mmap"]
    while board[AMOUNT] < amount:
        place = board.call(mmap_nr, (0, _STEP_MIB * MIB, _PROT_READ_WRITE, _PRIVATE_ANONYMOUS, -1, 0))
        if place < 0:
            return False
        # SAFETY: a mapping of exactly this size, made one line above.
        ctypes.memset(place, 1, _STEP_MIB * MIB)
        board[AMOUNT] += _STEP_MIB
    return True


def take_descriptors(board: Board, stubs: Stubs, amount: int, machine: str) -> bool:
    """Event descriptors until EMFILE or ``amount`` of them."""
    nr = numbers(machine)["eventfd2"]
    for _ in range(amount):
        if board.call(nr, (0, _EFD_NONBLOCK)) < 0:
            return False
        board[AMOUNT] += 1
    return True


def flood_log(board: Board, stubs: Stubs, amount: int, machine: str) -> bool:
    """``amount`` bytes of lines into the log, as fast as its reader takes them."""
    nr = numbers(machine)["write"]
    chunk = ctypes.create_string_buffer(b"casemate probe: flood\n" * (_CHUNK_BYTES // 22))
    address, length = ctypes.addressof(chunk), len(chunk) - 1
    while board[AMOUNT] < amount:
        written = board.call(nr, (LOG_FD, address, length))
        if written < 0:
            return False
        board[AMOUNT] += written
    return True


def crash(board: Board, stubs: Stubs, amount: int, machine: str) -> bool:
    """Read an address that no process has: whether the kernel writes a core file is for the prover to see."""
    board[STAGE] = IN_CALL
    # SAFETY: the fault is the purpose.
    ctypes.string_at(8, 1)
    return False


ROUTINES: Final[Mapping[str, Routine]] = MappingProxyType(
    {
        "fork-bomb": fork_bomb,
        "thread-bomb": thread_bomb,
        "memory": take_memory,
        "descriptors": take_descriptors,
        "flood": flood_log,
        "crash": crash,
    }
)
