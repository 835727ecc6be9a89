"""Captures that lie: archives made to lead out, to fill memory, to crash the reader or to make a control pass."""

from __future__ import annotations

import datetime
import gzip
import io
import json
import os
import tarfile
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from casemate.assess import audit_stream
from casemate.audit import ahead
from casemate.audit.capture_model import MANIFEST
from casemate.audit.capture_read import read_capture
from casemate.audit.capture_tar import MEMBERS_MAX, read_archive
from casemate.audit.captures import report_capture
from casemate.audit.judging import Setting
from casemate.controls.model import Verdict
from casemate.controls.profiles import DEFAULT, named
from casemate.controls.waivers import AuditWaiver
from casemate.errors import InputError
from casemate.facts.memory_root import MemoryRoot, _coverage

TODAY = datetime.datetime.now(datetime.UTC).date()
SETTING = Setting(named(DEFAULT), TODAY)
FILES = {
    "proc/sys/kernel/osrelease": "6.12.110\n",
    "proc/sys/kernel/hostname": "web7\n",
    "proc/cmdline": "ro\n",
    "etc/passwd": "root::0:0:::/bin/sh\n",
}


def manifest(**changes: Any) -> bytes:
    document = {
        "casemate_capture": 1,
        "time": "2026-01-02T03:04:05Z",
        "host": "web7",
        "tool": "test",
        "uid": 0,
        "looked_for": ["c /proc/cmdline", "c /etc/shadow", "n /sys/module"],
        "names": {"/proc": [], "/etc": ["passwd"]},
        "status": [],
        "unread": {},
    }
    document.update(changes)
    return json.dumps({key: value for key, value in document.items() if value is not None}).encode()


def archive(*members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar with a manifest, the files above, and these members."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as tar:
        for name, data in ((MANIFEST, manifest()), *((f"root/{n}", t.encode()) for n, t in FILES.items())):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        for member in members:
            entry, data = member if isinstance(member, tuple) else (member, b"")
            tar.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def with_manifest(**changes: Any) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in ((MANIFEST, manifest(**changes)), *((f"root/{n}", t.encode()) for n, t in FILES.items())):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.size = kind, link, size
    return entry


def test_the_honest_one_is_read() -> None:
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        capture = read_capture(archive(kind=kind), "c.tar")
        assert capture.root.read_text("/proc/cmdline") == "ro\n"
        assert capture.date == datetime.date(2026, 1, 2)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (member("root/../etc/passwd"), "root/../etc/passwd leads out of the archive"),
        (member("../x"), "../x leads out"),
        (member("root/a/.."), "leads out"),
        (member("/etc/passwd"), "/etc/passwd has an absolute path"),
        (member("root//x"), "no proper name"),
        (member("elsewhere/x"), "elsewhere/x is not below root/"),
        (member("elsewhere", tarfile.DIRTYPE), "is not below root/"),
        (member("root/proc/cmdline"), "root/proc/cmdline is in the archive twice"),
        (member("root/proc/cmdline", tarfile.SYMTYPE, "x"), "twice"),
        (member("root/x", tarfile.LNKTYPE, "root/proc/cmdline"), "root/x is a hard link"),
        (member("root/x", tarfile.CHRTYPE), "root/x is a character device"),
        (member("root/x", tarfile.BLKTYPE), "root/x is a block device"),
        (member("root/x", tarfile.FIFOTYPE), "root/x is a FIFO"),
        (member("root/x", tarfile.CONTTYPE), ""),
        (member("root/x", tarfile.GNUTYPE_SPARSE), "root/x is a sparse file"),
        (member("root/x", b"Z"), "root/x is of type"),
        (member("root/proc", tarfile.SYMTYPE, "/"), "root/proc is a directory and something else"),
        (member("root/proc/cmdline/x"), "root/proc/cmdline is a directory and something else"),
        (member("root/x", tarfile.SYMTYPE, ""), "link to nothing"),
        (member("root/x", tarfile.SYMTYPE, "y" * 5000), "too far"),
        (member(f"root/{'y' * 5000}"), "name is too long"),
    ],
)
def test_a_member_that_no_capture_has_is_named(entry: tarfile.TarInfo, words: str) -> None:
    data = archive(entry)
    if not words:
        assert read_capture(data, "c.tar").root.read_bytes("/x") == b""
        return
    with pytest.raises(InputError) as caught:
        read_capture(data, "c.tar")
    assert words in caught.value.what
    assert caught.value.what.startswith("c.tar: ")


def test_a_pax_sparse_file_is_refused() -> None:
    entry = member("root/x")
    entry.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": str(1 << 50)}
    with pytest.raises(InputError, match="sparse"):
        read_capture(archive(entry), "c.tar")


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:700],
        lambda data: data[: len(data) // 2],
        lambda data: data[:512],
        lambda data: data[:100],
        lambda data: gzip.compress(data)[:-20],
        lambda data: gzip.compress(data)[:200],
        lambda data: gzip.compress(data) + b"more",
        lambda data: b"\x1f\x8b" + data,
        lambda data: data[:124] + b"77777777777\0" + data[136:],
        lambda data: data[:148] + b"0000000\0" + data[156:],
        lambda data: data[:124] + b"\x80" + b"\xff" * 11 + data[136:],
        lambda data: b"",
        lambda data: b"\0" * 10240,
    ],
)
def test_damaged_and_cut_off(change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(InputError):
        read_capture(change(archive()), "c.tar")


def test_a_gzip_bomb_costs_no_memory() -> None:
    packed = gzip.compress(b"\0" * (64 << 20), 9)
    bomb = packed * 5  # members of gzip, one behind the other
    with pytest.raises(InputError):
        read_archive(bomb, "bomb")
    with pytest.raises(InputError, match="unpacks to more"):
        read_archive(gzip.compress(b"\0" * (129 << 20), 9), "bomb")


def test_too_many_members_are_refused() -> None:
    header = tarfile.TarInfo("root").tobuf(tarfile.USTAR_FORMAT)
    folder = bytearray(header)
    folder[156:157] = b"5"
    folder[148:156] = b" " * 8
    folder[148:156] = b"%06o\0 " % sum(folder)
    with pytest.raises(InputError, match=f"more than {MEMBERS_MAX} members"):
        read_archive(bytes(folder) * (MEMBERS_MAX + 1), "many")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"casemate_capture": 2}, "another version"),
        ({"casemate_capture": "1"}, "not understood"),
        ({"time": "yesterday"}, "not understood"),
        ({"unheard": 1}, "not understood"),
        ({"names": {"proc": []}}, "not understood"),
        ({"names": None}, "not understood"),
        ({"status": [["/dev/kvm", -1, 0, 0]]}, "not understood"),
        ({"uid": 1 << 80}, "not understood"),
    ],
)
def test_a_manifest_that_is_none(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_capture(with_manifest(**changes), "c.tar")


def test_an_archive_without_a_manifest_is_no_capture() -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.addfile(member("proc/cmdline"))
    with pytest.raises(InputError, match=r"c\.tar is no capture"):
        read_capture(stream.getvalue(), "c.tar")


# Links inside


def linked(*links: tuple[str, str]) -> MemoryRoot:
    return read_capture(archive(*(member(f"root{path}", tarfile.SYMTYPE, to) for path, to in links)), "c").root


def test_links_stay_inside() -> None:
    root = linked(
        ("/a", "/etc/passwd"), ("/b", "../../../../etc/passwd"), ("/c", "/.."), ("/etc/shadow", "/proc/cmdline")
    )
    assert root.read_text("/a") == root.read_text("/b") == root.read_text("/c/etc/passwd") == FILES["etc/passwd"]
    assert root.read_text("/etc/shadow") == "ro\n"
    assert root.readlink("/b") == "../../../../etc/passwd"
    assert root.real_path("/b") == "/etc/passwd"


def test_circles_of_links_end() -> None:
    root = linked(("/a", "/b"), ("/b", "a"), ("/c", "c/c/c"), ("/d", "/".join(["d"] * 2000)))
    for path in ("/a", "/b", "/c", "/d"):
        with pytest.raises(OSError, match="symbolic links"):
            root.read_bytes(path)
    with pytest.raises(OSError, match="too long"):
        root.read_bytes("/x" * 5000)


def test_absence_is_only_believed_where_somebody_looked() -> None:
    root = read_capture(with_manifest(unread={"/etc/secret": "EACCES", "/run": "ENOTDIR", "/srv": "unheard"}), "c").root
    assert not root.exists("/etc/shadow")  # looked for
    assert not root.exists("/sys/module")  # looked for
    assert not root.exists("/sys/module/kvm")  # below it
    assert not root.exists("/etc/other")  # not among the names of /etc
    assert root.exists("/etc/passwd")
    for path, error in (
        ("/opt/x", "not in the capture"),
        ("/etc/secret", "Permission denied"),
        ("/srv/x", "Input/output"),
    ):
        with pytest.raises(OSError, match=error):
            root.exists(path)
    with pytest.raises(OSError, match="owner and mode are not in the capture"):
        root.stat("/etc/passwd")
    with pytest.raises(OSError, match="not a regular file"):
        root.read_bytes("/proc")
    with pytest.raises(OSError, match="not in the capture"):
        root.list_dir("/proc/sys")
    assert root.list_dir("/etc") == ("passwd",)


@pytest.mark.parametrize(
    "looked_for",
    [[f"c /x{n}" for n in range(5000)], ["c /a**b**c"], ["c /" + "a" * 2000], ["c " + "/a" * 80]],
    ids=["many", "stars", "long", "deep"],
)
def test_patterns_that_nobody_looks_for(looked_for: list[str]) -> None:
    with pytest.raises(InputError, match="looked_for is not understood"):
        read_capture(with_manifest(looked_for=looked_for), "c")


def test_a_pattern_made_to_be_slow_is_not() -> None:
    slow = [f"c /{'*a' * 100}b{n}" for n in range(50)] + ["c /**" + "/*a*a*a*a*a*b" * 10]
    root = read_capture(with_manifest(looked_for=slow), "c").root
    for path in ("/" + "a" * 4000, "/a" * 2000):
        with pytest.raises(OSError, match=r"not in the capture|too long|symbolic links"):
            root.exists(path)


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("/a/*.conf", "/a/x.conf", True),
        ("/a/*.conf", "/a/x/y.conf", False),
        ("/a/*-sec_*_Pack*", "/a/d-sec_main_Packages.gz", True),
        ("/a/*-sec_*_Pack*", "/a/d-main_Packages.gz", False),
        ("/proc/[0-9]*/stat", "/proc/12/stat", True),
        ("/proc/[0-9]*/stat", "/proc/net/stat", False),
        ("/top**/max", "/top/a/b/max", True),
        ("/top**/max", "/top/max", True),
        ("/top**/max", "/other/max", False),
        ("/e/**", "/e/x/y", True),
        ("/a.b", "/axb", False),
    ],
)
def test_what_a_pattern_covers(pattern: str, path: str, fits: bool) -> None:
    assert (_coverage((pattern,))[0].fullmatch(path) is not None) == fits


def test_more_vms_than_a_host_has_are_refused() -> None:
    many = [(member(f"root/proc/{n}/cmdline"), b"") for n in range(2001)]
    with pytest.raises(InputError, match="more VMs than a host has"):
        judged(archive(*many))


# Judged


def judged(data: bytes, setting: Setting = SETTING) -> dict[str, Verdict]:
    reports = list(report_capture(data, "c.tar", setting))
    return {finding.control_id: finding.verdict for finding in reports[0].findings}


def test_an_empty_capture_passes_nothing() -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        data = manifest(looked_for=[], names={})
        tar.addfile(member(MANIFEST, size=len(data)), io.BytesIO(data))
    assert Verdict.PASS not in judged(stream.getvalue()).values()
    assert Verdict.FAIL not in judged(stream.getvalue()).values()


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({"proc/7/stat": "7 (qemu-system-x86) S"}, ["7"]),
        ({"proc/7/stat": "7 (qemu-system-x86) S 1 7 7 0 -1 0" + " 0" * 40}, ["7"]),
        (
            {
                "proc/7/stat": "7 (kvm) S 1 7 7 0 -1 0" + " 9" * 40,
                "proc/7/status": "Name:\tx\n",
                "proc/7/cmdline": "kvm",
            },
            ["7"],
        ),
        (
            {"proc/7/stat": "\0" * 4096, "proc/self/mountinfo": "\xff\xfe" * 100, "proc/self/cgroup": ":::"},
            ["7", "x", "9" * 400],
        ),
        ({"etc/libvirt/qemu/a.xml": "<domain", "etc/libvirt/libvirtd.conf": "a = [\n"}, []),
        ({"etc/libvirt/qemu/a.xml": '<!DOCTYPE x [<!ENTITY a "b">]><domain>&a;</domain>'}, []),
        ({"proc/config.gz": "\x1f\x8bnot", "proc/cpuinfo": "flags" * 10000, "proc/swaps": "x\ny z\n"}, []),
        (
            {
                "proc/net/tcp": "local_address\n1: zz:zz 0 0A\n",
                "etc/group": ":::::\n",
                "proc/meminfo": "MemAvailable: x\n",
            },
            [],
        ),
        ({"var/lib/dpkg/status": "Package: linux-image-1\nVersion: " + "1." * 5000 + "\n"}, []),
    ],
)
def test_content_that_makes_no_sense_is_unknown_and_never_a_crash(files: dict[str, str], names: list[str]) -> None:
    stream = io.BytesIO()
    listed = {"/proc": names, "/etc/libvirt/qemu": ["a.xml"], "/etc/libvirt": ["qemu", "libvirtd.conf"]}
    looked = ["c /proc/*/stat", "c /etc/**", "c /proc/**", "c /sys/**", "n /etc/libvirt", "n /etc/libvirt/qemu"]
    with tarfile.open(fileobj=stream, mode="w") as tar:
        content = {MANIFEST: manifest(names=listed, looked_for=looked)}
        content |= {f"root/{name}": text.encode("utf-8", "replace") for name, text in files.items()}
        for name, data in content.items():
            tar.addfile(member(name, size=len(data)), io.BytesIO(data))
    assert judged(stream.getvalue())


def test_waivers_count_as_of_the_capture() -> None:
    """Expired today, in force then; and not when the capture says that it is from the future."""
    expires = datetime.date(2026, 1, 3)
    waiver = AuditWaiver(control="os.mac", target="host:web7", reason="until January", expires=expires, host="web*")
    setting = Setting(named(DEFAULT), TODAY, (waiver,))
    files = {"sys/kernel/security/lsm": "capability\n", "proc/self/attr/current": ""}

    def capture(time: str) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for name, data in ((MANIFEST, manifest(time=time)), *((f"root/{n}", t.encode()) for n, t in files.items())):
                tar.addfile(member(name, size=len(data)), io.BytesIO(data))
        return stream.getvalue()

    assert judged(capture("2026-01-02T00:00:00Z"), setting)["os.mac"] is Verdict.WAIVED
    assert judged(capture("2026-01-04T00:00:00Z"), setting)["os.mac"] is Verdict.FAIL
    assert judged(capture("2999-01-04T00:00:00Z"), setting)["os.mac"] is Verdict.FAIL
    notes = next(iter(report_capture(capture("2999-01-04T00:00:00Z"), "c", setting))).notes
    assert any("from the future" in note for note in notes)


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    list(report_capture(archive(member("root/x", tarfile.SYMTYPE, f"{tmp_path}/out")), "c", SETTING))
    assert list(tmp_path.iterdir()) == []


# Many at once


def write_many(folder: Path, count: int) -> list[str]:
    names = []
    for number in range(count):
        path = folder / f"h{number}.tar"
        path.write_bytes(with_manifest(host=f"host{number}") if number != 3 else b"\x1f\x8bno")
        names.append(str(path))
    return names


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_many_come_in_order_with_every_fault(jobs: int, tmp_path: Path) -> None:
    names = write_many(tmp_path, 11)
    faults: list[str] = []
    seen: list[tuple[int, int]] = []
    found = audit_stream(names, jobs=jobs, fault=faults.append, progress=lambda done, of, what: seen.append((done, of)))
    assert [report.target.host for report in found] == [f"host{n}" for n in range(11) if n != 3]
    assert len(faults) == 1
    assert "h3.tar is damaged" in faults[0]
    assert seen[-1] == (11, 11)


def test_the_same_reports_whoever_judges(tmp_path: Path) -> None:
    names = write_many(tmp_path, 9)
    alone = list(audit_stream(names, jobs=1))
    assert list(audit_stream(names, jobs=2)) == alone


def test_leaving_early_leaves_no_worker(tmp_path: Path) -> None:
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if not children.exists():
        pytest.skip("this kernel does not list children")
    before = children.read_text()
    stream = audit_stream(write_many(tmp_path, 40), jobs=2)
    assert isinstance(stream, Generator)
    next(stream)
    stream.close()
    assert children.read_text() == before


def test_a_worker_that_dies_is_an_error_and_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if threading.active_count() > 1:
        pytest.skip("with threads the workers start afresh and do not see what is replaced here")
    monkeypatch.setattr(ahead, "judge_one", lambda name, setting: os._exit(9))
    faults: list[str] = []
    assert list(audit_stream(write_many(tmp_path, 9), jobs=2, fault=faults.append)) == []
    assert len(faults) == 9
    assert all("a worker process died" in fault for fault in faults)


def test_work_that_starts_afresh_comes_to_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = write_many(tmp_path, 9)
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    faults: list[str] = []
    assert len(list(audit_stream(names, jobs=2, fault=faults.append))) == 8
