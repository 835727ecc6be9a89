"""The real supervisor program over a fake emulator: no root, no KVM, the real confinement.

A child of the test starts the fake (as the launch starts QEMU: as its own child), hands itself the same configuration
that ``engine/start.py`` writes, and executes the same interpreter with the same arguments.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from tests.support import fake_qemu

import casemate
from casemate.engine import state
from casemate.engine.files import take_lock
from casemate.jail.compile import compile_profile
from casemate.jail.profiles import supervisor_profile
from casemate.sys.process import start_time_ticks

_PROGRAM = compile_profile(supervisor_profile(), os.uname().machine)


class Supervised:
    """One supervisor, one fake."""

    def __init__(self, directory: Path, mode: str = "normal", **config: Any) -> None:
        self.runtime, self.data = directory / "run", directory / "data"
        for path in (self.runtime, self.data, self.runtime / "root"):
            path.mkdir(parents=True)
        (self.data / "run.json").write_text("{}")
        read_end, write_end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(read_end)
                self._become(mode, write_end, config)
            except BaseException as fault:
                os.write(write_end, f"{type(fault).__name__}: {fault}".encode())
            os._exit(99)
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            word = pipe.read()
        assert word.isdigit(), word
        self.emulator_pid = int(word)
        self.pidfd = os.pidfd_open(self.pid)

    def _become(self, mode: str, word: int, config: dict[str, Any]) -> None:
        process, qmp, console, log = fake_qemu.spawn(mode, greet=False)
        listener = socket.socket(socket.AF_UNIX)
        os.chdir(self.runtime)
        listener.bind("control.sock")
        listener.listen(128)
        lock = take_lock(str(self.runtime / "lock"), wait=False)
        assert lock is not None
        running = {
            "id": "0123456789abcdef",
            "name": "fake",
            "phase": "running",
            "supervisor": {"name": "casemate-sup", "pid": os.getpid(), "start_ticks": start_time_ticks(os.getpid())},
            "emulator": {"name": "qemu", "pid": process.pid, "start_ticks": start_time_ticks(process.pid)},
            "helpers": [],
            "uid": os.getuid(),
            "gid": os.getgid(),
            "accel": "tcg",
            "started_at": state.now(),
            "cgroups": [],
            "console": "serial",
            "health": [],
        }
        pidfd = os.pidfd_open(process.pid)
        keep = [qmp.fileno(), console.fileno(), log, listener.fileno(), pidfd, lock]
        helpers = {}
        for name, command in config.pop("helpers", {}).items():  # each ends as its shell command says
            helper = os.pidfd_open(os.posix_spawn("/bin/sh", ["sh", "-c", command], {}))
            helpers[str(helper)] = name
            keep.append(helper)
        full = {
            "runtime": str(self.runtime),
            "data": str(self.data),
            "accel": "tcg",
            "console_fd": console.fileno(),
            "qmp_fd": qmp.fileno(),
            "log_fd": log,
            "listener_fd": listener.fileno(),
            "pidfd": pidfd,
            "helper_pidfds": helpers,
            "inherited_fds": keep,
            "lock_fds": [lock],
            "console_log_max_bytes": 65536,
            "timeout_s": None,
            "stop_grace_s": 5.0,
            "runtime_check_s": 30.0,
            "remove_on_exit": False,
            "state": running,
            "early_log": "",
            "early_qmp": "",
            "writable": [str(self.runtime), str(self.data)],
            "seccomp_program": base64.b64encode(_PROGRAM).decode(),
            **config,
        }
        (self.runtime / "state.json").write_text(json.dumps(running))
        handover = os.memfd_create("handover")
        os.write(handover, json.dumps(full).encode())
        os.lseek(handover, 0, os.SEEK_SET)
        for descriptor in (*keep, handover):
            os.set_inheritable(descriptor, True)
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        words = os.open(self.data / "supervisor.log", os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(words, 2)
        os.write(word, str(process.pid).encode())
        os.close(word)
        source = str(Path(casemate.__file__).parents[1])
        code = f"import sys; sys.path.insert(0, {source!r}); from casemate.engine.supervise import main"
        code += f"; main({handover})"
        os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", code], {"LC_ALL": "C.UTF-8"})

    def connect(self) -> socket.socket:
        """A connection with a deadline."""
        connection = socket.socket(socket.AF_UNIX)
        here = os.open(self.runtime, os.O_PATH)
        try:
            connection.connect(f"/proc/self/fd/{here}/control.sock")  # blocks while the backlog is full
        finally:
            os.close(here)
        connection.settimeout(30)
        return connection

    def ask(self, verb: str, **fields: Any) -> dict[str, Any]:
        """One request on a connection of its own."""
        with self.connect() as connection:
            connection.sendall(json.dumps({"do": verb, **fields}).encode() + b"\n")
            return read_line(connection)

    def attach(self) -> socket.socket:
        """The console."""
        connection = self.connect()
        connection.sendall(b'{"do": "attach"}\n')
        assert read_line(connection) == {"ok": True}
        return connection

    def order(self, command: str) -> None:
        """Steer the fake through its console."""
        with self.attach() as console:
            console.sendall(f"!{command}\n".encode())
            console.settimeout(0.3)
            try:  # closing at once could lose what the console has not taken yet
                while console.recv(65536):
                    pass
            except (TimeoutError, ConnectionError):
                return

    def wait_exit(self, deadline_s: float = 60.0) -> dict[str, Any]:
        """Until the supervisor has ended by itself; gives exit.json."""
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        assert poller.poll(deadline_s * 1000), f"still running; {self.words()}"
        _, status = os.waitpid(self.pid, 0)
        self.pid = -1
        assert status == 0, f"wait status {status}: {self.words()}"
        return self.read("exit.json")

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the data directory."""
        found: dict[str, Any] = json.loads((self.data / name).read_text())
        return found

    def phase(self) -> str:
        """What state.json says."""
        return str(json.loads((self.runtime / "state.json").read_text())["phase"])

    def events(self) -> list[dict[str, Any]]:
        """events.jsonl, both halves."""
        lines = []
        for name in ("events.jsonl.1", "events.jsonl"):
            if (self.data / name).exists():
                lines += (self.data / name).read_text().splitlines()
        return [json.loads(line) for line in lines]

    def words(self) -> str:
        """What the supervisor said on standard error."""
        return (self.data / "supervisor.log").read_text()[-2000:]

    def rss_kib(self) -> int:
        """Resident memory of the supervisor."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise AssertionError("no VmRSS")

    def end(self) -> None:
        """Kill what is left."""
        if self.pid > 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.emulator_pid, signal.SIGKILL)
            poller = select.poll()
            poller.register(self.pidfd, select.POLLIN)
            if not poller.poll(5000):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.pidfd)


def read_line(connection: socket.socket) -> dict[str, Any]:
    """One JSON line from a connection; ConnectionError at its end."""
    data = bytearray()
    while not data.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            raise ConnectionError(f"closed after {bytes(data)!r}")
        data += byte
    found: dict[str, Any] = json.loads(data)
    return found


def until(condition: Any, deadline_s: float = 30.0) -> Any:
    """Poll until true."""
    end = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < end, "the condition never came true"
        time.sleep(0.005)
    return found
