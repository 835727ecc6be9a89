"""Superblocks told apart by their magic, on blocks that the tools themselves wrote and on made-up ones."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.cell_disks import LABEL, available, make_one, tree

from casemate.cell.sniff import HEAD_BYTES, TAIL_BYTES, sniff
from casemate.cell.volumes import KINDS, parse_os_release


def blank(*parts: tuple[int, bytes], size: int = HEAD_BYTES) -> bytes:
    data = bytearray(size)
    for offset, content in parts:
        data[offset : offset + len(content)] = content
    return bytes(data)


@pytest.mark.parametrize(("kind", "size_mib", "program"), available(), ids=str)
def test_what_the_tools_write(tmp_path: Path, kind: str, size_mib: int, program: str) -> None:
    target = tmp_path / "disk"
    make_one(kind, target, size_mib, tree(tmp_path / "tree"))
    with target.open("rb") as file:
        head = file.read(HEAD_BYTES)
        file.seek(-min(TAIL_BYTES, target.stat().st_size), 2)
        found = sniff(head, file.read())
    assert found.content == kind
    if kind in {"ext2", "ext3", "ext4", "xfs", "btrfs", "vfat", "iso9660", "swap"}:
        assert found.label.lower() == LABEL
    if kind in {"ext2", "ext3", "ext4", "xfs", "btrfs"}:
        assert len(found.uuid) == 36
    assert not any("replay" in note for note in found.notes)


@pytest.mark.parametrize(
    ("head", "content", "note"),
    [
        (blank((1080, b"\x53\xef"), (1120, b"\x04\0\0\0")), "ext2", "not replayed"),
        (blank((1080, b"\x53\xef"), (1116, b"\x04\0\0\0"), (1082, b"\x02")), "ext3", "errors"),
        (blank((1080, b"\x53\xef"), (1120, b"\x40\0\0\0")), "ext4", ""),
        (blank((1080, b"\x53\xef"), (1120, b"\x08\0\0\0")), "jbd", "journal"),
        (blank((65600, b"_BHRfS_M"), (65632, b"\x01")), "btrfs", "not replayed"),
        (blank((65600, b"_BHRfS_M"), (65672, b"\x03")), "btrfs", "3 devices"),
        (blank((0, b"LUKS\xba\xbe\0\x02")), "crypto_LUKS", "version 2"),
        (blank((512, b"LABELONE"), (536, b"LVM2 001")), "LVM2_member", ""),
        (blank((4096, b"\xfc\x4e\x2b\xa9\x01\0\0\0"), (4168, struct.pack("<i", -1))), "linux_raid_member", "level -1"),
        (blank((0, b"\xfc\x4e\x2b\xa9\x01\0\0\0")), "linux_raid_member", "level 0"),
        (blank((0, b"XFSB"), (4096, b"\xfc\x4e\x2b\xa9\x01\0\0\0")), "linux_raid_member", ""),
        (blank((3, b"EXFAT   "), (106, b"\x02")), "exfat", "not unmounted"),
        (blank(), "", ""),
    ],
)
def test_states(head: bytes, content: str, note: str) -> None:
    found = sniff(head)
    assert found.content == content
    assert note in " ".join(found.notes)


def test_raid_at_the_end_of_the_device() -> None:
    assert (
        sniff(b"", blank((TAIL_BYTES - 8192, b"\xfc\x4e\x2b\xa9\x01\0\0\0"), size=TAIL_BYTES)).content
        == "linux_raid_member"
    )
    assert sniff(b"", blank((0, b"\xfc\x4e\x2b\xa9\0\0\0\0"), size=TAIL_BYTES)).content == "linux_raid_member"


def test_a_partition_table_alone_is_no_file_system() -> None:
    mbr = blank((446, b"\x80\0\x02\0\x83" + bytes(11)), (510, b"\x55\xaa"))
    assert sniff(mbr).content == ""


@given(st.binary(max_size=5000), st.integers(0, 66_000), st.binary(max_size=300))
def test_whatever_comes_is_printable(start: bytes, offset: int, more: bytes) -> None:
    found = sniff(blank((0, start), (offset, more)), start)
    assert all(text.isprintable() for text in (found.content, found.label, found.uuid, *found.notes))


def test_every_file_system_has_a_way_to_be_mounted() -> None:
    assert {kind for kind, _, _ in available()} - {"swap"} <= set(KINDS)
    for kind in KINDS.values():
        assert "rw" not in kind.options.split(",")


def test_os_release() -> None:
    text = '# no\nID=debian\nNAME=\'Debian \\$\'\nVERSION_ID="12"\nPRETTY_NAME="a\x1b[31mb"\nnot a line\n=x\nA-B=c\n'
    found = parse_os_release(text)
    assert (found.id, found.name, found.version) == ("debian", "Debian $", "12")
    assert found.pretty_name == "a\N{REPLACEMENT CHARACTER}[31mb"
    assert parse_os_release("") == parse_os_release("\n" * 1000)
