"""QMP: lines cut and bounded, hostile messages refused, replies matched by id, and the fake that stands in for QEMU."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support import fake_qemu

from casemate.engine import qmp, qmplink
from casemate.engine.qmp import LineReader, QmpError, check_greeting, encode_command, parse_line, return_of
from casemate.engine.qmplink import QmpLink


def test_lines_in_pieces_and_together() -> None:
    reader = LineReader()
    assert reader.feed(b'{"a": 1') == []
    assert reader.feed(b'}\r\n\r\n{"b": 2}\n{"c"') == [{"a": 1}, {"b": 2}]
    assert reader.feed(b": 3}\n") == [{"c": 3}]


def test_a_line_without_end_is_refused_at_the_limit() -> None:
    reader = LineReader(limit=100)
    assert reader.feed(b"x" * 100) == []
    with pytest.raises(QmpError, match="more than 100 bytes"):
        reader.feed(b"x")


def test_an_endless_line_is_not_searched_again_for_each_byte() -> None:
    class Counting(bytearray):
        searched = 0

        def find(self, sub: Any, start: Any = 0, *rest: Any) -> int:
            Counting.searched += len(self) - int(start)
            return super().find(sub, start, *rest)

    reader = LineReader(limit=10_000)
    reader._pending = Counting()
    for _ in range(10_000):
        reader.feed(b"x")
    assert Counting.searched == 10_000


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"1",
        b'"text"',
        b"null",
        b"{",
        b'{"a": 1} {"b": 2}',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b"{'a': 1}",
        b'{"a": "\xff"}',
        '{"a": 1}'.encode("utf-16"),
        b'\xef\xbb\xbf{"a": 1}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_what_is_not_a_message(line: bytes) -> None:
    with pytest.raises(QmpError) as caught:
        parse_line(line)
    assert len(str(caught.value)) < 400


def test_depth_is_bounded_whether_lists_or_objects() -> None:
    for left, right in ((b"[", b"]"), (b'{"a":', b"}")):
        value = left * (qmp.DEPTH_MAX - 1) + b"0" + right * (qmp.DEPTH_MAX - 1)
        assert parse_line(b'{"x":' + value + b"}")
        value = left * qmp.DEPTH_MAX + b"0" + right * qmp.DEPTH_MAX
        with pytest.raises(QmpError, match="nested deeper"):
            parse_line(b'{"x":' + value + b"}")


def test_brackets_in_text_are_not_depth() -> None:
    assert parse_line(json.dumps({"x": "[{" * 500}).encode()) == {"x": "[{" * 500}


def test_greeting() -> None:
    assert check_greeting(fake_qemu.GREETING) == "7.2.22"
    bad: list[Any] = [{}, {"QMP": 1}, {"QMP": {"version": {"qemu": {"major": "x", "minor": 1, "micro": 1}}}}]
    bad += [{"QMP": {"version": {"qemu": {"major": 1e999, "minor": 1, "micro": 1}}}}, {"return": {}}]
    for message in bad:
        with pytest.raises(QmpError, match="no greeting"):
            check_greeting(message)


def test_replies() -> None:
    assert return_of({"return": {"a": 1}, "id": 1}, "stop") == {"a": 1}
    assert return_of({"id": 1}, "stop") is None
    with pytest.raises(QmpError, match="stop: no way"):
        return_of({"error": {"class": "GenericError", "desc": "no way"}}, "stop")
    with pytest.raises(QmpError) as caught:
        return_of({"error": {"desc": "x" * 10_000}}, "stop")
    assert len(str(caught.value)) < 420
    with pytest.raises(QmpError, match=r"stop: \['odd'\]"):
        return_of({"error": ["odd"]}, "stop")


def test_commands() -> None:
    assert json.loads(encode_command("stop", None, 7)) == {"execute": "stop", "id": 7}
    assert json.loads(encode_command("x", {"a": "\n"}, 8)) == {"execute": "x", "id": 8, "arguments": {"a": "\n"}}
    assert encode_command("x", {"a": "\n\r"}, 8).count(b"\n") == 1


# ---- the link -------------------------------------------------------------------------------------------------------


class Both:
    """A link and the emulator's end of it."""

    def __init__(self) -> None:
        ours, self.emulator = socket.socketpair()
        self.events: list[dict[str, Any]] = []
        self.answers: list[dict[str, Any]] = []
        self.link = QmpLink(ours, self.events.append)

    def say(self, *messages: Any) -> bool:
        """The emulator sends; the link reads."""
        self.emulator.sendall(b"".join(json.dumps(message).encode() + b"\n" for message in messages))
        return self.link.read()

    def asked(self) -> list[dict[str, Any]]:
        """What the emulator received."""
        self.emulator.setblocking(False)
        try:
            return [json.loads(line) for line in self.emulator.recv(1 << 20).splitlines()]
        except BlockingIOError:
            return []


@pytest.fixture
def both() -> Iterator[Both]:
    """One pair."""
    found = Both()
    yield found
    found.link.socket.close()
    found.emulator.close()


def test_replies_find_their_question_in_any_order(both: Both) -> None:
    both.link.command("one", lambda m: both.answers.append({"one": m["return"]}))
    both.link.command("two", lambda m: both.answers.append({"two": m["return"]}))
    first, second = (request["id"] for request in both.asked())
    both.say({"return": 2, "id": second}, {"event": "X"}, {"return": 1, "id": first})
    assert both.answers == [{"two": 2}, {"one": 1}]
    assert both.events == [{"event": "X"}]


def test_replies_with_other_ids_are_ignored(both: Both) -> None:
    both.link.command("one", both.answers.append)
    (request,) = both.asked()
    number = request["id"]
    both.say(*({"return": 0, "id": wrong} for wrong in (True, None, str(number), float(number), [number], -number)))
    both.say({"return": 0}, {"id": number + 1})
    assert both.answers == []
    both.say({"return": 0, "id": number}, {"return": 1, "id": number})
    assert both.answers == [{"return": 0, "id": number}]


def test_overdue_replies_become_errors_once(both: Both) -> None:
    both.link.command("one", both.answers.append)
    (request,) = both.asked()
    end = both.link.next_deadline()
    assert end is not None
    both.link.expire(end - 0.001)
    assert both.answers == []
    both.link.expire(end)
    assert both.answers == [{"error": {"desc": "the emulator did not answer in time"}}]
    assert both.link.next_deadline() is None
    both.say({"return": "late", "id": request["id"]})
    assert len(both.answers) == 1


def test_an_emulator_that_does_not_read(both: Both) -> None:
    for _ in range(20_000):
        both.link.command("query-blockstats", both.answers.append)
    assert both.link.wants_to_write
    assert both.answers
    assert both.answers[0] == {"error": {"desc": "the emulator does not read its QMP socket"}}
    waiting = 20_000 - len(both.answers)
    received = 0
    for _ in range(1000):
        received += len(both.asked())
        both.link.flush()
    # What was accepted arrives whole, however slowly; `asked` parses every line.
    assert received == waiting


def test_the_end_of_the_connection(both: Both) -> None:
    both.emulator.close()
    assert both.link.read() is False
    both.link.command("stop", both.answers.append)  # must not raise
    end = both.link.next_deadline()
    assert end is not None
    both.link.expire(end)
    assert len(both.answers) == 1


def test_a_broken_protocol_is_an_error(both: Both) -> None:
    both.emulator.sendall(b"nonsense\n")
    with pytest.raises(QmpError):
        both.link.read()


def test_the_links_limit_is_smaller_than_the_launchs(both: Both) -> None:
    both.emulator.setblocking(False)

    def endless() -> None:
        while both.emulator.send(b"x" * 65536):
            both.link.read()

    with pytest.raises(QmpError, match="more than"):
        endless()
    assert qmplink.LINE_MAX_BYTES < qmp.LINE_MAX_BYTES


# ---- the fake -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Whatever the test finds, the fake is gone afterwards: a failed test must not wait for it."""
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_the_fake_speaks_qmp_as_qemu_does() -> None:
    process, link, console, log = fake_qemu.spawn()
    with ended(process), link, console:
        link.settimeout(20)
        lines = link.makefile("rb")
        assert check_greeting(json.loads(lines.readline())) == "7.2.22"

        def ask(name: str, identifier: int) -> list[dict[str, Any]]:
            link.sendall(encode_command(name, None, identifier))
            found: list[dict[str, Any]] = []
            while not found or "event" in found[-1]:
                found.append(json.loads(lines.readline()))
            return found

        assert ask("qmp_capabilities", 1) == [{"return": {}, "id": 1}]
        event, reply = ask("stop", 2)
        assert (event["event"], reply) == ("STOP", {"return": {}, "id": 2})
        assert ask("stop", 3) == [{"return": {}, "id": 3}]  # already stopped: no event
        assert ask("query-status", 4) == [{"return": {"running": False}, "id": 4}]
        assert ask("no-such", 5)[0]["error"]["class"] == "CommandNotFound"
        console.settimeout(20)
        console.sendall(b"echo\n!print hello\n")
        said = b""
        while len(said) < 11:  # a stream: both lines may come at once
            said += console.recv(100)
        assert said == b"echo\nhello\n"
        console.sendall(b"!say words\n")
        assert os.read(log, 100) == b"words\n"
        assert [message.get("event", "reply") for message in ask("system_powerdown", 6)] == ["POWERDOWN", "reply"]
        assert json.loads(lines.readline())["data"]["reason"] == "guest-shutdown"
        assert process.wait(20) == 0
        lines.close()
    os.close(log)


@pytest.mark.parametrize(("order", "code"), [("exit 7", 7), ("signal 11", -11)])
def test_the_fake_ends_as_told(order: str, code: int) -> None:
    process, link, console, log = fake_qemu.spawn()
    with ended(process), link, console:
        console.sendall(f"!{order}\n".encode())
        assert process.wait(20) == code
    os.close(log)


def test_the_fake_ends_when_nobody_is_left() -> None:
    process, link, console, log = fake_qemu.spawn(greet=False)
    link.close()
    console.close()
    with ended(process):
        assert process.wait(20) == 0
    os.close(log)
