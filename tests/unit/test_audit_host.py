"""The host's system: listeners, attached images, crash handlers; parsers and hostile input."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.tree_host import HEADING
from tests.unit.test_audit_kernel import put

from casemate.facts.fact import Known, Unknown
from casemate.facts.os_collect import collect_os
from casemate.facts.os_network import parse_listeners
from casemate.facts.root import Root


def row(address: str, state: str = "0A") -> str:
    return f"   0: {address} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 0 0 35 1\n"


class TestListeners:
    def test_addresses(self) -> None:
        text = HEADING + row("0100007F:170C") + row("0A00A8C0:0016") + row("00000000:0050", "01")
        assert parse_listeners(text) == [("127.0.0.1", 5900), ("192.168.0.10", 22)]
        six = "00000000000000000000000001000000:0016"
        mapped = "0000000000000000FFFF00000100007F:0050"
        assert parse_listeners(HEADING + row(six) + row(mapped)) == [("::1", 22), ("::ffff:127.0.0.1", 80)]

    @pytest.mark.parametrize("text", ["", "x\n", HEADING + "a b\n", HEADING + row("X:1"), HEADING + row("00000000:z")])
    def test_another_shape_is_an_error(self, text: str) -> None:
        with pytest.raises(ValueError, match=r".+"):
            parse_listeners(text)

    @given(st.text(max_size=100))
    def test_no_text_crashes_it(self, text: str) -> None:
        try:
            assert isinstance(parse_listeners(HEADING + text), list)
        except ValueError:
            return


def test_an_empty_tree_makes_everything_unknown(tmp_path: Path) -> None:
    facts = collect_os(Root(tmp_path))
    assert {name for name, fact in facts.items() if isinstance(fact, Known)} == set()


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("core", "file core"),
        ("", "none"),
        ("|/bin/false", "none"),
        ("|/usr/share/apport/apport -p%p", "program /usr/share/apport/apport"),
        ("|/lib/systemd/systemd-coredump %P", "systemd"),
    ],
)
def test_what_becomes_of_crashes(tmp_path: Path, pattern: str, said: str) -> None:
    put(tmp_path, "/proc/sys/kernel/core_pattern", pattern + "\n")
    fact = collect_os(Root(tmp_path))["os.core-handler"]
    assert isinstance(fact, Known)
    assert fact.value == said


def test_loops_over_ordinary_files_are_no_images(tmp_path: Path) -> None:
    put(tmp_path, "/sys/block/loop0/loop/backing_file", "/var/lib/snapd/snaps/core20.snap\n")
    put(tmp_path, "/sys/block/loop1/loop/backing_file", "/srv/a.qcow2 (deleted)\n")
    put(tmp_path, "/sys/block/loop2/loop/backing_file", "/var/lib/libvirt/images/web\n")
    put(tmp_path, "/proc/self/mountinfo", "1 1 7:0 / /snap rw - squashfs /dev/loop0 ro\n")
    facts = collect_os(Root(tmp_path))
    assert facts["os.loop-images"].value == (  # type: ignore[union-attr]
        "loop1 /srv/a.qcow2 (deleted)",
        "loop2 /var/lib/libvirt/images/web",
    )
    assert facts["os.guest-mounts"].value == ()  # type: ignore[union-attr]


@pytest.mark.parametrize("path", ["/proc/net/tcp", "/proc/self/mountinfo", "/proc/sys/kernel/core_pattern"])
def test_hostile_files_are_unknown(tmp_path: Path, path: str) -> None:
    put(tmp_path, "/sys/block/vda/size", "1")
    put(tmp_path, path, b"\xff\0" * 40_000)
    facts = collect_os(Root(tmp_path))
    name = {"/proc/net/tcp": "host.listeners", "/proc/self/mountinfo": "os.guest-mounts"}.get(path, "os.core-handler")
    assert isinstance(facts[name], Unknown)
