"""Sizes, durations and times: text to number and back. Units stand in the names; nothing here reads a clock.

Sizes are binary, as podman, docker and QEMU read them: ``512M`` and ``512MiB`` both mean 512 * 2**20 bytes. Bad text
raises ``ValueError`` with a message that can be shown to the user.
"""

from __future__ import annotations

import datetime
import re

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

MAX_SIZE_BYTES = (1 << 63) - 1
"""The largest file offset of Linux (off_t)."""

_SIZE = re.compile(r"([0-9]{1,19})(?:\.([0-9]{1,6}))?[ ]?(?:([kmgtpe])i?)?b?", re.IGNORECASE | re.ASCII)
_POWERS = {"k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
_DURATION = re.compile(
    r"(?:([0-9]{1,6})d)?(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,9}(?:\.[0-9]{1,6})?)s)?", re.ASCII
)
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,6})?", re.ASCII)
_MILLISECONDS = re.compile(r"([0-9]{1,9})ms", re.ASCII)
_RFC3339 = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2}:[0-9]{2})(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})",
    re.ASCII,
)


def parse_size_bytes(text: str, default_unit: str = "") -> int:
    """A size such as ``1536``, ``512M``, ``1.5GiB`` in bytes.

    Args:
        default_unit: the unit of a bare number: empty for bytes, or one letter of ``kmgtpe``.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{_quoted(text)} is not a size; expected for example 512M, 2G or 1.5T")
    whole, fraction, unit = match[1], match[2] or "", (match[3] or default_unit).lower()
    scale: int = 10 ** len(fraction)
    size_bytes, rest = divmod(int(whole + fraction) << _POWERS.get(unit, 0), scale)
    if rest:
        raise ValueError(f"{_quoted(text)} is not a whole number of bytes")
    if size_bytes > MAX_SIZE_BYTES:
        raise ValueError(f"{_quoted(text)} is larger than any file can be")
    return size_bytes


def parse_mib(text: str) -> int:
    """A size in whole MiB; a bare number means MiB."""
    size_mib, rest = divmod(parse_size_bytes(text, "m"), MIB)
    if rest:
        raise ValueError(f"{_quoted(text)} is not a whole number of MiB")
    return size_mib


def format_bytes(size_bytes: int) -> str:
    """A size for people: ``0 B``, ``1.5 KiB``, ``2 TiB``; at most one decimal, rounded down."""
    if size_bytes < 0:
        return f"-{format_bytes(-size_bytes)}"
    unit, power = "B", 0
    for name in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        if size_bytes >> (power + 10) == 0:
            break
        unit, power = name, power + 10
    whole, rest = divmod(size_bytes, 1 << power)
    tenths = rest * 10 >> power
    return f"{whole}.{tenths} {unit}" if tenths else f"{whole} {unit}"


def parse_duration_s(text: str) -> float:
    """A duration such as ``1.5s``, ``250ms``, ``5m``, ``1h30m``, ``2d`` in seconds; a bare number means seconds."""
    word = text.strip()
    milliseconds = _MILLISECONDS.fullmatch(word)
    if milliseconds is not None:
        return int(milliseconds[1]) / 1000
    if _SECONDS.fullmatch(word):
        return float(word)
    match = _DURATION.fullmatch(word)
    if match is None or not word:
        raise ValueError(f"{_quoted(text)} is not a duration; expected for example 90s, 5m, 1h30m or 250ms")
    days, hours, minutes = (int(part or 0) for part in match.groups()[:3])
    return ((days * 24 + hours) * 60 + minutes) * 60 + float(match[4] or 0)


def format_duration_s(duration_s: float) -> str:
    """A duration for people, in its two largest units: ``250ms``, ``1.5s``, ``5m 30s``, ``2d 4h``."""
    if duration_s < 0:
        return f"-{format_duration_s(-duration_s)}"
    if round(duration_s * 1000) < 1000:
        return f"{round(duration_s * 1000)}ms"
    if round(duration_s, 1) < 60:
        return f"{round(duration_s, 1):g}s"
    rest = round(duration_s)
    parts: list[str] = []
    for name, length in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        if count or parts:
            parts.append(f"{count}{name}" if count else "")
        if len(parts) == 2:
            break
    return " ".join(part for part in parts if part)


def format_utc(epoch_s: float) -> str:
    """Seconds since 1970 as RFC 3339 in UTC, whole seconds: ``2026-10-01T12:00:00Z``."""
    moment = datetime.datetime.fromtimestamp(int(epoch_s // 1), tz=datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ") if moment.year >= 1000 else moment.isoformat().replace("+00:00", "Z")


def parse_utc(text: str) -> float:
    """An RFC 3339 time with ``Z`` or an offset as seconds since 1970."""
    match = _RFC3339.fullmatch(text)
    if match is not None:
        fraction = (match[3] or ".0")[:7].ljust(7, "0")
        offset = "+00:00" if match[4] in "Zz" else match[4]
        try:
            return datetime.datetime.fromisoformat(f"{match[1]}T{match[2]}{fraction}{offset}").timestamp()
        except (ValueError, OverflowError):
            pass
    raise ValueError(f"{_quoted(text)} is not an RFC 3339 time; expected for example 2026-10-01T12:00:00Z")


def _quoted(text: str) -> str:
    """Text in a message: at most 40 characters, no control characters."""
    return '"' + "".join(char if char.isprintable() else "?" for char in text[:40]) + '"'
