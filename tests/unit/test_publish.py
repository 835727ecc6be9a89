"""Publishing into a directory: whole or not at all, never over another file, with checksums that sha256sum accepts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.cell.publish import publish_file
from casemate.errors import ImageError, InputError


@pytest.fixture
def image(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "image"
    path.write_bytes(b"start" + bytes(9 << 20) + b"end")
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_the_file_and_its_checksum(image: int, target: Path) -> None:
    (target / "SHA256SUMS").write_text("0" * 64 + "  other\n" + "1" * 64 + "  debian.img\n")
    path, digest = publish_file(image, str(target), "debian.img")
    assert Path(path).read_bytes() == b"start" + bytes(9 << 20) + b"end"
    assert (target / "SHA256SUMS").read_text() == "0" * 64 + f"  other\n{digest}  debian.img\n"
    (target / "other").write_bytes(b"")
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=target, capture_output=True, text=True, check=False)
    assert "debian.img: OK" in done.stdout
    assert Path(path).stat().st_mode & 0o777 == 0o644 & ~_umask()
    assert publish_file(image, str(target), "debian.img") == (path, digest), "the same again is no error"


def _umask() -> int:
    old = os.umask(0)
    os.umask(old)
    return old


def test_another_file_of_that_name_stays(image: int, target: Path) -> None:
    (target / "debian.img").write_text("older")
    with pytest.raises(InputError, match="another file"):
        publish_file(image, str(target), "debian.img")
    assert (target / "debian.img").read_text() == "older"
    assert [path.name for path in target.iterdir()] == ["debian.img"]


def test_an_image_that_changed_leaves_nothing(image: int, target: Path) -> None:
    def changed() -> None:
        raise ImageError("it changed")

    with pytest.raises(ImageError):
        publish_file(image, str(target), "debian.img", check=changed)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "SHA256SUMS", "-x", "a\nb", "x" * 300])
def test_names_that_are_none(image: int, target: Path, name: str) -> None:
    with pytest.raises(InputError):
        publish_file(image, str(target), name)
    assert list(target.iterdir()) == []


def test_a_directory_that_is_not_there(image: int, target: Path) -> None:
    with pytest.raises(InputError, match="cannot publish"):
        publish_file(image, str(target / "nothing"), "x.img")
