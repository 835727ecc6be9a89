"""What a filter can answer when the arguments are not known: read-back, audit and surveys of a whole architecture.

The program is walked once with the call's number as a vector of all numbers of interest, so that a test on the number
splits a set (one bit per number) instead of being repeated per call. Everything else (arguments, instruction pointer)
is unknown: a test on it takes both branches. The set of answers is therefore never smaller than the truth; when the
walk would be too long or an answer cannot be bounded, the verdict is UNKNOWN, which is not a pass.
"""

from __future__ import annotations

import enum
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

import msgspec

from casemate.bpf import instruction as bpf
from casemate.bpf.evaluate import (
    RET_KILL_PROCESS,
    RET_KILL_THREAD,
    Action,
    action_of,
    compare,
    compute,
    strictness,
)
from casemate.bpf.instruction import Program
from casemate.bpf.syscalls import AUDIT_ARCH, OTHER_ARCHES, X32_BIT, audit_arch, names, numbers

STEPS_MAX: Final = 200_000
"""Instructions that one walk may follow; a 4096-instruction tree without joins needs about 10,000."""
_VECTORS_MAX: Final = 64
_NR: Final = 0
_ARCH: Final = 4


class VerdictKind(enum.StrEnum):
    """The most that a call can get, whatever its arguments."""

    ALLOW = "allow"
    CONDITIONAL = "conditional"
    NOTIFY = "notify"
    TRACE = "trace"
    ERRNO = "errno"
    TRAP = "trap"
    KILL = "kill"
    UNKNOWN = "unknown"


_KINDS: Final = {
    Action.ALLOW: VerdictKind.ALLOW,
    Action.LOG: VerdictKind.ALLOW,
    Action.TRACE: VerdictKind.TRACE,
    Action.NOTIFY: VerdictKind.NOTIFY,
    Action.ERRNO: VerdictKind.ERRNO,
    Action.TRAP: VerdictKind.TRAP,
    Action.KILL_THREAD: VerdictKind.KILL,
    Action.KILL_PROCESS: VerdictKind.KILL,
}


class Verdict(msgspec.Struct, frozen=True):
    """The answers that a call may get.

    ``kind``: ALLOW when every answer lets the call through (allow, log); CONDITIONAL when only some do; otherwise the
    loosest answer; UNKNOWN when the filter could not be explored. ``returned``: the raw SECCOMP_RET values, empty when
    unknown.
    """

    kind: VerdictKind
    returned: frozenset[int]

    @property
    def actions(self) -> frozenset[Action]:
        """The actions in ``returned``."""
        return frozenset(map(action_of, self.returned))

    @property
    def may_pass(self) -> bool:
        """Whether the call can be let through for some arguments; True when unknown."""
        return self.kind in {VerdictKind.ALLOW, VerdictKind.CONDITIONAL, VerdictKind.UNKNOWN}


UNKNOWN: Final = Verdict(VerdictKind.UNKNOWN, frozenset())


@lru_cache(maxsize=4096)
def judge_returns(returned: frozenset[int]) -> Verdict:
    """The verdict for a set of possible answers; none at all is UNKNOWN."""
    if not returned:
        return UNKNOWN
    kinds = {_KINDS[action_of(value)] for value in returned}
    if VerdictKind.ALLOW in kinds:
        return Verdict(VerdictKind.ALLOW if len(kinds) == 1 else VerdictKind.CONDITIONAL, returned)
    return Verdict(_KINDS[action_of(max(returned, key=strictness))], returned)


def verdict_of(program: Program, arch: str, nr: int) -> Verdict:
    """The verdict of one filter on call number ``nr``; ValueError for an architecture without a table."""
    return verdicts_at((program,), audit_arch(arch), (nr,))[nr]


def survey(programs: Sequence[Program], arch: str) -> dict[str, Verdict]:
    """The verdict of stacked filters on every call of ``arch`` that the table names.

    Args:
        programs: all filters of one thread, in any order; at least one.

    Raises:
        ValueError: no program, or an architecture without a table.
    """
    by_number = verdicts_at(programs, audit_arch(arch), tuple(names(arch)))
    return {name: by_number[number] for name, number in numbers(arch).items()}


def survey_beyond(programs: Sequence[Program], arch: str) -> Verdict:
    """What calls get that the table does not know: unused numbers, and those of newer kernels, up to 1023."""
    known = names(arch)
    return _worst(verdicts_at(programs, audit_arch(arch), tuple(n for n in range(1024) if n not in known)))


def survey_x32(programs: Sequence[Program]) -> Verdict:
    """What x86-64 calls get through the x32 ABI (number with bit 30 set, numbers 512 to 547 included)."""
    candidates = tuple(X32_BIT | number for number in range(1024))
    return _worst(verdicts_at(programs, AUDIT_ARCH["x86_64"], candidates))


def survey_other_arches(programs: Sequence[Program], arch: str) -> Verdict:
    """What any call gets through another calling convention of this machine (i386 on x86-64, Arm on AArch64).

    Also tries every other architecture with a table and a constant that is none.
    """
    own = audit_arch(arch)
    others = {*OTHER_ARCHES[arch], *AUDIT_ARCH.values(), 0} - {own}
    return _worst(_combine(programs, _ARCH, tuple(sorted(others)), {}))


def _worst(verdicts: Mapping[int, Verdict]) -> Verdict:
    """One verdict that covers all of them."""
    if any(verdict.kind is VerdictKind.UNKNOWN for verdict in verdicts.values()):
        return UNKNOWN
    return judge_returns(frozenset[int]().union(*(verdict.returned for verdict in verdicts.values())))


def verdicts_at(programs: Sequence[Program], arch: int, nrs: tuple[int, ...]) -> dict[int, Verdict]:
    """The verdict of stacked filters for each number in ``nrs`` under the AUDIT_ARCH value ``arch``."""
    return _combine(programs, _NR, nrs, {_ARCH: arch})


def _combine(
    programs: Sequence[Program], word: int, values: tuple[int, ...], fixed: Mapping[int, int]
) -> dict[int, Verdict]:
    if not programs:
        raise ValueError("no filter, no verdict")
    ordered = tuple(sorted(set(values)))
    tables = [_remembered(program, word, ordered, tuple(fixed.items())) for program in programs]
    if len(tables) == 1:
        return {
            value: UNKNOWN if got is None else judge_returns(got) for value, got in zip(ordered, tables[0], strict=True)
        }
    verdicts = {}
    for at, value in enumerate(ordered):
        verdicts[value] = _stack(tuple(table[at] for table in tables))
    return verdicts


@lru_cache(maxsize=32)
def _remembered(
    program: Program, word: int, universe: tuple[int, ...], fixed: tuple[tuple[int, int], ...]
) -> tuple[frozenset[int] | None, ...]:
    """`answers`, once per program: VMs of one kind have the same, and a launch knows one of its two beforehand."""
    return tuple(answers(program, word, universe, dict(fixed)))


@lru_cache(maxsize=4096)
def _stack(answers_each: tuple[frozenset[int] | None, ...]) -> Verdict:
    """The verdict of stacked filters: an answer of one counts if every other filter may answer as loosely."""
    known = [answers for answers in answers_each if answers is not None]
    if len(known) < len(answers_each):
        # A filter that always kills settles it, whatever the unknown ones say.
        kills = [got for got in known if judge_returns(got).kind is VerdictKind.KILL]
        return judge_returns(kills[0] | {RET_KILL_PROCESS}) if kills else UNKNOWN
    limit = min(max(map(strictness, answers)) for answers in known)
    union = frozenset[int]().union(*known)
    return judge_returns(frozenset(value for value in union if strictness(value) <= limit))


class _Vector:
    """A value of A or X known for each element of the universe. Tests give bit sets; results are cached."""

    __slots__ = ("_derived", "_sets", "ordered", "values")

    def __init__(self, values: tuple[int, ...], *, ordered: bool) -> None:
        self.values = values
        self.ordered = ordered
        self._sets: dict[tuple[int, int], int] = {}
        self._derived: dict[tuple[int, int], _Vector] = {}

    def where(self, kind: int, k: int) -> int:
        """Bit set of the elements for which the test ``kind`` (JEQ_K, ...) with ``k`` is true."""
        found = self._sets.get((kind, k))
        if found is None:
            found = self._sets[kind, k] = self._where(kind, k)
        return found

    def _where(self, kind: int, k: int) -> int:
        values = self.values
        if self.ordered and kind != bpf.JSET_K:
            first, after = bisect_left(values, k), bisect_right(values, k)
            if kind == bpf.JEQ_K:
                return (1 << after) - (1 << first)
            return (1 << len(values)) - (1 << (after if kind == bpf.JGT_K else first))
        found = 0
        for at, value in enumerate(values):
            if compare(kind, value, k):
                found |= 1 << at
        return found

    def derive(self, code: int, operand: int) -> _Vector:
        """The vector after an ALU instruction with a constant operand."""
        found = self._derived.get((code, operand))
        if found is None:
            if code == bpf.NEG:
                values = tuple(-value & 0xFFFF_FFFF for value in self.values)
            else:
                values = tuple(compute(code, value, operand) for value in self.values)
            found = self._derived[code, operand] = _Vector(values, ordered=False)
        return found


_Value = int | _Vector | None
_Memory = tuple[_Value, ...]
_ALU: Final = bpf.ALU_K | bpf.ALU_X | {bpf.NEG}
_EMPTY: Final[_Memory] = (0,) * bpf.SCRATCH_WORDS


class _Walk:
    """One walk over a program: a stack of places to go on from, and the answers with the elements that get them."""

    def __init__(self, program: Program, data: list[_Value], count: int) -> None:
        self.program = program
        self.data = data
        self.found: dict[int | None, int] = {}
        self.vectors = 0
        self.steps = STEPS_MAX
        self.todo: list[tuple[int, int, _Value, _Value, _Memory]] = [(0, (1 << count) - 1, 0, 0, _EMPTY)]
        self.seen: set[tuple[int, int, _Value, _Value, _Memory]] = set()

    def answer(self, elements: int, value: int | None) -> None:
        self.found[value] = self.found.get(value, 0) | elements

    def finish(self) -> None:
        """Walk until nothing is left; ValueError for a program that the kernel would not have taken."""
        while self.todo:
            place = self.todo.pop()
            if place in self.seen:
                continue
            self.seen.add(place)
            try:
                self._follow(*place)
            except IndexError:
                raise ValueError(
                    "a filter that runs outside of itself, its data or its memory; check it first"
                ) from None

    def _follow(self, pc: int, elements: int, a: _Value, x: _Value, memory: _Memory) -> None:
        """Follow one path until it returns or forks."""
        program = self.program
        while True:
            self.steps -= 1
            if self.steps < 0:
                self.todo.clear()
                return self.answer(elements, None)
            code, jt, jf, k = program[pc]
            pc += 1
            if code in bpf.JUMPS:
                operand: _Value = x if code & 0x08 else k
                true, false = self._split(code & 0xF0 | 0x05, elements, a, operand)
                if true and false:
                    self.todo.append((pc + jf, false, a, x, memory))
                    self.todo.append((pc + jt, true, a, x, memory))
                    return None
                pc += jt if true else jf
            elif code == bpf.LD_ABS:
                a = self.data[k >> 2]
            elif code in {bpf.RET_K, bpf.RET_A}:
                return self._return(elements, k if code == bpf.RET_K else a)
            elif code == bpf.JA:
                pc += k
            elif code in {bpf.ST, bpf.STX}:
                memory = (*memory[:k], a if code == bpf.ST else x, *memory[k + 1 :])
            elif code in _ALU:
                if code == bpf.DIV_X and (x == 0 or not isinstance(x, int)):
                    self.answer(elements, RET_KILL_THREAD)
                    if x == 0:
                        return None
                a = self._compute(code, a, x if code in bpf.ALU_X else k)
            else:
                a, x = _move(code, k, a, x, memory)

    def _split(self, kind: int, elements: int, a: _Value, operand: _Value) -> tuple[int, int]:
        """(elements for which the test may be true, elements for which it may be false)."""
        if isinstance(operand, int):
            if isinstance(a, int):
                return (elements, 0) if compare(kind, a, operand) else (0, elements)
            if a is not None:
                true = elements & a.where(kind, operand)
                return true, elements & ~true
        return elements, elements

    def _compute(self, code: int, a: _Value, operand: _Value) -> _Value:
        if code == bpf.NEG:
            operand = 0
        if not isinstance(operand, int):
            return None
        kind = code & 0xF0
        if kind in {0x50, 0x20} and operand == 0 and code != bpf.NEG:
            return 0
        if isinstance(a, int):
            return -a & 0xFFFF_FFFF if code == bpf.NEG else compute(code, a, operand)
        if a is None or self.vectors >= _VECTORS_MAX:
            return None
        self.vectors += 1
        return a.derive(code & ~0x08, operand)

    def _return(self, elements: int, a: _Value) -> None:
        if a is None or isinstance(a, int):
            return self.answer(elements, a)
        for at, value in enumerate(a.values):
            if elements >> at & 1:
                self.answer(1 << at, value)
        return None


def _move(code: int, k: int, a: _Value, x: _Value, memory: _Memory) -> tuple[_Value, _Value]:
    """(A, X) after a load of a constant or of scratch memory, or a move between the two."""
    if code == bpf.TAX:
        return a, a
    if code == bpf.TXA:
        return x, x
    if code not in {bpf.LD_IMM, bpf.LD_MEM, bpf.LD_LEN, bpf.LDX_IMM, bpf.LDX_MEM, bpf.LDX_LEN}:
        raise ValueError(f"not an instruction of seccomp's BPF: code {code:#04x}")
    source = code & 0xE0
    value = k if source == 0 else memory[k] if source == 0x60 else bpf.DATA_BYTES
    return (a, value) if code & 0x01 else (value, x)


def answers(
    program: Program, word: int, universe: tuple[int, ...], fixed: Mapping[int, int]
) -> list[frozenset[int] | None]:
    """For each value of the word at byte offset ``word``, the return values that the filter may give.

    Args:
        universe: the values to try, ascending, as unsigned 32-bit numbers.
        fixed: other words that are known, by byte offset; all the rest is unknown.

    Returns:
        One set per value, never too small; None where it is not known.
    """
    data: list[_Value] = [None] * (bpf.DATA_BYTES // 4)
    for offset, value in fixed.items():
        data[offset >> 2] = value
    data[word >> 2] = _Vector(universe, ordered=True) if len(universe) != 1 else universe[0]
    walk = _Walk(program, data, len(universe))
    walk.finish()
    if walk.steps < 0:
        return [None] * len(universe)
    unclear = walk.found.get(None, 0)
    found = [(value, elements) for value, elements in walk.found.items() if value is not None]
    return [
        None if unclear >> at & 1 else frozenset([value for value, elements in found if elements >> at & 1])
        for at in range(len(universe))
    ]
