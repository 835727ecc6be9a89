"""What a capture says about itself: one JSON document, the first member of its archive."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

MANIFEST: Final = "casemate-capture.json"
"""Name of the first member."""
TREE: Final = "root/"
"""What the names of all others begin with."""
VERSION: Final = 1
ARCHIVE_BYTES: Final = 128 << 20
"""Of an archive, packed or not."""
ANSWER_CHARS: Final = 1 << 18
"""Of one program's answer, as far as it is kept."""

_Path = Annotated[str, Meta(min_length=1, max_length=4096, pattern="^/")]
NUMBER_MAX: Final = (1 << 63) - 1
_Number = Annotated[int, Meta(ge=0, le=NUMBER_MAX)]


class Status(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What stat(2) said, links followed: path, type and mode, owner, device number of a node, and which file it is."""

    path: _Path
    mode: Annotated[int, Meta(ge=0, le=0o777777)]
    uid: _Number
    gid: _Number
    rdev: _Number = 0
    dev: _Number = 0
    inode: _Number = 0
    size: _Number = 0


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The manifest.

    ``time``: RFC 3339, UTC. ``uid``: who captured. ``looked_for``: every pattern that was looked for, as KIND, space,
    pattern: what is not there and is covered by one of them was not on the host; about anything else nothing is known.
    ``names``: directories, and the names in them. ``unread``: path to why (a name of errno) for what is there and could
    not be read. ``answers``: of programs. ``filtered``: path to what was left out of its content.
    """

    casemate_capture: int
    time: Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    host: Annotated[str, Meta(max_length=255)]
    tool: Annotated[str, Meta(max_length=255)]
    uid: _Number
    looked_for: tuple[Annotated[str, Meta(max_length=4096)], ...]
    names: dict[_Path, tuple[Annotated[str, Meta(max_length=4096)], ...]]
    status: tuple[Status, ...]
    unread: dict[_Path, Annotated[str, Meta(max_length=64)]]
    answers: dict[str, Annotated[str, Meta(max_length=ANSWER_CHARS)]] = {}
    filtered: dict[_Path, Annotated[str, Meta(max_length=255)]] = {}
