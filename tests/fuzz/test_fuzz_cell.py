"""Smoke run of the cell fuzzer, its corpus, and proof that it would notice."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz import fuzz_cell
from tests.support.cell_peer import entry_bytes, frame_bytes

from casemate.cell import wire
from casemate.cell.wire import Kind

CORPUS = Path(__file__).with_name("corpus") / "cell"
FRAMES = (
    frame_bytes(Kind.HELLO, 0, b"\x01\0\0\0"),
    frame_bytes(
        Kind.ENTRIES, 1, entry_bytes(b"etc/passwd", size=12) + entry_bytes(b"a", target=b"../b", mode=0o120777)
    ),
    frame_bytes(Kind.CONTENT, 1, b"x" * 40),
    frame_bytes(Kind.CONTENT_END, 1, bytes(4)),
    frame_bytes(Kind.END, 1, bytes(12)),
)


@settings(max_examples=800, deadline=None)
@given(st.integers(0, 255), st.binary(max_size=400))
def test_any_bytes(step: int, data: bytes) -> None:
    fuzz_cell.one_input(bytes([step]) + data)


@settings(max_examples=800, deadline=None)
@given(
    st.integers(0, 255),
    st.lists(st.sampled_from(FRAMES), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=8),
)
def test_mutations_of_valid_frames(step: int, frames: list[bytes], changes: list[tuple[int, int]]) -> None:
    stream = bytearray(b"".join(frames))
    for position, value in changes:
        stream[position % len(stream)] = value
    fuzz_cell.one_input(bytes([step]) + bytes(stream))


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_the_corpus(path: Path) -> None:
    fuzz_cell.one_input(path.read_bytes())


def test_the_target_notices_a_decoder_that_reads_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "PATH_MAX_BYTES", 1 << 20)
    with pytest.raises(RuntimeError, match="Entry"):
        fuzz_cell.one_input(b"\xff" + entry_bytes(b"x" * 20_000))
