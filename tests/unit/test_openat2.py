"""A path with ``..`` while others rename or mount: the kernel may refuse for a moment, and is asked again."""

from __future__ import annotations

import os

import pytest

from casemate.sys import openat2
from casemate.sys.openat2 import RESOLVE_IN_ROOT


def test_it_gives_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    def busy(*_: object) -> int:
        tries.append(1)
        raise BlockingIOError(11, "try again")

    monkeypatch.setattr(openat2, "syscall", busy)
    monkeypatch.setattr(openat2, "_PAUSE_S", 0)
    with pytest.raises(BlockingIOError, match="try again"):
        openat2.openat2(-1, "x", os.O_RDONLY, RESOLVE_IN_ROOT)
    assert len(tries) > 10


def test_it_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[int | OSError] = [BlockingIOError(11, "try again"), BlockingIOError(11, "try again"), 7]

    def busy(*_: object) -> int:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(openat2, "syscall", busy)
    assert openat2.openat2(-1, "x", os.O_RDONLY, RESOLVE_IN_ROOT) == 7
