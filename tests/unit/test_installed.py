"""The version that runs here."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from casemate.installed import installed_version


def test_the_version_is_that_of_the_installation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As importlib.metadata says it, without importing a parser of mail for it."""
    installed_version.cache_clear()
    assert installed_version() == version("casemate")
    installed_version.cache_clear()
    (tmp_path / "casemate-of-mine.dist-info").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), "/nonexistent"])
    assert installed_version() == "unknown"
    installed_version.cache_clear()
