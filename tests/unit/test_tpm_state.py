"""Where a VM's TPM lives: which key it gets, what is thrown away, what is refused. No swtpm is started."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.tpm_case import VM_ID, paths_in, plan_with

from casemate.engine import tpm_state
from casemate.engine.opening import Opened
from casemate.errors import HostError, InputError
from casemate.plan.swtpm import KEY_BYTES


def prepare(folder: Path, **options: object) -> tuple[tpm_state.Home, bytes]:
    """One launch as far as the key."""
    opened = Opened()
    try:
        home = tpm_state.prepare(plan_with(**options), paths_in(folder), opened)  # type: ignore[arg-type]
        return home, os.pread(opened.by_role["tpm-key"], 4096, 0)
    finally:
        opened.close()


def settle(home: tpm_state.Home) -> None:
    home.settle(tpm_state.Keys("aa", "bb", "2026-11-23T00:00:00.000Z"))


def home_of(folder: Path) -> Path:
    return folder / "data" / "vms" / VM_ID / "tpm"


def test_a_key_is_kept_once_there_is_a_tpm_and_not_before(tmp_path: Path) -> None:
    first, key = prepare(tmp_path)
    assert (first.fresh, first.directory) == (True, str(home_of(tmp_path) / "new"))
    assert len(key) == KEY_BYTES
    assert stat.S_IMODE((home_of(tmp_path) / "key").stat().st_mode) == 0o600
    # The launch died: what it made is thrown away, and so is its key.
    (home_of(tmp_path) / "new" / "tpm2-00.permall").write_bytes(b"half")
    second, other = prepare(tmp_path)
    assert second.fresh
    assert other != key
    assert os.listdir(home_of(tmp_path) / "new") == []
    settle(second)
    third, same = prepare(tmp_path)
    assert (third.fresh, third.directory, same) == (False, str(home_of(tmp_path) / "state"), other)
    assert not (home_of(tmp_path) / "new").exists()


def test_a_lost_or_cut_key_is_said(tmp_path: Path) -> None:
    home, _ = prepare(tmp_path)
    settle(home)
    path = home_of(tmp_path) / "key"
    for content in (b"", b"x" * 31, b"x" * 33):
        path.write_bytes(content)
        with pytest.raises(HostError, match="cannot be read without it"):
            prepare(tmp_path)
    path.unlink()
    with pytest.raises(HostError, match="cannot be read without it"):
        prepare(tmp_path)


def test_a_vm_that_removes_itself_leaves_no_directory(tmp_path: Path) -> None:
    home, key = prepare(tmp_path, keeps_state=False)
    assert (home.directory, home.fresh) == (None, True)
    assert key != prepare(tmp_path, keeps_state=False)[1]
    assert not home_of(tmp_path).exists()


def document(path: Path) -> dict[str, object]:
    return {"tpm": {"enabled": True, "key": "s"}, "secrets": {"s": {"file": str(path), "use": "tpm"}}}


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=20, max_size=200), st.binary(min_size=20, max_size=200))
def test_a_key_follows_from_its_secret_and_shows_nothing_of_it(tmp_path: Path, one: bytes, two: bytes) -> None:
    path = tmp_path / "secret"
    keys = []
    for value in (one, two, one):
        path.touch(mode=0o600)
        path.write_bytes(value)
        keys.append(prepare(tmp_path, document=document(path))[1])
    assert keys[0] == keys[2]
    assert (keys[0] == keys[1]) is (one == two)
    assert all(len(key) == KEY_BYTES and key not in (one, two) for key in keys)
    assert not (home_of(tmp_path) / "key").exists()


@pytest.mark.parametrize("size", [1, 19, 4097])
def test_secrets_of_the_wrong_size_are_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "secret"
    path.touch(mode=0o600)
    path.write_bytes(b"x" * size)
    with pytest.raises(InputError):
        prepare(tmp_path, document=document(path))


def test_the_key_is_sealed_memory(tmp_path: Path) -> None:
    opened = Opened()
    tpm_state.prepare(plan_with(), paths_in(tmp_path), opened)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(opened.by_role["tpm-key"], b"x")
    opened.close()


def test_before_the_first_start_there_is_nothing_to_show(tmp_path: Path) -> None:
    shown = tpm_state.public_view(paths_in(tmp_path), VM_ID)
    assert set(shown.values()) == {""}
