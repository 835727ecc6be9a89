"""How a run ended, and the clean-up after it. Standard library only: the minimal supervisor imports this."""

from __future__ import annotations

import json
import os
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def now() -> str:
    """RFC 3339 in UTC with milliseconds."""
    seconds = time.time()
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds * 1000) % 1000:03d}Z"


class Verdict:
    """Collects what is known about the end. The first wish counts: a time-out that kills is a time-out."""

    def __init__(self) -> None:
        self.ended = False
        self.reason = ""
        self.code = 5
        self.detail = ""
        self.panicked = False
        self.shutdown_reason = ""
        self.killed_by = 0
        self._wanted: tuple[str, int, str] | None = None
        self._notes: list[str] = []

    def want(self, reason: str, code: int, detail: str) -> None:
        """We are about to end the VM ourselves, and this is why."""
        if self._wanted is None:
            self._wanted = (reason, code, detail)

    def fail(self, detail: str) -> None:
        """Our own failure goes before every wish."""
        self._wanted = ("supervisor failed", 5, detail)

    def note(self, text: str) -> None:
        """Something worth adding to the detail."""
        self._notes.append(text)

    def end(self, status: int, *, killed: bool) -> None:
        """The emulator is gone: ``status`` is its exit status, or the signal when ``killed``."""
        self.ended = True
        self.killed_by = status if killed else 0
        how = f"the emulator was killed by {_signal_name(status)}" if killed else f"exit status {status}"
        if self._wanted is not None:
            self.reason, self.code, self.detail = self._wanted
        elif killed:
            self.reason, self.code, self.detail = "emulator killed", 5, f"{how}{_explain(status)}"
        elif status != 0:
            self.reason, self.code, self.detail = "emulator failed", 5, f"{how}: see casemate logs --emulator"
        elif self.shutdown_reason == "guest-panic" or (self.panicked and self.shutdown_reason == "guest-reset"):
            self.reason, self.code, self.detail = "guest kernel panic", 5, "the guest panicked and ended the machine"
        elif self.shutdown_reason in {"guest-shutdown", "guest-reset"}:
            self.reason, self.code, self.detail = "guest powered off", 0, ""
        elif self.shutdown_reason == "host-signal":
            self.reason, self.code, self.detail = "emulator ended", 5, "a signal from the host asked it to"
        else:
            self.reason, self.code, self.detail = "emulator ended", 5, f"{how}, and no word of why"
        self.detail = "; ".join(filter(None, [self.detail, *self._notes]))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _explain(number: int) -> str:
    if number == signal.SIGSYS:
        return (
            ": its seccomp allowlist forbids a system call that it made; please report it with the versions of QEMU"
            " and libc (the kernel's log, type=1326, names the call)"
        )
    if number in {signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGTRAP}:
        return ": it crashed or aborted; see casemate logs --emulator"
    if number == signal.SIGKILL:
        return ": from outside, or by the memory limit of its cgroup"
    return ""


def write_json(path: str, value: dict[str, Any], *, durable: bool = True) -> bool:
    """Replace a JSON file by rename.

    Args:
        durable: wait until it is on disk; for what must survive a power cut.

    Returns:
        False when the disk refuses; the old file is untouched then.
    """
    temporary = f"{path}.tmp"
    data = json.dumps(value).encode()
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(28, "no space left", temporary)
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
    except OSError:
        _unlink(temporary)
        return False
    return True


def exit_of(config: dict[str, Any], verdict: Verdict) -> dict[str, Any]:
    """The content of exit.json; `vmfiles.Exit` is its type."""
    state = config["state"]
    return {
        "reason": verdict.reason,
        "code": verdict.code,
        "finished_at": now(),
        "started_at": state["started_at"],
        "detail": verdict.detail,
        "uid": state["uid"],
        "accel": state["accel"],
        "sigsys_pid": state["emulator"]["pid"] if verdict.killed_by == signal.SIGSYS else 0,
    }


def clean_up(config: dict[str, Any], ended: dict[str, Any]) -> None:
    """exit.json, then cgroups, then the marks of a run. Each may fail without stopping the others.

    What fails is left to the next command: run.json stays, and it finds the lock free. If the data disk is full,
    exit.json goes to the runtime directory, where that command looks for it.
    """
    runtime, data, state = config["runtime"], config["data"], config["state"]
    written = write_json(f"{data}/exit.json", ended)
    if not written:
        write_json(f"{runtime}/exit.json", ended, durable=False)
    gone = _remove_cgroups(state["cgroups"])
    labelled = os.path.lexists(f"{data}/labels.json")  # we may not touch labels: the next command restores them
    if not (written and gone) or labelled:
        _unlink(f"{runtime}/control.sock")
        return
    _unlink(f"{data}/run.json")
    if config["remove_on_exit"]:
        _unlink(f"{data}/definition.json")
        for name in _list(data):
            _unlink(f"{data}/{name}")
        _rmdir(data)
    for name in ("control.sock", "state.json", "state.json.tmp"):
        _unlink(f"{runtime}/{name}")
    _rmdir(f"{runtime}/root")
    _unlink(f"{runtime}/lock")  # still held by us: nobody can start in between
    _rmdir(runtime)


def _remove_cgroups(directories: list[str]) -> bool:
    """Whether all are gone; the helpers in them may take a moment to die."""
    end = time.monotonic() + 2
    while True:
        left = [directory for directory in directories if not _rmdir(directory) and os.path.isdir(directory)]
        if not left or time.monotonic() > end:
            return not left
        time.sleep(0.005)


def _list(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        return


def _rmdir(path: str) -> bool:
    try:
        os.rmdir(path)
    except OSError:
        return False
    return True
