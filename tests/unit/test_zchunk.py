"""zchunk read beside what zck 1.2.3 wrote: with and without a dictionary, damaged, hostile; and as dnf caches it."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.test_capture import captured, taken_from
from tests.unit.test_updates_rpm import NOW, host

from casemate.facts import zchunk
from casemate.facts.fact import Known
from casemate.facts.root import Root
from casemate.facts.updates import collect_updates
from casemate.facts.zchunk import unpack_zchunk

TEXT = (
    "<updates>"
    + "".join(
        f'<update type="security"><package name="{name}" version="9" release="{number}" '
        f'epoch="{17 if name == "qemu-kvm" else 0}" arch="x86_64"/></update>'
        for number, name in enumerate(("kernel-core", "qemu-kvm", "bash"))
    )
    + "</updates>\n"
).encode()
# zck -m -s '<update ' TEXT
PLAIN = base64.b64decode(
    "AFpDSzGBAIHEEHvfgp7BDX5H2uQ0CKeRQWGjO+72yxmIDJ4XexLVuhG2e52Vu+aPA1Bfex788jzw7Si+UTXfDQsdhEzG5BCcgILc"
    "g4UAAAAAAAAAAAAAAAAAAAAAgIBmQnsdmDygGLKCzTuH9rigkol7aq1Y76f385edc6HR4DWg6u4ShBx9nhgqPScGjhSl+zEI6+zQ"
    "9d0g0XV06zLvmyvGBGVn6fKAKLUv/SAJSQAAPHVwZGF0ZXM+KLUv/SBuDQMAUoYVGnBpdYCWlJIlZP5IYstV1Z0D4yVQelL//50B"
    "6S4PfeYk44BBMASJTYNiejTA6C2vfNEDo8WQtkegv0wVytc+MfohF76QiUo9yYtD9qk3o+vi8C4PfScCACyBUa9yBii1L/0gbBUD"
    "AIJGFhpwiXOAp+UO6ZKptDIhVlVxyCjw3yqcyf8/zOlOk30GSoYBCAERJJiiA4fToJo9+nC+6Q9n6IGTaZTG7qCXsxRvHeH8UgZf"
    "0EXpouTHKeypN+f3cXinyT4UAQBWgxIFKLUv/SByBQMA8sUUGnBr2oDYRGbrUHWNBCoCqiKIUVt+4zD9nz6YR1oEJcSCpJAMGopm"
    "gE9RTd4c8H3xiquZ4GOaZfUMs7Jo8H2BjB2BCYWJkp+1qKO+vuez7AsP6aADAFCAGMYjBuUM"
)
# the same with -u -D DICTIONARY: checksums of the unpacked chunks too
WITH_DICTIONARY = base64.b64decode(
    "AFpDSzGBcYLzQ16iKyy735UFWDqb7TFcI5g0NjCRhszfUSLbTs2BJQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAhIJM"
    "goGFdkZTreE08qhvLFjNxe1RH2x1UIfuIFrTmi4b2YtSo2vjsMRCmPwcFJr79MiZb7kkJ65B5GSbk0yklZkbeFK4VertUX0/z+W2"
    "KxjUiG1b4arKp4sDbbcAKij9PA+P5x1E940ExXrPKz5KzrTzL+tJnDLAE5o4aR5jEvrJAMUAPILXnJKJ0tswxpHbwBIANFPAlPCo"
    "WkGZJmq/Sne8gDkfnipa5yoyV+VdudhJRT6TcvU+2eda2mAkd52xpNIoQczCoSKViZbuzf5woVkXWkAkzu8OJovNKEc7clxRWpzs"
    "s+RtkEUvntOZ3UQET5xHiYPGHu3dQKB1V63TMe9QvgLVYEH3ZAjV1qLsYD+CF2HRJRFL8JT9hAAyTBOXXIU9Z0p2uRmsIsg0AAyB"
    "Fgopxl/+UJJMCAUbvIF29is/wRQUUDvhZbcvKHHyyqPygCi1L/0gbQ0DAJIGFhqAuTmApy1HdlG3fyQhGLLS9cMasUZIKRMDBOcs"
    "EW2GOYYHR+EgKDbPAeMBKf1ZYPzKL9+zMalk7RPnr0KA5WmvGI/IdDekglLN8YIl29CX8bpgd5aINhMBABeDEgUotS/9IAlJAAA8"
    "dXBkYXRlcz4otS/9IG5tAAAYPDkwA0ABgcQRB5ZCKLUv/SBszQAAYDxxZW11LWt2bTkxNwQQBq+N7metEcOPECi1L/0gctUAAFA8"
    "YmFzaDkycz4KBQAsGYB3ahiWhpHhJ7AB"
)


@pytest.mark.parametrize("data", [PLAIN, WITH_DICTIONARY], ids=["plain", "dictionary"])
def test_what_zck_wrote(data: bytes) -> None:
    chunks = list(unpack_zchunk(data))
    assert len(chunks) > 2
    assert b"".join(chunks) == TEXT


@pytest.mark.parametrize("at", [1, 6, 9, 40, 75, 100, 200, 300, 420])
def test_one_changed_byte_is_noticed(at: int) -> None:
    data = bytearray(PLAIN)
    data[at] ^= 0x10
    with pytest.raises(ValueError, match=r"damaged|no zchunk|not understood|ends too early|chunk"):
        b"".join(unpack_zchunk(bytes(data)))


@pytest.mark.parametrize("end", range(0, len(PLAIN), 7))
def test_a_file_that_is_cut_off(end: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        b"".join(unpack_zchunk(PLAIN[:end]))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_hostile_files_end_in_an_error(tail: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        b"".join(unpack_zchunk(zchunk.MAGIC + tail))


def test_a_chunk_that_says_it_is_huge_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zchunk, "_CHUNK_BYTES", 64)
    with pytest.raises(ValueError, match="unpacked"):
        list(unpack_zchunk(PLAIN))


def fedora(base: Path) -> Root:
    """dnf's cache where the repository offers both forms: only the one in zchunk was fetched."""
    root = host(base)
    repodata = base / "var/cache/dnf/baseos-0123456789abcdef/repodata"
    (repodata / "abc-updateinfo.xml.gz").unlink()
    (repodata / "def-updateinfo.xml.zck").write_bytes(PLAIN)
    metadata = repodata / "repomd.xml"
    more = '<data type="updateinfo_zck"><location href="repodata/def-updateinfo.xml.zck"/></data></repomd>'
    metadata.write_text(metadata.read_text().replace("</repomd>", more))
    return root


def test_advisories_as_fedora_keeps_them(tmp_path: Path) -> None:
    root = fedora(tmp_path / "h")
    capture = captured(taken_from(root), tmp_path / "c.tar")
    for tree in (root, capture.root):
        facts = collect_updates(tree, now_s=NOW)
        kernel, qemu = facts["updates.kernel"], facts["updates.qemu"]
        assert isinstance(kernel, Known)
        assert isinstance(qemu, Known)
        assert kernel.value == ("kernel-core 5.14.0-570.12.1.el9_6 -> 9-0",)
        assert qemu.value == (), "what is offered is older"


def test_of_two_forms_the_one_that_is_there_counts(tmp_path: Path) -> None:
    root = fedora(tmp_path / "h")
    repodata = tmp_path / "h/var/cache/dnf/baseos-0123456789abcdef/repodata"
    (repodata / "def-updateinfo.xml.zck").unlink()
    assert not isinstance(collect_updates(root, now_s=NOW)["updates.qemu"], Known)
    (repodata / "abc-updateinfo.xml.gz").write_bytes(b"<updates/>")
    assert "none is about a kernel" in str(collect_updates(root, now_s=NOW)["updates.qemu"])
