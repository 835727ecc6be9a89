"""A cell's life: home, identity, plan, wall, guest, and nothing of it left at the end.

    this process                          emulator, pid 1 of its wall       agent, pid 1 of the guest
      home, uid, plan, judge, open
      launch (engine/launch.py) ───────►  paused, read back, judged
      cont ─────────────────────────────────────────────────────────────►  modules, hello
      questions ──────── virtio-serial ─────────────────────────────────►  answers
      kill, remove

The emulator is this process's child with PDEATHSIG=KILL: whatever ends the command ends the cell. What a killed command
leaves (an empty cgroup, an empty directory) the next cell removes.

    runtime/cells/<id>/lock         held while the cell lives
    runtime/cells/<id>/cgroups      directories to remove if the command is killed
    runtime/cells/<id>/root/        the new root is mounted here, in the emulator's own mount namespace
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from casemate.cell.guest import CellGuest, build_cell_guest
from casemate.cell.link import SILENT
from casemate.cell.model import ImageFile
from casemate.cell.session import Session
from casemate.cell.tools import tool_files
from casemate.controls.judge import refusal_error, refusals
from casemate.controls.model import Control
from casemate.controls.policy import controls_under
from casemate.engine import files, hostview, identity, labels
from casemate.engine.aftermath import remove_cgroups
from casemate.engine.launch import Launched, launch
from casemate.engine.opening import Opened, open_planned_files
from casemate.engine.paths import Paths, own_directory, prepare
from casemate.engine.policy_file import read_policy
from casemate.engine.start import judge_declared
from casemate.errors import CasemateError, ImageError, VmError
from casemate.image.opening import identity_of, open_regular_file
from casemate.jail.compile import cached_program
from casemate.jail.policy import Identity
from casemate.jail.spawn import kill_and_reap
from casemate.plan.build import Request, build_plan
from casemate.plan.model import LaunchPlan
from casemate.spec.model import Boot, Disk, DiskFormat, DiskMode, Machine, Spec

DISKS_MAX = 4
HELLO_MAX_S = (30.0, 60.0)
"""How long the first and the second start may take to the agent's hello. Under TCG, on a host with much more to do than
processors, one boot in some hundreds stops for good before its first process; the second one tells that from an image
that stops the kernel.
"""
NOT_FOR_A_CELL = frozenset({"img.origin"})
"""Controls about what a VM may boot from: to look into an image that nobody vouches for is what a cell is there for."""


@contextlib.contextmanager
def boot(
    images: Sequence[ImageFile], paths: Paths, *, memory_mib: int, report: Callable[[str], None]
) -> Iterator[Session]:
    """A cell with these disks, until the end of the block.

    Raises:
        CasemateError: it did not start; nothing is left.
    """
    if not 1 <= len(images) <= DISKS_MAX:
        raise RuntimeError(f"a cell has 1 to {DISKS_MAX} disks, not {len(images)}")
    prepare(paths)
    guest = build_cell_guest(Path(paths.cache), report)
    sweep_stale(paths)
    cell_id = f"cell{secrets.token_hex(6)}"
    home = f"{paths.runtime}/cells/{cell_id}"
    lock = _make_home(paths, home, cell_id)
    own = Paths(home, f"{home}/data", paths.cache)
    opened = Opened()
    uid_lock = -1
    image_locks: list[int] = []
    started: _Started | None = None
    plan: LaunchPlan | None = None
    try:
        report("")
        _open_all(images, guest, opened)
        policy = read_policy(None)
        who, uid_lock = identity.claim(paths, policy.identity.uids())
        plan = _plan(_spec(images, guest, memory_mib), paths, cell_id, who, opened.sizes)
        controls = tuple(control for control in controls_under(policy) if control.id not in NOT_FOR_A_CELL)
        refused = refusals(judge_declared(plan, (), controls))
        if refused:
            raise refusal_error(refused)
        open_planned_files(plan.files, opened, own, cell_id)
        labels.apply_labels(plan, opened, own)
        program = cached_program(plan.profile, os.uname().machine, Path(paths.cache) / "filters")
        files.write_json(f"{home}/cgroups", plan.cgroup.directories)
        for wait_s in HELLO_MAX_S:
            started = _start(plan, program, opened, f"{home}/root", controls)
            session = started.session(guest, wait_s, lambda package: tool_files(package, Path(paths.cache), report))
            if _says_hello(session, is_last=wait_s == HELLO_MAX_S[-1]):
                break
            started.end()
            remove_cgroups(plan.cgroup.directories)
        image_locks, opened.locks = opened.locks, []
        opened.close()
        session.allow_silence()
        yield session
    finally:
        if started is not None:
            started.end()
        if plan is not None:
            remove_cgroups(plan.cgroup.directories)
        opened.close()
        labels.restore_labels(own, cell_id)
        files.remove_tree(home)
        for descriptor in (uid_lock, lock, *image_locks):
            if descriptor >= 0:
                os.close(descriptor)


def _says_hello(session: Session, *, is_last: bool) -> bool:
    """Whether the guest answered; its silence is an error only the last time."""
    try:
        session.wait_for_hello()
    except VmError as error:
        if error.what != SILENT or is_last:
            raise
        return False
    return True


@dataclass
class _Started:
    """An emulator that has been released, and our end of its agent's port."""

    launched: Launched
    channel: socket.socket
    ended: bool = False

    def session(self, guest: CellGuest, wait_s: float, tools: Callable[[str], Iterable[tuple[str, bytes]]]) -> Session:
        """The channel as a session; console, log and QMP are drained by it."""
        drains = (self.launched.console.fileno(), self.launched.log_fd, self.launched.qmp.fileno())
        how = _how_it_ended(self.launched)
        return Session(self.channel, drains, how, silence_max_s=wait_s, guest=guest, tools=tools)

    def end(self) -> None:
        """Kill it, and close everything; a second time is fine."""
        if not self.ended:
            self.ended = True
            self.channel.close()
            _end(self.launched)


def _start(plan: LaunchPlan, program: bytes, opened: Opened, staging: str, controls: tuple[Control, ...]) -> _Started:
    ours, theirs = socket.socketpair()
    try:
        opened.by_role["channel"] = theirs.fileno()
        return _Started(launch(plan, program, opened, staging, (), controls), ours)
    except BaseException:
        ours.close()
        raise
    finally:
        del opened.by_role["channel"]
        theirs.close()


def _make_home(paths: Paths, home: str, cell_id: str) -> int:
    """The cell's directories and the lock that says whose they are; under cells.lock, or a sweep would take them."""
    nursery = files.take_lock(f"{paths.runtime}/cells.lock", wait=True)
    try:
        for directory in (
            *(f"{paths.runtime}/cells", home, f"{home}/root"),
            *(f"{home}/data", f"{home}/data/vms", f"{home}/data/vms/{cell_id}"),
        ):
            own_directory(directory)
        lock = files.take_lock(f"{home}/lock", wait=False)
    finally:
        if nursery is not None:
            os.close(nursery)
    if lock is None:
        raise RuntimeError(f"{home} is new and yet locked")
    return lock


def sweep_stale(paths: Paths) -> None:
    """Remove what cells left whose command was killed."""
    base = f"{paths.runtime}/cells"
    if not os.path.isdir(base):
        return
    nursery = files.take_lock(f"{paths.runtime}/cells.lock", wait=True)
    try:
        _sweep(paths, base)
    finally:
        if nursery is not None:
            os.close(nursery)


def _sweep(paths: Paths, base: str) -> None:
    for name in os.listdir(base):
        home = f"{base}/{name}"
        with contextlib.suppress(OSError):
            lock = files.take_lock(f"{home}/lock", wait=False)
            if lock is None:
                continue
            try:
                with contextlib.suppress(OSError, msgspec.MsgspecError):
                    remove_cgroups(msgspec.json.decode(files.read_bounded(f"{home}/cgroups"), type=tuple[str, ...]))
                labels.restore_labels(Paths(home, f"{home}/data", paths.cache), name)
                files.remove_tree(home)
            finally:
                os.close(lock)


def _spec(images: Sequence[ImageFile], guest: CellGuest, memory_mib: int) -> Spec:
    """The paths of the disks are names only: the descriptors are open already."""
    disks = tuple(
        Disk(path=os.readlink(f"/proc/self/fd/{image.fd}"), format=DiskFormat(image.format), mode=DiskMode.READ_ONLY)
        for image in images
    )
    boot_files = Boot(kernel=str(guest.kernel), initrd=str(guest.initrd), cmdline=guest.cmdline)
    return Spec(name="cell", machine=Machine(memory_mib=memory_mib), boot=boot_files, disks=disks)


def _plan(spec: Spec, paths: Paths, cell_id: str, who: Identity, sizes: dict[str, int]) -> LaunchPlan:
    host, emulator = hostview.collect(spec, paths)
    return build_plan(spec, host, emulator, Request(cell_id, "cell", who, sizes, channel=True))


def _open_all(images: Sequence[ImageFile], guest: CellGuest, opened: Opened) -> None:
    """Boot files by path, with the digests that the cache promises; images by their descriptors, locked for reading."""
    for role, path, digest in (
        ("kernel", guest.kernel, guest.kernel_sha256),
        ("initrd", guest.initrd, guest.initrd_sha256),
    ):
        opened.by_role[role] = open_regular_file(str(path), what=role)
        opened.sizes[role] = os.fstat(opened.by_role[role]).st_size
        opened.digests[role] = digest
    for index, image in enumerate(images):
        role = f"disk{index}"
        # A description of its own: QEMU must not share a file position or a lock with the caller.
        again = f"/proc/self/fd/{image.fd}"
        opened.by_role[role] = os.open(again, os.O_RDONLY | os.O_CLOEXEC)
        opened.locks.append(os.open(again, os.O_RDONLY | os.O_CLOEXEC))
        try:
            fcntl.flock(opened.locks[-1], fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ImageError(
                f"{image.name} is in use by a VM that writes to it",
                expected="an image at rest, or one that a VM uses with mode overlay",
                next_step="casemate ps shows the running VMs",
            ) from None
        opened.sizes[role] = image.virtual_size_bytes
        opened.identities[role] = (identity_of(image.fd), image.name)


def _how_it_ended(launched: Launched) -> Callable[[], str]:
    def look() -> str:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            status = os.waitid(os.P_PIDFD, launched.spawned.pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if status is not None:
                exited = status.si_code == os.CLD_EXITED
                return f"the emulator {'exited with' if exited else 'was killed by signal'} {status.si_status}"
            time.sleep(0.01)
        return "the agent closed its port"

    return look


def _end(launched: Launched) -> None:
    with contextlib.suppress(CasemateError):
        kill_and_reap(launched.spawned)
    launched.qmp.close()
    launched.console.close()
    os.close(launched.log_fd)
