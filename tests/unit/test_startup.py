"""A starting emulator that misbehaves before the guest's first instruction: the launch ends with one clear error."""

from __future__ import annotations

import json
import os
import resource
import select
import socket
from collections.abc import Callable, Iterator

import pytest
from tests.support import fake_qemu

from casemate.engine.startup import EVENTS_MAX, Startup
from casemate.errors import VmError
from casemate.jail.spawn import Spawned, kill_and_reap

Begin = Callable[..., Startup]
consoles: dict[int, socket.socket] = {}


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Start a fake; it is gone afterwards."""
    made = []

    def one(mode: str = "normal", *, greet: bool = True, deadline_s: float = 20.0) -> Startup:
        process, qmp, console, log = fake_qemu.spawn(mode, greet=greet)
        spawned = Spawned(process.pid, os.pidfd_open(process.pid), -1)
        made.append((process, spawned, qmp, console, log))
        startup = Startup(spawned, qmp, log, os.uname().machine, deadline_s)
        consoles[id(startup)] = console
        return startup

    yield one
    for process, spawned, qmp, console, log in made:
        kill_and_reap(spawned)
        process.returncode = 0  # reaped above
        qmp.close()
        console.close()
        os.close(log)


def test_a_good_start(begin: Begin) -> None:
    startup = begin()
    assert startup.greeting() == "7.2.22"
    assert startup.command("stop") == {}
    assert [event["event"] for event in startup.pending_events] == ["STOP"]
    assert startup.command("query-status") == {"running": False}
    with pytest.raises(VmError, match="the emulator refused a command"):
        startup.command("no-such")


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("not-json", "does not speak QMP"),
        ("not-object", "does not speak QMP"),
        ("deep", "does not speak QMP"),
        ("endless-line", "does not speak QMP"),
        ("event-flood", "does not speak QMP; got the first QMP message is no greeting"),
        ("absent", "too slow: no the QMP greeting"),
    ],
)
def test_no_greeting(begin: Begin, mode: str, words: str) -> None:
    startup = begin(mode, greet=False, deadline_s=3.0)
    with pytest.raises(VmError) as caught:
        startup.greeting()
    assert words in f"{caught.value}"


def test_a_flood_of_events_after_the_greeting(begin: Begin) -> None:
    startup = begin("event-flood")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(VmError, match="events"):
        startup.greeting()
    assert len(startup.pending_events) <= EVENTS_MAX
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16384


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("mute", "too slow: no the answer to qmp_capabilities"),
        ("wrong-ids", "a question that was not asked"),
        ("error", "refused a command"),
        ("huge-reply", "does not speak QMP"),
    ],
)
def test_bad_answers(begin: Begin, mode: str, words: str) -> None:
    startup = begin(mode, deadline_s=3.0)
    with pytest.raises(VmError) as caught:
        startup.greeting()
    assert words in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("orders", "words"),
    [
        ("!say cannot open \x1b[31mdisk\n!exit 1\n", "exit status 1; cannot open [31mdisk"),
        ("!signal 31\n", "killed by SIGSYS"),
        ("!signal 11\n", "killed by SIGSEGV"),
        ("!signal 40\n", "killed by signal 40"),
        ("!exit 0\n", "exit status 0"),
    ],
)
def test_an_emulator_that_ends(begin: Begin, orders: str, words: str) -> None:
    startup = begin()
    startup.greeting()
    consoles[id(startup)].sendall(orders.encode())

    def ask_for_ever() -> None:
        while startup.command("query-status"):
            pass

    with pytest.raises(VmError, match="the emulator ended while waiting for") as caught:
        ask_for_ever()
    assert words in str(caught.value)


def test_a_guest_that_is_gone_before_its_release_was_answered(begin: Begin) -> None:
    """Forty instructions take less time than it takes to be scheduled again: the answers lie in the socket."""
    startup = begin()
    startup.greeting()
    startup.ask_ahead((("cont", {}),))
    said = '{"event": "SHUTDOWN", "data": {"reason": "guest-shutdown"}}'
    consoles[id(startup)].sendall(f"!event {said}\n!exit 0\n".encode())
    assert select.select([startup.spawned.pidfd], [], [], 20)[0]
    startup.release()
    assert [json.loads(line) for line in startup.unheard().splitlines()] == [json.loads(said)]
    with pytest.raises(VmError, match="ended while waiting for the answer to query-status"):
        startup.command("query-status")
