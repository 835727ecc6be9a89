"""The control socket of a running VM: who may connect, what they may ask, and how slow they may be.

One JSON object per line. Request ``{"do": VERB, ...}``; answer ``{"ok": true, ...}`` or ``{"error": TEXT}``. A
connection has one request under way at a time; the next line waits. Verbs:

    status                 phase, health, console_dropped_bytes
    attach                 from here on the connection carries the console's bytes, both ways
    stop {grace_s}         power button, then kill      } the connection stays open until the run has ended and is
    kill                   kill now                     } cleaned up; the last line is then
    wait                   nothing                      } ``{"exited": {"reason", "code", "detail", "finished_at"}}``
    save                   with a pipe by SCM_RIGHTS: write the state into it; the answer comes when it is written
    overlays               after that: the answer brings the disks' overlays, open for reading (SCM_RIGHTS)
    saved {end}            the state is safe: end the VM, or let it go on (as it does when the connection closes)
    pause, unpause, stats  passed on to the emulator; ``result`` is its answer
    keys                   the answer brings the host's end of the port to a key broker (SCM_RIGHTS)
    look {question, arguments}  a question out of `LOOKS`, passed on as well: none of them changes anything

Everything is bounded: connections, request length, bytes waiting for a slow reader, bytes waiting for the guest, the
time until a connection's first request. An attached client that falls behind slows the console down, as a serial line
does, but only while it takes `SLOWEST_BYTES` in each `STALL_S`; then it is dropped: nobody waits for one that sleeps.
Standard library only.
"""

from __future__ import annotations

import json
import math
import os
import select
import socket
import struct
import time

from casemate.engine import qmp
from casemate.engine.client import Client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from casemate.engine.savetask import SaveTask

    class Machine(Protocol):
        """What the verbs act on: the supervisor."""

        phase: str
        health: list[str]

        def stop(self, grace_s: float) -> None: ...
        def kill(self) -> None: ...
        def ask(
            self, name: str, answer: Any, arguments: dict[str, Any] | None = None, *, descriptor: int = -1
        ) -> None: ...
        def end_saved(self) -> None: ...
        def note_fault(self, words: str) -> None: ...

        keys_fd: int
        overlay_fds: list[int]

        def clone_port(self) -> socket.socket | None: ...
        def dropped_bytes(self) -> int: ...
        def console_input(self, data: bytes) -> None: ...
        def console_is_full(self) -> bool: ...
        def watch(self, descriptor: int, events: int, handler: Any) -> None: ...
        def rewatch(self, descriptor: int, events: int) -> None: ...
        def forget(self, descriptor: int) -> None: ...


CLIENTS_MAX = 16
REQUEST_MAX_BYTES = 4096
OUTPUT_MAX_BYTES = 256 * 1024
SLOWEST_BYTES = 64 * 1024
STALL_S = 1.0
LAST_FLUSH_S = 1.0
GRACE_MAX_S = 24 * 3600.0
LOOKS = {
    "qom-list": ("/machine", "/objects"),
    "qom-get": ("/machine", "/objects/entropy"),
    "query-kvm": (),
    "query-stats": (),
    "query-named-block-nodes": (),
}
"""QMP questions that clients may ask, and below which paths: the properties of other objects can be secrets."""


class ControlServer:
    """Serves ``listener`` for ``machine``."""

    def __init__(self, machine: Machine, listener: socket.socket, stop_grace_s: float) -> None:
        self.machine = machine
        self.listener = listener
        self.listener.setblocking(False)
        self.clients: dict[int, Client] = {}
        self._stop_grace_s = stop_grace_s
        self._verbs = {
            "status": self._status,
            "stop": self._stop,
            "kill": self._kill,
            "wait": self._wait,
            "attach": self._attach,
            "pause": self._pause,
            "unpause": self._unpause,
            "stats": self._stats,
            "look": self._look,
            "save": self._save,
            "overlays": self._overlays,
            "saved": self._saved,
            "keys": self._keys,
        }
        self._saver: Client | None = None
        self._task: SaveTask | None = None

    # ---- connections ------------------------------------------------------------------------------------------------

    def on_connection(self, descriptor: int, events: int) -> None:
        """Accept one."""
        try:
            connection, _ = self.listener.accept()
        except OSError:
            return
        _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in {0, os.getuid()}:
            connection.close()
            return
        connection.setblocking(False)
        if len(self.clients) >= CLIENTS_MAX and not self._make_room():
            self._turn_away(connection)
            return
        client = Client(connection)
        self.clients[client.descriptor] = client
        self.machine.watch(client.descriptor, select.POLLIN, self._on_client)

    def adopt(self, descriptor: int, *, attached: bool) -> None:
        """A connection made before the launch, as if it had asked to ``attach`` or to ``wait`` before all else."""
        connection = socket.socket(fileno=descriptor)
        connection.setblocking(False)
        client = Client(connection)
        client.idle_until = None
        client.attached, client.waits_for_exit = attached, not attached
        self.clients[descriptor] = client
        self.machine.watch(descriptor, select.POLLIN, self._on_client)

    def _turn_away(self, connection: socket.socket) -> None:
        try:
            connection.send(b'{"error": "too many connections to this VM"}\n')
        except OSError:
            return
        finally:
            connection.close()

    def _make_room(self) -> bool:
        """Drop the connection that has said nothing for longest: idle ones must not keep `stop` out."""
        silent = [client for client in self.clients.values() if client.idle_until is not None]
        if silent:
            self.drop(min(silent, key=lambda client: client.idle_until or 0.0))
        return bool(silent)

    def next_deadline(self) -> float | None:
        """When `expire` should be called next, on the monotonic clock."""
        moments = [moment for c in self.clients.values() for moment in (c.idle_until, c.stalled_until)]
        if self._task is not None:
            moments.append(self._task.at)
        return min((moment for moment in moments if moment is not None), default=None)

    def expire(self, now: float) -> None:
        """Drop connections that never asked anything, and those that hold the console up and take too little."""
        if self._task is not None:
            self._task.expire(now)
        for client in list(self.clients.values()):
            if client.idle_until is not None and now >= client.idle_until:
                self.drop(client)
            elif client.stalled_until is not None and now >= client.stalled_until:
                if client.taken_bytes < SLOWEST_BYTES:
                    self.drop(client)
                else:
                    client.stalled_until, client.taken_bytes = now + STALL_S, 0

    def is_congested(self) -> bool:
        """Whether an attached client is so far behind that the console should not be read now."""
        return any(client.is_congested for client in self.clients.values())

    def broadcast(self, data: bytes) -> None:
        """Console output for everyone who is attached."""
        for client in list(self.clients.values()):
            if client.attached:
                self._send(client, data)

    def input_has_room(self) -> None:
        """The guest has read: attached clients may send again."""
        for client in list(self.clients.values()):
            self._update(client)

    def end(self, exited: dict[str, Any]) -> None:
        """The run is over and cleaned up: tell those who wait, let everyone go."""
        for client in list(self.clients.values()):
            if client.waits_for_exit:
                self._send(client, json.dumps({"exited": exited}).encode() + b"\n")
        self._flush_all(LAST_FLUSH_S)
        for client in list(self.clients.values()):
            self.drop(client)

    def _flush_all(self, deadline_s: float) -> None:
        """The guest's last words are still on their way to some."""
        end = time.monotonic() + deadline_s
        while (late := [client for client in self.clients.values() if client.output]) and time.monotonic() < end:
            poller = select.poll()
            for client in late:
                poller.register(client.descriptor, select.POLLOUT)
            poller.poll(max(0.0, end - time.monotonic()) * 1000)
            for client in late:
                self._flush(client)

    def drop(self, client: Client) -> None:
        """Close a connection."""
        if client.open:
            client.open = False
            client.close_passed()
            if client is self._saver and self._task is not None and self._task.written:
                self._settle(end=False)
            self.machine.forget(client.descriptor)
            self.clients.pop(client.descriptor, None)
            client.socket.close()

    def _on_client(self, descriptor: int, events: int) -> None:
        client = self.clients[descriptor]
        if events & select.POLLOUT:
            self._flush(client)
        if not client.open or not events & (select.POLLIN | select.POLLHUP | select.POLLERR):
            return
        try:
            data = client.receive()
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.drop(client)
        elif client.attached:
            self.machine.console_input(data)
            self._update(client)
        else:
            client.request += data
            self._parse(client)

    # ---- requests ---------------------------------------------------------------------------------------------------

    def _parse(self, client: Client) -> None:
        while client.open and not client.busy and not client.attached:
            end = client.request.find(b"\n")
            if end < 0 or end > REQUEST_MAX_BYTES:
                break
            line = bytes(client.request[:end])
            del client.request[: end + 1]
            client.idle_until = None
            self._answer(client, line)
        if client.open and not client.attached and not client.busy and len(client.request) > REQUEST_MAX_BYTES:
            self._reply(client, error=f"a request of more than {REQUEST_MAX_BYTES} bytes")
            self.drop(client)
        self._update(client)

    def _answer(self, client: Client, line: bytes) -> None:
        try:
            request = qmp.parse_line(line, REQUEST_MAX_BYTES)
        except qmp.QmpError:
            self._reply(client, error="a request is one JSON object per line")
            return
        name = request.get("do")
        verb = self._verbs.get(name) if isinstance(name, str) else None
        if verb is None:
            self._reply(client, error=f"no such request: {str(name)[:40]}")
            return
        verb(client, request)

    def _status(self, client: Client, request: dict[str, Any]) -> None:
        machine = self.machine
        self._reply(client, phase=machine.phase, health=machine.health, console_dropped_bytes=machine.dropped_bytes())

    def _stop(self, client: Client, request: dict[str, Any]) -> None:
        grace = request.get("grace_s")
        if grace is None:
            grace = self._stop_grace_s
        if isinstance(grace, bool) or not isinstance(grace, (int, float)) or not math.isfinite(grace) or grace < 0:
            self._reply(client, error="grace_s is a number of seconds, 0 or more")
            return
        client.waits_for_exit = True
        self._reply(client)
        self.machine.stop(min(float(grace), GRACE_MAX_S))

    def _kill(self, client: Client, request: dict[str, Any]) -> None:
        client.waits_for_exit = True
        self._reply(client)
        self.machine.kill()

    def _wait(self, client: Client, request: dict[str, Any]) -> None:
        client.waits_for_exit = True
        self._reply(client)

    def _attach(self, client: Client, request: dict[str, Any]) -> None:
        self._reply(client)
        if client.open:
            client.attached = True
            if client.request:
                self.machine.console_input(bytes(client.request))
                client.request.clear()

    def _pause(self, client: Client, request: dict[str, Any]) -> None:
        self._relay(client, "stop")

    def _unpause(self, client: Client, request: dict[str, Any]) -> None:
        self._relay(client, "cont")

    def _stats(self, client: Client, request: dict[str, Any]) -> None:
        self._relay(client, "query-blockstats")

    def _look(self, client: Client, request: dict[str, Any]) -> None:
        name, arguments = request.get("question"), request.get("arguments", {})
        paths = LOOKS.get(name) if isinstance(name, str) else None
        if paths is None or not isinstance(arguments, dict):
            self._reply(client, error=f"no such question: {str(name)[:40]}")
            return
        path = arguments.get("path", "")
        if paths and not (isinstance(path, str) and any(path == top or path.startswith(f"{top}/") for top in paths)):
            self._reply(client, error=f"not below {' or '.join(paths)}: {str(path)[:80]}")
            return
        self._relay(client, str(name), arguments)

    def _save(self, client: Client, request: dict[str, Any]) -> None:
        port, pipe = self.machine.clone_port(), client.passed
        if port is None or pipe < 0 or self._task is not None or self.machine.phase not in {"running", "paused"}:
            why = "this VM was not started as saveable" if port is None else "it cannot be saved now"
            self._reply(client, error=why if pipe >= 0 else "no pipe came along")
            return
        client.passed = -1
        client.busy = True

        def done(error: str, fields: dict[str, Any]) -> None:
            client.busy = False
            if error:
                self._task = self._saver = None
            elif not client.open:
                self._settle(end=False)
            if client.open:
                self._reply(client, error=error, result=fields)

        from casemate.engine.savetask import SaveTask  # loaded before this process shut itself in (supervise.main)

        self._saver = client
        self._task = SaveTask(self.machine, pipe, port, done)

    def _overlays(self, client: Client, request: dict[str, Any]) -> None:
        """They belong to the state: whoever saves it gets them, while the guest stands still."""
        if client is not self._saver or self._task is None or not self._task.written:
            self._reply(client, error="nothing of yours was saved")
            return
        try:
            socket.send_fds(client.socket, [b'{"ok": true}\n'], self.machine.overlay_fds)
        except OSError:
            self.drop(client)

    def _saved(self, client: Client, request: dict[str, Any]) -> None:
        if client is not self._saver or self._task is None or not self._task.written:
            self._reply(client, error="nothing of yours was saved")
            return
        self._reply(client)
        self._settle(end=request.get("end") is True)

    def _keys(self, client: Client, request: dict[str, Any]) -> None:
        """Lend the port: ours stays open, so that the next broker finds it as this one leaves it."""
        if self.machine.keys_fd < 0:
            self._reply(client, error="this VM has no port to a key broker: port = true in [keys]")
            return
        try:
            socket.send_fds(client.socket, [b'{"ok": true}\n'], [self.machine.keys_fd])
        except OSError:
            self.drop(client)

    def _settle(self, *, end: bool) -> None:
        task, self._task, self._saver = self._task, None, None
        if task is not None:
            task.settle(end=end)

    def _relay(self, client: Client, name: str, arguments: dict[str, Any] | None = None) -> None:
        def answer(message: dict[str, Any]) -> None:
            client.busy = False
            if not client.open:
                return
            try:
                self._reply(client, result=qmp.return_of(message, name))
            except qmp.QmpError as fault:
                self._reply(client, error=str(fault))
            if not in_call:
                self._parse(client)

        client.busy = True
        in_call = True
        self.machine.ask(name, answer, arguments)
        in_call = False

    # ---- output -----------------------------------------------------------------------------------------------------

    def _reply(self, client: Client, error: str = "", **fields: Any) -> None:
        message = {"error": error} if error else {"ok": True, **fields}
        self._send(client, json.dumps(message).encode() + b"\n")

    def _send(self, client: Client, data: bytes) -> None:
        if not client.open:
            return
        client.output += data
        self._flush(client)
        if len(client.output) > OUTPUT_MAX_BYTES:
            self.drop(client)  # a client that does not read must not hold the console up

    def _flush(self, client: Client) -> None:
        try:
            while client.output:
                sent = client.socket.send(client.output)
                del client.output[:sent]
                client.taken_bytes += sent
        except BlockingIOError:
            pass
        except OSError:
            self.drop(client)
            return
        self._update(client)

    def _update(self, client: Client) -> None:
        """Which events a client is polled for: no input while its request is under way or the guest does not read."""
        if not client.open:
            return
        if not client.is_congested:
            client.stalled_until = None
        elif client.stalled_until is None:
            client.stalled_until, client.taken_bytes = time.monotonic() + STALL_S, 0
        events = select.POLLOUT if client.output else 0
        held = self.machine.console_is_full() if client.attached else len(client.request) > REQUEST_MAX_BYTES
        if not held:
            events |= select.POLLIN
        self.machine.rewatch(client.descriptor, events)
