"""Reading a specification from disk."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import pytest

from casemate.errors import InputError, SpecError
from casemate.spec.file import load_spec
from casemate.spec.parse import MAX_SPEC_BYTES

TODAY = datetime.date(2026, 10, 1)


def test_paths_start_from_the_directory_of_the_real_file(tmp_path: Path) -> None:
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs/vm.toml").write_text('[boot]\nkernel = "../k"')
    (tmp_path / "link.toml").symlink_to("specs/vm.toml")
    real = tmp_path.resolve()
    assert load_spec(tmp_path / "specs/vm.toml", today=TODAY).boot.kernel == f"{real}/k"
    assert load_spec(str(tmp_path / "link.toml"), today=TODAY).boot.kernel == f"{real}/k"


def test_relative_name_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vm.toml").write_text('[boot]\nkernel = "k"')
    monkeypatch.chdir(tmp_path)
    assert load_spec("vm.toml", today=TODAY).boot.kernel == f"{tmp_path.resolve()}/k"


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file") as caught:
        load_spec(tmp_path / "none.toml", today=TODAY)
    assert "ls -l" in caught.value.next_step


def test_special_files_do_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/null")):
        with pytest.raises(InputError, match="cannot read the specification"):
            load_spec(path, today=TODAY)


def test_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError):
        load_spec(tmp_path / "loop", today=TODAY)


def test_nul_in_path() -> None:
    with pytest.raises(InputError):
        load_spec("a\0b", today=TODAY)


def test_huge_file_is_refused_after_a_bounded_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.toml"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(SpecError, match=str(MAX_SPEC_BYTES)):
        load_spec(path, today=TODAY)


def test_terminal_codes_in_the_name_are_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[2J.toml"
    with pytest.raises(InputError) as missing:
        load_spec(path, today=TODAY)
    path.write_text("x = 1")
    with pytest.raises(SpecError) as caught:
        load_spec(path, today=TODAY)
    assert "\x1b" not in str(missing.value) + str(caught.value)


def test_faults_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "vm.toml"
    path.write_text("x = 1")
    with pytest.raises(SpecError, match=r"vm\.toml: 2 faults"):
        load_spec(path, today=TODAY)
