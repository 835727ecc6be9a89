"""Base directories: whose they may be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from casemate.engine import paths
from casemate.errors import HostError


def test_the_session_of_another_user_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/proc")
    with pytest.raises(HostError, match="XDG_RUNTIME_DIR is the directory of another user") as refused:
        paths.default_paths()
    assert "unset XDG_RUNTIME_DIR" in refused.value.next_step


def test_a_runtime_directory_that_is_not_there_yet_is_no_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    assert paths.default_paths().runtime == f"{tmp_path}/run/casemate"
