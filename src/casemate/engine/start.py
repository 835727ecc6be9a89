"""Start a defined VM: plan, open, fork the supervisor-to-be, wait for its word.

    caller                           middle child            supervisor
      lock, plan, open, compile
      fork ───────────────────────►  fork, exit ──────────►  launch (launch.py)
      ◄──────────────── pipe: {"ok": true, "pid": …} or {"error": …} ──
                                                             sign the record, exec the minimal interpreter

The middle child makes the supervisor an orphan, so that a long-lived caller gets no zombie.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Never

import msgspec

from casemate.controls.judge import judge, refusal_error, refusals
from casemate.controls.model import AppliedWaiver, Control, Finding
from casemate.controls.policy import HostPolicy, controls_under, effective_waivers
from casemate.engine import errorwire, files, hostview, identity, state
from casemate.engine.launch import Launched, launch
from casemate.engine.opening import Opened, open_planned_files, open_spec_files
from casemate.engine.paths import Paths, own_directory
from casemate.engine.state import Definition, Process, RunMark, RunningState
from casemate.errors import CasemateError, InputError, RefusedError, VmError
from casemate.facts.fact import Stage
from casemate.jail.compile import cached_program
from casemate.jail.policy import Identity
from casemate.plan.build import Request, build_plan
from casemate.plan.model import LaunchPlan
from casemate.spec.model import Spec
from casemate.sys.process import start_time_ticks

STOP_GRACE_S = 10.0
RESULT_MAX_BYTES = 1 << 20
LAUNCH_DEADLINE_S = 120.0


@dataclass
class Prepared:
    """Everything that a launch needs, before the fork. `close` frees it."""

    plan: LaunchPlan
    program: bytes
    opened: Opened
    waivers: tuple[AppliedWaiver, ...]
    controls: tuple[Control, ...]
    locks: list[int]

    def close(self) -> None:
        """Close files and locks; the supervisor has its own copies."""
        self.opened.close()
        for descriptor in self.locks:
            os.close(descriptor)
        self.locks.clear()


def waivers_of(spec: Spec, policy: HostPolicy) -> tuple[AppliedWaiver, ...]:
    """Waivers that the host's policy allows.

    Raises:
        RefusedError: the specification asks for one that it does not.
    """
    applied, refused = effective_waivers(spec.waivers, policy, datetime.datetime.now(tz=datetime.UTC).date())
    if refused:
        first = refused[0]
        raise RefusedError(
            first.control,
            "the specification waives this control and the host's policy does not allow that",
            got=first.why,
            next_step="the host's administrator decides in /etc/casemate/policy.toml: [waivers] allowed = [...]",
        )
    return applied


def make_plan(spec: Spec, paths: Paths, vm_id: str, name: str, who: Identity, sizes: dict[str, int]) -> LaunchPlan:
    """Collect host facts and plan; nothing is started."""
    host, emulator = hostview.collect(spec, paths)
    return build_plan(spec, host, emulator, Request(vm_id, name, who, sizes))


def judge_declared(
    plan: LaunchPlan, waivers: tuple[AppliedWaiver, ...], controls: tuple[Control, ...]
) -> tuple[Finding, ...]:
    """What the plan alone says; observed-only controls are pending until the VM is paused."""
    return judge(controls, plan.declared, stage=Stage.DECLARED, waivers=waivers)


def prepare(paths: Paths, definition: Definition, policy: HostPolicy) -> Prepared:
    """Lock, plan, judge what is declared, open and compile.

    Raises:
        InputError: it already runs, or a file is not acceptable. HostError, RefusedError: as they say.
    """
    waivers = waivers_of(definition.spec, policy)
    own_directory(paths.vm_runtime(definition.id))
    lock = files.take_lock(f"{paths.vm_runtime(definition.id)}/lock", wait=False)
    if lock is None:
        raise InputError(f"{definition.name} already runs", next_step=f"casemate stop {definition.name}")
    locks = [lock]
    opened: Opened | None = None
    try:
        opened = open_spec_files(definition.spec)
        who, uid_lock = identity.claim(paths, policy.identity.uids())
        locks.append(uid_lock)
        plan = make_plan(definition.spec, paths, definition.id, definition.name, who, opened.sizes)
        controls = controls_under(policy)
        declared = judge_declared(plan, waivers, controls)
        refused = refusals(declared)
        if refused:
            raise refusal_error(refused)
        open_planned_files(plan.files, opened, paths, definition.id)
        program = cached_program(plan.profile, os.uname().machine, Path(paths.cache) / "filters")
        own_directory(f"{paths.vm_runtime(definition.id)}/root")
    except BaseException:
        if opened is not None:
            opened.close()
        _abandon(paths, definition.id)
        for descriptor in locks:
            os.close(descriptor)
        raise
    return Prepared(plan, program, opened, waivers, controls, locks)


def start(paths: Paths, definition: Definition, policy: HostPolicy) -> LaunchPlan:
    """Start the VM; returns when the guest has been released.

    Raises:
        CasemateError: why it did not start; nothing is left running.
    """
    prepared = prepare(paths, definition, policy)
    try:
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        middle = os.fork()
        if middle == 0:
            os.close(read_end)
            _become_supervisor(paths, definition, prepared, write_end)
        os.close(write_end)
        os.waitpid(middle, 0)
        with os.fdopen(read_end, "rb") as pipe:
            _wait_for_word(pipe.fileno())
    finally:
        prepared.close()
    return prepared.plan


def _wait_for_word(pipe: int) -> None:
    data = bytearray()
    end = time.monotonic() + LAUNCH_DEADLINE_S
    poller = select.poll()
    poller.register(pipe, select.POLLIN)
    while b"\n" not in data and len(data) < RESULT_MAX_BYTES:
        if not poller.poll(max(0.0, end - time.monotonic()) * 1000):
            raise VmError("the launch did not finish in time", expected=f"{LAUNCH_DEADLINE_S:.0f} s at most")
        chunk = os.read(pipe, 65536)
        if not chunk:
            break
        data += chunk
    if not data:
        raise VmError(
            "the supervisor died during the launch", next_step="casemate inspect shows what is left; start again"
        )
    message = json.loads(data)
    if "error" in message:
        raise errorwire.decode(message["error"])


# ---- the supervisor-to-be -------------------------------------------------------------------------------------------


def _become_supervisor(paths: Paths, definition: Definition, prepared: Prepared, word: int) -> Never:
    """In the middle child: fork once more and go; in the grandchild: launch, then exec."""
    try:
        if os.fork() != 0:
            os._exit(0)
        os.setsid()
        os.chdir("/")
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for number in (0, 1, 2):
            os.dup2(null, number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN if number == signal.SIGPIPE else signal.SIG_DFL)
        _launch_and_exec(paths, definition, prepared, word)
    except BaseException as fault:
        error = (
            fault
            if isinstance(fault, CasemateError)
            else VmError("the launch failed", got=f"{type(fault).__name__}: {fault}")
        )
        _abandon(paths, definition.id)
        with contextlib.suppress(OSError):
            os.write(word, json.dumps({"error": errorwire.encode(error)}).encode() + b"\n")
    os._exit(1)


def _abandon(paths: Paths, vm_id: str) -> None:
    """A launch that failed leaves no runtime directory and no mark of a run."""
    runtime = paths.vm_runtime(vm_id)
    for name in ("control.sock", "state.json"):
        files.unlink_if_there(f"{runtime}/{name}")
    files.unlink_if_there(f"{paths.vm_data(vm_id)}/run.json")
    with contextlib.suppress(OSError):
        os.rmdir(f"{runtime}/root")
    files.unlink_if_there(f"{runtime}/lock")
    with contextlib.suppress(OSError):
        os.rmdir(runtime)


def _launch_and_exec(paths: Paths, definition: Definition, prepared: Prepared, word: int) -> Never:
    plan, vm_id = prepared.plan, definition.id
    runtime, data = paths.vm_runtime(vm_id), paths.vm_data(vm_id)
    started_at = state.now()
    files.unlink_if_there(f"{data}/exit.json")
    files.write_json(f"{data}/run.json", RunMark(state.boot_id(), started_at))
    launched = launch(plan, prepared.program, prepared.opened, f"{runtime}/root", prepared.waivers, prepared.controls)
    listener = _listen(f"{runtime}/control.sock")
    spawned, network = launched.spawned, launched.network
    helpers = {"passt": network} if network is not None else {}
    running = RunningState(
        id=vm_id,
        name=definition.name,
        phase="running",
        supervisor=Process("casemate-sup", os.getpid(), start_time_ticks(os.getpid())),
        emulator=Process("qemu", spawned.pid, start_time_ticks(spawned.pid)),
        helpers=tuple(Process(name, item.pid, start_time_ticks(item.pid)) for name, item in helpers.items()),
        uid=plan.run_as.uid,
        gid=plan.run_as.gid,
        accel=plan.accel,
        started_at=started_at,
        cgroups=plan.cgroup.directories,
        console=definition.spec.console.device.value,
    )
    files.write_json(f"{runtime}/state.json", running)
    files.write_json(f"{data}/wall.json", wall_report(plan, launched))
    os.write(word, json.dumps({"ok": True, "pid": spawned.pid}).encode() + b"\n")
    os.close(word)
    running = _sign_record(paths, definition, prepared, launched, running)
    _exec_supervisor(paths, definition, prepared, launched, listener, running)


def _sign_record(
    paths: Paths, definition: Definition, prepared: Prepared, launched: Launched, running: RunningState
) -> RunningState:
    """After the release: signing costs more than the launch. A record that cannot be written is said in ``health``."""
    from casemate.engine.records import write_record

    try:
        write_record(paths, definition, prepared.plan, launched, prepared.opened.sizes)
    except (CasemateError, OSError) as fault:
        running = msgspec.structs.replace(running, health=(f"no launch record: {fault}",))
        files.write_json(f"{paths.vm_runtime(definition.id)}/state.json", running)
    return running


def wall_report(plan: LaunchPlan, launched: Launched) -> dict[str, Any]:
    """wall.json: what ``inspect`` shows of the read-back."""
    return {
        "findings": msgspec.to_builtins(launched.findings),
        "qemu_version": launched.qemu_version,
        "timings_ms": launched.timings_ms,
        "startup_notifications": launched.notifications,
        "warnings": plan.warnings,
        "accel_why": plan.accel_why,
        "profile": plan.profile.name,
    }


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # A Unix socket's path has at most 107 bytes; a long one is reached through its directory's descriptor.
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
    finally:
        os.close(directory)
    listener.listen(16)
    return listener


def _exec_supervisor(
    paths: Paths,
    definition: Definition,
    prepared: Prepared,
    launched: Launched,
    listener: socket.socket,
    running: RunningState,
) -> Never:
    runtime, data = paths.vm_runtime(definition.id), paths.vm_data(definition.id)
    network = launched.network
    helper_pidfds = {str(network.pidfd): "passt"} if network is not None else {}
    keep = [
        launched.qmp.fileno(),
        launched.console.fileno(),
        launched.log_fd,
        listener.fileno(),
        launched.spawned.pidfd,
        *prepared.locks,
        *prepared.opened.locks,
        *(int(item) for item in helper_pidfds),
    ]
    writable = [runtime, os.path.dirname(runtime), data] + (
        [os.path.dirname(data)] if definition.remove_on_exit else []
    )
    config = {
        "runtime": runtime,
        "data": data,
        "accel": running.accel,
        "console_fd": launched.console.fileno(),
        "qmp_fd": launched.qmp.fileno(),
        "log_fd": launched.log_fd,
        "listener_fd": listener.fileno(),
        "pidfd": launched.spawned.pidfd,
        "helper_pidfds": helper_pidfds,
        "inherited_fds": keep,
        "console_log_max_bytes": definition.spec.console.log_max_kib * 1024,
        "timeout_s": definition.timeout_s,
        "stop_grace_s": STOP_GRACE_S,
        "remove_on_exit": definition.remove_on_exit,
        "state": msgspec.to_builtins(running),
        "early_log": launched.early_log.decode("utf-8", "replace"),
        "writable": writable,
        "seccomp_program": _supervisor_filter(paths),
    }
    handover = os.memfd_create("casemate-handover", os.MFD_CLOEXEC)
    os.write(handover, json.dumps(config).encode())
    os.lseek(handover, 0, os.SEEK_SET)
    for descriptor in (*keep, handover):
        os.set_inheritable(descriptor, True)
    source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    code = f"import sys; sys.path.insert(0, {source!r}); from casemate.engine.supervise import main; main({handover})"
    # A traceback of the supervisor is for us to read; it has no other place to go.
    words = os.open(
        f"{data}/supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    os.dup2(words, 2)
    interpreter = os.path.realpath(sys.executable)
    os.execve(interpreter, [interpreter, "-I", "-S", "-B", "-c", code, definition.id], {"LC_ALL": "C.UTF-8"})


def _supervisor_filter(paths: Paths) -> str:
    import base64

    from casemate.jail.profiles import supervisor_profile

    program = cached_program(supervisor_profile(), os.uname().machine, Path(paths.cache) / "filters")
    return base64.b64encode(program).decode()
