"""The launcher's process becomes the supervisor: the control socket, what is handed over, and the exec.

What the supervisor needs travels in a memfd: the numbers of the descriptors that it keeps, its directories, its filter.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never

import msgspec

from casemate.engine.launch import Launched
from casemate.engine.opening import overlay_roles
from casemate.engine.paths import Paths
from casemate.engine.vmfiles import Definition, Process, RunningState
from casemate.jail.compile import cached_program
from casemate.plan.model import LaunchPlan
from casemate.sys.process import start_time_ticks

if TYPE_CHECKING:
    from casemate.engine.start import Prepared

STOP_GRACE_S = 10.0
RUNTIME_CHECK_S = 30.0


def listen(path: str) -> socket.socket:
    """The control socket, bound."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # A Unix socket's path has at most 107 bytes; a long one is reached through its directory's descriptor.
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
    finally:
        os.close(directory)
    listener.listen(128)
    return listener


def running_state(
    definition: Definition, plan: LaunchPlan, launched: Launched, ourselves: Process, started_at: str
) -> RunningState:
    """state.json as the supervisor finds it."""
    spawned = launched.spawned
    members = (member for helper in launched.helpers for member in helper.members())
    return RunningState(
        id=definition.id,
        name=definition.name,
        phase="running",
        supervisor=ourselves,
        emulator=Process("qemu", spawned.pid, start_time_ticks(spawned.pid)),
        helpers=tuple(Process(member.name, member.pid, start_time_ticks(member.pid)) for member in members),
        uid=plan.run_as.uid,
        gid=plan.run_as.gid,
        accel=plan.accel,
        started_at=started_at,
        cgroups=plan.cgroup.directories,
        console=definition.spec.console.device.value,
    )


def exec_supervisor(
    paths: Paths,
    definition: Definition,
    prepared: Prepared,
    launched: Launched,
    listener: socket.socket,
    running: RunningState,
) -> Never:
    """Become the supervisor of a released VM."""
    config = _configuration(paths, definition, prepared, launched, listener, running)
    # Whoever asks us to stop from here on is answered by the supervisor, which unblocks these.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
    handover = os.memfd_create("casemate-handover", os.MFD_CLOEXEC)
    os.write(handover, json.dumps(config).encode())
    os.lseek(handover, 0, os.SEEK_SET)
    for descriptor in (*config["inherited_fds"], handover):
        os.set_inheritable(descriptor, True)
    source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    code = f"import sys; sys.path.insert(0, {source!r}); from casemate.engine.supervise import main; main({handover})"
    # A traceback of the supervisor is for us to read; it has no other place to go.
    words = os.open(
        f"{paths.vm_data(definition.id)}/supervisor.log",
        os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC,
        0o600,
    )
    os.dup2(words, 2)
    interpreter = os.path.realpath(sys.executable)
    os.execve(interpreter, [interpreter, "-I", "-S", "-c", code, definition.id], {"LC_ALL": "C.UTF-8"})  # noqa: S606


def _configuration(
    paths: Paths,
    definition: Definition,
    prepared: Prepared,
    launched: Launched,
    listener: socket.socket,
    running: RunningState,
) -> dict[str, Any]:
    """What ``supervise.Supervisor`` takes; ``*_fd`` and ``*_fds`` are numbers of descriptors that stay open."""
    runtime, data = paths.vm_runtime(definition.id), paths.vm_data(definition.id)
    helper_pidfds = {str(member.pidfd): member.title for helper in launched.helpers for member in helper.members()}
    locks = [*prepared.locks, *prepared.opened.locks]
    streams = {
        "console_fd": launched.console.fileno(),
        "qmp_fd": launched.qmp.fileno(),
        "log_fd": launched.log_fd,
        "listener_fd": listener.fileno(),
        "pidfd": launched.spawned.pidfd,
    }
    clone = [launched.clone.fileno()] if launched.clone is not None else []
    keys = [launched.keys.fileno()] if launched.keys is not None else []
    overlays = _overlays(definition, prepared)
    attendants = prepared.attendants
    return {
        **streams,
        "runtime": runtime,
        "data": data,
        "accel": running.accel,
        "clone_fd": clone[0] if clone else -1,
        "keys_fd": keys[0] if keys else -1,
        "overlay_fds": overlays,
        "attendant_fds": attendants,
        "helper_pidfds": helper_pidfds,
        "inherited_fds": [
            *(*streams.values(), *locks, *map(int, helper_pidfds)),
            *(*clone, *keys, *overlays, *attendants.values()),
        ],
        "lock_fds": locks,
        "console_log_max_bytes": definition.spec.console.log_max_kib * 1024,
        "timeout_s": definition.timeout_s,
        "stop_grace_s": STOP_GRACE_S,
        "runtime_check_s": RUNTIME_CHECK_S,
        "remove_on_exit": definition.remove_on_exit,
        "state": msgspec.to_builtins(running),
        "early_qmp": launched.unheard.decode("utf-8", "replace"),
        "early_log": launched.early_log.decode("utf-8", "replace"),
        "writable": [runtime, data],
        "seccomp_program": _supervisor_filter(paths),
    }


def _overlays(definition: Definition, prepared: Prepared) -> list[int]:
    """What a save copies, in the order of the disks: open for reading, since nobody but the emulator writes there."""
    spec = definition.spec
    if not spec.machine.saveable:
        return []
    sources = [prepared.opened.by_role[role] for role in overlay_roles(spec)]
    return [os.open(f"/proc/self/fd/{source}", os.O_RDONLY | os.O_CLOEXEC) for source in sources]


def _supervisor_filter(paths: Paths) -> str:
    import base64

    from casemate.jail.profiles import supervisor_profile

    program = cached_program(supervisor_profile(), os.uname().machine, Path(paths.cache) / "filters")
    return base64.b64encode(program).decode()
