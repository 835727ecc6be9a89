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
import errno
import json
import os
import resource
import select
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Never

import msgspec

from casemate.controls.catalogue.launch import confidential_controls, launch_controls
from casemate.controls.judge import judge, refusal_error, refusals
from casemate.controls.model import AppliedWaiver, Control, Finding
from casemate.controls.policy import HostPolicy, controls_under, effective_waivers
from casemate.engine import errorwire, files, hostview, identity, labels, state
from casemate.engine.aftermath import drop_runtime, end_process, settle
from casemate.engine.content import Promise, extra_time_s, promises_of
from casemate.engine.handover import exec_supervisor, listen, running_state
from casemate.engine.launch import Launched, launch
from casemate.engine.opening import Opened, open_planned_files, open_spec_files
from casemate.engine.origins import origin_facts, stored_images
from casemate.engine.paths import Paths, own_directory
from casemate.engine.uefi import firmware_promises
from casemate.engine.vmfiles import Definition, Exit, RunMark, RunningState, salvage_struct, this_process
from casemate.engine.wallreport import wall_report
from casemate.errors import CasemateError, HostError, RefusedError, VmError
from casemate.facts.fact import Stage
from casemate.image.builtin import find_builtin
from casemate.jail.compile import cached_program
from casemate.jail.policy import Identity
from casemate.jail.spawn import kill_and_reap
from casemate.plan.build import Request, build_plan
from casemate.plan.model import LaunchPlan
from casemate.plan.provisioning import is_provisioned
from casemate.spec.model import Spec

if TYPE_CHECKING:
    from casemate.engine.attendance import Attendance
    from casemate.engine.restore import Restore
    from casemate.engine.tpm_state import Home

RESULT_MAX_BYTES = 1 << 20
LAUNCH_DEADLINE_S = 120.0


class Prepared(msgspec.Struct):
    """Everything that a launch needs, before the fork. `close` frees it."""

    plan: LaunchPlan
    program: bytes
    opened: Opened
    waivers: tuple[AppliedWaiver, ...]
    controls: tuple[Control, ...]
    locks: list[int]
    restore: Restore | None = None
    attendants: dict[str, int] = msgspec.field(default_factory=dict)
    tpm: Home | None = None

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


def make_plan(
    spec: Spec,
    paths: Paths,
    vm_id: str,
    name: str,
    who: Identity,
    sizes: dict[str, int],
    *,
    incoming: bool = False,
    tpm_identity: Identity | None = None,
    keeps_state: bool = True,
) -> LaunchPlan:
    """Collect host facts and plan; nothing is started."""
    host, emulator = hostview.collect(spec, paths)
    request = Request(vm_id, name, who, sizes, incoming=incoming, tpm_identity=tpm_identity, keeps_state=keeps_state)
    return build_plan(spec, host, emulator, request)


def launch_controls_of(spec: Spec) -> tuple[Control, ...]:
    """The controls that this VM is judged by."""
    return launch_controls() if spec.confidential is None else confidential_controls()


def check_host(plan: LaunchPlan) -> None:
    """Stop at what this host cannot do for a confidential guest.

    Raises:
        HostError: with everything that is missing.
    """
    if plan.missing and plan.spec.confidential is not None:
        raise HostError(
            f"this host cannot start a guest of kind {plan.spec.confidential.kind}:"
            + "".join(f"\n  - {reason}" for reason in plan.missing),
            next_step="casemate plan shows the whole launch all the same; run it on a host that has these",
        )


def declare_origin(plan: LaunchPlan, paths: Paths, policy: HostPolicy) -> tuple[Promise, ...]:
    """Add to the plan's facts where its disks come from; returns what their content must be."""
    stored = stored_images(plan.spec, paths)
    promises = promises_of(plan.spec, stored)
    plan.declared.update(origin_facts(plan.spec, stored, promises, policy.image))
    return promises


def judge_declared(
    plan: LaunchPlan, waivers: tuple[AppliedWaiver, ...], controls: tuple[Control, ...]
) -> tuple[Finding, ...]:
    """What the plan alone says; observed-only controls are pending until the VM is paused."""
    return judge(controls, plan.declared, stage=Stage.DECLARED, waivers=waivers)


def prepare(paths: Paths, definition: Definition, policy: HostPolicy, restore: Restore | None = None) -> Prepared:
    """Lock, plan, judge what is declared, open and compile.

    Args:
        restore: the saved state that the VM goes on from.

    Raises:
        InputError: it already runs, or a file is not acceptable. HostError, RefusedError: as they say.
    """
    waivers = waivers_of(definition.spec, policy)
    locks = [state.claim(paths, definition)]
    opened: Opened | None = None
    try:
        opened = open_spec_files(definition.spec)
        opened.digests = _promised_digests(definition.spec, paths)
        who, tpm_who = _claim_identities(paths, definition.spec, policy, locks)
        plan = make_plan(
            definition.spec,
            paths,
            definition.id,
            definition.name,
            who,
            opened.sizes,
            incoming=restore is not None,
            tpm_identity=tpm_who,
            keeps_state=not definition.remove_on_exit,
        )
        check_host(plan)
        opened.promises = declare_origin(plan, paths, policy) + firmware_promises(plan.files)
        controls = controls_under(policy, launch_controls_of(definition.spec))
        declared = judge_declared(plan, waivers, controls)
        refused = refusals(declared)
        if refused:
            raise refusal_error(refused)
        if is_provisioned(plan.spec):
            from casemate.engine import provisioning

            provisioning.fill(plan, opened)
        if restore is not None:
            restore.check(opened, plan, paths.vm_data(definition.id))
        tpm = None
        if plan.spec.tpm.enabled:
            from casemate.engine import tpm_state

            tpm = tpm_state.prepare(plan, paths, opened)
        open_planned_files(plan.files, opened, paths, definition.id, plan.spec.boot)
        labels.apply_labels(plan, opened, paths)
        program = cached_program(plan.profile, os.uname().machine, Path(paths.cache) / "filters")
        own_directory(f"{paths.vm_runtime(definition.id)}/root")
    except BaseException:
        if opened is not None:
            opened.close()
        _abandon(paths, definition.id)
        for descriptor in locks:
            os.close(descriptor)
        raise
    return Prepared(plan, program, opened, waivers, controls, locks, restore, tpm=tpm)


def _claim_identities(
    paths: Paths, spec: Spec, policy: HostPolicy, locks: list[int]
) -> tuple[Identity, Identity | None]:
    """The emulator's identity and, for a VM with a TPM, that of its emulator; ``locks`` collects what holds them."""
    who, lock = identity.claim(paths, policy.identity.uids())
    locks.append(lock)
    if not spec.tpm.enabled:
        return who, None
    second, more = identity.claim_beside(paths, policy.identity.uids(), who)
    locks += more
    return who, second


def _promised_digests(spec: Spec, paths: Paths) -> dict[str, str]:
    """The built-in guest's manifest promises digests; other kernels are recorded as they are."""
    guest = find_builtin((Path(paths.cache),))
    if guest is None or spec.boot.kernel != str(guest.kernel) or spec.boot.initrd != str(guest.initrd):
        return {}
    return {"kernel": guest.kernel_sha256, "initrd": guest.initrd_sha256}


def start(
    paths: Paths,
    definition: Definition,
    policy: HostPolicy,
    restore: Restore | None = None,
    attendance: Attendance | None = None,
) -> LaunchPlan:
    """Start the VM; returns when the guest has been released.

    Args:
        attendance: of somebody who follows the run from its first byte on.

    Raises:
        CasemateError: why it did not start; nothing is left running.
    """
    prepared = prepare(paths, definition, policy, restore)
    if attendance is not None:
        prepared.attendants = attendance.supervisor_ends()
    try:
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        try:
            middle = os.fork()
            if middle == 0:
                _become_supervisor(paths, definition, prepared, write_end)
        finally:
            os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            with contextlib.suppress(ChildProcessError):  # the caller ignores SIGCHLD: the kernel has reaped it
                os.waitpid(middle, 0)
            extra_s = extra_time_s(prepared.opened.promises, prepared.opened.by_role)
            _wait_for_word(pipe.fileno(), LAUNCH_DEADLINE_S + extra_s)
    except BaseException:
        _give_up(paths, definition.id)
        raise
    finally:
        if attendance is not None:
            attendance.handed_over()
        prepared.close()
    return prepared.plan


def _give_up(paths: Paths, vm_id: str) -> None:
    """The launch failed, was killed, or takes too long: end what is left of it, under the lock that we still hold."""
    mark = salvage_struct(f"{paths.vm_data(vm_id)}/run.json", RunMark)
    if mark is not None and mark.supervisor is not None:
        end_process(mark.supervisor)
    if settle(paths, vm_id).clean:
        drop_runtime(paths, vm_id)


def _wait_for_word(pipe: int, deadline_s: float) -> None:
    data = bytearray()
    end = time.monotonic() + deadline_s
    poller = select.poll()
    poller.register(pipe, select.POLLIN)
    while b"\n" not in data and len(data) < RESULT_MAX_BYTES:
        if not poller.poll(max(0.0, end - time.monotonic()) * 1000):
            raise VmError("the launch did not finish in time", expected=f"{deadline_s:.0f} s at most")
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
        _leave_the_caller(prepared, word)
        _launch_and_exec(paths, definition, prepared, word)
    except BaseException as fault:
        with contextlib.suppress(OSError):
            os.write(word, json.dumps({"error": errorwire.encode(_as_error(fault, paths))}).encode() + b"\n")
    os._exit(1)


def _leave_the_caller(prepared: Prepared, word: int) -> None:
    """Nothing of the caller's comes along: terminal, directory, signal handlers and masks, descriptors of its threads.

    A long-lived caller starts VMs from several threads: their pipes and locks, which fork copied, would be held here.
    """
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    signal.set_wakeup_fd(-1)
    for which in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):  # the C library keeps two of them to itself
            signal.signal(which, signal.SIG_IGN if which == signal.SIGPIPE else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for number in (0, 1, 2):
        os.dup2(null, number)
    ours = {word, *prepared.opened.by_role.values(), *prepared.opened.locks, *prepared.locks}
    ours.update(prepared.attendants.values())
    first = 3
    for descriptor in sorted(ours):
        os.closerange(first, descriptor)
        first = descriptor + 1
    os.closerange(first, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def _as_error(fault: BaseException, paths: Paths) -> CasemateError:
    if isinstance(fault, CasemateError):
        return fault
    if isinstance(fault, OSError) and fault.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS}:
        return HostError(
            "there is no room for the VM's files",
            got=f"{fault.filename}: {fault.strerror}",
            next_step=f"df -h {paths.data} {paths.runtime}",
        )
    return VmError("the launch failed", got=f"{type(fault).__name__}: {fault}")


def _abandon(paths: Paths, vm_id: str) -> None:
    """A launch that failed leaves no runtime directory, no mark of a run and no label."""
    labels.restore_labels(paths, vm_id)
    files.unlink_if_there(f"{paths.vm_data(vm_id)}/run.json")
    drop_runtime(paths, vm_id)


def _launch_and_exec(paths: Paths, definition: Definition, prepared: Prepared, word: int) -> Never:
    plan, vm_id = prepared.plan, definition.id
    runtime, data = paths.vm_runtime(vm_id), paths.vm_data(vm_id)
    started_at = state.now()
    ourselves = this_process("casemate-sup")
    launched: Launched | None = None
    try:
        files.unlink_if_there(f"{data}/exit.json")
        who, where = plan.run_as.uid, paths.runtime
        mark = RunMark(state.boot_id(), started_at, ourselves, plan.cgroup.directories, who, plan.accel, where)
        files.write_json(f"{data}/run.json", mark)
        launched = launch(
            plan,
            prepared.program,
            prepared.opened,
            f"{runtime}/root",
            prepared.waivers,
            prepared.controls,
            prepared.restore,
            prepared.tpm,
        )
        listener = listen(f"{runtime}/control.sock")
        running = running_state(definition, plan, launched, ourselves, started_at)
        files.write_json(f"{runtime}/state.json", running, durable=False)
        files.write_json(f"{data}/wall.json", wall_report(plan, launched, prepared.opened))
    except BaseException:
        _undo(plan, launched)
        _abandon(paths, vm_id)
        raise
    os.write(word, json.dumps({"ok": True, "pid": launched.spawned.pid}).encode() + b"\n")
    os.close(word)
    # From here on the VM runs: whatever fails is the end of a run, and run.json lets the next command say so.
    try:
        running = _sign_record(paths, definition, prepared, launched, running)
        exec_supervisor(paths, definition, prepared, launched, listener, running)
    except BaseException as fault:
        with contextlib.suppress(OSError):
            ended = Exit("supervisor failed", 5, state.now(), started_at, str(_as_error(fault, paths)))
            files.write_json(f"{data}/exit.json", ended)
        _undo(plan, launched)
        os._exit(1)


def _undo(plan: LaunchPlan, launched: Launched | None) -> None:
    """End a VM that was released already, or is about to be."""
    if launched is not None:
        with contextlib.suppress(CasemateError):
            kill_and_reap(launched.spawned)
        for helper in launched.helpers:
            helper.stop()
        state.remove_cgroups(plan.cgroup.directories)


def _sign_record(
    paths: Paths, definition: Definition, prepared: Prepared, launched: Launched, running: RunningState
) -> RunningState:
    """After the release: signing costs more than the launch. A record that cannot be written is said in ``health``."""
    from casemate.engine.records import write_record

    try:
        write_record(paths, definition, prepared.plan, launched, prepared.opened.sizes)
    except (CasemateError, OSError) as fault:
        running = msgspec.structs.replace(running, health=(f"no launch record: {fault}",))
        with contextlib.suppress(OSError):
            files.write_json(f"{paths.vm_runtime(definition.id)}/state.json", running, durable=False)
    return running
