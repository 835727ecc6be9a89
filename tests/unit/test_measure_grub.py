"""GRUB's scripts and what running one measures; what cannot be followed ends in a reason, not in a guess."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz.fuzz_measure import fat_seed, reader_of

from casemate.measure.fat import Fat
from casemate.measure.gpt import Partition
from casemate.measure.grub import DIALECTS, Place, Runner
from casemate.measure.grub_script import Command, If, NotUnderstoodError, parse_script, plain
from casemate.measure.labels import FileSystem, file_systems
from casemate.measure.registers import Steps

DEVICE = "hd0,gpt1"
KERNEL = b"LOADED_IMAGE::LoadOptions\0Linux initrd\0"
CC_MEASUREMENT = uuid.UUID("96751a3d-72f4-41a6-a794-ed5d0e67ae6b").bytes_le


class Vendor:
    """Vouches for everything, and counts."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int]] = []

    def check(self, data: bytes, what: str, checked: int, loaded: int) -> None:
        self.asked.append((what, checked, loaded))


def runner(
    files: Mapping[str, bytes] = {},
    version: str = "2.12",
    systems: tuple[FileSystem, ...] = (),
    *,
    is_td: bool = False,
) -> Runner:
    place = Place(Fat(reader_of(fat_seed())), DEVICE, files, systems)
    found = Runner(Steps(("sha256",)), DIALECTS[version], Vendor(), place, is_td=is_td)  # type: ignore[arg-type]
    found.variables["prefix"] = f"({DEVICE})/EFI"
    return found


def commands(text: str, files: Mapping[str, bytes] = {}) -> list[str]:
    """The commands that running a script measures."""
    found = runner(files)
    found.run(parse_script(text))
    return [step.what.removeprefix("grub_cmd: ") for step in found._steps.found if step.register == 8]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("set a=1\nset b=2", ["set a=1", "set b=2"]),
        ("set a=1;set b=2 # and more", ["set a=1", "set b=2"]),
        ("# nothing\n\n ;;\n", []),
        ("echo 'a  b' \"c d\"", ["echo a  b c d"]),
        ('set a=x; echo $a ${a}y "$a z"', ["set a=x", "echo x xy x z"]),
        ("set a='x y'; echo $a", ["set a=x y", "echo x y"]),
        ("echo a$nothing b $nothing c", ["echo a b c"]),
        ('echo "$nothing"', ["echo "]),
        ("echo a\\ b \\$x", ["echo a b $x"]),
        ("echo a \\\n b", ["echo a b"]),
        ('echo "a\\"b\\$c"', ['echo a"b$c']),
        ("if true; then echo a; else echo b; fi", ["true", "echo a"]),
        ("if false; then echo a; elif true; then echo b; fi", ["false", "true", "echo b"]),
        ("if false\nthen\necho a\nfi\necho c", ["false", "echo c"]),
        ("menuentry 'a b' --class x {\n linux /k }\n}\necho y", None),
        ("menuentry a {\n echo '}' ${x}\n}\necho y", ["menuentry a {\n echo '}' ${x}\n}", "echo y"]),
        ("function f { echo x; }\necho y", ["echo y"]),
        ("insmod part_gpt; terminal_output console serial", ["insmod part_gpt", "terminal_output console serial"]),
    ],
)
def test_words(text: str, said: list[str] | None) -> None:
    if said is None:
        with pytest.raises(NotUnderstoodError):
            commands(text)
    else:
        assert commands(text) == said


@pytest.mark.parametrize(
    ("test", "holds"),
    [
        ("-z ''", True),
        ("-n ''", False),
        ("-n x", True),
        ("a = a", True),
        ("a == b", False),
        ("a != b", True),
        ("! -z ''", False),
        ("-z x -o a = a", True),
        ("a = a -a -z x", False),
        ("-e $prefix/grub.cfg", True),
        ("-f /EFI/grub.cfg", True),
        ("-s /EFI/grub.cfg", True),
        ("-d /EFI", True),
        ("-d /EFI/grub.cfg", False),
        ("-e /none", False),
        ("x", True),
    ],
)
def test_tests(test: str, holds: bool) -> None:
    assert commands(f"if [ {test} ]; then echo yes; fi")[1:] == (["echo yes"] if holds else [])


@pytest.mark.parametrize(
    "text",
    [
        "for a in b; do echo; done",
        "while true; do echo; done",
        "if true; then echo",
        "fi",
        "echo 'a",
        'echo "a',
        "echo $",
        "echo $'a'",
        "echo a > b",
        "echo a | b",
        "menuentry a { echo",
        "search --fs-uuid --set=root 1234",
        "if ! search --file /x; then echo; fi",
        "if [ a -lt b ]; then echo; fi",
        "if [ -e (hd1)/x ]; then echo; fi",
        "source /none",
        "linux /none",
        "linux /EFI/grub.cfg 'a b'",
        "submenu a { echo }",
        "function f { echo x }\nf",
        "keystatus",
        "chainloader /x",
        "set prefix=(hd0,gpt1)/other",
        "insmod ../x",
        "terminal_output gfxterm",
    ],
)
def test_what_cannot_be_followed_is_said(text: str) -> None:
    with pytest.raises(NotUnderstoodError):
        commands(text)


def test_scripts_that_call_themselves_end() -> None:
    itself = {f"({DEVICE})/x": b"source /x\n"}
    with pytest.raises(NotUnderstoodError, match="too deeply"):
        commands("source /x", itself)
    with pytest.raises(NotUnderstoodError, match="too deeply"):
        parse_script("if true; then " * 100)
    with pytest.raises(NotUnderstoodError, match="KiB"):
        parse_script("#" * (300 << 10))
    with pytest.raises(NotUnderstoodError, match="many words"):
        commands("[ " + "a -o " * 100 + "a ]")


def test_kernels_and_entries() -> None:
    files = {f"({DEVICE})/k": b"kernel with LOADED_IMAGE::LoadOptions\0Linux initrd\0", f"({DEVICE})/i": b"initrd"}
    config = "set timeout=0\nmenuentry one { boot }\nmenuentry two {\n linux /k quiet\n initrd /i\n}\nset default={}\n"
    for default in ("1", "two"):
        found = runner(files)
        found.run(parse_script(config.replace("{}", default)))
        found.start()
        by_register = {n: [step for step in found._steps.found if step.register == n] for n in (8, 9)}
        assert by_register[8][-4].what == "grub_cmd: setparams two"
        assert [step.what for step in by_register[9]] == ["/k", "/i", "command line", "initrd"]
        options = "BOOT_IMAGE=/k quiet".encode("utf-16-le")
        assert by_register[9][2].digests["sha256"] == hashlib.sha256(options).digest()
        assert found._vendor.asked == [("/k", 1, 0)]  # type: ignore[attr-defined]
    for broken in ("", "set timeout=5\nmenuentry a { linux /k }\nset default=9", "menuentry a { linux /k }"):
        found = runner(files)
        found.run(parse_script(broken))
        with pytest.raises(NotUnderstoodError):
            found.start()


def test_old_grub_starts_no_stub() -> None:
    files = {f"({DEVICE})/k": b"LOADED_IMAGE::LoadOptions\0Linux initrd\0"}
    found = runner(files, "2.06")
    found.run(parse_script("linux /k quiet\nboot\necho never"))
    found.start()
    assert [step.what for step in found._steps.found if step.register == 9] == ["/k"]
    assert not [step for step in found._steps.found if "never" in step.what]


def test_structure() -> None:
    script = parse_script("if a; then b; elif c; then d; else e f; fi")
    assert len(script) == 1
    assert isinstance(script[0], If)
    (first, second), otherwise = script[0].branches, script[0].otherwise
    names = [plain(part[0].words[0]) for pair in (first, second) for part in pair if isinstance(part[0], Command)]
    assert names == ["a", "b", "c", "d"]
    assert isinstance(otherwise[0], Command)
    assert [plain(word) for word in otherwise[0].words] == ["e", "f"]


WORDS = st.text("abcxyz0123456789/.,=_-:", min_size=1, max_size=8)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(WORDS, min_size=1, max_size=4), max_size=5))
def test_plain_commands_are_measured_as_they_stand(lines: list[list[str]]) -> None:
    text = "\n".join(" ".join(["echo", *words]) for words in lines)
    assert commands(text) == [" ".join(["echo", *words]) for words in lines]


SYSTEMS = (
    FileSystem("hd0,gpt1", "ESP", "1A2B-3C4D"),
    FileSystem("hd0,gpt2", "root", "0c1d2e3f-0000-0000-0000-000000000001"),
    FileSystem("hd0,gpt3", None, None),
    FileSystem("hd0,gpt4", "late", ""),
)


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("--no-floppy --label --set=root root", "hd0,gpt2"),
        ("--label --set=here ESP", "hd0,gpt1"),
        ("--fs-uuid --set=root 1a2b-3c4d", "hd0,gpt1"),
        ("-u --set=root 0C1D2E3F-0000-0000-0000-000000000001", "hd0,gpt2"),
        ("--label --set=root late", None),
        ("--label --set=root none", None),
        ("--label root", None),
        ("--file --set=root /x", None),
        ("--label --hint hd0 --set=root root", None),
        ("--label --fs-uuid --set=root root", None),
    ],
)
def test_searches_by_name(search: str, found: str | None) -> None:
    script = parse_script(f"search {search}")
    run = runner(systems=SYSTEMS)
    if found is None:
        with pytest.raises(NotUnderstoodError):
            run.run(script)
    else:
        assert run.run(script)
        assert found in (run.variables["root"], run.variables.get("here"))


@pytest.mark.parametrize(("version", "speaks"), [("2.06", False), ("2.12", False), ("2.14", True)])
@pytest.mark.parametrize(("kernel", "stub_speaks"), [(KERNEL, False), (KERNEL + CC_MEASUREMENT, True)])
def test_a_trust_domain(version: str, speaks: bool, kernel: bytes, stub_speaks: bool) -> None:
    """GRUB 2.12 knows the protocol and looks for a TPM first; the kernel's stub is asked for by itself."""
    files = {"(hd0,gpt1)/k": kernel, "(hd0,gpt1)/i": b"initrd"}
    registers = []
    for is_td in (True, False):
        found = runner(files, version, is_td=is_td)
        found.run(parse_script("linux /k quiet\ninitrd /i\nboot"))
        found.start()
        registers.append([step.register for step in found._steps.found])
        assert found._vendor.asked, "shim and firmware are another matter"  # type: ignore[attr-defined]
    of_stub = [9, 9] if DIALECTS[version].options is not None else []
    # The command, the kernel's file, the command line, the next command, the initrd's file, the last command.
    of_grub = [8, 9, 8, 8, 9, 8]
    assert registers == [(of_grub if speaks else []) + (of_stub if stub_speaks else []), of_grub + of_stub]


@pytest.mark.parametrize("kind", ["ext4", "ext2", "vfat", "xfs"])
def test_names_of_file_systems_are_those_that_mkfs_gave(tmp_path: Path, kind: str) -> None:
    image, identity = tmp_path / "image", "0c1d2e3f-4a5b-4c6d-8e7f-0123456789ab"
    image.write_bytes(b"")
    with image.open("r+b") as file:
        file.truncate(512 << 20 if kind == "xfs" else 64 << 20)
    make = {
        "vfat": ["mkfs.vfat", "-F", "32", "-i", "0c1d2e3f", "-n", "NAME", str(image)],
        "xfs": ["mkfs.xfs", "-q", "-L", "NAME", "-m", f"uuid={identity}", str(image)],
    }.get(kind, [f"mkfs.{kind}", "-q", "-L", "NAME", "-U", identity, str(image)])
    path = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    if shutil.which(make[0], path=path["PATH"]) is None:
        pytest.skip(f"{make[0]} is not installed")
    subprocess.run(make, check=True, capture_output=True, env=path)
    partition = Partition(2, uuid.UUID(int=1), uuid.UUID(int=2), 0, image.stat().st_size)
    data = image.read_bytes()[:4096]
    wanted = "0C1D-2E3F" if kind == "vfat" else identity
    assert file_systems(reader_of(data), (partition,)) == (FileSystem("hd0,gpt2", "NAME", wanted),)


def test_what_is_no_file_system_may_be_any() -> None:
    partition = Partition(1, uuid.UUID(int=1), uuid.UUID(int=2), 0, 4096)
    assert file_systems(reader_of(b"LUKS" + bytes(4092)), (partition,)) == (FileSystem("hd0,gpt1", None, None),)
    assert file_systems(reader_of(bytes(4096)), (partition,)) == (FileSystem("hd0,gpt1", "", ""),)
    assert file_systems(reader_of(b""), (partition,)) == (FileSystem("hd0,gpt1", None, None),)
