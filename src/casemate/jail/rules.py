"""Types of the seccomp allowlist: reviewed data, one reason per rule.

A profile is the union of rule sets (base, accelerator, devices). The default action is to kill the process. A rule
allows one system call, optionally only for some argument values. ``Phase.STARTUP`` rules are needed only until the
guest runs: they become user notifications, which the supervisor answers until the read-back is done and never again.
"""

from __future__ import annotations

import enum

import msgspec


class Phase(enum.StrEnum):
    """When a call may be made: only before the guest's first instruction, or for the VM's whole life."""

    STARTUP = "startup"
    ALWAYS = "always"


class Op(enum.StrEnum):
    """How an argument is compared. ``MASKED_EQ``: (argument & mask) == value."""

    EQ = "=="
    NE = "!="
    LT = "<"
    LE = "<="
    GT = ">"
    GE = ">="
    MASKED_EQ = "&=="


class Arg(msgspec.Struct, frozen=True):
    """One comparison on a system call argument (index 0-5); values are unsigned 64-bit."""

    index: int
    op: Op
    value: int
    mask: int = 0xFFFF_FFFF_FFFF_FFFF


class Origin(enum.StrEnum):
    """How the need for a rule is known."""

    TRACED = "traced"
    SOURCE = "source"


class Rule(msgspec.Struct, frozen=True):
    """Allow ``syscall`` when all ``args`` hold (none: always). Several rules for one call are alternatives.

    ``reason`` says who makes the call and why; ``origin`` whether a traced workload shows it or only QEMU's source.
    ``errno``: when set, the call is not allowed but answered with this error (for calls that programs try and survive).
    """

    syscall: str
    reason: str
    args: tuple[Arg, ...] = ()
    phase: Phase = Phase.ALWAYS
    origin: Origin = Origin.TRACED
    errno: int | None = None


class Profile(msgspec.Struct, frozen=True):
    """A named set of rules, e.g. ``qemu-tcg+blk+net``. ``parts`` names the rule sets it was made of."""

    name: str
    rules: tuple[Rule, ...]
    parts: tuple[str, ...] = ()
