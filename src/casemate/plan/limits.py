"""Resource limits of every process behind a wall: what differs from one to the next is an argument."""

from __future__ import annotations

from casemate.jail.policy import Rlimit

_MIB = 1024 * 1024


def process_rlimits(*, nofile: int, nproc: int, fsize: int, memlock: int = 0) -> tuple[Rlimit, ...]:
    """Limits that hold even where no cgroup can be had; ``fsize`` and ``memlock`` in bytes."""
    return (
        Rlimit("core", 0),
        Rlimit("nofile", nofile),
        Rlimit("nproc", nproc),
        Rlimit("fsize", fsize),
        Rlimit("memlock", memlock),
        Rlimit("msgqueue", 0),
        Rlimit("nice", 0),
        Rlimit("rtprio", 0),
        Rlimit("stack", 8 * _MIB),
    )
