"""The real, confined supervisor and the verb save: descriptors that clients hand over are used once, or closed."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.supervised import Supervised, read_line, until

Make = Callable[..., Supervised]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Supervised] = []

    def one(mode: str = "normal", **config: Any) -> Supervised:
        made.append(Supervised(tmp_path / str(len(made)), mode, **config))
        return made[-1]

    yield one
    for item in made:
        item.end()


def send_with(vm: Supervised, request: dict[str, Any], count: int) -> tuple[socket.socket, int]:
    """A request with ``count`` ends of a pipe; the connection, and the pipe's reading end."""
    connection = vm.connect()
    read_end, write_end = os.pipe()
    socket.send_fds(connection, [json.dumps(request).encode() + b"\n"], [write_end] * count)
    os.close(write_end)
    os.set_blocking(read_end, False)
    return connection, read_end


def is_over(pipe: int) -> bool:
    """Whether nobody holds the writing end any more."""
    try:
        return os.read(pipe, 1) == b""
    except BlockingIOError:
        return False


def descriptors(vm: Supervised) -> int:
    return len(os.listdir(f"/proc/{vm.pid}/fd"))


def test_a_vm_that_was_not_started_as_saveable(make: Make) -> None:
    vm = make()
    vm.ask("status")
    before = descriptors(vm)
    connection, pipe = send_with(vm, {"do": "save"}, 1)
    assert read_line(connection) == {"error": "this VM was not started as saveable"}
    connection.close()
    until(lambda: is_over(pipe))
    os.close(pipe)
    until(lambda: descriptors(vm) <= before)
    assert vm.ask("save") == {"error": "no pipe came along"}
    assert vm.ask("saved", end=True) == {"error": "nothing of yours was saved"}
    assert vm.ask("overlays") == {"error": "nothing of yours was saved"}
    assert vm.ask("status")["phase"] == "running"


@pytest.mark.parametrize("request_", [{"do": "status"}, {"do": "nonsense"}, {"do": "saved"}])
@pytest.mark.parametrize("count", [1, 3])
def test_descriptors_that_nobody_asked_for_are_closed(make: Make, request_: dict[str, Any], count: int) -> None:
    vm = make()
    vm.ask("status")
    before = descriptors(vm)
    for _ in range(20):
        connection, pipe = send_with(vm, request_, count)
        read_line(connection)
        connection.close()
        until(lambda: is_over(pipe))  # noqa: B023 - called before the next round
        os.close(pipe)
    until(lambda: descriptors(vm) <= before)
