"""What the files of a guest's image say about controls that only the guest itself can answer, as data.

The controls on the left ask about the running guest, and no audit of a host sees it. Its image is read without running
it (`casemate image audit`), and says part of the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from casemate.scenarios.formula import UNJUDGED, State, Value


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """``control`` holds at most as far as the worst of ``by``. ``is_whole``: when all of them hold, so does it;
    otherwise they can only say that it fails. ``on_paper``: what lies on a disk is a setting; whether the kernel that
    runs took it up, nobody looked."""

    control: str
    by: tuple[str, ...]
    is_whole: bool
    on_paper: bool = False
    why: str


ANSWERS: Final = (
    Answer(
        control="guest.updates",
        by=("guest.security-updates",),
        is_whole=True,
        why="what is installed is what lies on the disk",
    ),
    Answer(
        control="guest.root",
        by=(
            *("guest.root-locked", "guest.no-empty-password", "guest.one-root", "guest.sshd-root"),
            "guest.sudo-password",
        ),
        is_whole=True,
        why="accounts, sshd and sudo are files",
    ),
    Answer(
        control="guest.kernel",
        by=("guest.sysctls",),
        is_whole=False,
        why="its sysctls are a part of what hardens a kernel",
    ),
    Answer(
        control="guest.lockdown",
        by=("guest.lockdown-ready", "guest.secure-boot-ready"),
        is_whole=True,
        on_paper=True,
        why="a signed loader and a command line, not the kernel that runs",
    ),
    Answer(
        control="ent.no-haveged",
        by=("guest.no-entropy-daemon",),
        is_whole=True,
        why="what is not installed does not run",
    ),
    Answer(
        control="sec.passwords",
        by=("guest.no-empty-password",),
        is_whole=False,
        why="an empty password is a known one; hashes of known ones are what image scan looks for",
    ),
)


def answered(states: Mapping[str, State]) -> dict[str, tuple[State, tuple[str, ...]]]:
    """Where the guest's own controls stand by an image's findings, each with the controls that said so."""
    found = {}
    for answer in ANSWERS:
        known = [states[name] for name in answer.by if name in states]
        if not known:
            continue
        worst = min((states.get(name, UNJUDGED).value for name in answer.by), default=Value.UNKNOWN)
        if answer.on_paper:
            worst = min(worst, Value.PAPER)
        if worst is not Value.NO and not answer.is_whole:
            worst = Value.UNKNOWN
        found[answer.control] = State(worst), answer.by
    return found
