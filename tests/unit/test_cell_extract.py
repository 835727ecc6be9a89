"""Files of a hostile image on their way to this host: nothing outside the directory, nothing special, all bounded."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.cell.extract import Copied, Copier, Limits, fresh_directory, leads_out, safe_parts
from casemate.cell.model import Entry, Piece
from casemate.errors import InputError


def copy(target: Path, *items: Entry | Piece, limits: Limits | None = None, prefix: bytes = b"") -> Copied:
    base = fresh_directory(str(target))
    try:
        copier = Copier(base, limits or Limits())
        copier.take(iter(items), prefix)
        return copier.finish()
    finally:
        os.close(base)


def file(path: bytes, mode: int = 0o644, size: int = 1) -> Entry:
    return Entry(path, stat.S_IFREG | mode, size, 1_000_000)


def folder(path: bytes, mode: int = 0o755) -> Entry:
    return Entry(path, stat.S_IFDIR | mode, 0, 1_000_000)


def link(path: bytes, target: bytes) -> Entry:
    return Entry(path, stat.S_IFLNK | 0o777, 0, target=target)


def everything(base: Path) -> Iterator[str]:
    return (str(path.relative_to(base)) for path in sorted(base.rglob("*")))


def test_a_tree(tmp_path: Path) -> None:
    target = tmp_path / "out"
    done = copy(
        target,
        folder(b"etc", 0o500),
        file(b"etc/a", 0o6777, 6),
        Piece(b"abc"),
        Piece(b"def"),
        Piece(b"", last=True),
        file(b"etc/\xff\n", 0o000, 1),
        Piece(b"x"),
        link(b"etc/l", b"a"),
        link(b"up", b"etc/a"),
        prefix=b"",
    )
    assert (done.files, done.directories, done.links, done.bytes, done.skipped) == (2, 1, 2, 7, [])
    assert (target / "etc" / "a").read_bytes() == b"abcdef"
    status = (target / "etc" / "a").stat()
    assert stat.S_IMODE(status.st_mode) == 0o755  # no setuid, no setgid, nobody else writes
    assert (status.st_uid, status.st_mtime) == (os.geteuid(), 1_000_000)
    assert stat.S_IMODE((target / "etc").stat().st_mode) == 0o700
    assert (target / os.fsdecode(b"etc/\xff\n")).read_bytes() == b"x"
    assert (target / "up").readlink() == Path("etc/a")


@pytest.mark.parametrize(
    "path",
    [b"..", b"../x", b"a/../../x", b"/etc/x", b"", b".", b"a//b", b"a/./b", b"x" * 300, b"a/" + b"y" * 256, b"a\0b"],
)
def test_names_that_lead_elsewhere_are_skipped(tmp_path: Path, path: bytes) -> None:
    done = copy(tmp_path / "out", file(path), Piece(b"evil"))
    assert done.files == 0
    assert [item.why for item in done.skipped] == ["a name that leads elsewhere"]
    assert list(everything(tmp_path)) == ["out"]


def test_a_link_made_a_moment_ago_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    limits = Limits(outward_links=True)
    done = copy(
        tmp_path / "out",
        link(b"d", os.fsencode(tmp_path / "victim")),
        file(b"d/evil"),
        Piece(b"evil"),
        link(b"f", os.fsencode(tmp_path / "victim" / "new")),
        file(b"f"),
        Piece(b"evil"),
        folder(b"d"),
        limits=limits,
    )
    assert done.links == 2
    assert len(done.skipped) == 3
    assert list((tmp_path / "victim").iterdir()) == []


def test_a_name_that_comes_twice_keeps_the_first(tmp_path: Path) -> None:
    done = copy(tmp_path / "out", file(b"a"), Piece(b"first"), file(b"a"), Piece(b"second"))
    assert (tmp_path / "out" / "a").read_bytes() == b"first"
    assert [item.why for item in done.skipped] == ["file exists"]


@pytest.mark.parametrize(
    ("path", "target", "out"),
    [
        (b"l", b"a", False),
        (b"l", b"a/b/c", False),
        (b"l", b"./a", False),
        (b"l", b"..", True),
        (b"l", b"/etc/passwd", True),
        (b"l", b"", True),
        (b"d/l", b"../a", False),
        (b"d/l", b"../../a", True),
        (b"d/e/l", b"../../a", False),
        (b"d/l", b"a/../b", True),  # a may be a link itself
        (b"d/l", b"../a/../../b", True),
        (b"d/l", b"a/b/../../../../x", True),
    ],
)
def test_links_that_lead_out(tmp_path: Path, path: bytes, target: bytes, out: bool) -> None:
    parts = safe_parts(path)
    assert parts is not None
    assert leads_out(parts, target) is out
    done = copy(tmp_path / "out", folder(b"d"), folder(b"d/e"), link(path, target))
    assert done.links == (0 if out else 1)


def test_special_files_are_left_out(tmp_path: Path) -> None:
    kinds = (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, 0o130000)
    done = copy(
        tmp_path / "out", *(Entry(b"n%d" % at, kind | 0o666, 0, device=(1, 3)) for at, kind in enumerate(kinds))
    )
    assert len(done.skipped) == 5
    assert list((tmp_path / "out").iterdir()) == []


def test_fifos_when_asked_for(tmp_path: Path) -> None:
    copy(tmp_path / "out", Entry(b"fifo", stat.S_IFIFO | 0o6777, 0), limits=Limits(device_nodes=True))
    status = (tmp_path / "out" / "fifo").lstat()
    assert stat.S_ISFIFO(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600


def test_bounds(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="more bytes"):  # what the entry says
        copy(tmp_path / "a", file(b"a", size=101), limits=Limits(max_bytes=100))
    with pytest.raises(InputError, match="more bytes"):  # what really comes
        copy(tmp_path / "b", file(b"a", size=1), Piece(b"x" * 60), Piece(b"x" * 60), limits=Limits(max_bytes=100))
    with pytest.raises(InputError, match="more files"):
        copy(tmp_path / "c", *(file(b"%d" % number) for number in range(4)), limits=Limits(max_files=3))


def test_holes_stay_holes(tmp_path: Path) -> None:
    piece = Piece(bytes(1 << 18))
    copy(tmp_path / "out", file(b"a", size=9 << 18), *[piece] * 8, Piece(b"end"))
    status = (tmp_path / "out" / "a").stat()
    assert status.st_size == (8 << 18) + 3
    assert status.st_blocks * 512 <= 65536


def test_a_file_that_breaks_off_is_told(tmp_path: Path) -> None:
    done = copy(tmp_path / "out", file(b"a", size=9), Piece(b"abc"), Piece(b"", last=True, error=5))
    assert "3 bytes" in done.skipped[0].why
    assert done.unread == 1


def test_unreadable_entries_are_told(tmp_path: Path) -> None:
    done = copy(tmp_path / "out", Entry(b"bad", 0, 0, error=117))
    assert done.skipped[0].why.startswith("cannot be read")
    assert done.unread == 1
    assert copy(tmp_path / "other", Entry(b"../a", 0o100644, 0)).unread == 0, "left out on purpose"


def test_the_directory_must_be_fresh(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(InputError, match="not empty"):
        fresh_directory(str(tmp_path / "full"))
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(InputError):
        fresh_directory(str(tmp_path / "link"))
    with pytest.raises(InputError):
        fresh_directory(str(tmp_path / "missing" / "parent"))


@given(st.binary(max_size=40))
def test_parts_are_the_path(path: bytes) -> None:
    parts = safe_parts(path)
    assert parts is None or (b"/".join(parts) == path and not path.startswith(b"/"))


@given(
    st.lists(st.sampled_from([b"..", b".", b"a", b"b", b""]), max_size=8).map(b"/".join),
    st.integers(0, 3),
)
def test_no_link_that_is_made_leaves_by_its_text(target: bytes, depth: int) -> None:
    parts = [b"d"] * depth + [b"l"]
    if not leads_out(parts, target):
        where = os.path.normpath(b"/".join([b"/base", *parts[:-1], target]))
        assert where == b"/base" or where.startswith(b"/base/")
