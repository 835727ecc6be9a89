"""Conversion of an image to qcow2 or raw: qemu-img in a wall, with two sockets and nothing else.

    this process                                            qemu-img, pid 1 of its wall
      header read and accepted (image/foreign.py)
      NBD, read-only: the source or its part of an archive ◄──── driver said, never probed
      NBD, bounded:   the new file, made empty by us       ◄──── driver said
      limits: time, silence, bytes written                       own uid, empty network namespace, no files, memory and
      read back: header again, size as promised                  processor time limited, 50 system calls

No path of an image is in the wall and no file can be opened there, so a header that names another file leads nowhere
even if our reader had overlooked it. Whatever goes wrong, the wall dies with this process.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from casemate.cell.convert_nbd import BlockServer
from casemate.engine import files, identity
from casemate.engine.paths import Paths
from casemate.errors import HostError, ImageError, VmError
from casemate.facts.closure import cached_closure
from casemate.image.foreign import SourceHeader
from casemate.image.overlay import write_empty_qcow2
from casemate.jail.compile import cached_program
from casemate.jail.policy import BindFile, CgroupPlan, Descriptor, Device, Identity, LandlockPath, Rlimit, Wall
from casemate.jail.profiles import qemu_img_profile
from casemate.jail.spawn import Spawned, kill_and_reap, spawn
from casemate.sys.landlock import landlock_abi
from casemate.sys.seccomp import notif_recv, notif_send_continue

PROGRAM: Final = "/usr/bin/qemu-img"
SOURCE_FD, TARGET_FD = 3, 4
MEMORY_BYTES: Final = 1 << 30
STARTUP_S: Final = 20.0
SILENCE_S: Final = 60.0
BASE_S: Final = 120.0
SLOWEST_BYTES_S: Final = 4 << 20
LOG_MAX_BYTES: Final = 8192
_MIB: Final = 1 << 20

Progress = Callable[[int, int], None]
"""Told (bytes of the source dealt with as far as known, its size)."""


def convert(
    source: int,
    header: SourceHeader,
    target: int,
    *,
    name: str,
    paths: Paths,
    reserved: range,
    target_format: str = "qcow2",
    offset: int = 0,
    max_output_bytes: int,
    deadline_s: float | None = None,
    program: str = PROGRAM,
    progress: Progress = lambda done, of: None,
) -> None:
    """Fill the empty regular file ``target`` with the disk of ``source``.

    Args:
        source: read-only; its header was accepted as ``header``. Stays the caller's, as ``target`` does.
        name: how messages name the image.
        reserved: uids of the host's policy, for root.
        target_format: ``qcow2`` or ``raw``.
        offset: where the image begins in the file (a member of an archive).
        max_output_bytes: how much may be written in all.
        deadline_s: for the whole conversion; made from the size of the source when None.

    Raises:
        ImageError: qemu-img refused it, or it wanted more than it may: memory, time, room.
        HostError: qemu-img is missing, no wall can be built, or the disk is full. VmError: qemu-img crashed.
    """
    if target_format not in {"qcow2", "raw"}:
        raise RuntimeError(f"no conversion to {target_format}")
    if not os.access(program, os.X_OK):
        raise HostError("qemu-img is missing", got=program, next_step="apt-get install qemu-utils")
    room_bytes = _make_empty(target, target_format, header.virtual_size_bytes)
    end = time.monotonic() + (deadline_s or BASE_S + header.file_size_bytes / SLOWEST_BYTES_S)
    who, lock = identity.claim(paths, reserved)
    try:
        with contextlib.ExitStack() as stack:
            pairs = [socket.socketpair() for _ in range(2)]
            wake_fd = os.eventfd(0, os.EFD_CLOEXEC)
            stack.callback(os.close, wake_fd)
            read = BlockServer(pairs[0][0], source, header.file_size_bytes, offset=offset, wake_fd=wake_fd)
            filled = os.fstat(target).st_size if target_format == "qcow2" else 0
            write = BlockServer(pairs[1][0], target, room_bytes, write_max_bytes=max_output_bytes, filled_bytes=filled)
            log_read, log_write = os.pipe2(os.O_CLOEXEC)
            stack.callback(os.close, log_read)
            spawned = _spawn(who, paths, program, header.driver, target_format, pairs, log_write)
            stack.callback(_end, spawned, (read, write), pairs)
            run = _Run(spawned, read, write, log_read, wake_fd, name, end)
            read.start()
            write.start()
            run.wait(header.file_size_bytes, progress)
    finally:
        os.close(lock)
    os.fsync(target)


def _make_empty(target: int, target_format: str, size_bytes: int) -> int:
    """Make the file an empty image; how large the converter may find it."""
    try:
        if target_format == "qcow2":
            write_empty_qcow2(target, size_bytes)
            return size_bytes + size_bytes // 64 + 64 * _MIB  # tables and counts, as plan/wall.py has it for VMs
        os.ftruncate(target, size_bytes)
    except OSError as error:
        raise _disk_error(error) from error
    return size_bytes


def _end(spawned: Spawned, servers: tuple[BlockServer, ...], pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    """Kill first: then both sockets end, and with them the threads."""
    kill_and_reap(spawned)
    for ours, _ in pairs:
        with contextlib.suppress(OSError):
            ours.shutdown(socket.SHUT_RDWR)
    for server in servers:
        server.go_on()
        if server.ident is not None:
            server.join(10)


def _spawn(
    who: Identity,
    paths: Paths,
    program: str,
    driver: str,
    target_format: str,
    pairs: list[tuple[socket.socket, socket.socket]],
    log_write: int,
) -> Spawned:
    import tempfile

    wall = converter_wall(who, paths, program, driver, target_format)
    filter_program = cached_program(qemu_img_profile(), os.uname().machine, Path(paths.cache) / "filters")
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    staging = tempfile.mkdtemp(prefix="casemate-convert-")
    sources = {"null": null, "log": log_write, "source": pairs[0][1].fileno(), "target": pairs[1][1].fileno()}
    try:
        return spawn(wall, filter_program, sources, staging)
    finally:
        files.remove_tree(staging)
        os.close(null)
        os.close(log_write)
        for _, theirs in pairs:
            theirs.close()


def converter_wall(who: Identity, paths: Paths, program: str, driver: str, target_format: str) -> Wall:
    """The wall of one conversion: qemu-img, its libraries, /dev/null and /dev/urandom; two sockets and a pipe."""
    nbd = "file.driver=nbd,file.server.type=fd,file.server.str"
    resolved = os.path.realpath(program)
    closure = cached_closure(resolved, (), Path(paths.cache) / "emulators" / "qemu-img.closure")
    bound = {PROGRAM: resolved, **{item.target: item.source for item in closure}}
    return Wall(
        argv=(
            *(PROGRAM, "convert", "-n", "--target-is-zero", "--image-opts", "--target-image-opts"),
            f"driver={driver},{nbd}={SOURCE_FD}",
            f"driver={target_format},{nbd}={TARGET_FD}",
        ),
        environment=(),
        root=(
            *(BindFile(source, target) for target, source in sorted(bound.items())),
            Device("null"),
            Device("urandom"),
        ),
        root_size_bytes=_MIB,
        identity=who,
        rlimits=(
            Rlimit("core", 0),
            Rlimit("nofile", 1024),
            Rlimit("nproc", 32),
            Rlimit("fsize", 0),
            Rlimit("as", MEMORY_BYTES),
            Rlimit("memlock", 0),
            Rlimit("msgqueue", 0),
            Rlimit("nice", 0),
            Rlimit("rtprio", 0),
            Rlimit("stack", 8 * _MIB),
        ),
        landlock_abi=landlock_abi(),
        landlock=(LandlockPath("/", ("read", "execute")), LandlockPath("/dev/urandom", ("read",))),
        cgroup=CgroupPlan(why_none="a conversion is bounded by its limits and by the time of its command"),
        descriptors=(
            Descriptor(0, "null", "ro"),
            Descriptor(1, "log", "wo"),
            Descriptor(2, "log", "wo"),
            Descriptor(SOURCE_FD, "source", "socket"),
            Descriptor(TARGET_FD, "target", "socket"),
        ),
        profile="qemu-img",
    )


class _Run:
    """qemu-img between exec and its end. It gets no byte of the image before its start-up calls are over for good."""

    def __init__(
        self,
        spawned: Spawned,
        read: BlockServer,
        write: BlockServer,
        log_read: int,
        wake_fd: int,
        name: str,
        end: float,
    ) -> None:
        self._spawned, self._read, self._write = spawned, read, write
        self._log_read, self._wake_fd = log_read, wake_fd
        self._name, self._end = name, end
        self._log = bytearray()
        os.set_blocking(log_read, False)

    def wait(self, size_bytes: int, progress: Progress) -> None:
        """Return when it has ended well.

        Raises:
            ImageError, HostError, VmError: as `convert` says.
        """
        started = time.monotonic()
        poller = select.poll()
        for descriptor in (self._spawned.pidfd, self._log_read, self._spawned.listener, self._wake_fd):
            poller.register(descriptor, select.POLLIN)
        while True:
            events = dict(poller.poll(200))
            if self._log_read in events and not self._take_log():
                poller.unregister(self._log_read)
            if self._spawned.pidfd in events:
                self._judge_end()
                return
            if self._wake_fd in events:
                for descriptor in (self._wake_fd, self._spawned.listener):
                    poller.unregister(descriptor)
                os.close(self._spawned.listener)
                self._spawned.listener = -1
                self._read.go_on()
            elif self._spawned.listener >= 0 and self._spawned.listener in events:
                self._go_on()
            now = time.monotonic()
            if self._spawned.listener >= 0 and now - started > STARTUP_S:
                raise VmError("qemu-img did not start in time", got=self._text(), next_step="look at the host's load")
            self._check(now)
            progress(min(self._write.written_bytes, size_bytes), size_bytes)

    def _check(self, now: float) -> None:
        """The limits that only we can see."""
        if self._read.error is not None:
            raise ImageError(f"{self._name} cannot be read", got=(self._read.error.strerror or "").lower())
        if self._write.error is not None:
            raise _disk_error(self._write.error)
        for server in (self._read, self._write):
            if server.fault:
                raise self._refused(server.fault)
        if now > self._end:
            raise self._refused("it takes longer than any image of this size should")
        if now - max(self._read.heard, self._write.heard) > SILENCE_S:
            raise self._refused(f"the converter did nothing for {SILENCE_S:.0f} s")

    def _refused(self, why: str) -> ImageError:
        return ImageError(
            f"{self._name} cannot be converted",
            got=why + (f"; {self._text()}" if self._text() else ""),
            next_step="do not trust this image: it was made to exhaust whoever opens it, or it is damaged",
        )

    def _go_on(self) -> None:
        """Let one start-up call go on."""
        with contextlib.suppress(OSError):  # its thread has gone
            notif_send_continue(self._spawned.listener, notif_recv(self._spawned.listener).id)

    def _take_log(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._log_read, 4096)
            self._log += data
            del self._log[:-LOG_MAX_BYTES]
            return bool(data)
        return True

    def _text(self) -> str:
        lines = bytes(self._log).decode("utf-8", "replace").splitlines()
        return " | ".join("".join(c for c in line if c.isprintable())[:300] for line in lines[-3:] if line.strip())

    def _judge_end(self) -> None:
        while self._take_log_again():
            pass
        status = os.waitid(os.P_PIDFD, self._spawned.pidfd, os.WEXITED | os.WNOWAIT)
        assert status is not None
        for server in (self._read, self._write):
            server.go_on()
            server.join(10)  # its other end is closed
        self._check(0.0)
        if status.si_code != os.CLD_EXITED:
            how = signal.Signals(status.si_status).name
            raise VmError(
                f"the converter crashed on {self._name}",
                got=how + (f"; {self._text()}" if self._text() else ""),
                next_step="SIGSYS: a system call outside of its allowlist, report it with qemu-img --version"
                if how == "SIGSYS"
                else "do not trust this image",
            )
        if status.si_status != 0:
            raise self._refused("qemu-img refused it")

    def _take_log_again(self) -> bool:
        before = len(self._log)
        return self._take_log() and len(self._log) > before


def _disk_error(error: OSError) -> HostError:
    return HostError(
        "no room for the converted image" if error.errno in {28, 122, 27} else "the converted image cannot be written",
        got=(error.strerror or str(error)).lower(),
        next_step="casemate image prune; df -h",
    )
