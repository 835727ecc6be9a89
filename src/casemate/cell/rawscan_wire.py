"""What the two sides of a raw scan say to each other, and the limits of both.

    parent ── Task ──►  worker (in its wall)
           ◄── Report ──   one per 8 MiB at most, with what was found there
           ◄── Report(done=True)

One packet of a SOCK_SEQPACKET socket each, JSON, at most `PACKET_MAX_BYTES`.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from casemate.scan.model import Hit

PACKET_MAX_BYTES: Final = 128 * 1024
CHUNK_BYTES: Final = 8 << 20
HITS_A_PACKET: Final = 200
MAX_RESOLVED: Final = 4096


class Kind(enum.StrEnum):
    """``bytes``: the file from ``first`` on, ``count`` bytes. ``view``: what table ``view`` of a qcow2 shows, entries
    ``first`` to ``first + count`` of its L1 table: compressed clusters, and clusters that lie apart in the file.
    ``resolve``: to which place of which view the clusters at ``offsets`` belong."""

    BYTES = "bytes"
    VIEW = "view"
    RESOLVE = "resolve"


class Task(msgspec.Struct, frozen=True, omit_defaults=True):
    """One piece of work; see `Kind`."""

    kind: Kind
    first: int = 0
    count: int = 0
    view: int = 0
    offsets: tuple[int, ...] = ()


class Resolved(msgspec.Struct, frozen=True):
    """A byte of the file: which view shows it (0: the disk, n: snapshot n), and where in it."""

    offset: int
    view: int
    guest_offset: int


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a worker has to say. ``hits``: offsets from the start of the file, for views from the start of the disk.

    ``scanned``: bytes of the file dealt with since the last report, holes included; ``read``: those looked at.
    ``notes``: what was not scanned, and why.
    """

    hits: tuple[Hit, ...] = ()
    scanned: int = 0
    read: int = 0
    resolved: tuple[Resolved, ...] = ()
    notes: tuple[str, ...] = ()
    error: str = ""
    done: bool = False


class View(msgspec.Struct, frozen=True):
    """One L1 table of a qcow2 image: the disk's (name empty) or that of an internal snapshot."""

    name: str
    l1_offset: int
    l1_entries: int
    size_bytes: int
