"""Where VMs' cgroups go: what systemd delegated comes first, for root too; the hierarchy's top is root's alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from casemate.engine import cgroups
from casemate.facts.cgroup import CgroupLayout, CgroupPlace
from casemate.facts.root import Root

CONTROLLERS = "cpu io memory pids"


class Hierarchy:
    """Directories with the files of version 2; a write to a control file is kept, and takes effect as the kernel's."""

    def __init__(self, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.top, self.delegated = top, set[str]()
        self.written = list[tuple[str, str]]()
        self.own = self.make(top / "system.slice" / "web.service")
        self.make(top)
        self.make(top / "casemate")
        monkeypatch.setattr(cgroups, "_write", self.write)
        monkeypatch.setattr(cgroups, "cgroup_layout", lambda _root: self.layout())
        monkeypatch.setattr(os, "getxattr", self.getxattr)

    def make(self, place: Path, handed_down: str = "") -> Path:
        place.mkdir(parents=True, exist_ok=True)
        (place / "cgroup.controllers").write_text(CONTROLLERS)
        (place / "cgroup.subtree_control").write_text(handed_down)
        return place

    def layout(self) -> CgroupLayout:
        place = CgroupPlace(2, str(self.top), f"/{self.own.relative_to(self.top)}", str(self.own))
        return CgroupLayout("v2", dict.fromkeys(CONTROLLERS.split(), place), place)

    def write(self, path: str, text: str) -> None:
        self.written.append((path, text))
        if path.endswith("subtree_control"):
            file = Path(path)
            file.write_text(f"{file.read_text()} {text.removeprefix('+')}")

    def getxattr(self, path: str, name: str) -> bytes:
        if name == "user.delegate" and path in self.delegated:
            return b"1"
        raise OSError(61, "No data available")


@pytest.fixture
def hierarchy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hierarchy:
    return Hierarchy(tmp_path, monkeypatch)


def as_uid(monkeypatch: pytest.MonkeyPatch, uid: int) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)


def test_root_stays_below_its_delegated_unit(hierarchy: Hierarchy, monkeypatch: pytest.MonkeyPatch) -> None:
    as_uid(monkeypatch, 0)
    hierarchy.delegated.add(str(hierarchy.own))
    base = cgroups.find_base(Root())
    assert base.version == 2
    assert base.parents == dict.fromkeys(("memory", "cpu", "pids", "io"), str(hierarchy.own))
    # Version 2 wants processes in leaves: we left the unit's own group before it handed controllers down.
    assert hierarchy.written[0] == (f"{hierarchy.own}/{cgroups.LEAF}/cgroup.procs", "0")
    assert all(path.startswith(str(hierarchy.own)) for path, _ in hierarchy.written)


def test_root_that_moved_already_finds_the_same_place(hierarchy: Hierarchy, monkeypatch: pytest.MonkeyPatch) -> None:
    as_uid(monkeypatch, 0)
    hierarchy.delegated.add(str(hierarchy.own))
    unit = hierarchy.own
    hierarchy.own = hierarchy.make(unit / cgroups.LEAF)
    assert set(cgroups.find_base(Root()).parents.values()) == {str(unit)}


def test_root_leaves_units_alone_that_are_not_delegated(hierarchy: Hierarchy, monkeypatch: pytest.MonkeyPatch) -> None:
    as_uid(monkeypatch, 0)
    base = cgroups.find_base(Root())
    assert set(base.parents.values()) == {f"{hierarchy.top}/casemate"}
    assert not any(str(hierarchy.own) in path for path, _ in hierarchy.written)
    assert "io" in base.parents


def test_an_ordinary_user_needs_no_mark_but_the_right_to_write(
    hierarchy: Hierarchy, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_uid(monkeypatch, 1000)
    assert set(cgroups.find_base(Root()).parents.values()) == {str(hierarchy.own)}
    monkeypatch.setattr(os, "access", lambda *_a, **_k: False)
    base = cgroups.find_base(Root())
    assert base.version == 0
    assert "Delegate=yes" in base.why_none
