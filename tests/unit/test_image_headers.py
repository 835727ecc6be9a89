"""What is accepted as an image. ``qemu-img`` writes the images and is the oracle; the product never runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.support.qemu_luks import create_luks

from casemate.errors import ExitCode, ImageError
from casemate.image.headers import ImageHeader, inspect_image
from casemate.image.signatures import SIGNATURES, Kind, recognise

MIB = 1 << 20
GIB = 1 << 30

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img (package qemu-utils) is missing")

PLAIN_OPTIONS = [
    "compat=0.10",
    "compat=1.1",
    *(f"cluster_size={1 << bits}" for bits in range(9, 22)),
    *(f"refcount_bits={1 << order}" for order in range(7)),
    "lazy_refcounts=on",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k",
    "extended_l2=on,cluster_size=2M",
    "compression_type=zstd",
    "compression_type=zlib",
    "preallocation=metadata",
    "preallocation=falloc",
    "preallocation=metadata,cluster_size=512",
    "preallocation=metadata,extended_l2=on",
    "compat=0.10,cluster_size=512",
    "lazy_refcounts=on,refcount_bits=64,cluster_size=4k,compression_type=zstd",
]


def qemu_img(*arguments: object) -> str:
    done = subprocess.run(
        ["qemu-img", *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout


def inspect(path: Path, declared: str | None = "qcow2", **options: Any) -> ImageHeader:
    fd = os.open(path, os.O_RDONLY)
    try:
        return inspect_image(fd, path.name, declared, **options)
    finally:
        os.close(fd)


def refused(path: Path, declared: str | None = "qcow2", **options: Any) -> ImageError:
    with pytest.raises(ImageError) as caught:
        inspect(path, declared, **options)
    assert caught.value.exit_code is ExitCode.USAGE
    assert path.name in caught.value.what
    return caught.value


def agrees_with_qemu(path: Path) -> ImageHeader:
    header = inspect(path)
    info = json.loads(qemu_img("info", "--output=json", "-U", "-f", "qcow2", path))
    details = info["format-specific"]["data"]
    assert header.virtual_size_bytes == info["virtual-size"]
    assert header.file_size_bytes == path.stat().st_size
    assert header.cluster_size_bytes == info["cluster-size"]
    assert header.refcount_bits == details["refcount-bits"]
    assert header.version == (2 if details["compat"] == "0.10" else 3)
    assert header.lazy_refcounts == details.get("lazy-refcounts", False)
    assert header.extended_l2 == details.get("extended-l2", False)
    assert header.compression == details.get("compression-type", "zlib")
    assert header.snapshots == len(info.get("snapshots", []))
    assert header.bitmaps == len(details.get("bitmaps", []))
    assert header.dirty == info.get("dirty-flag", False)
    assert "backing-filename" not in info
    assert "data-file" not in details
    return header


@needs_qemu_img
@pytest.mark.parametrize("options", PLAIN_OPTIONS)
def test_plain_images_are_accepted(tmp_path: Path, options: str) -> None:
    path = tmp_path / "plain.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, 8 * MIB)
    assert agrees_with_qemu(path).virtual_size_bytes == 8 * MIB
    assert inspect(path, None) == inspect(path, "qcow2")


@needs_qemu_img
@pytest.mark.parametrize("size_bytes", [512, 4096, MIB + 512, 100 * GIB, 2 << 40])
def test_sizes(tmp_path: Path, size_bytes: int) -> None:
    path = tmp_path / "plain.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, size_bytes)
    assert agrees_with_qemu(path).virtual_size_bytes == size_bytes


@needs_qemu_img
@pytest.mark.parametrize(
    "options", ["compat=0.10", "cluster_size=512", "refcount_bits=1", "extended_l2=on", "compression_type=zstd"]
)
def test_used_images_are_accepted(tmp_path: Path, options: str) -> None:
    """Data, zeroes, compressed clusters, growth: tables have moved and entries are set."""
    path, grown = tmp_path / "used.qcow2", tmp_path / "compressed.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, 8 * MIB)
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 6M", "-c", "write -z 3M 1M", "-c", "discard 5M 1M", path],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    agrees_with_qemu(path)
    qemu_img("resize", "-q", "-f", "qcow2", path, 100 * MIB)
    assert agrees_with_qemu(path).virtual_size_bytes == 100 * MIB
    qemu_img("convert", "-c", "-f", "qcow2", "-O", "qcow2", "-o", options, path, grown)
    agrees_with_qemu(grown)


@needs_qemu_img
def test_snapshots_and_bitmaps(tmp_path: Path) -> None:
    path = tmp_path / "snap.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, 8 * MIB)
    for name in ("before update", "a" * 250):
        qemu_img("snapshot", "-c", name, path)
    qemu_img("bitmap", "--add", "-f", "qcow2", path, "backup0")
    qemu_img("bitmap", "--add", "-f", "qcow2", path, "backup1")
    header = agrees_with_qemu(path)
    assert (header.snapshots, header.bitmaps) == (2, 2)


@needs_qemu_img
def test_dirty_image_is_accepted_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "dirty.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", path, 8 * MIB)
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write 0 1M", "-c", "abort", path],
        check=False,
        capture_output=True,
        timeout=60,
    )
    assert agrees_with_qemu(path).dirty


@needs_qemu_img
@pytest.mark.parametrize(
    "backing", ["base.qcow2", "/etc/passwd", 'json:{"driver":"nbd","host":"x"}', "nbd://host/x", "x" * 1000]
)
def test_backing_files_are_refused(tmp_path: Path, backing: str) -> None:
    path = tmp_path / "child.qcow2"
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", backing, path, MIB)
    error = refused(path)
    assert error.what == "child.qcow2 has a backing file"
    assert backing[:50] in error.got
    assert "qemu-img convert" in error.next_step
    assert refused(path, None).what == error.what
    assert "has a qcow2 header" in refused(path, "raw").what


@needs_qemu_img
def test_terminal_codes_in_the_backing_name_are_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "child.qcow2"
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "a\x1b[2J\nb", path, MIB)
    assert refused(path).got == r"'a\x1b[2J\nb'"


@needs_qemu_img
@pytest.mark.parametrize("options", ["data_file=DATA", "data_file=DATA,data_file_raw=on"])
def test_external_data_files_are_refused(tmp_path: Path, options: str) -> None:
    path = tmp_path / "outer.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options.replace("DATA", str(tmp_path / "data")), path, MIB)
    assert refused(path).what == "outer.qcow2 keeps its data in an external file"


@needs_qemu_img
@pytest.mark.parametrize("method", ["luks", "aes"])
def test_encryption_is_refused_unless_asked_for(tmp_path: Path, method: str) -> None:
    path = tmp_path / "secret.qcow2"
    secret = ["--object", "secret,id=s,data=abcdef"]
    iteration = ",encrypt.iter-time=200" if method == "luks" else ""
    options = f"encrypt.format={method},encrypt.key-secret=s{iteration}"
    done = create_luks(["qemu-img", "create", "-q", *secret, "-f", "qcow2", "-o", options, str(path), str(MIB)])
    assert done.returncode == 0, done.stderr
    assert refused(path).got == method.upper()
    if method == "luks":
        assert inspect(path, allow_encrypted=True).encrypted
    else:
        refused(path, allow_encrypted=True)


@needs_qemu_img
@pytest.mark.parametrize("image_format", ["vmdk", "vdi", "vhdx", "vpc", "qed", "qcow", "parallels"])
@pytest.mark.parametrize("declared", [None, "raw", "qcow2"])
def test_other_formats_are_named(tmp_path: Path, image_format: str, declared: str | None) -> None:
    path = tmp_path / "other.img"
    qemu_img("create", "-q", "-f", image_format, path, 8 * MIB)
    error = refused(path, declared)
    assert f"-f {image_format} -O qcow2" in error.next_step
    assert error.what.endswith(f"but is declared {declared}") == (declared is not None)


@needs_qemu_img
@pytest.mark.parametrize("subformat", ["monolithicFlat", "streamOptimized"])
def test_vmdk_variants(tmp_path: Path, subformat: str) -> None:
    path = tmp_path / "other.vmdk"
    qemu_img("create", "-q", "-f", "vmdk", "-o", f"subformat={subformat}", path, 8 * MIB)
    assert "VMDK" in refused(path, "raw").what


@needs_qemu_img
def test_fixed_vhd_is_known_by_its_end(tmp_path: Path) -> None:
    path = tmp_path / "fixed.vhd"
    qemu_img("create", "-q", "-f", "vpc", "-o", "subformat=fixed", path, 10 * MIB)
    with path.open("r+b") as file:
        file.seek(510)
        file.write(b"\x55\xaa")
    assert "VHD" in refused(path, "raw").what
    assert "VHD" in refused(path, None).what


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda signature: f"{signature.name}@{signature.offset}")
def test_every_signature_decides(tmp_path: Path, signature: Any) -> None:
    path = tmp_path / "some.img"
    data = bytearray(64 * 1024)
    at = signature.offset % len(data)
    data[at : at + len(signature.magic)] = signature.magic
    path.write_bytes(data)
    assert recognise(bytes(data[: 36 * 1024]), bytes(data[-512:])) == signature
    if signature.kind is Kind.DISK:
        assert inspect(path, None).format == "raw"
    elif signature.kind is Kind.CONTENT:
        assert inspect(path, "raw").format == "raw"
        assert signature.name in refused(path, None).got
    elif signature.kind is Kind.PACKED:
        assert signature.convert in refused(path, "raw").next_step
        assert signature.convert in refused(path, None).next_step
    else:
        refused(path, "raw")
        refused(path, None)


def test_raw(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1024))
    assert inspect(path, "raw") == ImageHeader(format="raw", virtual_size_bytes=1024, file_size_bytes=1024)
    assert "say its format" in refused(path, None).next_step
    assert "no qcow2 header" in refused(path, "qcow2").what


@pytest.mark.parametrize("declared", [None, "raw", "qcow2"])
def test_empty_and_tiny(tmp_path: Path, declared: str | None) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"")
    assert refused(path, declared).what == "disk.img is empty"
    for content in (b"Q", b"QFI\xfb", b"QFI\xfb\0\0\0\x03", b"\x55\xaa", bytes(511)):
        path.write_bytes(content)
        refused(path, declared)


def test_raw_of_odd_length(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1000))
    assert "truncate -s %512" in refused(path, "raw").next_step


def test_quota(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(3 << 40)
    error = refused(path, "raw")
    assert (error.got, error.expected) == ("3 TiB as the guest sees it", "at most 2 TiB")
    assert inspect(path, "raw", max_virtual_bytes=3 << 40).virtual_size_bytes == 3 << 40


def test_special_files_behind_a_descriptor(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    null = os.open("/dev/null", os.O_RDONLY)
    directory = os.open(tmp_path, os.O_RDONLY)
    for fd in (read_end, null, directory):
        with pytest.raises(ImageError, match="it is not a regular file"):
            inspect_image(fd, "it", "raw")
    for fd in (read_end, write_end, null, directory):
        os.close(fd)


def test_position_of_the_descriptor_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1024))
    with path.open("rb") as file:
        file.seek(7)
        inspect_image(file.fileno(), "disk.img", "raw")
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 7


def test_unknown_declared_format_is_our_bug(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(512))
    with pytest.raises(RuntimeError, match="unknown format"):
        inspect(tmp_path / "x", "vmdk")
