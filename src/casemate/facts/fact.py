"""What is known, from where, and what is not known and why.

Unknown is a value of its own: no reader of facts can mistake it for a pass.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

Value = str | int | float | bool | tuple[str, ...]


class Stage(enum.StrEnum):
    """``declared``: a plan, file or argument says so; ``observed``: read from the live object."""

    DECLARED = "declared"
    OBSERVED = "observed"


NO_LIMIT: Final = 1 << 62
"""A number in the place of a limit where there is none."""


class Known(msgspec.Struct, frozen=True, tag="known"):
    """A value, the place it was read from (``/proc/812/status: Seccomp``) and its stage."""

    value: Value
    source: str
    stage: Stage = Stage.OBSERVED


class Unknown(msgspec.Struct, frozen=True, tag="unknown"):
    """Nothing is known, and why."""

    why: str


Fact = Known | Unknown
Facts = dict[str, Fact]
"""Facts by observable name, e.g. ``proc.uid``, ``host.landlock-abi``."""
