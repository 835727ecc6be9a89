"""What the steps of a wall share: their inputs from outside, and what they observed of themselves."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Protocol


class Hasher:
    """SHA-256 in a thread of its own: hashing and copying each take a core. The thread is gone after `hexdigest`."""

    def __init__(self) -> None:
        self._chunks: SimpleQueue[bytes] = SimpleQueue()
        self._digest = hashlib.sha256()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def feed(self, chunk: bytes) -> None:
        """The next piece; an empty one ends it."""
        self._chunks.put(chunk)

    def hexdigest(self) -> str:
        """Wait for the thread and give the digest."""
        self._thread.join()
        return self._digest.hexdigest()

    def _run(self) -> None:
        while chunk := self._chunks.get():
            self._digest.update(chunk)


@dataclass
class Context:
    """What the steps need from outside: descriptors by role, a place to mount on, and the parent's ear.

    Attributes:
        sources: role -> descriptor, for CopyFile and for the final descriptor numbers.
        staging: an existing directory on which the new root is mounted, in the child's mount namespace only.
        ask_parent: sends one letter and waits for the answer (``M``: write my id maps).
        digests: role -> SHA-256 of what CopyFile copied; filled by the steps.
        notes: what the steps observed of themselves, e.g. the Landlock ABI in force.
    """

    sources: dict[str, int]
    staging: str
    ask_parent: Callable[[str], None]
    digests: dict[str, str] = field(default_factory=dict)
    hashers: dict[str, Hasher] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


class Step(Protocol):
    """One thing done to the calling process."""

    def describe(self) -> str:
        """One line in plain words."""

    def apply(self, context: Context) -> None:
        """Do it, or raise OSError."""
