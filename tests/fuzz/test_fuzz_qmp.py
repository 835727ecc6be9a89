"""Smoke run of the QMP fuzzer, and proof that it would notice."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz import fuzz_qmp

from casemate.engine import qmp

LINES = (
    b'{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}}, "capabilities": []}}\r\n',
    b'{"return": {}, "id": 1}\n',
    b'{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}\n',
    b'{"error": {"class": "GenericError", "desc": "\\u00e9\\ud800"}}\n',
    b'{"return": [' + b"[" * 40 + b"]" * 40 + b"]}\n",
)


@settings(max_examples=1500, deadline=None)
@given(st.integers(0, 255), st.binary(max_size=300))
def test_any_bytes(step: int, data: bytes) -> None:
    fuzz_qmp.one_input(bytes([step]) + data)


@settings(max_examples=1500, deadline=None)
@given(
    st.integers(0, 255),
    st.lists(st.sampled_from(LINES), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=8),
)
def test_mutations_of_valid_lines(step: int, lines: list[bytes], changes: list[tuple[int, int]]) -> None:
    stream = bytearray(b"".join(lines))
    for position, value in changes:
        stream[position % len(stream)] = value
    fuzz_qmp.one_input(bytes([step]) + bytes(stream))


def test_the_target_notices_a_reader_that_depends_on_the_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    real = qmp.LineReader.feed

    def forgetful(self: qmp.LineReader, data: bytes) -> list[dict[str, object]]:
        found = real(self, data)
        self._pending.clear()
        return found

    monkeypatch.setattr(qmp.LineReader, "feed", forgetful)
    with pytest.raises(RuntimeError, match="cut every"):
        fuzz_qmp.one_input(b"\x03" + LINES[1])
