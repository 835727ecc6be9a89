"""Prove a wall: put a hostile probe into it in the place of the emulator, and say what it could reach.

    parent (here)                         prover, pid 1 of the wall        one child per attempt
      plan, files, cgroup, bait
      spawn(payload) ──────────────────►  outer steps of the wall
      ◄────────── what it sees ─────────  Landlock
      ◄────────── records ──────────────  fork ─────────────────────────►  filter, attempt
      reads the log as a supervisor does
      judges, removes everything

Steps: 1. own files, identity, cgroup · 2. attempts · 3. wall · 4. records and log · 5. judge · 6. clean up.

A running VM is not touched: the proof builds a second wall from the same specification, with an identity, a cgroup and
an id of its own. Images are opened read-only, whatever the specification says, and never locked.

    runtime/proofs/<id>/lock         flock, held while the proof runs
    runtime/proofs/<id>/cgroups      directories to remove if the proof is killed; the next proof does it
    runtime/proofs/<id>/root/        the new root is mounted here, in the probe's own mount namespace
    runtime/proofs/<id>/data/        overlays, UEFI variables, the log of the probe
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from pathlib import Path
from typing import Final

import msgspec

from casemate.controls.judge import refusal_error, refusals
from casemate.controls.model import AppliedWaiver
from casemate.controls.policy import HostPolicy, controls_under
from casemate.engine import cgroups, files, identity, labels
from casemate.engine.aftermath import remove_cgroups
from casemate.engine.opening import Opened, guest_size_bytes, open_planned_files
from casemate.engine.paths import Paths, own_directory
from casemate.engine.prove_bait import HostBait, bounded, cgroup_counters
from casemate.engine.prove_collect import Collected, Progress
from casemate.engine.prove_report import ProofReport, Unexpected, count
from casemate.engine.prove_run import Run
from casemate.engine.readback import DANGEROUS
from casemate.engine.start import (
    check_host,
    declare_origin,
    judge_declared,
    launch_controls_of,
    make_plan,
    waivers_of,
)
from casemate.engine.vmfiles import Definition
from casemate.errors import HostError, VmError
from casemate.facts.fact import Known
from casemate.image.opening import open_image, open_regular_file
from casemate.jail.compile import cached_program
from casemate.jail.policy import BindFile, Identity, IdentityMode, Layer, Wall
from casemate.jail.probe.attempts import verify_controls
from casemate.jail.probe.judge import Judge, ProbeFailedError, Result, judge_log
from casemate.jail.probe.judge_sight import Seen, judge_sight
from casemate.jail.probe.model import Attempt, Sight
from casemate.plan.model import LaunchPlan
from casemate.spec.model import Spec

NOT_TRACED: Final = "KVM profile: not yet traced with a full kernel"
_HIGH_FD: Final = 600


def prove_vm(
    paths: Paths,
    definition: Definition,
    policy: HostPolicy,
    *,
    without: Layer | None = None,
    quick: bool = False,
    progress: Progress | None = None,
) -> ProofReport:
    """Prove the wall of a defined VM, running or not; it is not touched. See `prove_spec`."""
    spec = msgspec.structs.replace(definition.spec, name=definition.name)
    return prove_spec(paths, spec, policy, without=without, quick=quick, progress=progress)


def prove_spec(
    paths: Paths,
    spec: Spec,
    policy: HostPolicy,
    *,
    without: Layer | None = None,
    quick: bool = False,
    progress: Progress | None = None,
) -> ProofReport:
    """Prove the wall that a specification would get on this host.

    Args:
        without: leave this one layer out.
        quick: by number only the calls of the profile and the dangerous ones, no near misses of rules, no memory, a
            short log flood.
        progress: called with (done, total, group) from time to time.

    Raises:
        InputError, HostError, RefusedError: as for a launch. VmError: the probe itself did not work.
    """
    waivers = waivers_of(spec, policy)
    sweep_stale(paths)
    proof_id = f"proof{secrets.token_hex(6)}"
    home = f"{paths.runtime}/proofs/{proof_id}"
    own_directory(f"{paths.runtime}/proofs")
    own_directory(home)
    locks = [_lock(home)]
    opened, own = Opened(), Paths(home, f"{home}/data", paths.cache)
    try:
        for part in ("root", "data", "data/vms", f"data/vms/{proof_id}"):
            own_directory(f"{home}/{part}")
        _open_read_only(spec, opened)
        who, uid_lock, notes = _identity(paths, policy)
        locks.append(uid_lock)
        plan = make_plan(spec, paths, proof_id, spec.name or "proof", who, opened.sizes)
        check_host(plan)
        declare_origin(plan, paths, policy)
        _judge_plan(plan, waivers, policy)
        _open_rest(plan, opened, own, proof_id)
        labels.apply_labels(plan, opened, own, foreign=True)
        program = cached_program(plan.profile, os.uname().machine, Path(paths.cache) / "filters")
        report = prove(
            plan, program, opened, f"{home}/root", paths, without=without, quick=quick, progress=progress, home=home
        )
        return msgspec.structs.replace(report, notes=(*report.notes, *notes))
    finally:
        opened.close()
        labels.restore_labels(own, proof_id)
        files.remove_tree(home)
        for descriptor in locks:
            if descriptor >= 0:
                os.close(descriptor)


def prove(
    plan: LaunchPlan,
    program: bytes,
    opened: Opened,
    staging: str,
    paths: Paths,
    *,
    without: Layer | None = None,
    quick: bool = False,
    progress: Progress | None = None,
    home: str | None = None,
) -> ProofReport:
    """Prove one plan. Makes and removes the plan's cgroup; everything else stays the caller's.

    Args:
        plan: as for a launch, with an identity and an id that no running VM has.
        program: the compiled filter to load: the judge compares it with ``plan.profile``.
        opened: descriptors by role; image files should be open read-only.
        staging: an existing empty directory.
        paths: whose files the probe reaches for.
        home: a private directory for bait and log; by default that of ``staging``.

    Raises:
        HostError: the wall could not be built. VmError: the probe did not work, so nothing is proved.
    """
    began = time.monotonic()
    plan, notes = bounded(plan)
    wall = _wall_of(plan, without)
    home = home or os.path.dirname(staging)
    if wall.has(Layer.CGROUP) and wall.cgroup.directories:
        files.write_json(f"{home}/cgroups", wall.cgroup.directories)
        cgroups.make(wall.cgroup)
    try:
        with HostBait(home) as host:
            run = Run(plan, wall, program, opened, staging, home, host, paths, quick)
            collected = run.go(progress)
            kills, refused = cgroup_counters(wall.cgroup) if wall.has(Layer.CGROUP) else (0, 0)
            touched = host.touched()
    finally:
        if wall.has(Layer.CGROUP):
            remove_cgroups(wall.cgroup.directories)
    results, seen = _judge(plan, wall, program, run.attempts, collected, kills, refused)
    counts, stoppers = count(results)
    lsm = plan.declared.get("host.lsm")
    return ProofReport(
        vm=plan.name,
        accel=plan.accel,
        machine=plan.machine,
        profile=plan.profile.name,
        profile_traced=NOT_TRACED if plan.accel == "kvm" else "",
        without=without.value if without is not None else None,
        quick=quick,
        results=results,
        seen=seen,
        unexpected=_unexpected(results, seen, touched),
        counts=counts,
        stoppers=stoppers,
        lsm=lsm.value if isinstance(lsm, Known) and isinstance(lsm.value, tuple) else (),
        notes=(*notes, *run.notes, *collected.notes),
        took_s=round(time.monotonic() - began, 3),
    )


def _wall_of(plan: LaunchPlan, without: Layer | None) -> Wall:
    """The wall of the VM, with at most one layer removed."""
    if plan.wall.without:
        raise RuntimeError("a plan never lacks a layer of its own")
    removed = (Layer(without),) if without is not None else ()
    return msgspec.structs.replace(plan.wall, without=removed)


def _identity(paths: Paths, policy: HostPolicy) -> tuple[Identity, int, tuple[str, ...]]:
    """An identity of the proof's own; where the caller has only his own uid, that one, beside a running VM."""
    try:
        who, lock = identity.claim(paths, policy.identity.uids())
    except HostError:
        if os.geteuid() == 0:
            raise
        groups = tuple(sorted(set(os.getgroups()) - {os.getgid()}))
        who = Identity(os.getuid(), os.getgid(), IdentityMode.CALLER, keep_groups=True, groups=groups)
        return who, -1, ("no subordinate ids: the probe ran under the same uid as a running VM",)
    return who, lock, ()


def _lock(home: str) -> int:
    lock = files.take_lock(f"{home}/lock", wait=False)
    if lock is None:
        raise RuntimeError(f"{home} is new and yet locked")
    return lock


def _judge_plan(plan: LaunchPlan, waivers: tuple[AppliedWaiver, ...], policy: HostPolicy) -> None:
    refused = refusals(judge_declared(plan, waivers, controls_under(policy, launch_controls_of(plan.spec))))
    if refused:
        raise refusal_error(refused)


def _open_read_only(spec: Spec, opened: Opened) -> None:
    """Boot files and images, for reading only, without a lock: the VM that has them keeps them."""
    for role, path in (("kernel", spec.boot.kernel), ("initrd", spec.boot.initrd)):
        if path is not None:
            opened.by_role[role] = open_regular_file(path, what=role)
            opened.sizes[role] = os.fstat(opened.by_role[role]).st_size
    for index, disk in enumerate(spec.disks):
        role = f"disk{index}"
        opened.by_role[role] = open_image(disk.path)
        opened.sizes[role] = guest_size_bytes(opened.by_role[role], disk)


def _open_rest(plan: LaunchPlan, opened: Opened, own: Paths, proof_id: str) -> None:
    """Overlays and variables of the proof's own; a device that is passed through is never opened."""
    for file in plan.files:
        if file.access == "device":
            opened.by_role[file.role] = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    open_planned_files(plan.files, opened, own, proof_id, plan.spec.boot)


def _judge(
    plan: LaunchPlan,
    wall: Wall,
    program: bytes,
    attempts: tuple[Attempt, ...],
    collected: Collected,
    kills: int,
    refused: int,
) -> tuple[tuple[Result, ...], tuple[Seen, ...]]:
    counted = wall.has(Layer.CGROUP) and bool(wall.cgroup.directories)
    judge = Judge(
        wall,
        plan.profile,
        program,
        os.uname().machine,
        DANGEROUS,
        kills if counted else None,
        refused if counted else None,
    )
    results = []
    try:
        for attempt in attempts:
            record = collected.records.get(attempt.id)
            if record is None:
                results.append(judge.not_tried(attempt, attempt.skip))
                continue
            result = judge.judge(attempt, record)
            if attempt.code == "flood":
                result = judge_log(result, collected.log_kept_bytes, collected.log_bound_bytes)
            results.append(result)
        verify_controls(tuple(results), wall)
    except ProbeFailedError as fault:
        raise VmError("the probe does not work in this wall, so nothing is proved", got=str(fault)) from fault
    return tuple(results), (*_seen(collected.sight, wall), *collected.seen)


def _seen(sight: Sight, wall: Wall) -> tuple[Seen, ...]:
    sources = {}
    for entry in wall.root:
        if isinstance(entry, BindFile):
            info = os.stat(entry.source)
            sources[entry.source] = (info.st_dev, info.st_ino)
    return judge_sight(sight, wall, sources)


def _unexpected(
    results: tuple[Result, ...], seen: tuple[Seen, ...], touched: tuple[str, ...]
) -> tuple[Unexpected, ...]:
    found = [Unexpected(item.id, item.what, item.unexpected) for item in results if item.unexpected]
    found += [
        Unexpected(item.id, "what the wall shows from within", f"declared {item.declared}, observed {item.observed}")
        for item in seen
        if not item.holds
    ]
    named = {item.id for item in found}
    found += [
        Unexpected(f"sockets.{name}", "reach a listener of the host", "the listener was reached")
        for name in touched
        if f"sockets.{name}" not in named
    ]
    return tuple(found)


def sweep_stale(paths: Paths) -> None:
    """Remove what proofs left that were killed."""
    base = f"{paths.runtime}/proofs"
    try:
        names = os.listdir(base)
    except FileNotFoundError:
        return
    for name in names:
        home = f"{base}/{name}"
        with contextlib.suppress(OSError):
            lock = files.take_lock(f"{home}/lock", wait=False)
            if lock is None:
                continue
            try:
                with contextlib.suppress(OSError, msgspec.MsgspecError):
                    directories = msgspec.json.decode(files.read_bounded(f"{home}/cgroups"), type=tuple[str, ...])
                    remove_cgroups(directories)
                labels.restore_labels(Paths(home, f"{home}/data", paths.cache), name)
                files.remove_tree(home)
            finally:
                os.close(lock)
