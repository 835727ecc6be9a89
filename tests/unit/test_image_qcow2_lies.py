"""Headers that lie: one true image, one field changed, one refusal. Fields are written by their offset in the file."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from casemate.errors import ImageError
from casemate.image.headers import ImageHeader, inspect_image
from casemate.image.overlay import write_empty_qcow2

MIB = 1 << 20
CLUSTER = 1 << 16


def make(path: Path, *changes: tuple[int, str, int], extensions: bytes = b"", size_bytes: int = 40 * MIB) -> int:
    """An empty image with changes (offset, struct code, value); its descriptor."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    write_empty_qcow2(fd, size_bytes)
    os.pwrite(fd, extensions, 104)
    for offset, code, value in changes:
        os.pwrite(fd, struct.pack(">" + code, value), offset)
    return fd


def inspect(path: Path, *changes: tuple[int, str, int], extensions: bytes = b"") -> ImageHeader:
    fd = make(path, *changes, extensions=extensions)
    try:
        return inspect_image(fd, "image", "qcow2")
    finally:
        os.close(fd)


def extension(kind: int, data: bytes) -> bytes:
    return struct.pack(">II", kind, len(data)) + data.ljust(-(-len(data) // 8) * 8, b"\0")


BITMAPS = 0x23852875
BITMAP_DATA = struct.pack(">IIQQ", 1, 0, 32, 3 * CLUSTER)

LIES: dict[str, tuple[list[tuple[int, str, int]], str]] = {
    "version 0": ([(4, "I", 0)], "unknown version"),
    "version 4": ([(4, "I", 4)], "unknown version"),
    "backing file at an offset outside": ([(8, "Q", 1 << 40)], "has a backing file; got a name outside"),
    "backing file without a name": ([(8, "Q", 200), (16, "I", 0)], "has a backing file"),
    "backing file with a huge name": ([(8, "Q", 200), (16, "I", 0xFFFFFFFF)], "has a backing file"),
    "cluster_bits 8": ([(20, "I", 8)], "cluster_bits 8"),
    "cluster_bits 22": ([(20, "I", 22)], "cluster_bits 22"),
    "cluster_bits huge": ([(20, "I", 0xFFFFFFFF)], "cluster_bits"),
    "size 0": ([(24, "Q", 0)], "0 bytes"),
    "size no sector": ([(24, "Q", 1000)], "virtual size of 1000"),
    "size over quota": ([(24, "Q", 1 << 50)], "larger than a disk may be"),
    "size negative when signed": ([(24, "Q", 0xFFFFFFFFFFFFFE00)], "larger than a disk may be"),
    "size beyond L1": ([(24, "Q", 1 << 30)], "an L1 table for"),
    "encryption AES": ([(32, "I", 1)], "encrypted"),
    "encryption LUKS": ([(32, "I", 2)], "encrypted"),
    "encryption unknown": ([(32, "I", 99)], "method 99"),
    "l1_size 0": ([(36, "I", 0)], "an L1 table for 0 bytes"),
    "l1_size huge": ([(36, "I", 0xFFFFFFFF)], "an L1 table of"),
    "l1_size outside the file": ([(36, "I", 1 << 20)], "cut short"),
    "l1 at 0": ([(40, "Q", 0)], "L1 table at offset 0"),
    "l1 unaligned": ([(40, "Q", 3 * CLUSTER + 8)], "L1 table at offset"),
    "l1 outside": ([(40, "Q", 1 << 40)], "cut short"),
    "l1 wraps": ([(40, "Q", 0xFFFFFFFFFFFF0000)], "cut short"),
    "l1 on refcount table": ([(40, "Q", CLUSTER)], "overlap"),
    "refcount table at 0": ([(48, "Q", 0)], "refcount table at offset 0"),
    "refcount table unaligned": ([(48, "Q", CLUSTER + 512)], "refcount table at offset"),
    "refcount table outside": ([(48, "Q", 1 << 40)], "cut short"),
    "refcount table empty": ([(56, "I", 0)], "a refcount table of 0"),
    "refcount table huge": ([(56, "I", 0xFFFFFFFF)], "a refcount table of"),
    "refcount table outside the file": ([(56, "I", 100)], "cut short"),
    "refcount table over L1": ([(56, "I", 3)], "overlap"),
    "snapshots huge": ([(60, "I", 0xFFFFFFFF)], "internal snapshots"),
    "snapshots unaligned": ([(60, "I", 1), (64, "Q", 100)], "snapshot table at offset"),
    "snapshots outside": ([(60, "I", 1), (64, "Q", 1 << 40)], "cut short"),
    "snapshots_offset unaligned without snapshots": ([(64, "Q", 100)], "snapshot table at offset 100"),
    "snapshots on the header": ([(60, "I", 1), (64, "Q", 0)], "snapshot table at offset 0"),
    "unknown incompatible bit": ([(72, "Q", 1 << 5)], "features that Casemate does not know"),
    "last incompatible bit": ([(72, "Q", 1 << 63)], "features that Casemate does not know"),
    "corrupt": ([(72, "Q", 2)], "marked corrupt"),
    "data file": ([(72, "Q", 4)], "external file"),
    "raw data file without data file": ([(88, "Q", 2)], "external file"),
    "compression bit alone": ([(72, "Q", 8)], "compression type 0"),
    "extended L2 with small clusters": ([(20, "I", 13), (72, "Q", 16)], "extended L2"),
    "bitmaps bit without extension": ([(88, "Q", 1)], "bitmaps feature"),
    "refcount_order 7": ([(96, "I", 7)], "refcount_order 7"),
    "header_length 0": ([(100, "I", 0)], "header length"),
    "header_length 72": ([(100, "I", 72)], "header length"),
    "header_length odd": ([(100, "I", 109)], "header length"),
    "header_length beyond the cluster": ([(100, "I", CLUSTER + 8)], "header length"),
    "header_length huge": ([(100, "I", 0xFFFFFFF8)], "header length"),
    "compression type without bit": ([(100, "I", 112), (104, "B", 1)], "compression type 1"),
    "compression type unknown": ([(72, "Q", 8), (100, "I", 112), (104, "B", 7)], "compression type 7"),
    "L1 entry outside": ([(3 * CLUSTER, "Q", 1 << 40)], "L1 table points to byte"),
    "L1 entry unaligned": ([(3 * CLUSTER, "Q", CLUSTER + 512)], "an entry 0x10200 in the L1"),
    "L1 entry reserved bit": ([(3 * CLUSTER, "Q", (1 << 62) | CLUSTER)], "in the L1 table"),
    "L1 entry with flag only": ([(3 * CLUSTER, "Q", 1 << 63)], "in the L1 table"),
    "refcount entry outside": ([(CLUSTER, "Q", 1 << 60)], "refcount table points to byte"),
    "refcount entry reserved": ([(CLUSTER, "Q", 2 * CLUSTER | 1)], "in the refcount table"),
    "last refcount entry": ([(2 * CLUSTER - 8, "Q", 1 << 40)], "refcount table points to byte"),
}


def test_the_unchanged_image_is_true(tmp_path: Path) -> None:
    assert inspect(tmp_path / "i").virtual_size_bytes == 40 * MIB


@pytest.mark.parametrize(("changes", "words"), LIES.values(), ids=LIES)
def test_lie(tmp_path: Path, changes: list[tuple[int, str, int]], words: str) -> None:
    with pytest.raises(ImageError) as caught:
        inspect(tmp_path / "i", *changes)
    assert words in str(caught.value)
    assert caught.value.next_step or words == "unknown version"


HARMLESS: dict[str, list[tuple[int, str, int]]] = {
    "dirty": [(72, "Q", 1)],
    "unknown compatible bits": [(80, "Q", 0xFFFFFFFFFFFFFFFF)],
    "unknown autoclear bits": [(88, "Q", 1 << 40)],
    "backing_file_size without backing file": [(16, "I", 12345)],
    "snapshots_offset without snapshots": [(64, "Q", 8 * CLUSTER)],
    "longer header": [(100, "I", 256)],
    "zstd": [(72, "Q", 8), (100, "I", 112), (104, "B", 1)],
    "L1 entry to a cluster of the file": [(3 * CLUSTER, "Q", (1 << 63) | (2 * CLUSTER))],
}


@pytest.mark.parametrize("changes", HARMLESS.values(), ids=HARMLESS)
def test_harmless(tmp_path: Path, changes: list[tuple[int, str, int]]) -> None:
    assert inspect(tmp_path / "i", *changes).format == "qcow2"


EXTENSIONS: dict[str, tuple[bytes, str]] = {
    "backing format": (extension(0xE2792ACA, b"raw"), "names another file"),
    "data file name": (extension(0x44415441, b"/etc/passwd"), "names another file"),
    "longer than the cluster": (struct.pack(">II", 1, 0xFFFFFFFF), "header extension of 4294967295"),
    "end longer than the cluster": (struct.pack(">II", 0, CLUSTER), "header extension of 65536"),
    "twice": (extension(7, b"x") * 2, "again"),
    "too many": (b"".join(extension(kind, b"") for kind in range(1, 60)), "more than"),
    "encryption without encryption": (extension(0x0537BE77, bytes(16)), "does not fit its method"),
}


@pytest.mark.parametrize(("data", "words"), EXTENSIONS.values(), ids=EXTENSIONS)
def test_lying_extension(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(ImageError) as caught:
        inspect(tmp_path / "i", extensions=data)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">IIQQ", 0, 0, 32, 3 * CLUSTER),
        struct.pack(">IIQQ", 70_000, 0, 32, 3 * CLUSTER),
        struct.pack(">IIQQ", 1, 1, 32, 3 * CLUSTER),
        struct.pack(">IIQQ", 1, 0, 0, 3 * CLUSTER),
        struct.pack(">IIQQ", 1, 0, 1 << 40, 3 * CLUSTER),
        struct.pack(">IIQQ", 1, 0, 32, 1 << 40),
        struct.pack(">IIQQ", 1, 0, 32, 100),
        struct.pack(">II", 1, 0),
    ],
)
def test_lying_bitmaps(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ImageError):
        inspect(tmp_path / "i", (88, "Q", 1), extensions=extension(BITMAPS, data))


def test_true_bitmaps_and_unknown_extensions(tmp_path: Path) -> None:
    data = extension(0x12345678, b"anything") + extension(BITMAPS, BITMAP_DATA)
    assert inspect(tmp_path / "i", (88, "Q", 1), extensions=data).bitmaps == 1
    # Without the feature bit the directory is out of date and no reader follows it.
    assert inspect(tmp_path / "i", extensions=data).bitmaps == 0


def snapshot(l1_offset: int, l1_entries: int, name: bytes = b"s", extra: int = 0) -> bytes:
    fixed = struct.pack(">QIHHIIQII", l1_offset, l1_entries, 1, len(name), 0, 0, 0, 0, extra)
    body = fixed + bytes(min(extra, 4096)) + b"1" + name
    return body.ljust(-(-len(body) // 8) * 8, b"\0")


@pytest.mark.parametrize(
    ("table", "count", "sound"),
    [
        (snapshot(3 * CLUSTER, 1), 1, True),
        (snapshot(3 * CLUSTER, 1, b"x" * 300, 16) * 3, 3, True),
        (snapshot(1 << 40, 1), 1, False),
        (snapshot(3 * CLUSTER, 0xFFFFFFFF), 1, False),
        (snapshot(3 * CLUSTER, 1, extra=2000), 1, False),
        (snapshot(CLUSTER + 8, 1), 1, False),
        (snapshot(3 * CLUSTER, 1, b"x" * 60_000), 1, True),
        (snapshot(3 * CLUSTER, 1, b"x" * 65_535)[:CLUSTER], 1, False),
        (snapshot(3 * CLUSTER, 1, b"x" * 60_000)[:60_000], 1000, False),
    ],
)
def test_snapshot_table(tmp_path: Path, table: bytes, count: int, sound: bool) -> None:
    fd = make(tmp_path / "i", (60, "I", count), (64, "Q", 4 * CLUSTER))
    os.pwrite(fd, table.ljust(CLUSTER, b"\0"), 4 * CLUSTER)
    judge: Callable[[], ImageHeader] = lambda: inspect_image(fd, "image", "qcow2")  # noqa: E731
    if sound:
        assert judge().snapshots == count
    else:
        with pytest.raises(ImageError):
            judge()
    os.close(fd)


def test_version_2_has_no_features(tmp_path: Path) -> None:
    """What stands where version 3 has its features is extensions in version 2."""
    fd = make(tmp_path / "i", (4, "I", 2))
    os.pwrite(fd, bytes(40), 72)
    assert inspect_image(fd, "image", "qcow2").version == 2
    os.pwrite(fd, extension(0x44415441, b"/etc/passwd"), 72)
    with pytest.raises(ImageError, match="names another file"):
        inspect_image(fd, "image", "qcow2")
    os.close(fd)


def test_every_length_of_the_file(tmp_path: Path) -> None:
    """An image that is bigger than its file: whatever the length, an answer and no other error."""
    fd = make(tmp_path / "i")
    length = os.fstat(fd).st_size
    for cut in [*range(1, 300), CLUSTER, 2 * CLUSTER, 3 * CLUSTER - 1, 3 * CLUSTER]:
        copy = os.open(tmp_path / "cut", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.write(copy, os.pread(fd, cut, 0))
        with pytest.raises(ImageError):
            inspect_image(copy, "image", "qcow2")
        os.close(copy)
    os.ftruncate(fd, length - CLUSTER + 8)
    assert inspect_image(fd, "image", "qcow2").format == "qcow2"
    os.close(fd)


def test_largest_tables_are_read_within_memory(tmp_path: Path) -> None:
    """The largest L1 table that QEMU takes, full of distinct hostile entries that are all inside the file."""
    fd = make(tmp_path / "i", (20, "I", 9), (36, "I", 1 << 22), (48, "Q", 512), (56, "I", 1), (512, "Q", 0))
    os.ftruncate(fd, 1 << 33)
    for part in range(64):
        first = (part << 16) + 1
        data = struct.pack(">65536Q", *range(first << 9, (first << 9) + (1 << 25), 1 << 9))
        os.pwrite(fd, data, 3 * CLUSTER + part * len(data))
    assert inspect_image(fd, "image", "qcow2").cluster_size_bytes == 512
    os.pwrite(fd, struct.pack(">Q", 1 << 34), 3 * CLUSTER + (1 << 25) - 8)
    with pytest.raises(ImageError, match="L1 table points to byte"):
        inspect_image(fd, "image", "qcow2")
    os.close(fd)
