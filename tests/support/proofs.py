"""Proofs of a small wall of our own: a specification, directories, and ways to loosen the wall on purpose."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from casemate.controls.policy import HostPolicy
from casemate.engine import prove, prove_run
from casemate.engine.paths import Paths, prepare
from casemate.engine.prove_collect import Progress
from casemate.engine.prove_report import ProofReport
from casemate.jail.policy import Wall
from casemate.jail.spawn import Spawned
from casemate.jail.spawn import spawn as real_spawn
from casemate.spec.model import AccelChoice, Boot, Disk, DiskFormat, DiskMode, Limits, Machine, Spec

IMAGE_BYTES = 4 << 20


class Bench:
    """Directories and files of one test module; nothing outside of them but cgroups."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.paths = Paths(f"{base}/run", f"{base}/data", f"{base}/cache")
        prepare(self.paths)
        self.made: list[str] = []
        self.kernel, self.image = f"{base}/kernel", f"{base}/disk.raw"
        Path(self.kernel).write_bytes(b"no kernel: the probe never boots one" * 100)
        with open(self.image, "wb") as file:
            file.truncate(IMAGE_BYTES)

    def spec(self, mode: DiskMode = DiskMode.OVERLAY) -> Spec:
        """A small VM: its memory limit can be reached quickly."""
        return Spec(
            name="proved",
            machine=Machine(accel=AccelChoice.TCG, memory_mib=32),
            boot=Boot(kernel=self.kernel, initrd=self.kernel),
            disks=(Disk(path=self.image, format=DiskFormat.RAW, mode=mode),),
            limits=Limits(overhead_mib=64, pids=80),
        )

    def prove(self, spec: Spec | None = None, **options: Any) -> ProofReport:
        """A proof of the whole way: plan, wall, probe, clean-up."""
        options["progress"] = self._watch(options.get("progress"))
        return prove.prove_spec(self.paths, spec or self.spec(), HostPolicy(), **options)

    def _watch(self, told: Progress | None) -> Progress:
        def progress(done: int, total: int, group: str) -> None:
            self.note_cgroups()
            if told is not None:
                told(done, total, group)

        return progress

    def leftovers(self) -> list[str]:
        """What proofs on this bench should have removed: directories, and the cgroups of those in ``made``."""
        left = [f"{self.paths.runtime}/proofs/{name}" for name in os.listdir(f"{self.paths.runtime}/proofs")]
        return left + [directory for directory in self.made if os.path.exists(directory)]

    def note_cgroups(self) -> None:
        """Remember the cgroups of proofs that were killed and not yet swept."""
        for note in Path(f"{self.paths.runtime}/proofs").glob("*/cgroups"):
            self.made += msgspec.json.decode(note.read_bytes(), type=list[str])


@contextmanager
def bench() -> Iterator[Bench]:
    """A bench in a short path of its own."""
    base = tempfile.mkdtemp(prefix="cm-prove-", dir="/tmp")
    try:
        yield Bench(base)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def loosen(monkeypatch: pytest.MonkeyPatch, change: Callable[[Wall], Wall]) -> None:
    """Build another wall than the planned one: the judge goes on comparing with the plan."""

    def spawn(wall: Wall, *args: Any, **options: Any) -> Spawned:
        return real_spawn(change(wall), *args, **options)

    monkeypatch.setattr(prove_run, "spawn", spawn)


def unexpected(report: ProofReport) -> set[str]:
    """Ids of everything that was not as declared."""
    return {item.id for item in report.unexpected}
