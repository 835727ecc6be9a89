"""The view of a tree: bounds, hostile trees, and errors that become Unknown."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from casemate.facts.fact import Known, Unknown
from casemate.facts.root import Root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    base = tmp_path / "tree"
    (base / "etc").mkdir(parents=True)
    (base / "etc/name").write_text("inside\n")
    (tmp_path / "secret").write_text("outside\n")
    return base


def test_reads_lists_and_stats_inside(tree: Path) -> None:
    root = Root(tree)
    assert root.read_text("/etc/name") == "inside\n"
    assert root.list_dir("/etc") == ("name",)
    assert root.stat("/etc/name").st_size == 7
    assert root.exists("/etc/name")
    assert not root.exists("/etc/none")
    assert not root.exists("/etc/name/below")


@pytest.mark.parametrize("target", ["../../secret", "/../secret", "{outside}"])
def test_no_symlink_leads_out(tree: Path, target: str) -> None:
    outside = tree.parent / "secret"
    (tree / "etc/link").symlink_to(target.format(outside=outside))
    with pytest.raises(FileNotFoundError):
        Root(tree).read_text("/etc/link")


def test_dotdot_stays_at_the_top(tree: Path) -> None:
    assert Root(tree).read_text("/../../etc/name") == "inside\n"


def test_absolute_symlink_is_taken_from_the_tree(tree: Path) -> None:
    (tree / "alias").symlink_to("/etc/name")
    root = Root(tree)
    assert root.read_text("/alias") == "inside\n"
    assert root.readlink("/alias") == "/etc/name"
    assert root.real_path("/alias") == "/etc/name"
    assert root.stat("/alias", follow=False).st_mode & 0o170000 == 0o120000


def test_procfs_magic_links_are_refused(tree: Path) -> None:
    root = Root("/proc")
    with pytest.raises(OSError) as caught:
        root.list_dir(f"/{os.getpid()}/root")
    assert caught.value.errno == errno.ELOOP


@pytest.mark.parametrize("live", [True, False])
def test_fifo_and_directory_are_no_files(tree: Path, live: bool) -> None:
    os.mkfifo(tree / "etc/fifo")
    root, prefix = (Root(), str(tree)) if live else (Root(tree), "")
    for path in (f"{prefix}/etc/fifo", f"{prefix}/etc"):
        with pytest.raises(OSError) as caught:
            root.read_bytes(path)
        assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("live", [True, False])
def test_reads_are_bounded(tree: Path, live: bool) -> None:
    (tree / "big").write_bytes(b"x" * 5000)
    root, path = (Root(), f"{tree}/big") if live else (Root(tree), "/big")
    assert len(root.read_bytes(path, 5000)) == 5000
    with pytest.raises(OSError) as caught:
        root.read_bytes(path, 4999)
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == path


def test_listings_are_bounded(tree: Path) -> None:
    for number in range(5):
        (tree / f"n{number}").touch()
    with pytest.raises(OSError) as caught:
        Root(tree).list_dir("/", 5)
    assert caught.value.errno == errno.EFBIG
    assert len(Root(tree).list_dir("/", 6)) == 6


def test_bytes_that_are_no_text_stay_visible(tree: Path) -> None:
    (tree / "odd").write_bytes(b"a\xffb")
    assert Root(tree).read_text("/odd") == "a\\xffb"


def test_fact_is_known_with_its_source(tree: Path) -> None:
    assert Root(tree).fact("/etc/name", str.strip, "whole") == Known("inside", "/etc/name: whole")


def test_fact_is_unknown_with_the_reason(tree: Path) -> None:
    root = Root(tree)
    assert root.fact("/etc/none", str.strip) == Unknown("/etc/none: No such file or directory")
    bad = root.fact("/etc/name", int)
    assert isinstance(bad, Unknown)
    assert bad.why.startswith("/etc/name: not understood")
    big = root.fact("/etc/name", str.strip, limit_bytes=3)
    assert big == Unknown("/etc/name: larger than 3 bytes")


def test_free_bytes_is_what_the_file_system_says(tree: Path) -> None:
    numbers = os.statvfs(tree)
    assert abs(Root(tree).free_bytes("/etc") - numbers.f_bavail * numbers.f_frsize) < 1 << 30


def test_no_descriptor_is_left_open(tree: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    root = Root(tree)
    root.read_text("/etc/name")
    root.list_dir("/etc")
    root.exists("/etc/none")
    root.fact("/etc", str.strip)
    root.real_path("/etc")
    assert sorted(os.listdir("/proc/self/fd")) == before
