"""Digests of what was copied into the emulator's root, computed beside its start-up.

The copies lie on a tmpfs that was sealed read-only before exec: nobody can change them any more, so it does not matter
that the emulator may have read them before we have. The thread is joined before the verdict, and so before `cont`.
"""

from __future__ import annotations

import hashlib
import os
import threading

from casemate.errors import RefusedError, VmError
from casemate.jail.policy import CopyFile, Wall
from casemate.jail.spawn import Spawned


class CopyDigests:
    """SHA-256 of every copied file of one wall, in one thread."""

    def __init__(self, spawned: Spawned, wall: Wall) -> None:
        self._copies = [entry for entry in wall.root if isinstance(entry, CopyFile)]
        self._root = f"/proc/{spawned.pid}/root"
        self._found: dict[str, str] = {}
        self._fault: OSError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def begin(self) -> None:
        """Start hashing. Best when the emulator's loader is through: until then both cores are busy."""
        self._thread.start()

    def result(self, expected: dict[str, str]) -> dict[str, str]:
        """Role -> digest, once all are known.

        Args:
            expected: role -> SHA-256 that somebody promised; roles without a promise are only recorded.

        Raises:
            RefusedError: a copy is not what was promised (control img.hash).
            VmError: a copy could not be read.
        """
        if self._thread.ident is None:
            raise RuntimeError("CopyDigests: result() before begin()")
        self._thread.join()
        if self._fault is not None:
            raise VmError("what was copied into the root cannot be read back", got=str(self._fault)) from self._fault
        for role, digest in expected.items():
            if self._found.get(role) != digest:
                raise RefusedError(
                    "img.hash",
                    f"{role} is not the file that was promised",
                    got=f"sha256 {self._found.get(role)}",
                    expected=f"sha256 {digest}",
                    next_step="find out who writes to that file; for the built-in guest, remove it from the cache",
                )
        return dict(self._found)

    def wait(self) -> None:
        """Only wait for the thread: it must not outlive the launch, whatever came of it."""
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            for entry in self._copies:
                digest = hashlib.sha256()
                descriptor = os.open(self._root + entry.target, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    while chunk := os.read(descriptor, 1 << 20):
                        digest.update(chunk)
                finally:
                    os.close(descriptor)
                self._found[entry.role] = digest.hexdigest()
        except OSError as fault:
            self._fault = fault
