"""Find emulators and their helpers among all processes: one pass over /proc, a few small reads per process.

A process is an emulator when its program is named like one, or when it holds a descriptor of a KVM virtual machine
(``anon_inode:kvm-vm``), whatever it is called. The latter needs the right to look at its descriptors.
"""

from __future__ import annotations

import errno
import os
import re
from functools import lru_cache
from typing import Final

import msgspec

from casemate.facts.procfs import parse_is_ending, parse_start_time
from casemate.facts.root import Root

MAX_PROCESSES: Final = 1 << 18
_HEAD_BYTES: Final = 4096
_PF_KTHREAD: Final = 0x0020_0000
_MAX_DESCRIPTORS: Final = 1 << 16
_DELETED: Final = " (deleted)"

_EMULATORS: Final = (
    ("qemu", re.compile(r"qemu-system-[\w-]*|qemu-kvm|kvm")),
    ("firecracker", re.compile(r"firecracker(-[\w.-]+)?")),
    ("cloud-hypervisor", re.compile(r"cloud-hyperviso(r(-[\w.-]+)?)?")),
    ("crosvm", re.compile(r"crosvm")),
    ("kvmtool", re.compile(r"lkvm(-static)?|kvmtool")),
    ("stratovirt", re.compile(r"stratovirt")),
)
_HELPERS: Final = (
    ("swtpm", re.compile(r"swtpm")),
    ("virtiofsd", re.compile(r"virtiofsd(-[\w.-]+)?")),
    ("passt", re.compile(r"passt(\.avx2)?")),
    ("vhost-user", re.compile(r"vhost-user-[\w-]*|vhost-device-[\w-]*")),
    ("pr-helper", re.compile(r"qemu-pr-helper")),
    ("storage-daemon", re.compile(r"qemu-storage-d(aemon)?")),
)


class FoundProcess(msgspec.Struct, frozen=True):
    """One process that is an emulator or helps one.

    ``kind``: ``qemu``, ``firecracker``, ``swtpm``…; ``unknown`` for one that only its KVM descriptor betrays.
    ``start_time``: clock ticks after boot; with the pid it names the process for good. ``executable``: empty when we
    may not see it. ``own_name``: what the process calls itself. ``parent``: pid.
    """

    pid: int
    start_time: int
    kind: str
    is_helper: bool
    executable: str
    own_name: str
    parent: int


class FoundProcesses(msgspec.Struct, frozen=True):
    """What one pass found. ``looked_at``: processes seen; ``unread``: processes whose descriptors are closed to us, so
    that an emulator under another name would not have been noticed."""

    emulators: tuple[FoundProcess, ...]
    helpers: tuple[FoundProcess, ...]
    looked_at: int
    unread: int


def find_processes(root: Root, *, with_descriptors: bool = True) -> FoundProcesses:
    """Look at every process of the tree.

    Args:
        with_descriptors: also look for KVM descriptors in processes with other names.

    Raises:
        OSError: /proc cannot be listed.
    """
    emulators: list[FoundProcess] = []
    helpers: list[FoundProcess] = []
    looked_at = unread = 0
    for name in root.list_dir("/proc", MAX_PROCESSES):
        if not (name.isascii() and name.isdigit()):
            continue
        looked_at += 1
        try:
            found, was_read = _look(root, int(name), with_descriptors)
        except (OSError, ValueError, IndexError):
            continue  # it ended meanwhile, or this is no process
        unread += not was_read
        if found is not None:
            (helpers if found.is_helper else emulators).append(found)
    emulators, devices = _without_devices(emulators)
    helpers += devices
    by_pid = sorted(emulators, key=lambda item: item.pid)
    return FoundProcesses(tuple(by_pid), tuple(sorted(helpers, key=lambda item: item.pid)), looked_at, unread)


def _without_devices(emulators: list[FoundProcess]) -> tuple[list[FoundProcess], list[FoundProcess]]:
    """(emulators, device processes): crosvm runs each device in a child of its own, under the same program."""
    mains = {item.pid for item in emulators if item.kind == "crosvm"}
    devices = [item for item in emulators if item.kind == "crosvm" and item.parent in mains]
    left = [item for item in emulators if item not in devices]
    return left, [msgspec.structs.replace(item, is_helper=True) for item in devices]


def find_one(root: Root, pid: int) -> FoundProcess:
    """One process, as an emulator of kind ``unknown`` when it does not look like one.

    Raises:
        ProcessLookupError: there is none with this pid, or it is ending.
    """
    try:
        found = _describe(root, pid, "unknown", is_helper=False)
    except (FileNotFoundError, NotADirectoryError, ProcessLookupError, ValueError, IndexError):
        raise ProcessLookupError(errno.ESRCH, "no such process", str(pid)) from None
    kind, is_helper = _kind_of(found.executable, found.own_name)
    return msgspec.structs.replace(found, kind=kind or "unknown", is_helper=is_helper)


def _look(root: Root, pid: int, with_descriptors: bool) -> tuple[FoundProcess | None, bool]:
    """(what it is, or None; whether we could tell).

    Told by the executable's name, where we may see it, by the process's own name and by its descriptors; never by its
    command line: the kernel reads that from the process's memory, and a process can make such a read hang.
    """
    stat_line = root.read_text(f"/proc/{pid}/stat", _HEAD_BYTES)
    name, _, rest = stat_line.partition("(")[2].rpartition(")")
    if int(rest.split()[6]) & _PF_KTHREAD:
        return None, True
    kind, is_helper = _kind_of(_executable(root, pid), name)
    if kind:
        return _describe(root, pid, kind, is_helper=is_helper), True
    if not with_descriptors:
        return None, False
    holds = _holds_kvm(root, pid)
    if holds:
        return _describe(root, pid, "unknown", is_helper=False), True
    return None, holds is not None


def _executable(root: Root, pid: int) -> str:
    try:
        return os.fsencode(root.readlink(f"/proc/{pid}/exe")).decode("utf-8", "backslashreplace")
    except OSError:
        return ""


@lru_cache(maxsize=4096)
def _kind_of(executable: str, name: str) -> tuple[str, bool]:
    """(kind or empty, whether it is a helper), by the file that runs or by the process's name, cut to 15 bytes."""
    for word in (executable.removesuffix(_DELETED).rpartition("/")[2], name):
        for is_helper, table in ((False, _EMULATORS), (True, _HELPERS)):
            for kind, pattern in table:
                if word and pattern.fullmatch(word):
                    return kind, is_helper
    return "", False


def _holds_kvm(root: Root, pid: int) -> bool | None:
    """Whether it holds a descriptor of a KVM machine; None when we may not look."""
    folder = f"/proc/{pid}/fd"
    try:
        numbers = root.list_dir(folder, _MAX_DESCRIPTORS)
    except PermissionError:
        return None
    for number in numbers:
        try:
            if root.readlink(f"{folder}/{number}").startswith("anon_inode:kvm-vm"):
                return True
        except OSError:
            continue
    return False


def _describe(root: Root, pid: int, kind: str, *, is_helper: bool) -> FoundProcess:
    stat_line = root.read_text(f"/proc/{pid}/stat", _HEAD_BYTES)
    if parse_is_ending(stat_line):
        raise ProcessLookupError(errno.ESRCH, "it is ending", str(pid))
    return FoundProcess(
        pid=pid,
        start_time=parse_start_time(stat_line),
        kind=kind,
        is_helper=is_helper,
        executable=_executable(root, pid),
        own_name=stat_line.partition("(")[2].rpartition(")")[0],
        parent=int(stat_line.rpartition(")")[2].split()[1]),
    )
