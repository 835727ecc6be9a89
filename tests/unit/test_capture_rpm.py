"""Captures of hosts of rpm and dnf: the advisories that are kept, what rpm answers, and the same verdict as live."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.recording_root import RecordingRoot
from tests.unit.test_capture import SHELLS, captured, in_shell, run, table_gaps, taken_from
from tests.unit.test_updates_rpm import ADVISORIES, INSTALLED, NOW, RUNNING, advisory, header, host

from casemate.audit.capture_collect import collect_capture
from casemate.audit.capture_filters import FILTERS
from casemate.audit.capture_read import read_capture
from casemate.audit.capture_script import script
from casemate.facts import rpm_answer
from casemate.facts.fact import Facts, Known, Unknown
from casemate.facts.memory_root import MemoryRoot, MemoryTree
from casemate.facts.root import Root
from casemate.facts.rpm_packages import Package
from casemate.facts.updates import KEPT_MARK, STATUS, _versions, collect_updates

THERE = [name for name, words in SHELLS if shutil.which(words[0])]


def kept(text: str) -> str | None:
    """What the function keeps, which every shell keeps alike; None where both refuse."""
    try:
        found: str | None = FILTERS["advisories"].apply(text.encode(), "x-updateinfo.xml").decode()
    except ValueError:
        found = None
    for shell in THERE:
        try:
            other = in_shell(shell, "advisories", text.encode()).decode()
        except subprocess.CalledProcessError:
            other = None
        assert other == found, shell
    return found


def test_only_what_the_audit_reads_of_advisories_is_kept() -> None:
    noise = "<description>qemu-kvm &lt;b&gt; name=\"qemu-kvm\"</description><reference href='x'/>"
    text = f'<?xml version="1.0"?>\n<updates>{noise}{ADVISORIES}</updates>\n'
    found = kept(text)
    assert found is not None
    assert "description" not in found
    assert "bash" not in found
    assert found.count("<update ") == found.count("</update>") == 5, "all but the one about bash"
    assert 'name="libvirt-daemon"' in found


@pytest.mark.parametrize(
    ("row", "is_kept"),
    [
        ("<package name='qemu-kvm' version='1'/>", True),
        ('<package\n version="1>2"\n name = "qemu-kvm" >x</package>', True),
        ('<package name="qemu&#45;kvm"/>', True),
        ('<package name="kernel-tools"/>', True),
        ('<package src="qemu-kvm" name="bash"/>', False),
        ('<packages name="qemu-kvm"/>', False),
        ('<package name="my-qemu-kvm"/>', False),
    ],
)
def test_tags_as_they_may_be_written(row: str, is_kept: bool) -> None:
    found = kept(f"<updates>\n<update type='security'>{row}</update>\n</updates>")
    assert found is not None
    assert (row.partition("/")[0] in found) is is_kept
    assert ("<update " in found) is is_kept


@pytest.mark.parametrize("inside", ["<!-- <package name='qemu'/> -->", "<![CDATA[ </update> ]]>", "<!ENTITY a 'b'>"])
def test_where_a_tag_may_be_none_nothing_is_kept(inside: str) -> None:
    assert kept(f"<updates>{inside}{ADVISORIES}</updates>") is None


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["qemu-kvm", "bash", "kernel", "kernel-tools", "libvirt-client"]),
            st.sampled_from(["security", "bugfix"]),
        ),
        max_size=8,
    )
)
def test_the_kept_part_judges_like_the_whole(rows: list[tuple[str, str]]) -> None:
    from casemate.facts.rpm_advisories import offered_by_advisories

    text = f"<updates>{''.join(advisory(name, '99', '1', kind=kind) for name, kind in rows)}</updates>"

    def offered(content: bytes) -> object:
        found = offered_by_advisories(memory({f"{FOLDER}/repomd.xml": repomd(""), f"{FOLDER}/u.xml": content}), WANTED)
        return found.why if isinstance(found, Unknown) else found.packages

    assert offered(FILTERS["advisories"].apply(text.encode(), "u.xml")) == offered(text.encode())


WANTED = rpm_answer._KEPT
FOLDER = "/var/cache/dnf/base-0123456789abcdef/repodata"


def repomd(suffix: str) -> bytes:
    href = f'<data type="updateinfo"><location href="repodata/u.xml{suffix}"/></data>'
    return f"<repomd><revision>{NOW}</revision>{href}</repomd>".encode()


def memory(files: dict[str, bytes], answers: dict[str, str] | None = None) -> MemoryRoot:
    folders: dict[str, set[str]] = {}
    for path in files:
        parts = path.split("/")
        for index in range(1, len(parts)):
            folders.setdefault("/".join(parts[:index]) or "/", set()).add(parts[index])
    names = {folder: tuple(sorted(found)) for folder, found in folders.items()}
    return MemoryRoot(MemoryTree(files, {}, set(names), names, {}, {}, (), NOW, answers or {}), "memory")


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [(".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress), (".zst", zstandard.compress)],
)
def test_a_capture_judges_updates_as_the_host_is_judged(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    root = host(tmp_path / "h", suffix=suffix, pack=pack)
    capture = captured(taken_from(root), tmp_path / "c.tar.gz")
    live, then = collect_updates(root, now_s=NOW), collect_updates(capture.root, now_s=NOW)
    assert values(then) == values(live)
    assert values(live)["updates.qemu"] == ("qemu-kvm 17:9.1.0-15.el9 -> 17:9.1.0-15.el9_6.2",)
    answer = capture.manifest.answers["rpm"]
    assert answer.splitlines()[0] == f"all {len(INSTALLED)} kept {rpm_answer.MARK}"
    assert "bash" not in answer
    assert not any(b"bash" in data for data in taken_from(root).files.values())


def values(facts: Facts) -> dict[str, object]:
    return {name: fact.value if isinstance(fact, Known) else "unknown" for name, fact in facts.items()}


def test_the_table_has_what_the_audit_reads_of_rpm(tmp_path: Path) -> None:
    """All but the database itself: rpm's answer stands for it."""
    recorder = RecordingRoot(host(tmp_path))
    collect_updates(recorder, now_s=NOW)
    database_files = "/var/lib/rpm/rpmdb.sqlite"
    gaps = [gap for gap in table_gaps(recorder.asked, RUNNING) if not gap.split()[1].startswith(database_files)]
    assert gaps == []


def test_without_the_answer_of_rpm_nothing_is_known(tmp_path: Path) -> None:
    base = tmp_path / "h"
    root = host(base)
    (base / "var/lib/rpm/rpmdb.sqlite").write_bytes(b"not a database")
    capture = captured(taken_from(root), tmp_path / "c.tar")
    assert "rpm" not in capture.manifest.answers
    found = collect_updates(capture.root, now_s=NOW)
    assert {type(fact) for fact in found.values()} == {Unknown}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "begins with"),
        ("all x", "begins with"),
        ("all 0", "not one package"),
        ("all 5 kept 0123456789ab\nqemu 1-1 x", "kept other packages"),
        ("all 1\na 1-1 x\nb 1-1 x", "2 packages of 1"),
        ("all 9999999", "at most"),
        ("all 3\nqemu 1-1", "no package"),
        ("all 3\nqemu 1 x86_64", "no version"),
        ("all 3\nqemu -1:1-1 x86_64", "no version"),
    ],
)
def test_an_answer_that_is_none(text: str, said: str) -> None:
    found = rpm_answer.read_answer(text)
    assert isinstance(found, Unknown)
    assert said in found.why


def test_what_is_kept_of_an_answer_comes_back() -> None:
    packages = (Package("qemu-kvm", 17, "9.1", "1.el9", "x86_64"), Package("bash", 0, "5", "1", "x86_64"))
    assert rpm_answer.read_answer(rpm_answer.kept_answer(packages)) == packages[:1]
    assert rpm_answer.read_answer(rpm_answer.kept_answer(packages[1:])) == ()


# ---- rpm itself, and a host of it -------------------------------------------------------------------------------

needs_rpm = pytest.mark.skipif(not shutil.which("rpmbuild"), reason="package rpm is not installed")


@pytest.fixture(scope="module")
def real_host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of a host whose database rpm itself has written."""
    base = tmp_path_factory.mktemp("rpm")
    work = base / "work"
    work.mkdir()
    packages = {"kernel-core": ("5.14.0", "570.12.1.el9_6", 0), "qemu-kvm": ("9.1.0", "15.el9", 17),
                "libvirt-daemon": ("10.10.0", "7.el9", 0), "bash": ("5.1.8", "9.el9", 0)}  # fmt: skip
    specs = []
    for name, (version, release, epoch) in packages.items():
        spec = work / f"{name}.spec"
        spec.write_text(
            f"Name: {name}\nVersion: {version}\nRelease: {release}\n{f'Epoch: {epoch}' if epoch else ''}\n"
            "Summary: test\nLicense: MIT\n%description\nx\n%files\n"
        )
        specs.append(str(spec))
    command = ["rpmbuild", "-bb", "--target", "x86_64-linux", "--define", f"_topdir {work}", *specs]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    place = base / "host"
    host(place, installed=[])
    (place / "var/lib/rpm/rpmdb.sqlite").unlink()
    built = [str(path) for path in sorted(work.rglob("*.rpm"))]
    command = ["rpm", "--root", str(place), "--dbpath", "/var/lib/rpm", "--justdb", "--nodeps", "--ignorearch", "-i"]
    subprocess.run([*command, *built], check=True, capture_output=True, timeout=120)
    return place


@needs_rpm
def test_rpm_and_our_reader_say_the_same(real_host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "rpm"
    program.write_text(f'#!/bin/sh\nexec rpm --dbpath {real_host}/var/lib/rpm "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(rpm_answer, "PROGRAM", str(program))
    asked = rpm_answer.ask_rpm()
    ours = rpm_answer.host_packages(Root(real_host), "/var/lib/rpm")
    assert isinstance(asked, tuple)
    assert isinstance(ours, tuple)
    assert set(asked) == set(ours)
    assert Package("qemu-kvm", 17, "9.1.0", "15.el9", "x86_64") in asked


def test_where_only_rpm_reads_the_database_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Berkeley DB of RHEL 8, on this host: what cannot be read here, and why rpm could not say it either."""

    class Live(Root):
        def open_regular(self, path: str | Path) -> int:
            raise FileNotFoundError(2, "No such file or directory", str(path))

        def exists(self, path: str | Path) -> bool:
            return str(path).endswith("/Packages")

    package = Package("qemu-kvm", 15, "6.2.0", "1.el8", "x86_64")
    monkeypatch.setattr(rpm_answer, "ask_rpm", lambda: (package,))
    assert rpm_answer.host_packages(Live(), "/var/lib/rpm") == (package,)
    monkeypatch.setattr(rpm_answer, "ask_rpm", lambda: Unknown("no rpm"))
    found = rpm_answer.host_packages(Live(), "/var/lib/rpm")
    assert isinstance(found, Unknown)
    assert "Berkeley DB" in found.why
    assert "no rpm" in found.why


@needs_rpm
@pytest.mark.skipif(os.geteuid() != 0, reason="puts the folders of another host in the place of this one's: root")
@pytest.mark.parametrize("shell", THERE[-1:])  # busybox, whose own rpm is another one
def test_the_script_takes_the_same_from_a_host_of_rpm(shell: str, real_host: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "take.sh", tmp_path / "s.tar.gz"
    file.write_text(script("casemate test"))
    (tmp_path / ".rpmmacros").write_text("%_dbpath /var/lib/rpm\n")  # Debian's rpm looks elsewhere
    words = " ".join(dict(SHELLS)[shell])
    mounts = "".join(f"mount --bind {real_host}/{f} /{f}; " for f in ("var/lib/rpm", "var/cache"))
    inside = f"set -e; mount -t tmpfs none /var/lib/dpkg; {mounts} HOME={tmp_path} {words} {file} --yes {out}"
    done = run("unshare", "-m", "sh", "-c", inside)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    theirs = read_capture(out.read_bytes(), "s")
    ours = captured(taken_from(Root(real_host)), tmp_path / "p.tar")
    assert theirs.manifest.answers["rpm"] == ours.manifest.answers["rpm"]
    found, live = (values(collect_updates(root, now_s=NOW)) for root in (theirs.root, Root(real_host)))
    running = ("updates.running-kernel", "updates.kernel")  # the kernel is this host's
    assert {n: v for n, v in found.items() if n not in running} == {n: v for n, v in live.items() if n not in running}
    assert found["updates.qemu"] == ("qemu-kvm 17:9.1.0-15.el9 -> 17:9.1.0-15.el9_6.2",)


@pytest.mark.parametrize("shell", THERE)
@pytest.mark.parametrize("through", ["advisories", "packages"])
def test_a_text_that_is_cut_off_is_not_taken_for_whole(shell: str, through: str) -> None:
    text = {"advisories": f"<updates>{ADVISORIES}</updates>", "packages": "Package: qemu-kvm\nVersion: 1\n\n" * 50}
    name = {"advisories": "u.xml.gz", "packages": "x_Packages.gz"}[through]
    whole = gzip.compress(text[through].encode())
    assert in_shell(shell, through, whole, name)
    with pytest.raises(subprocess.CalledProcessError):
        in_shell(shell, through, whole[:-9], name)
    with pytest.raises(ValueError, match=r"ends too early|damaged"):
        FILTERS[through].apply(whole[:-9], name)


def test_what_another_version_did_not_keep_is_not_absent(tmp_path: Path) -> None:
    """A later version may ask for more packages: a capture that left them out says nothing about them."""
    kept = FILTERS["packages"].apply(b"Package: libvirt0\nStatus: install ok installed\nVersion: 1\n", STATUS)
    assert kept.startswith(f"{KEPT_MARK}\n".encode())
    found = collect_updates(memory({STATUS: kept}), now_s=NOW)
    assert found["updates.has-qemu"] == Known(False, f"{STATUS}: none")
    other = kept.replace(KEPT_MARK.encode(), b"Package: (kept: 0123456789ab)")
    found = collect_updates(memory({STATUS: other}), now_s=NOW)
    assert {type(fact) for fact in found.values()} == {Unknown}
    with pytest.raises(ValueError, match="kept other packages"):
        _versions(other, "")


def test_a_debian_host_asks_no_rpm(tmp_path: Path) -> None:
    base = tmp_path / "h"
    root = host(base)
    (base / "var/lib/dpkg").mkdir(parents=True)
    (base / "var/lib/dpkg/status").write_text("Package: qemu\n")
    assert "rpm" not in collect_capture(root, "web7", "test").manifest.answers


def test_the_review_shows_what_rpm_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from casemate.cli.capture import _show

    base = tmp_path / "h"
    root = host(base, installed=[header("qemu-kvm", "9", "1", epoch=17)])
    assert _show(collect_capture(root, "web7", "test"), as_json=False) == 0
    assert "rpm  qemu-kvm 17:9-1 x86_64" in capsys.readouterr().out
    assert _show(collect_capture(root, "web7", "test"), as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["answers"]["rpm"].startswith("all 1 kept ")
