"""Start the TPM of a VM: swtpm in its wall, its state opened or made, QEMU's end of the control channel kept ready.

    supervisor-to-be                          swtpm
      clone3 ─────────────────────────────►   wall, exec
      answers its start-up calls ◄──────────  ld.so, its own filter
      CMD_INIT ───────────────────────────►   reads and decrypts its state, or makes a new TPM
      a new TPM: one bank, EK, AK; settled
      CMD_STOP ───────────────────────────►
      end of start-up calls
      ── control channel to QEMU, which sends CMD_SET_DATAFD and CMD_INIT itself ──

A TPM is made ready inside the wall by the process that will be the VM's TPM; its directory is renamed to the name that
counts when that is done, so a launch killed at any moment leaves a whole TPM or none.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from casemate.bpf.syscalls import names
from casemate.engine import files, tpm_commands
from casemate.engine.helpers import Member, did_not_start
from casemate.engine.paths import default_paths
from casemate.engine.tpm_furnish import furnish
from casemate.engine.tpm_state import Home, Keys
from casemate.engine.vmfiles import now
from casemate.errors import InputError, VmError
from casemate.facts.closure import cached_closure
from casemate.jail.compile import cached_program
from casemate.jail.policy import Wall
from casemate.jail.profiles import swtpm_profile
from casemate.jail.spawn import Spawned, kill_and_reap, spawn
from casemate.plan.model import HelperPlan, LaunchPlan
from casemate.plan.swtpm import PROGRAM, swtpm_wall
from casemate.sys import seccomp

DEADLINE_S: Final = 30.0
_LOG_MAX_BYTES: Final = 4096


@dataclass
class Tpm:
    """The running TPM of a VM. The caller owns it; `stop` ends and closes everything.

    Attributes:
        spawned: swtpm, our child.
        wall: what it was put behind.
        qemu_socket_fd: QEMU's end of the control channel.
        notified: its exec arrived at our listener, so the filter that we loaded is live.
    """

    spawned: Spawned
    wall: Wall
    qemu_socket_fd: int
    notified: bool = False

    def members(self) -> tuple[Member, ...]:
        """swtpm."""
        return (Member("swtpm", "swtpm", self.spawned.pid, self.spawned.pidfd),)

    def unlink(self) -> None:
        """Close our copy of QEMU's end once QEMU has its own."""
        if self.qemu_socket_fd >= 0:
            os.close(self.qemu_socket_fd)
            self.qemu_socket_fd = -1

    def stop(self) -> None:
        """Kill and reap. Safe to call when it is dead already, or stopped."""
        if self.spawned.pidfd >= 0:
            kill_and_reap(self.spawned)
            self.spawned.pidfd = -1
        self.unlink()


def helper_of(plan: LaunchPlan) -> HelperPlan | None:
    """The plan's TPM, if the VM has one."""
    return next((item for item in plan.helpers if item.name == "swtpm"), None)


def start_tpm(
    plan: LaunchPlan, home: Home, sources: dict[str, int], log_read: int, cache_dir: str | None = None
) -> Tpm:
    """Start swtpm; returns once its state is open and, for a new TPM, once that is whole.

    The caller must be single-threaded and becomes swtpm's parent.

    Args:
        sources: descriptors of the roles ``null``, ``log`` and ``tpm-key``.
        log_read: the other end of ``log``, for swtpm's own words when it fails.
        cache_dir: Casemate's cache; the default one when None.

    Raises:
        InputError: the key does not open the state. HostError, VmError: it did not start, or not in time.
    """
    helper = helper_of(plan)
    if helper is None:
        raise RuntimeError("start_tpm for a VM without a TPM")
    cache = Path(cache_dir or default_paths().cache)
    closure = cached_closure(helper.program, (), cache / "emulators" / "swtpm.closure")
    inside = {PROGRAM: helper.program, **{item.target: item.source for item in closure}}
    wall = swtpm_wall(helper, plan.wall, inside, home.directory)
    program = cached_program(swtpm_profile(), os.uname().machine, cache / "filters")
    ours, theirs = socket.socketpair()
    staging = tempfile.mkdtemp(prefix="casemate-swtpm-")
    try:
        spawned = spawn(wall, program, {**sources, "tpm-control": theirs.fileno()}, staging)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
        files.remove_tree(staging)
    try:
        starting = _Starting(spawned, ours, log_read)
        starting.run(home)
    except BaseException:
        ours.close()
        kill_and_reap(spawned)
        raise
    return Tpm(spawned, wall, ours.detach(), starting.executed)


class _Starting:
    """swtpm between exec and the end of its start-up calls."""

    def __init__(self, spawned: Spawned, control: socket.socket, log_read: int) -> None:
        self._spawned = spawned
        self._control = control
        self._log_read = log_read
        self._end = time.monotonic() + DEADLINE_S
        self._numbers = names(os.uname().machine)
        self.executed = False

    def run(self, home: Home) -> None:
        """Open the state, make a TPM where there is none, end the start-up calls."""
        if home.fresh:
            home.settle(self._make())
        else:
            self._open()
        self._command(tpm_commands.CMD_STOP, "CMD_STOP")
        os.close(self._spawned.listener)  # from here on start-up calls fail for good
        self._spawned.listener = -1

    def _open(self) -> None:
        """QEMU would only say that the TPM failed: the state is opened once here, where the reason can be told."""
        if self._init() != 0:
            raise InputError(
                "the state of the VM's TPM cannot be opened",
                got=self._words() or "swtpm refuses it",
                expected="the key that it was encrypted with, and state that nobody changed",
                next_step="give [tpm] key its old secret back; or casemate rm, which gives the TPM up",
            )

    def _make(self) -> Keys:
        """A TPM with its SHA-256 bank alone and two keys: the endorsement key and an attestation key."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                descriptors = array.array("i", [theirs.fileno()])
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)]
                with contextlib.suppress(ConnectionError):  # it has ended: waiting for the answer says how
                    self._control.sendmsg([tpm_commands.control(tpm_commands.CMD_SET_DATAFD)], ancillary)
                self._check(tpm_commands.control_result(self._receive(self._control, 4)), "CMD_SET_DATAFD")
            self._check(self._init(), "CMD_INIT")
            ek_public, ak_public = furnish(lambda command, what: self._tell(ours, command, what), self._init)
        return Keys(ek_public.hex(), ak_public.hex(), now())

    def _tell(self, data: socket.socket, command: bytes, what: str) -> bytes:
        """One TPM command; what follows the header of its response."""
        while True:
            _send(data, command)
            head = self._receive(data, 10)
            size = int.from_bytes(head[2:6], "big")
            if not 10 <= size <= tpm_commands.RESPONSE_MAX_BYTES:
                raise VmError(f"the TPM did not answer {what}", got=head.hex())
            answer = head + (self._receive(data, size - 10) if size > 10 else b"")
            if not tpm_commands.is_retry(answer):  # the deadline bounds how often
                return tpm_commands.response(answer, what)

    # ---- talking ----------------------------------------------------------------------------------------------------

    def _init(self) -> int:
        _send(self._control, tpm_commands.control(tpm_commands.CMD_INIT, flags=0))
        return tpm_commands.control_result(self._receive(self._control, 4))

    def _command(self, command: int, what: str) -> None:
        _send(self._control, tpm_commands.control(command))
        self._check(tpm_commands.control_result(self._receive(self._control, 4)), what)

    def _check(self, result: int, what: str) -> None:
        if result != 0:
            raise VmError(f"swtpm refused {what}", got=f"{result:#x}; {self._words()}", next_step="swtpm --version")

    def _receive(self, channel: socket.socket, size: int) -> bytes:
        """Exactly ``size`` bytes, while its start-up calls are answered."""
        poller = select.poll()
        poller.register(channel.fileno(), select.POLLIN)
        poller.register(self._spawned.listener, select.POLLIN)
        poller.register(self._spawned.pidfd, select.POLLIN)
        data = b""
        while len(data) < size:
            remaining = self._end - time.monotonic()
            if remaining <= 0:
                raise VmError("swtpm did not answer in time", got=self._words(), next_step="look at the host's load")
            for descriptor, events in poller.poll(remaining * 1000):
                if descriptor == channel.fileno() and events & select.POLLIN:
                    piece = _read(channel, size - len(data))
                    data += piece
                    if not piece:
                        poller.unregister(descriptor)  # its pidfd will say why
                elif descriptor == self._spawned.listener and events & select.POLLIN:
                    self._answer()
                elif descriptor == self._spawned.pidfd and len(data) < size:
                    raise did_not_start("swtpm", self._spawned.pidfd, self._words())
        return data

    def _answer(self) -> None:
        listener = self._spawned.listener
        try:
            notification = seccomp.notif_recv(listener)
            if self._numbers.get(notification.nr) == "execve":
                if self.executed:
                    seccomp.notif_send_error(listener, notification.id, 1)
                    return
                self.executed = True
            seccomp.notif_send_continue(listener, notification.id)
        except FileNotFoundError:
            return  # the caller died meanwhile

    def _words(self) -> str:
        """What it said last, printable; the emulator, which shares the log, has not been started yet."""
        os.set_blocking(self._log_read, False)
        try:
            text = os.read(self._log_read, _LOG_MAX_BYTES).decode("utf-8", "replace")
        except BlockingIOError:
            return ""
        return " | ".join("".join(c for c in line if c.isprintable()) for line in text.splitlines()[-4:])


def _send(channel: socket.socket, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):  # it has ended: waiting for the answer says how
        channel.sendall(data)


def _read(channel: socket.socket, size: int) -> bytes:
    try:
        return channel.recv(size)
    except ConnectionError:
        return b""
