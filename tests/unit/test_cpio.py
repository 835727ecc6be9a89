"""The initramfs writer: round trip, the same bytes for the same entries, agreement with the reference tool, refusal
of damage.
"""

from __future__ import annotations

import random
import shutil
import stat
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import ImageError
from casemate.image.cpio import CpioEntry, character_device, directory, read_cpio, regular, symlink, write_cpio

_PART = st.text(st.characters(codec="utf-8", exclude_characters="/\0\n"), min_size=1, max_size=12).filter(
    lambda part: part not in (".", "..", "TRAILER!!!")
)
_NAME = st.lists(_PART, min_size=1, max_size=3).map("/".join)


@st.composite
def _entries(draw: st.DrawFn) -> list[CpioEntry]:
    entries: list[CpioEntry] = []
    names: set[str] = set()
    for name in draw(st.lists(_NAME, max_size=12, unique=True)):
        parents = {"/".join(name.split("/")[:depth]) for depth in range(1, name.count("/") + 1)}
        holders = {entry.name for entry in entries if not stat.S_ISDIR(entry.mode)}
        if parents & holders or any(other.startswith(name + "/") for other in names):
            continue
        names.add(name)
        kind = draw(st.integers(0, 3))
        if kind == 0:
            entries.append(directory(name, draw(st.integers(0, 0o7777))))
        elif kind == 1:
            entries.append(regular(name, draw(st.binary(max_size=64)), draw(st.integers(0, 0o7777))))
        elif kind == 2:
            entries.append(symlink(name, draw(_NAME)))
        else:
            entries.append(character_device(name, draw(st.integers(0, 4095)), draw(st.integers(0, 255))))
    return entries


@given(_entries())
def test_round_trip_keeps_every_entry_and_adds_only_parents(entries: list[CpioEntry]) -> None:
    read = {entry.name: entry for entry in read_cpio(write_cpio(entries))}
    for entry in entries:
        assert read.pop(entry.name) == entry
    assert all(entry == directory(entry.name) for entry in read.values())
    assert all(any(entry.name.startswith(name + "/") for entry in entries) for name in read)


@given(_entries(), st.randoms())
def test_bytes_do_not_depend_on_the_order(entries: list[CpioEntry], order: random.Random) -> None:
    shuffled = list(entries)
    order.shuffle(shuffled)
    assert write_cpio(shuffled) == write_cpio(entries)


@given(_entries())
def test_parents_come_before_their_content(entries: list[CpioEntry]) -> None:
    seen: set[str] = set()
    for entry in read_cpio(write_cpio(entries)):
        parent, _, _ = entry.name.rpartition("/")
        assert not parent or parent in seen
        seen.add(entry.name)


@given(st.binary(max_size=400))
def test_hostile_bytes_end_in_entries_or_an_image_error(data: bytes) -> None:
    try:
        list(read_cpio(data))
    except ImageError:
        return
    assert data[:6] == b"070701"


@given(_entries(), st.data())
def test_a_flipped_byte_is_read_or_refused_and_nothing_else(entries: list[CpioEntry], data: st.DataObject) -> None:
    archive = bytearray(write_cpio(entries))
    position = data.draw(st.integers(0, len(archive) - 1))
    archive[position] ^= data.draw(st.integers(1, 255))
    try:
        total = sum(len(entry.data) for entry in read_cpio(bytes(archive)))
    except ImageError:
        return
    assert total <= len(archive)


@pytest.mark.parametrize("cut", [0, 5, 109, 111, 500])
def test_a_cut_archive_is_refused(cut: int) -> None:
    with pytest.raises(ImageError):
        list(read_cpio(write_cpio([regular("a", bytes(600))])[:cut]))


def test_bytes_after_the_trailer_are_refused() -> None:
    with pytest.raises(ImageError, match="after the trailer"):
        list(read_cpio(write_cpio([]) + b"070701"))


@pytest.mark.parametrize("digits", [b" 0000001", b"+0000001", b"0_000001", b"0000000g"])
def test_only_hexadecimal_digits_are_numbers(digits: bytes) -> None:
    archive = bytearray(write_cpio([regular("a", b"x")]))
    archive[6:14] = digits
    with pytest.raises(ImageError, match="8 hexadecimal digits"):
        list(read_cpio(bytes(archive)))


@pytest.mark.parametrize(
    "entries",
    [
        [regular("/a", b"")],
        [regular("a/../b", b"")],
        [regular("a//b", b"")],
        [regular("", b"")],
        [regular("a\0b", b"")],
        [regular("TRAILER!!!", b"")],
        [regular("a", b""), regular("a", b"")],
        [regular("a", b""), regular("a/b", b"")],
        [CpioEntry("a", stat.S_IFDIR | 0o755, b"data")],
        [CpioEntry("a", stat.S_IFSOCK | 0o755)],
    ],
)
def test_entries_that_we_never_write_are_our_bug(entries: list[CpioEntry]) -> None:
    with pytest.raises(RuntimeError, match="cpio"):
        write_cpio(entries)


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio, the reference reader, is not installed")
def test_the_reference_reader_agrees() -> None:
    entries = [
        regular("bin/busybox", b"\x7fELF" * 33, 0o755),
        symlink("bin/sh", "busybox"),
        directory("tmp", 0o1777),
        character_device("dev/console", 5, 1),
        regular("odd name, with = and %", b"1"),
    ]
    listing = subprocess.run(
        ["cpio", "-itv", "--quiet"], input=write_cpio(entries), capture_output=True, check=True, env={"LC_ALL": "C"}
    )
    assert listing.stderr == b""
    lines = listing.stdout.decode().splitlines()
    modes = {line.partition(" 1970 ")[2]: line.split()[0] for line in lines}
    assert modes == {
        "bin": "drwxr-xr-x",
        "bin/busybox": "-rwxr-xr-x",
        "bin/sh -> busybox": "lrwxrwxrwx",
        "dev": "drwxr-xr-x",
        "dev/console": "crw-------",
        "odd name, with = and %": "-rw-r--r--",
        "tmp": "drwxrwxrwt",
    }
