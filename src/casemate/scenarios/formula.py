"""Closing conditions: monotone formulas over the verdicts of controls.

A condition says when the precondition of a technique is *gone*. It has four values, weakest first:

    NO       it does not hold: at least one control that it needs failed (a waived control failed, too)
    UNKNOWN  nobody knows: it needs a control whose verdict is unknown, that a person must judge, or that nobody judged
    PAPER    it holds, but only by what is declared: nobody read it from the live object
    YES      it holds by what was observed

`Every` is the minimum of its parts, `Some` the maximum: turning one control from fail to pass can never open anything
(monotone), and nothing unknown ever counts as closed. A control that does not apply counts only where the data says so
(`Holds(..., or_absent=True)`, `Absent`): "no label, because this host has no SELinux" closes nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping

import msgspec


class Value(enum.IntEnum):
    """How far a condition, or a control, is met."""

    NO = 0
    UNKNOWN = 1
    PAPER = 2
    YES = 3


class State(msgspec.Struct, frozen=True):
    """Where one control stands. ``value``: how far it is met; for one that does not apply (``absent``) how well its
    absence is known: YES, or PAPER on declared facts."""

    value: Value
    absent: bool = False


UNJUDGED = State(Value.UNKNOWN)
"""A control that nobody judged: unknown."""


class Holds(msgspec.Struct, frozen=True, tag="holds"):
    """The control passes. ``or_absent``: its not applying means that the precondition is not there either."""

    control: str
    or_absent: bool = False


class Absent(msgspec.Struct, frozen=True, tag="absent"):
    """The control does not apply, because the thing that it is about is not there."""

    control: str


class Never(msgspec.Struct, frozen=True, tag="never"):
    """No control takes this precondition away. ``why``: in a few words, for the reader."""

    why: str


class Every(msgspec.Struct, frozen=True, tag="every"):
    """All parts."""

    parts: tuple[Condition, ...]


class Some(msgspec.Struct, frozen=True, tag="some"):
    """At least one part."""

    parts: tuple[Condition, ...]


Condition = Holds | Absent | Never | Every | Some


def every(*parts: Condition | str) -> Every:
    """All of these; a text names a control that must pass. Parts are never none: all of nothing is an error."""
    return Every(_parts(parts))


def some(*parts: Condition | str) -> Some:
    """At least one of these; a text names a control that must pass."""
    return Some(_parts(parts))


def _parts(parts: tuple[Condition | str, ...]) -> tuple[Condition, ...]:
    if not parts:
        raise RuntimeError("a condition of no parts: all of nothing proves nothing")
    return tuple(Holds(part) if isinstance(part, str) else part for part in parts)


def evaluate(condition: Condition, states: Mapping[str, State]) -> Value:
    """How far the condition is met; a control without a state is unknown."""
    if isinstance(condition, Every):
        return min(evaluate(part, states) for part in condition.parts)
    if isinstance(condition, Some):
        return max(evaluate(part, states) for part in condition.parts)
    if isinstance(condition, Never):
        return Value.NO
    state = states.get(condition.control, UNJUDGED)
    if isinstance(condition, Absent):
        if state.absent:
            return state.value
        # Whether it applies is not known while the control is unknown: it may turn out absent.
        return Value.UNKNOWN if state.value is Value.UNKNOWN else Value.NO
    if state.absent:
        return state.value if condition.or_absent else Value.NO
    return state.value


def controls_of(condition: Condition) -> Iterator[str]:
    """The controls that it names, with repeats."""
    if isinstance(condition, (Every, Some)):
        for part in condition.parts:
            yield from controls_of(part)
    elif not isinstance(condition, Never):
        yield condition.control


def closing_sets(condition: Condition, states: Mapping[str, State], *, limit: int = 64) -> tuple[frozenset[str], ...]:
    """The smallest sets of controls that would have to pass for the condition to be YES; none when it cannot be.

    What is met already needs nothing: a condition that is YES gives one empty set. A control that does not apply
    cannot be made to pass; an absence that counts, and is only declared, can be observed.

    Raises:
        RuntimeError: there are more than ``limit``: conditions are our own data, and none may have so many, for a set
            left out could be part of the cheapest plan.
    """
    if isinstance(condition, Never):
        return ()
    if isinstance(condition, Some):
        return _smallest(
            {found for part in condition.parts for found in closing_sets(part, states, limit=limit)}, limit
        )
    if isinstance(condition, Every):
        product: tuple[frozenset[str], ...] = (frozenset(),)
        for part in condition.parts:
            options = closing_sets(part, states, limit=limit)
            product = _smallest({left | right for left in product for right in options}, limit)
        return product
    if evaluate(condition, states) is Value.YES:
        return (frozenset(),)
    state = states.get(condition.control, UNJUDGED)
    on_paper = evaluate(condition, states) is Value.PAPER
    if (isinstance(condition, Absent) or state.absent) and not on_paper:
        return ()  # what is there cannot be made absent, nor what is absent made to pass
    return (frozenset((condition.control,)),)


def _smallest(found: set[frozenset[str]], limit: int) -> tuple[frozenset[str], ...]:
    """Those that contain no other one, smallest first, in a fixed order."""
    kept: list[frozenset[str]] = []
    for candidate in sorted(found, key=lambda item: (len(item), sorted(item))):
        if not any(other <= candidate for other in kept):
            kept.append(candidate)
    if len(kept) > limit:
        raise RuntimeError(f"a condition with more than {limit} closing sets")
    return tuple(kept)


def text_of(condition: Condition) -> str:
    """The condition in words: ``all of (a, any of (b, c))``."""
    if isinstance(condition, Never):
        return f"nothing ({condition.why})"
    if isinstance(condition, Absent):
        return f"{condition.control} does not apply"
    if isinstance(condition, Holds):
        return condition.control
    word = "all of" if isinstance(condition, Every) else "any of"
    if len(condition.parts) == 1:
        return text_of(condition.parts[0])
    return f"{word} ({', '.join(text_of(part) for part in condition.parts)})"


def fulfilled(states: Mapping[str, State], controls: Iterable[str]) -> dict[str, State]:
    """The states when these controls were made to pass, or what is absent was observed to be."""
    done = {control: State(Value.YES, states.get(control, UNJUDGED).absent) for control in controls}
    return dict(states) | done
