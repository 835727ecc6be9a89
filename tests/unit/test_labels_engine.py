"""Noting and restoring labels of files. Labels themselves need a kernel with an LSM: tests/boot/test_mac.py.

The attribute stands in for SELinux's here: extended attributes are real, the name is one that any user may set.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from casemate.engine import files, labels
from casemate.engine.labels import LabelledFile, Labels, detect_mac, restore_labels
from casemate.engine.paths import Paths

OURS = "u:object_r:casemate_image_t:s0:c1,c2"


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setattr(labels, "XATTR", "user.casemate-test")
    probe = tmp_path / "probe"
    probe.touch()
    try:
        os.setxattr(probe, "user.casemate-test", b"x")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    (tmp_path / "data" / "vms" / "1").mkdir(parents=True)
    return Paths(str(tmp_path / "run"), str(tmp_path / "data"), str(tmp_path / "cache"))


def labelled(path: Path, label: str, *, previous: str = "u:object_r:home_t:s0") -> LabelledFile:
    path.touch()
    os.setxattr(path, labels.XATTR, label.encode())
    status = path.stat()
    return LabelledFile(str(path), status.st_dev, status.st_ino, previous, OURS)


def note(paths: Paths, *items: LabelledFile) -> Path:
    target = Path(f"{paths.vm_data('1')}/labels.json")
    files.write_json(str(target), Labels(files=items))
    return target


def label(path: Path) -> bytes:
    return os.getxattr(path, labels.XATTR)


def test_the_earlier_label_returns_and_the_note_goes(paths: Paths, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    written = note(paths, labelled(disk, OURS))
    restore_labels(paths, "1")
    assert label(disk) == b"u:object_r:home_t:s0"
    assert not written.exists()


def test_a_file_that_somebody_else_labelled_is_left_alone(paths: Paths, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    note(paths, labelled(disk, "u:object_r:theirs_t:s0"))
    restore_labels(paths, "1")
    assert label(disk) == b"u:object_r:theirs_t:s0"


def test_a_file_that_was_replaced_is_left_alone(paths: Paths, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    item = labelled(disk, OURS)
    note(paths, item)
    other = tmp_path / "other"
    labelled(other, OURS)
    other.rename(disk)
    restore_labels(paths, "1")
    assert label(disk) == OURS.encode()


def test_a_symbolic_link_in_its_place_is_not_followed(paths: Paths, tmp_path: Path) -> None:
    disk, away = tmp_path / "disk", tmp_path / "away"
    note(paths, labelled(disk, OURS))
    disk.rename(away)
    disk.symlink_to(away)
    restore_labels(paths, "1")
    assert label(away) == OURS.encode()


def test_what_is_gone_or_damaged_stops_nobody(paths: Paths, tmp_path: Path) -> None:
    written = note(paths, LabelledFile(str(tmp_path / "gone"), 1, 2, "x", OURS))
    restore_labels(paths, "1")
    assert not written.exists()
    written.write_bytes(b"{torn")
    restore_labels(paths, "1")


def test_this_host_has_the_lsm_that_its_kernel_lists() -> None:
    found = detect_mac()
    try:
        listed = Path("/sys/kernel/security/lsm").read_text(encoding="ascii").strip().split(",")
    except OSError:
        pytest.skip("securityfs is not mounted")
    labelling = [name for name in listed if name in {"selinux", "apparmor"}]
    assert ([found.module] if found else []) == labelling
