"""Properties of sizes, durations and times."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from casemate import units


@given(st.integers(0, units.MAX_SIZE_BYTES))
@settings(deadline=None)
def test_shown_size_is_the_size_rounded_down(size_bytes: int) -> None:
    shown = units.format_bytes(size_bytes)
    back = units.parse_size_bytes(re.sub(r"\.[0-9]", "", shown))
    unit = units.parse_size_bytes("1 " + shown.split()[1])
    assert back <= size_bytes < back + unit


@given(st.integers(0, 1 << 22), st.sampled_from(["K", "M", "G", "KiB", "mib", "gb"]))
@settings(deadline=None)
def test_units_multiply(count: int, unit: str) -> None:
    assert units.parse_size_bytes(f"{count}{unit}") == count << {"k": 10, "m": 20, "g": 30}[unit[0].lower()]


@given(st.text(max_size=20))
@settings(deadline=None)
def test_sizes_and_durations_are_total(text: str) -> None:
    for parse in (units.parse_size_bytes, units.parse_mib, units.parse_duration_s, units.parse_utc):
        message = ""
        try:
            parse(text)
        except ValueError as error:
            message = str(error)
        assert message.isprintable()


@given(st.integers(0, 4_000_000_000))
@settings(deadline=None)
def test_times_round_trip(epoch_s: int) -> None:
    assert units.parse_utc(units.format_utc(epoch_s)) == epoch_s


@given(st.integers(0, 30), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
@settings(deadline=None)
def test_durations_add_up(days: int, hours: int, minutes: int, seconds: int) -> None:
    assert (
        units.parse_duration_s(f"{days}d{hours}h{minutes}m{seconds}s")
        == ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    )


@given(st.floats(0, 1e7))
@settings(deadline=None)
def test_shown_duration_is_close(duration_s: float) -> None:
    shown = units.format_duration_s(duration_s).split()
    assert 1 <= len(shown) <= 2
    back = sum(units.parse_duration_s(part) for part in shown)
    assert abs(back - duration_s) <= max(0.051, duration_s / 20)
