"""Logs that a guest cannot make grow: size, rotation, full disks, rates."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from casemate.engine.ringlog import Budget, EventLog, RingLog


def sizes(path: Path) -> list[int]:
    """Sizes of the halves that exist, older first."""
    return [p.stat().st_size for p in (path.with_name(path.name + ".1"), path) if p.exists()]


def text(path: Path) -> bytes:
    """Everything that is kept."""
    return b"".join(p.read_bytes() for p in (path.with_name(path.name + ".1"), path) if p.exists())


@pytest.mark.parametrize("chunk", [1, 7, 4095, 4096, 4097, 8192, 100_000])
def test_both_halves_stay_below_the_limit_and_keep_the_end(tmp_path: Path, chunk: int) -> None:
    path = tmp_path / "log"
    log = RingLog(str(path), 16384)
    written = b""
    for number in range(3 + 60_000 // chunk if chunk > 1 else 20_000):
        piece = (b"%d," % number)[:chunk].ljust(chunk, b".")
        log.append(piece)
        written += piece
        assert sum(sizes(path)) <= 16384
    assert written.endswith(text(path))
    assert sum(sizes(path)) >= min(len(written), 8192)
    log.close()


def test_a_piece_larger_than_half_keeps_its_end_and_counts_the_rest(tmp_path: Path) -> None:
    log = RingLog(str(tmp_path / "log"), 8192)
    log.append(b"a" * 10_000 + b"end")
    assert text(tmp_path / "log") == b"a" * 4093 + b"end"
    assert log.dropped_bytes == 10_003 - 4096


def test_it_goes_on_where_the_last_run_ended(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for run in (b"one", b"two"):
        log = RingLog(str(path), 8192)
        log.append(run)
        log.close()
    assert text(path) == b"onetwo"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_smaller_limit_than_last_time_holds_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 100_000)
    log = RingLog(str(path), 8192)
    log.append(b"new")
    assert sum(sizes(path)) <= 8192
    assert text(path) == b"new"


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    (tmp_path / "log").symlink_to(target)
    log = RingLog(str(tmp_path / "log"), 8192)
    log.append(b"data")
    assert target.read_bytes() == b"precious"
    assert log.dropped_bytes == 4


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_loses_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RingLog(str(tmp_path / "log"), 8192)
    os.close(log._fd)
    log._fd = os.open("/dev/full", os.O_WRONLY)
    log.append(b"lost")
    assert log.dropped_bytes == 4
    log.close()
    log.append(b"back")
    assert text(tmp_path / "log") == b"back"
    assert log.dropped_bytes == 4


def test_a_directory_that_vanished_loses_and_counts(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    log = RingLog(str(tmp_path / "d" / "log"), 8192)
    (tmp_path / "d" / "log").unlink()
    (tmp_path / "d").rmdir()
    for _ in range(10):
        log.append(b"x" * 1000)
    assert log.dropped_bytes >= 5000


def test_a_log_that_cannot_be_renamed_starts_over(tmp_path: Path) -> None:
    path = tmp_path / "log"
    (tmp_path / "log.1").mkdir()
    (tmp_path / "log.1" / "x").write_text("")
    log = RingLog(str(path), 8192)
    for _ in range(10):
        log.append(b"y" * 1000)
    assert path.stat().st_size <= 4096


class Clock:
    """time.monotonic under control."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The budget's clock."""
    found = Clock()
    monkeypatch.setattr("casemate.engine.ringlog.time.monotonic", found)
    return found


def test_budget(clock: Clock) -> None:
    budget = Budget(burst=3, per_s=2.0)
    assert [budget.take() for _ in range(4)] == [True, True, True, False]
    clock.now += 0.4
    assert not budget.take()
    clock.now += 0.2
    assert budget.take()
    assert not budget.take()
    clock.now += 1000
    assert [budget.take() for _ in range(4)] == [True, True, True, False]


def test_events_beyond_the_budget_are_counted_in_the_next_line(tmp_path: Path, clock: Clock) -> None:
    log = EventLog(str(tmp_path / "events"), 65536, burst=2, per_s=1.0)
    for _ in range(5):
        log.write("t", "reset", always=False)
    log.write("t", "exit", code=0, reason="")
    assert text(tmp_path / "events").splitlines() == [
        b'{"time": "t", "event": "reset"}',
        b'{"time": "t", "event": "reset"}',
        b'{"time": "t", "event": "events-suppressed", "count": 3}',
        b'{"time": "t", "event": "exit"}',
    ]


def test_what_was_left_out_last_is_said_when_nothing_follows(tmp_path: Path, clock: Clock) -> None:
    log = EventLog(str(tmp_path / "events"), 65536, burst=1, per_s=1.0)
    moments = [log.summary_at]
    for _ in range(3):
        log.write("t", "reset", always=False)
        moments.append(log.summary_at)
    for _ in range(2):
        log.write_summary("u")
        moments.append(log.summary_at)
    assert moments == [None, None, clock.now + 1.0, clock.now + 1.0, None, None]
    assert text(tmp_path / "events").splitlines() == [
        b'{"time": "t", "event": "reset"}',
        b'{"time": "u", "event": "events-suppressed", "count": 2}',
    ]


def test_errno_name_is_the_one_of_a_full_disk() -> None:
    # vmexit.write_json raises it by number, to import nothing.
    assert errno.ENOSPC == 28
