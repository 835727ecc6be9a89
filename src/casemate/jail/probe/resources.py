"""Attempts to take more than the limits give. Data only; the routines are in `routines`."""

from __future__ import annotations

from typing import Final

from casemate.jail.policy import Layer, Wall
from casemate.jail.probe.model import SCRATCH_FD, Attempt, Bait, Call, Got, Group, Packed

EPERM, EAGAIN, ENOMEM, EACCES, EMFILE, EFBIG = 1, 11, 12, 13, 24, 27
_INFINITY: Final = 0xFFFF_FFFF_FFFF_FFFF
_LIMITS: Final = (Layer.RLIMITS, Layer.CGROUP)
_MIB: Final = 1 << 20


def resource_attempts(bait: Bait, wall: Wall, *, machine_code: bool) -> tuple[Attempt, ...]:
    """Processes, threads, memory, descriptors, file size, core dumps, the log; priorities and the limits themselves."""
    why_not = dict(bait.why_not)

    def attempt(name: str, what: str, *steps: Call, **more: object) -> Attempt:
        values: dict[str, object] = {"skip": why_not.get(name, ""), **more}
        return Attempt(id=f"resources.{name}", group=Group.RESOURCES, what=what, steps=steps, **values)  # type: ignore[arg-type]

    no_code = "" if machine_code else "needs machine code that this architecture does not have here"
    infinite = Packed("=QQ", (_INFINITY, _INFINITY))
    attempts = [
        attempt(
            "raise-limit",
            "raise its own limits",
            Call("setrlimit", (4, infinite)),
            expected=(Layer.SECCOMP, Layer.CAPABILITIES),
            errnos=((EPERM, (Layer.CAPABILITIES,)),),
        ),
        attempt(
            "raise-limit-by-prlimit",
            "raise its own limits with prlimit64",
            Call("prlimit64", (0, 4, infinite, 0)),
            expected=(Layer.SECCOMP, Layer.CAPABILITIES),
            errnos=((EPERM, (Layer.CAPABILITIES,)),),
        ),
        attempt(
            "nice",
            "take a better priority",
            Call("setpriority", (0, 0, -20)),
            expected=(Layer.SECCOMP, Layer.RLIMITS),
            errnos=((EACCES, (Layer.RLIMITS, Layer.CAPABILITIES)), (EPERM, (Layer.CAPABILITIES,))),
        ),
        attempt(
            "realtime",
            "become a real-time process",
            Call("sched_setscheduler", (0, 1, Packed("=I", (1,)))),
            expected=(Layer.SECCOMP, Layer.RLIMITS),
            errnos=((EPERM, (Layer.RLIMITS, Layer.CAPABILITIES)),),
        ),
        attempt(
            "lock-memory",
            "lock 16 MiB in RAM",
            Call("mmap", (0, 16 * _MIB, 3, 0x22, -1, 0)),
            Call("mlock", (Got(0), 16 * _MIB)),
            expected=(Layer.SECCOMP, Layer.RLIMITS),
            errnos=((ENOMEM, (Layer.RLIMITS,)), (EPERM, (Layer.RLIMITS,)), (EAGAIN, (Layer.RLIMITS,))),
        ),
        attempt(
            "file-size",
            "write beyond the file size limit",
            Call("write", (SCRATCH_FD, b"x", 1)),
            expected=(Layer.RLIMITS,),
            errnos=((EFBIG, (Layer.RLIMITS,)),),
        ),
        attempt(
            "descriptors",
            "open descriptors without end",
            code="descriptors",
            amount=bait.nofile_try,
            expected=(Layer.RLIMITS,),
            errnos=((EMFILE, (Layer.RLIMITS,)),),
        ),
        attempt("core", "leave a core file with its memory", code="crash", expected=(Layer.RLIMITS, Layer.ROOT)),
        attempt(
            "fork-bomb",
            "start processes without end",
            code="fork-bomb",
            amount=bait.pids_try,
            expected=(Layer.SECCOMP, *_LIMITS),
            errnos=((EAGAIN, _LIMITS),),
            deadline_s=20.0,
        ),
        attempt(
            "thread-bomb",
            "start threads without end",
            code="thread-bomb",
            amount=bait.pids_try,
            expected=_LIMITS,
            errnos=((EAGAIN, _LIMITS),),
            deadline_s=20.0,
            skip=why_not.get("thread-bomb", "") or no_code,
        ),
        attempt(
            "log-flood",
            f"write {bait.log_bytes >> 20} MiB to its log",
            code="flood",
            amount=bait.log_bytes,
            expected=("supervisor",),
            declared=True,
            deadline_s=30.0,
        ),
        # Last: where the kernel kills a whole cgroup for its memory, the prover dies with it.
        attempt(
            "memory",
            f"take {bait.memory_try_mib} MiB of memory",
            code="memory",
            amount=bait.memory_try_mib,
            expected=(Layer.CGROUP,),
            errnos=((ENOMEM, (Layer.CGROUP, Layer.RLIMITS)),),
            deadline_s=30.0,
        ),
    ]
    return tuple(attempts)
