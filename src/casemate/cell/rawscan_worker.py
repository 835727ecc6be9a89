"""One worker of a raw scan, inside its wall: reads the image through a descriptor, tells what it found, redacted.

All code is in memory before the root changes: there is no file to import from afterwards.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import signal
import struct
from collections.abc import Callable, Iterator
from mmap import mmap
from typing import Final, Never

import msgspec

from casemate.cell.rawscan_qcow2 import Tables, views_of
from casemate.cell.rawscan_wire import CHUNK_BYTES, HITS_A_PACKET, PACKET_MAX_BYTES, Kind, Report, Task, View
from casemate.image.qcow2 import Fixed
from casemate.jail.context import Context
from casemate.jail.policy import Layer, Wall
from casemate.jail.rules import Arg, Op, Profile, Rule
from casemate.jail.steps import inner_steps
from casemate.scan.engine import OVERLAP_BYTES, Engine
from casemate.scan.model import Hit
from casemate.sys.libc import libc
from casemate.sys.seccomp import seccomp_set_mode_filter

IMAGE_FD: Final = 3
TALK_FD: Final = 4
IMAGE_ROLE: Final = "image"
TALK_ROLE: Final = "talk"
_PROT_EXEC: Final = 4
_PAGE: Final = 4096

_CALLS: Final = (
    ("read", "tasks"),
    ("write", "reports"),
    ("pread64", "the image"),
    ("lseek", "holes of the image (SEEK_DATA)"),
    ("brk", "memory"),
    ("munmap", "memory"),
    ("mremap", "memory"),
    ("madvise", "memory"),
    ("futex", "the interpreter's lock"),
    ("clock_gettime", "where the vDSO cannot say"),
    ("rt_sigreturn", "after a signal"),
    ("rt_sigprocmask", "abort"),
    ("exit_group", "the end"),
    ("restart_syscall", "after a stop"),
)


def scanner_profile() -> Profile:
    """The allowlist of a worker: read one image, talk to its parent, have memory."""
    rules = [Rule(name, reason) for name, reason in _CALLS]
    rules.append(Rule("mmap", "memory, never executable", (Arg(2, Op.MASKED_EQ, 0, _PROT_EXEC),)))
    return Profile("scanner", tuple(rules), ("scanner",))


class FileSource:
    """The image. Short reads at its end are no error: a file may shrink while it is read."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        self._fd = fd
        self.size_bytes = size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """At most ``length`` bytes at ``offset``."""
        if offset < 0 or offset >= self.size_bytes or length <= 0:
            return b""
        parts: list[bytes] = []
        length = min(length, self.size_bytes - offset)
        while length:
            part = os.pread(self._fd, length, offset)
            if not part:
                break
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def next_data(self, offset: int) -> int:
        """The next byte at or behind ``offset`` that is not in a hole; the size of the file when there is none."""
        try:
            return os.lseek(self._fd, offset, os.SEEK_DATA)
        except OSError as fault:
            return self.size_bytes if fault.errno == errno.ENXIO else offset


class Work:
    """Does tasks; knows nothing of walls."""

    def __init__(self, source: FileSource, engine: Engine, fixed: Fixed | None) -> None:
        self._source, self._engine, self._fixed = source, engine, fixed
        self._tables = Tables(source, fixed) if fixed is not None else None
        self._views: tuple[View, ...] = ()
        if fixed is not None:
            self._views = views_of(source, fixed)[0]

    def reports(self, task: Task) -> Iterator[Report]:
        """What comes of one task, in pieces; the last one has ``done``."""
        if task.kind is Kind.BYTES:
            yield from self._scan_bytes(task.first, task.first + task.count)
        elif self._tables is not None and task.kind is Kind.VIEW:
            yield from self._scan_view(self._views[task.view], task.first, task.count)
        elif self._tables is not None:
            found = list(self._tables.resolve(self._views, task.offsets))
            yield from (Report(resolved=tuple(found[at : at + 400])) for at in range(0, len(found), 400))
        notes: tuple[str, ...] = ()
        if self._tables is not None:
            notes = tuple(f"{text} ({count} times)" for text, count in list(self._tables.notes.items())[:20])
            self._tables.notes.clear()
        yield Report(done=True, notes=notes)

    def _scan_bytes(self, at: int, end: int) -> Iterator[Report]:
        end = min(end, self._source.size_bytes)
        while at < end:
            data_at = min(self._source.next_data(at) & ~(_PAGE - 1), end)
            if data_at > at:
                yield Report(scanned=data_at - at)
                at = data_at
                continue
            stop = min(at + CHUNK_BYTES, end)
            lead = min(at, OVERLAP_BYTES)
            data = self._source.read(at - lead, stop - at + lead + OVERLAP_BYTES)
            hits = self._engine.scan(data, lead, lead + stop - at)
            yield from _reports(hits, at - lead, stop - at)
            at = stop

    def _scan_view(self, view: View, first: int, count: int) -> Iterator[Report]:
        assert self._tables is not None
        for window in self._tables.windows(view, first, count, OVERLAP_BYTES, OVERLAP_BYTES):
            # Hits that begin in the context were told with the run before, unless that one cut them off: the parent
            # takes equal ones together.
            hits = self._engine.scan(window.data)
            yield from _reports(hits, window.start, 0, len(window.data))


def _reports(hits: list[Hit], base: int, scanned: int, read: int = -1) -> Iterator[Report]:
    placed = [msgspec.structs.replace(hit, offset=base + hit.offset) for hit in hits]
    for at in range(0, len(placed), HITS_A_PACKET):
        yield Report(hits=tuple(placed[at : at + HITS_A_PACKET]))
    yield Report(scanned=scanned, read=scanned if read < 0 else read)


Payload = Callable[[Wall, Context], Never]


def payload_of(program: bytes, size_bytes: int, engine: Engine, fixed: Fixed | None, board: mmap) -> Payload:
    """The payload for `jail.spawn.spawn`; ``sources`` must have `IMAGE_ROLE` and `TALK_ROLE`.

    Args:
        program: the compiled filter.
        engine: with everything loaded.
        fixed: the fields of a qcow2 header, None for a raw image.
        board: shared memory on which the worker writes the number of the rule at work, for whoever has to kill it.
    """

    def payload(wall: Wall, context: Context) -> Never:
        try:
            _confine(wall, context, program)
            engine.watch = lambda index: struct.pack_into("<I", board, 0, index)
            _serve(Work(FileSource(IMAGE_FD, size_bytes), engine, fixed))
        except BaseException as fault:  # the child must end here, whatever happens
            _send(Report(error=f"{type(fault).__name__}: {fault}"[:500], done=True))
        finally:
            os._exit(0)

    return payload


def _confine(wall: Wall, context: Context, program: bytes) -> None:
    gc.disable()
    gc.freeze()  # no writing to pages that are shared with the parent
    keep = (0, 1, 2, IMAGE_FD, TALK_FD)
    # SAFETY: no pointers.
    libc.close_range(ctypes.c_uint(max(keep) + 1), ctypes.c_uint(0x7FFF_FFFF), 0)
    for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT):
        signal.signal(number, signal.SIG_DFL)
    for step in inner_steps(wall):
        step.apply(context)
    if wall.has(Layer.SECCOMP):
        seccomp_set_mode_filter(program, 0)


def _serve(work: Work) -> None:
    decoder = msgspec.json.Decoder(Task)
    while True:
        packet = os.read(TALK_FD, PACKET_MAX_BYTES)
        if not packet:
            return
        for report in work.reports(decoder.decode(packet)):
            _send(report)


def _send(report: Report) -> None:
    os.write(TALK_FD, msgspec.json.encode(report))
