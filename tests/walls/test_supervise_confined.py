"""The supervisor's own wall, read back from the live process and attacked from inside."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import errno
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.supervised import Supervised, until

import casemate
from casemate.engine.confine import confine_supervisor
from casemate.jail.compile import compile_profile
from casemate.jail.profiles import supervisor_profile
from casemate.sys.landlock import landlock_abi

pytestmark = pytest.mark.wall
needs_landlock = pytest.mark.skipif(landlock_abi() < 1, reason="this kernel has no Landlock")
SURVIVED, REFUSED = 0, 3
ENGINE = ("client", "confine", "consolelink", "qmp", "qmplink", "ringlog", "serving", "supervise", "vmexit")
SYS = ("caps", "landlock", "libc", "process", "seccomp")


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[Supervised]:
    """A running supervisor."""
    found = Supervised(tmp_path / "vm")
    found.ask("status")
    yield found
    found.end()


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_read_back(vm: Supervised) -> None:
    found = status(vm.pid)
    assert found["Name"] == "casemate-sup"
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"
    assert int(found["Seccomp_filters"]) == int(status(os.getpid())["Seccomp_filters"]) + 1
    assert found["Threads"] == "1"
    for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(found[kind], 16) == 0, kind
    if os.geteuid() == 0:
        assert int(found["CapBnd"], 16) == 0
    limits = Path(f"/proc/{vm.pid}/limits").read_text()
    assert "Max core file size        0                    0" in limits
    assert Path(f"/proc/{vm.pid}/environ").read_bytes() == b"LC_ALL=C.UTF-8\0"


def test_descriptors_are_the_few_it_needs(vm: Supervised) -> None:
    def names() -> list[str]:
        links = []
        for number in os.listdir(f"/proc/{vm.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                links.append(os.readlink(f"/proc/{vm.pid}/fd/{number}"))
        return [link.split(":")[0].rsplit("/", 1)[-1] for link in links]

    own = {"console.log", "emulator.log", "events.jsonl", "supervisor.log", "lock", "null", "anon_inode"}
    until(lambda: names().count("socket") == 3)  # QMP, console, control; the client that asked has gone
    assert set(names()) == {*own, "pipe", "socket"}


class Inside:
    """Code that runs in a child which has confined itself as the supervisor does."""

    def __init__(self, base: Path) -> None:
        self.own, self.other = base / "vms" / "own", base / "vms" / "other"
        for path in (self.own, self.other):
            path.mkdir(parents=True)
            (path / "state.json").write_text("{}")
        (self.other / "empty").mkdir()
        self.program = compile_profile(supervisor_profile(), os.uname().machine)
        self.bystander = subprocess.Popen(["/bin/sleep", "600"])

    def run(self, attack: Callable[[], Any], *, seccomp: bool = True) -> int:
        """How the child ends: 0 the attack worked, 3 it was refused with an errno, minus a signal."""
        child = os.fork()
        if child == 0:
            try:
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                confine_supervisor(
                    {
                        "writable": [str(self.own)],
                        "state": {"cgroups": []},
                        "seccomp_program": base64.b64encode(self.program).decode() if seccomp else "",
                    }
                )
                attack()
                os._exit(SURVIVED)
            except OSError as fault:
                os._exit(REFUSED if fault.errno in {errno.EACCES, errno.EPERM, errno.EXDEV} else 4)
            except BaseException:
                os._exit(5)
        _, code = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(code)


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Inside]:
    """The child's world."""
    found = Inside(tmp_path)
    yield found
    found.bystander.kill()
    found.bystander.wait()


def test_its_own_work_is_possible(inside: Inside) -> None:
    def work() -> None:
        path = str(inside.own / "exit.json")
        descriptor = os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.write(descriptor, b"{}")
        os.fsync(descriptor)
        os.close(descriptor)
        os.rename(path + ".tmp", path)
        os.unlink(path)
        os.unlink(str(inside.own / "state.json"))
        os.rmdir(str(inside.own))

    assert inside.run(work) == SURVIVED


@needs_landlock
@pytest.mark.parametrize("seccomp", [True, False])
def test_files_that_are_not_its_own_are_refused(inside: Inside, seccomp: bool) -> None:
    other = str(inside.other)
    attacks: list[Callable[[], Any]] = [
        lambda: os.open("/etc/passwd", os.O_RDONLY),
        lambda: os.open("/proc/1/status", os.O_RDONLY),
        lambda: os.open(f"{other}/state.json", os.O_RDONLY),
        lambda: os.open(f"{other}/state.json", os.O_WRONLY | os.O_TRUNC),
        lambda: os.open(f"{other}/new", os.O_WRONLY | os.O_CREAT, 0o600),
        lambda: os.unlink(f"{other}/state.json"),
        lambda: os.rename(f"{other}/state.json", f"{inside.own}/stolen"),
        lambda: os.rename(f"{inside.own}/state.json", f"{other}/planted"),
        lambda: os.listdir("/"),
        lambda: os.open(sys.executable, os.O_RDONLY),
    ]
    for number, attack in enumerate(attacks):
        assert inside.run(attack, seccomp=seccomp) == REFUSED, number
    assert (inside.other / "state.json").read_text() == "{}"


def test_calls_it_has_no_use_for_kill_it(inside: Inside) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    attacks: dict[str, Callable[[], Any]] = {
        "execve": lambda: os.execv("/bin/true", ["true"]),
        "fork": os.fork,
        "socket": lambda: socket.socket(socket.AF_INET),
        "socket unix": lambda: socket.socket(socket.AF_UNIX),
        "ptrace": lambda: libc.ptrace(16, inside.bystander.pid, 0, 0),
        "mount": lambda: libc.mount(b"x", b"/mnt", b"tmpfs", 0, 0),
        "kill": lambda: os.kill(inside.bystander.pid, signal.SIGKILL),
        "pidfd_open": lambda: os.pidfd_open(inside.bystander.pid),
        "unshare": lambda: libc.unshare(0x10000000),
        "chmod": lambda: os.chmod(inside.own, 0o777),
        "symlink": lambda: os.symlink("/etc/passwd", f"{inside.own}/link"),
        "memfd": lambda: os.memfd_create("x"),
    }
    for name, attack in attacks.items():
        assert inside.run(attack) == -signal.SIGSYS, name
    assert inside.bystander.poll() is None


def test_memory_that_can_be_executed_is_refused(inside: Inside) -> None:
    import mmap

    def attack() -> None:
        mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)

    assert inside.run(attack) in {-signal.SIGSYS, REFUSED}


def test_it_imports_little() -> None:
    """Each module is paid for once per VM (docs/adr/0001): nothing third-party, nothing that pulls in a library."""
    source = str(Path(casemate.__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {source!r}); import casemate.engine.supervise; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"typing", "dataclasses", "pathlib", "contextlib", "inspect", "ast", "threading", "subprocess"}
    assert not loaded & {"msgspec", "traceback", "logging", "tempfile", "shutil", "datetime", "random", "hashlib"}
    ours = {name for name in loaded if name.startswith("casemate.") and name.count(".") > 1}
    assert ours <= {f"casemate.engine.{name}" for name in ENGINE} | {f"casemate.sys.{name}" for name in SYS}
    assert len(loaded) < 95
