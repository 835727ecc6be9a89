"""What all helpers beside an emulator have in common: passt with its broker, swtpm."""

from __future__ import annotations

import os
import signal
from typing import NamedTuple, Protocol

from casemate.errors import HostError


class Member(NamedTuple):
    """A process of a helper. ``name``: in state.json; ``title``: in words for people."""

    name: str
    title: str
    pid: int
    pidfd: int


class Helper(Protocol):
    """A running helper. Whoever started it owns it."""

    def members(self) -> tuple[Member, ...]:
        """Its processes."""

    def unlink(self) -> None:
        """Close our copy of the emulator's end once the emulator has its own."""

    def stop(self) -> None:
        """End and close everything. Safe to call when it is dead already, or stopped."""


def did_not_start(program: str, pidfd: int, words: str) -> HostError:
    """The error for a child that ended, as ``pidfd`` shows, before it was ready; ``words`` are its last ones."""
    status = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
    how = "it ended"
    if status is not None:
        killed = status.si_code != os.CLD_EXITED
        how = signal.Signals(status.si_status).name if killed else f"exit status {status.si_status}"
    return HostError(
        f"{program} did not start",
        got=f"{how}; {words}" if words else how,
        next_step=f"SIGSYS: a system call outside of its allowlist; report it with {program} --version"
        if how == "SIGSYS"
        else "casemate doctor",
    )
