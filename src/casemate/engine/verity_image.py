"""``image build --verity``: a root file system becomes a disk that its guest checks block by block.

    DIR/disk.raw     the file system, filled up to whole blocks, then dm-verity's superblock and hash tree
    DIR/kernel, DIR/initrd
    DIR/vm.toml      the specification; the root hash stands on the kernel command line

Whoever signs or measures vm.toml (kernel, initrd, command line) has signed every block of the disk: its file needs no
protection, a changed block is an I/O error in the guest.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from casemate.engine.imagestore import open_reference
from casemate.errors import InputError
from casemate.image.verity import BLOCK, dm_verity
from casemate.image.verity_guest import FILE_SYSTEMS, VerityGuest, build_verity_guest, command_line

SCHEMA: Final = "casemate.image-verity/1"


def build(
    word: str,
    directory: str,
    *,
    overlay: bool,
    memory_mib: int,
    report: Callable[[str], None],
    progress: Callable[[int, int], None],
    guest: VerityGuest | None = None,
) -> dict[str, Any]:
    """Write the directory drawn above.

    Raises:
        InputError: the image is no bare file system that we start from, or the directory has files.
        HostError: no kernel, or no room.
    """
    place = os.path.normpath(Path.cwd() / directory)
    opened = open_reference(word, declared=None if "/" not in word and not os.path.exists(word) else "raw")
    try:
        if opened.header.format != "raw":
            raise InputError(
                f"{word} is {opened.header.format}", expected="a raw image", next_step="add it with --convert raw"
            )
        fstype = file_system_of(opened.fd, word)
        _make_empty(place)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=place) as scratch:
            parts = guest or build_verity_guest(Path(scratch), report)
        size = _copy(opened.fd, f"{place}/disk.raw", progress)
        salt, name = secrets.token_bytes(32), uuid.uuid4()
        descriptor = os.open(f"{place}/disk.raw", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            tree = dm_verity(descriptor, size, salt, name.bytes, progress)
            _write_all(descriptor, tree.area, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    finally:
        os.close(opened.fd)
    line = command_line(tree.root_hash, salt, tree.data_blocks, fstype, overlay=overlay)
    for file, data in (("kernel", parts.kernel), ("initrd", parts.initrd)):
        _write_file(f"{place}/{file}", data)
    _write_file(f"{place}/vm.toml", specification(line, memory_mib).encode())
    return {
        "schema": SCHEMA,
        "directory": place,
        "spec": f"{place}/vm.toml",
        "root_hash": tree.root_hash,
        "salt": salt.hex(),
        "data_blocks": tree.data_blocks,
        "hash_offset_bytes": size,
        "file_system": fstype,
        "kernel_release": parts.release,
        "sources": parts.sources,
    }


def specification(line: str, memory_mib: int) -> str:
    """The TOML text of the VM."""
    return (
        "# Written by casemate image build --verity. The root hash on the command line names every block of disk.raw.\n"
        f'[machine]\ntype = "microvm"\nmemory_mib = {memory_mib}\n\n'
        f'[boot]\nkernel = "kernel"\ninitrd = "initrd"\ncmdline = "{line}"\n\n'
        '[[disk]]\npath = "disk.raw"\nformat = "raw"\nmode = "read-only"\n'
    )


def file_system_of(descriptor: int, name: str) -> str:
    """ext4, squashfs or erofs, by the superblock.

    Raises:
        InputError: something else, such as a disk with partitions.
    """
    head = os.pread(descriptor, 4096, 0)
    if len(head) >= 1084 and struct.unpack_from("<H", head, 1080)[0] == 0xEF53:
        if struct.unpack_from("<I", head, 1048)[0] != 2:
            raise InputError(
                f"{name} has small blocks", expected="ext4 with blocks of 4096 bytes", next_step="mkfs.ext4 -b 4096"
            )
        return "ext4"
    if head[:4] == b"hsqs":
        return "squashfs"
    if len(head) >= 1028 and struct.unpack_from("<I", head, 1024)[0] == 0xE0F5E1E2:
        return "erofs"
    raise InputError(
        f"{name} is no file system to start from",
        got="a disk with partitions, or another file system",
        expected=f"a bare {', '.join(FILE_SYSTEMS)}: the root itself",
        next_step="mmdebstrap --format=ext2, mkfs.erofs or mksquashfs write one",
    )


def _make_empty(place: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.makedirs(place, mode=0o755)
    if os.listdir(place):
        raise InputError(f"{place} is not empty", next_step="name a new directory")


def _copy(source: int, path: str, progress: Callable[[int, int], None]) -> int:
    """Copy with holes; returns the size in whole blocks."""
    size = os.fstat(source).st_size
    with open(path, "xb") as target:
        done = 0
        while chunk := os.pread(source, 1 << 20, done):
            if chunk.count(0) != len(chunk):
                os.pwrite(target.fileno(), chunk, done)
            done += len(chunk)
            progress(done, size)
        whole = -(-done // BLOCK) * BLOCK
        target.truncate(whole)
    return whole


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _write_file(path: str, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
