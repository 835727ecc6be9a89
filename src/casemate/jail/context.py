"""What the steps of a wall share: their inputs from outside, and what they observed of themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec


class Context(msgspec.Struct):
    """What the steps need from outside: descriptors by role, a place to mount on, and the parent's ear.

    Attributes:
        sources: role -> descriptor, for CopyFile and for the final descriptor numbers.
        staging: an existing directory on which the new root is mounted, in the child's mount namespace only.
        ask_parent: sends one letter and waits for the answer (``M``: write my id maps).
        notes: what the steps observed of themselves, e.g. the Landlock ABI in force.
    """

    sources: dict[str, int]
    staging: str
    ask_parent: Callable[[str], None]
    notes: dict[str, str] = msgspec.field(default_factory=dict)


class Step(Protocol):
    """One thing done to the calling process."""

    def describe(self) -> str:
        """One line in plain words."""

    def apply(self, context: Context) -> None:
        """Do it, or raise OSError."""
