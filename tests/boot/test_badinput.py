"""Bad input through the real program: one clear message, the right exit code, nothing started, nothing left."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.refusals import BOOT, RUN, Refusals, write_spec

from casemate.engine.paths import default_paths
from casemate.image.builtin import build_builtin

pytestmark = [
    pytest.mark.boot,
    pytest.mark.skipif(
        shutil.which("qemu-system-x86_64") is None or (os.geteuid() == 0 and shutil.which("unshare") is None),
        reason="needs QEMU, and root needs unshare for directories of its own",
    ),
]


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Refusals]:
    """The program in directories of its own, with a kernel that is none: it must not come to booting it."""
    made = Refusals(tmp_path)
    (tmp_path / "vmlinuz").write_bytes(b"\x7fELF" + bytes(4092))
    yield made
    made.clean()


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


def test_a_link_that_another_user_owns_is_not_followed(cli: Refusals) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a link that belongs to somebody else")
    link = cli.home / "way"
    link.symlink_to(cli.home)
    os.lchown(link, 65534, 65534)
    says = [
        f"cannot open the kernel '{link}/vmlinuz'",
        f"  got: a symbolic link to '{cli.home}' on the way that belongs to uid 65534",
        "  expected: links of root or your own",
        "  next: give the path without the link",
    ]
    cli.refused(2, says, *RUN, "--accel", "tcg", "--kernel", link / "vmlinuz")


@pytest.mark.parametrize("kind", ["a directory", "a FIFO", "a character device"])
def test_a_target_that_is_no_regular_file(cli: Refusals, kind: str) -> None:
    path = _odd_file(cli.home, kind)
    cli.refused(2, [f"cannot read '{path}'", "  expected: a specification (TOML) or a disk image"], *RUN, path)


@pytest.mark.parametrize("target", ["absent.toml", "sub/absent,with=100%.qcow2", "https://example.org/disk.qcow2"])
def test_a_missing_target(cli: Refusals, target: str) -> None:
    says = [f"cannot read '{target}'", "  got: no such file or directory", "  next: casemate run builtin needs no file"]
    cli.refused(2, says, *RUN, target, cwd=cli.home)


# ---- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--memory-mib=-1", '--memory-mib: "-1" is not a size; expected for example 512M, 2G or 1.5T [value.pattern]'),
        ("--memory-mib=0", "--memory-mib: got 0; expected 32 to 1048576 [value.range]"),
        ("--memory-mib=2000000", "--memory-mib: got 2000000; expected 32 to 1048576 [value.range]"),
        ("--memory-mib=2T", "--memory-mib: got 2097152; expected 32 to 1048576 [value.range]"),
        ("--memory-mib=99999999999999999999", '--memory-mib: "99999999999999999999" is not a size'),
        ("--memory-mib=1e3", '--memory-mib: "1e3" is not a size'),
        ("--memory-mib=nan", '--memory-mib: "nan" is not a size'),
        ("--vcpus=0", "--vcpus: got 0; expected 1 to 255 [value.range]"),
        ("--vcpus=-1", "--vcpus: got -1; expected 1 to 255 [value.range]"),
        ("--vcpus=many", "argument --vcpus: invalid int value: 'many'"),
        ("--timeout-s=-1", "argument --timeout-s: -1 is not a number of seconds above 0"),
        ("--timeout-s=nan", "argument --timeout-s: nan is not a number of seconds above 0"),
        ("--timeout-s=inf", "argument --timeout-s: inf is not a number of seconds above 0"),
    ],
)
def test_an_absurd_size(cli: Refusals, flag: str, says: str) -> None:
    cli.refused(2, [says], *RUN, flag, write_spec(cli, BOOT))


def test_more_memory_than_the_host_has(cli: Refusals) -> None:
    says = [
        "the VM's memory does not fit into this host's",
        "  got: 1048576 MiB\n",
        "  expected: less than ",
        "  next: a smaller memory_mib or --memory-mib",
    ]
    cli.refused(3, says, *RUN, "--memory-mib", "1T", write_spec(cli, BOOT))


def test_more_vcpus_than_threads(cli: Refusals) -> None:
    """QEMU would die of SIGSEGV in the middle of its start."""
    says = [
        "limits.pids does not allow 200 vCPUs",
        "  got: 128 threads",
        "  next: pids = 208 in [limits], or fewer vCPUs",
    ]
    cli.refused(2, says, *RUN, "--vcpus", "200", write_spec(cli, BOOT))


@pytest.mark.parametrize(
    ("size_bytes", "got"), [(0, "got: 0 bytes"), ((256 << 20) + 1, f"got: {(256 << 20) + 1} bytes")]
)
def test_a_kernel_of_an_absurd_size(cli: Refusals, size_bytes: int, got: str) -> None:
    os.truncate(cli.home / "vmlinuz", size_bytes)
    says = [f"kernel '{cli.home}/vmlinuz'", got, "expected: 1 to 268435456 bytes"]
    cli.refused(2, says, *RUN, write_spec(cli, BOOT))


# ---- files that change, names and disks that are taken ------------------------------------------------------------


def test_a_file_that_changes_between_check_and_use(cli: Refusals) -> None:
    over = threading.Event()

    def write_on() -> None:
        with open(cli.home / "vmlinuz", "r+b", buffering=0) as kernel:
            while not over.wait(0.001):
                kernel.seek(4)
                kernel.write(os.urandom(8))

    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        says = [
            f"{cli.home}/vmlinuz changed between check and use",
            "  got: another ",
            "  next: find out who writes to it",
        ]
        cli.refused(2, says, *RUN, write_spec(cli, BOOT))
    finally:
        over.set()
        writer.join()


def test_a_kernel_that_is_none(cli: Refusals) -> None:
    """Only the emulator can tell; by then everything has been built, and all of it goes."""
    for content, got in (
        (b"\x7fELF" + bytes(4092), "Error while loading elf kernel"),
        (b"no kernel\n", "invalid kernel header"),
        (Path("/bin/sh").read_bytes(), "Error loading uncompressed kernel without PVH ELF Note"),
    ):
        (cli.home / "vmlinuz").write_bytes(content)
        says = [
            f"the emulator cannot boot the kernel '{cli.home}/vmlinuz'",
            f"  got: {got}\n",
            "  expected: a Linux kernel: a bzImage",
            "  next: file FILE says what it is",
        ]
        cli.refused(2, says, *RUN, write_spec(cli, BOOT))


def test_a_name_that_is_taken(cli: Refusals) -> None:
    vm_id = cli.ok("create", "--name", "bad", write_spec(cli, BOOT)).strip()
    says = ["the name bad is taken", f"  got: VM {vm_id[:12]}", "  next: casemate rm bad, or choose another --name"]
    cli.refused(2, says, *RUN, write_spec(cli, BOOT))


SMALL = ("--accel", "tcg", "--memory-mib", "96")


def test_one_writable_disk_in_two_vms(cli: Refusals) -> None:
    """By any name: the lock is on the file."""
    disk, other_name = cli.home / "disk.raw", cli.home / "another name.raw"
    disk.write_bytes(bytes(1 << 20))
    os.link(disk, other_name)
    cli.ok("run", "-d", "--name", "writer", *SMALL, "--disk", f"{disk}:raw,persistent", "builtin")
    before = cli.inventory()
    for path, mode, got in (
        (disk, "persistent", "another user of the image"),
        (other_name, "persistent", "another user of the image"),
        (disk, "overlay", "a writer"),
        (disk, "read-only", "a writer"),
    ):
        says = [f"disk '{path}' is in use by another VM", f"  got: {got}", "  next: casemate ps shows the running VMs"]
        cli.refused(2, says, *RUN, *SMALL, "--disk", f"{path}:raw,{mode}", "builtin")
    assert cli.inventory() == before
    assert cli.json("inspect", "writer", "--json")["state"] == "running"


def test_readers_share_and_keep_a_writer_out(cli: Refusals) -> None:
    disk = cli.home / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    for name, mode in (("one", "overlay"), ("two", "read-only")):
        cli.ok("run", "-d", "--name", name, *SMALL, "--disk", f"{disk}:raw,{mode}", "builtin")
    says = [f"disk '{disk}' is in use by another VM", "  expected: one writer and nobody else, or readers only"]
    cli.refused(2, says, *RUN, *SMALL, "--disk", f"{disk}:raw,persistent", "builtin")


# ---- waivers ------------------------------------------------------------------------------------------------------

WAIVER = '[[waiver]]\ncontrol = "proc.cgroup"\nreason = "a test of waivers"\nexpires = 2999-12-31\n'


def test_a_waiver_that_the_hosts_policy_does_not_allow(cli: Refusals) -> None:
    policy = cli.home / "policy.toml"
    policy.write_text("version = 1\n")
    policy.chmod(0o644)
    says = [
        "refused by control proc.cgroup: the specification waives this control and the host's policy does not allow",
        f"  got: the host's policy ({policy}) does not allow it",
        "  next: the host's administrator decides in /etc/casemate/policy.toml: [waivers] allowed = [...]",
    ]
    cli.refused(4, says, *RUN, "--policy", policy, write_spec(cli, BOOT + WAIVER))


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        (None, 0o644, ["there is no such file", "  next: check the path given with --policy"]),
        ("version = 1\n", 0o666, ["mode 0666", "who writes it decides what may be waived", "  next: chown root:root"]),
        ("version = 2\n", 0o644, ["version"]),
        ("version = 1\n[waivers]\nallowed = ['*']\n", 0o644, ["waivers.allowed"]),
        ("no policy", 0o644, ["[policy.toml]"]),
    ],
)
def test_a_policy_that_cannot_be_one(cli: Refusals, text: str | None, mode: int, says: list[str]) -> None:
    policy = cli.home / "policy.toml"
    if text is not None:
        policy.write_text(text)
        policy.chmod(mode)
    cli.refused(2, [str(policy), *says], *RUN, "--policy", policy, write_spec(cli, BOOT + WAIVER))


# ---- what looks bad and is good -----------------------------------------------------------------------------------


def test_paths_with_every_odd_character_work(cli: Refusals) -> None:
    """Comma and ``=`` would be options to QEMU, ``%`` a format, a space a word: none of them may be."""
    guest = build_builtin(Path(default_paths().cache), print)
    place = cli.home / "odd, place=100% ,id=x"
    place.mkdir()
    kernel, initrd, disk = place / "vm linuz,a=b%s", place / "initrd,file=x.raw %n", place / "disk, x=y %d.raw"
    shutil.copy(guest.kernel, kernel)
    shutil.copy(guest.initrd, initrd)
    disk.write_bytes(bytes(1 << 20))
    spec = place / "spec, =%.toml"
    spec.write_text(
        f'[machine]\naccel = "tcg"\nmemory_mib = 96\n[boot]\nkernel = "{kernel.name}"\ninitrd = "{initrd.name}"\n'
        f'cmdline = "{guest.cmdline} casemate.test=disk a,b=%c"\n'
        f'[[disk]]\npath = "{disk.name}"\nformat = "raw"\nmode = "persistent"\n'
    )
    done = cli("run", "--name", "odd", "--rm", "--timeout-s", "120", spec, timeout_s=150)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "casemate-guest: disk ok" in done.stdout
    assert disk.read_bytes()[:512] != bytes(512), "the guest wrote to this very file"
    assert cli.vms() == []
