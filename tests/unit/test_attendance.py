"""The end of a run as its starter hears it, whatever has become of the VM's files by then."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.engine import attendance, control, files, state
from casemate.engine.paths import Paths, prepare
from casemate.errors import InputError, VmError
from casemate.spec.model import Spec

ENDED = {"reason": "guest powered off", "code": 0, "detail": "", "finished_at": "2026-01-02T03:04:05.006Z"}
WORD = json.dumps({"exited": ENDED}).encode() + b"\n"


class Run:
    """A VM of whose run only the connections are real; ``supervisor`` is the other end of the watch."""

    def __init__(self, base: Path) -> None:
        self.paths = Paths(f"{base}/run", f"{base}/data", f"{base}/cache")
        prepare(self.paths)
        self.definition = state.create(self.paths, Spec(), remove_on_exit=True)
        made = attendance.Attendance("end")
        self.supervisor = socket.socket(fileno=os.dup(made.supervisor_ends()["end"]))
        made.handed_over()
        self.watch = made.watch(self.paths, self.definition)
        assert made.console() is None
        made.close()

    def remove(self) -> None:
        files.remove_tree(self.paths.vm_data(self.definition.id))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path)
    yield made
    made.watch.close()
    made.supervisor.close()


@pytest.mark.parametrize("pieces", [[WORD], [WORD[:1], WORD[1:40], WORD[40:]]])
def test_the_supervisor_says_how_it_ended(run: Run, pieces: list[bytes]) -> None:
    assert run.watch.wait(0.05) is None
    for piece in pieces:
        run.supervisor.send(piece)
        assert run.watch.wait(0.05) is None, "it has not gone yet"
    run.remove()
    run.supervisor.close()
    end = run.watch.wait(5)
    assert end is not None
    assert (end.reason, end.code, end.finished_at) == (ENDED["reason"], 0, ENDED["finished_at"])
    assert run.watch.wait(5) == end


def test_the_file_of_the_same_run_knows_more(run: Run) -> None:
    path = f"{run.paths.vm_data(run.definition.id)}/exit.json"
    Path(path).write_text(json.dumps({**ENDED, "uid": 77}))
    run.supervisor.send(WORD)
    run.supervisor.close()
    end = run.watch.wait(5)
    assert end is not None
    assert end.uid == 77


def test_the_file_of_a_later_run_is_not_ours(run: Run) -> None:
    path = f"{run.paths.vm_data(run.definition.id)}/exit.json"
    Path(path).write_text(
        json.dumps({**ENDED, "reason": "killed", "code": 5, "finished_at": "2026-01-02T09:00:00.000Z"})
    )
    run.supervisor.send(WORD)
    run.supervisor.close()
    end = run.watch.wait(5)
    assert end is not None
    assert end.reason == ENDED["reason"]


@pytest.mark.parametrize("last", [b"", WORD[:30], b"[]\n", b"{}\n", b"\xff", b"x" * (2 * control.WORDS_MAX_BYTES)])
def test_a_supervisor_that_falls_silent_has_died(run: Run, last: bytes) -> None:
    run.remove()  # as another command does that was faster
    run.supervisor.setblocking(False)
    if last:
        run.supervisor.send(last)
    run.supervisor.close()
    end = run.watch.wait(5)
    assert end is not None
    assert (end.reason, end.code) == ("supervisor died", 5)


def test_a_watch_that_nobody_ever_answered_knows_nothing(run: Run) -> None:
    late = control.EndWatch(run.paths, run.definition)
    with pytest.raises(InputError, match="has not run yet"):
        late.wait(5)
    run.remove()
    with pytest.raises(VmError, match="left no word"):
        late.wait(5)
