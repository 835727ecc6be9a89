"""Header readers of formats that are only imported: sound images, every lie, every reference, what the tools make."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import foreign_images as make
from tests.support.foreign_images import MIB, SOUND

from casemate.errors import ImageError
from casemate.image import vhdx
from casemate.image.crc32c import crc32c, crc32c_matches
from casemate.image.foreign import SourceHeader, inspect_source
from casemate.image.reader import ImageReader

qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is missing (qemu-utils)")


def described(kind: str = "monolithicSparse", sectors: int = 2048, file: str = "d", more: str = "") -> str:
    return make.DESCRIPTOR.format(kind=kind, sectors=sectors, file=file) + more


def read(data: bytes, declared: str | None = None, limit: int = 2 << 40) -> SourceHeader:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return inspect_source(ImageReader(file.fileno(), "the image"), declared, limit)


def refused(data: bytes, declared: str | None = None, **more: int) -> str:
    with pytest.raises(ImageError) as error:
        read(data, declared, **more)
    assert error.value.next_step
    return str(error.value)


@pytest.mark.parametrize("name", SOUND)
def test_sound_images_are_accepted(name: str) -> None:
    header = read(SOUND[name])
    assert (header.variant, header.format) == (
        {"sparse": "monolithicSparse", "stream": "streamOptimized"}.get(name.split(".")[0], name.split(".")[0]),
        name.split(".")[1],
    )
    assert header.file_size_bytes == len(SOUND[name])
    assert header == read(SOUND[name], header.format)
    assert header.driver == {"vhd": "vpc"}.get(header.format, header.format)


@pytest.mark.parametrize("name", SOUND)
def test_cut_short_or_longer_is_refused(name: str) -> None:
    """A download that broke off, bytes behind the end."""
    data = SOUND[name]
    lengths = {1, 100, 511, 512, 1000, 1024, len(data) // 2, len(data) - 1} - {len(data)}
    for length in lengths:
        if name != "sparse.vmdk" or length < 66 * 512:  # what follows its tables is room for data
            refused(data[:length])
    if name not in {"sparse.vmdk", "dynamic.vhdx"}:  # whose last blocks could be those bytes
        refused(data + b"x" * (4 * MIB + 512))


@pytest.mark.parametrize("name", SOUND)
def test_every_format_has_a_quota(name: str) -> None:
    assert "larger than a disk may be" in refused(SOUND[name], limit=4096)


LIES: dict[str, tuple[Callable[[], bytes], str]] = {
    # VMDK
    "vmdk cowd": (lambda: make.vmdk(magic=b"COWD"), "of a kind that is not accepted"),
    "vmdk text": (make.DESCRIPTOR.encode, "only the description"),
    "vmdk capacity 0": (lambda: make.vmdk(capacity=0, text=described(sectors=0)), "without content of its own"),
    "vmdk capacity 0 and flat": (
        lambda: make.vmdk(capacity=0, kind="monolithicFlat"),
        "whose content lies in other files",
    ),
    "vmdk huge": (lambda: make.vmdk(capacity=1 << 60), "larger than a disk may be"),
    "vmdk overflow": (lambda: make.vmdk(capacity=(1 << 64) - 1), "larger than a disk may be"),
    "vmdk version": (lambda: make.vmdk(version=4), "version 4"),
    "vmdk flags": (lambda: make.vmdk(flags=1 << 30), "flags"),
    "vmdk line ends": (lambda: make.vmdk(line_ends=b"\n\n\n\n"), "line ends"),
    "vmdk grain 0": (lambda: make.vmdk(grain=0), "grains of 0"),
    "vmdk grain 3": (lambda: make.vmdk(grain=3), "grains of 3"),
    "vmdk grain large": (lambda: make.vmdk(grain=1 << 40), "grains of"),
    "vmdk no entries": (lambda: make.vmdk(entries=0), "grain tables of 0"),
    "vmdk many entries": (lambda: make.vmdk(entries=513), "grain tables of 513"),
    "vmdk no descriptor": (lambda: make.vmdk(descriptor_at=0), "one of several files"),
    "vmdk empty descriptor": (lambda: make.vmdk(descriptor_size=0), "one of several files"),
    "vmdk descriptor outside": (lambda: make.vmdk(descriptor_at=1 << 50), "a descriptor of"),
    "vmdk descriptor large": (lambda: make.vmdk(descriptor_size=1 << 50), "a descriptor of"),
    "vmdk directory outside": (lambda: make.vmdk(directory_at=1 << 50), "grain directory"),
    "vmdk directory at 0": (lambda: make.vmdk(directory_at=0), "grain directory"),
    "vmdk second directory outside": (lambda: make.vmdk(redundant_at=129), "second grain directory"),
    "vmdk directory large": (lambda: make.vmdk(capacity=1 << 32, grain=1), "grain directory of 33554432"),
    "vmdk data outside": (lambda: make.vmdk(data_at=1 << 50), "data from sector"),
    "vmdk entry outside": (lambda: make.vmdk(directory_at=1), "an entry of the grain directory"),
    "vmdk deflate": (lambda: make.vmdk(compression=1), "with compression"),
    "vmdk compression": (lambda: make.vmdk(compression=9), "compression 9"),
    "vmdk parent hint": (lambda: make.vmdk(text=make.DESCRIPTOR + 'parentFileNameHint="/etc/passwd"'), "difference"),
    "vmdk parent hint in odd case": (lambda: make.vmdk(text=make.DESCRIPTOR + 'PARENTfilenamehint="x"'), "difference"),
    "vmdk parent cid": (lambda: make.vmdk(text=described().replace("ffffffff", "12345678")), "parentCID 12345678"),
    "vmdk two types": (
        lambda: make.vmdk(text=described(more='createType="monolithicFlat"')),
        "two lines for createtype",
    ),
    "vmdk flat": (lambda: make.vmdk(kind="monolithicFlat"), "monolithicFlat"),
    "vmdk device": (lambda: make.vmdk(kind="fullDevice"), "fullDevice"),
    "vmdk no type": (lambda: make.vmdk(text='RW 2048 SPARSE "d"'), "of type ''"),
    "vmdk extent outside": (lambda: make.vmdk(file="/etc/passwd"), "an extent in another place"),
    "vmdk extent up": (lambda: make.vmdk(file="..\\\\x"), "an extent in another place"),
    "vmdk extent url": (lambda: make.vmdk(file="nbd:unix"), "an extent in another place"),
    "vmdk extent size": (lambda: make.vmdk(text=described(sectors=4096)), "an extent of 4096"),
    "vmdk two extents": (lambda: make.vmdk(text=described(more='RW 1 FLAT "/etc/passwd" 0')), "2 extents"),
    "vmdk flat extent": (lambda: make.vmdk(text=described().replace("SPARSE", "FLAT")), "1 extents"),
    "vmdk hidden extent": (lambda: make.vmdk(text=described(more='\0RW 1 FLAT "/etc/passwd" 0')), "NUL"),
    "vmdk footer capacity": (
        lambda: make.stream_vmdk(footer_capacity=4096),
        "a header at its end that says other things",
    ),
    "vmdk footer version": (lambda: make.stream_vmdk(footer_version=1), "a header at its end that says other things"),
    "vmdk footer loops": (lambda: make.stream_vmdk(footer_directory_at=(1 << 64) - 1), "a header at its end"),
    "vmdk footer magic": (lambda: make.stream_vmdk(footer_magic=b"XXXX"), "no footer"),
    "vmdk footer directory": (lambda: make.stream_vmdk(footer_directory_at=1 << 50), "grain directory"),
    "vmdk stream without compression": (lambda: make.stream_vmdk(compression=0), "without compression"),
    # VHD
    "vhd differencing": (lambda: make.vhd(kind=4), "difference to another image"),
    "vhd type": (lambda: make.vhd(kind=5), "type 5"),
    "vhd version": (lambda: make.vhd(version=0x20000), "version"),
    "vhd saved": (lambda: make.vhd(saved=1), "saved state"),
    "vhd parent uuid": (lambda: make.vhd(parent_uuid=b"\1" * 16), "names a parent"),
    "vhd parent name": (lambda: make.vhd(parent_name=b"\0p"), "names a parent"),
    "vhd parent locator": (lambda: make.vhd(locators=b"W2ku" + bytes(20)), "names a parent"),
    "vhd zero": (lambda: make.vhd(size=0), "0 bytes"),
    "vhd odd size": (lambda: make.vhd(size=1000), "a multiple of 512"),
    "vhd huge": (lambda: make.vhd(size=1 << 62), "larger than a disk may be"),
    "vhd lying size": (lambda: make.vhd(maker=b"vpc ", size=1 << 62), "larger than a disk may be"),
    "vhd few blocks": (lambda: make.vhd(entries=0), "a table of 0 blocks"),
    "vhd many blocks": (lambda: make.vhd(entries=1 << 31), "a table of"),
    "vhd block 0": (lambda: make.vhd(block=0), "blocks of 0"),
    "vhd block 3": (lambda: make.vhd(block=1536), "blocks of 1536"),
    "vhd block large": (lambda: make.vhd(block=1 << 31), "blocks of"),
    "vhd table outside": (lambda: make.vhd(table_at=1 << 40), "block table at"),
    "vhd table in header": (lambda: make.vhd(table_at=0), "block table at 0"),
    "vhd header outside": (lambda: make.vhd(dynamic_at=1 << 60), "the dynamic header at"),
    "vhd header in footer": (lambda: make.vhd(dynamic_at=0), "the dynamic header at 0"),
    "vhd no dynamic cookie": (lambda: make.vhd(cookie=b"xxsparse"), "without its signature"),
    "vhd following": (lambda: make.vhd(following=bytes(8)), "without its signature"),
    "vhd dynamic version": (lambda: make.vhd(header_version=0x20000), "another version"),
    "vhd two footers": (lambda: make.vhd()[:-512] + make.vhd_footer(size=4 * MIB), "differs from its copy"),
    "vhd checksum": (lambda: make.vhd()[:-1] + b"\1", "checksum"),
    "vhd fixed size": (lambda: make.fixed_vhd(MIB), "as the file"),
    "vhd fixed geometry": (lambda: make.fixed_vhd(maker=b"vpc ", geometry=(65535, 15, 255)), "as the file"),
    "vhd fixed at both ends": (
        lambda: make.vhd_footer(kind=2) + bytes(2 * MIB - 512) + make.vhd_footer(kind=2),
        "second footer",
    ),
    # VHDX
    "vhdx log": (lambda: make.vhdx_image(log_guid=b"\1" * 16), "still to be replayed"),
    "vhdx log version": (lambda: make.vhdx_image(log_version=1), "a log of version 1"),
    "vhdx version": (lambda: make.vhdx_image(header_version=2), "no header"),
    "vhdx twins": (
        lambda: make.vhdx_image()[: 128 << 10] + make.vhdx_image(sequences=(1, 1), log_guid=b"\1" * 16)[128 << 10 :],
        "claim to be the current",
    ),
    "vhdx parent": (lambda: make.vhdx_image(flags=2), "difference to another image"),
    "vhdx locator": (
        lambda: make.vhdx_image(items=[*make.vhdx_items(), (vhdx.PARENT_LOCATOR, b"x" * 8, 4)]),
        "parent locator",
    ),
    "vhdx flags": (lambda: make.vhdx_image(flags=8), "unknown file parameters"),
    "vhdx unknown item": (
        lambda: make.vhdx_image(items=[*make.vhdx_items(), (b"\7" * 16, b"x", 4)]),
        "unknown metadata",
    ),
    "vhdx item twice": (lambda: make.vhdx_image(items=[*make.vhdx_items(), make.vhdx_items()[0]]), "metadata twice"),
    "vhdx item missing": (lambda: make.vhdx_image(items=make.vhdx_items()[1:]), "4 of the 5"),
    "vhdx item length": (
        lambda: make.vhdx_image(items=[*make.vhdx_items()[1:], (vhdx.FILE_PARAMETERS, b"x", 4)]),
        "metadata of 1",
    ),
    "vhdx 4K sectors": (lambda: make.vhdx_image(sector=4096), "sectors of 4096"),
    "vhdx block": (lambda: make.vhdx_image(block=3 * MIB), "blocks of"),
    "vhdx zero": (lambda: make.vhdx_image(size=0), "a disk of 0"),
    "vhdx odd": (lambda: make.vhdx_image(size=1000), "a disk of 1000"),
    "vhdx huge": (lambda: make.vhdx_image(size=1 << 62), "larger than a disk may be"),
    "vhdx small table": (lambda: make.vhdx_image(size=1 << 40, block=MIB), "a block table of"),
    "vhdx no table": (
        lambda: make.vhdx_image(regions=[(vhdx.METADATA, 2 * MIB, MIB, 1)]),
        "no region for the block table",
    ),
    "vhdx region twice": (lambda: make.vhdx_image(regions=[(vhdx.METADATA, 2 * MIB, MIB, 1)] * 2), "a region twice"),
    "vhdx unknown region": (lambda: make.vhdx_image(regions=[(b"\7" * 16, 2 * MIB, MIB, 1)]), "unknown region"),
    "vhdx overlap": (
        lambda: make.vhdx_image(regions=[(vhdx.METADATA, 2 * MIB, MIB, 1), (vhdx.BAT, 2 * MIB, MIB, 1)]),
        "overlap",
    ),
    "vhdx over the log": (
        lambda: make.vhdx_image(regions=[(vhdx.METADATA, 2 * MIB, MIB, 1), (vhdx.BAT, MIB, MIB, 1)]),
        "overlap",
    ),
    "vhdx region outside": (
        lambda: make.vhdx_image(regions=[(vhdx.METADATA, 2 * MIB, MIB, 1), (vhdx.BAT, 4 * MIB, MIB, 1)]),
        "cut short",
    ),
    "vhdx region unaligned": (
        lambda: make.vhdx_image(regions=[(vhdx.METADATA, 2 * MIB + 1, MIB, 1), (vhdx.BAT, 3 * MIB, MIB, 1)]),
        "multiples of 1 MiB",
    ),
    "vhdx two tables": (
        lambda: make.vhdx_image(second_regions=[(vhdx.METADATA, 2 * MIB, MIB, 1)]),
        "two region tables",
    ),
    "vhdx many regions": (
        lambda: make.vhdx_image(regions=[(bytes([n]) * 16, n * MIB, MIB, 0) for n in range(17)]),
        "more than is known",
    ),
    # VDI
    "vdi difference": (lambda: make.vdi(kind=4), "difference to another image"),
    "vdi undo": (lambda: make.vdi(kind=3), "difference to another image"),
    "vdi parent": (lambda: make.vdi(parent=b"\1" * 16), "difference to another image"),
    "vdi link": (lambda: make.vdi(link=b"\1" * 16), "difference to another image"),
    "vdi version": (lambda: make.vdi(version=0x20000), "version 2.0"),
    "vdi header": (lambda: make.vdi(header_bytes=16), "a header of 16"),
    "vdi block": (lambda: make.vdi(block=512), "blocks of 512"),
    "vdi extra": (lambda: make.vdi(extra=1), "and 1"),
    "vdi sector": (lambda: make.vdi(sector=4096), "sectors of 4096"),
    "vdi huge": (lambda: make.vdi(size=1 << 62), "larger than a disk may be"),
    "vdi zero": (lambda: make.vdi(size=0, blocks=0), "a disk of 0"),
    "vdi odd": (lambda: make.vdi(size=1000), "a disk of 1000"),
    "vdi blocks": (lambda: make.vdi(blocks=1 << 31), "in 2147483648 blocks"),
    "vdi allocated": (lambda: make.vdi()[:0x184] + struct.pack("<I", 3) + make.vdi()[0x188:], "3 blocks with data"),
    "vdi map": (lambda: make.vdi(map_at=1 << 31), "the block map at"),
    "vdi map in header": (lambda: make.vdi(map_at=0), "the block map at 0"),
    "vdi data": (lambda: make.vdi(data_at=1 << 31), "data up to byte"),
    "vdi cut": (lambda: make.vdi(allocated=2)[:-1], "cut short"),
    "vdi tail": (lambda: make.vdi() + bytes(4 * MIB), "behind the data"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_every_lie_is_refused_for_what_it_is(name: str) -> None:
    build, words = LIES[name]
    assert words in refused(build())


def test_descriptors_that_regular_expressions_would_choke_on() -> None:
    """Lines as long as a descriptor may be; they end in a moment or the test run does not."""
    for line in ("a=" + " " * 60_000 + '"x"', "RW " + "1 " * 30_000, "RW 1 SPARSE" + ' "' * 20_000, "=" * 60_000):
        text = make.DESCRIPTOR.format(kind="monolithicFlat", sectors=2048, file="d") + line
        refused(make.vmdk(descriptor_size=127, text=text) + bytes(MIB))


def test_two_formats_at_once_are_refused() -> None:
    for first, second in (("sparse.vmdk", "fixed.vhd"), ("dynamic.vdi", "fixed.vhd"), ("dynamic.vhdx", "fixed.vhd")):
        assert "several formats at once" in refused(SOUND[first] + SOUND[second])
    mixed = bytearray(SOUND["sparse.vmdk"])
    mixed[0x40:0x44] = b"\x7f\x10\xda\xbe"
    assert "several formats at once" in refused(bytes(mixed))


def test_what_is_declared_must_be_what_it_is() -> None:
    assert "looks like vmdk" in refused(SOUND["sparse.vmdk"], "raw")
    assert "looks like vdi" in refused(SOUND["dynamic.vdi"], "vmdk")
    assert "has no VHDX header" in refused(bytes(MIB), "vhdx")
    assert read(bytes(MIB), "raw").format == "raw"
    assert "cannot tell what" in refused(bytes(MIB))
    assert "is empty" in refused(b"")
    assert "packed with xz" in refused(b"\xfd7zXZ\0" + bytes(506))


@pytest.mark.parametrize("name", SOUND)
def test_a_part_of_a_file_is_read_as_itself(name: str) -> None:
    """An image in an archive: nothing before or behind it counts."""
    with tempfile.TemporaryFile() as file:
        file.write(b"conectix" * 64 + SOUND[name] + b"QFI\xfb" * 128)
        file.flush()
        reader = ImageReader(file.fileno(), "it", offset=512, size_bytes=len(SOUND[name]))
        assert inspect_source(reader) == read(SOUND[name])
        with pytest.raises(ImageError, match="cut short"):
            ImageReader(file.fileno(), "it", offset=2048, size_bytes=len(SOUND[name]))


@qemu_img
@pytest.mark.parametrize("words", [
    "vmdk subformat=monolithicSparse", "vmdk subformat=streamOptimized", "vmdk zeroed_grain=on",
    "vmdk adapter_type=lsilogic,hwversion=6", "vpc subformat=dynamic", "vpc subformat=fixed",
    "vpc subformat=dynamic,force_size=on", "vpc subformat=fixed,force_size=on", "vhdx subformat=dynamic",
    "vhdx subformat=fixed", "vhdx block_size=1M,log_size=3M", "vhdx block_state_zero=off", "vdi static=off",
    "vdi static=on", "qcow2 compat=0.10", "qcow2 extended_l2=on", "qcow2 compression_type=zstd",
    "qcow2 cluster_size=512", "qcow2 lazy_refcounts=on", "qcow2 preallocation=metadata", "raw -",
])  # fmt: skip
def test_what_qemu_img_makes_is_accepted(words: str, tmp_path: Path) -> None:
    driver, _, options = words.partition(" ")
    source, made = tmp_path / "s.raw", tmp_path / "made"
    source.write_bytes(bytes(510) + b"\x55\xaa" + os.urandom(MIB) + bytes(19 * MIB))
    more = ["-o", options] if options != "-" else []
    subprocess.run(["qemu-img", "convert", "-O", driver, *more, source, made], check=True, timeout=60)
    with made.open("rb") as file:
        header = inspect_source(ImageReader(file.fileno(), "made"))
    said = subprocess.run(
        ["qemu-img", "info", "--output=json", "-f", header.driver, made], check=True, capture_output=True, timeout=60
    )
    assert header.driver == driver
    assert header.virtual_size_bytes == json.loads(said.stdout)["virtual-size"]


@qemu_img
@pytest.mark.parametrize("kind", ["monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"])
def test_what_qemu_img_spreads_over_files_is_refused(kind: str, tmp_path: Path) -> None:
    made = tmp_path / "d.vmdk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", "-o", f"subformat={kind}", made, "4G"], check=True)
    for path in tmp_path.iterdir():
        with path.open("rb") as file, pytest.raises(ImageError):
            inspect_source(ImageReader(file.fileno(), path.name))


@qemu_img
def test_differences_that_qemu_img_makes_are_refused(tmp_path: Path) -> None:
    for driver in ("vmdk", "qcow2"):
        base, top = tmp_path / f"b.{driver}", tmp_path / f"t.{driver}"
        subprocess.run(["qemu-img", "create", "-q", "-f", driver, base, "4M"], check=True)
        subprocess.run(["qemu-img", "create", "-q", "-f", driver, "-b", base, "-F", driver, top], check=True)
        with top.open("rb") as file, pytest.raises(ImageError, match=r"backing file|difference"):
            inspect_source(ImageReader(file.fileno(), "top"))


def test_crc32c_is_the_known_one() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"") == 0
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert crc32c(b"\xff" * 32) == 0x62A8AB43


@given(st.binary(max_size=64), st.integers(0, 300))
def test_crc32c_skips_zeros_as_if_it_read_them(data: bytes, zeros: int) -> None:
    whole = data + bytes(zeros)
    slow = 0xFFFFFFFF
    for byte in whole:
        slow ^= byte
        for _ in range(8):
            slow = slow >> 1 ^ (0x82F63B78 if slow & 1 else 0)
    assert crc32c(whole) == slow ^ 0xFFFFFFFF
    if len(whole) >= 8:
        assert crc32c_matches(make.with_crc(whole), 4)
