"""Overlays in a saved state: copied whole, and judged like any image when they come out of a file of anybody's."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from casemate.engine.opening import Opened
from casemate.engine.savedoverlay import copy_overlay, place_overlays
from casemate.engine.statefile import (
    OVERLAY_PIECE_BYTES,
    Header,
    Manifest,
    OverlayPiece,
    SavedOverlay,
    StateReader,
    StateWriter,
)
from casemate.errors import CasemateError, ImageError, InputError, RefusedError
from casemate.image.overlay import write_empty_qcow2
from casemate.plan.model import OpenFile

DISK_BYTES = 8 << 20
KEY = bytes(range(32))
PLANNED = (OpenFile("disk0", "/d", "ro"), OpenFile("overlay0", "", "overlay", "qcow2", DISK_BYTES))


@pytest.fixture
def opened() -> Iterator[Opened]:
    found = Opened()
    yield found
    found.close()


def overlay(path: Path, size: int = DISK_BYTES) -> int:
    """An overlay as the emulator leaves it: data behind a hole, and a hole at the end."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    write_empty_qcow2(descriptor, size)
    os.pwrite(descriptor, b"written by the guest" * 80_000, 3 << 20)
    os.ftruncate(descriptor, 6 << 20)
    return descriptor


def write(path: Path, pieces: list[OverlayPiece], overlays: dict[str, SavedOverlay], key: bytes | None = None) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    writer = StateWriter(descriptor, Header("none" if key is None else "key", "c2FsdA=="), key)
    writer.data(b"stream")
    for piece in pieces:
        writer.overlay(piece)
    writer.finish(manifest(overlays))
    os.close(descriptor)


def manifest(overlays: dict[str, SavedOverlay]) -> Manifest:
    return Manifest("web", "", "{}", "0", "1", "microvm", "tcg", "7.2.22", {}, True, 6, overlays)


def place(path: Path, opened: Opened, key: bytes | None = None, planned: tuple[OpenFile, ...] = PLANNED) -> StateReader:
    descriptor = opened.by_role["state-file"] = os.open(path, os.O_RDONLY)
    reader = StateReader(descriptor, path.name)
    reader.unlock(key)
    place_overlays(reader, reader.scan().overlays, planned, opened, str(path.parent))
    return reader


def saved(descriptor: int, path: Path, key: bytes | None = None) -> SavedOverlay:
    """The overlay behind ``descriptor`` in a state file, as a save writes it."""
    target = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    writer = StateWriter(target, Header("none" if key is None else "key", "c2FsdA=="), key)
    writer.data(b"stream")
    found = copy_overlay(descriptor, 0, writer, lambda _: None)
    writer.finish(manifest({"overlay0": found}))
    os.close(target)
    return found


@pytest.mark.parametrize("key", [None, KEY])
def test_what_is_saved_comes_back(tmp_path: Path, opened: Opened, key: bytes | None) -> None:
    source = overlay(tmp_path / "o")
    whole = (tmp_path / "o").read_bytes()
    note = saved(source, tmp_path / "s", key)
    os.close(source)
    assert note == SavedOverlay(len(whole), hashlib.sha256(whole).hexdigest())
    assert ((tmp_path / "s").read_bytes().count(b"written by the guest") > 0) is (key is None)
    assert (tmp_path / "s").stat().st_size < 4 << 20, "holes are left out"
    names = sorted(os.listdir(tmp_path))
    reader = place(tmp_path / "s", opened, key)
    assert os.pread(opened.by_role["overlay0"], len(whole) + 1, 0) == whole
    assert list(reader.pieces()) == [b"stream"]
    assert sorted(os.listdir(tmp_path)) == names, "no file with a name"


def test_other_overlays_than_the_machine_has(tmp_path: Path, opened: Opened) -> None:
    saved(overlay(tmp_path / "o"), tmp_path / "s")
    with pytest.raises(InputError, match="other overlays"):
        place(tmp_path / "s", opened, planned=PLANNED[:1])
    write(tmp_path / "t", [], {})
    with pytest.raises(InputError, match="other overlays"):
        place(tmp_path / "t", opened)


def test_an_overlay_is_judged_like_any_image(tmp_path: Path, opened: Opened) -> None:
    """A state that is not sealed can be anybody's: its overlay may name no other file and be of that disk."""
    source = overlay(tmp_path / "o", size=2 * DISK_BYTES)
    saved(source, tmp_path / "s")
    with pytest.raises(ImageError, match="no overlay of that disk"):
        place(tmp_path / "s", opened)
    backing = overlay(tmp_path / "b")
    os.pwrite(backing, b"/etc/shadow", 4096)
    os.pwrite(backing, struct.pack(">QI", 4096, 11), 8)
    saved(backing, tmp_path / "s")
    with pytest.raises(ImageError, match="has a backing file"):
        place(tmp_path / "s", Opened())
    nothing = os.open(tmp_path / "n", os.O_RDWR | os.O_CREAT)
    os.ftruncate(nothing, 1 << 20)
    saved(nothing, tmp_path / "s")
    with pytest.raises(ImageError, match="qcow2"):
        place(tmp_path / "s", Opened())
    for descriptor in (source, backing, nothing):
        os.close(descriptor)


@pytest.mark.parametrize(
    ("pieces", "size", "message"),
    [
        ([OverlayPiece(0, 0, b"a"), OverlayPiece(0, 0, b"b")], 1 << 20, "order"),
        ([OverlayPiece(0, 5, b"a"), OverlayPiece(0, 4, b"b")], 1 << 20, "order"),
        ([OverlayPiece(0, 0, b"")], 1 << 20, "order"),
        ([OverlayPiece(1, 0, b"a")], 1 << 20, "does not know"),
        ([OverlayPiece(0, 1 << 20, b"a")], 1 << 20, "does not know"),
        ([OverlayPiece(0, (1 << 64) - 1, b"a")], 1 << 20, "does not know"),
        ([], 1 << 62, "at most"),
        ([], 0, "at most"),
        ([], -1, "at most"),
        ([OverlayPiece(0, 0, b"a")], 1 << 20, "not what the VM was saved with"),
    ],
)
def test_a_file_that_lies(tmp_path: Path, opened: Opened, pieces: list[OverlayPiece], size: int, message: str) -> None:
    write(tmp_path / "s", pieces, {"overlay0": SavedOverlay(size, "00" * 32)})
    with pytest.raises(CasemateError, match=message):
        place(tmp_path / "s", opened)
    assert issubclass(RefusedError, CasemateError)


def test_records_of_overlays_stand_behind_the_stream(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "s", os.O_RDWR | os.O_CREAT, 0o600)
    writer = StateWriter(descriptor, Header("none"), None)
    writer.overlay(OverlayPiece(0, 0, b"x" * OVERLAY_PIECE_BYTES))
    writer.data(b"late")
    writer.finish(msgspec.structs.replace(manifest({"overlay0": SavedOverlay(1 << 20, "")}), stream_bytes=4))
    reader = StateReader(descriptor, "s")
    reader.unlock(None)
    with pytest.raises(InputError, match="order that no file has"):
        reader.scan()
    os.close(descriptor)
