"""Properties of the image readers: never another error, and never an image that QEMU would read differently."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from casemate.errors import ImageError
from casemate.image.headers import ImageHeader, inspect_image
from casemate.image.overlay import MAX_OVERLAY_BYTES, write_empty_qcow2
from casemate.image.signatures import SIGNATURES

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img (package qemu-utils) is missing")

CLUSTER = 1 << 16
FIELDS = {
    "magic": (0, "I"), "version": (4, "I"), "backing_offset": (8, "Q"), "backing_size": (16, "I"),
    "cluster_bits": (20, "I"),
    "size": (24, "Q"), "crypt": (32, "I"), "l1_size": (36, "I"), "l1_offset": (40, "Q"), "refcount_offset": (48, "Q"),
    "refcount_clusters": (56, "I"), "snapshots": (60, "I"), "snapshots_offset": (64, "Q"), "incompatible": (72, "Q"),
    "compatible": (80, "Q"), "autoclear": (88, "Q"), "refcount_order": (96, "I"), "header_length": (100, "I"),
    "compression": (104, "B"), "extension": (104, "Q"), "extension_2": (112, "Q"),
    "refcount_entry": (CLUSTER, "Q"), "l1_entry": (3 * CLUSTER, "Q"),
}  # fmt: skip
EXTENSION_KINDS = (0xE2792ACA, 0x6803F857, 0x23852875, 0x0537BE77, 0x44415441)
interesting = st.one_of(
    st.integers(0, 130),
    st.integers(0, 63).map(lambda bit: 1 << bit),
    st.integers(0, 8).map(lambda cluster: cluster * CLUSTER),
    st.sampled_from(EXTENSION_KINDS).flatmap(lambda kind: st.integers(0, 40).map(lambda length: kind << 32 | length)),
    st.integers(0, (1 << 64) - 1),
)
changes = st.lists(st.tuples(st.sampled_from(sorted(FIELDS)), interesting), min_size=1, max_size=4)


@contextmanager
def memory_file() -> Iterator[int]:
    fd = os.memfd_create("image", os.MFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def apply(fd: int, edits: list[tuple[str, int]]) -> None:
    for name, value in edits:
        offset, code = FIELDS[name]
        bits = struct.calcsize(code) * 8
        os.pwrite(fd, struct.pack(">" + code, value % (1 << bits)), offset)


def judge(fd: int, declared: str | None = "qcow2") -> ImageHeader | None:
    try:
        return inspect_image(fd, "image", declared)
    except ImageError as error:
        message = str(error)
    assert "image" in message
    assert all(char.isprintable() or char == "\n" for char in message)
    return None


@given(st.integers(1, MAX_OVERLAY_BYTES // 512))
@settings(deadline=None)
def test_overlay_of_any_size(sectors: int) -> None:
    with memory_file() as fd:
        write_empty_qcow2(fd, sectors * 512)
        header = inspect_image(fd, "image", "qcow2", MAX_OVERLAY_BYTES)
        assert header.virtual_size_bytes == sectors * 512
        assert (header.snapshots, header.bitmaps, header.dirty, header.encrypted) == (0, 0, False, False)


@needs_qemu_img
@given(st.integers(1, (4 << 40) // 512))
@settings(max_examples=25, deadline=None)
def test_qemu_finds_no_fault_in_an_overlay_of_any_size(sectors: int) -> None:
    with tempfile.NamedTemporaryFile() as file:
        write_empty_qcow2(file.fileno(), sectors * 512)
        command = ["qemu-img", "check", "--output=json", "-f", "qcow2", file.name]
        done = subprocess.run(command, check=True, capture_output=True, timeout=60)
        report = json.loads(done.stdout)
        assert report["check-errors"] == report.get("leaks", 0) == report.get("corruptions", 0) == 0


@given(changes)
@settings(max_examples=400, deadline=None)
def test_changed_headers_give_an_answer(edits: list[tuple[str, int]]) -> None:
    with memory_file() as fd:
        write_empty_qcow2(fd, 40 << 20)
        apply(fd, edits)
        header = judge(fd)
        if header is not None:
            raw = os.pread(fd, 104, 0)
            assert struct.unpack_from(">Q", raw, 8)[0] == 0
            assert header.version == 2 or struct.unpack_from(">Q", raw, 72)[0] & ~0b11001 == 0


@needs_qemu_img
@example([("snapshots_offset", 1 << 63)])
@example([("extension", 0x23852875 << 32)])
@given(changes)
@settings(max_examples=120, deadline=None)
def test_qemu_opens_what_is_accepted_and_sees_no_other_file(edits: list[tuple[str, int]]) -> None:
    """The oracle: an accepted header never surprises QEMU, which agrees on every size and names no second file."""
    with tempfile.NamedTemporaryFile() as file:
        write_empty_qcow2(file.fileno(), 40 << 20)
        apply(file.fileno(), edits)
        header = judge(file.fileno())
        if header is None:
            return
        command = ["qemu-img", "info", "--output=json", "-f", "qcow2", file.name]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{edits}: accepted {header}, but {done.stderr}"
        info = json.loads(done.stdout)
        assert info["virtual-size"] == header.virtual_size_bytes
        assert info["cluster-size"] == header.cluster_size_bytes
        assert "backing-filename" not in info
        assert "data-file" not in info["format-specific"]["data"]
        assert not info.get("encrypted", False)


@given(st.binary(max_size=2048), st.sampled_from([None, "raw", "qcow2"]), st.sampled_from(SIGNATURES) | st.none())
@settings(max_examples=400, deadline=None)
def test_any_bytes_give_an_answer(data: bytes, declared: str | None, signature: object) -> None:
    magic = getattr(signature, "magic", b"")
    with memory_file() as fd:
        os.write(fd, magic + data)
        header = judge(fd, declared)
        if header is not None:
            assert header.format == "qcow2" or header.virtual_size_bytes == len(magic + data)
            assert header.format == (declared or header.format)
