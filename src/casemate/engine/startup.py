"""The emulator between exec and `cont`: start-up notifications answered, QMP spoken, its log kept, all in one loop.

While this runs the guest has not executed an instruction. Every call that only start-up needs arrives here as a
notification; the filter has already narrowed name and arguments, so all that is left to decide is "is it still
start-up?". execve is allowed once.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from casemate.bpf.syscalls import names
from casemate.engine import qmp
from casemate.engine.qmp import QmpError
from casemate.errors import VmError
from casemate.jail.spawn import Spawned
from casemate.sys import seccomp

LOG_KEEP_BYTES = 65536
EVENTS_MAX = 256


class Startup:
    """One emulator that starts. Owns nothing: the caller closes the descriptors."""

    def __init__(self, spawned: Spawned, control: socket.socket, log_fd: int, machine: str, deadline_s: float) -> None:
        self.spawned = spawned
        self.log = bytearray()
        self.notifications: dict[str, int] = {}
        self.pending_events: list[dict[str, Any]] = []
        self._control = control
        self._log_fd = log_fd
        self._machine = machine
        self._end = time.monotonic() + deadline_s
        self._reader = qmp.LineReader()
        self._messages: list[dict[str, Any]] = []
        self._next_id = 1
        self._asked: dict[str, int] = {}
        self._answers: dict[int, dict[str, Any]] = {}
        self._executed = False
        if spawned.listener >= 0:
            seccomp.notif_set_sync_wake_up(spawned.listener)
        control.setblocking(False)
        os.set_blocking(log_fd, False)
        self._poller = select.poll()
        self._watched = {fd for fd in (spawned.listener, control.fileno(), log_fd, spawned.pidfd) if fd >= 0}
        for descriptor in self._watched:
            self._poller.register(descriptor, select.POLLIN)

    def greeting(self, meanwhile: Callable[[], None] = lambda: None) -> str:
        """Wait for QMP's greeting, then until the machine is built; give QEMU's version.

        Args:
            meanwhile: called once after the greeting: QEMU answers nothing more until the machine is built, which
                takes as long as all before. Most notifications are over; it must not hold up the rest.
        """
        try:
            version = qmp.check_greeting(self._next_message("the QMP greeting"))
        except QmpError as fault:
            raise VmError("the emulator does not speak QMP", got=str(fault)) from fault
        self.ask_ahead((("qmp_capabilities", {}),))
        meanwhile()
        self.command("qmp_capabilities")
        return version

    def command(self, name: str, **arguments: Any) -> Any:
        """Send one command and wait for its reply.

        Raises:
            VmError: the emulator died, was too slow, or answered with an error.
        """
        key = _question(name, arguments)
        if key not in self._asked:
            self.ask_ahead(((name, arguments),))
        identifier = self._asked.pop(key)
        while identifier not in self._answers:
            message = self._next_message(f"the answer to {name}")
            if "event" in message:
                self._keep_event(message)
            elif message.get("id") in self._asked.values() or message.get("id") == identifier:
                self._answers[message["id"]] = message
            else:
                raise VmError("the emulator answered a question that was not asked", got=str(message)[:200])
        try:
            return qmp.return_of(self._answers.pop(identifier), name)
        except QmpError as fault:
            raise VmError("the emulator refused a command", got=str(fault)) from fault

    def ask_ahead(self, questions: tuple[tuple[str, dict[str, Any]], ...]) -> None:
        """Send questions whose answers `command` will want: the emulator works on them while we do something else."""
        lines = b""
        for name, arguments in questions:
            self._asked[_question(name, arguments)] = self._next_id
            lines += qmp.encode_command(name, arguments or None, self._next_id)
            self._next_id += 1
        self._control.settimeout(max(0.001, self._end - time.monotonic()))
        try:
            self._control.sendall(lines)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has ended: waiting for the answer says how
        except TimeoutError:
            raise VmError("the emulator does not read its QMP socket", next_step="look at the host's load") from None
        finally:
            self._control.setblocking(False)

    def _keep_event(self, message: dict[str, Any]) -> None:
        """The guest is paused: a handful of events is all that a start brings."""
        if len(self.pending_events) >= EVENTS_MAX:
            raise VmError("the emulator floods QMP while it starts", got=f"more than {EVENTS_MAX} events")
        self.pending_events.append(message)

    def release(self) -> None:
        """Let the guest run. What it makes the emulator say from here on is the supervisor's to hear (`unheard`)."""
        self.pending_events.clear()
        self.command("cont")

    def unheard(self) -> bytes:
        """What came after the release and nobody has acted on: the end of a quick guest may be among it."""
        events = [message for message in self.pending_events if message.get("event") != "RESUME"]  # that was ours
        lines = [json.dumps(message).encode() + b"\n" for message in (*events, *self._messages)]
        return b"".join(lines) + self._reader.rest()

    def end_notifications(self) -> None:
        """Close the listener: from here on start-up calls fail for good."""
        if self.spawned.listener >= 0:
            self._forget(self.spawned.listener)
            os.close(self.spawned.listener)
            self.spawned.listener = -1

    def log_tail(self) -> str:
        """The last lines that the emulator wrote, printable."""
        text = bytes(self.log[-2000:]).decode("utf-8", "replace")
        return "\n".join("".join(c for c in line if c.isprintable()) for line in text.splitlines()[-6:])

    def _forget(self, descriptor: int) -> None:
        if descriptor in self._watched:
            self._watched.discard(descriptor)
            self._poller.unregister(descriptor)

    def _next_message(self, waiting_for: str) -> dict[str, Any]:
        while not self._messages:
            remaining = self._end - time.monotonic()
            if remaining <= 0:
                raise VmError(
                    f"the emulator was too slow: no {waiting_for}",
                    got=self.log_tail(),
                    next_step="look at the host's load",
                )
            for descriptor, _ in self._poller.poll(remaining * 1000):
                self._handle(descriptor, waiting_for)
        return self._messages.pop(0)

    def _handle(self, descriptor: int, waiting_for: str) -> None:
        if descriptor == self.spawned.listener:
            self._answer()
        elif descriptor == self._log_fd:
            self._read_log()
        elif descriptor == self._control.fileno():
            self._read_control()
        else:
            self._read_log()
            self._read_control()
            if self._messages:
                return  # a guest of a few instructions is gone before we saw its emulator's last answers
            self._forget(descriptor)
            raise self._death(waiting_for)

    def _read_control(self) -> None:
        try:
            data = self._control.recv(65536)
        except (BlockingIOError, ConnectionResetError):
            return
        if not data:
            self._forget(self._control.fileno())
            return
        try:
            self._messages += self._reader.feed(data)
        except QmpError as fault:
            raise VmError("the emulator does not speak QMP", got=str(fault)) from fault

    def _answer(self) -> None:
        listener = self.spawned.listener
        try:
            notification = seccomp.notif_recv(listener)
        except FileNotFoundError:
            return  # the caller died meanwhile
        name = names(self._machine).get(notification.nr, str(notification.nr))
        self.notifications[name] = self.notifications.get(name, 0) + 1
        try:
            if name == "execve" and self._executed:
                seccomp.notif_send_error(listener, notification.id, 1)
                return
            self._executed = self._executed or name == "execve"
            seccomp.notif_send_continue(listener, notification.id)
        except FileNotFoundError:
            return

    def _read_log(self) -> None:
        try:
            data = os.read(self._log_fd, 65536)
        except BlockingIOError:
            return
        if not data:
            self._forget(self._log_fd)
            return
        self.log += data
        del self.log[:-LOG_KEEP_BYTES]

    def _death(self, waiting_for: str) -> VmError:
        status = os.waitid(os.P_PIDFD, self.spawned.pidfd, os.WEXITED | os.WNOWAIT)
        code = status.si_status if status is not None else -1
        if status is not None and status.si_code != os.CLD_EXITED:
            known = code in {number.value for number in signal.Signals}
            got = f"killed by {signal.Signals(code).name if known else f'signal {code}'}"
        else:
            got = f"exit status {code}"
        tail = self.log_tail()
        return VmError(
            f"the emulator ended while waiting for {waiting_for}",
            got=f"{got}; {tail}" if tail else got,
            next_step=explain_signal(code) if status is not None and status.si_code != os.CLD_EXITED else "",
        )


def _question(name: str, arguments: dict[str, Any]) -> str:
    return f"{name} {sorted(arguments.items())}"


def explain_signal(number: int) -> str:
    """What a fatal signal of the emulator means, and what to do."""
    if number == signal.SIGSYS:
        return (
            "SIGSYS: the seccomp allowlist killed it for a call that no traced workload makes; the kernel's audit"
            " line (dmesg, type=1326) names the call; report it with the QEMU and libc versions"
        )
    if number == signal.SIGABRT or number == signal.SIGSEGV:
        return "the emulator aborted or crashed: casemate logs --emulator shows its last words"
    if number == signal.SIGKILL:
        return "killed from outside, or by the memory limit of its cgroup"
    return ""
