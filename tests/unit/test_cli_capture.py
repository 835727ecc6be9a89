"""casemate capture as its user meets it: what it shows, asks, refuses and writes."""

from __future__ import annotations

import json
import os
import pty
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from casemate.audit.capture_read import read_capture
from casemate.audit.capture_script import script

PROGRAM = str(Path(sys.executable).with_name("casemate"))


def program(*words: str, stdin: int = subprocess.DEVNULL) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, "capture", *words], stdin=stdin, capture_output=True, text=True, timeout=120, check=False
    )


def asked(answer: str, *words: str) -> subprocess.CompletedProcess[str]:
    """With a terminal on standard input, on which ``answer`` is typed."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answer.encode())
        return program(*words, stdin=theirs)
    finally:
        os.close(ours)
        os.close(theirs)


def test_the_list_names_every_file_and_what_cannot_be_read() -> None:
    done = program("--list")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert any(line.split()[1:2] == ["/proc/cmdline"] for line in lines)
    assert any("/etc/passwd  (without passwords, names and homes)" in line for line in lines)
    assert "not read" in lines[-1]
    document = json.loads(program("--list", "--json").stdout)
    assert document["schema"] == "casemate.capture/1"
    assert {"path": "/proc/sys/kernel/osrelease", "size_bytes": len(os.uname().release) + 1, "without": ""} in document[
        "files"
    ]


def test_without_anybody_to_ask_nothing_is_written(tmp_path: Path) -> None:
    out = tmp_path / "o.tar"
    done = program(str(out))
    assert done.returncode == 2
    assert f"casemate capture --yes {out}" in done.stderr
    assert not out.exists()


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("yes\n", 0), ("n\n", 1), ("\n", 1), ("\4", 1)])
def test_it_asks_on_a_terminal(answer: str, code: int, tmp_path: Path) -> None:
    out = tmp_path / "o.tar"
    done = asked(answer, str(out))
    assert done.returncode == code
    assert "/proc/cmdline" in done.stdout, "what would be written is shown first"
    assert "[y/N]" in done.stderr
    assert out.exists() == (code == 0)
    if code:
        assert "nothing was written" in done.stderr


def test_what_it_writes_is_a_capture_for_its_owner_only(tmp_path: Path) -> None:
    out = tmp_path / "o.tar.gz"
    done = program("--yes", "--json", str(out))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["size_bytes"] == out.stat().st_size
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    capture = read_capture(out.read_bytes(), "o")
    assert capture.root.read_text("/proc/sys/kernel/osrelease").strip() == os.uname().release
    judged = subprocess.run([PROGRAM, "audit", str(out)], capture_output=True, text=True, timeout=120, check=False)
    assert judged.returncode == 0, judged.stderr
    assert "judged as of then" in judged.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "there is no file to write to"),
        (("--list", "x.tar"), "--list writes nothing"),
        (("--script", "x.tar"), "takes neither a file nor --json"),
        (("--script", "--json"), "takes neither a file nor --json"),
        (("--script", "--yes", "x.tar"), "not allowed with"),
        (("--yes", "/nonexistent/x.tar"), "cannot write /nonexistent/x.tar"),
        (("--yes", "/dev/null"), "no regular file"),
    ],
)
def test_wrong_use(words: tuple[str, ...], message: str) -> None:
    done = program(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_the_script_is_printed_as_it_is() -> None:
    done = program("--script")
    assert (done.returncode, done.stderr) == (0, "")
    tool = done.stdout.split("(casemate ")[1].split(")")[0]
    assert done.stdout == script(f"casemate {tool}")
    assert subprocess.run(["dash", "-n"], input=done.stdout, text=True, check=False).returncode == 0
