"""The same work in several processes: in order, errors come out, and nobody waits for ever."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.errors import HostError, InputError
from casemate.sys import parallel
from casemate.sys.parallel import ordered_map

JOBS = 2
_begun = 0


def double(number: int) -> int:
    return number * 2


def refuse_three(number: int) -> int:
    if number == 3:
        raise InputError("three", got="3", expected="another", next_step="count")
    return number


def die_at_three(number: int) -> int:
    if number == 3:
        os._exit(9)
    return number


def begin() -> None:
    global _begun
    _begun += 1


def begun(number: int) -> int:
    return _begun


@pytest.fixture(params=["fork", "spawn"])
def start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How workers start; the choice hangs on the number of threads, and on nothing else."""
    monkeypatch.setattr(threading, "active_count", lambda: 1 if request.param == "fork" else 2)
    return str(request.param)


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_results_come_in_order(start: str, jobs: int) -> None:
    assert list(ordered_map(double, range(40), jobs)) == [double(number) for number in range(40)]


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_process_begins_once(start: str, jobs: int) -> None:
    before = _begun
    assert set(ordered_map(begun, range(12), jobs, begin=begin)) == {before + 1 if start == "fork" or jobs == 1 else 1}


def test_an_error_comes_out_whole_after_what_came_before(start: str) -> None:
    results = ordered_map(refuse_three, range(9), JOBS)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError) as caught:
        next(results)
    error = caught.value
    assert (error.what, error.got, error.expected, error.next_step) == ("three", "3", "another", "count")


def test_no_shutdown_waits_for_ever() -> None:
    """The last item was just submitted, all others are done: cancelling it hangs CPython before 3.11.4."""
    for _ in range(10):
        results = ordered_map(refuse_three, range(40), JOBS)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        time.sleep(0.02)  # the workers are idle again
        with pytest.raises(InputError):
            next(results)


def test_a_worker_that_dies_is_an_error(start: str) -> None:
    with pytest.raises(HostError, match="a worker process died"):
        list(ordered_map(die_at_three, range(40), JOBS))


def test_little_is_taken_ahead() -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = ordered_map(double, numbers(), JOBS)
    assert next(results) == 0
    assert len(taken) <= JOBS * parallel._AHEAD
    results.close()
    assert len(taken) <= JOBS * parallel._AHEAD


def test_leaving_early_leaves_no_worker(start: str) -> None:
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if not children.exists():
        pytest.skip("this kernel does not list children")
    results = ordered_map(double, range(1000), JOBS)
    before = set(children.read_text().split())
    next(results)
    during = set(children.read_text().split()) - before
    results.close()
    assert len(during) >= JOBS
    left = during & set(children.read_text().split())
    assert len(left) <= (1 if start == "spawn" else 0), "only multiprocessing's resource tracker may stay"


def test_nothing_starts_before_it_is_asked_for() -> None:
    threads = threading.active_count()
    ordered_map(double, range(9), JOBS).close()
    assert threading.active_count() == threads
    assert list(ordered_map(double, [], JOBS)) == []
