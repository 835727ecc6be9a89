"""Emulators and helpers among all processes of a tree: by program, by name, by what they hold; never by arguments."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.elf_builder import put

from casemate.facts.process_find import find_one, find_processes
from casemate.facts.root import Root

STAT = "{pid} ({name}) S {parent} {pid} {pid} 0 -1 {flags} 0 0 0 0 0 0 0 0 20 0 1 0 {start} 0 0 0\n"


def process(tree: Path, pid: int, name: str, *, exe: str = "", parent: int = 1, flags: int = 0) -> None:
    """One process: its line in stat, and the link to its program when it is readable."""
    put(
        tree,
        f"/proc/{pid}/stat",
        STAT.format(pid=pid, name=name, parent=parent, flags=flags, start=1000 + pid).encode(),
    )
    (tree / f"proc/{pid}/fd").mkdir()
    if exe:
        (tree / f"proc/{pid}/exe").symlink_to(exe)


def test_emulators_and_helpers_are_told_apart(tmp_path: Path) -> None:
    process(tmp_path, 10, "qemu-system-x86", exe="/usr/bin/qemu-system-x86_64")
    process(tmp_path, 11, "swtpm", exe="/usr/bin/swtpm", parent=10)
    process(tmp_path, 12, "bash", exe="/usr/bin/bash")
    process(tmp_path, 13, "kthread", flags=0x0020_0000)
    process(tmp_path, 14, "renamed", exe="/opt/evil")
    (tmp_path / "proc/14/fd/9").symlink_to("anon_inode:kvm-vm")
    process(tmp_path, 15, "cloud-hyperviso")
    put(tmp_path, "/proc/16/stat", b"nonsense")
    put(tmp_path, "/proc/self/stat", b"x")
    found = find_processes(Root(tmp_path))
    assert [(p.pid, p.kind) for p in found.emulators] == [(10, "qemu"), (14, "unknown"), (15, "cloud-hypervisor")]
    assert [(p.pid, p.kind, p.is_helper, p.parent) for p in found.helpers] == [(11, "swtpm", True, 10)]
    assert found.looked_at == 7


def test_device_processes_of_crosvm_are_helpers_of_their_parent(tmp_path: Path) -> None:
    process(tmp_path, 20, "crosvm", exe="/usr/bin/crosvm")
    process(tmp_path, 21, "crosvm", exe="/usr/bin/crosvm", parent=20)
    process(tmp_path, 22, "crosvm", exe="/usr/bin/crosvm", parent=20)
    process(tmp_path, 30, "crosvm", exe="/usr/bin/crosvm")
    found = find_processes(Root(tmp_path))
    assert [p.pid for p in found.emulators] == [20, 30]
    assert [(p.pid, p.parent, p.is_helper) for p in found.helpers] == [(21, 20, True), (22, 20, True)]


@pytest.mark.parametrize("pid", [99, 16])
def test_one_that_is_not_there(tmp_path: Path, pid: int) -> None:
    put(tmp_path, "/proc/16/stat", b"nonsense")
    with pytest.raises(ProcessLookupError):
        find_one(Root(tmp_path), pid)


def test_a_removed_program_is_still_known_by_its_name(tmp_path: Path) -> None:
    process(tmp_path, 10, "x", exe="/usr/bin/qemu-system-x86_64 (deleted)")
    assert find_one(Root(tmp_path), 10).kind == "qemu"
