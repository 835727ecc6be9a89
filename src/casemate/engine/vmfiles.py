"""What the files of a VM hold, and how they are read: closed types, bounded reads, damage told from absence."""

from __future__ import annotations

import os
import time
from typing import TypeVar

import msgspec

from casemate.engine import files
from casemate.errors import CasemateError
from casemate.spec.model import Spec
from casemate.sys.process import start_time_ticks

T = TypeVar("T")


class Process(msgspec.Struct, frozen=True):
    """A process named for good: pid and start time in clock ticks since boot."""

    name: str
    pid: int
    start_ticks: int


class Definition(msgspec.Struct, frozen=True):
    """What ``create`` wrote down. ``damaged``: why it cannot be read; then the rest is made up, and only ``ps``,
    ``inspect`` and ``rm`` take such a VM.
    """

    id: str
    name: str
    spec: Spec
    created_at: str
    timeout_s: float | None = None
    remove_on_exit: bool = False
    policy_file: str | None = None
    damaged: str = ""


class RunningState(msgspec.Struct, frozen=True):
    """What state.json holds while the supervisor lives."""

    id: str
    name: str
    phase: str
    supervisor: Process
    emulator: Process | None
    helpers: tuple[Process, ...]
    uid: int
    gid: int
    accel: str
    started_at: str
    cgroups: tuple[str, ...] = ()
    console: str = ""
    health: tuple[str, ...] = ()


class RunMark(msgspec.Struct, frozen=True):
    """run.json: a run began; removed when its end has been written down and nothing of it is left.

    ``supervisor`` and ``cgroups`` are here too because a run can die before state.json exists, or lose it. ``runtime``
    is the base directory where its lock and socket are: another shell may have another XDG_RUNTIME_DIR.
    """

    boot_id: str
    started_at: str
    supervisor: Process | None = None
    cgroups: tuple[str, ...] = ()
    uid: int = 0
    accel: str = ""
    runtime: str = ""


class Exit(msgspec.Struct, frozen=True):
    """exit.json: how a run ended. ``code`` as in errors.ExitCode.

    ``sigsys_pid``: the emulator that its seccomp filter killed, until the kernel's log has been asked about it.
    """

    reason: str
    code: int
    finished_at: str
    started_at: str = ""
    detail: str = ""
    uid: int = 0
    accel: str = ""
    sigsys_pid: int = 0


class Vm(msgspec.Struct, frozen=True):
    """One VM as ``ps`` and ``inspect`` see it."""

    definition: Definition
    state: str
    running: RunningState | None
    exit: Exit | None


def boot_id() -> str:
    """The kernel's random id of this boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read(64).strip()


def now() -> str:
    """RFC 3339 in UTC, whole milliseconds."""
    seconds = time.time()
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds * 1000) % 1000:03d}Z"


def this_process(name: str) -> Process:
    """The calling process, named for good; exec does not change that."""
    return Process(name, os.getpid(), start_time_ticks(os.getpid()))


def read_struct(path: str, kind: type[T]) -> T | None:
    """A JSON file as a struct; None when it is missing.

    Raises:
        CasemateError: it is there and cannot be read.
    """
    try:
        return msgspec.json.decode(files.read_bounded(path), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as fault:
        raise CasemateError(
            f"{path} is damaged", got=str(fault)[:200], next_step="casemate rm --force removes that VM"
        ) from fault


def salvage_struct(path: str, kind: type[T]) -> T | None:
    """As `read_struct`, but a damaged file counts as missing: for clean-up, which must go on."""
    try:
        return read_struct(path, kind)
    except CasemateError:
        return None
