"""A Root that notes every question it is asked: which paths the readers of facts look at, and how."""

from __future__ import annotations

import os
from pathlib import Path

from casemate.facts.root import DEFAULT_LIST_ENTRIES, Root


class RecordingRoot(Root):
    """Answers as the Root it wraps. ``asked``: (operation, path) of each question, where operation is ``content``,
    ``names``, ``exists``,
    ``stat``, ``lstat``, ``link`` or ``real``."""

    def __init__(self, inner: Root) -> None:
        super().__init__(inner.base)
        self.is_live = inner.is_live
        self._inner = inner
        self.asked: set[tuple[str, str]] = set()

    def _note(self, operation: str, path: str | Path) -> None:
        self.asked.add((operation, str(path)))

    def host_path(self, path: str | Path) -> Path:
        return self._inner.host_path(path)

    def open(self, path: str | Path, flags: int) -> int:
        if flags & os.O_PATH:
            self._note("stat", path)
        else:
            self._note("names" if flags & os.O_DIRECTORY else "content", path)
        return self._inner.open(path, flags)

    def open_regular(self, path: str | Path) -> int:
        self._note("content", path)
        return self._inner.open_regular(path)

    def list_dir(self, path: str | Path, limit: int = DEFAULT_LIST_ENTRIES) -> tuple[str, ...]:
        self._note("names", path)
        return self._inner.list_dir(path, limit)

    def stat(self, path: str | Path, *, follow: bool = True) -> os.stat_result:
        self._note("stat" if follow else "lstat", path)
        return self._inner.stat(path, follow=follow)

    def exists(self, path: str | Path) -> bool:
        self._note("exists", path)
        return self._inner.exists(path)

    def noted_stat(self, path: str | Path) -> os.stat_result | None:
        self._note("stat", path)
        return self._inner.noted_stat(path)

    def readlink(self, path: str | Path) -> str:
        self._note("link", path)
        return self._inner.readlink(path)

    def real_path(self, path: str | Path) -> str:
        self._note("real", path)
        return self._inner.real_path(path)

    def free_bytes(self, path: str | Path) -> int:
        self._note("stat", path)
        return self._inner.free_bytes(path)
