"""The broker's process from its fork to its exec: start passt in its wall, answer it, wait until it answers frames."""

from __future__ import annotations

import array
import base64
import contextlib
import json
import os
import select
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Never

from casemate.engine import errorwire, files
from casemate.engine.egress import Broker
from casemate.engine.egress_main import Log
from casemate.engine.egress_policy import Policy
from casemate.engine.helpers import did_not_start
from casemate.engine.ports import ports_error
from casemate.errors import CasemateError, VmError
from casemate.jail.broker_rules import broker_profile
from casemate.jail.compile import compile_profile
from casemate.jail.policy import Identity, IdentityMode
from casemate.jail.spawn import Spawned, kill_and_reap, spawn
from casemate.plan.model import HelperPlan, LaunchPlan
from casemate.plan.passt import GATEWAY, GUEST, passt_wall
from casemate.sys import process
from casemate.sys.rtnetlink import RouteTable

DEADLINE_S = 10.0
ERRORS_MAX_BYTES = 4096
_GUEST_MAC = bytes.fromhex("525400123456")


@dataclass(frozen=True)
class Job:
    """What the broker's process needs of the launch."""

    helper: HelperPlan
    plan: LaunchPlan
    identity: Identity
    cgroups: tuple[str, ...]
    policy: Policy
    files: dict[str, str]
    program: bytes
    log_fd: int


def become_broker(job: Job, qemu_end: socket.socket, passt_end: socket.socket, word: socket.socket) -> Never:
    try:
        parent = os.getppid()
        process.prctl(process.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for number in (0, 1, 2):
            os.dup2(null, number)
        for directory in job.cgroups:
            with open(f"{directory}/cgroup.procs", "w", encoding="ascii") as file:
                file.write("0")
        _start_and_serve(job, qemu_end, passt_end, word)
    except BaseException as fault:
        text = f"{type(fault).__name__}: {fault}"
        error = fault if isinstance(fault, CasemateError) else VmError("the network's broker failed", got=text)
        with contextlib.suppress(OSError):
            word.send(json.dumps({"error": errorwire.encode(error)}).encode())
    os._exit(1)


def _start_and_serve(job: Job, qemu_end: socket.socket, passt_end: socket.socket, word: socket.socket) -> None:
    machine = os.uname().machine
    routes = RouteTable()
    errors_read, errors_write = os.pipe2(os.O_CLOEXEC)
    wall = passt_wall(job.helper, job.plan.wall, job.files, job.identity)
    sources = {
        "null": os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC),
        "log": errors_write,
        "tap": passt_end.fileno(),
        "resolv-conf": _text_file(f"nameserver {job.policy.resolver}\n" if job.policy.resolver else ""),
        "uid-map": _text_file(f"{job.identity.uid:>10} {job.identity.uid:>10} {1:>10}\n"),
    }
    staging = tempfile.mkdtemp(prefix="casemate-passt-")
    try:
        spawned = spawn(wall, job.program, sources, staging)
    finally:
        files.remove_tree(staging)
    passt_end.close()
    for descriptor in sources.values():
        if descriptor != passt_end.fileno():
            with contextlib.suppress(OSError):
                os.close(descriptor)
    log = Log(job.log_fd)
    broker = Broker(spawned.listener, spawned.pidfd, job.policy, routes, log.line, machine)
    try:
        _Starting(job, broker, spawned, qemu_end, errors_read).wait()
        packet = json.dumps({"pid": spawned.pid}).encode()
        word.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [spawned.pidfd]))])
        _exec(job, spawned, routes, errors_read, word)
    except BaseException:
        kill_and_reap(spawned)
        raise


def _text_file(text: str) -> int:
    descriptor = os.memfd_create("casemate-passt", os.MFD_CLOEXEC)
    os.write(descriptor, text.encode())
    return descriptor


class _Starting:
    """passt between exec and its first answer to a frame: everything that can arrive meanwhile, in one loop."""

    def __init__(self, job: Job, broker: Broker, spawned: Spawned, qemu_end: socket.socket, errors: int) -> None:
        self._broker = broker
        self._spawned = spawned
        self._link = qemu_end
        self._errors = errors
        self._log = Log(job.log_fd)
        self._messages = bytearray()
        self._frames = bytearray()
        self._answered = False

    def wait(self) -> None:
        """Return once passt answers.

        Raises:
            HostError: it ended or could not bind its ports; its messages are in the error.
            VmError: it was too slow.
        """
        end = time.monotonic() + DEADLINE_S
        os.set_blocking(self._errors, False)
        self._link.setblocking(False)
        self._link.send(_arp_request())
        poller = select.poll()
        for descriptor in (self._broker.fileno(), self._errors, self._link.fileno(), self._spawned.pidfd):
            poller.register(descriptor, select.POLLIN)
        while not self._answered:
            remaining = end - time.monotonic()
            if remaining <= 0:
                raise VmError("passt did not answer in time", got=self._text(), next_step="look at the host's load")
            for descriptor, _ in poller.poll(remaining * 1000):
                if descriptor == self._broker.fileno():
                    self._broker.handle_ready()
                elif descriptor == self._errors:
                    self._read_messages()
                elif descriptor == self._spawned.pidfd:
                    self._died()
                else:
                    if not self._read_frame():
                        poller.unregister(descriptor)  # its end is closed: its pidfd will say why
        self._link.setblocking(True)
        if self._broker.bind_failures:
            raise ports_error(self._broker.bind_failures)

    def _read_messages(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._messages += os.read(self._errors, 4096)
            del self._messages[:-ERRORS_MAX_BYTES]

    def _read_frame(self) -> bool:
        """One frame at a time, so that nothing of a later one is taken from QEMU; False when the link is closed."""
        length = int.from_bytes(self._frames[:4], "big") if len(self._frames) >= 4 else 0
        try:
            data = self._link.recv(4 + length - len(self._frames))
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        self._frames += data
        if not data or len(self._frames) < 4:
            return bool(data)
        length = int.from_bytes(self._frames[:4], "big")
        if length > 65536:
            raise VmError("passt sent a frame that is too long", got=f"{length} bytes")
        if len(self._frames) == 4 + length:
            self._answered = self._frames[16:18] == b"\x08\x06"
            self._frames.clear()
        return True

    def _died(self) -> Never:
        self._read_messages()
        if self._broker.bind_failures:
            raise ports_error(self._broker.bind_failures)
        raise did_not_start("passt", self._spawned.pidfd, self._text())

    def _text(self) -> str:
        lines = self._messages.decode("utf-8", "replace").splitlines()
        # passt has no syslog in its root and says so for each line.
        kept = [line for line in lines if line.strip() and "to syslog" not in line]
        return " | ".join("".join(c for c in line if c.isprintable()) for line in kept[-6:])


def _arp_request() -> bytes:
    """A frame of the link: 4 bytes of length, then ARP "who has the gateway" from the guest; see RFC 826."""
    frame = b"\xff" * 6 + _GUEST_MAC + b"\x08\x06" + bytes.fromhex("0001080006040001")
    frame += _GUEST_MAC + socket.inet_aton(GUEST) + bytes(6) + socket.inet_aton(GATEWAY)
    frame += bytes(60 - len(frame))
    return len(frame).to_bytes(4, "big") + frame


def _exec(job: Job, spawned: Spawned, routes: RouteTable, errors: int, word: socket.socket) -> Never:
    rooted = job.identity.mode is IdentityMode.ROOT
    keep = [spawned.listener, spawned.pidfd, routes.socket.fileno(), errors, word.fileno()]
    if job.log_fd >= 0:
        keep.append(job.log_fd)
    profile = broker_profile(spawned.pid, spawned.pidfd, spawned.listener, ipv6=bool(job.policy.gateway6))
    config = {
        "listener": spawned.listener,
        "pidfd": spawned.pidfd,
        "pid": spawned.pid,
        "netlink": routes.socket.fileno(),
        "errors": errors,
        "word": word.fileno(),
        "log": job.log_fd,
        "policy": job.policy.to_data(),
        "machine": os.uname().machine,
        "parent": os.getppid(),
        "ids": [job.identity.uid, job.identity.gid] if rooted else None,
        "program": base64.b64encode(compile_profile(profile, os.uname().machine)).decode(),
    }
    handover = os.memfd_create("casemate-handover", os.MFD_CLOEXEC)
    os.write(handover, json.dumps(config).encode())
    os.lseek(handover, 0, os.SEEK_SET)
    process.close_range_on_exec(3)
    for descriptor in (*keep, handover):
        os.set_inheritable(descriptor, True)
    source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    code = f"import sys; sys.path.insert(0, {source!r}); from casemate.engine.egress_main import main; main({handover})"
    interpreter = os.path.realpath(sys.executable)
    os.execve(  # noqa: S606 - no shell is wanted
        interpreter, [interpreter, "-I", "-S", "-c", code, job.plan.vm_id], {"LC_ALL": "C.UTF-8"}
    )
