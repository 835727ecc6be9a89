"""The decision log's file: appended to under a lock, on disk before what it says happens.

    data/key-release/decisions.jsonl    0600; one signed entry a line
    data/key-release/lock               held while a server runs: two would write two chains

A line that a crash cut off was never acted upon: it is removed at the next start, which the log then says. Entries that
anybody can cause (refusals) are bounded to so many a minute, those that are left out are counted in the next one.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from casemate.engine import files
from casemate.engine.keys import HostKey, load_or_create_key
from casemate.engine.paths import own_directory
from casemate.errors import HostError, InputError
from casemate.evidence.record import ChainLink, sha256_hex
from casemate.release.decisions import (
    LINE_MAX_BYTES,
    Because,
    Decision,
    clip,
    clip_reasons,
    link_of,
    sign,
    verify_line,
    verify_lines,
)

REFUSALS_PER_MINUTE: Final = 60
_ALWAYS: Final = frozenset({"started", "released", "attested"})
_MINUTE_S: Final = 60.0


def directory_of(data: str) -> str:
    """Where the log lies below a data directory."""
    return f"{data}/key-release"


class DecisionLog:
    """The log of one running server. Safe to use from several threads. Close it after use."""

    def __init__(self, data: str) -> None:
        """Take the lock, check the end of the chain, repair a cut line.

        Raises:
            HostError: another server holds it, it cannot be written, or its last entry is not one that we signed.
        """
        own_directory(directory_of(data))
        lock = files.take_lock(f"{directory_of(data)}/lock", wait=False)
        if lock is None:
            raise HostError(
                "another casemate serve-keys writes this host's decision log", next_step="end that one first"
            )
        self._lock_descriptor = lock
        self._lock = threading.Lock()
        self._window: dict[str, tuple[float, int]] = {}
        self._suppressed: dict[str, int] = {}
        try:
            self._key: HostKey = load_or_create_key(Path(data))
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._file = os.open(f"{directory_of(data)}/decisions.jsonl", flags, 0o600)
            try:
                self._link, cut = _end_of(self._file, self._key.public)
            except BaseException:
                os.close(self._file)
                raise
        except BaseException:
            os.close(lock)
            raise
        if cut:
            self.write(
                "failed", reasons=[Because("log.cut", f"{cut} bytes of an entry cut off by a crash were removed")]
            )

    @property
    def private_key(self) -> Any:
        """The host's signing key, for tokens."""
        return self._key.private

    def close(self) -> None:
        """Say what was left out since the last entry; release file and lock."""
        for event in list(self._suppressed):
            self._window.pop(event, None)
            self.write(event, reasons=[Because("suppressed", "the server ended; so many entries were left out")])
        with self._lock:
            os.close(self._file)
            self._file = -1
            os.close(self._lock_descriptor)

    def write(
        self,
        event: str,
        *,
        peer: str = "",
        session: str = "",
        tee: str = "",
        resource: str = "",
        reasons: list[Because] | tuple[Because, ...] = (),
        claims: dict[str, str | int | bool] | None = None,
        evidence_sha256: str = "",
    ) -> None:
        """Append one entry and wait until it is on disk.

        Raises:
            HostError: it cannot be written: what it is about must not happen.
        """
        with self._lock:
            if event not in _ALWAYS and not self._within_budget(event):
                self._suppressed[event] = self._suppressed.get(event, 0) + 1
                return
            decision = Decision(
                sequence=self._link.sequence + 1,
                previous=self._link.sha256,
                key_sha256=sha256_hex(self._key.public),
                at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                event=event,  # type: ignore[arg-type]  # ours; what is read back is checked
                peer=clip(peer),
                session=session,
                tee=clip(tee),
                resource=clip(resource),
                reasons=clip_reasons(reasons),
                claims={
                    clip(name): clip(value) if isinstance(value, str) else value
                    for name, value in (claims or {}).items()
                },
                evidence_sha256=evidence_sha256,
                suppressed=self._suppressed.pop(event, 0),
            )
            line = sign(decision, self._key.private)
            self._append(line + b"\n")
            self._link = link_of(line, decision)

    def _within_budget(self, event: str) -> bool:
        now = time.monotonic()
        start, count = self._window.get(event, (now, 0))
        if now - start >= _MINUTE_S:
            start, count = now, 0
        self._window[event] = (start, count + 1)
        return count < REFUSALS_PER_MINUTE

    def _append(self, line: bytes) -> None:
        if self._file < 0:
            raise HostError("the decision log is closed", got="a request while the server ended")
        before = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) != len(line):
                raise OSError(28, "no space left for the whole entry")
            os.fsync(self._file)
        except OSError as fault:
            os.ftruncate(self._file, before)
            raise HostError("the decision log cannot be written", got=fault.strerror or str(fault)) from fault


def read_log(data: str, public_key: bytes) -> Iterator[Decision]:
    """All entries of a log, verified from its first on.

    Raises:
        InputError: there is none, or an entry is faulty.
    """
    path = f"{directory_of(data)}/decisions.jsonl"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as fault:
        raise InputError(f"the decision log {path}", got=(fault.strerror or str(fault)).lower()) from None
    with os.fdopen(descriptor, "rb") as file:
        yield from verify_lines(_lines(file), public_key)


def _lines(file: Any) -> Iterator[bytes]:
    while line := file.readline(LINE_MAX_BYTES + 2):
        yield line.rstrip(b"\n")


def _end_of(descriptor: int, public_key: bytes) -> tuple[ChainLink, int]:
    """(the chain's end, bytes of a cut last line that were removed)."""
    size = os.fstat(descriptor).st_size
    if size == 0:
        return ChainLink(), 0
    start = max(0, size - 2 * LINE_MAX_BYTES)
    tail = os.pread(descriptor, size - start, start)
    whole = tail.rfind(b"\n") + 1
    cut = len(tail) - whole
    last = tail[:whole].rstrip(b"\n").rpartition(b"\n")[2]
    try:
        if cut > LINE_MAX_BYTES:
            raise InputError("the last line", got="more bytes than one entry has", expected=f"at most {LINE_MAX_BYTES}")
        end = link_of(last, verify_line(last, public_key)) if whole else ChainLink()
    except InputError as error:
        raise HostError(
            "the decision log ends in an entry that this host's key did not sign",
            got=error.got,
            next_step="casemate serve-keys --check-log shows how far it holds; move it away to begin a new one",
        ) from None
    if cut:
        os.ftruncate(descriptor, size - cut)
    return end, cut
