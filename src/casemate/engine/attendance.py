"""Follow a run from its first byte to its end: the connections are made before the launch and handed to the supervisor.

A guest can power off before whoever started it gets to connect, and one with ``--rm`` then leaves nothing to ask: no
definition, no log, no exit.json. What was written into these connections stays in them.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Literal

import msgspec

from casemate.controls.policy import HostPolicy
from casemate.engine import start as engine
from casemate.engine.paths import Paths
from casemate.engine.vmfiles import Definition

if TYPE_CHECKING:
    from casemate.engine.control import Attachment, EndWatch
    from casemate.engine.restore import Restore

Follow = Literal["end", "console"]
"""How much of a run its starter follows: how it ends, or the console as well."""


class Attendance:
    """A socket pair or two. `watch` and `console` give our ends away, `close` closes those that are left."""

    def __init__(self, follow: Follow) -> None:
        self._ours: dict[str, socket.socket] = {}
        self._theirs: dict[str, socket.socket] = {}
        for name in ("end", "console") if follow == "console" else ("end",):
            self._ours[name], self._theirs[name] = socket.socketpair()

    def supervisor_ends(self) -> dict[str, int]:
        """Descriptors for the supervisor: ``end``, ``console``."""
        return {name: end.fileno() for name, end in self._theirs.items()}

    def handed_over(self) -> None:
        """The supervisor has its own copies, or there is none: with ours open, its death would go unseen."""
        for end in self._theirs.values():
            end.close()
        self._theirs.clear()

    def watch(self, paths: Paths, definition: Definition) -> EndWatch:
        """The end of the run."""
        from casemate.engine.control import EndWatch  # here: a detached start needs neither

        return EndWatch(paths, definition, self._ours.pop("end"))

    def console(self) -> Attachment | None:
        """All that the guest prints, and what we type; None when it was not asked for."""
        from casemate.engine.control import Attachment

        end = self._ours.pop("console", None)
        return None if end is None else Attachment(end)

    def close(self) -> None:
        """Close what nobody took."""
        self.handed_over()
        for end in self._ours.values():
            end.close()
        self._ours.clear()


class Started(msgspec.Struct, frozen=True):
    """A VM whose guest has been released.

    Attributes:
        warnings: of its plan.
        watch, console: None unless the caller asked to follow the run; they are the caller's to close.
    """

    id: str
    name: str
    warnings: tuple[str, ...]
    watch: EndWatch | None = None
    console: Attachment | None = None


def start(
    paths: Paths,
    definition: Definition,
    policy: HostPolicy,
    restore: Restore | None = None,
    follow: Follow | None = None,
) -> Started:
    """As `start.start`, with the connections of somebody who stays with the run."""
    attendance = Attendance(follow) if follow is not None else None
    try:
        warnings = engine.start(paths, definition, policy, restore, attendance).warnings
        if attendance is None:
            return Started(definition.id, definition.name, warnings)
        watch, console = attendance.watch(paths, definition), attendance.console()
        return Started(definition.id, definition.name, warnings, watch, console)
    finally:
        if attendance is not None:
            attendance.close()
