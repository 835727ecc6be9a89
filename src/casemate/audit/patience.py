"""Do something for each of many things, and do not wait for ever for any.

Some reads below /proc wait for the process that they are about: its memory may lie on a file system that does not
answer. Such a read cannot be called back, so each run goes through a thread; one that makes no headway is left behind
and another one goes on with what comes next. A thread left behind ends with its read, or with this process.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

STUCK_MAX = 16
"""Threads left behind before giving up on the rest: somebody does it on purpose."""


class Stuck(Exception):
    """It took longer than was allowed, or came after too many that did."""


class _Run(Generic[T, R]):
    """One thread, working through ``items`` from ``first`` on."""

    def __init__(self, items: Sequence[T], first: int, do: Callable[[T], R]) -> None:
        self.answers: queue.SimpleQueue[tuple[bool, R | Exception]] = queue.SimpleQueue()
        self.abandoned = False
        self._items, self._first, self._do = items, first, do
        threading.Thread(target=self._work, daemon=True, name="audit-reader").start()

    def _work(self) -> None:
        for item in self._items[self._first :]:
            if self.abandoned:
                return
            try:
                self.answers.put((True, self._do(item)))
            except Exception as error:  # handed to whoever asked
                self.answers.put((False, error))


def each(items: Sequence[T], do: Callable[[T], R], deadline_s: float) -> Iterator[tuple[T, R | Exception]]:
    """``do(item)`` for each item, in order; what it raised stands in the place of its result.

    Args:
        deadline_s: for one item; then `Stuck` stands in its place.
    """
    run: _Run[T, R] | None = None
    stuck = 0
    for index, item in enumerate(items):
        if stuck >= STUCK_MAX:
            yield item, Stuck(f"not read: {stuck} others before it did not answer")
            continue
        if run is None:
            run = _Run(items, index, do)
        try:
            _, answer = run.answers.get(timeout=deadline_s)
        except queue.Empty:
            run.abandoned = True
            run, stuck = None, stuck + 1
            yield item, Stuck(f"no answer within {deadline_s:g} s")
        else:
            yield item, answer


def once(do: Callable[[], R], deadline_s: float) -> R:
    """``do()`` with a deadline.

    Raises:
        Stuck: it passed. Whatever ``do`` raises.
    """
    for _, answer in each((None,), lambda _: do(), deadline_s):
        if isinstance(answer, Exception):
            raise answer
        return answer
    raise AssertionError("each yields once per item")
