"""Parsers of /proc/PID and a process in a captured tree; live processes are in tests/walls/test_facts_live.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.elf_builder import put

from casemate.facts.mountinfo import parse_mountinfo
from casemate.facts.process import Descriptor, read_process
from casemate.facts.procfs import (
    parse_fdinfo,
    parse_is_ending,
    parse_limits,
    parse_maps,
    parse_start_time,
    parse_status,
)
from casemate.facts.root import Root

STATUS = """Name:\ta b:c\\n(d)
Uid:\t1\t2\t3\t4
Gid:\t5\t6\t7\t8
Groups:\t9 10
NSpid:\t77\t1
CapInh:\t0000000000000000
CapPrm:\t00000000000000ff
CapEff:\t000001ffffffffff
CapBnd:\t0000000000000001
CapAmb:\t0000000000000000
NoNewPrivs:\t1
Seccomp:\t2
Seccomp_filters:\t3
"""
STAT = "77 (a) R 1 (b) S 1 2 3 4 5 4194304 7 8 9 10 11 12 13 14 15 16 17 18 424242 20 21\n"


def test_status() -> None:
    thread = parse_status(STATUS, 77)
    assert thread.name == "a b:c\\n(d)"
    assert (thread.uids, thread.gids, thread.groups) == ((1, 2, 3, 4), (5, 6, 7, 8), (9, 10))
    assert (thread.cap_permitted, thread.cap_effective, thread.cap_bounding) == (0xFF, 0x1FF_FFFF_FFFF, 1)
    assert (thread.no_new_privs, thread.seccomp, thread.seccomp_filters) == (True, 2, 3)
    assert thread.pid_in_namespaces == (77, 1)


def test_old_kernel_does_not_count_filters() -> None:
    assert parse_status(STATUS.replace("Seccomp_filters:\t3\n", ""), 1).seccomp_filters is None


@pytest.mark.parametrize(
    "key", ["Name", "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"]
)
def test_a_missing_field_is_no_pass(key: str) -> None:
    text = "\n".join(line for line in STATUS.split("\n") if not line.startswith(f"{key}:"))
    with pytest.raises(ValueError, match=f"no field {key}"):
        parse_status(text, 1)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Uid:\t1\t2\t3\t4", "Uid:\t1\t2\t3"),
        ("NoNewPrivs:\t1", "NoNewPrivs:\tyes"),
        ("CapEff:\t000001ffffffffff", "CapEff:\tzz"),
        ("Seccomp:\t2", "Seccomp:\t2\nSeccomp:\t0"),
    ],
)
def test_odd_status_is_refused(old: str, new: str) -> None:
    with pytest.raises(ValueError):
        parse_status(STATUS.replace(old, new), 1)


def test_stat_counts_from_the_end_of_the_name() -> None:
    assert parse_start_time(STAT) == 424242
    for parse in (parse_start_time, parse_is_ending):
        with pytest.raises(ValueError, match="too few"):
            parse("77 (a) S 1 2\n")


@pytest.mark.parametrize(
    ("old", "new", "ending"),
    [("4194304", "4194304", False), (") S ", ") Z ", True), (") S ", ") X ", True), ("4194304", "4194308", True)],
)
def test_a_process_that_has_begun_to_exit(old: str, new: str, ending: bool) -> None:
    assert parse_is_ending(STAT.replace(old, new)) == ending


def test_limits() -> None:
    text = (
        "Limit                     Soft Limit           Hard Limit           Units     \n"
        "Max cpu time              unlimited            unlimited            seconds   \n"
        "Max core file size        0                    unlimited            bytes     \n"
        "Max open files            1024                 4096                 files     \n"
        "Max nice priority         0                    0                    \n"
    )
    assert parse_limits(text) == {"cpu": (None, None), "core": (0, None), "nofile": (1024, 4096), "nice": (0, 0)}
    with pytest.raises(ValueError, match="no limits"):
        parse_limits("")


def test_fdinfo_takes_the_first_flags() -> None:
    assert parse_fdinfo("pos:\t0\nflags:\t02100002\ninotify wd:1\nflags:\t00\n")["flags"] == "02100002"


def test_maps() -> None:
    text = (
        "55d0c0000000-55d0c0001000 r-xp 00000000 fd:00 12 /usr/bin/a b\n"
        "7f0000000000-7f0000001000 rwxp 00000000 00:00 0 \n"
        "7f0000002000-7f0000003000 rw-s 00000000 00:01 9                          /memfd:x (deleted)\n"
    )
    ranges = parse_maps(text)
    assert [item.rights for item in ranges] == ["r-xp", "rwxp", "rw-s"]
    assert [item.name for item in ranges] == ["/usr/bin/a b", "", "/memfd:x (deleted)"]
    with pytest.raises(ValueError, match="maps line"):
        parse_maps("55d0 nonsense\n")


@pytest.mark.parametrize("line", ["", "1 2 3:4 / /x rw", "1 2 3:4 / /x rw - ext4 dev", "a 2 3:4 / /x rw - e d rw"])
def test_odd_mounts_are_refused(line: str) -> None:
    if not line:
        assert parse_mountinfo("\n") == ()
        return
    with pytest.raises(ValueError, match="mountinfo line"):
        parse_mountinfo(line)


def test_mounts() -> None:
    text = "36 35 98:0 /a\\040b /c\\134d\\012 rw,nosuid master:1 shared:2 - ext3 /dev/x rw,errors=continue\n"
    (mount,) = parse_mountinfo(text)
    assert (mount.root, mount.point) == ("/a b", "/c\\d\n")
    assert (mount.options, mount.propagation) == (("rw", "nosuid"), ("master:1", "shared:2"))
    assert (mount.kind, mount.source, mount.super_options) == ("ext3", "/dev/x", ("rw", "errors=continue"))


@pytest.mark.parametrize(("flags", "access"), [(0o0, "read"), (0o1, "write"), (0o100002, "read-write")])
def test_access_of_a_descriptor(flags: int, access: str) -> None:
    assert Descriptor(1, "x", flags, None).access == access
    assert Descriptor(1, "x", flags | 0o10000000, None).access == "path"


@pytest.fixture
def captured(tmp_path: Path) -> Path:
    put(tmp_path, "/proc/77/stat", STAT)
    put(tmp_path, "/proc/77/task/77/status", STATUS)
    put(tmp_path, "/proc/77/task/78/status", STATUS.replace("Seccomp:\t2", "Seccomp:\t0"))
    put(tmp_path, "/proc/77/cmdline", "qemu\0-name\0a b\0")
    put(tmp_path, "/proc/77/mountinfo", "")
    put(tmp_path, "/proc/77/environ", "HOME=/\0LD_PRELOAD=/x=y\0LD_\0SECRET=1\0")
    put(tmp_path, "/proc/77/fdinfo/3", "pos:\t0\nflags:\t02\n")
    (tmp_path / "proc/77/fd").mkdir()
    (tmp_path / "proc/77/fd/3").symlink_to("/images/a\nb (deleted)")
    (tmp_path / "proc/77/ns").mkdir()
    (tmp_path / "proc/77/ns/mnt").symlink_to("mnt:[4026531840]")
    (tmp_path / "proc/77/exe").symlink_to("/usr/bin/qemu")
    return tmp_path


def test_a_captured_process(captured: Path) -> None:
    found = read_process(77, root=Root(captured))
    assert [thread.seccomp for thread in found.threads] == [2, 0]
    assert found.start_time == 424242
    assert found.command == ("qemu", "-name", "a b")
    assert found.loader_environment == {"LD_PRELOAD": "/x=y"}
    assert found.namespaces == {"mnt": 4026531840}
    assert found.executable == "/usr/bin/qemu"
    assert found.descriptors == (Descriptor(3, "/images/a\nb (deleted)", 2, None),)
    assert (found.root, found.executable_identity, found.own_namespaces) == (None, None, {})


def test_what_cannot_be_read_is_named(captured: Path) -> None:
    put(captured, "/proc/77/fdinfo/3", "pos:\t0\n")
    put(captured, "/proc/77/limits", b"x" * (2 << 20))
    found = read_process(77, root=Root(captured))
    assert (found.descriptors, found.limits, found.cgroups, found.personality) == (None, None, None, None)
    assert found.unknown["descriptors"] == "fdinfo/3 has no flags"
    assert found.unknown["limits"].startswith("larger than")
    assert found.unknown["cgroups"] == "No such file or directory"


def test_a_symlink_in_place_of_a_file_leads_nowhere_outside(captured: Path) -> None:
    (captured / "proc/77/limits").symlink_to("/etc/passwd")
    found = read_process(77, root=Root(captured))
    assert found.limits is None
    assert found.unknown["limits"] == "No such file or directory"  # there is no /etc/passwd in the tree


@pytest.mark.parametrize("what", ["absent", "zombie", "no threads"])
def test_no_process(captured: Path, what: str) -> None:
    if what == "zombie":
        put(captured, "/proc/77/stat", STAT.replace(") S ", ") Z "))
    elif what == "no threads":
        for thread in (captured / "proc/77/task").iterdir():
            (thread / "status").unlink()
    with pytest.raises(ProcessLookupError):
        read_process(78 if what == "absent" else 77, root=Root(captured))
