"""Pending updates: Debian's version order, lists and their packing, dates, hostile input."""

from __future__ import annotations

import gzip
import itertools
import lzma
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.tree_host import LISTS, PACKAGES, offers, release, status
from tests.unit.test_audit_kernel import put

from casemate.facts import updates
from casemate.facts.fact import Fact, Known, Unknown
from casemate.facts.root import Root
from casemate.facts.updates import collect_updates, stanzas
from casemate.facts.updates_lz4 import MAGIC, unpack_lz4
from casemate.facts.updates_version import compare_versions

ORDER: tuple[str, ...] = (
    "0~~",
    "0~",
    "0",
    "1.0~rc1",
    "1.0",
    "1.0-1~bpo",
    "1.0-1",
    "1.0-1+b1",
    "1.0a",
    "1.0+deb12u1",
    "1.0.1",
    "1.9",
)
ORDER += ("1.10", "2", "7.2+dfsg-7+deb12u9", "7.2+dfsg-7+deb12u15", "1:0.5", "2:0~")
VERSIONS = st.from_regex(r"([0-9]:)?[0-9][0-9a-c.+~]{0,6}(-[0-9a-c.+~]{1,4})?", fullmatch=True)


class TestOrder:
    def test_known_order(self) -> None:
        for (place, one), (other_place, other) in itertools.product(enumerate(ORDER), repeat=2):
            expected = (place > other_place) - (place < other_place)
            assert compare_versions(one, other) == expected, (one, other)

    @given(VERSIONS, VERSIONS, VERSIONS)
    def test_it_is_an_order(self, one: str, two: str, three: str) -> None:
        assert compare_versions(one, one) == 0
        assert compare_versions(one, two) == -compare_versions(two, one)
        if compare_versions(one, two) <= 0 and compare_versions(two, three) <= 0:
            assert compare_versions(one, three) <= 0

    @pytest.mark.skipif(shutil.which("dpkg") is None, reason="no dpkg here")
    @pytest.mark.parametrize(
        ("one", "other"), [("1.0a", "1.0+"), ("1.0~~a", "1.0~"), ("1-1", "1-1.0"), ("0:1", "1"), ("1.01", "1.1")]
    )
    def test_dpkg_agrees(self, one: str, other: str) -> None:
        word = {-1: "lt", 0: "eq", 1: "gt"}[compare_versions(one, other)]
        assert subprocess.run(["dpkg", "--compare-versions", one, word, other], check=False).returncode == 0

    @given(st.text(max_size=60), st.text(max_size=60))
    def test_no_text_crashes_it(self, one: str, other: str) -> None:
        assert compare_versions(one, other) in (-1, 0, 1)


def block(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data


HEAD = MAGIC + b"\x60\x40\x82"


class TestLz4:
    def test_literals_copies_and_overlap(self) -> None:
        # 4 literals "abcd", a copy of 6 from 2 back, then 1 literal.
        assert unpack_lz4(HEAD + block(b"\x42abcd\x02\x00\x10!") + bytes(4), 99) == b"abcdcdcdcd!"

    def test_long_counts_and_stored_blocks(self) -> None:
        long = block(b"\xf0\x05" + b"x" * 20)
        stored = (3 | 1 << 31).to_bytes(4, "little") + b"end"
        assert unpack_lz4(HEAD + long + stored + bytes(4), 99) == b"x" * 20 + b"end"

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"nonsense",
            HEAD,
            HEAD + block(b"Bab"),
            HEAD + block(b"Babcd\t\x00\x10!"),
            HEAD + block(b"@a"),
            HEAD + block(b"@abcd\x00\x00"),
            HEAD + b"\xff\xff\xff\x7f",
            MAGIC + b"\x00@\x82" + bytes(4),
        ],
    )
    def test_damage_is_an_error(self, data: bytes) -> None:
        with pytest.raises(ValueError, match="LZ4"):
            unpack_lz4(data, 1000)

    def test_a_bomb_is_refused(self) -> None:
        bomb = b"\x1fa\x01\x00" + b"\xff" * 5000 + b"\x00"
        with pytest.raises(ValueError, match=r"limit|larger"):
            unpack_lz4(HEAD + block(bomb) + bytes(4), 100_000)

    @given(st.binary(max_size=200))
    def test_no_bytes_crash_it(self, data: bytes) -> None:
        try:
            assert len(unpack_lz4(HEAD + block(data) + data, 4096)) <= 4096
        except ValueError:
            return


def host(base: Path, *, packages: bytes | None = None, suffix: str = "") -> Root:
    put(base, "/var/lib/dpkg/status", status())
    put(base, "/proc/sys/kernel/osrelease", "6.12.110\n")
    for path, text in {**release(1), **offers(passt="9")}.items():
        put(base, path + (suffix if path == PACKAGES else ""), packages if packages and path == PACKAGES else str(text))
    return Root(base)


def value(fact: Fact) -> object:
    assert isinstance(fact, Known), fact
    return fact.value


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)])
def test_lists_may_be_packed(tmp_path: Path, suffix: str, pack: object) -> None:
    text = "Package: passt\nVersion: 9\nDescription: x\n more\n\nPackage: other\nVersion: 1\n"
    root = host(tmp_path, packages=pack(text.encode()), suffix=suffix)  # type: ignore[operator]
    assert value(collect_updates(root)["updates.helpers"]) == ("passt 0.0~git20250503-1 -> 9",)


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".lz4", ".zst"])
def test_damaged_or_strange_packing_is_unknown(tmp_path: Path, suffix: str) -> None:
    facts = collect_updates(host(tmp_path, packages=b"damaged" * 9, suffix=suffix))
    assert isinstance(facts["updates.helpers"], Unknown)
    assert "Packages" in facts["updates.helpers"].why


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_a_list_that_ends_too_early_is_unknown(tmp_path: Path, suffix: str, pack: object) -> None:
    packages = pack(b"Package: passt\nVersion: 9\n" * 50)[:-9]  # type: ignore[operator]
    fact = collect_updates(host(tmp_path, packages=packages, suffix=suffix))["updates.helpers"]
    assert isinstance(fact, Unknown)
    assert "too early" in fact.why


def test_packages_that_were_removed_do_not_count(tmp_path: Path) -> None:
    root = host(tmp_path)
    put(tmp_path, "/var/lib/dpkg/status", status().replace("install ok installed", "deinstall ok config-files"))
    assert value(collect_updates(root)["updates.has-helpers"]) is False


def test_the_highest_of_several_versions_counts() -> None:
    text = "Package: ovmf\nVersion: 1.10\n\nPackage: ovmf\nVersion: 1.9\n"
    assert stanzas(text)["ovmf"]["Version"] == "1.10"


def test_another_suite_is_no_security_suite(tmp_path: Path) -> None:
    root = host(tmp_path)
    put(tmp_path, f"{LISTS}_InRelease", "Label: Debian\nSuite: stable\nDate: Sat, 21 Nov 2026 00:53:02 UTC\n")
    fact = collect_updates(root)["updates.helpers"]
    assert isinstance(fact, Unknown)
    assert "no list of a security suite" in fact.why


@pytest.mark.parametrize("date", ["", "yesterday", "Sat, 99 Foo 2026 00:53:02 UTC"])
def test_lists_without_a_date_are_unknown(tmp_path: Path, date: str) -> None:
    root = host(tmp_path)
    put(tmp_path, f"{LISTS}_InRelease", f"Label: Debian-Security\nDate: {date}\n")
    facts = collect_updates(root)
    assert isinstance(facts["updates.age-days"], Unknown)
    assert isinstance(facts["updates.helpers"], Unknown)


def test_age_is_counted_to_the_time_given(tmp_path: Path) -> None:
    root = host(tmp_path)
    put(tmp_path, f"{LISTS}_InRelease", "Label: Debian-Security\nDate: Thu, 01 Jan 1970 00:00:10 UTC\n")
    assert value(collect_updates(root, now_s=86_400 * 3 + 11)["updates.age-days"]) == 3


def test_other_package_managers_are_unknown_by_name(tmp_path: Path) -> None:
    put(tmp_path, "/var/lib/rpm/rpmdb.sqlite", "x")
    fact = collect_updates(Root(tmp_path))["updates.qemu"]
    assert isinstance(fact, Unknown)
    assert "rpm" in fact.why


def test_a_list_is_unpacked_once_and_only_sixteen_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = tmp_path / "root/var/lib/apt/lists"
    lists.mkdir(parents=True)
    path = "/var/lib/apt/lists/x_dists_a-security_main_Packages.gz"
    root = Root(tmp_path / "root")
    root.cache = tmp_path / "cache"
    for number in range(20):
        text = f"Package: qemu-utils\nVersion: 1:{number}\n\n".encode()
        (lists / path.rpartition("/")[2]).write_bytes(gzip.compress(text))
        assert updates._read_list(root, path) == {"qemu-utils": f"1:{number}"}
    assert len(list((tmp_path / "cache/updates").iterdir())) == 16
    monkeypatch.setattr(updates, "_versions", lambda data, suffix: pytest.fail("unpacked again"))
    assert updates._read_list(root, path) == {"qemu-utils": "1:19"}
