"""A qcow2 disk read for its boot loader is what qemu-img made it from; tables that lie give an error or zeros."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.errors import CasemateError
from casemate.image.qcow2 import read_fixed
from casemate.image.reader import ImageReader
from casemate.measure.gpt import Read
from casemate.measure.qcow2 import qcow2_reader

FORMS = {
    "plain": [],
    "packed": ["-c"],
    "extended": ["-o", "extended_l2=on,cluster_size=128k"],
    "packed-extended": ["-c", "-o", "extended_l2=on,cluster_size=32k"],
    "small": ["-o", "cluster_size=512"],
    "old": ["-o", "compat=0.10"],
}
SIZE = 3 << 20


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, Path]]:
    if shutil.which("qemu-img") is None:
        pytest.skip("qemu-img is not installed")
    where = tmp_path_factory.mktemp("qcow2")
    noise = random.Random(7)
    data = bytearray(SIZE)
    for start in range(0, SIZE, 300_000):
        data[start : start + 50_000] = noise.randbytes(25_000) + b"x" * 25_000
    raw = where / "raw"
    raw.write_bytes(data)
    found = {}
    for name, options in FORMS.items():
        found[name] = where / f"{name}.qcow2"
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", *options, raw, found[name]], check=True)
    return bytes(data), found


def reader(path: Path, change: Callable[[bytearray], None] = lambda _: None) -> Read:
    with path.open("rb") as file:
        fixed = read_fixed(ImageReader(file.fileno(), path.name))
    data = bytearray(path.read_bytes())
    change(data)
    return qcow2_reader(lambda offset, length: bytes(data[offset : offset + length]), fixed)


@pytest.mark.parametrize("form", FORMS)
def test_what_the_guest_sees(form: str, disks: tuple[bytes, dict[str, Path]]) -> None:
    data, paths = disks
    read = reader(paths[form])
    assert read(0, SIZE) == data
    assert read(SIZE - 10, 100) == data[-10:]
    assert read(SIZE, 10) == b""
    noise = random.Random(form)
    for _ in range(200):
        offset, length = noise.randrange(SIZE), noise.randrange(200_000)
        assert read(offset, length) == data[offset : offset + length]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_tables_that_lie(disks: tuple[bytes, dict[str, Path]], data: st.DataObject) -> None:
    path = disks[1][data.draw(st.sampled_from(sorted(FORMS)))]
    places = data.draw(st.lists(st.tuples(st.integers(512, 600_000), st.integers(0, 255)), max_size=20))

    def change(image: bytearray) -> None:
        for place, value in places:
            image[place % len(image)] = value

    read = reader(path, change)
    for offset in (0, 512, 70_000, SIZE - 512):
        try:
            assert len(read(offset, 512)) == 512
        except CasemateError:
            continue


def test_zstd_is_refused(disks: tuple[bytes, dict[str, Path]], tmp_path: Path) -> None:
    target = tmp_path / "zstd.qcow2"
    options = ["-c", "-o", "compression_type=zstd"]
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", *options, disks[1]["plain"], target], check=True)
    with pytest.raises(CasemateError, match="zstd"):
        reader(target)(0, 512)
