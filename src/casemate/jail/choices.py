"""What a profile decides for each call, free of how a filter says it: the reference that filters are proved against.

The rules of one call become choices in a fixed order; the first choice with a matching rule decides, and the default is
to kill the process:

    1  allowed            rules of phase ALWAYS
    2  notified           rules of phase STARTUP
    3  answered an errno  rules with ``errno``, one choice per number, in the order of the profile

So a call that is allowed for some arguments at any time may be allowed for more (or all) arguments during start-up, and
may fail softly for the rest.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from casemate.bpf.evaluate import RET_ALLOW, RET_ERRNO, RET_KILL_PROCESS, RET_USER_NOTIF, word_offsets
from casemate.bpf.paths import FULL, Question, Region
from casemate.bpf.syscalls import audit_arch, number_of
from casemate.jail.rules import Arg, Op, Phase, Profile, Rule

DEFAULT: Final = RET_KILL_PROCESS
_U64: Final = 0xFFFF_FFFF_FFFF_FFFF
_ERRNO_MAX: Final = 4095


class Choice(NamedTuple):
    """``returned`` (a SECCOMP_RET value) is the answer when all comparisons of one of ``alternatives`` hold."""

    returned: int
    alternatives: tuple[tuple[Arg, ...], ...]

    @property
    def unconditional(self) -> bool:
        """Whether the arguments do not matter."""
        return () in self.alternatives


class Call(NamedTuple):
    """One system call of a profile: its number and its choices, the first that matches decides."""

    name: str
    nr: int
    choices: tuple[Choice, ...]


def build_calls(profile: Profile, arch: str) -> tuple[Call, ...]:
    """The calls of ``profile`` in the order of their numbers, without duplicates and without rules that never decide.

    Raises:
        ValueError: every faulty rule with its reason: unknown call, impossible comparison, wrong errno, two comparisons
            of one argument, or an errno rule whose arguments do not matter because a wider rule comes first.
    """
    audit_arch(arch)
    faults: list[str] = []
    by_call: dict[str, list[Rule]] = {}
    for rule in profile.rules:
        found = _faults(rule, arch)
        faults += [f"{profile.name}: rule for {rule.syscall}: {fault}" for fault in found]
        if not found:
            by_call.setdefault(rule.syscall, []).append(rule)
    calls = []
    for name, rules in by_call.items():
        choices = _choices(rules)
        swallowed = {choice.returned for choice in _all_choices(rules)} - {choice.returned for choice in choices}
        if any(rule.errno is not None and rule.args and RET_ERRNO | rule.errno in swallowed for rule in rules):
            faults.append(
                f"{profile.name}: rules for {name}: an errno for some arguments, but a wider rule comes first"
            )
        calls.append(Call(name, number_of(name, arch), choices))
    if not calls and not faults:
        faults.append(f"{profile.name}: no rules; a filter that kills on every call protects nothing that runs")
    if faults:
        raise ValueError("\n".join(faults))
    return tuple(sorted(calls, key=lambda call: call.nr))


def _faults(rule: Rule, arch: str) -> list[str]:
    faults = []
    try:
        number_of(rule.syscall, arch)
    except ValueError as fault:
        faults.append(str(fault))
    if rule.errno is not None and not 1 <= rule.errno <= _ERRNO_MAX:
        faults.append(f"errno is 1 to {_ERRNO_MAX}, got {rule.errno}")
    if rule.errno is not None and rule.phase is Phase.STARTUP:
        faults.append("an errno holds for the whole life, not only during start-up")
    if len({arg.index for arg in rule.args}) < len(rule.args):
        faults.append("two comparisons of one argument (libseccomp takes one); write alternatives or a mask")
    for arg in rule.args:
        if not 0 <= arg.index <= 5:
            faults.append(f"argument index is 0 to 5, got {arg.index}")
        if not (0 <= arg.value <= _U64 and 0 <= arg.mask <= _U64):
            faults.append(f"argument {arg.index}: value and mask are unsigned 64-bit numbers")
        elif not _possible(arg):
            faults.append(f"argument {arg.index}: no value is {arg.op} {arg.value:#x} with mask {arg.mask:#x}")
        elif arg.op is not Op.MASKED_EQ and arg.mask != _U64:
            faults.append(f"argument {arg.index}: a mask counts only with {Op.MASKED_EQ}")
    return faults


def _possible(arg: Arg) -> bool:
    if arg.op is Op.MASKED_EQ:
        return not arg.value & ~arg.mask
    return not (arg.op is Op.LT and arg.value == 0) and not (arg.op is Op.GT and arg.value == _U64)


def _all_choices(rules: list[Rule]) -> list[Choice]:
    grouped: dict[int, set[tuple[Arg, ...]]] = {RET_ALLOW: set(), RET_USER_NOTIF: set()}
    for rule in rules:
        if rule.errno is not None:
            returned = RET_ERRNO | rule.errno
        else:
            returned = RET_USER_NOTIF if rule.phase is Phase.STARTUP else RET_ALLOW
        grouped.setdefault(returned, set()).add(tuple(sorted(rule.args, key=lambda arg: arg.index)))
    return [
        Choice(returned, ((),) if () in whens else tuple(sorted(whens, key=_order)))
        for returned, whens in grouped.items()
        if whens
    ]


def _choices(rules: list[Rule]) -> tuple[Choice, ...]:
    choices: list[Choice] = []
    for choice in _all_choices(rules):
        choices.append(choice)
        if choice.unconditional:
            break
    return tuple(choices)


def _order(args: tuple[Arg, ...]) -> tuple[tuple[int, str, int, int], ...]:
    return tuple((arg.index, str(arg.op), arg.value, arg.mask) for arg in args)


def canonical(calls: tuple[Call, ...], arch: str) -> bytes:
    """The calls as JSON text that does not depend on the order or the wording of the rules."""
    data = [
        [call.nr, [[choice.returned, [_order(args) for args in choice.alternatives]] for choice in call.choices]]
        for call in calls
    ]
    return msgspec.json.encode([arch, DEFAULT, data])


def matches(arg: Arg, value: int) -> bool:
    """Whether the 64-bit ``value`` of the argument satisfies ``arg``."""
    return {
        Op.EQ: value == arg.value,
        Op.NE: value != arg.value,
        Op.LT: value < arg.value,
        Op.LE: value <= arg.value,
        Op.GT: value > arg.value,
        Op.GE: value >= arg.value,
        Op.MASKED_EQ: value & arg.mask == arg.value,
    }[arg.op]


def decide(call: Call, args: tuple[int, ...]) -> int:
    """The SECCOMP_RET value that the profile wants for a call with these six arguments."""
    for choice in call.choices:
        if any(all(matches(arg, args[arg.index]) for arg in alternative) for alternative in choice.alternatives):
            return choice.returned
    return DEFAULT


Answer = bool | Question
"""True, False, or the question on which it depends."""


def holds(arg: Arg, region: Region) -> Answer:
    """Whether ``arg`` holds for all calls of ``region``, for none, or a question that would bring it closer."""
    if arg.op is Op.NE:
        return _negate(_equal(arg.index, FULL, FULL, arg.value, region))
    if arg.op is Op.EQ:
        return _equal(arg.index, FULL, FULL, arg.value, region)
    if arg.op is Op.MASKED_EQ:
        return _equal(arg.index, arg.mask >> 32, arg.mask & FULL, arg.value, region)
    if arg.op in {Op.GE, Op.LT}:
        answer = _at_least(arg.index, arg.value, region)
    else:
        answer = False if arg.value == _U64 else _at_least(arg.index, arg.value + 1, region)
    return _negate(answer) if arg.op in {Op.LT, Op.LE} else answer


def _negate(answer: Answer) -> Answer:
    return not answer if isinstance(answer, bool) else answer


def _equal(index: int, high_mask: int, low_mask: int, value: int, region: Region) -> Answer:
    low, high = word_offsets(index)
    # The low half first: it is where the values of one call's rules differ.
    low_truth = region.word(low).equals(low_mask, value & FULL)
    if low_truth is False:
        return False
    high_truth = region.word(high).equals(high_mask, value >> 32)
    if high_truth is None:
        return Question(high, high_mask, value >> 32)
    if low_truth is None and high_truth:
        return Question(low, low_mask, value & FULL)
    return high_truth


def _at_least(index: int, value: int, region: Region) -> Answer:
    """Unsigned 64-bit ``argument >= value`` from its halves: high > vh, or high == vh and low >= vl."""
    low, high = word_offsets(index)
    value_high, value_low = value >> 32, value & FULL
    if value_high < FULL:
        above = Question(high, None, value_high + 1)
        truth = region.decide(above)
        if truth is None:
            return above
        if truth:
            return True
    level = Question(high, None, value_high)
    truth = region.decide(level)
    if truth is None:
        return level
    if not truth:
        return False
    rest = Question(low, None, value_low)
    truth = region.decide(rest)
    return rest if truth is None else truth
