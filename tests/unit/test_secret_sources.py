"""Where secrets come from: modes, bounds, deadlines, programs; and what is never kept of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from casemate.engine import secret_sources
from casemate.engine.provisioning import sealed
from casemate.engine.secret_sources import read_secret
from casemate.errors import CasemateError, HostError, InputError
from casemate.spec.model import Secret

VALUE = b"correct horse\n\0\xff"


def private(path: Path, content: bytes = VALUE, mode: int = 0o600) -> str:
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


def test_file_is_read_as_it_is(tmp_path: Path) -> None:
    value = read_secret("x", Secret(file=private(tmp_path / "s")), 100)
    assert isinstance(value, bytearray)
    assert value == VALUE


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(InputError, match="open to others") as caught:
        read_secret("x", Secret(file=private(tmp_path / "s", mode=mode)), 100)
    assert "chmod 600" in caught.value.next_step


def test_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(private(tmp_path / "s"))
    os.mkfifo(tmp_path / "fifo", 0o600)
    for path in (tmp_path / "missing", tmp_path / "link", tmp_path / "fifo", tmp_path):
        with pytest.raises(InputError):
            read_secret("x", Secret(file=str(path)), 100)


@pytest.mark.parametrize(("size", "message"), [(0, "nothing"), (101, "more than 100 bytes")])
def test_sizes(tmp_path: Path, size: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_secret("x", Secret(file=private(tmp_path / "s", bytes(size))), 100)


def test_descriptor_is_read_once_and_stays_open() -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, VALUE)
    os.close(write_end)
    assert read_secret("x", Secret(descriptor=read_end), 100) == VALUE
    with pytest.raises(InputError, match="nothing"):
        read_secret("x", Secret(descriptor=read_end), 100)
    os.close(read_end)
    with pytest.raises(InputError, match="is not open"):
        read_secret("x", Secret(descriptor=read_end), 100)


def test_descriptor_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_sources, "DEADLINE_S", 0.1)
    read_end, write_end = os.pipe()
    os.write(write_end, b"a")
    with pytest.raises(InputError, match="did not answer in time"):
        read_secret("x", Secret(descriptor=read_end), 100)
    os.close(read_end)
    os.close(write_end)


def test_command_runs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own session, no terminal, no input, few variables, no descriptors of ours."""
    monkeypatch.setenv("PLANTED", "in the environment")
    keep = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(keep, True)
    script = (
        "cut -d' ' -f6 /proc/$$/stat; echo $$; env | cut -d= -f1 | tr '\\n' ' '; echo; ls /proc/self/fd | wc -l; cat"
    )
    session, pid, names, descriptors = read_secret("x", Secret(command=("/bin/sh", "-c", script)), 1000).split(b"\n")[
        :4
    ]
    os.close(keep)
    assert session == pid
    assert b"PLANTED" not in names.split()
    assert b"PATH" in names.split()
    assert int(descriptors) <= 4, "standard input, output, error, and ls's own"


@pytest.mark.parametrize(
    ("command", "kind", "message"),
    [
        (("/nonexistent/program",), HostError, "cannot be run"),
        (("/bin/sh", "-c", "echo half; exit 3"), HostError, "status 3"),
        (("/bin/sh", "-c", "yes"), InputError, "more than 100 bytes"),
        (("/bin/true",), InputError, "nothing"),
    ],
)
def test_command_that_fails(command: tuple[str, ...], kind: type[CasemateError], message: str) -> None:
    with pytest.raises(kind, match=message):
        read_secret("x", Secret(command=command), 100)


def test_command_that_hangs_dies_with_all_its_children(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(secret_sources, "DEADLINE_S", 0.3)
    note = tmp_path / "pid"
    script = f"sleep 600 & echo $! >{note}; wait"
    with pytest.raises(InputError, match="in time"):
        read_secret("x", Secret(command=("/bin/sh", "-c", script)), 100)
    pid = int(note.read_text())
    for _ in range(200):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except FileNotFoundError:
            return
        if stat.rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.01)
    pytest.fail("a child of the command lives on")


def test_age_file(tmp_path: Path) -> None:
    if shutil.which("age") is None:
        pytest.skip("age is not installed")
    subprocess.run(["age-keygen", "-o", tmp_path / "key"], check=True, capture_output=True)
    recipient = next(word for word in (tmp_path / "key").read_text().split() if word.startswith("age1"))
    subprocess.run(["age", "-r", recipient, "-o", tmp_path / "s.age"], input=VALUE, check=True)
    secret = Secret(age=str(tmp_path / "s.age"), identity=str(tmp_path / "key"))
    assert read_secret("x", secret, 100) == VALUE
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(InputError, match="open to others"):
        read_secret("x", secret, 100)


def test_age_file_for_another_key(tmp_path: Path) -> None:
    if shutil.which("age") is None:
        pytest.skip("age is not installed")
    for name in ("key", "other"):
        subprocess.run(["age-keygen", "-o", tmp_path / name], check=True, capture_output=True)
    recipient = next(word for word in (tmp_path / "key").read_text().split() if word.startswith("age1"))
    subprocess.run(["age", "-r", recipient, "-o", tmp_path / "s.age"], input=VALUE, check=True)
    with pytest.raises(HostError, match="age failed"):
        read_secret("x", Secret(age=str(tmp_path / "s.age"), identity=str(tmp_path / "other")), 100)


def test_systemd_creds_file(tmp_path: Path) -> None:
    """Sealed under the null key: a host key would be made on this machine for good."""
    if shutil.which("systemd-creds") is None:
        pytest.skip("systemd-creds is not installed")
    command = ["systemd-creds", "encrypt", "--with-key=tpm2-absent", "--name=db", "-", str(tmp_path / "s.cred")]
    done = subprocess.run(command, input=VALUE, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"systemd-creds cannot encrypt without a host key: {done.stderr.decode()[:200]}")
    assert read_secret("db", Secret(systemd_creds=str(tmp_path / "s.cred")), 100) == VALUE
    with pytest.raises(HostError, match="systemd-creds failed"):
        read_secret("other", Secret(systemd_creds=str(tmp_path / "s.cred")), 100)


def test_missing_programs_name_their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_sources, "_AGE", ("/nonexistent/age",))
    with pytest.raises(HostError, match="age is missing") as caught:
        read_secret("x", Secret(age="/x", identity="/y"), 100)
    assert caught.value.next_step == "apt-get install age"


def test_sealed_memory_is_read_only_for_good() -> None:
    descriptor = sealed("x", bytearray(VALUE))
    assert os.pread(descriptor, 100, 0) == VALUE
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(descriptor, b"y")
    with pytest.raises(PermissionError):
        os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_TRUNC)
    again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
    with pytest.raises(PermissionError):
        os.pwrite(again, b"y", 0)
    os.close(again)
    os.close(descriptor)
