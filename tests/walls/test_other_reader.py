"""`--reader dissect` with a stand-in for the library that does what a parser in the hands of an image would do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from casemate import contents
from casemate.cell import other
from casemate.errors import HostError, InputError, VmError

pytestmark = pytest.mark.wall

FAKE = Path(__file__).parents[1] / "data" / "fake_dissect"
SOURCE = Path(__file__).parents[2] / "src" / "casemate"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the stand-in and a `target-fs` that names its Python."""
    place = tmp_path_factory.mktemp("dissect")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True, timeout=120)
    site = next(place.glob("lib/python3*/site-packages"))
    shutil.copytree(FAKE, site, dirs_exist_ok=True)
    program = place / "bin" / "target-fs"
    program.write_text(f"#!{place}/bin/python\n")
    program.chmod(0o755)
    for path in (place, *place.parents):  # the reader's uid is not ours
        if path.stat().st_uid == os.geteuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    return place


@pytest.fixture(autouse=True)
def found(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{environment}/bin:{os.environ['PATH']}")


def image(tmp_path: Path, word: str) -> str:
    path = tmp_path / "disk.img"
    path.write_bytes(word.encode().ljust(4096, b"\0"))
    path.chmod(0o600)  # only the descriptor can be read
    return str(path)


def test_reads_through_descriptors(tmp_path: Path) -> None:
    with contents.open_contents(image(tmp_path, "honest"), declared="raw", reader="dissect") as cell:
        volume = cell.system()
        assert (volume.name, volume.content, volume.os.pretty_name if volume.os else "") == (
            "disk",
            "fakefs",
            "Fake OS",
        )
        assert cell.read("disk", "/etc/os-release").startswith(b"ID=fake")
        assert [entry.path for entry in cell.walk("disk")] == [b"os-release", b"tried"]
        assert not cell.exists("disk", "/missing")
        with pytest.raises(InputError, match="no such file"):
            cell.read("disk", "/missing")
        with pytest.raises(InputError, match="is a directory"):
            cell.read("disk", "/etc")


def test_reaches_nothing_of_this_host(tmp_path: Path) -> None:
    with contents.open_contents(image(tmp_path, "reach"), declared="raw", reader="dissect") as cell:
        tried = cell.read("disk", "/tried").decode()
    assert tried.count("\n") == 6
    assert "reached" not in tried, tried


@pytest.mark.parametrize(
    ("word", "said"), [("memory", "MemoryError"), ("fork", "SIGSYS"), ("write", "protocol|greeting")]
)
def test_a_parser_that_runs_wild_ends(tmp_path: Path, word: str, said: str) -> None:
    how = contents.open_contents(image(tmp_path, word), declared="raw", reader="dissect")
    if word == "memory":  # caught where a file system is opened: the volume is not readable, and says why
        with how as cell:
            assert "MemoryError" in cell.volumes()[0].notes
        return
    with pytest.raises(VmError) as caught, how:
        pass
    assert any(part in str(caught.value) for part in said.split("|"))


def test_a_parser_that_never_ends_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other, "SILENCE_S", 2.0)
    how = contents.open_contents(image(tmp_path, "spin"), declared="raw", reader="dissect")
    with pytest.raises(VmError, match="silent"), how:
        pass


def test_it_must_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    how = contents.open_contents(image(tmp_path, "honest"), declared="raw", reader="dissect")
    with pytest.raises(HostError, match="needs Dissect") as caught, how:
        pass
    assert "dissect.target" in caught.value.next_step
    refused = contents.open_contents(image(tmp_path, "honest"), declared="raw", reader="dissect", keys=[b"x"])
    with pytest.raises(InputError, match="without keys"), refused:
        pass


def test_nothing_of_ours_imports_it() -> None:
    for path in SOURCE.rglob("*.py"):
        lines = [line.strip() for line in path.read_text().splitlines()]
        assert not [line for line in lines if line.startswith(("import dissect", "from dissect"))], path
