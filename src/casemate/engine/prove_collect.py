"""The parent's side of a running probe: its lines and its log, each read in bounded pieces, with one deadline.

What comes out of the wall is hostile: lines have a length, their number is known, and the log is kept as a supervisor
keeps it, in a ring on disk and a short tail in memory.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from casemate.engine.ringlog import RingLog
from casemate.engine.startup import LOG_KEEP_BYTES
from casemate.errors import VmError
from casemate.jail.policy import IdentityMode, Layer, Wall
from casemate.jail.probe.judge_sight import Seen
from casemate.jail.probe.model import Attempt, Record, Sight
from casemate.jail.probe.prover import LINE_MAX_BYTES, Line
from casemate.jail.probe.raw import IN_CALL
from casemate.jail.spawn import Spawned

Progress = Callable[[int, int, str], None]
LOG_MAX_BYTES: Final = 256 * 1024
DEADLINE_S: Final = 90.0
"""Of a whole probe: on a quiet host it takes a few seconds."""
_PIECE: Final = 65536
_PROGRESS_EVERY: Final = 16
_NAMESPACES: Final = (
    *((name, Layer.NAMESPACES) for name in ("pid", "net", "ipc", "uts")),
    ("mnt", None),
    ("cgroup", None),
)


@dataclass
class Collected:
    """What came out of the wall. ``log_kept_bytes``: the larger of what disk and memory hold of the log."""

    sight: Sight
    records: dict[str, Record]
    seen: tuple[Seen, ...]
    notes: tuple[str, ...]
    log_kept_bytes: int
    log_bound_bytes: int


@dataclass
class _Reader:
    """Lines in, records out."""

    attempts: tuple[Attempt, ...]
    records: dict[str, Record] = field(default_factory=dict)
    sight: Sight | None = None
    ended: bool = False
    _buffer: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> None:
        self._buffer += data
        while (at := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[:at])
            del self._buffer[: at + 1]
            self._take(line)
        if len(self._buffer) > LINE_MAX_BYTES:
            raise VmError("the probe sent a line without end", got=f"{len(self._buffer)} bytes")

    def _take(self, raw: bytes) -> None:
        try:
            line = msgspec.json.decode(raw, type=Line)
        except msgspec.MsgspecError as fault:
            raise VmError("the probe sent a line that makes no sense", got=str(fault)[:200]) from fault
        if line.error is not None:
            raise VmError("the probe failed inside the wall", got=line.error[:500])
        if line.sight is not None and self.sight is None:
            self.sight = line.sight
        elif line.record is not None and line.record.id == self.next_id():
            self.records[line.record.id] = line.record
        elif line.end is not None and self.next_id() is None:
            self.ended = True
        else:
            raise VmError("the probe sent a line out of order", got=repr(raw[:80]))

    def next_id(self) -> str | None:
        """The attempt under way."""
        return self._order[len(self.records)] if len(self.records) < len(self._order) else None

    def __post_init__(self) -> None:
        self._order = [attempt.id for attempt in self.attempts if not attempt.skip]


class _Log:
    """The log as a supervisor keeps it."""

    def __init__(self, directory: str, descriptor: int) -> None:
        self._path = f"{directory}/log"
        self._ring = RingLog(self._path, LOG_MAX_BYTES)
        self._fd = descriptor
        self._tail = bytearray()
        os.set_blocking(descriptor, False)

    def read(self) -> bool:
        """One piece; False at its end."""
        try:
            data = os.read(self._fd, _PIECE)
        except BlockingIOError:
            return True
        self._ring.append(data)
        self._tail += data
        del self._tail[:-LOG_KEEP_BYTES]
        return bool(data)

    def kept_bytes(self) -> int:
        """What is held now, on disk and in memory."""
        sizes = [os.stat(path).st_size for path in (self._path, f"{self._path}.1") if os.path.exists(path)]
        return sum(sizes) + len(self._tail)

    def close(self) -> None:
        """Close the ring; the descriptor is the caller's."""
        self._ring.close()


def collect(
    spawned: Spawned,
    results_fd: int,
    log_fd: int,
    directory: str,
    attempts: tuple[Attempt, ...],
    wall: Wall,
    progress: Progress | None,
) -> Collected:
    """Read until the prover is done.

    Raises:
        VmError: it died, made no sense, or ran out of time.
    """
    reader, log = _Reader(attempts), _Log(directory, log_fd)
    end = time.monotonic() + DEADLINE_S
    poller = select.poll()
    for descriptor in (results_fd, log_fd):
        poller.register(descriptor, select.POLLIN)
    groups = {attempt.id: attempt.group.value for attempt in attempts}
    seen: tuple[Seen, ...] | None = None
    notes: tuple[str, ...] = ()
    kept = shown = 0
    try:
        while not reader.ended:
            remaining = end - time.monotonic()
            if remaining <= 0:
                raise VmError(
                    "the probe did not finish in time", got=f"at {reader.next_id()}", expected=f"{DEADLINE_S:g} s"
                )
            for descriptor, _ in poller.poll(remaining * 1000):
                if descriptor == log_fd:
                    if not log.read():
                        poller.unregister(log_fd)
                elif not _read_results(reader, results_fd):
                    _account_for_death(reader, spawned)
            kept = max(kept, log.kept_bytes()) if reader.next_id() is not None else kept
            if seen is None and reader.sight is not None:
                seen, notes = _namespaces(spawned.pid, wall)
            if progress is not None and len(reader.records) - shown >= _PROGRESS_EVERY:
                shown = len(reader.records)
                progress(shown, len(attempts), groups.get(reader.next_id() or "", ""))
        kept = max(kept, log.kept_bytes())
    finally:
        log.close()
    if reader.sight is None:
        raise VmError("the probe never said what it saw")
    return Collected(reader.sight, reader.records, seen or (), notes, kept, LOG_MAX_BYTES + LOG_KEEP_BYTES)


def _read_results(reader: _Reader, descriptor: int) -> bool:
    data = os.read(descriptor, _PIECE)
    reader.feed(data)
    return bool(data)


def _account_for_death(reader: _Reader, spawned: Spawned) -> None:
    """The prover is gone without its last word: right only where the kernel kills a whole cgroup for its memory."""
    if reader.ended:
        return
    status = os.waitid(os.P_PIDFD, spawned.pidfd, os.WEXITED | os.WNOWAIT)
    under_way = reader.next_id()
    number = status.si_status if status is not None and status.si_code != os.CLD_EXITED else 0
    last = next((item for item in reversed(reader.attempts) if not item.skip), None)
    if number == signal.SIGKILL and last is not None and last.code == "memory" and under_way == last.id:
        reader.records[last.id] = Record(id=last.id, stage=IN_CALL, signal=number)
        reader.ended = True
        return
    how = f"signal {number}" if number else "exit"
    raise VmError("the prover died", got=f"{how} at {under_way}")


def _namespaces(pid: int, wall: Wall) -> tuple[tuple[Seen, ...], tuple[str, ...]]:
    """Which namespaces the prover shares with us, seen from outside."""
    seen = []
    rooted = wall.identity.mode is IdentityMode.ROOT
    own_user = wall.has(Layer.NAMESPACES) and wall.has(Layer.IDENTITY) if rooted else True
    try:
        for name, layer in (*_NAMESPACES, ("user", None)):
            if (layer is not None and not wall.has(layer)) or (name == "user" and not own_user):
                continue
            same = os.readlink(f"/proc/{pid}/ns/{name}") == os.readlink(f"/proc/self/ns/{name}")
            seen.append(Seen(f"sight.namespace-{name}", "own", "the host's" if same else "own", not same, "namespaces"))
    except OSError as fault:
        return (), (f"namespaces cannot be compared from outside: {fault.strerror}",)
    return tuple(seen), ()
