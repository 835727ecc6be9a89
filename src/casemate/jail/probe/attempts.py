"""Every attempt of one proof, in the order in which it is made, and the two controls that show that the probe works."""

from __future__ import annotations

import msgspec

from casemate.bpf.evaluate import RET_KILL_PROCESS
from casemate.bpf.syscalls import numbers
from casemate.jail.choices import build_calls, decide
from casemate.jail.policy import Layer, Wall
from casemate.jail.probe.files import descriptor_attempts, file_attempts
from casemate.jail.probe.judge import Outcome, ProbeFailedError, Result
from casemate.jail.probe.model import Attempt, Bait, Call, Group
from casemate.jail.probe.processes import identity_attempts, kernel_attempts, namespace_attempts, process_attempts
from casemate.jail.probe.resources import resource_attempts
from casemate.jail.probe.sockets import socket_attempts
from casemate.jail.probe.sweep import sweep_attempts
from casemate.jail.rules import Profile

HARMLESS, HOSTILE = "control.harmless", "control.hostile"


def all_attempts(
    bait: Bait,
    wall: Wall,
    profile: Profile,
    machine: str,
    *,
    images: frozenset[str],
    dangerous: frozenset[str],
    quick: bool,
) -> tuple[Attempt, ...]:
    """All of them; those that cannot be made here say why in ``skip``.

    Args:
        bait: what lies out on the host.
        wall: with ``without``.
        images: roles of descriptors whose files belong to someone else.
        dangerous: calls that are tried by number even when ``quick``.
        quick: fewer.
    """
    code = machine == "x86_64"
    attempts = (
        *_controls(profile, machine),
        *sweep_attempts(profile, machine, dangerous, machine_code=code, quick=quick),
        *file_attempts(bait, wall),
        *descriptor_attempts(wall, images),
        *process_attempts(bait),
        *namespace_attempts(),
        *kernel_attempts(),
        *socket_attempts(bait),
        *identity_attempts(bait),
        *resource_attempts(bait, wall, machine_code=code),
    )
    known = numbers(machine)
    return tuple(_with_reason(attempt, wall, known) for attempt in attempts)


def _controls(profile: Profile, machine: str) -> tuple[Attempt, ...]:
    """A call that must work, and one that the filter must kill."""
    calls = {call.name: call for call in build_calls(profile, machine)}
    table = numbers(machine)
    hostile = next(name for name in table if name not in calls or decide(calls[name], (0,) * 6) == RET_KILL_PROCESS)
    return (
        Attempt(
            id=HARMLESS,
            group=Group.CONTROL,
            what="write nothing to its log, which it may",
            steps=(Call("write", (1, b"", 0)),),
            expected=(),
            declared=True,
        ),
        Attempt(
            id=HOSTILE,
            group=Group.CONTROL,
            what=f"make system call {hostile}, which the profile kills",
            steps=(Call(hostile, (0,) * 6),),
            only_with=(Layer.SECCOMP,),
            harm="without a filter the call would be made",
        ),
    )


def _with_reason(attempt: Attempt, wall: Wall, known: object) -> Attempt:
    if attempt.skip:
        return attempt
    assert hasattr(known, "__contains__")
    removed = [layer.value for layer in attempt.only_with if not wall.has(layer)]
    missing = [step.name for step in attempt.steps if step.nr is None and step.name not in known]
    reason = ""
    if removed:
        reason = f"not without {' and '.join(removed)}: {attempt.harm}"
    elif missing:
        reason = f"this architecture has no call {', '.join(missing)}"
    return msgspec.structs.replace(attempt, skip=reason) if reason else attempt


def verify_controls(results: tuple[Result, ...], wall: Wall) -> None:
    """The harmless control worked and the hostile one died of SIGSYS.

    Raises:
        ProbeFailedError: one did not, so no other result means anything; or there are no results.
    """
    by_id = {result.id: result for result in results}
    harmless, hostile = by_id.get(HARMLESS), by_id.get(HOSTILE)
    if harmless is None or harmless.outcome is not Outcome.REACHED:
        raise ProbeFailedError(f"the harmless control failed: {harmless.evidence if harmless else 'not run'}")
    if wall.has(Layer.SECCOMP) and (hostile is None or not hostile.evidence.startswith("SIGSYS")):
        raise ProbeFailedError(f"the hostile control was not killed: {hostile.evidence if hostile else 'not run'}")
