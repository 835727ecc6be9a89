"""Images that lie, lead elsewhere or do not fit, through the real program: refused, nothing started, nothing left."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.refusals import BOOT, RUN, Refusals, write_spec

pytestmark = [
    pytest.mark.boot,
    pytest.mark.skipif(
        shutil.which("qemu-system-x86_64") is None or (os.geteuid() == 0 and shutil.which("unshare") is None),
        reason="needs QEMU, and root needs unshare for directories of its own",
    ),
]


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Refusals]:
    made = Refusals(tmp_path)
    (tmp_path / "vmlinuz").write_bytes(b"\x7fELF" + bytes(4092))
    yield made
    made.clean()


def qemu_img(*words: str | Path) -> None:
    """Make an image with QEMU's own tool."""
    subprocess.run(["qemu-img", "create", "-q", *map(str, words)], check=True, timeout=60)


def _with_backing(path: Path) -> None:
    qemu_img("-f", "raw", path.with_name("base.raw"), "1M")
    qemu_img("-f", "qcow2", "-b", path.with_name("base.raw"), "-F", "raw", path)


def _with_json_backing(path: Path) -> None:
    name = 'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}'
    qemu_img("-f", "qcow2", "-u", "-b", name, "-F", "raw", path, "1M")


def _with_data_file(path: Path) -> None:
    qemu_img("-f", "qcow2", "-o", f"data_file={path}.data", path, "1M")


def _good(path: Path) -> None:
    qemu_img("-f", "qcow2", path, "1M")


def _patched(offset: int, data: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        _good(path)
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(data)

    return make


def _cut(size_bytes: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        _good(path)
        os.truncate(path, size_bytes)

    return make


def _raw(data: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(data)

    return make


BAD_IMAGES: dict[str, tuple[Callable[[Path], None], str, list[str]]] = {
    "backing file": (_with_backing, "qcow2", ["disk has a backing file", "got: '", "base.raw'", "next: if you trust"]),
    "json: backing file": (
        _with_json_backing,
        "qcow2",
        ["disk has a backing file", 'got: \'json:{"driver":"raw"', "expected: an image that needs no other file"],
    ),
    "external data file": (_with_data_file, "qcow2", ["disk keeps its data in an external file", "next: if you trust"]),
    "raw that is qcow2": (_good, "raw", ["disk is declared raw but has a qcow2 header", "next: say qcow2"]),
    "qcow2 that is raw": (
        _raw(bytes(4096)),
        "qcow2",
        ["disk is declared qcow2 but has no qcow2 header", "expected: a qcow2 image", "next: if it is a plain disk"],
    ),
    "VMDK": (
        _raw(b"KDMV" + bytes(1020)),
        "raw",
        ["disk is in the format VMDK but is declared raw", "qemu-img convert"],
    ),
    "unknown version": (_patched(4, b"\0\0\0\x09"), "qcow2", ["disk is qcow2 of an unknown version", "got: 9"]),
    "8 EiB": (_patched(24, b"\x80" + bytes(7)), "qcow2", ["disk is larger than a disk may be", "got: 8 EiB"]),
    "no bytes": (_patched(24, bytes(8)), "qcow2", ["disk holds a disk of 0 bytes", "next: give it a size"]),
    "a header and no more": (_cut(100), "qcow2", ["a qcow2 header that cannot be true", "got: a file of 100 bytes"]),
    "larger than its file": (
        _cut(70_000),
        "qcow2",
        ["disk is cut short or its header lies", "ends at byte", "the file at 70000", "next: get the image again"],
    ),
    "L1 table beyond the file": (_patched(40, b"\x40" + bytes(7)), "qcow2", ["casemate: error: ", "got: ", "next: "]),
    "empty": (_raw(b""), "raw", ["disk is empty", "got: 0 bytes"]),
    "half a sector": (_raw(bytes(513)), "raw", ["disk is not a whole raw disk", "got: 513 bytes", "truncate -s %512"]),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_an_image_that_is_refused(cli: Refusals, case: str) -> None:
    make, image_format, says = BAD_IMAGES[case]
    if make in {_with_backing, _with_json_backing, _with_data_file, _good} and shutil.which("qemu-img") is None:
        pytest.skip("needs qemu-img")
    make(cli.home / "disk")
    disk = ("--disk", f"{cli.home}/disk:{image_format}")
    cli.refused(2, [f"{cli.home}/", *says], *RUN, write_spec(cli, BOOT), *disk)
