"""Save a VM's state, inside its supervisor: never waits, every step has a deadline. Standard library only.

    1 freeze    "freeze" over the clone port, if something in the guest has it open: all but that stops, and it
                says "frozen"
    2 stop      the vCPUs
    3 getfd     the client's pipe goes to the emulator by SCM_RIGHTS, as "state"
    4 migrate   to fd:state; asked after until it is completed or failed
    5 settle    failed: the guest goes on. Completed: it stands still until the client has its file on the disk and says
                so; then the VM ends ("saved") or goes on. A client that goes away without a word: it goes on

A guest that goes on after its state was written is told "reseed", as every clone is: otherwise it would draw the same
random numbers as they do.
"""

from __future__ import annotations

import os
import time

from casemate.engine import qmp

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any, Protocol

    class Machine(Protocol):
        """What it acts on: the supervisor."""

        phase: str

        def ask(
            self,
            name: str,
            answer: Callable[[dict[str, Any]], None],
            arguments: dict[str, Any] | None = None,
            *,
            descriptor: int = -1,
        ) -> None: ...
        def watch(self, descriptor: int, events: int, handler: Any) -> None: ...
        def forget(self, descriptor: int) -> None: ...
        def end_saved(self) -> None: ...
        def note_fault(self, words: str) -> None: ...


FREEZE_S = 30.0
"""For a guest that listens: a busy host may keep it from the processor for long."""
PORT = "clone"
"""The character device of the clone port (`casemate.plan.argv`)."""
ASK_AGAIN_S = 0.1
WHOLE_S = 3600.0
BANDWIDTH_BYTES_S = 1 << 40
"""No limit: the guest stands still meanwhile, and QEMU's default is 128 MiB/s."""
_POLLIN = 1


class SaveTask:
    """One save. ``done(error, fields)`` is called once; ``error`` is empty when the state is written.

    Args:
        pipe: the client's; closed here.
        port: the host's end of the clone port.
    """

    def __init__(
        self,
        machine: Machine,
        pipe: int,
        port: socket.socket,
        done: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._machine, self._pipe, self._port = machine, pipe, port
        self._done = done
        self.written = False
        self._was_paused = machine.phase == "paused"
        self._heard = bytearray()
        self._prepared = False
        self._waiting_for_guest = True
        self._end = time.monotonic() + WHOLE_S
        self.at: float | None = time.monotonic() + FREEZE_S
        port.setblocking(False)
        self._drain()
        if self._was_paused:
            self._stop()
        else:
            machine.ask("query-chardev", self._freeze)

    def expire(self, now: float) -> None:
        """A deadline, or time to ask again."""
        if self.at is None or now < self.at:
            return
        self.at = None
        if self._waiting_for_guest:
            self._stop()
        else:
            self._machine.ask("query-migrate", self._progress)

    def _freeze(self, message: dict[str, Any]) -> None:
        """Tell the guest, and wait for its word; not for one that the emulator says has not opened the port."""
        if not self._waiting_for_guest:
            return
        if _is_closed(message) or not self._tell(b"freeze\n"):
            self._stop()
        else:
            self._machine.watch(self._port.fileno(), _POLLIN, self._on_port)

    def _drain(self) -> None:
        """What the guest said before is no answer."""
        try:
            while self._port.recv(4096):
                continue
        except OSError:
            return

    def _tell(self, word: bytes) -> bool:
        try:
            return self._port.send(word) == len(word)
        except OSError:
            return False

    def _on_port(self, descriptor: int, events: int) -> None:
        try:
            data = self._port.recv(256)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._heard += data
        self._prepared = b"frozen" in self._heard
        if self._prepared or not data or len(self._heard) > 4096:
            self._stop()

    def _stop(self) -> None:
        if not self._waiting_for_guest:
            return
        self._waiting_for_guest, self.at = False, None
        self._machine.forget(self._port.fileno())
        self._machine.ask(
            "stop", self._then("migrate-set-parameters", {"max-bandwidth": BANDWIDTH_BYTES_S}, self._give)
        )

    def _then(
        self, name: str, arguments: dict[str, Any], following: Callable[[], None]
    ) -> Callable[[dict[str, Any]], None]:
        """An answer's handler that asks the next question, and calls ``following`` when that one succeeded."""

        def second(message: dict[str, Any]) -> None:
            if self._holds(message, name):
                following()

        def first(message: dict[str, Any]) -> None:
            if self._holds(message, "stop"):
                self._machine.ask(name, second, arguments)

        return first

    def _holds(self, message: dict[str, Any], name: str) -> bool:
        try:
            qmp.return_of(message, name)
        except qmp.QmpError as fault:
            self._fail(str(fault))
            return False
        return True

    def _give(self) -> None:
        def taken(message: dict[str, Any]) -> None:
            self._close_pipe()  # the emulator has its own now: its end is the end of the stream
            if self._holds(message, "getfd"):
                self._machine.ask("migrate", started, {"uri": "fd:state"})

        def started(message: dict[str, Any]) -> None:
            if self._holds(message, "migrate"):
                self.at = time.monotonic() + ASK_AGAIN_S

        self._machine.ask("getfd", taken, {"fdname": "state"}, descriptor=self._pipe)

    def _progress(self, message: dict[str, Any]) -> None:
        try:
            found = qmp.return_of(message, "query-migrate")
        except qmp.QmpError as fault:
            self._fail(str(fault))
            return
        found = found if isinstance(found, dict) else {}
        status = found.get("status")
        if status == "completed":
            self._finish("")
        elif status in {"failed", "cancelled"} or not isinstance(status, str):
            self._fail(f"the emulator could not write its state: {str(found.get('error-desc', status))[:200]}")
        elif time.monotonic() > self._end:
            self._machine.ask("migrate_cancel", lambda _: None)
            self._fail("the state was not written in time")
        else:
            self.at = time.monotonic() + ASK_AGAIN_S

    def _fail(self, why: str) -> None:
        self._finish(why)

    def _finish(self, error: str) -> None:
        self.at = None
        self._close_pipe()
        self.written = not error
        if error:
            self._go_on(b"thaw\n")
        self._done(error, {"prepared": self._prepared})

    def settle(self, *, end: bool) -> None:
        """The client is done with it; only after `written`."""
        if end:
            self._machine.end_saved()
        else:
            self._go_on(b"reseed\n")

    def _go_on(self, word: bytes) -> None:
        self._tell(word)
        if not self._was_paused:
            self._machine.ask("cont", self._gone_on)

    def _gone_on(self, message: dict[str, Any]) -> None:
        """A guest that stays where it is must not look like one that somebody paused."""
        try:
            qmp.return_of(message, "cont")
        except qmp.QmpError as fault:
            self._machine.note_fault(f"it stands still after a save: {str(fault)[:200]}")

    def _close_pipe(self) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1


def _is_closed(message: dict[str, Any]) -> bool:
    """Whether the answer to query-chardev says plainly that nothing in the guest has the clone port open."""
    devices = message.get("return")
    named = [
        item
        for item in (devices if isinstance(devices, list) else [])
        if isinstance(item, dict) and item.get("label") == PORT
    ]
    return len(named) == 1 and named[0].get("frontend-open") is False
