"""Files of an image onto this host: only below one fresh directory, only plain ones, bounded.

Every name comes from the image. Each component is checked, each open is ``openat2(RESOLVE_BENEATH |
RESOLVE_NO_SYMLINKS)`` relative to the directory's descriptor, each file is new (O_EXCL): neither ``..``, a name that
comes twice, nor a link made a moment ago leads anywhere else. No setuid or setgid bit, no write bit for others, no
owner but the caller, no device nodes and FIFOs unless they are asked for by their ugly name.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator

import msgspec

from casemate.cell.model import ENTRIES_MAX, Entry, Piece
from casemate.errors import HostError, InputError
from casemate.sys.openat2 import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

MAX_BYTES = 64 << 30
_NAME_MAX_BYTES = 255
_SKIPPED_MAX = 10_000
_BENEATH = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
_KINDS = {stat.S_IFCHR: "character device", stat.S_IFBLK: "block device", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}


class Skipped(msgspec.Struct, frozen=True):
    """A file that was not copied, and why."""

    path: bytes
    why: str


class Copied(msgspec.Struct):
    """What a copy did; ``skipped`` names the first ones, ``skipped_more`` counts the rest.

    ``unread`` counts those that the image could not give, whole or in part: they are not left out on purpose.
    """

    files: int = 0
    directories: int = 0
    links: int = 0
    bytes: int = 0
    skipped: list[Skipped] = []
    skipped_more: int = 0
    unread: int = 0


class Limits(msgspec.Struct, frozen=True):
    """Bounds of one copy, and what it makes besides files and directories.

    ``outward_links``: also links that lead out of the directory. ``device_nodes``: devices and FIFOs, as root.
    """

    max_bytes: int = MAX_BYTES
    max_files: int = ENTRIES_MAX
    outward_links: bool = False
    device_nodes: bool = False


def fresh_directory(path: str) -> int:
    """Make ``path`` (0700), or take it when it is an empty directory of the caller's; its descriptor.

    Raises:
        InputError: it is something else, or its parent is missing.
    """
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise InputError(f"the directory {path}", got=(error.strerror or "").lower()) from error
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"the directory {path}", got=(error.strerror or "").lower()) from error
    try:
        if os.listdir(descriptor):
            raise InputError(
                f"the directory {path} is not empty",
                expected="a new or empty one: nothing of an image is written over files of yours",
            )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def safe_parts(path: bytes) -> list[bytes] | None:
    """The components of a path of the image's, or None when it must not become one on this host."""
    parts = path.split(b"/")
    if any(part in {b"", b".", b".."} or b"\0" in part or len(part) > _NAME_MAX_BYTES for part in parts):
        return None
    return parts


def leads_out(parts: list[bytes], target: bytes) -> bool:
    """Whether a link at ``parts`` leads out of the directory, by its text alone."""
    if target.startswith(b"/") or not target:
        return True
    rest = [part for part in target.split(b"/") if part not in {b"", b"."}]
    climbs = next((at for at, part in enumerate(rest) if part != b".."), len(rest))
    # Directories above a link are real ones: climbing from it is exact. Past its first name there may be other links.
    return climbs > len(parts) - 1 or b".." in rest[climbs:]


class Copier:
    """Writes what a walk gives. ``base``: descriptor of the directory, the caller's."""

    def __init__(
        self, base: int, limits: Limits, progress: Callable[[int, int], None] = lambda files, done: None
    ) -> None:
        self._base = base
        self._limits = limits
        self._progress = progress
        self._count = 0
        self._file = -1
        self._position = 0
        self._mtime_s = 0
        self._path = b""
        self._late: list[tuple[bytes, int, int]] = []
        self.copied = Copied()

    def take(self, items: Iterator[Entry | Piece], prefix: bytes) -> None:
        """Everything of one walk, below ``prefix`` (may be empty).

        Raises:
            InputError: a bound is reached. HostError: the directory cannot be written.
        """
        try:
            for item in items:
                if isinstance(item, Piece):
                    self._write(item)
                    continue
                self._close()
                path = b"/".join(part for part in (prefix, item.path) if part)
                self.add(msgspec.structs.replace(item, path=path))
        finally:
            self._close()

    def finish(self) -> Copied:
        """Directories get their modes last: a read-only one could not have been filled."""
        for path, mode, mtime_s in reversed(self._late):
            try:
                descriptor = self._open(path, os.O_RDONLY | os.O_DIRECTORY)
            except OSError:
                continue
            try:
                os.fchmod(descriptor, mode)
                _set_time(descriptor, mtime_s)
            finally:
                os.close(descriptor)
        return self.copied

    def add(self, entry: Entry) -> None:
        """Make one entry; the content of a file follows with `take`."""
        self._count += 1
        if self._count > self._limits.max_files:
            raise InputError(
                "the image holds more files than may be copied", expected=f"{self._limits.max_files} at most"
            )
        parts = safe_parts(entry.path)
        if parts is None:
            self._skip(entry, "a name that leads elsewhere")
        elif entry.error:
            self.copied.unread += 1
            self._skip(entry, f"cannot be read: {os.strerror(entry.error).lower()}")
        else:
            try:
                self._make(entry, parts)
            except OSError as error:
                if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}:
                    raise HostError("the copy cannot be written", got=error.strerror or "") from error
                self._skip(entry, (error.strerror or str(error)).lower())
        self._progress(self._count, self.copied.bytes)

    def _make(self, entry: Entry, parts: list[bytes]) -> None:
        kind = stat.S_IFMT(entry.mode)
        if kind == stat.S_IFREG:
            if entry.size_bytes > self._limits.max_bytes - self.copied.bytes:
                self._too_much()
            self._file = self._open(entry.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            self._position = 0
            os.fchmod(self._file, entry.mode & 0o755 | 0o600)
            self._mtime_s, self._path = entry.mtime_s, entry.path
            self.copied.files += 1
            return
        parent = self._open(b"/".join(parts[:-1]) or b".", os.O_PATH | os.O_DIRECTORY)
        try:
            if kind == stat.S_IFDIR:
                os.mkdir(parts[-1], 0o700, dir_fd=parent)
                self._late.append((entry.path, entry.mode & 0o755 | 0o700, entry.mtime_s))
                self.copied.directories += 1
            elif kind == stat.S_IFLNK:
                if leads_out(parts, entry.target) and not self._limits.outward_links:
                    self._skip(entry, "a link that may lead out of the directory")
                    return
                os.symlink(entry.target, parts[-1], dir_fd=parent)
                self.copied.links += 1
            elif self._limits.device_nodes and kind in {stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO}:
                os.mknod(parts[-1], kind | 0o600, os.makedev(*entry.device), dir_fd=parent)
                self.copied.files += 1
            else:
                self._skip(entry, f"a {_KINDS.get(kind, 'file of an unknown kind')}")
        finally:
            os.close(parent)

    def _open(self, path: bytes, flags: int, mode: int = 0) -> int:
        return openat2(self._base, os.fsdecode(path), flags | os.O_NOFOLLOW, _BENEATH, mode)

    def _write(self, piece: Piece) -> None:
        if self._file < 0:
            return  # its file was skipped
        self.copied.bytes += len(piece.data)
        if self.copied.bytes > self._limits.max_bytes:
            self._too_much()
        try:
            if piece.data and any(piece.data):
                view = memoryview(piece.data)
                while view:
                    done = os.pwrite(self._file, view, self._position)
                    view, self._position = view[done:], self._position + done
            elif piece.data:  # a hole stays one
                self._position += len(piece.data)
                os.ftruncate(self._file, self._position)
        except OSError as error:
            raise HostError("the copy cannot be written", got=error.strerror or "") from error
        if piece.error:
            self.copied.unread += 1
            why = f"only its first {self._position} bytes: {os.strerror(piece.error).lower()}"
            self._note(self._path, why)

    def _close(self) -> None:
        if self._file >= 0:
            _set_time(self._file, self._mtime_s)
            os.close(self._file)
            self._file = -1

    def _skip(self, entry: Entry, why: str) -> None:
        self._note(entry.path, why)

    def _note(self, path: bytes, why: str) -> None:
        if len(self.copied.skipped) < _SKIPPED_MAX:
            self.copied.skipped.append(Skipped(path, why))
        else:
            self.copied.skipped_more += 1

    def _too_much(self) -> None:
        raise InputError(
            "the image holds more bytes than may be copied",
            expected=f"{self._limits.max_bytes} at most",
            next_step="--max-size allows more; what was copied so far stays",
        )


def _set_time(descriptor: int, mtime_s: int) -> None:
    try:
        os.utime(descriptor, ns=(mtime_s * 10**9, mtime_s * 10**9))
    except (OSError, OverflowError):
        return  # a time that this file system has not
