"""Every system call by number, and every rule of the profile from both sides. Pure: profile in, attempts out.

Arguments are -1 everywhere: no valid descriptor, pointer, flag or size, so that a call which is reached does nothing.
"""

from __future__ import annotations

from typing import Final

from casemate.bpf.syscalls import X32_BIT, names, numbers
from casemate.jail.policy import Layer
from casemate.jail.probe.model import Attempt, Call, Entry, Group
from casemate.jail.rules import Arg, Op, Profile, Rule

_NOTHING: Final = (-1,) * 6
_U64: Final = 0xFFFF_FFFF_FFFF_FFFF
_BEYOND: Final = 16
_FAR: Final = (*range(512, 548), 1023, 4096, 0xFFFF, 0x3FFF_FFFF, 0x7FFF_FFFF)
_X32: Final = (0, 1, 2, 9, 16, 41, 56, 57, 59, 101, 257, 512, 520, 547)
_I386: Final = ((20, "getpid"), (5, "open"), (2, "fork"), (11, "execve"), (102, "socketcall"))
# They act without arguments, or return to nowhere: near a rule they are tried in the refused form only.
_NEVER_ALLOWED_FORM: Final = frozenset({"clone", "clone3", "fork", "vfork", "exit", "exit_group", "rt_sigreturn"})
_WITHOUT_FILTER: Final = (Layer.SECCOMP,)
_HARM: Final = "without a filter the call would be made"


def sweep_attempts(
    profile: Profile, machine: str, dangerous: frozenset[str], *, machine_code: bool, quick: bool
) -> tuple[Attempt, ...]:
    """By number; beyond the table; other calling conventions; each rule with near misses.

    ``quick``: only the calls of the profile and the dangerous ones, and no near misses.
    """
    table = names(machine)
    everything = range(max(table) + _BEYOND + 1)
    telling = {rule.syscall for rule in profile.rules} | dangerous
    chosen = [nr for nr in everything if table.get(nr) in telling] if quick else [*everything]
    attempts = [_call(table.get(nr, f"nr-{nr}"), f"make system call {table.get(nr, nr)}", nr) for nr in chosen]
    if not quick:
        attempts += [_call(f"nr-{nr}", f"make system call number {nr}", nr) for nr in _FAR]
    if machine == "x86_64":
        attempts += [
            _call(f"x32-{table.get(nr, nr)}", f"make system call {table.get(nr, nr)} as x32 code", X32_BIT | nr)
            for nr in _X32
        ]
        skip = "" if machine_code else "needs machine code"
        attempts += [
            _attempt(
                f"int80-{name}",
                f"make i386 system call {name} through int 0x80",
                Call(name, (0,) * 6, nr, Entry.INT80),
                skip=skip,
            )
            for nr, name in _I386
        ]
    if not quick:
        attempts += _rule_attempts(profile, machine)
    return tuple(attempts)


def _attempt(name: str, what: str, call: Call, skip: str = "") -> Attempt:
    return Attempt(
        id=f"calls.{name}",
        group=Group.CALLS,
        what=what,
        steps=(call,),
        only_with=_WITHOUT_FILTER,
        harm=_HARM,
        skip=skip,
    )


def _call(name: str, what: str, nr: int) -> Attempt:
    return _attempt(name, what, Call(name, _NOTHING, nr))


def _rule_attempts(profile: Profile, machine: str) -> list[Attempt]:
    """Arguments that satisfy a rule, and for each of its comparisons arguments that just do not."""
    attempts = []
    seen: set[tuple[int, tuple[int, ...]]] = set()
    counts: dict[str, int] = {}
    table = numbers(machine)
    for rule in profile.rules:
        if not rule.args:
            continue
        for kind, values in _vectors(rule):
            if kind == "met" and rule.syscall in _NEVER_ALLOWED_FORM:
                continue
            key = (table[rule.syscall], values)
            if key in seen:
                continue
            seen.add(key)
            counts[rule.syscall] = counts.get(rule.syscall, 0) + 1
            name = f"{rule.syscall}.{counts[rule.syscall]}"
            words = ", ".join(f"{arg.index}={values[arg.index] & _U64:#x}" for arg in rule.args)
            what = f"make system call {rule.syscall} with {words}"
            attempts.append(_attempt(name, what, Call(rule.syscall, values, table[rule.syscall])))
    return attempts


def _vectors(rule: Rule) -> list[tuple[str, tuple[int, ...]]]:
    met = list(_NOTHING)
    for arg in rule.args:
        met[arg.index] = satisfying(arg)
    vectors = [("met", tuple(met))]
    for arg in rule.args:
        near = list(met)
        near[arg.index] = violating(arg)
        vectors.append(("near", tuple(near)))
    return vectors


def satisfying(arg: Arg) -> int:
    """A value for which the comparison holds, with every bit set that it leaves open."""
    match arg.op:
        case Op.EQ | Op.GE | Op.LE:
            return arg.value
        case Op.NE | Op.GT:
            return arg.value + 1 & _U64
        case Op.LT:
            return arg.value - 1
        case Op.MASKED_EQ:
            return arg.value | ~arg.mask & _U64


def violating(arg: Arg) -> int:
    """A value for which it just does not hold."""
    match arg.op:
        case Op.EQ:
            return arg.value ^ 1
        case Op.NE | Op.GT | Op.LT:
            return arg.value
        case Op.GE:
            return arg.value - 1 & _U64
        case Op.LE:
            return arg.value + 1 & _U64
        case Op.MASKED_EQ:
            lowest = arg.mask & -arg.mask
            return satisfying(arg) ^ lowest
