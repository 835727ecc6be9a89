"""Packed files and archives: what comes out, and everything that is refused: bombs, damage, tails, odd members."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import io
import lzma
import os
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from tests.support.foreign_images import MIB, SOUND

from casemate.errors import ImageError
from casemate.image import unpack as unpacking
from casemate.image.ova import find_disk, is_tar, list_members
from casemate.image.reader import ImageReader
from casemate.image.unpack import unpack

PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}


def out_of(packed: bytes, kind: str, limit: int = 64 * MIB) -> bytes:
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as target:
        source.write(packed)
        source.flush()
        size = unpack(source.fileno(), kind, target.fileno(), name="it", max_output_bytes=limit)
        data = target.read()
        assert len(data) == size
        return data


@pytest.mark.parametrize("kind", PACK)
def test_what_was_packed_comes_out(kind: str) -> None:
    for data in (b"x", os.urandom(100_000), bytes(3 * MIB + 1), os.urandom(70_000) * 20):
        assert out_of(PACK[kind](data), kind) == data


@pytest.mark.parametrize("kind", PACK)
def test_several_parts_are_one_file(kind: str) -> None:
    parts = [os.urandom(1000), bytes(2 * MIB), b"end"]
    assert out_of(b"".join(PACK[kind](part) for part in parts), kind) == b"".join(parts)


@pytest.mark.parametrize("kind", PACK)
def test_a_bomb_ends_at_the_bound(kind: str) -> None:
    packed = PACK[kind](bytes(12 * MIB))
    assert len(packed) < MIB
    with pytest.raises(ImageError, match="more than 4 MiB"):
        out_of(packed, kind, 4 * MIB)
    assert len(out_of(packed, kind, 12 * MIB)) == 12 * MIB


@pytest.mark.parametrize("kind", PACK)
def test_zeros_become_holes(kind: str, tmp_path: Path) -> None:
    source, target = tmp_path / "s", tmp_path / "t"
    source.write_bytes(PACK[kind](bytes(30 * MIB) + b"x"))
    with source.open("rb") as one, target.open("w+b") as other:
        unpack(one.fileno(), kind, other.fileno(), name="it", max_output_bytes=64 * MIB)
    assert target.stat().st_blocks * 512 <= MIB


@pytest.mark.parametrize("kind", PACK)
def test_zeros_do_not_count_as_data(kind: str) -> None:
    packed = PACK[kind](bytes(5 * MIB) + os.urandom(2 * MIB))
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as target:
        source.write(packed)
        source.flush()
        bounds = {"name": "it", "max_output_bytes": 64 * MIB}
        assert unpack(source.fileno(), kind, target.fileno(), max_data_bytes=4 * MIB, **bounds) == 7 * MIB  # type: ignore[arg-type]
        with pytest.raises(ImageError, match="more than there is room for"):
            unpack(source.fileno(), kind, target.fileno(), max_data_bytes=MIB, **bounds)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", PACK)
def test_damage_is_refused(kind: str) -> None:
    packed = PACK[kind](os.urandom(50_000))
    for cut in (0, 5, 20, len(packed) // 2, len(packed) - 1):
        with pytest.raises(ImageError, match="cannot be unpacked"):
            out_of(packed[:cut], kind)
    with pytest.raises(ImageError, match="cannot be unpacked"):
        out_of(packed + b"something else", kind)
    if kind == "zstd":  # whose frames have a checksum only when asked for
        packed = zstandard.ZstdCompressor(write_checksum=True).compress(os.urandom(50_000))
    broken = bytearray(packed)
    broken[len(packed) // 2] ^= 0xFF
    with pytest.raises(ImageError, match="cannot be unpacked"):
        out_of(bytes(broken), kind)


def test_memory_is_bounded() -> None:
    """A dictionary of 1 GiB (xz), a window of 1 GiB (zstd): both would be asked for before a byte comes out."""
    xz = bytearray(lzma.compress(b"x" * 1000, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 4096}]))
    size = (xz[12] + 1) * 4
    assert xz[14:16] == b"\x21\x01"
    xz[16] = 36
    xz[12 + size - 4 : 12 + size] = zlib.crc32(xz[12 : 12 + size - 4]).to_bytes(4, "little")
    with pytest.raises(ImageError, match="cannot be unpacked"):
        out_of(bytes(xz), "xz")
    parameters = zstandard.ZstdCompressionParameters(window_log=30)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = compressor.compress(os.urandom(100)) + compressor.flush()
    with pytest.raises(ImageError, match="cannot be unpacked"):
        out_of(packed, "zstd")


def test_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "BASE_S", -1e6)
    with pytest.raises(ImageError, match="longer than any file"):
        out_of(gzip.compress(bytes(MIB)), "gzip")


@given(st.binary(max_size=300), st.sampled_from(sorted(PACK)))
def test_any_bytes_are_an_error_or_a_file(data: bytes, kind: str) -> None:
    with contextlib.suppress(ImageError):
        out_of(data, kind, MIB)


OVF = """<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
  <References>{files}</References>
  <DiskSection>{disks}</DiskSection>
</Envelope>
"""
FILE, DISK = '<File ovf:id="{0}" ovf:href="{1}"/>', '<Disk ovf:diskId="d{0}" ovf:fileRef="{0}"/>'


def ova(
    disk: bytes = SOUND["stream.vmdk"],
    *,
    text: str | None = None,
    name: str = "disk.vmdk",
    manifest: str | None = None,
    more: tuple[tarfile.TarInfo, ...] = (),
) -> bytes:
    """An archive with a description, a manifest and a disk."""
    described = OVF.format(files=FILE.format("f", name), disks=DISK.format("f")) if text is None else text
    sums = f"SHA256({name})= {hashlib.sha256(disk).hexdigest()}\n" if manifest is None else manifest
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for part, data in (("vm.ovf", described.encode()), ("vm.mf", sums.encode()), (name, disk)):
            info = tarfile.TarInfo(part)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in more:
            archive.addfile(info)
    return out.getvalue()


def found(data: bytes) -> tuple[str, bytes, str]:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        reader = ImageReader(file.fileno(), "vm.ova")
        disk = find_disk(reader)
        return disk.member.name, reader.read(disk.member.offset, disk.member.size_bytes), disk.sha256


def refused(data: bytes) -> str:
    with pytest.raises(ImageError) as error:
        found(data)
    return str(error.value)


def test_the_disk_of_an_ova_is_found() -> None:
    assert is_tar(ova()[:512])
    assert not is_tar(bytes(512))
    digest = hashlib.sha256(SOUND["stream.vmdk"]).hexdigest()
    assert found(ova()) == ("disk.vmdk", SOUND["stream.vmdk"], digest)
    assert found(ova(manifest=""))[2] == ""
    assert found(ova(manifest="SHA1(disk.vmdk)= " + "0" * 40))[2] == ""


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (ova(text="<x>"), "no XML"),
        (ova(text='<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>'), "document type"),
        (ova(text=OVF.format(files="", disks="")), "0 disks"),
        (ova(text=OVF.format(files="", disks=DISK.format("f"))), "not described"),
        (ova(text=OVF.format(files=FILE.format("f", "../../etc/pass"), disks=DISK.format("f"))), "not in the archive"),
        (ova(text=OVF.format(files=FILE.format("f", "http://x/d"), disks=DISK.format("f"))), "not in the archive"),
        (
            ova(text=OVF.format(files=FILE.format("f", "disk.vmdk") + FILE.format("g", "e"),
                                disks=DISK.format("f") + DISK.format("g"))),
            "2 disks",
        ),
        (ova(text=OVF.format(files=FILE.format("f", "disk.vmdk"),
                             disks='<Disk ovf:fileRef="f" ovf:parentRef="d2"/>')), "difference"),
        (ova(more=(member("second.ovf"),)), "2 descriptions"),
        (ova(more=(member("vm.ovf"),)), "twice"),
        (ova(more=(member("l", tarfile.SYMTYPE, "/etc/passwd"),)), "no plain file"),
        (ova(more=(member("l", tarfile.LNKTYPE, "disk.vmdk"),)), "no plain file"),
        (ova(more=(member("d", tarfile.DIRTYPE),)), "no plain file"),
        (ova(more=(member("c", tarfile.CHRTYPE),)), "no plain file"),
        (ova(more=(member("../x"),)), "no plain file"),
        (ova(more=(member("/etc/x"),)), "no plain file"),
        (ova(more=(member("a/b"),)), "no plain file"),
        (ova(more=(member("-x"),)), "no plain file"),
        (ova(more=tuple(member(f"n{number}") for number in range(64))), "more than 64"),
        (ova()[: len(ova()) // 2], "inside the archive"),
        (ova()[:2048], "cut short"),
        (bytes(1024), "0 descriptions"),
        (b"x" * 1024, "no archive header"),
    ],
)  # fmt: skip
def test_odd_archives_are_refused(data: bytes, words: str) -> None:
    assert words in refused(data)


def test_a_size_that_lies_is_refused() -> None:
    data = bytearray(ova())
    for size in (b"\x80" + b"\xff" * 11, b"77777777777\0", b"-1         \0"):
        data[124:136] = size
        data[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(data[:512])
        assert "bytes at 512" in refused(bytes(data))


@given(st.binary(max_size=1500))
def test_any_archive_is_an_error_or_a_list(data: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        with contextlib.suppress(ImageError):
            list_members(ImageReader(file.fileno(), "it"))
