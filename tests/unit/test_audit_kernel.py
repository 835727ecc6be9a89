"""The kernel's configuration, command line and sysctls: parsers, alternatives settled, hostile input."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.tree_kernel import config

from casemate.controls.kernel_settings import SETTINGS, SINGLE, settings_of
from casemate.facts.fact import Known, Unknown
from casemate.facts.kconfig import MAX_TEXT_BYTES, Kconfig, parse_kconfig, read_kconfig, unpack
from casemate.facts.kernel_cmdline import parse_cmdline
from casemate.facts.kernel_collect import collect_kernel
from casemate.facts.kernel_effective import effective_facts
from casemate.facts.kernel_khc import import_khc
from casemate.facts.root import Root


def put(base: Path, path: str, content: str | bytes) -> None:
    target = base / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content if isinstance(content, bytes) else content.encode())


def built(**options: str) -> Kconfig:
    return Kconfig(parse_kconfig(config(**options)), "config")


def test_every_setting_has_a_reader_and_one_control(tmp_path: Path) -> None:
    facts = collect_kernel(Root(tmp_path))
    named = [setting.fact for setting in SETTINGS]
    assert set(named) <= set(facts)
    assert len(named) == len(set(named))
    assert set(SINGLE).isdisjoint(named)
    with pytest.raises(RuntimeError, match="no kernel setting belongs to hk"):
        settings_of("hk.nothing")


def test_an_empty_tree_makes_everything_unknown(tmp_path: Path) -> None:
    facts = collect_kernel(Root(tmp_path))
    known = {name for name, fact in facts.items() if isinstance(fact, Known)}
    assert known == {"kernel.khc-imported"}


class TestKconfig:
    def test_values(self) -> None:
        values = parse_kconfig(config(KFENCE="m", LSM='"yama,apparmor"', BUG="n"))
        assert (values["KFENCE"], values["LSM"], values["BUG"]) == ("m", "yama,apparmor", "n")
        assert Kconfig(values, "x").get("NEVER_HEARD_OF") == "absent"

    def test_a_fragment_is_refused(self) -> None:
        with pytest.raises(ValueError, match="2 options, expected at least 500"):
            parse_kconfig("CONFIG_A=y\n# CONFIG_B is not set\n")

    @pytest.mark.parametrize("cut", [1, 9, 40])
    def test_cut_off_gzip_is_refused(self, cut: int) -> None:
        with pytest.raises(ValueError, match="gzip data"):
            unpack(gzip.compress(config().encode())[:-cut])

    def test_a_bomb_is_refused_without_being_unpacked(self) -> None:
        bomb = gzip.compress(b"\n" * (MAX_TEXT_BYTES * 4))
        with pytest.raises(ValueError, match="larger than"):
            unpack(bomb)

    def test_the_running_kernels_own_comes_first(self, tmp_path: Path) -> None:
        put(tmp_path, "/proc/config.gz", gzip.compress(config().encode()))
        put(tmp_path, "/proc/sys/kernel/osrelease", "6.1.0-1\n")
        put(tmp_path, "/boot/config-6.1.0-1", config(KFENCE="n"))
        found = read_kconfig(Root(tmp_path))
        assert isinstance(found, Kconfig)
        assert (found.source, found.get("KFENCE"), found.architecture) == ("/proc/config.gz", "y", "x86_64")

    @pytest.mark.parametrize("release", ["../../etc/passwd", "a/b", "", "x" * 300, "-6"])
    def test_a_release_that_is_a_path_is_not_followed(self, tmp_path: Path, release: str) -> None:
        put(tmp_path, "/proc/sys/kernel/osrelease", release)
        found = read_kconfig(Root(tmp_path))
        assert isinstance(found, Unknown)
        assert "/boot" not in found.why

    @given(st.binary(max_size=400))
    def test_no_bytes_crash_it(self, data: bytes) -> None:
        for content in (data, b"\x1f\x8b" + data):
            try:
                parse_kconfig(unpack(content))
            except ValueError:
                continue
            raise AssertionError("400 bytes are no configuration")


class TestCmdline:
    def test_words(self) -> None:
        line = parse_cmdline('a page-alloc.shuffle=1 b="x y" debugfs=on "c d" -- nokaslr\n')
        assert line.words == (("a", ""), ("page_alloc.shuffle", "1"), ("b", "x y"), ("debugfs", "on"), ("c d", ""))
        assert line.weakening() == ("debugfs=on",)
        assert line.last("nokaslr") is None

    @pytest.mark.parametrize(
        ("text", "value"), [("a=1", True), ("a", True), ("a=off", False), ("a=1 a=n", False), ("a=x", None), ("", None)]
    )
    def test_switch(self, text: str, value: bool | None) -> None:
        assert parse_cmdline(text).switch("a") is value

    @given(st.text(max_size=300))
    def test_no_text_crashes_it(self, text: str) -> None:
        assert all("\n" not in name or '"' in text for name, _ in parse_cmdline(text).words)


class TestEffective:
    @pytest.mark.parametrize(
        ("fact", "options", "line", "value"),
        [
            ("kernel.init-on-alloc", {}, "", "on"),
            ("kernel.init-on-alloc", {}, "init_on_alloc=0", "off"),
            ("kernel.init-on-alloc", {"INIT_ON_ALLOC_DEFAULT_ON": "n"}, "init_on_alloc=1", "on"),
            ("kernel.page-shuffle", {}, "", "off"),
            ("kernel.page-shuffle", {"SHUFFLE_PAGE_ALLOCATOR": "n"}, "page_alloc.shuffle=1", "off"),
            ("kernel.usercopy", {}, "", "on"),
            ("kernel.usercopy", {"HARDENED_USERCOPY_DEFAULT_ON": "n"}, "", "off"),
            ("kernel.usercopy", {"HARDENED_USERCOPY_DEFAULT_ON": "n"}, "hardened_usercopy=on", "on"),
            ("kernel.usercopy", {"HARDENED_USERCOPY": "n"}, "hardened_usercopy=on", "off"),
            ("kernel.slab-merge", {}, "", "on"),
            ("kernel.slab-merge", {"SLAB_MERGE_DEFAULT": "n"}, "", "off"),
            ("kernel.slab-merge", {"SLAB_MERGE_DEFAULT": "n"}, "slab_merge", "on"),
            ("kernel.kaslr", {}, "nokaslr", "off"),
            ("kernel.list-hardened", {"LIST_HARDENED": "n", "DEBUG_LIST": "y"}, "", "on"),
            ("kernel.list-hardened", {"LIST_HARDENED": "n"}, "", "off"),
            ("kernel.vsyscall", {}, "", "xonly"),
            ("kernel.vsyscall", {"X86_VSYSCALL_EMULATION": "n"}, "", "none"),
            ("kernel.vsyscall", {}, "vsyscall=emulate", "emulate"),
            ("kernel.cfi", {}, "", "ibt"),
            ("kernel.cfi", {}, "ibt=off", "none"),
            ("kernel.cfi", {"CFI_CLANG": "y"}, "", "kcfi"),
            ("kernel.cfi", {"CFI": "y"}, "cfi=off", "ibt"),
            ("kernel.ia32", {}, "", "on"),
            ("kernel.ia32", {"IA32_EMULATION_DEFAULT_DISABLED": "y"}, "", "off"),
            ("kernel.debugfs", {"DEBUG_FS": "n"}, "debugfs=on", "off"),
            ("kernel.debugfs", {"DEBUG_FS_ALLOW_NONE": "y"}, "", "off"),
            ("kernel.devmem", {"DEVMEM": "n"}, "", "absent"),
            ("kernel.devmem", {"STRICT_DEVMEM": "n"}, "", "open"),
            ("kernel.devmem", {"IO_STRICT_DEVMEM": "n"}, "", "ram-only"),
            ("kernel.devmem", {}, "iomem=relaxed", "relaxed"),
        ],
    )
    def test_what_is_in_force(self, fact: str, options: dict[str, str], line: str, value: str) -> None:
        found = effective_facts(built(**options), parse_cmdline(line))[fact]
        assert isinstance(found, Known)
        assert found.value == value

    def test_the_command_line_alone_can_settle_it(self) -> None:
        facts = effective_facts(Unknown("no configuration"), parse_cmdline("init_on_alloc=1 slab_nomerge"))
        assert isinstance(facts["kernel.init-on-alloc"], Known)
        assert isinstance(facts["kernel.slab-merge"], Known)
        assert facts["kernel.cfi"] == Unknown("no configuration")


class TestKhc:
    def test_new_and_old_shape(self) -> None:
        new = json.dumps(
            [
                {"option_name": "CONFIG_BUG", "type": "kconfig", "desired_val": "y", "check_result": "OK"},
                {"option_name": "nosmt", "type": "cmdline", "desired_val": "is present", "check_result": "FAIL: is no"},
            ]
        )
        facts = import_khc(new, "khc.json")
        assert facts["kernel.khc-failed"] == Known(("nosmt wants is present",), "khc.json")
        assert facts["kernel.khc-checks"] == Known(2, "khc.json")
        old = json.dumps([["CONFIG_BUG", "kconfig", "y", "defconfig", "self_protection", 'FAIL: "n"']])
        assert import_khc(old)["kernel.khc-failed"] == Known(("CONFIG_BUG wants y",), "kernel-hardening-checker")

    @pytest.mark.parametrize(
        "text",
        [
            *("", "{}", "[]", "[1]", "[[]]", "[" * 5000, '[{"option_name": 1}]'),
            '[{"option_name":"a b","desired_val":"y"}]',
            '[{"option_name": "A", "desired_val": "y", "check_result": "MAYBE"}]',
        ],
    )
    def test_anything_else_is_unknown(self, text: str) -> None:
        facts = import_khc(text)
        assert facts["kernel.khc-imported"] == Known(True, "kernel-hardening-checker")
        assert isinstance(facts["kernel.khc-failed"], Unknown)
        assert isinstance(facts["kernel.khc-checks"], Unknown)


def test_hostile_files_are_unknown(tmp_path: Path) -> None:
    put(tmp_path, "/proc/sys/kernel/osrelease", "6.1\n")
    put(tmp_path, "/proc/sys/kernel/panic_on_oops", b"\xff" * 5000)
    (tmp_path / "proc/cmdline").symlink_to("cmdline")
    os.mkfifo(tmp_path / "proc/config.gz")
    facts = collect_kernel(Root(tmp_path))
    assert isinstance(facts["sysctl.kernel.panic_on_oops"], Unknown)
    assert isinstance(facts["kernel.weakening"], Unknown)
    assert "not a regular file" in str(facts["kconfig.BUG"])
