"""The same work on many things in several processes, results in order, little of it ahead of whoever takes them.

Workers are forked while this process has one thread; with more, a fork may hold a lock for ever, and they start
afresh. A worker ends with its parent.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from casemate.errors import HostError
from casemate.sys.process import prctl

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD: Final = 4
"""Items under way for each process, so that none waits for whoever takes the results."""
_PR_SET_PDEATHSIG: Final = 1


def default_jobs() -> int:
    """As many processes as there are cores for this one."""
    return len(os.sched_getaffinity(0))


def ordered_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    jobs: int,
    *,
    begin: Callable[[], None] | None = None,
) -> Generator[Result, None, None]:
    """``function`` of each item, in order.

    Args:
        function: at the top level of a module, so that workers find it; an exception of it comes out here.
        items: taken as work goes on, so there may be many.
        jobs: processes; with one, all of it happens in this process.
        begin: called first in every process that works.

    Raises:
        HostError: a worker died.
    """
    if jobs <= 1:
        if begin is not None:
            begin()
        yield from map(function, items)
        return
    from concurrent.futures.process import BrokenProcessPool

    pool = _pool(jobs, begin)
    under_way: deque[Future[Result]] = deque()
    try:
        for item in items:
            under_way.append(pool.submit(function, item))
            if len(under_way) >= jobs * _AHEAD:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BrokenProcessPool:
        raise HostError(
            "a worker process died", got="killed, or out of memory", next_step="--jobs 1 shows with which file"
        ) from None
    finally:
        # Never future.cancel(): until 3.11.4 a shutdown soon after it waits for ever (CPython issue 94440).
        pool.shutdown(wait=True, cancel_futures=True)


def _pool(jobs: int, begin: Callable[[], None] | None) -> ProcessPoolExecutor:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    context: Any = multiprocessing.get_context("fork" if threading.active_count() == 1 else "spawn")
    return ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin_worker, initargs=(os.getpid(), begin))


def _begin_worker(parent: int, begin: Callable[[], None] | None) -> None:
    """In a worker: end with the parent, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    if begin is not None:
        begin()
