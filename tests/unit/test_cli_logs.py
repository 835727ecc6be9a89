"""Logs read while they are written: nothing lost, nothing doubled, and it ends."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from casemate.engine.follow import read_ring
from casemate.engine.ringlog import RingLog


def numbered(count: int) -> list[bytes]:
    return [f"line {number:06d}\n".encode() for number in range(count)]


def test_a_missing_log_is_empty(tmp_path: Path) -> None:
    assert b"".join(read_ring(str(tmp_path / "none"), None)) == b""
    assert b"".join(read_ring(str(tmp_path / "none"), 5, lambda: True)) == b""


@pytest.mark.parametrize("tail", [0, 1, 3, 1000, 100_000])
def test_tail_counts_lines_across_both_halves(tmp_path: Path, tail: int) -> None:
    log = RingLog(str(tmp_path / "log"), 16384)
    lines = numbered(900)
    for line in lines:
        log.append(line)
    log.close()
    whole = b"".join(read_ring(str(tmp_path / "log"), None))
    assert b"".join(lines).endswith(whole)
    assert len(whole) > 4096
    kept = whole.splitlines(keepends=True)
    assert b"".join(read_ring(str(tmp_path / "log"), tail)) == b"".join(kept[max(0, len(kept) - tail) :])


def test_tail_of_a_last_line_without_an_end(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"one\ntwo\nprompt# ")
    assert b"".join(read_ring(str(tmp_path / "log"), 1)) == b"prompt# "
    assert b"".join(read_ring(str(tmp_path / "log"), 2)) == b"two\nprompt# "


def test_follow_through_rotations_loses_and_doubles_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    lines = numbered(3000)
    over = threading.Event()

    def write() -> None:
        log = RingLog(path, 32768)
        for number, line in enumerate(lines):
            log.append(line)
            if number % 300 == 299:
                time.sleep(0.15)  # slower than the reader polls, so that no half is rotated away unread
        log.close()
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = b"".join(read_ring(path, None, over.is_set))
    writer.join()
    assert seen == b"".join(lines)


def test_follow_begins_before_there_is_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    over = threading.Event()

    def write() -> None:
        time.sleep(0.2)
        path.write_bytes(b"late\n")
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    assert b"".join(read_ring(str(path), 0, over.is_set)) == b"late\n"
    writer.join()


def test_descriptors_are_closed_when_the_reader_stops_early(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"x" * 200_000)
    before = len(list(Path("/proc/self/fd").iterdir()))
    reader = read_ring(str(tmp_path / "log"), None, lambda: False)
    next(reader)
    reader.close()  # type: ignore[attr-defined]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
