"""Commands that must be refused, and the inventory that shows that nothing was started and nothing is left.

The test process becomes the reaper of every orphan below it (PR_SET_CHILD_SUBREAPER), so a supervisor or emulator
that outlives its command shows up as a child of ours, whatever it calls itself.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.cli_runner import Cli

from casemate.engine.files import is_locked
from casemate.sys.process import prctl

PR_SET_CHILD_SUBREAPER = 36
SETTLE_S = 10.0


RUN = ("run", "-d", "--name", "bad")
BOOT = '[machine]\naccel = "tcg"\n[boot]\nkernel = "vmlinuz"\n'


class Refusals(Cli):
    """``cli.refused(code, says, ...)``: the command fails with these words, and nothing is started or left."""

    def refused(self, code: int, says: list[str], *arguments: str | Path, **more: Any) -> str:
        """stderr of a command that must be refused. ``says``: texts that stderr must hold."""
        return self._refused(code, says, self, arguments, more)

    def _refused(self, code: int, says: list[str], run: Any, arguments: tuple[str | Path, ...], more: Any) -> str:
        before, cgroups = self.inventory(), _empty_cgroups()
        with _reaper() as orphans:
            done: subprocess.CompletedProcess[str] = run(*arguments, **more)
        shown = f"{arguments}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        assert done.returncode == code, shown
        assert done.stderr.startswith(("casemate: error: ", "casemate: warning: ")), shown
        assert "Traceback" not in done.stderr + done.stdout, shown
        assert done.stderr.isascii() or done.stderr.replace("\n", "").isprintable(), shown
        missing = [text for text in says if text not in done.stderr]
        assert not missing, f"{missing} not in\n{shown}"
        assert done.stdout == "", shown
        assert orphans == [], shown
        after = self.inventory()
        assert after == before, f"before: {before}\nafter: {after}\n{shown}"
        _wait_no_new_cgroups(cgroups)
        return done.stderr

    def inventory(self) -> dict[str, list[str]]:
        """What there is of VMs: nothing of it may change when a command is refused."""
        return {"vms": self.vms(), "locked uids": self.held_locks(), "other files": self.stray_files()}

    def vms(self) -> list[str]:
        """Directories of VMs, defined or running."""
        return sorted(str(path) for base in (self.data, self.runtime) for path in (base / "vms").glob("*"))

    def held_locks(self) -> list[str]:
        """Locks on uids that somebody holds."""
        return [path.name for path in (self.runtime / "ids").glob("*") if is_locked(str(path))]

    def stray_files(self) -> list[str]:
        """Files of Casemate that belong to no VM, other than its locks, records and key, which stay."""
        found = []
        for base in (self.data, self.runtime):
            for path in base.rglob("*"):
                parts = path.relative_to(base).parts
                kept = parts[0] in {"vms", "ids", "records", "names.lock"} or "record-key" in parts[0]
                if path.is_file() and not kept:
                    found.append(str(path))
        return found


def write_spec(cli: Refusals, text: str) -> Path:
    """A specification in the directory of the test."""
    path = cli.home / "vm.toml"
    path.write_text(text)
    return path


@contextlib.contextmanager
def _reaper() -> Iterator[list[str]]:
    """Adopt orphans while the block runs; then yields those that live on, and ends them."""
    before = _children()
    living: list[str] = []
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield living
        end = time.monotonic() + SETTLE_S
        while new := _children() - before:
            for pid in new:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            if time.monotonic() > end:
                for pid in _children() - before:
                    with contextlib.suppress(OSError):
                        living.append(f"{pid}: {Path(f'/proc/{pid}/cmdline').read_bytes()!r}")
                        os.kill(pid, 9)
                break
            time.sleep(0.01)
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _children() -> set[int]:
    """Processes whose parent we are, zombies too."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == os.getpid():
                    found.add(int(entry.name))
    return found


def _empty_cgroups() -> set[str]:
    """Cgroups of VMs without a process. Those of other people's VMs have some."""
    found = set()
    for pattern in ("casemate/*", "*/casemate/*"):
        for directory in Path("/sys/fs/cgroup").glob(pattern):
            with contextlib.suppress(OSError):
                if directory.is_dir() and not (directory / "cgroup.procs").read_text():
                    found.add(str(directory))
    return found


def _wait_no_new_cgroups(before: set[str]) -> None:
    """Somebody else's launch may make one at this moment: it is empty for milliseconds only."""
    end = time.monotonic() + SETTLE_S
    new = _empty_cgroups() - before
    while new and time.monotonic() < end:
        time.sleep(0.05)
        new &= _empty_cgroups()
    assert new == set(), f"cgroups were left: {new}"
