"""Properties of the QMP reader and the logs: nothing depends on how bytes are cut, nothing grows beyond its bound."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.engine import qmp
from casemate.engine.qmp import LineReader, QmpError, encode_command, parse_line
from casemate.engine.ringlog import RingLog

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
messages = st.dictionaries(st.text(max_size=8), values, max_size=5)


@given(st.lists(messages, max_size=6), st.data())
def test_messages_come_out_whole_however_they_are_cut(sent: list[dict[str, Any]], data: st.DataObject) -> None:
    stream = b"".join(json.dumps(message).encode() + b"\r\n" for message in sent)
    reader, found, at = LineReader(), [], 0
    while at < len(stream):
        size = data.draw(st.integers(1, len(stream) - at))
        found += reader.feed(stream[at : at + size])
        at += size
    assert found == sent


@given(st.binary(max_size=400))
def test_any_bytes_are_messages_or_a_qmp_error(noise: bytes) -> None:
    try:
        found = LineReader(limit=300).feed(noise)
    except QmpError:
        return
    assert all(isinstance(message, dict) for message in found)


@given(st.lists(st.binary(min_size=1, max_size=64), max_size=60), st.integers(1, 500))
def test_the_reader_never_holds_more_than_its_limit(pieces: list[bytes], limit: int) -> None:
    reader = LineReader(limit)
    for piece in pieces:
        try:
            reader.feed(piece)
        except QmpError:
            return
        assert len(reader._pending) <= limit


@given(values)
def test_a_message_that_passes_can_be_printed_and_passed_on(value: Any) -> None:
    message = parse_line(json.dumps({"return": value}).encode())
    assert json.loads(json.dumps(message)) == message
    assert str(message)


@given(st.integers(1, 3000), st.sampled_from([("[", "]"), ('{"k":', "}")]))
def test_depth_has_one_bound(depth: int, brackets: tuple[str, str]) -> None:
    line = '{"x":' + brackets[0] * depth + "0" + brackets[1] * depth + "}"
    try:
        parse_line(line.encode())
    except QmpError:
        assert depth >= qmp.DEPTH_MAX
    else:
        assert depth < qmp.DEPTH_MAX


@given(st.text(max_size=30), st.dictionaries(st.text(max_size=8), values, max_size=4), st.integers(0, 2**53))
def test_a_command_is_one_line_that_reads_back(name: str, arguments: dict[str, Any], identifier: int) -> None:
    line = encode_command(name, arguments, identifier)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    expected: dict[str, Any] = {"execute": name, "id": identifier}
    if arguments:
        expected["arguments"] = arguments
    assert parse_line(line) == expected


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=6000), max_size=30), st.integers(1, 40_000))
def test_a_ring_keeps_the_end_within_its_bound(pieces: list[bytes], limit: int) -> None:
    bound = max(limit // 2, 4096) * 2
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        log = RingLog(str(path), limit)
        for piece in pieces:
            log.append(piece)
        log.close()
        halves = [p.read_bytes() for p in (path.with_name("log.1"), path) if p.exists()]
    kept = b"".join(halves)
    assert len(kept) <= bound
    # Only the start of a piece larger than half the limit may be missing in the middle.
    if all(len(piece) <= bound // 2 for piece in pieces):
        assert b"".join(pieces).endswith(kept)
        assert log.dropped_bytes == 0
