"""What the wall looks like to the process in it, before the first attempt: the prover writes it down, nobody judges.

Runs in the prover, which has no filter and, at this point, no Landlock: what an emulator could see while it starts.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import socket
import stat
import struct
from collections.abc import Callable
from typing import Final

from casemate.jail.policy import Layer, Wall
from casemate.jail.probe.model import Node, Sight
from casemate.sys.libc import libc
from casemate.sys.process import PR_SET_NO_NEW_PRIVS, prctl

_PR_GET_NO_NEW_PRIVS: Final = PR_SET_NO_NEW_PRIVS + 1
_PR_GET_SECUREBITS: Final = 27
_PR_CAPBSET_READ: Final = 23
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_IS_SET: Final = 1
_CAPABILITY_VERSION_3: Final = 0x2008_0522
_CAPABILITIES_MAX: Final = 64
NODES_MAX: Final = 4096
_DESCRIPTORS_MAX: Final = 1024
_KINDS: Final = (
    (stat.S_ISREG, "file"),
    (stat.S_ISDIR, "directory"),
    (stat.S_ISLNK, "link"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISFIFO, "fifo"),
)


def look_around(wall: Wall, own_descriptors: frozenset[int]) -> Sight:
    """Everything that the calling process can say of itself. ``own_descriptors`` are the prover's, left out."""
    effective, permitted, inheritable = _capabilities()
    tree: list[Node] = []
    cut, error = False, ""
    if wall.has(Layer.ROOT):
        try:
            cut = not _walk("/", tree)
        except OSError as fault:
            error = str(fault)
    return Sight(
        pid=os.getpid(),
        parent_pid=os.getppid(),
        uids=os.getresuid(),
        gids=os.getresgid(),
        groups=tuple(os.getgroups()),
        effective=effective,
        permitted=permitted,
        inheritable=inheritable,
        bounding=_mask(lambda capability: prctl(_PR_CAPBSET_READ, capability)),
        ambient=_mask(lambda capability: prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_IS_SET, capability)),
        no_new_privs=prctl(_PR_GET_NO_NEW_PRIVS) == 1,
        securebits=prctl(_PR_GET_SECUREBITS),
        hostname=socket.gethostname(),
        descriptors=_descriptors(own_descriptors),
        limits=_limits(wall),
        interfaces=tuple(name for _, name in socket.if_nameindex()),
        tree=tuple(tree),
        tree_cut=cut,
        tree_error=error,
    )


def _capabilities() -> tuple[int, int, int]:
    """Effective, permitted, inheritable; see capget(2)."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    data = ctypes.create_string_buffer(24)
    # SAFETY: version 3 has two structures of three 32-bit words.
    if libc.capget(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    low = struct.unpack("=6I", data.raw[:24])
    return low[0] | low[3] << 32, low[1] | low[4] << 32, low[2] | low[5] << 32


def _mask(has: Callable[[int], int]) -> int:
    mask = 0
    for capability in range(_CAPABILITIES_MAX):
        try:
            mask |= has(capability) << capability
        except OSError:  # past the kernel's last capability
            break
    return mask


def _descriptors(left_out: frozenset[int]) -> tuple[tuple[int, int], ...]:
    found = []
    for number in range(_DESCRIPTORS_MAX):
        if number not in left_out:
            with contextlib.suppress(OSError):
                found.append((number, fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE))
    return tuple(found)


def _limits(wall: Wall) -> tuple[tuple[str, int, int], ...]:
    found = []
    for limit in wall.rlimits:
        soft, hard = resource.getrlimit(getattr(resource, f"RLIMIT_{limit.name.upper()}"))
        found.append((limit.name, soft, hard))
    return tuple(found)


def _walk(directory: str, into: list[Node]) -> bool:
    """Every entry below ``directory``; False when there are more than `NODES_MAX`."""
    for name in sorted(os.listdir(directory)):
        if len(into) >= NODES_MAX:
            return False
        path = f"{directory.rstrip('/')}/{name}"
        info = os.lstat(path)
        kind = next((word for test, word in _KINDS if test(info.st_mode)), "other")
        flags = 0 if kind == "link" else os.statvfs(path).f_flag
        into.append(
            Node(
                path,
                kind,
                info.st_dev,
                info.st_ino,
                info.st_rdev,
                stat.S_IMODE(info.st_mode),
                bool(flags & os.ST_RDONLY) or kind == "link",
                bool(flags & os.ST_NOSUID) or kind == "link",
            )
        )
        if kind == "directory" and not _walk(path, into):
            return False
    return True
