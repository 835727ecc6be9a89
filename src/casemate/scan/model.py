"""Rules and findings of the scan: types only.

A rule by content describes bytes, wherever they lie: in a file, in a deleted file, in slack, in swap. A rule by path
describes a file of the guest that should not be in a public image, and how its content is looked at.

    bytes ──prefilter──► places worth a look ──regex──► candidates ──check──► hits ──redact──► findings

No finding holds a secret: `shown` has the first and last four characters, `digest` is keyed with a key that lives as
long as the scan, so that equal secrets can be told from different ones and nobody can try passwords against it.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable

import msgspec

SCHEMA = "casemate.scan/1"


class Level(enum.StrEnum):
    """How bad it is that a stranger has it. ``info`` never makes a scan fail."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"
    INFO = "info"


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule by content.

    Attributes:
        id: stable name, ``key.pem``; waivers name it.
        title: what was found, as the beginning of a sentence.
        severity: see `Level`.
        regex: bytes expression in the common part of PCRE and Python's ``re``; characters U+0080 to U+00FF stand for
            that byte. Group ``secret``, where there is one, is the secret; otherwise the whole match.
        prefilter: a cheaper expression whose matches end within ``before`` bytes behind the start of a real one;
            empty: ``regex`` itself.
        keywords: literals in lower case, at least one of which every match contains in any case; empty: unknown.
        check: name of the validator (`checks.CHECKS`) that tells a secret from something that looks like it.
        entropy: least Shannon entropy of the secret in bits per byte; 0: any.
        before, after: bytes looked at before and behind the end of a prefilter's match.
        remedy: what to do about it.
        group: number of the group that holds the secret when none has that name (rules of others).
        allow: expressions; a secret that one of them matches is no secret (rules of others).
        allow_match: the same, against the whole match.
    """

    id: str
    title: str
    severity: Level
    regex: str
    prefilter: str = ""
    keywords: tuple[str, ...] = ()
    check: str = ""
    entropy: float = 0.0
    before: int = 256
    after: int = 256
    remedy: str = ""
    group: int = 0
    allow: tuple[str, ...] = ()
    allow_match: tuple[str, ...] = ()


class PathRule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule by path.

    Attributes:
        paths: shell patterns of absolute paths (``*`` stops at a slash, ``**`` does not).
        look: how the content is judged, a name of `paths.LOOKS`; ``exists``: that it is there is enough.
    """

    id: str
    title: str
    severity: Level
    paths: tuple[str, ...]
    look: str = "nonempty"
    remedy: str = ""


class Found(msgspec.Struct, frozen=True):
    """What a check says of a real one: the secret itself (never leaves the scanner) and a remark for people."""

    secret: bytes
    detail: str = ""


Check = Callable[[re.Match[bytes], bytes], Found | None]
"""(match, all bytes around it) -> what it is, or None when it is no secret."""


class Hit(msgspec.Struct, frozen=True):
    """One secret in a run of bytes, redacted. ``offset``: bytes from the start of what was scanned."""

    rule: str
    offset: int
    length: int
    shown: str
    digest: str
    detail: str = ""


class Place(enum.StrEnum):
    """Where a finding lies, as far as it can be told."""

    FILE = "file"
    """In a file that the file system shows."""
    GUEST_DISK = "disk"
    """On the guest's disk, and in no file that was read: deleted, unallocated, slack, swap, journal, or packed away."""
    SNAPSHOT = "snapshot"
    """Reachable only through an internal snapshot of the qcow2 image."""
    UNREFERENCED = "unreferenced"
    """In a cluster of the image file that no table of it points to: space that was freed and not wiped."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One finding of a scan.

    Attributes:
        path: of the file, as it may be printed; empty when it is in none that is known.
        offset: bytes from the start of the image file (of the guest's disk when ``compressed``); -1: not known.
        guest_offset: bytes from the start of the guest's disk; -1: not known.
        snapshot: names of internal snapshots that hold it, when the disk itself no longer does.
        more: how often the very same secret was found elsewhere.
        waived: reason of the waiver that covers it; empty: none does.
    """

    rule: str
    title: str
    severity: Level
    place: Place
    shown: str
    digest: str
    path: str = ""
    offset: int = -1
    guest_offset: int = -1
    compressed: bool = False
    snapshot: str = ""
    detail: str = ""
    remedy: str = ""
    more: int = 0
    waived: str = ""
