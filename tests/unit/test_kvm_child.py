"""The forked child with a deadline: answer, error, death, deadline, floods, and nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.children import children

from casemate.facts.kvm import report_from_child
from casemate.facts.kvm_child import MESSAGES_BYTES_MAX, ChildResult, Outcome, decode_messages, run_in_child
from casemate.facts.kvm_report import Verdict, judge_report

Stage = Callable[[str], None]


def _open_fds() -> set[str]:
    return {entry for entry in os.listdir("/proc/self/fd") if Path(f"/proc/self/fd/{entry}").exists()}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No descriptor and no child, dead or alive, is left by any test here."""
    before, others = _open_fds(), children()
    yield
    assert _open_fds() == before
    assert children() - others == set()


def test_result_and_last_step() -> None:
    def work(stage: Stage) -> bytes:
        stage("one")
        stage("two")
        return b"answer"

    assert run_in_child(work, 10) == ChildResult(Outcome.DONE, "two", "", b"answer")


def test_result_larger_than_the_pipe() -> None:
    assert run_in_child(lambda _: b"x" * 500_000, 10).result == b"x" * 500_000


def test_exception_is_told() -> None:
    def work(stage: Stage) -> bytes:
        stage("the hard part")
        raise ValueError("no such luck")

    assert run_in_child(work, 10) == ChildResult(Outcome.DIED, "the hard part", "ValueError: no such luck")


def test_death_by_signal_is_told() -> None:
    def work(stage: Stage) -> bytes:
        stage("last words")
        os.kill(os.getpid(), signal.SIGSEGV)
        return b""

    found = run_in_child(work, 10)
    assert (found.outcome, found.step, found.detail) == (Outcome.DIED, "last words", f"signal {int(signal.SIGSEGV)}")


def test_exit_without_an_answer_is_no_answer() -> None:
    found = run_in_child(lambda _: os._exit(0), 10)
    assert (found.outcome, found.detail) == (Outcome.DIED, "exit 0")


def test_endless_work_is_killed_at_the_deadline() -> None:
    def work(stage: Stage) -> bytes:
        stage("round and round")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            pass

    found = run_in_child(work, 0.2)
    assert (found.outcome, found.step) == (Outcome.TIMED_OUT, "round and round")


def test_an_answer_is_not_believed_from_a_child_that_lives_on() -> None:
    """It closes its end of the pipe and stays: it is killed, and the outcome says so."""

    def work(_: Stage) -> bytes:
        os.closerange(3, 100)
        time.sleep(60)
        return b""

    assert run_in_child(work, 0.3).outcome is Outcome.TIMED_OUT


def test_flood_is_cut_off() -> None:
    def work(stage: Stage) -> bytes:
        while True:
            stage("x" * 60_000)

    found = run_in_child(work, 30)
    assert found.outcome is Outcome.TIMED_OUT
    assert len(found.step) <= 200


def test_oversized_result_is_not_taken() -> None:
    assert run_in_child(lambda _: b"x" * (MESSAGES_BYTES_MAX + 1), 30).outcome is not Outcome.DONE


def test_child_holds_no_descriptor_of_the_parent() -> None:
    left, right = socket.socketpair()
    with left, right:
        found = run_in_child(lambda _: ",".join(sorted(os.listdir("/proc/self/fd"), key=int)).encode(), 10)
        assert str(left.fileno()) not in found.result.decode().split(",")
    numbers = [int(text) for text in found.result.decode().split(",")]
    assert len([number for number in numbers if number > 2]) <= 2  # the pipe, and the listing itself


def test_signal_handlers_of_the_parent_do_not_run_in_the_child() -> None:
    hits: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda *_: hits.append(1))
    try:

        def work(_: Stage) -> bytes:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
            return b"still here"

        found = run_in_child(work, 10)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found.detail == f"signal {int(signal.SIGTERM)}"


def test_works_from_another_thread() -> None:
    found: list[ChildResult] = []

    def work(_: Stage) -> bytes:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # only the main thread may: the child's only one
        return b"ok"

    thread = threading.Thread(target=lambda: found.append(run_in_child(work, 10)))
    thread.start()
    thread.join(20)
    assert found == [ChildResult(Outcome.DONE, "", "", b"ok")]


def test_ignored_sigchld_loses_nothing_but_the_exit_code() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        found = run_in_child(lambda _: b"ok", 10)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert (found.outcome, found.result) == (Outcome.DONE, b"ok")


def test_interrupted_parent_leaves_no_child() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def work(_: Stage) -> bytes:
        time.sleep(60)
        return b""

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_in_child(work, 50)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_without_a_descriptor_for_the_pidfd_no_child_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_pid: int, _flags: int = 0) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        run_in_child(lambda _: b"", 10)


def test_child_dies_with_its_parent(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"

    def work(_: Stage) -> bytes:
        pid_file.with_suffix(".new").write_text(str(os.getpid()))
        pid_file.with_suffix(".new").rename(pid_file)
        time.sleep(60)
        return b""

    middle = os.fork()
    if middle == 0:
        run_in_child(work, 50)
        os._exit(0)
    _wait_for(pid_file.exists)
    child = int(pid_file.read_text())
    assert _alive(child)
    os.kill(middle, signal.SIGKILL)
    os.waitpid(middle, 0)
    _wait_for(lambda: not _alive(child))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.02)


@given(st.binary(max_size=200))
def test_any_bytes_decode_to_something_bounded(data: bytes) -> None:
    step, kind, content = decode_messages(data)
    assert len(step) <= 200
    assert len(kind) <= 1
    assert len(content) <= len(data)


@pytest.mark.parametrize(
    "child",
    [
        ChildResult(Outcome.TIMED_OUT, "guest mmio", "killed after 5.0 s"),
        ChildResult(Outcome.DIED, "guest mmio", "signal 11"),
        ChildResult(Outcome.STUCK, "guest mmio", "process 7 did not die"),
        ChildResult(Outcome.DONE, "guest mmio", "", b"not json"),
        ChildResult(Outcome.DONE, "guest mmio", "", b'{"device": 3}'),
    ],
)
def test_a_child_that_failed_is_a_broken_device_with_its_step(child: ChildResult) -> None:
    found = judge_report(report_from_child(child, "/dev/kvm", "x86_64"))
    assert found.verdict is Verdict.BROKEN
    assert "guest mmio" in found.why
