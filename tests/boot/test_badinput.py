"""Bad input through the real program: one clear message, the right exit code, nothing started, nothing left."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.refusals import Refusals

pytestmark = [
    pytest.mark.boot,
    pytest.mark.skipif(
        shutil.which("qemu-system-x86_64") is None or (os.geteuid() == 0 and shutil.which("unshare") is None),
        reason="needs QEMU, and root needs unshare for directories of its own",
    ),
]

RUN = ("run", "-d", "--name", "bad")


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Refusals]:
    """The program in directories of its own, with a kernel that is none: it must not come to booting it."""
    made = Refusals(tmp_path)
    (tmp_path / "vmlinuz").write_bytes(b"\x7fELF" + bytes(4092))
    yield made
    made.clean()


def write_spec(cli: Refusals, text: str) -> Path:
    """A specification beside the kernel."""
    path = cli.home / "vm.toml"
    path.write_text(text)
    return path


BOOT = '[machine]\naccel = "tcg"\n[boot]\nkernel = "vmlinuz"\n'

FAULTY_SPECS = {
    "unknown key": ('[machine]\nmemmory_mib = 64\n[boot]\nkernel = "vmlinuz"\n', [
        "vm.toml: 1 fault\n", 'machine.memmory_mib: no such key; did you mean "memory_mib"? [key.unknown]',
    ]),
    "unknown table": (BOOT + "[grafics]\nvga = true\n", ["  grafics: no such key", "[key.unknown]"]),
    "wrong type": ('[machine]\nmemory_mib = "lots"\n[boot]\nkernel = "vmlinuz"\n', [
        'machine.memory_mib: expected an integer, got the string "lots" [type.wrong]',
    ]),
    "not a boolean": ('[machine]\nvcpus = true\n[boot]\nkernel = "vmlinuz"\n', [
        "machine.vcpus: expected an integer, got the boolean true [type.wrong]",
    ]),
    "several faults": (
        'nmae = "x"\n[machine]\nmemory_mib = -3\nvcpus = 9999\n[boot]\nkernel = "vmlinuz"\ncmdline = "a\\nb"\n'
        '[[disk]]\npath = "x"\n',
        [
            "vm.toml: 5 faults\n",
            '  nmae: no such key; did you mean "name"? [key.unknown]\n',
            "  machine.memory_mib: got -3; expected 32 to 1048576 [value.range]\n",
            "  machine.vcpus: got 9999; expected 1 to 255 [value.range]\n",
            "  boot.cmdline: has the character U+000A at position 2; remove it [text.control]\n",
            "  disk[0].format: format is missing [key.missing]\n",
        ],
    ),
    "no TOML": ("machine = [", ["  (top): is not TOML: ", "[toml.syntax]"]),
    "newline in a path": ('[boot]\nkernel = "vm\\nlinuz"\n', [
        "boot.kernel: has the character U+000A at position 3; remove it [text.control]",
    ]),
    "parent directory": ('[boot]\nkernel = "sub/../vmlinuz"\n', [
        '"sub/../vmlinuz" has .. after a directory name; write the path without it [path.parent]',
    ]),
    "home directory": ('[boot]\nkernel = "~/vmlinuz"\n', ["starts with ~, which is not expanded; write the full path"]),
    "URL": ('[boot]\nkernel = "https://example.org/vmlinuz"\n', ["only local files are opened, so download it first"]),
    "pseudo-protocol": (
        BOOT + "[[disk]]\npath = 'json:{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}'\nformat = \"raw\"\n",
        ["disk[0].path: ", "is not a file; only local files are opened", "[path.url]"],
    ),
    "nothing to boot": ("[machine]\n", ["[boot.missing]"]),
    "the same image twice": (
        BOOT + '[[disk]]\npath = "d.raw"\nformat = "raw"\n[[disk]]\npath = "./d.raw"\nformat = "raw"\n',
        ["[disk.duplicate]"],
    ),
    "waiver expired": (
        BOOT + '[[waiver]]\ncontrol = "proc.cgroup"\nreason = "a test of waivers"\nexpires = 2020-01-31\n',
        ["waiver[0].expires: ", "2020-01-31", "[waiver.expired]"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTY_SPECS)
def test_a_faulty_specification(cli: Refusals, case: str) -> None:
    text, says = FAULTY_SPECS[case]
    cli.refused(2, [f"casemate: error: {cli.home}/vm.toml: ", *says], *RUN, write_spec(cli, text))


@pytest.mark.parametrize("name", ["a,b", "a=b", "a%b", "a b", "../up", "$(id)", "-x", "a;b", "ä", "x" * 64, ""])
def test_a_name_that_is_none(cli: Refusals, name: str) -> None:
    says = ["command line: 1 fault\n  --name: got ", "expected 1 to 63 characters a-z 0-9 _ . -", "[value.pattern]"]
    cli.refused(2, says, "run", "-d", f"--name={name}", write_spec(cli, BOOT))


def test_a_name_with_a_newline(cli: Refusals) -> None:
    says = ["  --name: has the character U+000A at position 2; remove it [text.control]"]
    cli.refused(2, says, "run", "-d", "--name=a\nb", write_spec(cli, BOOT))


@pytest.mark.parametrize("flag", ["--kernel", "--initrd"])
def test_a_missing_boot_file(cli: Refusals, flag: str) -> None:
    says = [
        f"cannot open the {flag[2:]} '{cli.home}/nothing'",
        "  got: no such file or directory",
        "  next: check the path",
    ]
    cli.refused(2, says, *RUN, write_spec(cli, BOOT), flag, "nothing", cwd=cli.home)


def _odd_file(directory: Path, kind: str) -> Path:
    path = directory / "odd"
    if kind == "a directory":
        path.mkdir()
    elif kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "a character device":
        return Path("/dev/zero")
    else:
        path.symlink_to("/etc/hostname")
    return path


KINDS = ["a directory", "a FIFO", "a socket", "a character device", "a symbolic link to '/etc/hostname'"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("role", ["kernel", "initrd", "image"])
def test_what_is_no_regular_file(cli: Refusals, role: str, kind: str) -> None:
    path = _odd_file(cli.home, kind)
    flags = ("--disk", f"{path}:raw") if role == "image" else (f"--{role}", str(path))
    says = [
        f"cannot open the {role} '{path}'",
        f"  got: {kind}\n",
        "  expected: a regular file\n",
        "  next: give the path",
    ]
    cli.refused(2, says, *RUN, write_spec(cli, BOOT), *flags)
