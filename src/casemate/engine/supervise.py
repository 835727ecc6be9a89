"""The supervisor of one running VM: a minimal interpreter that the launcher's process turns into by exec.

It is the parent of the emulator and of its helpers. It keeps the console log, serves clients of the control socket,
follows QMP events, enforces the time-out, and when the emulator ends writes down why and removes everything.

Standard library only, and little of it: twenty of these must stay below 8 MiB each. It confines itself first.

Control protocol: one JSON object per line. Request ``{"do": VERB, ...}``; answer ``{"ok": true, ...}`` or
``{"error": TEXT}``. After ``attach`` the connection carries the console's bytes; after ``stop``, ``kill`` and ``wait``
it stays open until the VM has ended.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import sys
import time

from casemate.engine import qmp, vmexit
from casemate.engine.confine import confine_supervisor
from casemate.engine.ringlog import RingLog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

CLIENTS_MAX = 16
REQUEST_MAX_BYTES = 4096
CLIENT_BUFFER_MAX_BYTES = 256 * 1024
INPUT_BUFFER_MAX_BYTES = 64 * 1024
EVENTS_MAX_BYTES = 256 * 1024
EMULATOR_LOG_MAX_BYTES = 256 * 1024
QMP_REPLY_S = 5.0
PANIC = b"Kernel panic - not syncing"


class Client:
    """One connection to the control socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.request = bytearray()
        self.output = bytearray()
        self.attached = False
        self.waits_for_exit = False


class Supervisor:
    """One VM. ``config`` is what the launcher hands over; see ``engine/start.py`` for its fields."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.runtime: str = config["runtime"]
        self.data: str = config["data"]
        self.phase = "running"
        self.verdict = vmexit.Verdict()
        self.clients: dict[int, Client] = {}
        self.health: list[str] = list(config["state"]["health"])
        self.console = socket.socket(fileno=config["console_fd"])
        self.console.setblocking(False)
        self.qmp = socket.socket(fileno=config["qmp_fd"])
        self.qmp.setblocking(False)
        self.log_fd: int = config["log_fd"]
        os.set_blocking(self.log_fd, False)
        self.listener = socket.socket(fileno=config["listener_fd"])
        self.listener.setblocking(False)
        self.pidfd: int = config["pidfd"]
        self.helpers: dict[int, str] = {int(fd): name for fd, name in config["helper_pidfds"].items()}
        self.console_log = RingLog(f"{self.data}/console.log", config["console_log_max_bytes"])
        self.emulator_log = RingLog(f"{self.data}/emulator.log", EMULATOR_LOG_MAX_BYTES)
        self.events = RingLog(f"{self.data}/events.jsonl", EVENTS_MAX_BYTES)
        self.reader = qmp.LineReader()
        self.replies: dict[int, tuple[float, Callable[[dict[str, Any]], None]]] = {}
        self.next_id = 1000
        self.console_input = bytearray()
        self.console_tail = b""
        self.deadline: float | None = None
        self.kill_at: float | None = None
        if config["timeout_s"] is not None:
            self.deadline = time.monotonic() + config["timeout_s"]
        self.poller = select.poll()
        self.handlers: dict[int, Callable[[int, int], None]] = {}
        self.signal_read, self.signal_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    # ---- loop -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until the emulator ends."""
        signal.set_wakeup_fd(self.signal_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        self._watch(self.console.fileno(), select.POLLIN, self._on_console)
        self._watch(self.qmp.fileno(), select.POLLIN, self._on_qmp)
        self._watch(self.log_fd, select.POLLIN, self._on_log)
        self._watch(self.listener.fileno(), select.POLLIN, self._on_connection)
        self._watch(self.signal_read, select.POLLIN, self._on_signal)
        self._watch(self.pidfd, select.POLLIN, self._on_emulator_exit)
        for descriptor in self.helpers:
            self._watch(descriptor, select.POLLIN, self._on_helper_exit)
        self.event("start", accel=self.config["accel"])
        while not self.verdict.ended:
            for descriptor, events in self.poller.poll(self._wait_ms()):
                handler = self.handlers.get(descriptor)
                if handler is not None:
                    handler(descriptor, events)
            self._check_timers()

    def _watch(self, descriptor: int, events: int, handler: Callable[[int, int], None]) -> None:
        self.poller.register(descriptor, events)
        self.handlers[descriptor] = handler

    def _forget(self, descriptor: int) -> None:
        if self.handlers.pop(descriptor, None) is not None:
            self.poller.unregister(descriptor)

    def _wait_ms(self) -> float | None:
        times = [t for t in (self.deadline, self.kill_at) if t is not None]
        times += [end for end, _ in self.replies.values()]
        return max(0.0, min(times) - time.monotonic()) * 1000 if times else None

    def _check_timers(self) -> None:
        now = time.monotonic()
        if self.deadline is not None and now >= self.deadline:
            self.deadline = None
            self.verdict.want("time-out", 6, f"--timeout-s {self.config['timeout_s']} ran out")
            self._kill()
        if self.kill_at is not None and now >= self.kill_at:
            self.kill_at = None
            self.verdict.note("killed after the grace period")
            self._kill()
        for identifier in [i for i, (end, _) in self.replies.items() if now >= end]:
            _, answer = self.replies.pop(identifier)
            answer({"error": {"desc": "the emulator did not answer in time"}})

    def _kill(self) -> None:
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return

    # ---- emulator ---------------------------------------------------------------------------------------------------

    def _on_console(self, descriptor: int, events: int) -> None:
        if events & select.POLLOUT:
            self._flush_input()
        if not events & (select.POLLIN | select.POLLHUP | select.POLLERR):
            return
        try:
            data = self.console.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._forget(descriptor)
            return
        self.console_log.append(data)
        seen = self.console_tail + data
        if PANIC in seen and not self.verdict.panicked:
            self.verdict.panicked = True
            self.event("panic")
        self.console_tail = seen[-len(PANIC) :]
        for client in list(self.clients.values()):
            if client.attached:
                self._send(client, data)

    def _flush_input(self) -> None:
        try:
            sent = self.console.send(self.console_input)
            del self.console_input[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self.console_input.clear()
        if not self.console_input and self.console.fileno() in self.handlers:
            self.poller.modify(self.console.fileno(), select.POLLIN)
            for client in self.clients.values():
                self._update(client)

    def _on_log(self, descriptor: int, events: int) -> None:
        try:
            data = os.read(descriptor, 65536)
        except BlockingIOError:
            return
        if data:
            self.emulator_log.append(data)
        else:
            self._forget(descriptor)

    def _on_qmp(self, descriptor: int, events: int) -> None:
        try:
            data = self.qmp.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._forget(descriptor)
            return
        try:
            messages = self.reader.feed(data)
        except qmp.QmpError as fault:
            self.verdict.want("emulator failed", 5, f"it broke the QMP protocol: {fault}")
            self._kill()
            return
        for message in messages:
            if isinstance(message.get("event"), str):
                self._on_event(message)
            elif isinstance(message.get("id"), int) and message["id"] in self.replies:
                self.replies.pop(message["id"])[1](message)

    def _on_event(self, message: dict[str, Any]) -> None:
        name = message["event"][:64]
        data = message.get("data")
        reason = str(data.get("reason", ""))[:64] if isinstance(data, dict) else ""
        if name == "SHUTDOWN":
            self.verdict.shutdown_reason = reason or "unknown"
        elif name in {"STOP", "RESUME"}:
            self.phase = "paused" if name == "STOP" and self.phase != "stopping" else "running"
            self.save_state()
        elif name == "RESET" and self.verdict.panicked:
            self.verdict.want("guest kernel panic", 5, "the guest panicked and reset itself")
            self._kill()
        self.event(name.lower(), reason=reason)

    def command(self, name: str, answer: Callable[[dict[str, Any]], None], **arguments: Any) -> None:
        """Send a QMP command; ``answer`` gets the reply, or an error after `QMP_REPLY_S`."""
        self.next_id += 1
        try:
            self.qmp.send(qmp.encode_command(name, arguments or None, self.next_id))
        except OSError as fault:
            answer({"error": {"desc": f"QMP cannot be written: {fault}"}})
            return
        self.replies[self.next_id] = (time.monotonic() + QMP_REPLY_S, answer)

    def _on_emulator_exit(self, descriptor: int, events: int) -> None:
        self._forget(descriptor)
        status = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        self._drain()
        code = status.si_status if status is not None else -1
        killed = status is None or status.si_code != os.CLD_EXITED
        self.verdict.end(code, killed=killed)

    def _drain(self) -> None:
        """What was still in the pipes when the emulator ended; the console fits in one socket buffer."""
        for _ in range(64):
            before = len(self.handlers)
            ready = dict(self.poller.poll(0))
            mine = [fd for fd in (self.console.fileno(), self.log_fd, self.qmp.fileno()) if fd in ready]
            for descriptor in mine:
                if descriptor in self.handlers:
                    self.handlers[descriptor](descriptor, ready[descriptor])
            if not mine or len(self.handlers) == before == 0:
                return

    def _on_helper_exit(self, descriptor: int, events: int) -> None:
        name = self.helpers[descriptor]
        self._forget(descriptor)
        try:
            status = os.waitid(os.P_PIDFD, descriptor, os.WEXITED)
            how = f"signal {status.si_status}" if status and status.si_code != os.CLD_EXITED else "it ended"
        except ChildProcessError:
            how = "it ended"
        self.health.append(f"{name} died ({how}): the VM has no network until it is restarted")
        self.event("helper-died", helper=name, how=how)
        self.save_state()

    def _on_signal(self, descriptor: int, events: int) -> None:
        try:
            os.read(descriptor, 64)
        except BlockingIOError:
            return
        self.stop(self.config["stop_grace_s"])

    def stop(self, grace_s: float) -> None:
        """Ask the guest to power off; kill it when ``grace_s`` has passed."""
        self.verdict.want("stopped", 0, "")
        self.phase = "stopping"
        self.save_state()
        if grace_s <= 0:
            self._kill()
            return
        end = time.monotonic() + grace_s
        self.kill_at = end if self.kill_at is None else min(self.kill_at, end)
        # A paused guest cannot hear the button.
        self.command("cont", lambda _: None)
        self.command("system_powerdown", lambda _: None)

    # ---- clients ----------------------------------------------------------------------------------------------------

    def _on_connection(self, descriptor: int, events: int) -> None:
        try:
            connection, _ = self.listener.accept()
        except OSError:
            return
        pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if len(self.clients) >= CLIENTS_MAX or uid not in {0, os.getuid()}:
            connection.close()
            return
        connection.setblocking(False)
        self.clients[connection.fileno()] = Client(connection)
        self._watch(connection.fileno(), select.POLLIN, self._on_client)

    def _on_client(self, descriptor: int, events: int) -> None:
        client = self.clients[descriptor]
        if events & select.POLLOUT:
            self._flush(client)
        if descriptor not in self.clients or not events & (select.POLLIN | select.POLLHUP | select.POLLERR):
            return
        try:
            data = client.socket.recv(16384)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
        elif client.attached:
            self.console_input += data
            self._flush_input()
            if self.console_input and self.console.fileno() in self.handlers:
                self.poller.modify(self.console.fileno(), select.POLLIN | select.POLLOUT)
            self._update(client)
        else:
            client.request += data
            self._parse(client)

    def _parse(self, client: Client) -> None:
        end = client.request.find(b"\n")
        if end < 0:
            if len(client.request) > REQUEST_MAX_BYTES:
                self._drop(client)
            return
        line = bytes(client.request[:end])
        del client.request[: end + 1]
        try:
            request = qmp.parse_line(line)
        except qmp.QmpError:
            self._reply(client, error="a request is one JSON object per line")
            return
        verb = getattr(self, f"do_{str(request.get('do')).replace('-', '_')}", None)
        if verb is None:
            self._reply(client, error=f"no such request: {str(request.get('do'))[:40]}")
            return
        verb(client, request)

    def do_status(self, client: Client, request: dict[str, Any]) -> None:
        """Phase, health and log counters."""
        self._reply(client, phase=self.phase, health=self.health, console_dropped_bytes=self.console_log.dropped_bytes)

    def do_stop(self, client: Client, request: dict[str, Any]) -> None:
        """Power button, then kill."""
        grace = request.get("grace_s")
        client.waits_for_exit = True
        self._reply(client)
        self.event("stop-requested")
        self.stop(float(grace) if isinstance(grace, (int, float)) else self.config["stop_grace_s"])

    def do_kill(self, client: Client, request: dict[str, Any]) -> None:
        """Kill the emulator now."""
        client.waits_for_exit = True
        self._reply(client)
        self.verdict.want("killed", 5, "casemate kill")
        self._kill()

    def do_wait(self, client: Client, request: dict[str, Any]) -> None:
        """Answer, and stay connected until the end."""
        client.waits_for_exit = True
        self._reply(client)

    def do_attach(self, client: Client, request: dict[str, Any]) -> None:
        """From here on the connection is the console."""
        self._reply(client)
        client.attached = True
        if client.request:
            self.console_input += client.request
            client.request.clear()
            self._flush_input()

    def do_pause(self, client: Client, request: dict[str, Any]) -> None:
        """Stop the vCPUs."""
        self._relay(client, "stop")

    def do_unpause(self, client: Client, request: dict[str, Any]) -> None:
        """Let the vCPUs run."""
        self._relay(client, "cont")

    def do_stats(self, client: Client, request: dict[str, Any]) -> None:
        """Block statistics of the emulator."""
        self._relay(client, "query-blockstats")

    def _relay(self, client: Client, name: str) -> None:
        def answer(message: dict[str, Any]) -> None:
            if client.socket.fileno() not in self.clients:
                return
            try:
                self._reply(client, result=qmp.return_of(message, name))
            except qmp.QmpError as fault:
                self._reply(client, error=str(fault))

        self.command(name, answer)

    def _reply(self, client: Client, error: str = "", **fields: Any) -> None:
        message = {"error": error} if error else {"ok": True, **fields}
        self._send(client, json.dumps(message).encode() + b"\n")

    def _send(self, client: Client, data: bytes) -> None:
        client.output += data
        if len(client.output) > CLIENT_BUFFER_MAX_BYTES:
            self._drop(client)  # a client that does not read must not hold the console up
            return
        self._flush(client)

    def _flush(self, client: Client) -> None:
        try:
            while client.output:
                sent = client.socket.send(client.output)
                del client.output[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)
            return
        self._update(client)

    def _update(self, client: Client) -> None:
        """Which events a client is polled for: no input while the console's buffer is full."""
        if client.socket.fileno() not in self.handlers:
            return
        events = select.POLLOUT if client.output else 0
        if not client.attached or len(self.console_input) < INPUT_BUFFER_MAX_BYTES:
            events |= select.POLLIN
        self.poller.modify(client.socket.fileno(), events)

    def _drop(self, client: Client) -> None:
        descriptor = client.socket.fileno()
        if descriptor >= 0:
            self._forget(descriptor)
            self.clients.pop(descriptor, None)
            client.socket.close()

    # ---- records ----------------------------------------------------------------------------------------------------

    def event(self, name: str, **fields: Any) -> None:
        """One line of events.jsonl."""
        line = {"time": vmexit.now(), "event": name, **{k: v for k, v in fields.items() if v}}
        self.events.append(json.dumps(line).encode() + b"\n")

    def save_state(self) -> None:
        """Replace state.json; a full disk loses the update, not the VM."""
        state = {**self.config["state"], "phase": self.phase, "health": self.health}
        vmexit.write_json(f"{self.runtime}/state.json", state)

    def finish(self) -> None:
        """Write down how it ended and leave nothing behind."""
        for descriptor in self.helpers:
            try:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            except OSError:
                continue
        verdict = self.verdict
        self.event("exit", reason=verdict.reason, code=verdict.code)
        vmexit.clean_up(self.config, verdict)
        for client in list(self.clients.values()):
            self._drop(client)


def main(config_fd: int) -> None:
    """Entry point after exec: read the configuration, confine, supervise, clean up."""
    with os.fdopen(config_fd, "rb") as file:
        config = json.loads(file.read())
    for descriptor in config["inherited_fds"]:
        os.set_inheritable(descriptor, False)  # noqa: FBT003
    supervisor = Supervisor(config)
    confine_supervisor(config)
    try:
        supervisor.run()
    except Exception as fault:  # whatever it is, the VM must not outlive its supervisor unseen
        supervisor.verdict.want("supervisor failed", 5, f"{type(fault).__name__}: {fault}")
        supervisor.emulator_log.append(f"casemate supervisor: {type(fault).__name__}: {fault}\n".encode())
        supervisor._kill()
        os.waitid(os.P_PIDFD, supervisor.pidfd, os.WEXITED)
    supervisor.finish()
    sys.exit(0)
