"""Who can connect to a Unix socket with a name: listening sockets of a process, and the rights on their paths."""

from __future__ import annotations

import errno
import stat as stat_module
from pathlib import PurePosixPath
from typing import Final

from casemate.facts.process import Descriptor
from casemate.facts.root import Root

EVERYBODY: Final = "everybody"
ROOT: Final = frozenset({"uid:0", "gid:0"})
_TABLE_BYTES: Final = 16 << 20
_LISTENS: Final = 0x0001_0000  # __SO_ACCEPTCON of the kernel's net/unix


def listening_paths(root: Root, pid: int) -> dict[int, str]:
    """Inode -> path of every named Unix socket that listens in the network namespace of a process.

    Raises:
        OSError: the table cannot be read. ValueError: it is not understood.
    """
    found: dict[int, str] = {}
    for line in root.read_text(f"/proc/{pid}/net/unix", _TABLE_BYTES).splitlines()[1:]:
        words = line.split(None, 7)
        if len(words) == 8 and int(words[3], 16) & _LISTENS and words[6].isdecimal():
            found[int(words[6])] = words[7]
    return found


def socket_of(descriptors: tuple[Descriptor, ...], number: int) -> int:
    """The inode of the socket behind a descriptor; 0 when it is none."""
    for item in descriptors:
        if item.number == number and item.target.startswith("socket:["):
            text = item.target[8:-1]
            return int(text) if text.isdecimal() else 0
    return 0


def who_can_connect(root: Root, path: str) -> frozenset[str]:
    """Who can open this socket by its rights: ``everybody``, or ``uid:N`` and ``gid:N``; root always can.

    Whether a user is in a group is not looked up, so the answer may name more than really can, never fewer. Labels and
    access lists are not looked at.

    Raises:
        OSError: a part of the path cannot be looked at, or it is no socket.
    """
    if path.startswith("@"):
        return frozenset({EVERYBODY})  # an abstract name has no owner: any process of the network namespace
    real = root.real_path(path)
    status = root.stat(real)
    if not stat_module.S_ISSOCK(status.st_mode):
        raise OSError(errno.ENOTSOCK, "not a socket", path)
    found = _who(status.st_mode, status.st_uid, status.st_gid, 0o2)
    for folder in PurePosixPath(real).parents:
        there = root.stat(str(folder))
        found = _both(found, _who(there.st_mode, there.st_uid, there.st_gid, 0o1))
    return found | {"uid:0"}


def _who(mode: int, uid: int, gid: int, bit: int) -> frozenset[str]:
    found = set()
    if mode & bit << 6:
        found.add(f"uid:{uid}")
    if mode & bit << 3:
        found.add(f"gid:{gid}")
    if mode & bit:
        found.add(EVERYBODY)
    return frozenset(found)


def _both(one: frozenset[str], other: frozenset[str]) -> frozenset[str]:
    """Who is in both sets; a user may be in any group."""
    if EVERYBODY in one:
        return other
    if EVERYBODY in other:
        return one

    def may(item: str, among: frozenset[str]) -> bool:
        kind = item[:4]
        return item in among or any(entry[:4] != kind for entry in among)

    return frozenset({item for item in one if may(item, other)} | {item for item in other if may(item, one)})
