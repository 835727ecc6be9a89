"""Every path through a filter, with what must hold of the call on that path: the ground of proofs about a filter.

Where `analyse` over-approximates unknown words, this module keeps, for each 32-bit word of seccomp_data, the set of
values that reach a place: known bits, an interval, and excluded values. It follows the instructions that libseccomp
writes (loads of words, AND with a constant, tests against constants, jumps, constant returns) and moves through X and
scratch memory; any other arithmetic on a word of the call ends with ValueError: not proved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from casemate.bpf import instruction as bpf
from casemate.bpf.evaluate import RET_KILL_THREAD, compare, compute
from casemate.bpf.instruction import Program, word_name

FULL: Final = 0xFFFF_FFFF
PLACES_MAX: Final = 20_000
"""Branches that may be explored; a filter of 70 calls with 100 argument tests needs about 300."""


class Word(NamedTuple):
    """Values of one word: ``w & mask == value``, ``low <= w <= high`` and ``w & m != v`` for each excluded (m, v)."""

    mask: int = 0
    value: int = 0
    low: int = 0
    high: int = FULL
    excluded: tuple[tuple[int, int], ...] = ()

    def equals(self, mask: int, value: int) -> bool | None:
        """Whether ``w & mask == value`` holds for all values (True), none (False), or it depends (None)."""
        if value & ~mask or (self.value ^ value) & mask & self.mask:
            return False
        if not mask & ~self.mask:
            return True
        if mask == FULL and not self.low <= value <= self.high:
            return False
        return False if any(not m & ~mask and v == value & m for m, v in self.excluded) else None

    def at_least(self, k: int) -> bool | None:
        """Whether ``w >= k`` holds for all values, none, or it depends."""
        if self.low >= k:
            return True
        return False if self.high < k else None

    def with_equals(self, mask: int, value: int, truth: bool) -> Word | None:
        """The values for which ``(w & mask == value) is truth``; None when there are none."""
        if not truth:
            return self._replace(excluded=(*self.excluded, (mask, value)))._settled()
        if value & ~mask or (self.value ^ value) & mask & self.mask:
            return None
        return self._replace(mask=self.mask | mask, value=self.value | value)._settled()

    def with_at_least(self, k: int, truth: bool) -> Word | None:
        """The values for which ``(w >= k) is truth``; None when there are none."""
        return self._replace(low=max(self.low, k))._settled() if truth else self._replace(high=k - 1)._settled()

    def _settled(self) -> Word | None:
        """The same set in a form where each part has told the others what it knows; None when it is empty."""
        word = self
        while True:  # ends: every round shrinks the interval, adds known bits or drops exclusions
            low, high = max(word.low, word.value), min(word.high, word.value | FULL & ~word.mask)
            # Bits above the highest difference of the two ends are the same for everything in between.
            prefix = FULL & ~((1 << (low ^ high).bit_length()) - 1)
            if low > high or (word.value ^ low) & word.mask & prefix:
                return None
            mask, value = word.mask | prefix, word.value | low & prefix
            excluded = []
            for m, v in word.excluded:
                if v & ~m or (value ^ v) & m & mask:
                    continue
                unknown = m & ~mask
                if not unknown:
                    return None
                if not unknown & (unknown - 1):
                    mask, value = mask | unknown, value | (unknown & ~v)
                elif m == FULL and v in {low, high}:
                    low, high = low + (v == low), high - (v == high)
                else:
                    excluded.append((m, v))
            settled = Word(mask, value, low, high, tuple(excluded))
            if settled == word:
                return word
            word = settled


class Question(NamedTuple):
    """A question about one word: ``word & mask == k``, or ``word >= k`` when mask is None."""

    offset: int
    mask: int | None
    k: int

    def __str__(self) -> str:
        name = word_name(self.offset)
        if self.mask is None:
            return f"{name} >= {self.k:#x}"
        return f"{name} == {self.k:#x}" if self.mask == FULL else f"{name} & {self.mask:#x} == {self.k:#x}"


class Region:
    """A set of calls: what is known of each word that is known of at all. Immutable."""

    __slots__ = ("words",)

    def __init__(self, words: Mapping[int, Word]) -> None:
        self.words = words

    def word(self, offset: int) -> Word:
        """What is known of the word at byte offset ``offset``."""
        return self.words.get(offset, _ANY)

    def decide(self, test: Question) -> bool | None:
        """Whether ``test`` holds for all calls of the region, none, or it depends."""
        word = self.words.get(test.offset, _ANY)
        return word.at_least(test.k) if test.mask is None else word.equals(test.mask, test.k)

    def assume(self, test: Question, truth: bool) -> Region | None:
        """The calls of the region for which ``test`` is ``truth``; None when there are none."""
        word = self.words.get(test.offset, _ANY)
        if test.mask is None:
            narrowed = word.with_at_least(test.k, truth)
        else:
            narrowed = word.with_equals(test.mask, test.k, truth)
        return None if narrowed is None else Region({**self.words, test.offset: narrowed})

    def __str__(self) -> str:
        parts = []
        for offset, word in sorted(self.words.items()):
            name = word_name(offset)
            if word.low == word.high:
                parts.append(f"{name} = {word.low:#x}")
                continue
            parts += [f"{name} & {word.mask:#x} = {word.value:#x}"] if word.mask else []
            parts += [f"{name} in {word.low:#x}..{word.high:#x}"] if (word.low, word.high) != (0, FULL) else []
            parts += [f"{name} & {mask:#x} != {value:#x}" for mask, value in word.excluded[:4]]
            parts += [f"and {len(word.excluded) - 4} more"] if len(word.excluded) > 4 else []
        return ", ".join(parts) or "any call"


class _Part(NamedTuple):
    """Some bits of one word of the call, as a value of A or X."""

    offset: int
    mask: int


_ANY: Final = Word()
_Value = int | _Part
_Place = tuple[int, Region, _Value, _Value, tuple[_Value, ...]]
_ALU: Final = bpf.ALU_K | bpf.ALU_X | {bpf.NEG}


def paths(program: Program) -> Iterator[tuple[Region, int]]:
    """Yield (calls that take this path, return value) for all paths; together they cover every possible call.

    A region may be empty where the sets of `Word` cannot show that; it is never too small.

    Raises:
        ValueError: the program is too branchy, or computes something that the sets cannot follow.
    """
    todo: list[_Place] = [(0, Region({}), 0, 0, (0,) * bpf.SCRATCH_WORDS)]
    places = 0
    while todo:
        places += 1
        if places > PLACES_MAX:
            raise ValueError(f"not proved: more than {PLACES_MAX} branches")
        found = _follow(program, todo.pop(), todo)
        if found is not None:
            yield found


def _follow(program: Program, place: _Place, todo: list[_Place]) -> tuple[Region, int] | None:
    """Follow one path to its return; at a fork put both ways on ``todo`` and give None."""
    pc, region, a, x, memory = place
    while True:
        code, jt, jf, k = program[pc]
        pc += 1
        if code in bpf.JUMPS:
            test, negated = _test(pc - 1, code, a, x if code & 0x08 else k)
            truth = test if isinstance(test, bool) else region.decide(test)
            if truth is None:
                for way in (False, True):
                    narrowed = region.assume(test, way)  # type: ignore[arg-type]
                    if narrowed is not None:
                        todo.append((pc + (jt if way ^ negated else jf), narrowed, a, x, memory))
                return None
            pc += jt if truth ^ negated else jf
        elif code == bpf.LD_ABS:
            word = region.word(k)
            a = word.low if word.low == word.high else _Part(k, FULL)
        elif code in {bpf.RET_K, bpf.RET_A}:
            return region, _number(pc - 1, k if code == bpf.RET_K else a)
        elif code == bpf.JA:
            pc += k
        elif code in _ALU:
            operand = x if code in bpf.ALU_X else k
            if code == bpf.DIV_X and operand == 0:
                return region, RET_KILL_THREAD
            a = _compute(pc - 1, code, a, operand)
        else:
            a, x, memory = _move(pc - 1, code, k, a, x, memory)


def _test(at: int, code: int, a: _Value, operand: _Value) -> tuple[Question | bool, bool]:
    """(the question of a conditional jump or its known answer, whether to negate it)."""
    k = _number(at, operand)
    if isinstance(a, int):
        return compare(code, a, k), False
    kind = code & 0xF0 | 0x05
    if kind == bpf.JEQ_K:
        return Question(a.offset, a.mask, k), False
    if kind == bpf.JSET_K:
        return Question(a.offset, a.mask & k, 0), True
    if a.mask != FULL:
        raise ValueError(f"not proved: instruction {at} orders a part of {word_name(a.offset)}")
    if kind == bpf.JGE_K:
        return Question(a.offset, None, k), False
    return (False, False) if k == FULL else (Question(a.offset, None, k + 1), False)


def _compute(at: int, code: int, a: _Value, operand: _Value) -> _Value:
    if isinstance(a, _Part):
        if code & 0xF0 == 0x50 and code != bpf.NEG:
            mask = a.mask & _number(at, operand)
            return _Part(a.offset, mask) if mask else 0
        raise ValueError(f"not proved: instruction {at} computes with {word_name(a.offset)}")
    if code == bpf.NEG:
        return -a & FULL
    return compute(code, a, _number(at, operand))


def _move(
    at: int, code: int, k: int, a: _Value, x: _Value, memory: tuple[_Value, ...]
) -> tuple[_Value, _Value, tuple[_Value, ...]]:
    """(A, X, memory) after an instruction that only moves a value."""
    if code in {bpf.ST, bpf.STX}:
        return a, x, (*memory[:k], a if code == bpf.ST else x, *memory[k + 1 :])
    sources: dict[int, _Value] = {bpf.TXA: x, bpf.LD_IMM: k, bpf.LD_LEN: bpf.DATA_BYTES}
    if code in sources:
        return sources[code], x, memory
    if code == bpf.LD_MEM:
        return memory[k], x, memory
    sources = {bpf.TAX: a, bpf.LDX_IMM: k, bpf.LDX_LEN: bpf.DATA_BYTES}
    if code in sources:
        return a, sources[code], memory
    if code == bpf.LDX_MEM:
        return a, memory[k], memory
    raise ValueError(f"instruction {at}: not an instruction of seccomp's BPF: code {code:#04x}")


def _number(at: int, value: _Value) -> int:
    if isinstance(value, _Part):
        raise ValueError(f"not proved: instruction {at} needs {word_name(value.offset)} as a constant")
    return value
