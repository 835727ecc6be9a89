"""Pending updates of hosts of rpm: SQLite read beside SQLite itself, headers, rpm's order of versions, advisories."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.facts.fact import Known, Unknown
from casemate.facts.root import Root
from casemate.facts.rpm_packages import Package, compare, compare_texts, read_header
from casemate.facts.rpm_sqlite import SqliteFile, SqliteFormatError
from casemate.facts.updates import collect_updates

NOW = 1_800_000_000
RUNNING = "5.14.0-570.12.1.el9_6.x86_64"


def header(
    name: str, version: str, release: str, *, epoch: int | None = None, arch: str = "x86_64", pad: int = 0
) -> bytes:
    """A header as rpm's database holds it; ``pad``: bytes of other data before the texts."""
    entries, data = [], bytes(pad)
    for tag, text in ((1000, name), (1001, version), (1002, release), (1022, arch)):
        entries.append(struct.pack(">iiiI", tag, 6, len(data), 1))
        data += text.encode() + b"\0"
    if epoch is not None:
        data += bytes(-len(data) % 4)
        entries.append(struct.pack(">iiiI", 1003, 4, len(data), 1))
        data += struct.pack(">I", epoch)
    return struct.pack(">II", len(entries), len(data)) + b"".join(entries) + data


def database(path: Path, blobs: list[bytes], *, page: int = 4096, log: bool = False) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA page_size={page}")
    connection.execute(f"PRAGMA journal_mode={'WAL' if log else 'DELETE'}")
    connection.execute("CREATE TABLE 'Packages' (hnum INTEGER PRIMARY KEY AUTOINCREMENT, blob BLOB NOT NULL)")
    connection.execute("CREATE TABLE 'Name' (key TEXT NOT NULL, hnum INTEGER NOT NULL, idx INTEGER NOT NULL)")
    connection.executemany("INSERT INTO Packages (blob) VALUES (?)", [(blob,) for blob in blobs])
    connection.commit()
    return connection


def blobs_of(path: Path) -> list[bytes]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return list(SqliteFile(descriptor).blobs("Packages"))
    finally:
        os.close(descriptor)


# ---- the file format --------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 40_000) | st.integers(440, 560) | st.integers(4040, 4100), max_size=60),
    st.sampled_from([512, 1024, 4096, 65536]),
)
def test_every_row_as_sqlite_itself_reads_it(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], page: int
) -> None:
    path = tmp_path_factory.mktemp("db") / "rpmdb.sqlite"
    blobs = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    database(path, blobs, page=page).close()
    assert blobs_of(path) == blobs


def test_a_table_of_many_pages(tmp_path: Path) -> None:
    path = tmp_path / "db"
    blobs = [str(number).encode() * 3 for number in range(20_000)]
    database(path, blobs, page=512).close()
    assert blobs_of(path) == blobs


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_file_ends_in_an_error_or_in_rows(data: st.DataObject) -> None:
    whole = bytearray(_small())
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole
    descriptor = os.memfd_create("db")
    try:
        os.pwrite(descriptor, bytes(cut), 0)
        assert sum(len(blob) for blob in SqliteFile(descriptor).blobs("Packages")) < 1 << 24
    except SqliteFormatError:
        pass
    finally:
        os.close(descriptor)


def _small() -> bytes:
    connection = sqlite3.connect(":memory:")
    connection.execute("PRAGMA page_size=512")
    connection.execute("CREATE TABLE Packages (hnum INTEGER PRIMARY KEY AUTOINCREMENT, blob BLOB NOT NULL)")
    connection.executemany("INSERT INTO Packages (blob) VALUES (?)", [(bytes(300 * n),) for n in range(12)])
    connection.commit()
    return connection.serialize()


def test_pages_that_point_in_circles_end(tmp_path: Path) -> None:
    """Inner pages of a tree lead to themselves, or all to one leaf; the row's overflow page to itself."""
    path = tmp_path / "db"
    database(path, [str(number).encode() * 9 for number in range(3000)], page=512).close()
    whole = path.read_bytes()
    inner = [page for page in range(1, len(whole) // 512) if whole[page * 512] == 5]
    leaf = next(page for page in range(1, len(whole) // 512) if whole[page * 512] == 13 and whole[page * 512 + 4] > 5)
    for target, said in ((inner[0] + 1, "too deep"), (leaf + 1, "in circles")):
        data = bytearray(whole)
        for page in inner:
            cells = struct.unpack_from(">H", data, page * 512 + 3)[0]
            for place in struct.unpack_from(f">{cells}H", data, page * 512 + 12):
                struct.pack_into(">I", data, page * 512 + place, target)
        path.write_bytes(data)
        if said == "too deep":
            with pytest.raises(SqliteFormatError, match=said):
                blobs_of(path)
        else:
            assert len(blobs_of(path)) < 40 * len(whole) // 512


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    database(tmp_path / "db", []).close()
    descriptor = os.open(tmp_path / "db", os.O_RDONLY)
    try:
        with pytest.raises(SqliteFormatError, match="no table"):
            list(SqliteFile(descriptor).blobs("Nothing"))
    finally:
        os.close(descriptor)


# ---- headers and versions -----------------------------------------------------------------------------------


def test_headers() -> None:
    found = read_header(header("qemu-kvm", "9.1.0", "15.el9", epoch=17, pad=5000))
    assert (found, found.evr) == (Package("qemu-kvm", 17, "9.1.0", "15.el9", "x86_64"), "17:9.1.0-15.el9")
    assert read_header(header("passt", "0^2025", "1.el9")).evr == "0^2025-1.el9"


@given(st.binary(max_size=400) | st.binary(max_size=60).map(lambda tail: header("a", "1", "2") + tail))
def test_hostile_headers(blob: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert read_header(blob).name


@settings(max_examples=200)
@given(st.data())
def test_changed_headers(data: st.DataObject) -> None:
    blob = bytearray(header("libvirt-daemon", "10.10.0", "7.el9", epoch=0))
    blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        read_header(bytes(blob))


ORDER = """
1.0 1.0 0|1.0 2.0 -1|2.0.1 2.0.1a -1|5.5p1 5.5p10 -1|10xyz 10.1xyz -1|xyz10 xyz10.1 -1|xyz.4 8 -1|5.5p2 5.6p1 -1
5.6p1 6.5p1 -1|6.0 6.0.rc1 -1|10b2 10a1 1|1.0aa 1.0a 1|10.0001 10.1 0|10.0001 10.0039 -1|4.999.9 5.0 -1|2_0 2.0 0
a+ a_ 0|1.0~rc1 1.0 -1|1.0~rc1 1.0~rc2 -1|1.0~rc1~git123 1.0~rc1 -1|1.0^ 1.0 1|1.0^git1 1.01 -1|1.0^20160101 1.0.1 -1
1.0~rc1^git1 1.0~rc1 1|2.el9 2.el9_6 -1|010.1 10.1 0|1.2a 1.2.0 -1"""


def test_the_order_of_versions() -> None:
    """rpm's own rules: numbers as numbers, letters before numbers, ``~`` before the end, ``^`` after it."""
    for row in ORDER.strip().replace("\n", "|").split("|"):
        one, other, sign = row.split()
        assert (compare_texts(one, other), compare_texts(other, one)) == (int(sign), -int(sign)), row
    assert compare(Package("a", 1, "1", "1", ""), Package("a", 0, "9", "9", "")) == 1


versions = st.text(alphabet="0123456789ab.~^_", max_size=8)


@pytest.mark.parametrize("epoch", [0, 17])
def test_epoch_version_and_release_come_back(epoch: int) -> None:
    package = Package("qemu-kvm", epoch, "9.1.0~rc1", "15.el9_6.2", "x86_64")
    assert Package.of_evr(package.name, package.evr, package.arch) == package


@given(versions, versions, versions)
def test_the_order_is_one(one: str, two: str, three: str) -> None:
    assert compare_texts(one, two) == -compare_texts(two, one)
    if compare_texts(one, two) <= 0 and compare_texts(two, three) <= 0:
        assert compare_texts(one, three) <= 0


# ---- a host ----------------------------------------------------------------------------------------------------


def advisory(
    name: str, version: str, release: str, *, epoch: str = "0", kind: str = "security", arch: str = "x86_64"
) -> str:
    return (
        f'<update type="{kind}"><id>X</id><pkglist><collection><package name="{name}" version="{version}"'
        f' release="{release}" epoch="{epoch}" arch="{arch}"><filename>f</filename></package></collection></pkglist>'
        "</update>"
    )


ADVISORIES = (
    advisory("kernel-core", "5.14.0", "570.99.1.el9_6")
    + advisory("qemu-kvm", "9.1.0", "15.el9_6.2", epoch="17")
    + advisory("libvirt-daemon", "99", "1.el9", kind="bugfix")
    + advisory("swtpm", "0.1", "1.el9")
    + advisory("passt", "9", "9", arch="aarch64")
    + advisory("bash", "9", "9")
)
INSTALLED = [
    header("kernel-core", "5.14.0", "503.11.1.el9_5"),
    header("kernel-core", "5.14.0", "570.12.1.el9_6"),
    header("qemu-kvm", "9.1.0", "15.el9", epoch=17),
    header("libvirt-daemon", "10.10.0", "7.el9"),
    header("swtpm", "0.8.0", "2.el9"),
    header("passt", "0^20250217", "1.el9"),
    header("bash", "5.1.8", "9.el9"),
    header("gpg-pubkey", "fd431d51", "4ae0493b", arch=""),
]


def host(
    base: Path,
    *,
    installed: list[bytes] | None = None,
    advisories: str = ADVISORIES,
    suffix: str = ".gz",
    pack: Callable[[bytes], bytes] = gzip.compress,
    made: int = NOW - 5 * 86_400,
    folder: str = "var/lib/rpm",
    cache: str = "var/cache/dnf",
) -> Root:
    database(base / folder / "rpmdb.sqlite", INSTALLED if installed is None else installed).close()
    repodata = base / cache / "baseos-0123456789abcdef/repodata"
    repodata.mkdir(parents=True)
    name = f"abc-updateinfo.xml{suffix}"
    (repodata / name).write_bytes(pack(f"<updates>{advisories}</updates>".encode()))
    (repodata / "repomd.xml").write_text(
        f'<repomd xmlns="http://x"><revision>{made}</revision><data type="primary"><location href="repodata/p.xml.gz"/>'
        f'</data><data type="updateinfo"><location href="repodata/{name}"/><timestamp>{made}</timestamp></data>'
        "</repomd>"
    )
    kernel = base / "proc/sys/kernel"
    kernel.mkdir(parents=True)
    (kernel / "osrelease").write_text(f"{RUNNING}\n")
    return Root(base)


def value(root: Root, name: str) -> object:
    fact = collect_updates(root, now_s=NOW)[f"updates.{name}"]
    return fact.value if isinstance(fact, Known) else fact


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        ("", bytes),
        (".gz", gzip.compress),
        (".xz", lzma.compress),
        (".bz2", bz2.compress),
        (".zst", zstandard.compress),
    ],
)
def test_what_waits(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    root = host(tmp_path, suffix=suffix, pack=pack)
    assert value(root, "kernel") == ("kernel-core 5.14.0-570.12.1.el9_6 -> 5.14.0-570.99.1.el9_6",)
    assert value(root, "qemu") == ("qemu-kvm 17:9.1.0-15.el9 -> 17:9.1.0-15.el9_6.2",)
    assert value(root, "libvirt") == (), "a bug fix is no security update"
    assert value(root, "helpers") == (), "an older advisory, and one for another architecture"
    assert (value(root, "has-qemu"), value(root, "has-microcode")) == (True, False)
    assert value(root, "age-days") == 5
    assert value(root, "running-kernel") == "newest"


def test_the_places_of_newer_distributions(tmp_path: Path) -> None:
    root = host(tmp_path, folder="usr/lib/sysimage/rpm", cache="var/cache/libdnf5")
    (tmp_path / "var/lib/rpm").mkdir(parents=True)
    assert value(root, "qemu") == ("qemu-kvm 17:9.1.0-15.el9 -> 17:9.1.0-15.el9_6.2",)


def test_an_older_kernel_that_still_runs(tmp_path: Path) -> None:
    root = host(tmp_path)
    (tmp_path / "proc/sys/kernel/osrelease").write_text("5.14.0-503.11.1.el9_5.x86_64\n")
    assert value(root, "running-kernel") == "older than 5.14.0-570.12.1.el9_6.x86_64"
    (tmp_path / "proc/sys/kernel/osrelease").write_text("6.99-mine\n")
    assert isinstance(value(root, "running-kernel"), Unknown)
    assert isinstance(value(root, "kernel"), Unknown)


def test_the_newest_generation_of_a_repository_counts(tmp_path: Path) -> None:
    root = host(tmp_path)
    old = tmp_path / "var/cache/dnf/baseos-fedcba9876543210"
    (old / "repodata").mkdir(parents=True)
    text = (tmp_path / "var/cache/dnf/baseos-0123456789abcdef/repodata/repomd.xml").read_text()
    (old / "repodata/repomd.xml").write_text(text.replace(str(NOW - 5 * 86_400), str(NOW - 90 * 86_400)))
    assert value(root, "age-days") == 5
    (old / "repodata/repomd.xml").write_text(text.replace(str(NOW - 5 * 86_400), str(NOW - 86_400)))
    assert isinstance(value(root, "qemu"), Unknown), "its advisories are not there"


def test_streams_of_modules_are_compared_with_their_like(tmp_path: Path) -> None:
    offered = advisory("qemu-kvm", "8.0", "1.module+el8.9") + advisory("qemu-kvm", "6.2", "9.el8")
    offered += advisory("kernel", "4.18.0", "1.el8")
    root = host(tmp_path, installed=[header("qemu-kvm", "6.2", "7.el8")], advisories=offered)
    assert value(root, "qemu") == ("qemu-kvm 6.2-7.el8 -> 6.2-9.el8",)


def test_what_is_too_old_or_not_there_is_unknown(tmp_path: Path) -> None:
    for number, (more, said) in enumerate(
        (
            ({"made": NOW - 40 * 86_400}, "40 days old"),
            ({"made": 7}, "when they were made"),
            ({"installed": []}, "not one package"),
            ({"suffix": ".7z"}, "not understood"),
            ({"pack": lambda data: gzip.compress(data)[:-20]}, "damaged"),
            ({"pack": lambda data: b"nothing"}, "damaged"),
            ({"suffix": ".xz", "pack": lambda data: lzma.compress(data)[:-20]}, "damaged"),
            ({"suffix": ".zst", "pack": lambda data: b"nothing"}, "damaged"),
            ({"advisories": "<a>"}, "mismatched"),
            ({"advisories": advisory("qemu-kvm", "1", "1", epoch="-1")}, "epoch"),
            ({"installed": [b"xx"]}, "header"),
        )
    ):
        found = value(host(tmp_path / str(number), **more), "qemu")  # type: ignore[arg-type]
        assert isinstance(found, Unknown), said
        assert said in found.why
    root = host(tmp_path / "none")
    for path in sorted((tmp_path / "none/var/cache/dnf").rglob("repomd.xml")):
        path.unlink()
    found = value(root, "qemu")
    assert isinstance(found, Unknown)
    assert "run dnf updateinfo" in found.why
    assert value(root, "has-qemu") is True


def test_a_document_type_is_refused(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
    root = host(tmp_path, pack=lambda data: gzip.compress(bomb.encode() + data))
    found = value(root, "qemu")
    assert isinstance(found, Unknown)
    assert "document type" in found.why


def test_a_bomb_is_unpacked_in_pieces_and_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from casemate.facts import rpm_advisories

    monkeypatch.setattr(rpm_advisories, "MAX_XML_BYTES", 8 << 20)
    for number, (suffix, pack) in enumerate(
        ((".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstandard.compress))
    ):
        root = host(tmp_path / str(number), suffix=suffix, pack=pack, advisories=" " * (64 << 20))  # type: ignore[arg-type]
        found = value(root, "qemu")
        assert isinstance(found, Unknown)
        assert "larger than 8 MiB" in found.why


def test_a_database_that_is_written_to_is_unknown(tmp_path: Path) -> None:
    base = tmp_path / "host"
    root = host(base)
    path = base / "var/lib/rpm/rpmdb.sqlite"
    path.unlink()
    connection = database(path, INSTALLED, log=True)
    assert (base / "var/lib/rpm/rpmdb.sqlite-wal").stat().st_size
    found = value(root, "qemu")
    assert isinstance(found, Unknown)
    assert "write-ahead log" in found.why
    connection.close()
    assert value(root, "has-qemu") is True


def test_a_change_that_did_not_end_is_unknown(tmp_path: Path) -> None:
    root = host(tmp_path)
    journal = tmp_path / "var/lib/rpm/rpmdb.sqlite-journal"
    journal.write_bytes(b"")
    assert value(root, "has-qemu") is True
    journal.write_bytes(b"\xd9\xd5\x05\xf9")
    found = value(root, "qemu")
    assert isinstance(found, Unknown)
    assert "did not end" in found.why


def test_advisories_of_others_say_nothing_of_the_distribution(tmp_path: Path) -> None:
    """CentOS Stream publishes none, EPEL beside it does: that nothing waits there is no word about QEMU or libvirt."""
    foreign = advisory("qemu-guest-agent-tools", "9", "9") + advisory("cacti", "1", "1")
    root = host(tmp_path / "epel", advisories=foreign)
    for family in ("kernel", "qemu", "libvirt"):
        found = value(root, family)
        assert isinstance(found, Unknown)
        assert "not the distribution's own" in found.why
    fixed = advisory("kernel", "1", "1", kind="bugfix")
    assert value(host(tmp_path / "own", advisories=foreign + fixed), "libvirt") == ()


def test_a_row_without_a_package_is_no_absence(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, blob)")
        connection.execute("INSERT INTO Packages (blob) VALUES (NULL)")
        connection.commit()
    with pytest.raises(SqliteFormatError, match="no blob"):
        blobs_of(path)


def test_other_formats_are_named(tmp_path: Path) -> None:
    (tmp_path / "var/lib/rpm").mkdir(parents=True)
    (tmp_path / "var/lib/rpm/Packages").write_bytes(b"\0" * 64)
    found = value(Root(tmp_path), "qemu")
    assert isinstance(found, Unknown)
    assert "Berkeley DB" in found.why
