"""Another reader in place of a cell: Dissect, when it is installed, as a program of its own in a wall.

    this process                                     Dissect's Python, pid 1 of its wall
      its modules listed (it runs without an image)
      wall: those files, read-only; two descriptors
      image, opened and inspected here  ── fd 3 ──►  parsed by a library, in memory-safe code
      questions and answers, as with a cell ─ fd 4 ─►  (reader/dissect_reader)

No path of the image is in there, so a header that names a sibling leads nowhere. Memory, processor time and silence are
limited. Nothing of Casemate imports Dissect (AGPL): it runs under its own interpreter, which `target-fs` on the PATH
names in its first line.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from casemate.cell.model import ImageFile, Volume
from casemate.cell.session import MissingInImageError, Session
from casemate.cell.volumes import RELEASE_FILES, choose_system, parse_os_release
from casemate.engine import files, identity
from casemate.engine.paths import Paths, prepare
from casemate.engine.policy_file import read_policy
from casemate.errors import HostError, ImageError, InputError, VmError
from casemate.facts.closure import needed_closure
from casemate.facts.root import Root
from casemate.jail.compile import cached_program
from casemate.jail.policy import BindFile, CgroupPlan, Descriptor, Device, Identity, LandlockPath, Rlimit, Wall
from casemate.jail.profiles import reader_profile
from casemate.jail.spawn import Spawned, kill_and_reap, spawn
from casemate.sys.landlock import landlock_abi
from casemate.sys.seccomp import notif_recv, notif_send_continue

MEMORY_BYTES: Final = 1 << 30
CPU_S: Final = 600
SILENCE_S: Final = 60.0
_START_S: Final = 30.0
_FILES_MAX: Final = 5000
_SCRIPT: Final = "/reader"
_MIB: Final = 1 << 20


class _Modules(msgspec.Struct, frozen=True):
    """What `dissect_reader modules` prints."""

    python: str
    files: tuple[str, ...]


class _Told(msgspec.Struct, frozen=True):
    """A volume as the reader tells it."""

    name: str
    size_bytes: int
    content: str
    readable: bool
    partition: int
    partition_name: str
    notes: tuple[str, ...]


class OtherVolumes:
    """Volumes as the reader names them, with the interface of `volumes.Volumes`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._found: dict[str, Volume] | None = None

    def all(self) -> tuple[Volume, ...]:
        """Every volume.

        Raises:
            VmError: the list is none.
        """
        if self._found is None:
            try:
                told = msgspec.json.decode(self._session.volumes_as_told(), type=tuple[_Told, ...])
            except msgspec.MsgspecError:
                raise VmError("the reader's list of volumes makes no sense") from None
            self._found = {item.name: self._describe(item) for item in told[:128]}
        return tuple(self._found.values())

    def place(self, name: str, path: str | bytes) -> tuple[str, bytes]:
        """As `volumes.Volumes.place`; links are followed as Dissect does."""
        raw = os.fsencode(path)
        if b"\0" in raw or len(raw) > 4095:
            raise InputError("a path in an image", got=f"{len(raw)} bytes", expected="1 to 4095 bytes without NUL")
        if name not in {volume.name for volume in self.all()}:
            raise InputError(f"the image has no volume {name!r}", next_step="casemate image inspect lists them")
        return name, raw

    def system(self) -> Volume:
        """As `volumes.Volumes.system`."""
        return choose_system(self.all())

    def _describe(self, told: _Told) -> Volume:
        system = None
        for path in RELEASE_FILES if told.readable else ():
            try:
                text = b"".join(self._session.read(told.name, path, 0, 1 << 16))
            except (MissingInImageError, ImageError):
                continue
            system = parse_os_release(text.decode("utf-8", "replace"))
            break
        return Volume(
            name=_clean(told.name),
            disk=0,
            size_bytes=max(0, told.size_bytes),
            content=_clean(told.content),
            readable=told.readable,
            partition=told.partition,
            partition_name=_clean(told.partition_name),
            notes=tuple(_clean(note) for note in told.notes[:8]),
            os=system,
        )


@contextmanager
def open_other(image: ImageFile, paths: Paths, report: Callable[[str], None]) -> Iterator[Session]:
    """Dissect around an image, until the end of the block.

    Raises:
        HostError: it is not installed, or no wall can be built. VmError: it crashed.
    """
    prepare(paths)
    report("")
    python, site = find_dissect()
    modules = _list_modules(python, site)
    who, lock = identity.claim(paths, read_policy(None).identity.uids())
    spawned: Spawned | None = None
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, lock)
        ours, theirs = socket.socketpair()
        stack.callback(ours.close)
        log_read, log_write = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, log_read)
        try:
            wall = reader_wall(who, modules, image.format, site)
            spawned = _spawn(wall, paths, image, theirs, log_write)
        finally:
            theirs.close()
            os.close(log_write)
        stack.callback(kill_and_reap, spawned)
        _let_it_start(spawned)
        session = Session(ours, (log_read,), _how_it_ended(spawned), silence_max_s=SILENCE_S)
        session.wait_for_hello()
        yield session


def find_dissect() -> tuple[str, tuple[str, ...]]:
    """The interpreter of Dissect's own environment, and where its modules lie.

    Raises:
        HostError: it is not installed.
    """
    missing = HostError(
        "--reader dissect needs Dissect",
        got="no program target-fs on the PATH",
        expected="dissect.target with the formats that you want to read, in an environment of its own",
        next_step="pipx install dissect.target --preinstalled dissect.extfs dissect.xfs dissect.fat dissect.btrfs",
    )
    program = shutil.which("target-fs")
    if program is None:
        raise missing
    with open(program, "rb") as file:
        first = file.readline(4096).rstrip()
    python = os.fsdecode(first[2:]).strip()
    if not first.startswith(b"#!/") or " " in python or not os.access(python, os.X_OK):
        raise missing
    text = "import json, sys, dissect.target; print(json.dumps([p for p in sys.path if p.endswith('-packages')]))"
    said = _run(python, "-I", "-c", text)
    return python, tuple(msgspec.json.decode(said, type=tuple[str, ...])[:8])


def _list_modules(python: str, site: tuple[str, ...]) -> _Modules:
    script = str(Path(__file__).with_name("reader") / "dissect_reader")
    found = msgspec.json.decode(_run(python, "-I", "-S", "-B", script, "modules", *site), type=_Modules)
    if not 0 < len(found.files) <= _FILES_MAX:
        raise HostError("Dissect's modules", got=f"{len(found.files)} files", expected=f"1 to {_FILES_MAX}")
    return found


def _run(*command: str) -> bytes:
    """Dissect's Python without an image."""
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=60, check=False, env={"LC_ALL": "C.UTF-8"}
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError("Dissect's Python does not run", got=str(error)[:300]) from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise HostError("Dissect's Python does not run", got=said[-1][:300] if said else f"status {done.returncode}")
    return done.stdout


def reader_wall(who: Identity, modules: _Modules, image_format: str, site: tuple[str, ...]) -> Wall:
    """The wall of one reading: the interpreter, the modules that it loads, and nothing else."""
    script = str(Path(__file__).with_name("reader") / "dissect_reader")
    extensions = tuple(path for path in modules.files if path.endswith(".so"))
    closure = needed_closure(modules.python, Root(), extensions)
    bound = {path: path for path in modules.files}
    bound |= {item.target: item.source for item in closure}
    bound |= {modules.python: modules.python, _SCRIPT: script}
    return Wall(
        argv=(modules.python, "-I", "-S", "-B", _SCRIPT, "read", image_format, *site),
        environment=(("LC_ALL", "C.UTF-8"),),
        root=(
            *(BindFile(source, target) for target, source in sorted(bound.items())),
            Device("null"),
            Device("urandom"),
        ),
        root_size_bytes=8 * _MIB,
        identity=who,
        rlimits=(
            Rlimit("core", 0),
            Rlimit("nofile", 1024),
            Rlimit("nproc", 1),
            Rlimit("fsize", 0),
            Rlimit("as", MEMORY_BYTES),
            Rlimit("cpu", CPU_S),
            Rlimit("memlock", 0),
            Rlimit("msgqueue", 0),
            Rlimit("nice", 0),
            Rlimit("rtprio", 0),
            Rlimit("stack", 8 * _MIB),
        ),
        landlock_abi=landlock_abi(),
        landlock=(LandlockPath("/", ("read", "execute")), LandlockPath("/dev/urandom", ("read",))),
        cgroup=CgroupPlan(why_none="a reading is bounded by its limits and by the time of its command"),
        descriptors=(
            Descriptor(0, "null", "ro"),
            Descriptor(1, "log", "wo"),
            Descriptor(2, "log", "wo"),
            Descriptor(3, "image", "ro"),
            Descriptor(4, "channel", "socket"),
        ),
        profile="reader",
    )


def _spawn(wall: Wall, paths: Paths, image: ImageFile, theirs: socket.socket, log_write: int) -> Spawned:
    program = cached_program(reader_profile(), os.uname().machine, Path(paths.cache) / "filters")
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    # A description of its own: the reader must not share a file position with the caller.
    disk = os.open(f"/proc/self/fd/{image.fd}", os.O_RDONLY | os.O_CLOEXEC)
    staging = tempfile.mkdtemp(prefix="casemate-reader-")
    try:
        sources = {"null": null, "log": log_write, "image": disk, "channel": theirs.fileno()}
        return spawn(wall, program, sources, staging, deadline_s=_START_S)
    finally:
        files.remove_tree(staging)
        os.close(null)
        os.close(disk)


def _let_it_start(spawned: Spawned) -> None:
    """Answer the calls of ld.so and glibc, which end with the first one of Python's own; then close the listener."""
    import select

    poller = select.poll()
    poller.register(spawned.listener, select.POLLIN)
    poller.register(spawned.pidfd, select.POLLIN)
    end = time.monotonic() + _START_S
    quiet_ms = 5000.0
    while time.monotonic() < end:
        events = dict(poller.poll(quiet_ms))
        if spawned.pidfd in events or not events:
            break
        with contextlib.suppress(OSError):
            notification = notif_recv(spawned.listener)
            notif_send_continue(spawned.listener, notification.id)
            quiet_ms = 300.0
    os.close(spawned.listener)
    spawned.listener = -1


def _how_it_ended(spawned: Spawned) -> Callable[[], str]:
    def look() -> str:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            status = os.waitid(os.P_PIDFD, spawned.pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if status is not None:
                if status.si_code == os.CLD_EXITED:
                    return f"the reader exited with {status.si_status}"
                return f"the reader was killed by {signal.Signals(status.si_status).name}"
            time.sleep(0.01)
        return "the reader closed its channel"

    return look


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)[:200]
