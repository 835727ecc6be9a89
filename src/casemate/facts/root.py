"""One bounded, read-only view of a file tree: this host's, a captured copy of another's, or a fake one.

Every reader of facts goes through it. With a base other than ``/`` the kernel resolves each path with that base as
its root (openat2 with RESOLVE_IN_ROOT), so that no symbolic link of a hostile tree leads out of it, and only regular
files are ever opened: a FIFO or a device node in a tree cannot stop us.
"""

from __future__ import annotations

import errno
import os
import stat as stat_module
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from casemate.facts.fact import Fact, Known, Unknown, Value
from casemate.sys.openat2 import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2

DEFAULT_READ_BYTES: Final = 1 << 20
DEFAULT_LIST_ENTRIES: Final = 16384
_CHUNK_BYTES: Final = 1 << 16


class Root:
    """A file tree below ``base``. Paths are absolute names inside the tree (``/proc/cmdline``)."""

    def __init__(self, base: Path | str = "/") -> None:
        self.base = Path(base)
        self.is_live = self.base == Path("/")
        self.cache: Path | None = None
        """Where what was worked out from large files may be kept for the next time, by the digest of their content."""
        self.keeps_errors = self.is_live
        """Whether an error is the one that the host's kernel gave, and not one of a copy of its files."""

    def __repr__(self) -> str:
        return f"Root({str(self.base)!r})"

    def now_s(self) -> float:
        """Unix time that ages in this tree are counted to; a capture knows its own."""
        return time.time()

    def host_path(self, path: str | Path) -> Path:
        """The name of ``path`` as this process would have to call it; for messages, not for opening."""
        return Path(path) if self.is_live else self.base / str(path).lstrip("/")

    def open(self, path: str | Path, flags: int) -> int:
        """Open ``path`` inside the tree; the caller owns the descriptor.

        Raises:
            OSError: with the path inside the tree.
        """
        if self.is_live:
            return os.open(path, flags | os.O_CLOEXEC)
        base_fd = os.open(self.base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return openat2(base_fd, str(path), flags, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
        finally:
            os.close(base_fd)

    @contextmanager
    def _opened(self, path: str | Path, flags: int) -> Iterator[int]:
        descriptor = self.open(path, flags)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def open_regular(self, path: str | Path) -> int:
        """Open a regular file for reading; never blocks on a FIFO and never opens a device. The caller owns the result.

        Raises:
            OSError: EINVAL when it is something other than a regular file.
        """
        if self.is_live:
            descriptor = self.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
            if not stat_module.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise OSError(errno.EINVAL, "not a regular file", str(path))
            return descriptor
        # Opening a device node has side effects, so look at what it is before the open that counts.
        with self._opened(path, os.O_PATH) as handle:
            if not stat_module.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", str(path))
            return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def read_bytes(self, path: str | Path, limit_bytes: int = DEFAULT_READ_BYTES) -> bytes:
        """The whole content of a regular file.

        Raises:
            OSError: EFBIG when it holds more than ``limit_bytes``; EINVAL when it is no regular file.
        """
        descriptor = self.open_regular(path)
        try:
            return read_all(descriptor, limit_bytes, str(path))
        finally:
            os.close(descriptor)

    def read_text(self, path: str | Path, limit_bytes: int = DEFAULT_READ_BYTES) -> str:
        """Like ``read_bytes``, as text; bytes that are not UTF-8 become ``\\xNN`` so that every later output works."""
        return self.read_bytes(path, limit_bytes).decode("utf-8", "backslashreplace")

    def read_head(self, path: str | Path, limit_bytes: int) -> bytes:
        """The beginning of a regular file that may be long.

        Raises:
            OSError: as `open_regular`.
        """
        descriptor = self.open_regular(path)
        try:
            parts: list[bytes] = []
            left = limit_bytes
            while left > 0 and (part := os.read(descriptor, left)):
                parts.append(part)
                left -= len(part)
            return b"".join(parts)
        finally:
            os.close(descriptor)

    def list_dir(self, path: str | Path, limit: int = DEFAULT_LIST_ENTRIES) -> tuple[str, ...]:
        """The sorted names in a directory.

        Raises:
            OSError: EFBIG when there are more than ``limit``.
        """
        names: list[str] = []
        with (
            self._opened(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK) as descriptor,
            os.scandir(descriptor) as entries,
        ):
            for entry in entries:
                if len(names) >= limit:
                    raise OSError(errno.EFBIG, f"more than {limit} entries", str(path))
                names.append(entry.name)
        return tuple(sorted(names))

    def stat(self, path: str | Path, *, follow: bool = True) -> os.stat_result:
        """stat(2), or lstat(2) when ``follow`` is false, inside the tree."""
        if self.is_live:
            return Path(path).stat(follow_symlinks=follow)
        with self._opened(path, os.O_PATH | (0 if follow else os.O_NOFOLLOW)) as descriptor:
            return os.fstat(descriptor)

    def noted_stat(self, path: str | Path) -> os.stat_result | None:
        """What stat(2) said of a link of /proc on the host of a captured tree; None where the link is only a text.

        Raises:
            OSError: it could not be looked at.
        """
        return self.stat(path) if self.is_live else None

    def exists(self, path: str | Path) -> bool:
        """Whether ``path`` leads to something.

        Raises:
            OSError: when that cannot be known (EACCES, ELOOP).
        """
        try:
            self.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def present(self, directory: str, names: Iterable[str]) -> list[str]:
        """Those of the names that lead to something in the directory.

        Raises:
            OSError: as `exists`.
        """
        return [name for name in names if self.exists(f"{directory}/{name}")]

    def readlink(self, path: str | Path) -> str:
        """The text of a symbolic link, as it stands in the tree."""
        if self.is_live:
            return os.readlink(path)  # noqa: PTH115  Path would lose a trailing slash or dot
        with self._opened(path, os.O_PATH | os.O_NOFOLLOW) as descriptor:
            return os.readlink("", dir_fd=descriptor)

    def real_path(self, path: str | Path) -> str:
        """``path`` without symbolic links, as an absolute name inside the tree.

        Raises:
            OSError: when it does not exist.
        """
        if self.is_live:
            return os.path.realpath(path, strict=True)
        with self._opened(path, os.O_PATH) as descriptor:
            found = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115  text, not a Path
        relative = os.path.relpath(found, os.path.realpath(self.base))
        return "/" if relative == "." else f"/{relative}"

    def answer(self, name: str) -> str | None:
        """What a program said on the host of a captured tree; None where it was not asked, or may be asked itself."""
        return None

    def free_bytes(self, path: str | Path) -> int:
        """Bytes that an unprivileged writer could still write on the file system of ``path``."""
        with self._opened(path, os.O_PATH) as descriptor:
            numbers = os.fstatvfs(descriptor)
        return numbers.f_bavail * numbers.f_frsize

    def fact(
        self, path: str | Path, parse: Callable[[str], Value], name: str = "", limit_bytes: int = DEFAULT_READ_BYTES
    ) -> Fact:
        """Read and parse one file into a fact; whatever goes wrong becomes Unknown with the reason.

        Args:
            path: file inside the tree.
            parse: text to value; a ValueError, KeyError or IndexError of it means "not understood".
            name: the field inside the file, for the source (``/proc/812/status: Seccomp``).
            limit_bytes: bound of the read.
        """
        source = f"{path}: {name}" if name else str(path)
        try:
            return Known(parse(self.read_text(path, limit_bytes)), source)
        except OSError as error:
            return Unknown(f"{source}: {error.strerror or error}")
        except (ValueError, KeyError, IndexError) as error:
            return Unknown(f"{source}: not understood ({error})")


class PartRoot(Root):
    """A tree of which only one directory is at hand, for example a copy of ``/etc/libvirt``.

    Args:
        base: that directory. at: its name on the host.
    """

    def __init__(self, base: Path | str, at: str) -> None:
        super().__init__(base)
        self._at = at
        self.is_live = False

    def open(self, path: str | Path, flags: int) -> int:
        """As `Root.open`.

        Raises:
            OSError: ENODATA for whatever lies elsewhere: nobody can say what was there.
        """
        text = str(path)
        if text != self._at and not text.startswith(f"{self._at}/"):
            raise OSError(errno.ENODATA, f"only {self._at} is at hand", text)
        return super().open(text[len(self._at) :] or "/", flags)


def read_all(descriptor: int, limit_bytes: int, what: str) -> bytes:
    """Read a descriptor to its end, at most ``limit_bytes``.

    Raises:
        OSError: EFBIG, with ``what`` as its name, when there is more.
    """
    parts: list[bytes] = []
    left = limit_bytes + 1
    while left > 0:
        part = os.read(descriptor, min(left, _CHUNK_BYTES))
        if not part:
            return b"".join(parts)
        parts.append(part)
        left -= len(part)
    raise OSError(errno.EFBIG, f"larger than {limit_bytes} bytes", what)
