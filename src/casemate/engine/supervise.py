"""The supervisor of one running VM: a minimal interpreter that the launcher's process turns into by exec.

It is the parent of the emulator and of its helpers. It keeps the console log, serves clients of the control socket
(serving.py), follows QMP events (qmplink.py), enforces the time-out, and when the emulator ends writes down why and
removes everything. It never waits for anybody: not for the guest, the emulator, a client or the disk.

Standard library only, and little of it: twenty of these must stay below 8 MiB each. It confines itself first.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time

from casemate.engine import qmp, vmexit
from casemate.engine.confine import confine_supervisor
from casemate.engine.consolelink import ConsoleLink
from casemate.engine.qmplink import QmpLink
from casemate.engine.ringlog import Budget, EventLog, RingLog
from casemate.engine.serving import ControlServer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

EVENTS_MAX_BYTES = 256 * 1024
EMULATOR_LOG_MAX_BYTES = 256 * 1024
PANIC_TO_END_S = 5.0
BUTTON_AGAIN_S = 2.0
POLL_MAX_S = 30.0
SAVE_RETRY_S = 0.5
QMP_EVENTS = frozenset(
    (
        "SHUTDOWN",
        "POWERDOWN",
        "RESET",
        "STOP",
        "RESUME",
        "SUSPEND",
        "WAKEUP",
        "GUEST_PANICKED",
        "GUEST_CRASHLOADED",
        "WATCHDOG",
        "RTC_CHANGE",
        "BLOCK_IO_ERROR",
        "BLOCK_IMAGE_CORRUPTED",
        "MEMORY_FAILURE",
        "VSERPORT_CHANGE",
    )
)


class Supervisor:
    """One VM. ``config`` is what the launcher hands over; see ``engine/start.py`` for its fields."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.runtime: str = config["runtime"]
        self.data: str = config["data"]
        self.phase = "running"
        self.health: list[str] = list(config["state"]["health"])
        self.verdict = vmexit.Verdict()
        self.poller = select.poll()
        self.handlers: dict[int, Callable[[int, int], None]] = {}
        self.log_fd: int = config["log_fd"]
        os.set_blocking(self.log_fd, False)
        self.pidfd: int = config["pidfd"]
        self.helpers: dict[int, str] = {int(fd): name for fd, name in config["helper_pidfds"].items()}
        self.link = QmpLink(socket.socket(fileno=config["qmp_fd"]), self._on_event)
        self.server = ControlServer(self, socket.socket(fileno=config["listener_fd"]), config["stop_grace_s"])
        for name, descriptor in config.get("attendant_fds", {}).items():
            self.server.adopt(descriptor, attached=name == "console")
        console_log = RingLog(f"{self.data}/console.log", config["console_log_max_bytes"])
        console = socket.socket(fileno=config["console_fd"])
        self.console = ConsoleLink(console, console_log, self.server.broadcast, self._on_panic_text)
        self.emulator_log = RingLog(f"{self.data}/emulator.log", EMULATOR_LOG_MAX_BYTES)
        self.emulator_log.append(config.pop("early_log").encode())
        self.events = EventLog(f"{self.data}/events.jsonl", EVENTS_MAX_BYTES)
        self.save_budget = Budget(burst=8, per_s=1 / SAVE_RETRY_S)
        self.save_at: float | None = None
        self.runtime_check_s: float = config["runtime_check_s"]
        self.look_at = time.monotonic() + self.runtime_check_s
        clone_fd: int = config.get("clone_fd", -1)
        self._clone_port = socket.socket(fileno=clone_fd) if clone_fd >= 0 else None
        self.keys_fd: int = config.get("keys_fd", -1)
        self.overlay_fds: list[int] = list(config.get("overlay_fds", ()))
        self.kill_at: float | None = None
        self.button_at: float | None = None
        self.deadline: float | None = None
        if config["timeout_s"] is not None:
            self.deadline = time.monotonic() + config["timeout_s"]
        self.signal_read = self._catch_signals()

    def _catch_signals(self) -> int:
        """Signals become bytes in a pipe; the launcher blocked them so that none was lost on the way here."""
        read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, _ignore)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        return read_end

    # ---- loop -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until the emulator ends."""
        self.watch(self.console.descriptor, select.POLLIN, self._on_console)
        self.watch(self.link.socket.fileno(), select.POLLIN, self._on_qmp)
        self.watch(self.log_fd, select.POLLIN, self._on_log)
        self.watch(self.server.listener.fileno(), select.POLLIN, self.server.on_connection)
        self.watch(self.signal_read, select.POLLIN, self._on_signal)
        self.watch(self.pidfd, select.POLLIN, self._on_emulator_exit)
        for descriptor in self.helpers:
            self.watch(descriptor, select.POLLIN, self._on_helper_exit)
        self.event("start", accel=self.config["accel"])
        self._hear(lambda: self.link.take(self.config.pop("early_qmp").encode()))
        while not self.verdict.ended:
            for descriptor, events in self.poller.poll(self._wait_ms()):
                handler = self.handlers.get(descriptor)
                if handler is not None:
                    handler(descriptor, events)
            self._check_timers()
            if self.console.held != self.server.is_congested():
                self.console.held = not self.console.held
                self._watch_console()

    def watch(self, descriptor: int, events: int, handler: Callable[[int, int], None]) -> None:
        """Call ``handler`` when ``descriptor`` is ready."""
        self.poller.register(descriptor, events)
        self.handlers[descriptor] = handler

    def rewatch(self, descriptor: int, events: int) -> None:
        """Change what a watched descriptor is polled for."""
        if descriptor in self.handlers:
            self.poller.modify(descriptor, events)

    def forget(self, descriptor: int) -> None:
        """Watch no more."""
        if self.handlers.pop(descriptor, None) is not None:
            self.poller.unregister(descriptor)

    def _wait_ms(self) -> float:
        times = [self.deadline, self.kill_at, self.button_at, self.save_at, self.console.resume_at]
        times += [self.look_at, self.events.summary_at, self.link.next_deadline(), self.server.next_deadline()]
        soonest = min(moment for moment in times if moment is not None)
        return min(POLL_MAX_S, max(0.0, soonest - time.monotonic())) * 1000

    def _check_timers(self) -> None:
        now = time.monotonic()
        if self.deadline is not None and now >= self.deadline:
            self.deadline = None
            self.verdict.want("time-out", 6, f"--timeout-s {self.config['timeout_s']:g} ran out")
            self._kill()
        if self.kill_at is not None and now >= self.kill_at:
            self.kill_at = self.button_at = None
            self.verdict.note("killed after the grace period")
            self._kill()
        if self.button_at is not None and now >= self.button_at:
            self._press_button()
        if self.console.resume_at is not None and now >= self.console.resume_at:
            self.console.resume()
            self._watch_console()
        if self.save_at is not None and now >= self.save_at:
            self.save_state()
        if self.events.summary_at is not None and now >= self.events.summary_at:
            self.events.write_summary(vmexit.now())
        self.link.expire(now)
        self.server.expire(now)
        if now >= self.look_at:
            self.look_at = now + self.runtime_check_s
            self._check_runtime()

    def _check_runtime(self) -> None:
        """logind takes the directory away at the last logout, some cleaners of /run too: nobody could reach us then."""
        if self.kill_at is None and not os.path.lexists(f"{self.runtime}/lock"):
            self.verdict.want("runtime directory removed", 5, f"{self.runtime} was taken away from under the VM")
            self.stop(self.config["stop_grace_s"])

    def _kill(self) -> None:
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return

    # ---- emulator ---------------------------------------------------------------------------------------------------

    def _on_console(self, descriptor: int, events: int) -> None:
        was_full = self.console.is_full
        self.console.handle(events)
        if self.console.ended:
            self.forget(descriptor)
            return
        self._watch_console()
        if was_full and not self.console.is_full:
            self.server.input_has_room()

    def _watch_console(self) -> None:
        self.rewatch(self.console.descriptor, self.console.events)

    def _on_panic_text(self) -> None:
        self.event("panic", always=False)

    def console_input(self, data: bytes) -> None:
        """Bytes for the guest; senders are held back while `console_is_full`."""
        was_full = self.console.is_full
        self.console.write(data)
        self._watch_console()
        if was_full and not self.console.is_full:
            self.server.input_has_room()

    def console_is_full(self) -> bool:
        """Whether the guest has left too much unread."""
        return self.console.is_full

    def dropped_bytes(self) -> int:
        """Console output that the disk refused or that did not fit."""
        return self.console.log.dropped_bytes

    def _on_log(self, descriptor: int, events: int) -> None:
        try:
            data = os.read(descriptor, 65536)
        except BlockingIOError:
            return
        if data:
            self.emulator_log.append(data)
        else:
            self.forget(descriptor)

    def _on_qmp(self, descriptor: int, events: int) -> None:
        if events & select.POLLOUT:
            self.link.flush()
        self._hear(self.link.read)

    def _hear(self, read: Callable[[], bool]) -> None:
        try:
            going_on = read()
        except qmp.QmpError as fault:
            self.verdict.want("emulator failed", 5, f"it broke the QMP protocol: {fault}")
            self.forget(self.link.socket.fileno())
            self._kill()
            return
        if going_on:
            self._watch_qmp()
        else:
            self.forget(self.link.socket.fileno())

    def _watch_qmp(self) -> None:
        out = select.POLLOUT if self.link.wants_to_write else 0
        self.rewatch(self.link.socket.fileno(), select.POLLIN | out)

    def ask(
        self,
        name: str,
        answer: Callable[[dict[str, Any]], None],
        arguments: dict[str, Any] | None = None,
        *,
        descriptor: int = -1,
    ) -> None:
        """Send a QMP command; ``answer`` gets the reply, or an error. ``descriptor`` goes along and stays ours."""
        self.link.command(name, answer, arguments, descriptor=descriptor)
        self._watch_qmp()

    def end_saved(self) -> None:
        """The state is on its way to a file: the run is over."""
        self.verdict.want("saved", 0, "casemate run --from FILE goes on")
        self._kill()

    def note_fault(self, words: str) -> None:
        """What whoever looks at the VM should read."""
        self.health.append(words)
        self.event("fault", why=words)
        self.save_state()

    def clone_port(self) -> socket.socket | None:
        """The host's end of the port for clones; None in a VM that cannot be saved."""
        return self._clone_port

    def _on_event(self, message: dict[str, Any]) -> None:
        name = message["event"]
        data = message.get("data")
        reason = data.get("reason", "") if isinstance(data, dict) else ""
        reason = reason[:64] if isinstance(reason, str) else ""
        if name == "SHUTDOWN":
            self.verdict.shutdown_reason = reason or "unknown"
        elif name in {"STOP", "RESUME"}:
            self._set_phase("paused" if name == "STOP" else "running")
        elif name == "GUEST_PANICKED":
            self._end_after_panic("the guest reported it")
        elif name == "RESET":
            self._drain(self.console.descriptor)  # what it said before it reset
            self.console.hurried = False
            if self.console.panicked_lately():
                self._end_after_panic("the console shows it, and the guest reset itself")
        known = name.lower() if name in QMP_EVENTS else "unknown-qmp-event"
        # Of QEMU's words these two mean the vCPUs; "stop" would read as the end of the VM, which is "exit".
        self.event({"STOP": "pause", "RESUME": "unpause"}.get(name, known), always=False, reason=reason)

    def _end_after_panic(self, how: str) -> None:
        self.verdict.want("guest kernel panic", 5, how)
        if self.console.panicked_lately():
            self._kill()
        elif self.kill_at is None:  # QEMU ends by itself, unless its action is another one
            self.kill_at = time.monotonic() + PANIC_TO_END_S

    def _on_emulator_exit(self, descriptor: int, events: int) -> None:
        self.forget(descriptor)
        try:
            status = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        except ChildProcessError:
            status = None
        self._drain(self.console.descriptor, self.log_fd, self.link.socket.fileno())
        self.verdict.panicked = self.console.panicked_lately()
        code = status.si_status if status is not None else -1
        killed = status is None or status.si_code != os.CLD_EXITED
        self.verdict.end(code, killed=killed)

    def _drain(self, *descriptors: int) -> None:
        """Take what is still in these pipes; each holds at most a socket's buffer."""
        self.console.hurried = True
        self.console.resume()
        self._watch_console()
        for _ in range(64):
            ready = [(fd, events) for fd, events in self.poller.poll(0) if fd in descriptors]
            for descriptor, events in ready:
                if descriptor in self.handlers:
                    self.handlers[descriptor](descriptor, events)
            if not ready:
                return

    def _on_helper_exit(self, descriptor: int, events: int) -> None:
        name = self.helpers[descriptor]
        self.forget(descriptor)
        try:
            status = os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOHANG)
            how = f"signal {status.si_status}" if status and status.si_code != os.CLD_EXITED else "it ended"
        except ChildProcessError:  # the child of another helper
            status, how = None, "it ended"
        if name == "swtpm" and status and (status.si_code, status.si_status) == (os.CLD_EXITED, 0):
            return  # the emulator told it to end, and is about to end itself
        what = "TPM" if name == "swtpm" else "network"
        self.health.append(f"{name} died ({how}): the VM has no {what} until it is restarted")
        self.event("helper-died", helper=name, how=how)
        self.save_state()

    # ---- ending -----------------------------------------------------------------------------------------------------

    def _on_signal(self, descriptor: int, events: int) -> None:
        try:
            os.read(descriptor, 64)
        except BlockingIOError:
            return
        self.stop(self.config["stop_grace_s"])

    def stop(self, grace_s: float) -> None:
        """Ask the guest to power off; kill it when ``grace_s`` has passed."""
        self.verdict.want("stopped", 0, "")
        if self.phase != "stopping":
            self.event("stop-requested")
        self._set_phase("stopping")
        if grace_s <= 0:
            self._kill()
            return
        end = time.monotonic() + grace_s
        self.kill_at = end if self.kill_at is None else min(self.kill_at, end)
        # A paused guest cannot hear the button.
        self.ask("cont", lambda _: None)
        self._press_button()

    def _press_button(self) -> None:
        """And again, until the guest reacts: one that still boots has nobody who listens for it."""
        self.button_at = None
        if self.kill_at is not None and not self.verdict.shutdown_reason:
            self.button_at = time.monotonic() + BUTTON_AGAIN_S
            self.ask("system_powerdown", lambda _: None)

    def kill(self) -> None:
        """Kill the emulator now."""
        self.verdict.want("killed", 5, "casemate kill")
        self._kill()

    # ---- records ----------------------------------------------------------------------------------------------------

    def event(self, name: str, *, always: bool = True, **fields: Any) -> None:
        """One line of events.jsonl."""
        self.events.write(vmexit.now(), name, always=always, **fields)

    def _set_phase(self, phase: str) -> None:
        if self.phase not in {phase, "stopping"}:
            self.phase = phase
            self.save_state()

    def save_state(self) -> None:
        """Replace state.json; not too often: the guest decides how many events there are.

        A full disk loses the update, not the VM.
        """
        self.save_at = None
        if not self.save_budget.take():
            self.save_at = time.monotonic() + SAVE_RETRY_S
            return
        state = {**self.config["state"], "phase": self.phase, "health": self.health}
        vmexit.write_json(f"{self.runtime}/state.json", state, durable=False)

    def finish(self) -> None:
        """Write down how it ended and leave nothing behind."""
        for descriptor in self.helpers:
            try:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            except OSError:
                continue
        verdict = self.verdict
        self.event("exit", reason=verdict.reason, code=verdict.code)
        ended = vmexit.exit_of(self.config, verdict)
        vmexit.clean_up(self.config, ended)
        # The locks of the uid and of the disks, too, before anybody is told.
        for descriptor in self.config["lock_fds"]:
            os.close(descriptor)
        self.server.end({name: ended[name] for name in ("reason", "code", "detail", "finished_at")})


def _ignore(number: int, frame: object) -> None:
    """The wake-up descriptor has it."""


def main(config_fd: int) -> None:
    """Entry point after exec: read the configuration, confine, supervise, clean up."""
    with os.fdopen(config_fd, "rb") as file:
        config = json.loads(file.read())
    for descriptor in config["inherited_fds"]:
        os.set_inheritable(descriptor, False)
    if config.get("clone_fd", -1) >= 0:
        import casemate.engine.savetask  # noqa: F401 - behind the wall there are no files to import from
    supervisor = Supervisor(config)
    confine_supervisor(config)
    try:
        supervisor.run()
    except Exception as fault:  # whatever it is, the VM must not outlive its supervisor unseen
        what = f"{type(fault).__name__}: {fault}"
        supervisor.verdict.fail(what)
        supervisor.emulator_log.append(f"casemate supervisor: {what}\n".encode("utf-8", "replace"))
        supervisor._kill()
        os.waitid(os.P_PIDFD, supervisor.pidfd, os.WEXITED)
        supervisor.verdict.end(signal.SIGKILL, killed=True)
    supervisor.finish()
    os._exit(0)
