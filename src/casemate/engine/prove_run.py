"""One wall with the probe in it: descriptors, spawn, and everything closed again."""

from __future__ import annotations

import fcntl
import os
import socket
from typing import Final

from casemate.engine.labels import label_scratch
from casemate.engine.opening import Opened
from casemate.engine.paths import Paths
from casemate.engine.prove_bait import HostBait, bait_of
from casemate.engine.prove_collect import Collected, Progress, collect
from casemate.engine.readback import DANGEROUS
from casemate.jail.policy import Wall
from casemate.jail.probe.attempts import all_attempts
from casemate.jail.probe.prover import RESULTS_ROLE, SCRATCH_ROLE, payload_of
from casemate.jail.spawn import Spawned, kill_and_reap, spawn
from casemate.plan.model import LaunchPlan

_HIGH_FD: Final = 600
"""Above the numbers that the wall's own descriptors are put on."""
_SPAWN_DEADLINE_S: Final = 30.0


class Run:
    """One wall with the probe in it, from the attempts to the records."""

    def __init__(
        self,
        plan: LaunchPlan,
        wall: Wall,
        program: bytes,
        opened: Opened,
        staging: str,
        home: str,
        host: HostBait,
        paths: Paths,
        quick: bool,
    ) -> None:
        self._plan, self._wall, self._program, self._opened = plan, wall, program, opened
        self._staging, self._home, self._host = staging, home, host
        self._machine = os.uname().machine
        self._bait, notes = bait_of(host, plan, paths, scratch=True, quick=quick)
        if plan.wall.exec_label is not None:
            notes.append(f"the probe runs under the label {plan.wall.exec_label}")
        if plan.helpers:
            names = " and ".join(helper.name for helper in plan.helpers)
            notes.append(f"{names}: not started in a proof; the sockets to them lead nowhere")
        if plan.spec.disks:
            notes.append("disk images are open read-only in a proof, whatever the specification says")
        if plan.spec.passthrough:
            notes.append("passed-through devices are replaced by /dev/null")
        self.notes = tuple(notes)
        images = frozenset(file.role for file in plan.files if file.access in {"ro", "rw"} and file.role != "entropy")
        self.attempts = all_attempts(
            self._bait, wall, plan.profile, self._machine, images=images, dangerous=DANGEROUS, quick=quick
        )

    def go(self, progress: Progress | None) -> Collected:
        """Build the wall, run the probe, and collect what it says.

        Raises:
            HostError: a step failed. VmError: the prover died or did not finish.
        """
        held: list[int] = []
        spawned: Spawned | None = None
        try:
            sources, log_read = self._sources(held)
            results_read, results_write = os.pipe2(os.O_CLOEXEC)
            held.append(results_read)
            results = _lift(results_write, held)
            scratch = _lift(_unnamed_file(self._home), held)
            label_scratch(self._wall, scratch)
            sources |= {RESULTS_ROLE: results, SCRATCH_ROLE: scratch}
            payload = payload_of(self._program, self.attempts, self._host.victim, self._bait.fsize_bytes)
            spawned = spawn(
                self._wall, self._program, sources, self._staging, payload=payload, deadline_s=_SPAWN_DEADLINE_S
            )
            for descriptor in (results, scratch, sources["log"]):
                held.remove(descriptor)
                os.close(descriptor)
            return collect(spawned, results_read, log_read, self._home, self.attempts, self._wall, progress)
        finally:
            if spawned is not None:
                kill_and_reap(spawned)
            for descriptor in held:
                os.close(descriptor)

    def _sources(self, held: list[int]) -> tuple[dict[str, int], int]:
        """A descriptor for every role of the wall; sockets lead nowhere."""
        sources = dict(self._opened.by_role)
        log_read, log_write = os.pipe2(os.O_CLOEXEC)
        held += [log_read, log_write]
        sources["log"] = log_write
        for descriptor in self._wall.descriptors:
            if descriptor.role not in sources:
                if descriptor.access != "socket":
                    raise RuntimeError(f"nobody opened {descriptor.role}")
                pair = socket.socketpair()
                ends = [pair[0].detach(), pair[1].detach()]
                held += ends
                sources[descriptor.role] = ends[1]
        return sources, log_read


def _lift(descriptor: int, held: list[int]) -> int:
    """Move a descriptor out of the way of the wall's own numbers."""
    lifted = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD)
    os.close(descriptor)
    held.append(lifted)
    return lifted


def _unnamed_file(directory: str) -> int:
    """An empty file to write to, which dies with its last descriptor."""
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:  # a file system without O_TMPFILE
        path = f"{directory}/scratch"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        os.unlink(path)
        return descriptor
