"""The prover: the first process in the wall, in the place of the program. It looks around, tries, and tells.

    parent                                prover (pid 1 of the wall)          child per attempt
      bait, attempts, wall ── spawn ──►   closes every descriptor but the wall's
      ◄──── {"sight": …} ───────────      Landlock
                                          fork ───────────────────────────►   filter, attempt, dies
      ◄──── {"record": …} ──────────      wait, note
      ◄──── {"end": n} ─────────────      exit

Lines of JSON, each at most `LINE_MAX_BYTES`. All code is in memory before the root changes: there is no file to import
from afterwards.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
from collections.abc import Callable
from typing import Final, Never

import msgspec

from casemate.jail.context import Context
from casemate.jail.policy import Layer, Wall
from casemate.jail.probe.model import RESULTS_FD, SCRATCH_FD, Attempt, Record, Sight
from casemate.jail.probe.shell import Shell
from casemate.jail.probe.sight import look_around
from casemate.jail.steps import inner_steps
from casemate.sys import process
from casemate.sys.libc import libc

RESULTS_ROLE: Final = "prove-results"
SCRATCH_ROLE: Final = "prove-scratch"
LINE_MAX_BYTES: Final = 1 << 20
_PATIENCE: Final = 3


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line from the prover: exactly one of these."""

    sight: Sight | None = None
    record: Record | None = None
    end: int | None = None
    error: str | None = None


def payload_of(
    program: bytes, attempts: tuple[Attempt, ...], outside_pid: int, scratch_offset: int
) -> Callable[[Wall, Context], Never]:
    """The payload for `jail.spawn.spawn`; ``sources`` must have `RESULTS_ROLE`, and may have `SCRATCH_ROLE`.

    Args:
        program: the compiled filter, the very one of the VM.
        attempts: what to try; those with a ``skip`` are passed over.
        outside_pid: pid number of a process of the host.
        scratch_offset: where the scratch file is positioned, in bytes.
    """

    def payload(wall: Wall, context: Context) -> Never:
        try:
            _own_descriptors_only(wall, context)
            send = _Sender()
            try:
                _prove(wall, context, program, attempts, outside_pid, scratch_offset, send)
            except BaseException as fault:  # the child of the launch must end here, whatever happens
                send(Line(error=f"{type(fault).__name__}: {fault}"[:2000]))
        finally:
            os._exit(0)

    return payload


class _Sender:
    def __init__(self) -> None:
        self._encode = msgspec.json.Encoder().encode

    def __call__(self, line: Line) -> None:
        view = memoryview(self._encode(line) + b"\n")
        while view:
            view = view[os.write(RESULTS_FD, view) :]


def _own_descriptors_only(wall: Wall, context: Context) -> None:
    """Close everything that exec would have closed, after putting the prover's own on fixed numbers."""
    keep = {descriptor.number for descriptor in wall.descriptors}
    for role, number in ((RESULTS_ROLE, RESULTS_FD), (SCRATCH_ROLE, SCRATCH_FD)):
        if role in context.sources:
            os.dup2(context.sources[role], number, inheritable=False)
            keep.add(number)
    first = 0
    for number in (*sorted(keep), 0x7FFF_FFFF):
        if number > first:
            # SAFETY: no pointers.
            libc.close_range(ctypes.c_uint(first), ctypes.c_uint(number - 1), 0)
        first = number + 1


def _prove(
    wall: Wall,
    context: Context,
    program: bytes,
    attempts: tuple[Attempt, ...],
    outside_pid: int,
    scratch_offset: int,
    send: _Sender,
) -> None:
    gc.disable()
    gc.freeze()  # children share the pages of everything that exists now
    # A caller may have handlers for faults (faulthandler), which would make calls of their own.
    for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    process.prctl(process.PR_SET_CHILD_SUBREAPER, 1)
    scratch = SCRATCH_FD if SCRATCH_ROLE in context.sources else -1
    send(Line(sight=look_around(wall, frozenset({RESULTS_FD, SCRATCH_FD}))))
    for step in inner_steps(wall):
        step.apply(context)
    if scratch >= 0:
        os.lseek(scratch, scratch_offset, os.SEEK_SET)
    shell = Shell(program if wall.has(Layer.SECCOMP) else None, (RESULTS_FD,), scratch, outside_pid, os.uname().machine)
    done = 0
    for attempt in attempts:
        if attempt.skip:
            continue
        record = shell.run(attempt)
        if record.late and not attempt.code:
            # Blocked, or the host is busy: only the second, longer wait says which.
            record = shell.run(msgspec.structs.replace(attempt, deadline_s=attempt.deadline_s * _PATIENCE))
        send(Line(record=record))
        done += 1
    send(Line(end=done))
    with contextlib.suppress(OSError):
        os.close(RESULTS_FD)
