"""rpm's databases before and beside SQLite: Berkeley DB as its own tools write it, ndb as rpm's source does."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.test_updates_rpm import blobs_of, header

from casemate.facts import guest_packages
from casemate.facts.fact import Unknown
from casemate.facts.root import Root
from casemate.facts.rpm_bdb import BdbFormatError, bdb_blobs
from casemate.facts.rpm_ndb import NdbFormatError, ndb_blobs
from casemate.facts.rpm_packages import has_rpm, installed_packages

LOAD = shutil.which("db5.3_load")
needs_bdb = pytest.mark.skipif(LOAD is None, reason="package db5.3-util is not installed")


def write_bdb(path: Path, blobs: list[bytes], *, page: int = 4096, order: int = 1234) -> None:
    """What rpm 4.15 has: the highest number under 0, then a header under each number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    sort: Literal["little", "big"] = "little" if order == 1234 else "big"
    rows = [(0, len(blobs).to_bytes(4, sort)), *enumerate(blobs, 1)]
    lines = [f" {number.to_bytes(4, sort).hex()}\n {blob.hex()}" for number, blob in rows]
    head = f"VERSION=3\nformat=bytevalue\ntype=hash\ndb_pagesize={page}\ndb_lorder={order}\nHEADER=END\n"
    assert LOAD is not None
    command = [LOAD, "-c", f"db_lorder={order}", str(path)]
    subprocess.run(command, input=head + "\n".join(lines) + "\nDATA=END\n", text=True, check=True, capture_output=True)


def read_bdb(path: Path) -> list[bytes]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return list(bdb_blobs(descriptor))
    finally:
        os.close(descriptor)


def write_ndb(path: Path, blobs: list[bytes], pages: int = 1) -> None:
    """As rpmpkg.c lays it out, with a free slot between any two."""
    path.parent.mkdir(parents=True, exist_ok=True)
    slots, body, block = b"", b"", pages * 256
    for index, blob in enumerate(blobs, 1):
        count = -(-(16 + len(blob) + 12) // 16)
        whole = struct.pack("<4sIII", b"BlbS", index, 7, len(blob)) + blob
        whole += bytes(count * 16 - len(whole) - 12)
        slots += struct.pack("<4sIII4sIII", b"Slot", index, block, count, b"Slot", 0, 0, 0)
        body += whole + struct.pack("<II4s", zlib.adler32(whole), len(blob), b"BlbE")
        block += count
    head = struct.pack("<4sIIII12x", b"RpmP", 0, 3, pages, len(blobs) + 1) + slots
    room = pages * 4096 - len(head)
    assert room >= 0
    path.write_bytes(head + struct.pack("<4sIII", b"Slot", 0, 0, 0) * (room // 16) + body)


def read_ndb(path: Path) -> list[bytes]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return list(ndb_blobs(descriptor))
    finally:
        os.close(descriptor)


BLOBS = [header(f"p{number}", "1.0", "2.el8", pad=number * 997 % 9000) for number in range(60)]


@needs_bdb
@pytest.mark.parametrize("page", [512, 4096, 65536])
@pytest.mark.parametrize("order", [1234, 4321])
def test_what_berkeley_db_writes(tmp_path: Path, page: int, order: int) -> None:
    write_bdb(tmp_path / "Packages", BLOBS, page=page, order=order)
    assert sorted(read_bdb(tmp_path / "Packages")) == sorted(BLOBS)


@needs_bdb
@pytest.mark.skipif(shutil.which("rpmbuild") is None, reason="package rpm is not installed")
def test_rpm_reads_the_same(tmp_path: Path) -> None:
    """Packages that rpm itself has built and installed, moved into the older database: rpm lists what we list."""
    work = tmp_path / "work"
    work.mkdir()
    for name, version in (("alpha", "1.0"), ("beta", "2~rc1")):
        text = (
            f"Name: {name}\nVersion: {version}\nRelease: 3.el8\nEpoch: 4\nSummary: x\nLicense: MIT\nBuildArch: noarch\n"
        )
        (work / f"{name}.spec").write_text(f"{text}%description\nx\n%files\n")
    command = ["rpmbuild", "-bb", "--define", f"_topdir {work}", *map(str, work.glob("*.spec"))]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    new, old = tmp_path / "new", tmp_path / "old"
    command = ["rpm", "--dbpath", str(new), "--justdb", "--nodeps", "-i", *map(str, work.rglob("*.rpm"))]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    write_bdb(old / "var/lib/rpm/Packages", blobs_of(new / "rpmdb.sqlite"))
    ours = installed_packages(Root(old), "/var/lib/rpm")
    assert not isinstance(ours, Unknown)
    assert sorted(f"{item.name} {item.evr}" for item in ours) == ["alpha 4:1.0-3.el8", "beta 4:2~rc1-3.el8"]
    command = ["rpm", "--define", "_db_backend bdb_ro", "--dbpath", str(old / "var/lib/rpm"), "-qa"]
    done = subprocess.run([*command, "--qf", "%{NAME} %{EPOCH}:%{EVR}\n"], capture_output=True, text=True, check=True)
    assert len(done.stdout.split()) == 4, done.stdout + done.stderr


def test_ndb(tmp_path: Path) -> None:
    write_ndb(tmp_path / "Packages.db", BLOBS)
    assert read_ndb(tmp_path / "Packages.db") == BLOBS
    write_ndb(tmp_path / "Packages.db", BLOBS * 10, pages=5)
    assert len(read_ndb(tmp_path / "Packages.db")) == 600


def changed(data: st.DataObject, whole: bytes) -> bytes:
    out = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(out) - 1) | st.integers(0, 200))
        out[at] = data.draw(st.integers(0, 255))
    return bytes(out[: data.draw(st.integers(0, len(out)))]) if data.draw(st.booleans()) else bytes(out)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_ndb_is_refused_or_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "small.ndb"
    write_ndb(path, BLOBS[:3])
    path.write_bytes(changed(data, path.read_bytes()))
    with contextlib.suppress(NdbFormatError):
        assert len(read_ndb(path)) <= 3


@needs_bdb
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_bdb_is_refused_or_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Never another error, and never more than a few times the file: pages that point in circles end."""
    good = tmp_path_factory.getbasetemp() / "good.bdb"
    if not good.exists():
        write_bdb(good, BLOBS[:4], page=512)
    path = tmp_path_factory.getbasetemp() / "bad.bdb"
    path.write_bytes(changed(data, good.read_bytes()))
    with contextlib.suppress(BdbFormatError):
        assert sum(map(len, read_bdb(path))) < 4 * good.stat().st_size


@needs_bdb
def test_pages_in_circles_and_things_that_rpm_does_not_write(tmp_path: Path) -> None:
    path = tmp_path / "Packages"
    write_bdb(path, [bytes(3000)], page=512)
    whole = bytearray(path.read_bytes())
    overflow = [at for at in range(512, len(whole), 512) if whole[at + 25] == 7]
    circle = bytearray(whole)
    for at in overflow:
        circle[at + 16 : at + 20] = struct.pack("<I", at // 512)
    circle_at = whole.index(struct.pack("<I", 3000))
    circle[circle_at : circle_at + 4] = struct.pack("<I", 60 << 20)
    for changes, message in (
        (bytes(circle), "page"),
        (bytes(whole[:24]) + b"\1" + bytes(whole[25:]), "encryption 1"),
        (bytes(whole[:26]) + b"\1" + bytes(whole[27:]), "flags 0x1"),
        (bytes(whole[:16]) + struct.pack("<I", 99) + bytes(whole[20:]), "version 99"),
        (bytes(whole[: len(whole) // 2]), "pages where"),
        (b"", "not a Berkeley DB"),
    ):
        path.write_bytes(changes)
        with pytest.raises(BdbFormatError, match=message):
            read_bdb(path)


def test_slots_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "Packages.db"
    write_ndb(path, BLOBS[:2])
    whole = path.read_bytes()
    first = struct.unpack_from("<II", whole, 40)
    for offset, value, message in (
        (0, b"XXXX", "not an ndb"),
        (4, struct.pack("<I", 1), "version 1"),
        (12, struct.pack("<I", 1 << 30), "pages of slots"),
        (32, b"XXXX", "no slot"),
        (40, struct.pack("<I", 1), "at block 1"),
        (44, struct.pack("<I", 0xFFFFFFFF), "blocks"),
        (72, struct.pack("<II", *first), "damaged"),
        (68, struct.pack("<I", 1), "package 1"),
        (4096 + 20, b"\xff", "checksum"),
    ):
        path.write_bytes(whole[:offset] + value + whole[offset + len(value) :])
        with pytest.raises(NdbFormatError, match=message):
            read_ndb(path)


@pytest.mark.parametrize("name", ["var/lib/rpm/Packages", "usr/lib/sysimage/rpm/Packages.db"])
def test_a_guest_of_each(tmp_path: Path, name: str) -> None:
    """What the audit and the list of parts of an image read; what is damaged is unknown and says where."""
    if name.endswith("Packages") and LOAD is None:
        pytest.skip("package db5.3-util is not installed")
    blobs = [
        header("bash", "4.4.20", "4.el8"),
        header("openssl", "1.1.1k", "9.el8", epoch=1),
        header("gpg-pubkey", "1", "2"),
    ]
    (write_bdb if name.endswith("Packages") else write_ndb)(tmp_path / name, blobs)
    root = Root(tmp_path)
    assert has_rpm(root) == "/" + os.path.dirname(name)
    found = guest_packages.installed_packages(root)
    assert not isinstance(found, Unknown)
    assert [(item.name, item.version, item.kind) for item in found] == [
        ("bash", "4.4.20-4.el8", "rpm"),
        ("openssl", "1:1.1.1k-9.el8", "rpm"),
    ]
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:2000])
    broken = guest_packages.installed_packages(root)
    assert isinstance(broken, Unknown)
    assert broken.why.startswith(f"/{name}: ")
