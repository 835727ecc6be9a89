"""Files judged ahead by several processes, handed out in the order asked for.

Only so many are under way at any time, so memory does not grow with their number. Workers are forked while this
process has one thread; with more, they start afresh. A worker ends with its parent.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from casemate.audit.judging import Setting
from casemate.controls.audit_model import TargetReport
from casemate.errors import CasemateError, HostError, InputError

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor

CHUNK: Final = 4
"""Files for one worker at a time: enough that handing over costs little, few enough that results flow."""
_AHEAD: Final = 4
_PR_SET_PDEATHSIG: Final = 1
_GC_YOUNG: Final = 100_000


class Judged(msgspec.Struct, frozen=True):
    """One file: its reports, or why there are none."""

    reports: tuple[TargetReport, ...] = ()
    what: str = ""
    got: str = ""
    expected: str = ""
    next_step: str = ""


_DECODER: Final = msgspec.msgpack.Decoder(tuple[Judged, ...])
_setting: Setting | None = None


def default_jobs() -> int:
    """As many processes as there are cores for this one."""
    return len(os.sched_getaffinity(0))


class Ahead:
    """Hands out the reports of ``names``, which must be asked for in this order."""

    def __init__(self, names: Sequence[str], setting: Setting, jobs: int) -> None:
        self._names = names
        self._setting = setting
        self._jobs = max(1, min(jobs, -(-len(names) // CHUNK)))
        self._next = 0
        self._pool: ProcessPoolExecutor | None = None
        self._under_way: deque[Future[bytes]] = deque()
        self._ready: deque[Judged] = deque()
        self._died: HostError | None = None

    @property
    def is_worth_it(self) -> bool:
        """Whether more than one process would have something to do."""
        return self._jobs > 1

    def reports(self) -> Iterator[TargetReport]:
        """Those of the next file.

        Raises:
            InputError: it could not be audited. HostError: a worker died.
        """
        if not self._ready:
            self._more()
        found = self._ready.popleft()
        if found.what:
            raise InputError(found.what, got=found.got, expected=found.expected, next_step=found.next_step)
        yield from found.reports

    def close(self) -> None:
        """End the workers; what they have not begun is dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _more(self) -> None:
        from concurrent.futures.process import BrokenProcessPool

        if self._died is not None:
            raise self._died
        try:
            self._hand_out()
            self._ready.extend(_DECODER.decode(self._under_way.popleft().result()))
            self._hand_out()
        except BrokenProcessPool:
            self._died = HostError(
                "a process that judged captures died",
                got="killed, or out of memory",
                next_step="--jobs 1 shows with which capture",
            )
            raise self._died from None

    def _hand_out(self) -> None:
        if self._pool is None:
            self._pool = _pool(self._jobs, self._setting)
        while len(self._under_way) < self._jobs * _AHEAD and self._next < len(self._names):
            chunk = tuple(self._names[self._next : self._next + CHUNK])
            self._next += len(chunk)
            self._under_way.append(self._pool.submit(_judge, chunk))


def _pool(jobs: int, setting: Setting) -> ProcessPoolExecutor:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # A fork of a process with threads may hold a lock for ever.
    method = "fork" if threading.active_count() == 1 else "spawn"
    context: Any = multiprocessing.get_context(method)
    return ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(setting, os.getpid()))


def _begin(setting: Setting, parent: int) -> None:
    """In a worker: end with the parent, leave Ctrl-C to it, and look for garbage less often."""
    import gc
    import signal

    from casemate.sys.process import prctl

    global _setting
    _setting = setting
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    gc.set_threshold(_GC_YOUNG, 20, 20)


def _judge(names: tuple[str, ...]) -> bytes:
    """In a worker: some files, as msgpack."""
    if _setting is None:
        raise RuntimeError("a worker without a setting")
    return msgspec.msgpack.encode(tuple(judge_one(name, _setting) for name in names))


def judge_one(name: str, setting: Setting) -> Judged:
    """One file, whatever it is."""
    from casemate.audit.targets import Named

    try:
        return Judged(tuple(Named(name).reports(setting)))
    except CasemateError as error:
        return Judged((), error.what, error.got, error.expected, error.next_step)
