"""A process that stands in for QEMU: QMP on one inherited socket, a console on another, its log on standard error.

It is run as a program (``python fake_qemu.py QMP_FD CONSOLE_FD MODE``) and needs nothing but the standard library. The
console echoes what it gets, except for lines that begin with ``!``, which a test steers it by::

    !print TEXT      write TEXT and a newline to the console     !exit N     end with status N
    !event JSON      send this QMP message                       !signal N   kill itself with signal N
    !say TEXT        write TEXT to the log                       !flood N    write N MiB to the console
    !log-flood N     write N MiB to the log

Modes: ``normal`` powers off on system_powerdown; the others misbehave on purpose:

    stubborn       ignores system_powerdown         wrong-ids     answers questions that nobody asked, late ones too
    mute           never answers                    event-flood   sends events for ever
    deaf           does not even read QMP           stop-flood    STOP and RESUME for ever
    endless-line   a QMP line without end           drip          an endless line, a byte at a time
    deep           nested 100,000 deep              not-json      noise
    not-object     a JSON array                     huge-reply    2 MB as an answer
    error          refuses every command            late          answers after the supervisor gave up
    absent         reads neither QMP nor console
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

GREETING = {"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "fake"}, "capabilities": []}}
STATS = [{"device": "disk0", "stats": {"rd_bytes": 1, "wr_bytes": 2}}]
LATE_S = 6.0


class FakeQemu:
    """The state of one fake machine."""

    def __init__(self, qmp: socket.socket, console: socket.socket, mode: str) -> None:
        self.qmp = qmp
        self.console = console
        self.mode = mode
        self.requests = bytearray()
        self.typed = bytearray()
        self.running = True
        self.handlers: dict[str, Callable[[], Any]] = {
            "qmp_capabilities": self._nothing,
            "cont": self._cont,
            "stop": self._stop,
            "system_powerdown": self._powerdown,
            "query-blockstats": self._stats,
            "query-status": self._status,
            "quit": self._quit,
        }

    def run(self) -> None:
        """Until a command, or the end of both sockets, ends it."""
        self.misbehave()
        if self.mode == "absent":
            signal.pause()
        watched = [self.console] if self.mode == "deaf" else [self.qmp, self.console]
        while watched:
            for ready in select.select(watched, [], [])[0]:
                data = ready.recv(65536)
                if not data:
                    watched.remove(ready)
                elif ready is self.qmp:
                    self.requests += data
                    self._requests()
                else:
                    self._typed(data)

    def send(self, message: Any) -> None:
        """One QMP line."""
        self.qmp.sendall(json.dumps(message).encode() + b"\r\n")

    def event(self, name: str, **data: Any) -> None:
        """One QMP event."""
        self.send({"event": name, "data": data, "timestamp": {"seconds": 0, "microseconds": 0}})

    def misbehave(self) -> None:
        """What a hostile mode does before anything else; floods end when the other side is gone."""
        mode = self.mode
        if mode == "endless-line":
            while True:
                self.qmp.sendall(b'{"event": "' + b"A" * 65536)
        elif mode == "drip":
            while True:
                self.qmp.sendall(b"A")
        elif mode == "deep":
            self.qmp.sendall(b"[" * 100_000 + b"]" * 100_000 + b"\n")
        elif mode == "not-json":
            self.qmp.sendall(b"\xff\xfe{]\n")
        elif mode == "not-object":
            self.qmp.sendall(b'["SHUTDOWN"]\n')
        elif mode in {"event-flood", "stop-flood"}:
            self._flood(("RESET",) if mode == "event-flood" else ("STOP", "RESUME"))

    def _flood(self, names: tuple[str, ...]) -> None:
        lines = "".join(json.dumps({"event": name, "data": {"guest": True}}) + "\n" for name in names)
        block = lines.encode() * 100
        for _ in range(300):
            self.qmp.sendall(block)

    def _requests(self) -> None:
        while (end := self.requests.find(b"\n")) >= 0:
            line = bytes(self.requests[:end])
            del self.requests[: end + 1]
            request = json.loads(line)
            self._answer(request["execute"], request.get("id"))

    def _answer(self, name: str, identifier: Any) -> None:
        if self.mode == "mute":
            return
        if self.mode == "late":
            time.sleep(LATE_S)
        if self.mode == "wrong-ids":
            for wrong in (0, -1, True, "1001", None, [identifier], {"a": 1}, 10**30, identifier + 500):
                self.send({"return": "forged", "id": wrong})
            self.send({"return": "forged"})
        if self.mode == "error":
            self.send({"error": {"class": "GenericError", "desc": "not today"}, "id": identifier})
            return
        if self.mode == "huge-reply":
            self.send({"return": "A" * 2_000_000, "id": identifier})
            return
        handler = self.handlers.get(name)
        if handler is None:
            self.send({"error": {"class": "CommandNotFound", "desc": f"no {name}"}, "id": identifier})
            return
        self.send({"return": handler(), "id": identifier})
        if name == "system_powerdown" and self.mode != "stubborn":
            self.event("SHUTDOWN", guest=True, reason="guest-shutdown")
            sys.exit(0)

    def _stats(self) -> Any:
        return STATS

    def _status(self) -> dict[str, Any]:
        return {"running": self.running}

    def _quit(self) -> Any:
        sys.exit(0)

    def _nothing(self) -> dict[str, Any]:
        return {}

    def _cont(self) -> dict[str, Any]:
        if not self.running:
            self.running = True
            self.event("RESUME")
        return {}

    def _stop(self) -> dict[str, Any]:
        if self.running:
            self.running = False
            self.event("STOP")
        return {}

    def _powerdown(self) -> dict[str, Any]:
        self.event("POWERDOWN")
        return {}

    def _typed(self, data: bytes) -> None:
        self.typed += data
        while (end := self.typed.find(b"\n")) >= 0:
            line = bytes(self.typed[: end + 1])
            del self.typed[: end + 1]
            if line.startswith(b"!"):
                self._command(line[1:].strip().decode())
            else:
                self.console.sendall(line)

    def _command(self, line: str) -> None:
        verb, _, rest = line.partition(" ")
        if verb == "print":
            self.console.sendall(rest.encode() + b"\n")
        elif verb == "event":
            self.qmp.sendall(rest.encode() + b"\n")
        elif verb == "say":
            os.write(2, rest.encode() + b"\n")
        elif verb == "exit":
            sys.exit(int(rest))
        elif verb == "signal":
            os.kill(os.getpid(), int(rest))
        elif verb == "log-flood":
            for _ in range(int(rest) * 1024):
                os.write(2, b"y" * 1023 + b"\n")
        elif verb == "flood":
            for _ in range(int(rest) * 1024):
                self.console.sendall(b"x" * 1023 + b"\n")


def spawn(
    mode: str = "normal", *, greet: bool = True
) -> tuple[subprocess.Popen[bytes], socket.socket, socket.socket, int]:
    """Start one.

    Returns:
        the process, our ends of QMP and console, and the read end of its log.
    """
    qmp, their_qmp = socket.socketpair()
    console, their_console = socket.socketpair()
    log, their_log = os.pipe()
    fds = (their_qmp.fileno(), their_console.fileno())
    word = "greet" if greet else "released"
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, *map(str, fds), mode, word], pass_fds=fds, stderr=their_log
    )
    their_qmp.close()
    their_console.close()
    os.close(their_log)
    return process, qmp, console, log


def main() -> None:
    """Run as a program."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    fake = FakeQemu(socket.socket(fileno=int(sys.argv[1])), socket.socket(fileno=int(sys.argv[2])), sys.argv[3])
    if sys.argv[4] == "greet":
        fake.send(GREETING)
    fake.run()


if __name__ == "__main__":
    main()
