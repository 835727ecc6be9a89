"""Sizes, durations and times."""

from __future__ import annotations

import pytest

from casemate import units


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("1536", 1536),
        ("512M", 512 << 20),
        ("512 MiB", 512 << 20),
        ("512mb", 512 << 20),
        ("2g", 2 << 30),
        ("1.5G", 3 << 29),
        ("10b", 10),
        ("1T", 1 << 40),
        ("7E", 7 << 60),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert units.parse_size_bytes(text) == size_bytes


@pytest.mark.parametrize("text", ["", "M", "-1", "1e3", "1.5", "0.0000001G", "8E", "1 000", "٣M", "1MM", "1.M", "0x10"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is "):
        units.parse_size_bytes(text)


def test_bad_size_is_quoted_without_control_characters() -> None:
    with pytest.raises(ValueError, match=r'^"a\?\[31mb" is not a size'):
        units.parse_size_bytes("a\x1b[31mb")


def test_mib() -> None:
    assert units.parse_mib("512") == 512
    assert units.parse_mib("2G") == 2048
    assert units.parse_mib("1.5G") == 1536
    with pytest.raises(ValueError, match="whole number of MiB"):
        units.parse_mib("1K")


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1 << 20, "1 MiB"),
        ((1 << 30) - 1, "1023.9 MiB"),
        (2 << 40, "2 TiB"),
        (-1536, "-1.5 KiB"),
        (1 << 70, "1024 EiB"),
    ],
)
def test_human_bytes(size_bytes: int, text: str) -> None:
    assert units.format_bytes(size_bytes) == text


@pytest.mark.parametrize(
    ("text", "duration_s"),
    [("90", 90), ("1.5s", 1.5), ("250ms", 0.25), ("5m", 300), ("1h30m", 5400), ("2d", 172_800), ("1d1s", 86_401)],
)
def test_durations(text: str, duration_s: float) -> None:
    assert units.parse_duration_s(text) == duration_s


@pytest.mark.parametrize("text", ["", " ", "h", "-5", "5x", "1m1h", "1e9", "5 m", "nan", "inf"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        units.parse_duration_s(text)


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [
        (0, "0ms"),
        (0.25, "250ms"),
        (0.9996, "1s"),
        (1.5, "1.5s"),
        (59.96, "1m"),
        (330, "5m 30s"),
        (3600, "1h"),
        (187_200, "2d 4h"),
        (86_400 + 59, "1d"),
        (-5, "-5s"),
    ],
)
def test_human_durations(duration_s: float, text: str) -> None:
    assert units.format_duration_s(duration_s) == text


def test_rfc3339() -> None:
    assert units.format_utc(0) == "1970-01-01T00:00:00Z"
    assert units.format_utc(1_790_856_000.9) == "2026-10-01T12:00:00Z"
    assert units.parse_utc("2026-10-01T12:00:00Z") == 1_790_856_000
    assert units.parse_utc("2026-10-01T14:00:00.5+02:00") == 1_790_856_000.5


@pytest.mark.parametrize(
    "text", ["", "2026-10-01", "2026-10-01T12:00:00", "2026-13-01T12:00:00Z", "2026-10-01T12:00:00Zx"]
)
def test_bad_times(text: str) -> None:
    with pytest.raises(ValueError, match="is not an RFC 3339 time"):
        units.parse_utc(text)
