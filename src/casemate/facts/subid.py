"""Subordinate ids: /etc/subuid and /etc/subgid (subuid(5)), lines ``owner:first:count``; owner is a name or a uid."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from casemate.errors import HostError
from casemate.facts.root import Root

_MAX_ID: Final = 0xFFFF_FFFE
_MAX_FILE_BYTES: Final = 1 << 20
_LINE: Final = re.compile(r"([^:\s]+):([0-9]{1,10}):([0-9]{1,10})")


class SubidRange(msgspec.Struct, frozen=True):
    """``count`` ids from ``first`` on, for ``owner`` (a name, or a uid in digits)."""

    owner: str
    first: int
    count: int


def parse_subid(text: str) -> tuple[SubidRange, ...]:
    """The ranges of a file, in its order.

    Lines that are not of the documented shape are passed over, as newuidmap does; so are empty ranges and ranges
    that hold 0 or run past the last id, which newuidmap would map but nobody must be given.
    """
    found: list[SubidRange] = []
    for line in text.split("\n"):
        match = _LINE.fullmatch(line.strip())
        if match is None:
            continue
        first, count = int(match[2]), int(match[3])
        if first > 0 and count > 0 and first + count - 1 <= _MAX_ID:
            found.append(SubidRange(match[1], first, count))
    return tuple(found)


def ranges_of(ranges: tuple[SubidRange, ...], uid: int, name: str | None) -> tuple[SubidRange, ...]:
    """Those that belong to a user, by uid or by name."""
    owners = {str(uid), name} if name else {str(uid)}
    return tuple(item for item in ranges if item.owner in owners)


def read_subids(root: Root, path: str, uid: int, name: str | None) -> tuple[SubidRange, ...]:
    """A user's ranges in ``path`` (``/etc/subuid``, ``/etc/subgid``); empty when the file does not exist.

    Raises:
        OSError: it exists and cannot be read, or is too large.
    """
    try:
        text = root.read_text(path, _MAX_FILE_BYTES)
    except FileNotFoundError:
        return ()
    return ranges_of(parse_subid(text), uid, name)


def total_ids(ranges: tuple[SubidRange, ...]) -> int:
    """How many different ids the ranges hold; overlaps count once."""
    return sum(last - first + 1 for first, last in _merged(ranges))


def nth_id(ranges: tuple[SubidRange, ...], index: int) -> int:
    """The id for the VM number ``index`` (from 0): a different one for each number.

    Raises:
        HostError: there are not that many ids.
    """
    if index < 0:
        raise RuntimeError(f"VM number {index}")
    left = index
    for first, last in _merged(ranges):
        if left <= last - first:
            return first + left
        left -= last - first + 1
    raise HostError(
        f"no subordinate id for VM number {index + 1}",
        got=f"{total_ids(ranges)} ids",
        next_step="usermod --add-subuids 200000-265535 --add-subgids 200000-265535 USER",
    )


def _merged(ranges: tuple[SubidRange, ...]) -> list[tuple[int, int]]:
    """(first, last) spans without overlap, lowest first: two entries that overlap must not give one id to two VMs."""
    spans: list[tuple[int, int]] = []
    for item in sorted(ranges, key=lambda entry: entry.first):
        last = item.first + item.count - 1
        if spans and item.first <= spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], max(spans[-1][1], last))
        else:
            spans.append((item.first, last))
    return spans
