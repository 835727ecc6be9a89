"""Who can connect to a monitor's socket: rights of the socket and of every directory above it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from tests.unit.elf_builder import put

from casemate.facts.process import Descriptor
from casemate.facts.root import Root
from casemate.facts.socket_access import EVERYBODY, _both, listening_paths, socket_of, who_can_connect

OWN = f"uid:{os.geteuid()}"
GROUP = f"gid:{os.getegid()}"


def make(tree: Path, modes: tuple[int, int, int]) -> Root:
    """/a/b/s with the modes of the two directories and of the socket."""
    tree.chmod(0o755)
    folder = tree / "a" / "b"
    folder.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(folder)
        try:
            made.bind("s")
        finally:
            os.chdir(here)
    (folder / "s").chmod(modes[2])
    folder.chmod(modes[1])
    (tree / "a").chmod(modes[0])
    return Root(tree)


@pytest.mark.parametrize(
    ("modes", "who"),
    [
        ((0o755, 0o755, 0o777), {OWN, GROUP, EVERYBODY, "uid:0"}),
        ((0o755, 0o755, 0o755), {OWN, "uid:0"}),
        ((0o755, 0o755, 0o770), {OWN, GROUP, "uid:0"}),
        ((0o755, 0o700, 0o777), {OWN, "uid:0"}),
        ((0o750, 0o755, 0o777), {OWN, GROUP, "uid:0"}),
        ((0o755, 0o711, 0o600), {OWN, "uid:0"}),
    ],
)
def test_rights_of_socket_and_directories(tmp_path: Path, modes: tuple[int, int, int], who: set[str]) -> None:
    root = make(tmp_path, modes)
    try:
        assert who_can_connect(root, "/a/b/s") == who
    finally:
        (tmp_path / "a").chmod(0o755)
        (tmp_path / "a" / "b").chmod(0o755)


def test_an_abstract_socket_is_everybodys() -> None:
    assert who_can_connect(Root(), "@monitor") == {EVERYBODY}


def test_what_is_no_socket_is_an_error(tmp_path: Path) -> None:
    put(tmp_path, "/a/s", b"")
    with pytest.raises(OSError, match="not a socket"):
        who_can_connect(Root(tmp_path), "/a/s")
    with pytest.raises(FileNotFoundError):
        who_can_connect(Root(tmp_path), "/a/none")


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ({"uid:1"}, {"uid:2"}, set()),
        ({"uid:1"}, {"gid:7"}, {"uid:1", "gid:7"}),
        ({"uid:1", "gid:7"}, {"uid:1"}, {"uid:1", "gid:7"}),
        ({EVERYBODY, "uid:1"}, {"uid:2"}, {"uid:2"}),
        (set(), {"uid:2"}, set()),
    ],
)
def test_who_is_in_both(one: set[str], other: set[str], both: set[str]) -> None:
    assert _both(frozenset(one), frozenset(other)) == both


TABLE = """Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 4711 /run/qemu/monitor.sock
0000000000000000: 00000003 00000000 00000000 0001 03 4712 /run/qemu/monitor.sock
0000000000000000: 00000002 00000000 00010000 0001 01 4713 /run/with space
0000000000000000: 00000002 00000000 00010000 0001 01 4714
0000000000000000: 00000002 00000000 00010000 0001 01 4715 @abstract
"""


def test_listening_sockets_of_the_kernels_table(tmp_path: Path) -> None:
    put(tmp_path, "/proc/7/net/unix", TABLE.encode())
    found = listening_paths(Root(tmp_path), 7)
    assert found == {4711: "/run/qemu/monitor.sock", 4713: "/run/with space", 4715: "@abstract"}
    put(tmp_path, "/proc/8/net/unix", b"head\nx x x zz x x 1 /p\n")
    with pytest.raises(ValueError, match="zz"):
        listening_paths(Root(tmp_path), 8)


def test_the_socket_behind_a_descriptor() -> None:
    held = (Descriptor(3, "socket:[12]", 0, None), Descriptor(4, "/a", 0, None), Descriptor(5, "socket:[x]", 0, None))
    assert [socket_of(held, number) for number in (3, 4, 5, 6)] == [12, 0, 0, 0]
