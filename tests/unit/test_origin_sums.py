"""Lists of checksums: coreutils is the oracle, lies are refused."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.signing import run

from casemate.errors import ImageError
from casemate.image.sums import SUMS_MAX_BYTES, entry_for, parse_sums

A, B = "a" * 64, "b" * 64
NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: len(name.encode()) < 80 and name not in {".", ".."} and not name.startswith("-")
)


@settings(max_examples=40, deadline=None)
@given(name=NAMES, style=st.sampled_from([[], ["-b"], ["--tag"]]), program=st.sampled_from(["sha256sum", "sha512sum"]))
def test_whatever_coreutils_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, name: str, style: list[str], program: str
) -> None:
    where = tmp_path_factory.mktemp("sums")
    path = where / name
    path.write_bytes(b"content")
    listed = run("env", "-C", where, "LC_ALL=C.UTF-8", program, *style, f"./{name}")
    entry = entry_for(parse_sums(listed, "SUMS"), name, "SUMS")
    assert entry.digest == hashlib.new(program.removesuffix("sum"), b"content").hexdigest()
    assert Path(where / entry.name) == path


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (f"{A}  disk.img\n", "disk.img"),
        (f"{A} *disk.img\n", "disk.img"),
        (f"SHA256 (disk.img) = {A}\n", "disk.img"),
        (f"# disk.img: 17 bytes\nSHA256 (disk.img) = {A}\n", "disk.img"),
        (f"{A.upper()}  ./disk.img\r\n", "disk.img"),
        (f"\\{A}  new\\nline\n", "new\nline"),
        (f"{A}  a b (c) = d\n", "a b (c) = d"),
        (f"{A}  disk.img\n{A} *disk.img\n", "disk.img"),
        (f"{A}  dir/disk.img\n{B}  disk.img", "dir/disk.img"),
    ],
)
def test_forms_that_count(text: str, name: str) -> None:
    assert entry_for(parse_sums(text.encode(), "SUMS"), name, "SUMS").digest == A


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no entries"),
        ("\n#\n", "no entries"),
        (f"{A}  x\n{B}  x\n", "line 2; got a second sha256 digest"),
        (f"{A}  x\n{B}  ./x\n", "a second sha256 digest"),
        (f"{'a' * 32}  x\n", "MD5"),
        (f"{'a' * 40}  x\n", "SHA-1"),
        (f"MD5 (x) = {'a' * 32}\n", "of the kind MD5"),
        (f"SHA256 (x) = {'a' * 128}\n", "128 digits"),
        (f"{A} x\n", "expected"),
        (f"{A}\n", "expected"),
        (f"{A}  x\n<html>\n", "line 2"),
        (f"\\{A}  x\\y\n", "the escape"),
        (f"{A}  x\0y\n", "impossible name"),
        (f"{'a' * 65}  x\n", "65 digits"),
    ],
)
def test_what_is_not_understood_is_refused(text: str, why: str) -> None:
    with pytest.raises(ImageError, match=why):
        parse_sums(text.encode(), "SUMS")


@pytest.mark.parametrize("name", ["disk", "DISK.IMG", "sub/disk.img", "disk.img ", "other/disk.img"])
def test_names_match_exactly(name: str) -> None:
    with pytest.raises(ImageError, match="has no digest for"):
        entry_for(parse_sums(f"{A}  disk.img\n".encode(), "SUMS"), name, "SUMS")


def test_the_longest_digest_counts_and_size_is_bounded() -> None:
    entries = parse_sums(f"SHA256 (x) = {A}\nSHA512 (x) = {'c' * 128}\n".encode(), "SUMS")
    assert entry_for(entries, "x", "SUMS").algorithm == "sha512"
    with pytest.raises(ImageError, match="at most"):
        parse_sums(b"#" * (SUMS_MAX_BYTES + 1), "SUMS")
    with pytest.raises(ImageError, match="lines"):
        parse_sums(b"\n" * 70_000, "SUMS")
    with pytest.raises(ImageError, match="UTF-8"):
        parse_sums(b"\xff", "SUMS")


@given(st.binary(max_size=300))
def test_any_bytes_are_a_list_or_an_error(data: bytes) -> None:
    with contextlib.suppress(ImageError):
        assert parse_sums(data, "SUMS")
