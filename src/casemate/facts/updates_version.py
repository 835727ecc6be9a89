"""Versions of Debian packages, ordered as dpkg orders them (deb-version(7))."""

from __future__ import annotations

import re
from functools import cmp_to_key
from typing import Final

_PARTS: Final = re.compile(r"(\D*)(\d*)")


def compare_versions(one: str, other: str) -> int:
    """-1, 0 or 1: ``epoch:upstream-revision``; a tilde sorts before everything, even the end."""
    epoch_one, upstream_one, revision_one = _split(one)
    epoch_other, upstream_other, revision_other = _split(other)
    if epoch_one != epoch_other:
        return 1 if epoch_one > epoch_other else -1
    return _compare(upstream_one, upstream_other) or _compare(revision_one, revision_other)


VERSION_KEY: Final = cmp_to_key(compare_versions)


def _split(version: str) -> tuple[int, str, str]:
    epoch, colon, rest = version.strip().partition(":")
    if not colon or not epoch.isascii() or not epoch.isdigit():
        epoch, rest = "0", version.strip()
    upstream, dash, revision = rest.rpartition("-")
    return (int(epoch[:18]), upstream, revision) if dash else (int(epoch[:18]), rest, "0")


def _compare(one: str, other: str) -> int:
    """Runs of other characters and runs of digits in turn."""
    while one or other:
        match_one, match_other = _PARTS.match(one), _PARTS.match(other)
        assert match_one is not None and match_other is not None  # noqa: PT018  both parts may be empty
        words = [[*map(_order, match[1]), 0] for match in (match_one, match_other)]
        if words[0] != words[1]:
            return 1 if words[0] > words[1] else -1
        # Numbers of a hostile list may have thousands of digits: compare them as texts of one length.
        digits = [match[2].lstrip("0") for match in (match_one, match_other)]
        if digits[0] != digits[1]:
            return 1 if (len(digits[0]), digits[0]) > (len(digits[1]), digits[1]) else -1
        one, other = one[match_one.end() :], other[match_other.end() :]
    return 0


def _order(character: str) -> int:
    """A tilde before the end (0), letters before everything else."""
    if character == "~":
        return -1
    return ord(character) if character.isalpha() else ord(character) + 0x110000
