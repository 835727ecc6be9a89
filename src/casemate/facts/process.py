"""What a live process really is, read from its /proc directory while it may be dying, hostile, or somebody else's.

Everything is read through one descriptor of /proc/PID. The kernel ties that descriptor to the process itself, so a pid
that is used again cannot answer for the one that is gone: reads fail with ESRCH, which becomes ProcessLookupError.
Parts that we are not allowed to read stay None and stand in ``unknown`` with the reason; nothing is guessed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat as stat_module
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from casemate.facts.cgroup import parse_cgroup
from casemate.facts.mountinfo import Mount, parse_mountinfo
from casemate.facts.procfs import (
    MemoryRange,
    ThreadFacts,
    parse_fdinfo,
    parse_is_ending,
    parse_limits,
    parse_maps,
    parse_start_time,
    parse_status,
)
from casemate.facts.root import Root, read_all
from casemate.sys.libc import libc

NAMESPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
MAX_THREADS: Final = 4096
MAX_DESCRIPTORS: Final = 4096
MAX_ROOT_ENTRIES: Final = 4096
_MAX_ROOT_DEPTH: Final = 32
_TEXT_BYTES: Final = 1 << 20
_MAPS_BYTES: Final = 16 << 20
_PR_SCHED_CORE: Final = 62
_PR_SCHED_CORE_GET: Final = 0
_KINDS: Final = {
    stat_module.S_IFREG: "file",
    stat_module.S_IFDIR: "directory",
    stat_module.S_IFLNK: "symlink",
    stat_module.S_IFCHR: "char",
    stat_module.S_IFBLK: "block",
    stat_module.S_IFIFO: "fifo",
    stat_module.S_IFSOCK: "socket",
}

T = TypeVar("T")


class FileIdentity(msgspec.Struct, frozen=True):
    """Which file it is and of what kind; ``rdev`` is the device number of a device node, else 0."""

    kind: str
    dev: int
    inode: int
    mode: int
    uid: int
    gid: int
    size_bytes: int
    rdev: int


class Descriptor(msgspec.Struct, frozen=True):
    """One open descriptor. ``target`` is what /proc shows (``socket:[812]``, a path); ``flags`` holds O_* bits."""

    number: int
    target: str
    flags: int
    identity: FileIdentity | None

    @property
    def access(self) -> str:
        """``path`` (O_PATH), ``read``, ``write`` or ``read-write``."""
        if self.flags & os.O_PATH:
            return "path"
        return ("read", "write", "read-write", "none")[self.flags & os.O_ACCMODE]


class RootEntry(msgspec.Struct, frozen=True):
    """One entry of the process's root directory, named from that root."""

    path: str
    identity: FileIdentity


class RootListing(msgspec.Struct, frozen=True):
    """All that the process could name by path. ``complete`` is false when there was more than we looked at.

    Directories that could not be opened are in ``unread``.
    """

    entries: tuple[RootEntry, ...]
    complete: bool
    unread: tuple[str, ...]


class ProcessFacts(msgspec.Struct, frozen=True):
    """One process as it was found. A None stands for "could not be read"; ``unknown`` says why, by field name.

    ``start_time`` is in clock ticks after boot. ``namespaces`` and ``own_namespaces`` map a kind to an inode number.
    ``loader_environment`` holds LD_* variables only: other values may be secrets. ``threads_complete`` is false when
    threads kept appearing while they were read.
    """

    pid: int
    start_time: int
    threads: tuple[ThreadFacts, ...]
    threads_complete: bool
    command: tuple[str, ...]
    namespaces: dict[str, int]
    own_namespaces: dict[str, int]
    executable: str | None
    executable_identity: FileIdentity | None
    root: RootListing | None
    mounts: tuple[Mount, ...] | None
    descriptors: tuple[Descriptor, ...] | None
    limits: dict[str, tuple[int | None, int | None]] | None
    cgroups: dict[str, str] | None
    writable_code: tuple[MemoryRange, ...] | None
    loader_environment: dict[str, str] | None
    personality: int | None
    oom_score_adj: int | None
    label: str | None
    unknown: dict[str, str]


def read_process(
    pid: int,
    *,
    pidfd: int | None = None,
    root: Root | None = None,
    with_root: bool = True,
    with_maps: bool = True,
) -> ProcessFacts:
    """Read everything about a process.

    Args:
        pid: as this process's /proc shows it.
        pidfd: the process that is meant; the number must be its own before and after the reading.
        root: the tree whose /proc to read; in a captured one there is no core scheduling and no root directory.
        with_root: walk the process's root directory.
        with_maps: look for memory that is writable and executable.

    Raises:
        ProcessLookupError: it does not exist, is not the one behind ``pidfd``, is a zombie, or ended meanwhile.
        OSError: even the parts open to everybody cannot be read.
        ValueError: the kernel's text is not as documented.
    """
    tree = root or Root()
    proc_fd = -1
    try:
        if not tree.is_live:
            return _CapturedReader(pid, tree).read(with_root, with_maps)
        proc_fd = tree.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)
        _check_pidfd(pid, pidfd)
        facts = _Reader(pid, proc_fd).read(with_root, with_maps)
        _check_pidfd(pid, pidfd)
        return facts
    except (ProcessLookupError, FileNotFoundError) as error:
        # Below the descriptor of a process that is gone, open gives ENOENT and read gives ESRCH.
        raise ProcessLookupError(errno.ESRCH, "no such process, or it ended while it was read", str(pid)) from error
    finally:
        if proc_fd >= 0:
            os.close(proc_fd)


def _check_pidfd(pid: int, pidfd: int | None) -> None:
    """The kernel shows the number of the process behind a pidfd, -1 once it has been reaped."""
    if pidfd is None:
        return
    with open(f"/proc/self/fdinfo/{pidfd}", "rb") as stream:
        shown = parse_fdinfo(stream.read(4096).decode("ascii", "replace")).get("Pid")
    if shown != str(pid):
        raise ProcessLookupError(errno.ESRCH, f"the pidfd is of process {shown}", str(pid))


class _Reader:
    """Reads below one open /proc/PID."""

    is_live = True

    def __init__(self, pid: int, proc_fd: int) -> None:
        self._pid = pid
        self._fd = proc_fd
        self._unknown: dict[str, str] = {}

    def read(self, with_root: bool, with_maps: bool) -> ProcessFacts:
        stat_line = self._text("stat")
        if parse_is_ending(stat_line):
            raise ProcessLookupError(errno.ESRCH, "it is ending", str(self._pid))
        threads, complete = self._threads()
        facts = ProcessFacts(
            pid=self._pid,
            start_time=parse_start_time(stat_line),
            threads=threads,
            threads_complete=complete,
            command=tuple(self._text("cmdline").removesuffix("\0").split("\0")),
            namespaces=self._try("namespaces", lambda: _namespaces(self._link)) or {},
            own_namespaces=own_namespaces() if self.is_live else {},
            executable=self._try("executable", lambda: self._link("exe")),
            executable_identity=self._try("executable_identity", lambda: self._identity("exe")),
            root=self._try("root", lambda: walk_root(self._fd)) if with_root and self.is_live else None,
            mounts=self._try("mounts", lambda: parse_mountinfo(self._text("mountinfo", _MAPS_BYTES))),
            descriptors=self._try("descriptors", self._descriptors),
            limits=self._try("limits", lambda: parse_limits(self._text("limits"))),
            cgroups=self._try("cgroups", lambda: parse_cgroup(self._text("cgroup"))),
            writable_code=self._try("writable_code", self._writable_code) if with_maps else None,
            loader_environment=self._try("loader_environment", self._loader_environment),
            personality=self._try("personality", lambda: int(self._text("personality"), 16)),
            oom_score_adj=self._try("oom_score_adj", lambda: int(self._text("oom_score_adj"))),
            label=self._try("label", lambda: self._text("attr/current").rstrip("\0\n")),
            unknown=self._unknown,
        )
        # One that began to exit in between would leave us with half of it.
        if parse_is_ending(self._text("stat")):
            raise ProcessLookupError(errno.ESRCH, "it is ending", str(self._pid))
        return facts

    def _try(self, field: str, read: Callable[[], T]) -> T | None:
        """One part that may be denied to us; why goes into ``unknown``."""
        try:
            return read()
        except ProcessLookupError:
            raise
        except OSError as error:
            self._unknown[field] = error.strerror or str(error)
        except ValueError as error:
            self._unknown[field] = str(error)
        return None

    def _bytes(self, name: str, limit_bytes: int = _TEXT_BYTES) -> bytes:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(name, flags, dir_fd=self._fd)
        try:
            return read_all(descriptor, limit_bytes, name)
        finally:
            os.close(descriptor)

    def _text(self, name: str, limit_bytes: int = _TEXT_BYTES) -> str:
        return self._bytes(name, limit_bytes).decode("utf-8", "backslashreplace")

    def _names(self, folder: str, limit: int) -> list[int]:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._fd)
        try:
            numbers: list[int] = []
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    if len(numbers) >= limit:
                        raise OSError(errno.EFBIG, f"more than {limit} entries", folder)
                    if entry.name.isascii() and entry.name.isdigit():
                        numbers.append(int(entry.name))
        finally:
            os.close(descriptor)
        return sorted(numbers)

    def _threads(self) -> tuple[tuple[ThreadFacts, ...], bool]:
        """Every thread; read until the list is the same before and after, at most eight times."""
        for _attempt in range(8):
            tids = self._names("task", MAX_THREADS)
            found: list[ThreadFacts] = []
            for tid in tids:
                try:
                    thread = parse_status(self._text(f"task/{tid}/status"), tid)
                except (FileNotFoundError, ProcessLookupError):
                    continue
                cookie = core_cookie(tid) if self.is_live else None
                found.append(msgspec.structs.replace(thread, core_cookie=cookie))
            if not found:
                raise ProcessLookupError(errno.ESRCH, "no threads", str(self._pid))
            if [thread.tid for thread in found] == self._names("task", MAX_THREADS):
                return tuple(found), True
        return tuple(found), False

    def _identity(self, name: str) -> FileIdentity | None:
        """Of what a magic link leads to."""
        return _identity_of(os.stat(name, dir_fd=self._fd))

    def _link(self, name: str) -> str:
        return _printable(os.readlink(name, dir_fd=self._fd))

    def _descriptors(self) -> tuple[Descriptor, ...]:
        found: list[Descriptor] = []
        for number in self._names("fd", MAX_DESCRIPTORS):
            try:
                target = self._link(f"fd/{number}")
                flags = int(parse_fdinfo(self._text(f"fdinfo/{number}"))["flags"], 8)
                identity = self._identity(f"fd/{number}")
            except FileNotFoundError:
                # Closed since the directory was listed.
                continue
            except KeyError:
                raise ValueError(f"fdinfo/{number} has no flags") from None
            found.append(Descriptor(number, target, flags, identity))
        return tuple(found)

    def _writable_code(self) -> tuple[MemoryRange, ...]:
        lines = self._text("maps", _MAPS_BYTES)
        return tuple(item for item in parse_maps(lines) if item.rights[1] == "w" and item.rights[2] == "x")

    def _loader_environment(self) -> dict[str, str]:
        pairs = (item.partition("=") for item in self._text("environ").split("\0"))
        return {name: value for name, equals, value in pairs if equals and name.startswith("LD_")}


class _CapturedReader(_Reader):
    """Reads below /proc/PID of a captured tree, where a link is a text, and what it leads to may be written down."""

    is_live = False

    def __init__(self, pid: int, root: Root) -> None:
        super().__init__(pid, -1)
        self._root = root
        self._base = f"/proc/{pid}"

    def _bytes(self, name: str, limit_bytes: int = _TEXT_BYTES) -> bytes:
        return self._root.read_bytes(f"{self._base}/{name}", limit_bytes)

    def _names(self, folder: str, limit: int) -> list[int]:
        names = self._root.list_dir(f"{self._base}/{folder}", limit)
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    def _identity(self, name: str) -> FileIdentity | None:
        try:
            status = self._root.noted_stat(f"{self._base}/{name}")
        except OSError:
            return None
        return None if status is None else _identity_of(status)

    def _link(self, name: str) -> str:
        return _printable(self._root.readlink(f"{self._base}/{name}"))


def own_namespaces() -> dict[str, int]:
    """The calling process's namespaces."""
    descriptor = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _namespaces(lambda name: os.readlink(name, dir_fd=descriptor))
    finally:
        os.close(descriptor)


def captured_namespaces(root: Root, pid: str) -> dict[str, int]:
    """The namespaces of a process of a captured tree, as far as they were noted.

    Raises:
        OSError, ValueError: they cannot be read.
    """
    return _namespaces(lambda name: root.readlink(f"/proc/{pid}/{name}"))


def core_cookie(tid: int) -> int | None:
    """The core scheduling cookie of a thread (prctl PR_SCHED_CORE_GET), None where there is none to be read."""
    cookie = ctypes.c_ulonglong(0)
    arguments = (ctypes.c_ulong(_PR_SCHED_CORE_GET), ctypes.c_ulong(tid), ctypes.c_ulong(0), ctypes.byref(cookie))
    # SAFETY: the kernel writes 8 bytes to the cookie, which outlives the call.
    return int(cookie.value) if libc.prctl(ctypes.c_int(_PR_SCHED_CORE), *arguments) == 0 else None


def walk_root(proc_fd: int) -> RootListing:
    """List the root directory of the process behind an open /proc/PID. No symbolic link is followed.

    Raises:
        OSError: the root itself cannot be opened (needs ptrace rights on the process).
    """
    entries: list[RootEntry] = []
    unread: list[str] = []
    top = os.open("root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc_fd)
    # (open directory, its path): descriptors are closed as soon as the directory is read.
    queue: list[tuple[int, str]] = [(top, "")]
    try:
        while queue:
            folder, prefix = queue.pop()
            try:
                complete = _walk_one(folder, prefix, entries, unread, queue)
            finally:
                os.close(folder)
            if not complete:
                return RootListing(_by_path(entries), False, tuple(unread))
        return RootListing(_by_path(entries), True, tuple(unread))
    finally:
        for folder, _prefix in queue:
            os.close(folder)


def _walk_one(
    folder: int, prefix: str, entries: list[RootEntry], unread: list[str], queue: list[tuple[int, str]]
) -> bool:
    with os.scandir(folder) as listing:
        for entry in listing:
            if len(entries) >= MAX_ROOT_ENTRIES:
                return False
            path = f"{prefix}/{_printable(entry.name)}"
            try:
                identity = _identity_of(entry.stat(follow_symlinks=False))
                entries.append(RootEntry(path, identity))
                if identity.kind == "directory":
                    if prefix.count("/") >= _MAX_ROOT_DEPTH or len(queue) >= 256:
                        return False
                    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                    queue.append((os.open(entry.name, flags, dir_fd=folder), path))
            except OSError:
                unread.append(path)
    return True


def _by_path(entries: list[RootEntry]) -> tuple[RootEntry, ...]:
    return tuple(sorted(entries, key=lambda entry: entry.path))


def _identity_of(status: os.stat_result) -> FileIdentity:
    return FileIdentity(
        kind=_KINDS.get(stat_module.S_IFMT(status.st_mode), "other"),
        dev=status.st_dev,
        inode=status.st_ino,
        mode=stat_module.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        size_bytes=status.st_size,
        rdev=status.st_rdev,
    )


def _namespaces(link: Callable[[str], str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in NAMESPACES:
        try:
            text = link(f"ns/{name}")
        except FileNotFoundError:
            # A kernel without this kind of namespace; a process that is gone gives ESRCH.
            continue
        found[name] = int(text.partition("[")[2].rstrip("]"))
    return found


def _printable(name: str) -> str:
    """A name of hostile origin as text that can be shown and encoded: bytes that are not UTF-8 become ``\\xNN``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
