"""A file tree that is in memory: what was captured on another host, with a word on whatever was not.

Links are followed as the kernel would inside that tree: absolute ones from its top, ``..`` never above it. Three kinds
of absence are kept apart, because only the first proves anything:

- it was looked for and was not there: ENOENT;
- it was there and could not be read: the error of then;
- nobody looked for it: ENODATA.
"""

from __future__ import annotations

import errno
import os
import re
import stat as stat_module
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final

import msgspec

from casemate.facts.root import DEFAULT_LIST_ENTRIES, DEFAULT_READ_BYTES, Root

_LINKS_MAX: Final = 40
_STEPS_MAX: Final = 2048
_PATTERNS_MAX: Final = 4096
_PATTERN_BYTES: Final = 1024
_PATH_BYTES: Final = 8192
_KNOWN_MAX: Final = 4096
_KNOWN_CHARS: Final = 128
_NOWHERE: Final = Path("/dev/null/captured")
_NOT_CAPTURED: Final = "not in the capture"

Noted = tuple[int, int, int, int, int, int, int]
"""mode, uid, gid, rdev, dev, inode, size."""


class MemoryTree(msgspec.Struct, frozen=True):
    """``files``: content by path; ``links``: text; ``folders``: every directory above any of them, and more; ``names``:
    directories whose names were all noted; ``status``: what stat(2) said, links followed; ``unread``: errno by path;
    ``looked_for``: patterns of what was looked for (``*`` within a name, ``**`` across). ``time_s``: Unix time.
    ``answers``: of programs, by the name of the answer."""

    files: Mapping[str, bytes]
    links: Mapping[str, str]
    folders: frozenset[str] | set[str]
    names: Mapping[str, tuple[str, ...]]
    status: Mapping[str, Noted]
    unread: Mapping[str, int]
    looked_for: tuple[str, ...]
    time_s: float
    answers: Mapping[str, str] = {}


class MemoryRoot(Root):
    """A Root over a `MemoryTree`. Nothing of it is on a disk, so it has no path that could be opened."""

    def __init__(self, tree: MemoryTree, name: str) -> None:
        super().__init__(_NOWHERE)
        self.name = name
        self.keeps_errors = True
        self._tree = tree
        self._files = tree.files
        self._covered: tuple[re.Pattern[str], dict[str, bool]] | None = None
        self._sets: dict[str, frozenset[str]] = {}
        self._plain: set[str] = set()
        """Directories that no link is on the way to."""

    def __repr__(self) -> str:
        return f"MemoryRoot({self.name!r})"

    def paths(self, start: str) -> Iterator[str]:
        """Paths of all files whose content is here, below ``start``."""
        return (path for path in self._files if path.startswith(start))

    def now_s(self) -> float:
        """The time of the capture."""
        return self._tree.time_s

    def open(self, path: str | Path, flags: int) -> int:
        """Only regular files, for reading.

        Raises:
            OSError: EOPNOTSUPP for anything else.
        """
        if flags & (os.O_ACCMODE | os.O_DIRECTORY | os.O_PATH):
            raise OSError(errno.EOPNOTSUPP, "not possible in a capture", str(path))
        return self.open_regular(path)

    def open_regular(self, path: str | Path) -> int:
        """A file in memory with the content. The caller owns the result."""
        data = self._content(str(path))
        descriptor = os.memfd_create("captured", os.MFD_CLOEXEC)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.lseek(descriptor, 0, os.SEEK_SET)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def read_bytes(self, path: str | Path, limit_bytes: int = DEFAULT_READ_BYTES) -> bytes:
        """As `Root.read_bytes`."""
        data = self._content(str(path))
        if len(data) > limit_bytes:
            raise OSError(errno.EFBIG, f"larger than {limit_bytes} bytes", str(path))
        return data

    def read_head(self, path: str | Path, limit_bytes: int) -> bytes:
        """As `Root.read_head`."""
        return self._content(str(path))[:limit_bytes]

    def list_dir(self, path: str | Path, limit: int = DEFAULT_LIST_ENTRIES) -> tuple[str, ...]:
        """Names as they were noted; a directory whose names were not all noted has no list."""
        where = self._resolved(str(path))
        names = self._tree.names.get(where)
        if names is None:
            if where in self._tree.folders and where not in self._tree.unread:
                raise OSError(errno.ENODATA, _NOT_CAPTURED, str(path))
            if where in self._files:
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
            raise self._missing(where, str(path))
        if len(names) > limit:
            raise OSError(errno.EFBIG, f"more than {limit} entries", str(path))
        return tuple(sorted(names))

    def stat(self, path: str | Path, *, follow: bool = True) -> os.stat_result:
        """Type, mode and owner where they were noted.

        Raises:
            OSError: ENODATA for what is there and of which nobody noted them.
        """
        text = str(path)
        where = text if text in self._tree.status else self._resolved(text, follow=follow)
        if not follow and where in self._tree.links:
            return _stat_result((stat_module.S_IFLNK | 0o777, 0, 0, 0, 0, 0, 0))
        noted = self._tree.status.get(where)
        if noted is not None:
            return _stat_result(noted)
        if self._is_there(where):
            raise OSError(errno.ENODATA, f"owner and mode are {_NOT_CAPTURED}", text)
        raise self._missing(where, text)

    def noted_stat(self, path: str | Path) -> os.stat_result | None:
        """What stat(2) said of a link of /proc; None when nobody noted it."""
        noted = self._tree.status.get(str(path))
        return None if noted is None else _stat_result(noted)

    def exists(self, path: str | Path) -> bool:
        """As `Root.exists`.

        Raises:
            OSError: nobody looked, or it could not be known then.
        """
        text = str(path)
        if text in self._files or text in self._tree.folders or text in self._tree.status:
            return True
        where = self._resolved(text)
        if self._is_there(where):
            return True
        error = self._missing(where, text)
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            return False
        raise error

    def present(self, directory: str, names: Iterable[str]) -> list[str]:
        """As `Root.present`; a directory whose names were noted answers at once."""
        listed = self._listed(directory)
        if listed is None:
            return super().present(directory, names)
        return [name for name in names if name in listed]

    def readlink(self, path: str | Path) -> str:
        """As `Root.readlink`."""
        where = self._resolved(str(path), follow=False)
        found = self._tree.links.get(where)
        if found is not None:
            return found
        if self._is_there(where):
            raise OSError(errno.EINVAL, "no symbolic link", str(path))
        raise self._missing(where, str(path))

    def real_path(self, path: str | Path) -> str:
        """As `Root.real_path`."""
        where = self._resolved(str(path))
        if not self._is_there(where):
            raise self._missing(where, str(path))
        return where

    def answer(self, name: str) -> str | None:
        """As it was given then."""
        return self._tree.answers.get(name)

    def free_bytes(self, path: str | Path) -> int:
        """Never known.

        Raises:
            OSError: always.
        """
        raise OSError(errno.ENODATA, _NOT_CAPTURED, str(path))

    def _content(self, path: str) -> bytes:
        data = self._files.get(path)
        if data is not None:
            return data
        where = self._resolved(path)
        data = self._files.get(where)
        if data is not None:
            return data
        if where in self._tree.folders or where in self._tree.names:
            raise OSError(errno.EINVAL, "not a regular file", path)
        raise self._missing(where, path)

    def _is_there(self, where: str) -> bool:
        """Whether something of this name was there, whatever was taken of it."""
        tree = self._tree
        if where in self._files or where in tree.folders or where in tree.status or where in tree.names:
            return True
        if where in tree.links:
            return True
        parent, _, name = where.rpartition("/")
        listed = self._listed(parent or "/")
        return listed is not None and name in listed

    def _listed(self, folder: str) -> frozenset[str] | None:
        """The names of a directory; None when they were not noted."""
        found = self._sets.get(folder)
        if found is None and folder in self._tree.names:
            found = self._sets[folder] = frozenset(self._tree.names[folder])
        return found

    def _missing(self, where: str, asked: str) -> OSError:
        """Why there is nothing to give at ``where``, which is not in the tree or was not taken."""
        above = where if self._tree.unread else ""
        while above:
            number = self._tree.unread.get(above)
            if number is not None:
                return OSError(number, os.strerror(number), asked)
            above = above.rpartition("/")[0]
        if self._is_absent(where):
            return OSError(errno.ENOENT, os.strerror(errno.ENOENT), asked)
        return OSError(errno.ENODATA, _NOT_CAPTURED, asked)

    def _is_absent(self, where: str) -> bool:
        """Whether it was looked for: it, a directory above it that is not there, or the names beside it."""
        if self._covered is None:
            self._covered = _coverage(self._tree.looked_for)
        covered, known = self._covered
        while where not in ("", "/"):
            is_covered = known.get(where)
            if is_covered is None:
                is_covered = covered.fullmatch(where) is not None
                if len(known) < _KNOWN_MAX and len(where) <= _KNOWN_CHARS:
                    known[where] = is_covered
            if is_covered:
                return True
            where, _, name = where.rpartition("/")
            listed = self._listed(where or "/")
            if listed is not None:
                return name not in listed
            if where in self._tree.folders or where in self._tree.status:
                return False
        return False

    def _resolved(self, path: str, *, follow: bool = True) -> str:
        """The path without links.

        Raises:
            OSError: ELOOP, ENAMETOOLONG.
        """
        links = self._tree.links
        parent, _, name = path.rpartition("/")
        if parent in self._plain and name not in ("", ".", "..") and (path not in links or not follow):
            return path
        if len(path) > _PATH_BYTES:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path[:200])
        todo = path.split("/")[::-1]
        done: list[str] = []
        followed = steps = 0
        while todo:
            part = todo.pop()
            steps += 1
            if steps > _STEPS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path[:200])
            if part in ("", "."):
                continue
            if part == "..":
                if done:
                    done.pop()
                continue
            done.append(part)
            where = "/" + "/".join(done)
            text = links.get(where)
            if text is None or (not todo and not follow):
                continue
            followed += 1
            if followed > _LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if text.startswith("/"):
                done = []
            else:
                done.pop()
            todo += text.split("/")[::-1]
        where = "/" + "/".join(done)
        if where == path and not followed:
            self._plain.add(parent)
        return where


def _stat_result(noted: Noted) -> os.stat_result:
    mode, uid, gid, rdev, dev, inode, size = noted
    return os.stat_result((mode, inode, dev, 1, uid, gid, size, 0, 0, 0), {"st_rdev": rdev})


@lru_cache(maxsize=16)
def _coverage(patterns: tuple[str, ...]) -> tuple[re.Pattern[str], dict[str, bool]]:
    """What patterns prove the absence of: what fits one, and every directory on the way to it. And what was found of
    paths: captures of one version look for the same, and the same paths are asked of each."""
    words: dict[str, None] = {}
    for pattern in patterns:
        parts = pattern.split("/")
        for count in range(2, len(parts) + 1):
            prefix = "/".join(parts[:count])
            if count == len(parts) or "*" not in prefix:
                words[_expression(prefix)] = None
    return re.compile("|".join(words) or r"(?!)"), {}


def _expression(pattern: str) -> str:
    """``**`` crosses names, ``*`` and ``[0-9]`` stay within one; everything else is meant literally.

    What stands before the last ``*`` of a name is matched once and for all, as it comes first: a pattern made to be
    slow is no slower than others.
    """
    return "/".join(_name(part) if part != "**" else ".*" for part in pattern.replace("**", "/**/").split("/")).replace(
        "/.*/", ".*"
    )


def _name(pattern: str) -> str:
    """One name of a pattern."""
    first, *others = (_literal(part) for part in pattern.split("*"))
    if not others:
        return first
    middle = "".join(f"(?>[^/]*?{part})" for part in others[:-1])
    return f"{first}{middle}[^/]*{others[-1]}"


def _literal(text: str) -> str:
    return "[0-9]".join(re.escape(part) for part in text.split("[0-9]"))


def patterns_of(looked_for: Iterable[str]) -> tuple[str, ...]:
    """The patterns of a manifest, without the letter for what was taken.

    Raises:
        ValueError: more of them, or longer ones, than anybody looks for.
    """
    found = tuple(dict.fromkeys(text.partition(" ")[2] for text in looked_for))
    if len(found) > _PATTERNS_MAX:
        raise ValueError(f"{len(found)} patterns")
    for pattern in found:
        if len(pattern) > _PATTERN_BYTES or pattern.count("/") > 64 or pattern.count("**") > 1:
            raise ValueError(f"pattern {pattern[:80]!r}")
    return found
