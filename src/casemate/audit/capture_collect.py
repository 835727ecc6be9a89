"""Take from a host what the table says, into memory: bounded, filtered, and with a word on whatever stayed behind.

1. The kernel's release is read; it is part of some patterns.
2. Every pattern of the table is looked for. What is there and cannot be read is written down with the reason.
3. Emulators and helpers are found; each is read whole, or, when it ends meanwhile, left out whole.
4. The control groups that these are in are read, up to the top.
"""

from __future__ import annotations

import datetime
import errno
import os
import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Final

import msgspec

from casemate.audit.capture_filters import FILTERS, PRIVATE_KEY
from casemate.audit.capture_model import NUMBER_MAX, VERSION, Manifest, Status
from casemate.audit.capture_paths import (
    ANSWERS,
    CGROUP_FILES,
    CGROUP_TOP,
    DENIED,
    MERGED,
    TABLE,
    TOTAL_BYTES,
    VM_PROCESS,
    Kind,
    Take,
)
from casemate.audit.patience import Stuck, each
from casemate.errors import HostError
from casemate.facts import rpm_answer
from casemate.facts.cgroup import parse_cgroup
from casemate.facts.process_find import MAX_PROCESSES, find_processes
from casemate.facts.procfs import parse_start_time
from casemate.facts.program import ask_program
from casemate.facts.root import Root, read_all

_ABSENT: Final = (errno.ENOENT, errno.ENOTDIR, errno.ESRCH, errno.ENXIO)
_RELEASE: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+~-]{0,127}")
_PLAIN: Final = re.compile(r"/[\x20-\x7e]*")
_KEY_BLOCK: Final = re.compile(PRIVATE_KEY.encode())
_PF_KTHREAD: Final = 0x0020_0000
_MATCHES_MAX: Final = 20_000
_CGROUP_DEPTH: Final = 64
_PROCESS_DEADLINE_S: Final = 10.0


class Taken(msgspec.Struct):
    """What was taken. ``files``: content by path; ``links``: text by path; ``folders``: directories that are there."""

    manifest: Manifest
    files: dict[str, bytes]
    links: dict[str, str]
    folders: tuple[str, ...]


def collect_capture(
    root: Root, host: str, tool: str, *, progress: Callable[[int, int, str], None] = lambda done, of, what: None
) -> Taken:
    """Everything that the table names.

    Raises:
        HostError: together it is larger than a capture may be, or there is no /proc.
    """
    taker = _Taker(root)
    # 1. The kernel's release is part of some patterns.
    table = tuple(msgspec.structs.replace(take, pattern=taker.spelled(take.pattern)) for take in TABLE)
    # 2. Every pattern.
    for index, take in enumerate(table):
        progress(index, len(table), take.pattern)
        taker.take(take)
    # 3. and 4. Processes and their groups.
    taker.processes()
    progress(len(table), len(table), "")
    own = (take.pattern.replace("PID", "*") for take in VM_PROCESS)
    looked_for = (*(f"{take.kind} {take.pattern}" for take in table), *taker.process_patterns(own))
    manifest = Manifest(
        casemate_capture=VERSION,
        time=datetime.datetime.fromtimestamp(int(root.now_s()), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        host=host,
        tool=tool,
        uid=os.geteuid(),
        looked_for=tuple(dict.fromkeys(looked_for)),
        names=taker.names,
        status=tuple(taker.status.values()),
        unread=taker.unread,
        answers=_answers(root),
        filtered=taker.filtered,
    )
    return Taken(manifest, taker.files, taker.links, tuple(sorted(taker.folders)))


def is_denied(path: str) -> bool:
    """Whether a file of this name is never opened."""
    return any(fnmatchcase(path, pattern) for pattern in DENIED)


def _answers(root: Root) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, argv in ANSWERS.items() if root.is_live else ():
        try:
            answer = ask_program(argv, timeout_s=5.0, limit_bytes=4096)
        except (OSError, ValueError):
            continue
        if answer.status == 0:
            found[name] = answer.output.decode("utf-8", "backslashreplace").strip()
    packages = rpm_answer.answer_of(root)
    return found if packages is None else {**found, rpm_answer.NAME: packages}


class _Taker:
    """One run: what was taken so far."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self.files: dict[str, bytes] = {}
        self.links: dict[str, str] = {}
        self.folders: set[str] = set()
        self.names: dict[str, tuple[str, ...]] = {}
        self.status: dict[str, Status] = {}
        self.unread: dict[str, str] = {}
        self.filtered: dict[str, str] = {}
        self._total = 0
        self._listed: dict[str, tuple[str, ...]] = {}
        self._there: dict[str, bool] = {}
        self._merged: dict[str, str] = {}
        for top in MERGED:
            self._link(top)
            if top in self.links:
                self._merged[top] = f"/{self.links[top].lstrip('/')}"
        self._release = self._running()

    def _running(self) -> str:
        try:
            text = self._root.read_text("/proc/sys/kernel/osrelease", 256).strip()
        except OSError:
            return "-"
        return text if _RELEASE.fullmatch(text) else "-"

    def spelled(self, pattern: str) -> str:
        """The pattern with the running kernel's release in it."""
        return pattern.replace("RELEASE", self._release)

    def process_patterns(self, own: Iterable[str]) -> list[str]:
        """Patterns of processes and their groups, as the manifest names them."""
        kinds = [f"{take.kind} {pattern}" for take, pattern in zip(VM_PROCESS, own, strict=True)]
        return [*kinds, "n /proc/*/fd", *(f"c {CGROUP_TOP}**/{name}" for name in CGROUP_FILES)]

    def take(self, take: Take) -> None:
        """One line of the table."""
        top = f"/{take.pattern.split('/')[1]}"
        if top in self._merged:
            # Reached through a link: what is behind it has lines of its own, or is looked for under its own name.
            take = msgspec.structs.replace(take, pattern=self._merged[top] + take.pattern[len(top) :])
        for path in self._matches(take.pattern):
            self._one(take, path)

    def _one(self, take: Take, path: str) -> None:
        if not _PLAIN.fullmatch(path):
            self.unread[path.encode("ascii", "backslashreplace").decode()[:4096]] = "EILSEQ"
        elif take.kind is Kind.CONTENT:
            self._content(path, take)
        elif take.kind is Kind.NAMES:
            self._names(path)
        elif take.kind is Kind.STATUS:
            self._status(path)
        else:
            self._link(path)

    def _matches(self, pattern: str) -> list[str]:
        """Paths that fit; a last part without ``*`` is not looked at yet."""
        if pattern == "/":
            return ["/"]
        found = [""]
        parts = pattern.split("/")[1:]
        for index, part in enumerate(parts):
            is_last = index == len(parts) - 1
            if "*" not in part:
                found = [f"{path}/{part}" for path in found]
                if not is_last:
                    found = [path for path in found if self._is_folder(path)]
            else:
                found = [f"{path}/{name}" for path in found for name in self._list(path) if fnmatchcase(name, part)]
            if len(found) > _MATCHES_MAX:
                self.unread[pattern.partition("*")[0].rstrip("/") or "/"] = "EFBIG"
                return []
        return found

    def _is_folder(self, path: str) -> bool:
        known = self._there.get(path)
        if known is None:
            try:
                known = self._root.exists(path)
            except OSError as error:
                self._not_read(path, error)
                known = False
            self._there[path] = known
            if known:
                self.folders.add(path)
        return known

    def _list(self, path: str) -> tuple[str, ...]:
        if path not in self._listed:
            try:
                self._listed[path] = self._root.list_dir(path or "/", MAX_PROCESSES)
            except OSError as error:
                self._not_read(path, error)
                self._listed[path] = ()
        return self._listed[path]

    def _not_read(self, path: str, error: OSError) -> None:
        """Written down, unless it says that nothing is there."""
        if error.errno not in _ABSENT:
            self.unread[path] = errno.errorcode.get(error.errno or 0, "EIO")

    def _content(self, path: str, take: Take) -> None:
        if path in self.files:
            return
        try:
            data = self._read(path, take.limit_bytes)
            entry = FILTERS[take.through]
            kept = entry.apply(data, path)
        except OSError as error:
            self._not_read(path, error)
            return
        except ValueError:
            self.unread[path] = "EBADMSG"
            return
        if _KEY_BLOCK.search(kept):
            self.unread[path] = "EPERM"
            return
        if kept != data:
            self.filtered[path] = entry.loses
        self._count(len(kept), path)
        self.files[path] = kept

    def _count(self, size_bytes: int, path: str) -> None:
        self._total += size_bytes
        if self._total > TOTAL_BYTES:
            raise HostError(f"what would be captured is larger than {TOTAL_BYTES >> 20} MiB", got=f"at {path}")

    def _read(self, path: str, limit_bytes: int) -> bytes:
        """Open, see which file it really is, then read: a link put there meanwhile leads nowhere."""
        if is_denied(path):
            raise OSError(errno.EPERM, "never captured", path)
        descriptor = self._root.open_regular(path)
        try:
            if is_denied(self._real_name(descriptor)):
                raise OSError(errno.EPERM, "never captured", path)
            return read_all(descriptor, limit_bytes, path)
        finally:
            os.close(descriptor)

    def _real_name(self, descriptor: int) -> str:
        name = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115  text, not a Path
        base = "" if self._root.is_live else os.path.realpath(self._root.base)
        return name[len(base) :] if name.startswith(base) else name

    def _names(self, path: str) -> None:
        try:
            names = self._root.list_dir(path, MAX_PROCESSES)
        except OSError as error:
            self._not_read(path, error)
            return
        self.folders.add(path)
        self.names[path] = tuple(name for name in names if _PLAIN.fullmatch(f"/{name}"))

    def _status(self, path: str) -> None:
        try:
            found = self._root.stat(path)
        except OSError as error:
            self._not_read(path, error)
            return
        which = (found.st_rdev, found.st_dev, found.st_ino, found.st_size)
        self.status[path] = Status(
            path, found.st_mode, found.st_uid, found.st_gid, *((number or 0) & NUMBER_MAX for number in which)
        )

    def _link(self, path: str) -> None:
        try:
            text = self._root.readlink(path)
        except OSError as error:
            if error.errno != errno.EINVAL:  # no link at all
                self._not_read(path, error)
            return
        if text and "\0" not in text:
            self.links[path] = os.fsencode(text).decode("utf-8", "backslashreplace")

    def processes(self) -> None:
        """Emulators and helpers, and of all others whether they were looked at.

        Raises:
            HostError: there is no /proc.
        """
        try:
            found = find_processes(self._root)
        except OSError as error:
            raise HostError("the processes cannot be listed", got=f"/proc: {error.strerror or error}") from None
        ours = (*found.emulators, *found.helpers)
        for process, part in each(ours, lambda p: _one_process(self._root, p.pid, p.start_time), _PROCESS_DEADLINE_S):
            if isinstance(part, _Taker):
                self._merge(part)
            elif isinstance(part, Stuck):
                self.unread[f"/proc/{process.pid}/cmdline"] = "ETIMEDOUT"
            elif not isinstance(part, OSError):
                raise part
        pids = {process.pid for process in ours}
        for name in self.names.get("/proc", ()):
            stat = self.files.get(f"/proc/{name}/stat", b"").rpartition(b")")[2].split()
            if len(stat) > 6 and int(name) not in pids and not int(stat[6]) & _PF_KTHREAD:
                try:
                    self._root.list_dir(f"/proc/{name}/fd", MAX_PROCESSES)
                    self.names[f"/proc/{name}/fd"] = ()  # none of them leads to a machine of KVM
                except OSError as error:
                    self._not_read(f"/proc/{name}/fd", error)
        self._groups("/proc/self")

    def _merge(self, part: _Taker) -> None:
        """Take over what another run took."""
        self._count(sum(map(len, part.files.values())), "/proc")
        self.files |= part.files
        self.links |= part.links
        self.folders |= part.folders
        self.names |= part.names
        self.status |= part.status
        self.unread |= part.unread
        self.filtered |= part.filtered

    def process(self, pid: int, start_time: int) -> None:
        """One emulator or helper.

        Raises:
            ProcessLookupError: it ended meanwhile, or is another one by now.
        """
        base = f"/proc/{pid}"
        for take in VM_PROCESS:
            self.take(msgspec.structs.replace(take, pattern=take.pattern.replace("PID", str(pid))))
        try:
            is_same = parse_start_time(self._root.read_text(f"{base}/stat", 4096)) == start_time
        except (OSError, ValueError):
            is_same = False
        if not is_same:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), base)
        self._groups(base)

    def _groups(self, process: str) -> None:
        """Files of the groups that a process is in, and of those above."""
        try:
            groups = parse_cgroup(self.files[f"{process}/cgroup"].decode("utf-8", "backslashreplace"))
        except (KeyError, ValueError):
            return
        for controllers, group in groups.items():
            if ".." in group.split("/"):
                continue
            tops = (CGROUP_TOP, f"{CGROUP_TOP}/unified") if not controllers else self._mounts_of(controllers)
            for top in tops:
                self._up(top, group)

    def _mounts_of(self, controller: str) -> list[str]:
        names = self._list(CGROUP_TOP)
        return [f"{CGROUP_TOP}/{name}" for name in names if controller.removeprefix("name=") in name.split(",")]

    def _up(self, top: str, group: str) -> None:
        directory = f"{top}{group}".rstrip("/")
        for _level in range(_CGROUP_DEPTH):
            if self._is_folder(directory):
                for name in CGROUP_FILES:
                    self._one(Take(Kind.CONTENT, ""), f"{directory}/{name}")
            if len(directory) <= len(top):
                return
            directory = directory.rpartition("/")[0]


def _one_process(root: Root, pid: int, start_time: int) -> _Taker:
    """What is taken of one process, by itself: a run that never ends is left behind with whatever it takes."""
    part = _Taker(root)
    part.process(pid, start_time)
    return part
