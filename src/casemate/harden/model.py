"""What hardening says: changes made, things left alone and why. Types only.

``control``: id of the control that a change satisfies; the catalogue says more about it. ``--keep ID`` leaves what that
control asks for.
"""

from __future__ import annotations

import enum

import msgspec


class Change(msgspec.Struct, frozen=True):
    """One change. ``where``: the place in what was read (``devices/interface[2]``, ``argv[7]``). ``what``: what was
    done. ``why``: which attack it takes away. ``cost``: what the owner loses; ``none`` when nothing."""

    control: str
    where: str
    what: str
    why: str
    cost: str = "none"


class Reason(enum.StrEnum):
    """Why something is left: the owner must decide, the format cannot say it, or ``--keep`` asked for it."""

    DECIDE = "decide"
    LIMIT = "limit"
    KEPT = "kept"


class Left(msgspec.Struct, frozen=True):
    """Something that a control asks for and hardening did not do. ``next_step``: what the owner can do."""

    control: str
    where: str
    what: str
    reason: Reason
    next_step: str = ""


class Notes:
    """Collects changes and what is left, in the order of the rules, and knows what ``--keep`` named."""

    def __init__(self, keep: frozenset[str] = frozenset()) -> None:
        self.keep = keep
        self.changes: list[Change] = []
        self.left: list[Left] = []

    def wants(self, control: str, where: str = "", what: str = "") -> bool:
        """Whether to satisfy ``control`` here; a kept one is remembered with ``what`` would have been done."""
        if control not in self.keep:
            return True
        if what:
            self.leave(control, where, what, Reason.KEPT)
        return False

    def change(self, control: str, where: str, what: str, why: str, cost: str = "none") -> None:
        self.changes.append(Change(control, where, what, why, cost))

    def leave(self, control: str, where: str, what: str, reason: Reason, next_step: str = "") -> None:
        left = Left(control, where, what, reason, next_step)
        if left not in self.left:
            self.left.append(left)


class Hardened(msgspec.Struct, frozen=True, kw_only=True):
    """A hardened document. ``claims``: controls that it satisfies now as far as this kind of document can say."""

    kind: str
    before: str
    after: str
    changes: tuple[Change, ...]
    left: tuple[Left, ...]
    claims: tuple[str, ...]
    argv: tuple[str, ...] = ()
