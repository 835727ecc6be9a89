"""Merkle trees beside fsverity and veritysetup, and what an initramfs for a dm-verity root holds."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from tests.support.signing import need, run

from casemate.engine.verity_image import build, file_system_of, specification
from casemate.errors import ImageError, InputError
from casemate.image import verity
from casemate.image.verity_guest import (
    CONTROL_CODE,
    CONTROL_LISTING,
    VerityGuest,
    assemble,
    command_line,
    control_program,
)
from casemate.sys.fsverity import fs_ioc_enable_verity, fs_ioc_measure_verity

B = verity.BLOCK
SIZES = [0, 1, B - 1, B, B + 1, 127 * B, 128 * B, 128 * B + 1, 129 * B, 300 * B + 17, 128 * 128 * B + B]


def veritysetup() -> str:
    return shutil.which("veritysetup", path="/usr/sbin:/sbin:" + os.environ.get("PATH", "")) or need(
        "veritysetup", "cryptsetup-bin"
    )


def content(path: Path, size: int) -> int:
    path.write_bytes(random.Random(size).randbytes(size))
    return os.open(path, os.O_RDWR)


@pytest.mark.parametrize("size", SIZES)
def test_fs_verity_digests_are_those_of_the_tool(tmp_path: Path, size: int) -> None:
    program = need("fsverity", "fsverity")
    descriptor = content(tmp_path / "f", size)
    theirs = run(program, "digest", "--compact", tmp_path / "f").decode().strip()
    assert verity.fsverity_digest(descriptor) == f"sha256:{theirs}"
    os.close(descriptor)


@pytest.mark.parametrize("size", [size for size in SIZES if size and size % B == 0])
@pytest.mark.parametrize("salt", [b"", bytes(range(32)), b"s" * 256])
def test_dm_verity_areas_are_byte_for_byte_those_of_veritysetup(tmp_path: Path, size: int, salt: bytes) -> None:
    program = veritysetup()
    descriptor = content(tmp_path / "f", size)
    made = verity.dm_verity(descriptor, size, salt, bytes(16))
    (tmp_path / "hash").write_bytes(made.area)
    flags = ["--salt", salt.hex() or "-", "--uuid", "00000000-0000-0000-0000-000000000000"]
    out = run(program, "format", *flags, tmp_path / "f", tmp_path / "theirs").decode()
    assert f"{made.root_hash}" in out
    assert (tmp_path / "theirs").read_bytes() == made.area
    run(program, "verify", tmp_path / "f", tmp_path / "hash", made.root_hash)
    at = size // 2
    original = os.pread(descriptor, 1, at)
    os.pwrite(descriptor, bytes([original[0] ^ 0x80]), at)
    assert verity.dm_verity(descriptor, size, salt, bytes(16)).root_hash != made.root_hash
    argv: list[str | Path] = [program, "verify", tmp_path / "f", tmp_path / "hash", made.root_hash]
    assert subprocess.run(argv, capture_output=True, check=False, timeout=60).returncode != 0
    os.close(descriptor)


@pytest.mark.parametrize("size", [0, -B, 100, B + 1])
def test_other_sizes_are_refused(tmp_path: Path, size: int) -> None:
    descriptor = content(tmp_path / "f", 8 * B)
    with pytest.raises(ImageError, match="whole blocks"):
        verity.dm_verity(descriptor, size, b"", bytes(16))
    with pytest.raises(ImageError, match="shorter"):
        verity.dm_verity(descriptor, 9 * B, b"", bytes(16))
    os.close(descriptor)


def test_the_table_is_what_the_kernel_documents(tmp_path: Path) -> None:
    descriptor = content(tmp_path / "f", 8 * B)
    made = verity.dm_verity(descriptor, 8 * B, b"\x01", bytes(16))
    os.close(descriptor)
    assert verity.dm_table(made, "/dev/a", "/dev/b", 8) == (
        f"0 64 verity 1 /dev/a /dev/b 4096 4096 8 9 sha256 {made.root_hash} 01"
    )
    assert made.area_blocks == 2


def test_the_code_is_its_listing(tmp_path: Path) -> None:
    assembler, objcopy = need("as", "binutils"), need("objcopy", "binutils")
    (tmp_path / "a.s").write_text(CONTROL_LISTING)
    run(assembler, tmp_path / "a.s", "-o", tmp_path / "a.o")
    run(objcopy, "-O", "binary", "-j", ".text", tmp_path / "a.o", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTROL_CODE
    program = tmp_path / "dmctl"
    program.write_bytes(control_program())
    program.chmod(0o755)
    short = subprocess.run([program], input=b"x" * 100, check=False, timeout=10)
    assert short.returncode == 5  # EIO: half a request is none


def test_an_initramfs_is_deterministic_and_its_requests_are_whole() -> None:
    one, two = assemble(b"busybox", (("dm_mod", b"elf"),)), assemble(b"busybox", (("dm_mod", b"elf"),))
    assert one == two
    assert struct.pack("<Q", 0xC138FD03) + struct.pack("<3I", 4, 0, 0) in one
    line = command_line("ab" * 32, b"\x01\x02", 7, "ext4", overlay=True)
    assert line.endswith(f"casemate.verity={'ab' * 32}:0102:7 casemate.verity.fstype=ext4 casemate.verity.overlay")


@pytest.mark.parametrize(
    ("argv", "kind"),
    [
        (("mkfs.ext4", "-q", "-b", "4096"), "ext4"),
        (("mkfs.ext4", "-q", "-b", "1024"), "small blocks"),
        (("mkfs.vfat",), "no file system to start from"),
    ],
)
def test_a_root_is_recognised_by_its_superblock(tmp_path: Path, argv: tuple[str, ...], kind: str) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    program = shutil.which(argv[0], path="/usr/sbin:/sbin") or need(argv[0], "e2fsprogs or dosfstools")
    run(program, *argv[1:], image)
    descriptor = os.open(image, os.O_RDONLY)
    if kind == "ext4":
        assert file_system_of(descriptor, "image") == kind
    else:
        with pytest.raises(InputError, match=kind):
            file_system_of(descriptor, "image")
    os.close(descriptor)


def test_build_writes_what_veritysetup_accepts(tmp_path: Path) -> None:
    program = veritysetup()
    image = tmp_path / "root.ext4"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    run(shutil.which("mkfs.ext4", path="/usr/sbin:/sbin") or need("mkfs.ext4", "e2fsprogs"), "-q", "-b", "4096", image)
    guest = VerityGuest(b"kernel", b"initrd", "6.1", {})
    made = build(
        str(image),
        str(tmp_path / "out"),
        overlay=False,
        memory_mib=128,
        report=lambda text: None,
        progress=lambda done, of: None,
        guest=guest,
    )
    disk = tmp_path / "out" / "disk.raw"
    run(program, "verify", disk, disk, made["root_hash"], "--hash-offset", str(made["hash_offset_bytes"]))
    text = (tmp_path / "out" / "vm.toml").read_text()
    assert made["root_hash"] in text
    assert specification("x", 128).splitlines()[1:] != text.splitlines()[1:]
    with pytest.raises(InputError, match="not empty"):
        build(
            str(image),
            str(tmp_path / "out"),
            overlay=False,
            memory_mib=128,
            report=lambda text: None,
            progress=lambda done, of: None,
            guest=guest,
        )


def test_where_the_kernel_has_no_fs_verity_nothing_is_claimed(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    descriptor = os.open(tmp_path / "f", os.O_RDONLY)
    sealed = fs_ioc_enable_verity(descriptor)
    assert bool(fs_ioc_measure_verity(descriptor)) == sealed
    os.close(descriptor)
