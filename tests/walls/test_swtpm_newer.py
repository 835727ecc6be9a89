"""A swtpm newer than the host's in the very same wall: its whole life, twice.

Not part of ./check: it needs one unpacked beside the system, with libraries. CASEMATE_TEST_NEWER_SWTPM=DIR names it:
what ``apt-get download`` and ``dpkg-deb -x`` make of Debian unstable's swtpm, libtpms0, swtpm-libs and their libraries.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.tpm_case import VM_ID, Running, in_child, paths_in, plan_with

from casemate.engine import owned, swtpm, tpm_commands
from casemate.facts.closure import needed_closure
from casemate.facts.root import Root
from casemate.plan.swtpm import PROGRAM, swtpm_wall

NEWER = os.environ.get("CASEMATE_TEST_NEWER_SWTPM", "")
pytestmark = [
    pytest.mark.wall,
    pytest.mark.skipif(not NEWER, reason="CASEMATE_TEST_NEWER_SWTPM names no unpacked swtpm"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    paths_in(tmp_path)
    yield tmp_path
    owned.remove(str(tmp_path / "data" / "vms" / VM_ID / "tpm"))


@pytest.fixture(autouse=True)
def _newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall's root holds the newer program with its own loader and libraries."""
    program = "/usr/bin/swtpm"
    files = {PROGRAM: program, **{item.target: item.source for item in needed_closure(program, Root(NEWER))}}
    inside = {target: os.path.realpath(f"{NEWER}{source}") for target, source in files.items()}

    def walled(helper: Any, wall: Any, _: object, directory: Any) -> Any:
        return swtpm_wall(helper, wall, inside, directory)

    monkeypatch.setattr(swtpm, "swtpm_wall", walled)


def test_its_whole_life_in_the_wall(folder: Path) -> None:
    def first() -> dict[str, object]:
        running = Running(plan_with(), paths_in(folder))
        try:
            running.boot()
            running.extend(16)
            running.define_nv(b"it stays")
            return {"ak": running.public(tpm_commands.AK_HANDLE).hex(), "observed": running.observed()}
        finally:
            running.end()

    def second() -> dict[str, object]:
        running = Running(plan_with(1), paths_in(folder))
        try:
            running.boot()
            return {"ak": running.public(tpm_commands.AK_HANDLE).hex(), "nv": running.read_nv(8).decode()}
        finally:
            running.end()

    one, two = in_child(first), in_child(second)
    assert isinstance(one, dict)
    assert isinstance(two, dict)
    assert (two["ak"], two["nv"]) == (one["ak"], "it stays")
    assert one["observed"]["tpm.wall-faults"] == []
