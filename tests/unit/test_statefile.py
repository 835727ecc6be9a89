"""Saved states: what is written is read back, and nothing else is."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casemate.engine.statefile import (
    MAGIC,
    PIECE_BYTES,
    Header,
    Manifest,
    StateReader,
    StateWriter,
    derive_key,
)
from casemate.errors import InputError

KEY = bytes(range(32))


def manifest(size: int) -> Manifest:
    return Manifest("web", "2026-01-01T00:00:00.000Z", "{}", "00", "11", "microvm", "tcg", "7.2.22", {}, True, size)


def write(path: Path, pieces: list[bytes], key: bytes | None = None) -> bytes:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    writer = StateWriter(descriptor, Header("none" if key is None else "key", "c2FsdA=="), key)
    for piece in pieces:
        writer.data(piece)
    writer.finish(manifest(writer.stream_bytes))
    os.close(descriptor)
    return path.read_bytes()


def read(path: Path, key: bytes | None = None) -> tuple[Manifest, list[bytes]]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        reader = StateReader(descriptor, path.name)
        reader.unlock(key)
        found = reader.scan()
        return found, list(reader.pieces())
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("pieces", [[], [b"a"], [b"x" * PIECE_BYTES, b"y" * PIECE_BYTES, b"z"]])
def test_round_trip(tmp_path: Path, key: bytes | None, pieces: list[bytes]) -> None:
    write(tmp_path / "s", pieces, key)
    found, stream = read(tmp_path / "s", key)
    assert stream == pieces
    assert found == manifest(sum(map(len, pieces)))


def test_sealed_files_show_nothing_and_differ(tmp_path: Path) -> None:
    data = write(tmp_path / "s", [b"secret in the guest's memory"], KEY)
    assert b"secret" not in data
    assert b"microvm" not in data
    with pytest.raises(InputError, match="another key"):
        read(tmp_path / "s", bytes(32))
    assert derive_key(KEY, b"a") != derive_key(KEY, b"b")


@pytest.mark.parametrize("key", [None, KEY])
@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_is_refused(tmp_path: Path, key: bytes | None, data: st.DataObject) -> None:
    """Flipped, cut, continued, doubled or exchanged: never another stream, never a crash."""
    whole = write(tmp_path / "s", [b"one", b"two two", b"three"], key)
    kind = data.draw(st.sampled_from(["flip", "cut", "more", "splice"]))
    at = data.draw(st.integers(0, len(whole) - 1))
    if kind == "flip":
        changed = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    elif kind == "cut":
        changed = whole[:at]
    elif kind == "more":
        changed = whole + data.draw(st.binary(min_size=1, max_size=40))
    else:
        other = data.draw(st.integers(0, len(whole) - 1))
        changed = whole[:at] + whole[other:]
    (tmp_path / "s").write_bytes(changed)
    if changed == whole:
        return
    with pytest.raises((InputError, RuntimeError)) as caught:
        read(tmp_path / "s", key)
    if isinstance(caught.value, RuntimeError):  # the header now says another sealing
        assert "sealing" in str(caught.value)


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_hostile_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s").write_bytes(MAGIC + content)
    with pytest.raises((InputError, RuntimeError)):
        read(tmp_path / "s")


def test_a_file_that_changes_between_check_and_use_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "s", [b"one", b"two"])
    descriptor = os.open(tmp_path / "s", os.O_RDONLY)
    reader = StateReader(descriptor, "s")
    reader.unlock(None)
    reader.scan()
    write(tmp_path / "s", [b"one", b"TWO"])
    with pytest.raises(InputError, match="than a moment ago"):
        list(reader.pieces())
    os.close(descriptor)


def test_wrong_order_is_our_bug(tmp_path: Path) -> None:
    write(tmp_path / "s", [b"x"])
    descriptor = os.open(tmp_path / "s", os.O_RDONLY)
    reader = StateReader(descriptor, "s")
    with pytest.raises(RuntimeError, match="before scan"):
        next(reader.pieces())
    with pytest.raises(RuntimeError, match="sealing"):
        reader.unlock(KEY)
    os.close(descriptor)
    with pytest.raises(RuntimeError, match="sealing"):
        StateWriter(-1, Header("key"), None)


def test_manifest_is_closed() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode({**msgspec.to_builtins(manifest(1)), "more": 1}), type=Manifest)
