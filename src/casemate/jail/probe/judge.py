"""Records become results: what stopped each attempt, and what was reached that the plan does not declare. Pure.

1. Which answer should the profile give to this very call? `choices.decide`, from the rules, not from the filter.
2. Which answer did the loaded filter give? It is evaluated on the arguments of the record.
3. What the filter let through was stopped by the layer whose errno the attempt names, or reached its aim.
4. By number, observed and profile must agree exactly; any other attempt that reaches its aim must be declared.
"""

from __future__ import annotations

import enum
import errno
import signal
from typing import Final

import msgspec

from casemate.bpf.evaluate import (
    RET_ALLOW,
    RET_DATA,
    RET_ERRNO,
    RET_KILL_PROCESS,
    RET_USER_NOTIF,
    SeccompData,
    action_of,
    evaluate,
)
from casemate.bpf.instruction import Program, decode
from casemate.bpf.syscalls import audit_arch, names
from casemate.jail.choices import Call as ProfileCall
from casemate.jail.choices import build_calls, decide
from casemate.jail.policy import Layer, Wall
from casemate.jail.probe.model import KERNEL, STOPPERS, SUPERVISOR, Attempt, Entry, Group, Record
from casemate.jail.probe.raw import FINISHED
from casemate.jail.probe.shell import PROBE_FAILED
from casemate.jail.rules import Profile

_LAYERS: Final = frozenset(layer.value for layer in Layer)

PAST_EVERY_FILTER: Final = frozenset({"uretprobe", "uprobe"})
"""Calls that Linux lets through without asking any filter (seccomp_uprobe_exception in kernel/seccomp.c, 6.11 on), for
the trampolines that it puts into traced programs. Made from anywhere else they end in SIGILL or an errno."""


class Outcome(enum.StrEnum):
    """How an attempt ended."""

    STOPPED = "stopped"
    REACHED = "reached"
    NOT_TRIED = "not-tried"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt judged. ``unexpected`` says why it should not have ended so; empty: as declared.

    ``stopper`` is one of `model.STOPPERS` when stopped. ``evidence``: signal or errno and the call, or why not tried.
    """

    id: str
    group: Group
    what: str
    outcome: Outcome
    stopper: str
    expected: tuple[str, ...]
    declared: bool
    evidence: str
    unexpected: str = ""


class ProbeFailedError(Exception):
    """The probe did not work in this wall, so nothing is proved."""


class Judge:
    """Judges the records of one run.

    Args:
        wall: the wall as built, with ``without``.
        profile: the declared allowlist.
        program: the loaded filter.
        machine: as in ``uname -m``.
        dangerous: calls that must not be reachable whatever the profile says.
        oom_kills: how often the kernel killed in the wall's cgroup; None without one.
        pids_refused: how often the cgroup refused a process; None without one.
    """

    def __init__(
        self,
        wall: Wall,
        profile: Profile,
        program: bytes,
        machine: str,
        dangerous: frozenset[str],
        oom_kills: int | None,
        pids_refused: int | None,
    ) -> None:
        self._wall = wall
        self._program: Program = decode(program)
        self._machine = machine
        self._calls: dict[int, ProfileCall] = {call.nr: call for call in build_calls(profile, machine)}
        self._names = names(machine)
        self._dangerous = dangerous
        self._oom_kills = oom_kills
        self._pids_refused = pids_refused

    def not_tried(self, attempt: Attempt, why: str) -> Result:
        """An attempt that was left out."""
        return self._result(attempt, Outcome.NOT_TRIED, "", why)

    def judge(self, attempt: Attempt, record: Record) -> Result:
        """One attempt.

        Raises:
            ProbeFailedError: the child never began, so its end says nothing.
        """
        if record.status == PROBE_FAILED or record.stage == 0:
            how = "late, " * record.late + (f"signal {record.signal}" if record.signal else f"status {record.status}")
            raise ProbeFailedError(f"{attempt.id}: the probe's child failed before its attempt ({how})")
        outcome, stopper, evidence = self._outcome(attempt, record)
        if attempt.group is Group.CALLS:
            return self._by_number(attempt, record, outcome, stopper, evidence)
        unexpected = ""
        if outcome is Outcome.REACHED and not attempt.declared:
            unexpected = "reached, and the plan does not declare it"
        elif self._answer(attempt, record) == RET_KILL_PROCESS and record.signal != signal.SIGSYS:
            unexpected = f"{self._name(record.nr)} came back although the filter kills it"
        return self._result(attempt, outcome, stopper, evidence, unexpected)

    # ---- what happened

    def _outcome(self, attempt: Attempt, record: Record) -> tuple[Outcome, str, str]:
        where = self._name(record.nr)
        if record.signal == signal.SIGSYS:
            stopper = Layer.SECCOMP if self._wall.has(Layer.SECCOMP) else KERNEL
            return Outcome.STOPPED, stopper, f"SIGSYS at {where}"
        if record.late:
            return Outcome.REACHED, "", f"still in {where} after {attempt.deadline_s:g} s"
        if record.signal:
            return self._killed(attempt, record, where)
        if record.stage != FINISHED:
            return Outcome.REACHED, "", f"the process ended in {where} with status {record.status}"
        got = f"; got {record.amount}" if attempt.code else ""
        if record.number == 0:
            return Outcome.REACHED, "", f"{where} returned {record.result}{got}"
        evidence = f"{errno.errorcode.get(record.number, record.number)} at {where}{got}"
        if self._filter_said(attempt, record):
            return Outcome.STOPPED, Layer.SECCOMP, evidence
        if record.number in attempt.past or attempt.group is Group.CALLS:
            return Outcome.REACHED, "", evidence
        return Outcome.STOPPED, self._stopper(attempt, record.number), evidence

    def _killed(self, attempt: Attempt, record: Record, where: str) -> tuple[Outcome, str, str]:
        name = signal.Signals(record.signal).name
        if attempt.code == "crash":
            if record.core:
                return Outcome.REACHED, "", f"{name}, core dumped"
            return Outcome.STOPPED, self._in_force((Layer.RLIMITS, Layer.ROOT)), f"{name}, no core"
        if record.signal == signal.SIGKILL and self._oom_kills:
            return Outcome.STOPPED, Layer.CGROUP, f"killed out of memory by its cgroup; got {record.amount}"
        if record.signal == signal.SIGXFSZ:
            return Outcome.STOPPED, self._in_force((Layer.RLIMITS,)), f"{name} at {where}"
        if self._entry(attempt, record) is Entry.INT80 and record.signal == signal.SIGSEGV:
            return Outcome.STOPPED, KERNEL, f"{name}: this kernel has no i386 entry"
        return Outcome.REACHED, "", f"{name} in {where}"

    def _stopper(self, attempt: Attempt, number: int) -> str:
        for answer, candidates in attempt.errnos:
            if answer == number:
                if candidates == (Layer.RLIMITS, Layer.CGROUP) and self._pids_refused:
                    return Layer.CGROUP  # its counter moved: the limit of the process alone would not move it
                return self._in_force(candidates)
        return KERNEL

    def _in_force(self, candidates: tuple[str, ...]) -> str:
        for candidate in candidates:
            if candidate not in STOPPERS:
                raise RuntimeError(f"no such layer: {candidate}")
            if candidate not in _LAYERS or self._has(Layer(candidate)):
                return str(candidate)
        return KERNEL

    def _has(self, layer: Layer) -> bool:
        if layer is Layer.CGROUP and not self._wall.cgroup.directories:
            return False
        if layer is Layer.LANDLOCK and not self._wall.landlock_abi:
            return False
        return self._wall.has(layer)

    # ---- what the filter says

    def _entry(self, attempt: Attempt, record: Record) -> Entry:
        return attempt.steps[record.step].entry if record.step < len(attempt.steps) else Entry.NATIVE

    def _answer(self, attempt: Attempt, record: Record) -> int | None:
        """The SECCOMP_RET value of the loaded filter for the last call; None without a filter."""
        if not self._wall.has(Layer.SECCOMP) or record.nr < -1 or self._entry(attempt, record) is Entry.INT80:
            return None
        if attempt.code and attempt.code != "descriptors" and attempt.code != "flood":
            return None  # what the routine noted is not its exact last call
        return evaluate(self._program, SeccompData(record.nr, audit_arch(self._machine), 0, record.args))

    def _filter_said(self, attempt: Attempt, record: Record) -> bool:
        answer = self._answer(attempt, record)
        if answer is None:
            return False
        if answer & ~RET_DATA == RET_ERRNO:
            return answer & RET_DATA == record.number
        return answer & ~RET_DATA == RET_USER_NOTIF and record.number == errno.ENOSYS

    # ---- by number

    def _by_number(self, attempt: Attempt, record: Record, outcome: Outcome, stopper: str, evidence: str) -> Result:
        refused = record.signal == signal.SIGILL or record.number != 0
        if self._name(record.nr) in PAST_EVERY_FILTER and refused and stopper != Layer.SECCOMP:
            why = f"{evidence}; the kernel asks no filter about this call, and refuses it itself"
            return self._result(attempt, Outcome.STOPPED, KERNEL, why)
        wanted = self._declared(attempt, record)
        declared = wanted == RET_ALLOW
        killed = record.signal == signal.SIGSYS
        unexpected = ""
        if wanted & ~RET_DATA == RET_KILL_PROCESS:
            if outcome is Outcome.REACHED or not (killed or stopper == KERNEL):
                unexpected = f"the profile kills this call; observed {evidence}"
        elif killed:
            unexpected = f"the profile answers {action_of(wanted)}; the call was killed"
        elif not declared and stopper != Layer.SECCOMP:
            unexpected = f"the profile answers {action_of(wanted)}; observed {evidence}"
        elif declared and stopper == Layer.SECCOMP:
            unexpected = f"the profile allows this call; observed {evidence}"
        if not unexpected and outcome is Outcome.REACHED and self._name(record.nr) in self._dangerous:
            unexpected = "the profile allows a call that no emulator needs once its guest runs"
        return self._result(attempt, outcome, stopper, evidence, unexpected, declared=declared)

    def _declared(self, attempt: Attempt, record: Record) -> int:
        """What the profile says; everything that is no native call of the tables is killed."""
        if self._entry(attempt, record) is Entry.INT80 or record.nr not in self._calls:
            return RET_KILL_PROCESS
        return decide(self._calls[record.nr], record.args)

    def _name(self, nr: int) -> str:
        return self._names.get(nr, f"number {nr}")

    def _result(
        self,
        attempt: Attempt,
        outcome: Outcome,
        stopper: str,
        evidence: str,
        unexpected: str = "",
        *,
        declared: bool | None = None,
    ) -> Result:
        return Result(
            id=attempt.id,
            group=attempt.group,
            what=attempt.what,
            outcome=outcome,
            stopper=str(stopper),
            expected=tuple(str(item) for item in attempt.expected),
            declared=attempt.declared if declared is None else declared,
            evidence=evidence,
            unexpected=unexpected,
        )


def judge_log(result: Result, kept_bytes: int, bound_bytes: int) -> Result:
    """The log flood succeeds by design; what counts is that its reader kept no more than its bound."""
    evidence = f"{result.evidence} bytes; {kept_bytes} kept, bound {bound_bytes}"
    if result.outcome is not Outcome.REACHED:
        return msgspec.structs.replace(result, evidence=evidence)
    if kept_bytes > bound_bytes:
        return msgspec.structs.replace(
            result, evidence=evidence, unexpected="the log grew beyond its bound", declared=False
        )
    return msgspec.structs.replace(result, outcome=Outcome.STOPPED, stopper=SUPERVISOR, evidence=evidence)
