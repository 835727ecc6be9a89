"""The raw scan: every block of an image, in a jail, without a file system parser. The parent's side.

    file order     the whole image file, holes skipped: live and deleted files, slack, swap, journals,
                   clusters of snapshots, clusters that qcow2 no longer uses
    guest's order  qcow2 only, disk and internal snapshots: compressed clusters unpacked, and clusters that lie apart in
                   the file joined as the guest sees them
    then           each finding's cluster looked up in the tables: on the disk, only in a snapshot, or in none

Workers are one process each, all in walls of the same kind: their own namespaces, an empty root, the image and a socket
to talk as their only descriptors, 15 system calls. They see secrets; the parent sees redacted findings only.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from mmap import mmap
from pathlib import Path
from typing import Final

import msgspec

from casemate.cell.rawscan_wire import MAX_RESOLVED, PACKET_MAX_BYTES, Kind, Report, Resolved, Task, View
from casemate.cell.rawscan_worker import (
    IMAGE_FD,
    IMAGE_ROLE,
    TALK_FD,
    TALK_ROLE,
    FileSource,
    payload_of,
    scanner_profile,
)
from casemate.engine import files, identity
from casemate.engine.paths import Paths
from casemate.errors import InputError, VmError
from casemate.image.model import ImageHeader
from casemate.image.qcow2 import Fixed, read_fixed
from casemate.image.reader import ImageReader
from casemate.jail.compile import cached_program
from casemate.jail.policy import CgroupPlan, Descriptor, Identity, Rlimit, Wall
from casemate.jail.spawn import Spawned, kill_and_reap, spawn
from casemate.scan.engine import DETAIL_MAX_CHARS, Engine
from casemate.scan.model import Hit
from casemate.scan.redact import DIGEST_CHARS
from casemate.sys.landlock import landlock_abi

STRIPE_BYTES: Final = 64 << 20
L1_STRIPE: Final = 1
SILENCE_S: Final = 120.0
MAX_HITS: Final = 20_000
SHOWN_MAX_CHARS: Final = 9
_DATA_BYTES: Final = 1 << 30
_NO_RULE: Final = 0xFFFF_FFFF

Progress = Callable[[int, int], None]
"""(bytes of the file dealt with, its size)."""


class RawHit(msgspec.Struct, frozen=True):
    """A hit and where it lies. ``offset``: in the file, -1 when it was unpacked. ``guest_offset``: -1: not on the disk.
    ``views``: names of what shows it, empty name: the disk; none at all: no table points there."""

    hit: Hit
    offset: int
    guest_offset: int
    views: tuple[str, ...]


class RawResult(msgspec.Struct, frozen=True):
    """``notes``: what was not scanned; the scan is incomplete when there are any."""

    hits: tuple[RawHit, ...]
    size_bytes: int
    read_bytes: int
    notes: tuple[str, ...]
    views: tuple[str, ...]


def raw_scan(
    fd: int,
    name: str,
    header: ImageHeader,
    engine: Engine,
    rule_ids: Sequence[str],
    paths: Paths,
    reserved: range,
    *,
    jobs: int = 0,
    progress: Progress = lambda done, of: None,
) -> RawResult:
    """Scan an image whose header was accepted.

    Args:
        fd: read-only; stays the caller's.
        engine: with everything loaded that it needs.
        rule_ids: names of its rules in order, for messages.
        reserved: uids of the host's policy, for root.
        jobs: number of workers; 0: one for each CPU that we may use.

    Raises:
        InputError: the image is encrypted. HostError: no wall can be built here.
        VmError: a worker died, or hung; nothing is known then.
    """
    if header.encrypted:
        raise InputError(
            f"{name} is encrypted: its blocks show nothing",
            next_step="scan it before it is encrypted; live files can be read with its key through the cell",
        )
    reader = ImageReader(fd, name)
    fixed = read_fixed(reader) if header.format == "qcow2" else None
    views: tuple[View, ...] = ()
    notes: tuple[str, ...] = ()
    if fixed is not None:
        from casemate.cell.rawscan_qcow2 import load_zstd, views_of

        if fixed.compression:
            load_zstd()
        views, notes = views_of(FileSource(fd, reader.size_bytes), fixed)
    who, lock = identity.claim(paths, reserved)
    crew = _Crew(fd, reader.size_bytes, engine, fixed, rule_ids, who, paths)
    try:
        count = jobs or max(1, min(len(os.sched_getaffinity(0)), 8, 1 + reader.size_bytes // STRIPE_BYTES))
        crew.start(count)
        crew.run(_tasks(reader.size_bytes, views), reader.size_bytes, progress)
        if views and crew.hits:
            offsets = sorted({hit.offset for hit, view in crew.hits if view is None})
            crew.run([Task(Kind.RESOLVE, offsets=tuple(offsets[:MAX_RESOLVED]))], 0, lambda done, of: None)
    finally:
        crew.close()
        os.close(lock)
    hits = _placed(crew.hits, crew.resolved, views)
    return RawResult(
        hits=hits,
        size_bytes=reader.size_bytes,
        read_bytes=crew.read_bytes,
        notes=tuple(dict.fromkeys((*notes, *crew.notes))),
        views=tuple(view.name for view in views),
    )


def _tasks(size_bytes: int, views: tuple[View, ...]) -> list[Task]:
    stripe = max(STRIPE_BYTES, -(-size_bytes // 4096) & ~4095)
    tasks = [Task(Kind.BYTES, first=at, count=min(stripe, size_bytes - at)) for at in range(0, size_bytes, stripe)]
    for number, view in enumerate(views):
        step = max(L1_STRIPE, -(-view.l1_entries // 256))
        for at in range(0, view.l1_entries, step):
            tasks.append(Task(Kind.VIEW, first=at, count=min(step, view.l1_entries - at), view=number))
    return tasks


def _placed(
    found: list[tuple[Hit, int | None]], resolved: dict[int, list[Resolved]], views: tuple[View, ...]
) -> tuple[RawHit, ...]:
    """Each hit once: what was found in the file and again in the guest's order is one."""
    placed: dict[tuple[str, str, int, int], RawHit] = {}
    for hit, view in found:
        if view is not None:
            key = (hit.rule, hit.digest, hit.offset, -1)
            known = placed.get(key)
            names = (*(known.views if known else ()), views[view].name)
            placed[key] = RawHit(hit, known.offset if known else -1, hit.offset, tuple(dict.fromkeys(names)))
            continue
        if not views:
            placed[hit.rule, hit.digest, hit.offset, 0] = RawHit(hit, hit.offset, hit.offset, ("",))
            continue
        places = resolved.get(hit.offset, [])
        if not places:
            placed[hit.rule, hit.digest, -1, hit.offset] = RawHit(hit, hit.offset, -1, ())
            continue
        guest = places[0].guest_offset
        key = (hit.rule, hit.digest, guest, -1)
        known = placed.get(key)
        names = (*(known.views if known else ()), *(views[place.view].name for place in places))
        placed[key] = RawHit(hit, hit.offset, guest, tuple(dict.fromkeys(names)))
    return tuple(sorted(placed.values(), key=lambda raw: (raw.offset, raw.guest_offset, raw.hit.rule)))


class _Worker:
    """One process in its wall, and what it does at the moment."""

    def __init__(self, spawned: Spawned, talk: socket.socket, board: mmap) -> None:
        self.spawned, self.talk, self.board = spawned, talk, board
        self.task: Task | None = None
        self.heard = time.monotonic()


class _Crew:
    """The workers of one scan."""

    def __init__(
        self,
        fd: int,
        size_bytes: int,
        engine: Engine,
        fixed: Fixed | None,
        rule_ids: Sequence[str],
        who: Identity,
        paths: Paths,
    ) -> None:
        self._fd, self._size, self._engine, self._fixed = fd, size_bytes, engine, fixed
        self._rule_ids, self._who, self._paths = rule_ids, who, paths
        self._known = frozenset(rule_ids)
        self._workers: list[_Worker] = []
        self.hits: list[tuple[Hit, int | None]] = []
        self.resolved: dict[int, list[Resolved]] = {}
        self.notes: list[str] = []
        self.read_bytes = 0

    def start(self, count: int) -> None:
        """Build the walls."""
        import tempfile

        program = cached_program(scanner_profile(), os.uname().machine, Path(self._paths.cache) / "filters")
        wall = scanner_wall(self._who)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        staging = tempfile.mkdtemp(prefix="casemate-scan-")
        try:
            for _ in range(count):
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                board = mmap(-1, 4096)
                struct.pack_into("<I", board, 0, _NO_RULE)
                payload = payload_of(program, self._size, self._engine, self._fixed, board)
                sources = {"null": null, IMAGE_ROLE: self._fd, TALK_ROLE: theirs.fileno()}
                try:
                    spawned = spawn(wall, program, sources, staging, payload=payload)
                except BaseException:
                    ours.close()
                    raise
                finally:
                    theirs.close()
                self._workers.append(_Worker(spawned, ours, board))
        finally:
            os.close(null)
            files.remove_tree(staging)

    def run(self, tasks: Sequence[Task], total: int, progress: Progress) -> None:
        """Have all tasks done.

        Raises:
            VmError: a worker died or fell silent.
        """
        waiting = deque(tasks)
        done_bytes = 0
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker.talk, selectors.EVENT_READ, worker)
                self._give(worker, waiting)
            while any(worker.task is not None for worker in self._workers):
                for key, _ in selector.select(1.0):
                    worker = key.data
                    report = self._receive(worker)
                    done_bytes += self._take(worker, report)
                    if report.done:
                        self._give(worker, waiting)
                    progress(min(done_bytes, total), total)
                self._check_silence()

    def _give(self, worker: _Worker, waiting: deque[Task]) -> None:
        worker.task = waiting.popleft() if waiting else None
        worker.heard = time.monotonic()
        if worker.task is not None:
            with contextlib.suppress(OSError):  # it is gone: reading says how
                worker.talk.send(msgspec.json.encode(worker.task))

    def _receive(self, worker: _Worker) -> Report:
        try:
            packet = worker.talk.recv(PACKET_MAX_BYTES)
        except ConnectionError:
            packet = b""
        if not packet:
            raise VmError("the scanner died", got=self._death(worker), next_step="report it, with the image if you can")
        try:
            report = _DECODER.decode(packet)
        except msgspec.DecodeError as fault:
            raise VmError("the scanner sent something that is no report", got=str(fault)[:200]) from None
        if report.error:
            raise VmError("the scanner failed", got=ascii(report.error)[1:-1])
        worker.heard = time.monotonic()
        return report

    def _take(self, worker: _Worker, report: Report) -> int:
        task = worker.task
        if task is None or not 0 <= report.scanned <= self._size or report.read < 0:
            raise VmError("the scanner sent a report that makes no sense")
        if not all(self._is_believable(hit) for hit in report.hits):
            raise VmError("the scanner sent a finding that makes no sense")
        view = task.view if task.kind is Kind.VIEW else None
        room = MAX_HITS - len(self.hits)
        self.hits += [(hit, view) for hit in report.hits[: max(0, room)]]
        if len(report.hits) > room and "more findings" not in "".join(self.notes):
            self.notes.append(f"more findings than {MAX_HITS}: the rest was not kept")
        for place in report.resolved:
            self.resolved.setdefault(place.offset, []).append(place)
        self.notes += [ascii(note)[1:-1][:200] for note in report.notes if len(self.notes) < 100]
        self.read_bytes += report.read
        return report.scanned

    def _is_believable(self, hit: Hit) -> bool:
        """A worker that has been taken over shall not crash us, nor print through us."""
        return (
            hit.rule in self._known
            and len(hit.shown) <= SHOWN_MAX_CHARS
            and len(hit.digest) == DIGEST_CHARS
            and len(hit.detail) <= DETAIL_MAX_CHARS
            and (hit.shown + hit.digest + hit.detail).isprintable()
            and 0 <= hit.offset < 1 << 63
        )

    def _death(self, worker: _Worker) -> str:
        try:
            status = os.waitid(os.P_PIDFD, worker.spawned.pidfd, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            status = None
        how = "it ended"
        if status is not None:
            killed = status.si_code != os.CLD_EXITED
            how = signal.Signals(status.si_status).name if killed else f"exit status {status.si_status}"
        return f"{how}; rule at work: {self._rule_at_work(worker)}"

    def _rule_at_work(self, worker: _Worker) -> str:
        number = struct.unpack_from("<I", worker.board, 0)[0]
        return self._rule_ids[number] if number < len(self._rule_ids) else "none"

    def _check_silence(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if worker.task is not None and now - worker.heard > SILENCE_S:
                raise VmError(
                    "the scanner hangs",
                    got=f"no word for {SILENCE_S:.0f} s; rule at work: {self._rule_at_work(worker)}",
                    next_step="if it is a rule of yours, make it simpler: no repetition inside a repetition",
                )

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.talk.close()
            with contextlib.suppress(VmError):
                kill_and_reap(worker.spawned)
        self._workers.clear()


_DECODER: Final = msgspec.json.Decoder(Report)


def scanner_wall(who: Identity) -> Wall:
    """The wall of a worker: an empty root, nothing but the image and its socket."""
    return Wall(
        argv=("casemate-scan",),
        environment=(),
        root=(),
        root_size_bytes=1 << 16,
        identity=who,
        rlimits=(
            Rlimit("core", 0),
            Rlimit("nofile", 1024),
            Rlimit("fsize", 0),
            Rlimit("data", _DATA_BYTES),
            Rlimit("memlock", 0),
            Rlimit("msgqueue", 0),
            Rlimit("stack", 8 << 20),
        ),
        landlock_abi=landlock_abi(),
        landlock=(),
        cgroup=CgroupPlan(why_none="a scan is bounded by its limits and by the time of its command"),
        descriptors=(
            Descriptor(0, "null", "ro"),
            Descriptor(1, "null", "wo"),
            Descriptor(2, "null", "wo"),
            Descriptor(IMAGE_FD, IMAGE_ROLE, "ro"),
            Descriptor(TALK_FD, TALK_ROLE, "socket"),
        ),
        profile="scanner",
    )
