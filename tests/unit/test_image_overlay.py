"""The empty overlay: QEMU's own tools find nothing wrong with it and can use it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from casemate.image.headers import inspect_image
from casemate.image.overlay import MAX_OVERLAY_BYTES, write_empty_qcow2

needs_qemu = pytest.mark.skipif(shutil.which("qemu-io") is None, reason="qemu-io (package qemu-utils) is missing")

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
SIZES = [
    512,
    1024,
    MIB,
    512 * MIB - 512,
    512 * MIB,
    512 * MIB + 512,
    GIB,
    20 * GIB,
    TIB,
    2 * TIB - 512,
    2 * TIB,
    4 * TIB + 512,
]


def write(path: Path, size_bytes: int) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    write_empty_qcow2(fd, size_bytes)
    os.close(fd)


def run(*command: object) -> str:
    done = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True, timeout=60)
    return done.stdout


@needs_qemu
@pytest.mark.parametrize("size_bytes", [*SIZES, MAX_OVERLAY_BYTES])
def test_qemu_finds_no_fault(tmp_path: Path, size_bytes: int) -> None:
    path = tmp_path / "overlay.qcow2"
    write(path, size_bytes)
    check = json.loads(run("qemu-img", "check", "--output=json", "-f", "qcow2", path))
    assert check["check-errors"] == 0
    assert check.get("leaks", 0) == check.get("corruptions", 0) == 0
    info = json.loads(run("qemu-img", "info", "--output=json", "-f", "qcow2", path))
    assert info["virtual-size"] == size_bytes
    assert "backing-filename" not in info


@needs_qemu
@pytest.mark.parametrize("size_bytes", [MIB, 20 * GIB, 2 * TIB])
def test_qemu_can_write_first_and_last_sector(tmp_path: Path, size_bytes: int) -> None:
    path = tmp_path / "overlay.qcow2"
    write(path, size_bytes)
    last = size_bytes - 512
    run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 512", "-c", f"write -P 2 {last} 512", path)
    out = run(
        "qemu-io",
        "-f",
        "qcow2",
        "-c",
        "read -P 1 0 512",
        "-c",
        f"read -P 2 {last} 512",
        "-c",
        "read -P 0 512 512",
        path,
    )
    assert "verification failed" not in out
    run("qemu-img", "check", "-q", "-f", "qcow2", path)


@needs_qemu
def test_joined_to_a_base_by_option(tmp_path: Path) -> None:
    """As in a VM: the overlay names no file, the base is joined when it is opened, and the base stays as it was."""
    base, overlay = tmp_path / "base.raw", tmp_path / "overlay.qcow2"
    base.write_bytes(b"\x07" * MIB)
    write(overlay, MIB)
    joined = json.dumps(
        {
            "driver": "qcow2",
            "file": {"driver": "file", "filename": str(overlay)},
            "backing": {"driver": "raw", "read-only": True, "file": {"driver": "file", "filename": str(base)}},
        }
    )
    out = run(
        "qemu-io", "-c", "write -P 9 4096 512", "-c", "read -P 9 4096 512", "-c", "read -P 7 0 4096", f"json:{joined}"
    )
    assert "verification failed" not in out
    assert base.read_bytes() == b"\x07" * MIB
    fd = os.open(overlay, os.O_RDONLY)
    assert inspect_image(fd, "overlay", "qcow2").virtual_size_bytes == MIB
    os.close(fd)


def test_costs_little_disk(tmp_path: Path) -> None:
    write(tmp_path / "overlay.qcow2", 2 * TIB)
    assert (tmp_path / "overlay.qcow2").stat().st_blocks * 512 <= 256 * 1024


@pytest.mark.parametrize("size_bytes", [0, -512, 1000, MAX_OVERLAY_BYTES + 512])
def test_impossible_size_is_our_bug(tmp_path: Path, size_bytes: int) -> None:
    with pytest.raises(RuntimeError, match="overlay size"):
        write(tmp_path / "overlay.qcow2", size_bytes)


def test_only_into_an_empty_regular_file(tmp_path: Path) -> None:
    (tmp_path / "full").write_bytes(b"precious")
    fd = os.open(tmp_path / "full", os.O_RDWR)
    with pytest.raises(RuntimeError, match="empty regular file"):
        write_empty_qcow2(fd, MIB)
    os.close(fd)
    assert (tmp_path / "full").read_bytes() == b"precious"
    read_end, write_end = os.pipe()
    with pytest.raises(RuntimeError, match="empty regular file"):
        write_empty_qcow2(write_end, MIB)
    os.close(read_end)
    os.close(write_end)


def test_read_only_descriptor_fails_loudly(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    fd = os.open(tmp_path / "empty", os.O_RDONLY)
    with pytest.raises(OSError, match=r"Bad file|Invalid"):
        write_empty_qcow2(fd, MIB)
    os.close(fd)
