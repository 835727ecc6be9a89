"""The supervisor's side of a save, against a guest and an emulator that answer, refuse, lie or say nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from casemate.engine import savetask
from casemate.engine.savetask import SaveTask

OK: dict[str, Any] = {"return": {}}


class Machine:
    """Answers QMP at once: ``answers`` maps a command to its reply; others succeed."""

    def __init__(self, answers: dict[str, dict[str, Any]]) -> None:
        self.phase = "running"
        self.answers = answers
        self.asked: list[str] = []
        self.given = -1
        self.watched: set[int] = set()
        self.ends = 0
        self.faults: list[str] = []

    def ask(
        self,
        name: str,
        answer: Callable[[dict[str, Any]], None],
        arguments: dict[str, Any] | None = None,
        *,
        descriptor: int = -1,
    ) -> None:
        self.asked.append(name)
        if descriptor >= 0:
            os.fstat(descriptor)
            self.given = descriptor
        answer(self.answers.get(name, OK))

    def watch(self, descriptor: int, events: int, handler: Any) -> None:
        self.watched.add(descriptor)
        self.handler = handler

    def forget(self, descriptor: int) -> None:
        self.watched.discard(descriptor)

    def end_saved(self) -> None:
        self.ends += 1

    def note_fault(self, words: str) -> None:
        self.faults.append(words)


class Save:
    """One task with its company."""

    def __init__(self, answers: dict[str, dict[str, Any]] | None = None, *, paused: bool = False) -> None:
        self.machine = Machine({"query-migrate": {"return": {"status": "completed"}}, **(answers or {})})
        self.machine.phase = "paused" if paused else "running"
        self.port, self.guest = socket.socketpair()
        self.reader, pipe = os.pipe()
        self.results: list[tuple[str, dict[str, Any]]] = []
        self.task = SaveTask(self.machine, pipe, self.port, lambda error, fields: self.results.append((error, fields)))

    def say(self, data: bytes) -> None:
        """The guest's words arrive."""
        self.guest.send(data)
        self.machine.handler(self.port.fileno(), 1)

    def wait(self) -> None:
        """Every deadline passes."""
        for _ in range(5):
            self.task.expire(float("inf"))

    def heard(self) -> bytes:
        """What the guest was told."""
        self.guest.setblocking(False)
        try:
            return self.guest.recv(4096)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        for end in (self.port, self.guest):
            end.close()
        os.close(self.reader)


@pytest.fixture
def make() -> Iterator[Callable[..., Save]]:
    made: list[Save] = []

    def one(*arguments: Any, **more: Any) -> Save:
        made.append(Save(*arguments, **more))
        return made[-1]

    yield one
    for item in made:
        item.close()


def test_a_guest_that_listens(make: Callable[..., Save]) -> None:
    save = make()
    assert save.heard() == b"freeze\n"
    assert save.machine.asked == ["query-chardev"]
    save.say(b"frozen\n")
    assert save.machine.asked == ["query-chardev", "stop", "migrate-set-parameters", "getfd", "migrate"]
    save.wait()
    assert save.results == [("", {"prepared": True})]
    assert os.read(save.reader, 1) == b"", "the supervisor holds no end of the pipe"
    assert save.machine.ends == 0
    save.task.settle(end=True)
    assert [save.machine.ends] == [1]
    assert "cont" not in save.machine.asked


def test_one_that_goes_on_starts_its_random_numbers_anew(make: Callable[..., Save]) -> None:
    save = make()
    save.say(b"frozen\n")
    save.wait()
    save.heard()
    save.task.settle(end=False)
    assert save.heard() == b"reseed\n"
    assert save.machine.asked[-1] == "cont"
    assert save.machine.faults == []


def test_one_that_cannot_go_on_is_not_taken_for_paused(make: Callable[..., Save]) -> None:
    save = make({"cont": {"error": {"desc": "no lock"}}})
    save.say(b"frozen\n")
    save.wait()
    save.task.settle(end=False)
    assert save.machine.faults == ["it stands still after a save: cont: no lock"]


@pytest.mark.parametrize("said", [b"", b"what?\n", b"\xff" * 200])
def test_a_guest_that_does_not(make: Callable[..., Save], said: bytes) -> None:
    save = make()
    if said:
        save.say(said)
    save.wait()
    assert save.results == [("", {"prepared": False})]
    assert save.machine.watched == set()


def chardevs(*open_ports: object) -> dict[str, Any]:
    """What query-chardev answers: a device of ours for each, and another one."""
    found = [{"label": "clone", "frontend-open": value, "filename": "x"} for value in open_ports]
    return {"query-chardev": {"return": [{"label": "console", "frontend-open": False, "filename": "x"}, *found]}}


def test_a_guest_that_has_not_opened_the_port_is_not_waited_for(make: Callable[..., Save]) -> None:
    save = make(chardevs(False))
    assert save.machine.asked[:2] == ["query-chardev", "stop"], "at once"
    assert save.heard() == b""
    save.wait()
    assert save.results == [("", {"prepared": False})]


@pytest.mark.parametrize(
    "answers",
    [
        chardevs(True),
        chardevs(),
        chardevs(0),
        chardevs(None),
        chardevs(False, False),
        {"query-chardev": {"error": {"desc": "no"}}},
        {"query-chardev": {"return": {"label": "clone", "frontend-open": False}}},
        {"query-chardev": {"return": [["clone"], "clone"]}},
    ],
)
def test_a_guest_that_may_listen_is_asked(make: Callable[..., Save], answers: dict[str, Any]) -> None:
    save = make(answers)
    assert save.heard() == b"freeze\n"
    assert save.machine.asked == ["query-chardev"]
    save.say(b"frozen\n")
    save.wait()
    assert save.results == [("", {"prepared": True})]


def test_a_paused_guest_cannot_answer_and_stays_paused(make: Callable[..., Save]) -> None:
    save = make(paused=True)
    save.wait()
    assert save.results == [("", {"prepared": False})]
    save.task.settle(end=False)
    assert "cont" not in save.machine.asked


@pytest.mark.parametrize("command", ["stop", "migrate-set-parameters", "getfd", "migrate", "query-migrate"])
def test_an_emulator_that_refuses_any_step(make: Callable[..., Save], command: str) -> None:
    save = make({command: {"error": {"desc": "no"}}})
    save.say(b"frozen\n")
    save.heard()
    save.wait()
    assert [error for error, _ in save.results] == [f"{command}: no"]
    assert not save.task.written
    assert save.machine.asked[-1] == "cont", "the guest goes on"
    assert os.read(save.reader, 1) == b""


@pytest.mark.parametrize(
    "answer", [{"status": "failed", "error-desc": "x" * 9999}, {"status": 7}, {}, [], "completed", {"status": None}]
)
def test_an_emulator_that_fails_or_lies(make: Callable[..., Save], answer: Any) -> None:
    save = make({"query-migrate": {"return": answer}})
    save.say(b"frozen\n")
    save.wait()
    ((error, _),) = save.results
    assert error
    assert len(error) < 300
    assert save.heard().endswith(b"thaw\n")


def test_one_that_never_ends_is_given_up(make: Callable[..., Save], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savetask, "WHOLE_S", -1.0)
    save = make({"query-migrate": {"return": {"status": "active"}}})
    save.say(b"frozen\n")
    save.wait()
    assert "migrate_cancel" in save.machine.asked
    assert [error for error, _ in save.results] == ["the state was not written in time"]
