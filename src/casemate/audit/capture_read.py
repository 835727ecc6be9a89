"""A capture as a Root: the archive's members, the manifest, and what they may not say together."""

from __future__ import annotations

import datetime
import errno
import time
from functools import lru_cache
from typing import Final, TypeVar

import msgspec

from casemate.audit.capture_model import MANIFEST, TREE, VERSION, Manifest
from casemate.audit.capture_tar import Archive, read_archive
from casemate.errors import InputError
from casemate.facts.memory_root import MemoryRoot, MemoryTree, patterns_of

T = TypeVar("T")
_MANIFEST_BYTES: Final = 32 << 20
_CLOCK_SLACK_S: Final = 86_400
_DECODER: Final = msgspec.json.Decoder(Manifest)


class Capture(msgspec.Struct, frozen=True):
    """``date``: the day it was made, as its own clock had it, but never after today. ``notes``: what to say of it."""

    root: MemoryRoot
    manifest: Manifest
    date: datetime.date
    notes: tuple[str, ...]


def read_capture(data: bytes, source: str) -> Capture:
    """A capture from the bytes of its archive; nothing is written anywhere.

    Raises:
        InputError: it is none, is damaged, or holds what no capture holds.
    """
    archive = read_archive(data, source)
    manifest = _manifest(archive, source)
    made, notes = _time(manifest)
    tree = MemoryTree(
        files=_below(archive.files, source),
        links=_below(archive.links, source),
        folders=_folders(archive, source),
        names=manifest.names,
        status={s.path: (s.mode, s.uid, s.gid, s.rdev, s.dev, s.inode, s.size) for s in manifest.status},
        unread={path: getattr(errno, why, errno.EIO) for path, why in manifest.unread.items()},
        looked_for=_patterns(manifest.looked_for),
        time_s=made.timestamp(),
        answers=manifest.answers,
    )
    _no_link_above(tree, source)
    return Capture(MemoryRoot(tree, source), manifest, made.date(), notes)


# Captures of one version look for the same; equal patterns are one object, which makes them quick to compare.
@lru_cache(maxsize=64)
def _patterns(looked_for: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return patterns_of(looked_for)
    except ValueError as error:
        raise InputError(f"{MANIFEST}: looked_for is not understood", got=str(error)) from None


def _manifest(archive: Archive, source: str) -> Manifest:
    data = archive.files.pop(MANIFEST, None)
    if data is None:
        raise InputError(
            f"{source} is no capture",
            got=f"an archive that begins with {archive.first[:120]!r}",
            expected=f"{MANIFEST} first",
            next_step="casemate capture OUT.tar makes one; unpack other archives: casemate audit --root DIR",
        )
    try:
        if len(data) > _MANIFEST_BYTES:
            raise msgspec.ValidationError(f"{len(data)} bytes")
        version = msgspec.json.decode(data, type=_Version).casemate_capture
        if version != VERSION:
            raise InputError(
                f"{source} was made by another version of casemate capture",
                got=f"version {version}",
                expected=f"version {VERSION}",
            )
        return _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{source}: {MANIFEST} is not understood", got=str(error)[:300]) from None


class _Version(msgspec.Struct):
    casemate_capture: int


def _time(manifest: Manifest) -> tuple[datetime.datetime, tuple[str, ...]]:
    """When it was made, and what is odd about that."""
    now = datetime.datetime.fromtimestamp(int(time.time()), datetime.UTC)
    try:
        made = datetime.datetime.strptime(manifest.time, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.UTC)
    except ValueError:
        return now, (f"the capture says no time that exists ({manifest.time}): judged as of today",)
    if (made - now).total_seconds() > _CLOCK_SLACK_S:
        return now, (f"the capture says that it is from the future ({manifest.time}): judged as of today",)
    return made, (f"captured {manifest.time} by uid {manifest.uid}, and judged as of then",)


def _below(members: dict[str, T], source: str) -> dict[str, T]:
    found: dict[str, T] = {}
    start = len(TREE) - 1
    for name, value in members.items():
        if not name.startswith(TREE):
            raise InputError(f"{source}: {name} is not below {TREE}", expected="what casemate capture writes")
        found[name[start:]] = value
    return found


def _folders(archive: Archive, source: str) -> set[str]:
    """Directories of the archive, and those above every member."""
    top = TREE.rstrip("/")
    found = set()
    for name in archive.folders:
        if name != top and not name.startswith(TREE):
            raise InputError(f"{source}: {name} is not below {TREE}", expected="what casemate capture writes")
        found.add(name[len(top) :])
    for names in (archive.files, archive.links, tuple(archive.folders)):
        for name in names:
            above = name.rpartition("/")[0]
            while len(above) > len(top) and above[len(top) :] not in found:
                found.add(above[len(top) :])
                above = above.rpartition("/")[0]
    found.discard("")
    return found


def _no_link_above(tree: MemoryTree, source: str) -> None:
    """A member below a link or below a file would be two things at once."""
    for folder in tree.folders:
        if folder in tree.links or folder in tree.files:
            raise InputError(
                f"{source}: {TREE}{folder[1:]} is a directory and something else",
                expected="what casemate capture writes",
            )
