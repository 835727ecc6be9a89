"""Real VMs in directories of their own, with everything that a test needs to kill them and to look for what is left.

A test makes a `Machines`, starts VMs through the engine as the public API does, and at the end nothing may be left:
no process, mount, cgroup, lock or runtime file. `leftovers` is that inventory.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from casemate.controls.policy import HostPolicy
from casemate.engine import control, files, state
from casemate.engine.paths import Paths, default_paths, prepare
from casemate.engine.start import start
from casemate.engine.vmfiles import Definition, Exit, RunningState, Vm
from casemate.image.builtin import build_builtin
from casemate.spec.model import ConsoleDevice, Spec
from casemate.spec.override import builtin_spec

DEADLINE_S = 120.0
READY = b"casemate-guest: ready"


def wait_for(what: str, condition: Any, deadline_s: float = DEADLINE_S) -> Any:
    """Poll ``condition`` until it is true and give its value; AssertionError names ``what``."""
    end = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {deadline_s:.0f} s for {what}"
        time.sleep(0.01)
    return found


class Machines:
    """VMs of one test. Data, runtime and lock files are the test's own; derived data comes from the real cache."""

    def __init__(self, base: str) -> None:
        self.paths = Paths(f"{base}/run", f"{base}/data", default_paths().cache)
        prepare(self.paths)
        guest = build_builtin(Path(self.paths.cache), print)
        self._guest = guest
        self.made: list[Definition] = []

    def spec(self, switch: str = "idle", **changes: Any) -> Spec:
        """The built-in guest with a test switch; ``changes`` replace parts of the specification."""
        words = f"{self._guest.cmdline} casemate.test={switch}"
        console = changes.get("console")
        if console is not None and console.device is ConsoleDevice.VIRTIO:
            words = words.replace("console=ttyS0", "console=hvc0")
        spec = builtin_spec(str(self._guest.kernel), str(self._guest.initrd), words)
        machine = msgspec.structs.replace(spec.machine, memory_mib=changes.pop("memory_mib", 96))
        return msgspec.structs.replace(spec, machine=machine, **changes)

    def define(self, spec: Spec, **options: Any) -> Definition:
        """Create without starting."""
        definition = state.create(self.paths, spec, **options)
        self.made.append(definition)
        return definition

    def start(self, definition: Definition) -> RunningState:
        """Start, and give the state that the launch wrote."""
        start(self.paths, definition, HostPolicy())
        running = state.look(self.paths, definition).running
        assert running is not None
        return running

    def boot(self, switch: str = "idle", *, ready: bool = True, **options: Any) -> tuple[Definition, RunningState]:
        """Create, start, and wait until the guest's init is up."""
        spec_changes = {name: options.pop(name) for name in ("memory_mib", "console", "network") if name in options}
        definition = self.define(self.spec(switch, **spec_changes), **options)
        running = self.start(definition)
        if ready:
            self.wait_console(definition, READY)
        return definition, running

    def look(self, definition: Definition) -> Vm:
        """As ``casemate inspect`` does."""
        return state.look(self.paths, definition)

    def console(self, definition: Definition) -> bytes:
        """The console's log, newer half."""
        with contextlib.suppress(OSError):
            return Path(f"{self.paths.vm_data(definition.id)}/console.log").read_bytes()
        return b""

    def events(self, definition: Definition) -> list[dict[str, Any]]:
        """events.jsonl."""
        text = Path(f"{self.paths.vm_data(definition.id)}/events.jsonl").read_bytes()
        return [msgspec.json.decode(line) for line in text.splitlines()]

    def wait_console(self, definition: Definition, text: bytes, count: int = 1) -> None:
        """Until the guest has printed ``text`` ``count`` times."""
        wait_for(repr(text), lambda: self.console(definition).count(text) >= count)

    def wait_end(self, definition: Definition) -> Exit:
        """Until the VM has ended by itself."""
        vm = wait_for("the end", lambda: (v := self.look(definition)).state == "exited" and v)
        assert vm.exit is not None
        found: Exit = vm.exit
        return found

    def ask(self, definition: Definition, verb: str, **fields: Any) -> dict[str, Any]:
        """One request to the supervisor."""
        return control.request(self.paths, definition, verb, **fields)

    def connect(self, definition: Definition) -> socket.socket:
        """A connection to the control socket."""
        return control.connect(self.paths, definition)

    def end_all(self) -> None:
        """Kill what still runs, remove everything."""
        for definition in self.made:
            if not os.path.exists(f"{self.paths.vm_data(definition.id)}/definition.json"):
                continue
            vm = self.look(definition)
            if vm.running is not None:
                kill(vm.running.supervisor.pid)
                wait_dead(vm.running.supervisor.pid, 10)
            state.remove(self.paths, definition)

    def leftovers(self, definition: Definition, running: RunningState) -> list[str]:
        """Everything of a run that should be gone; empty is good."""
        left = []
        for process in (running.supervisor, running.emulator, *running.helpers):
            if process is not None and not _is_dead(process.pid, process.start_ticks):
                left.append(f"process {process.name} {process.pid}")
        left += [f"cgroup {directory}" for directory in running.cgroups if os.path.exists(directory)]
        runtime = self.paths.vm_runtime(definition.id)
        if os.path.lexists(runtime):
            left += [f"runtime {name}" for name in (*os.listdir(runtime), ".")]
        if os.path.lexists(f"{self.paths.vm_data(definition.id)}/run.json"):
            left.append("run.json")
        if files.is_locked(f"{self.paths.runtime}/ids/{running.uid}"):
            left.append(f"lock of uid {running.uid}")
        mounts = Path("/proc/self/mountinfo").read_text()
        left += [f"mount {line}" for line in mounts.splitlines() if definition.id in line]
        left += [f"cgroup of {name}" for name in _cgroups_named(definition.id)]
        return left

    def check_gone(self, definition: Definition, running: RunningState) -> None:
        """Nothing of the run is left, perhaps after a moment for the kernel."""
        end = time.monotonic() + 10
        while (left := self.leftovers(definition, running)) and time.monotonic() < end:
            time.sleep(0.02)
        assert left == []


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """A signal to a process of ours."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def wait_dead(pid: int, deadline_s: float) -> bool:
    """Whether the process ends (a zombie counts) within the time."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        return bool(poller.poll(deadline_s * 1000))
    finally:
        os.close(pidfd)


def _is_dead(pid: int, start_ticks: int) -> bool:
    """Gone, another process, or a zombie that waits for its reaper, which is not ours."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return int(fields[19]) != start_ticks or fields[0] in "ZX"


def _cgroups_named(vm_id: str) -> list[str]:
    found = []
    for base, names, _ in os.walk("/sys/fs/cgroup"):
        found += [f"{base}/{name}" for name in names if name == vm_id]
    return found


@contextlib.contextmanager
def machines() -> Iterator[Machines]:
    """`Machines` in a short directory (a socket's path has 107 bytes), emptied at the end."""
    base = tempfile.mkdtemp(prefix="cm-", dir="/run" if os.geteuid() == 0 else None)
    found = Machines(base)
    try:
        yield found
    finally:
        try:
            found.end_all()
        finally:
            shutil.rmtree(base, ignore_errors=True)
