"""Start the network of a VM: passt in its wall, and the broker without which its filter lets it reach nothing.

    supervisor-to-be             broker (forked)                       passt
      ports free? resolver
      fork ───────────────────►  cgroup; clone3 ────────────────────►  wall, exec
                                 answers its calls ◄─────────────────  socket, bind, listen …
                                 asks who has the gateway (ARP) ────►
                                 an answer: its sockets are bound  ◄─
      ◄── pid, pidfd ──────────  exec of a minimal interpreter,
                                 confines itself, goes on answering

passt dies with the broker and the broker with the supervisor (PDEATHSIG); passt also ends when QEMU's end of the link
is closed. ``egress`` that cannot be enforced refuses the launch (control net.egress).
"""

from __future__ import annotations

import array
import base64
import contextlib
import errno
import json
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Never

from casemate.engine import errorwire
from casemate.engine.egress import Broker
from casemate.engine.egress_policy import Policy, Published
from casemate.engine.egress_main import Log
from casemate.engine.paths import default_paths
from casemate.engine.resolver import host_resolver
from casemate.errors import CasemateError, HostError, RefusedError, VmError
from casemate.facts.closure import cached_closure
from casemate.jail.broker_rules import broker_profile
from casemate.jail.compile import cached_program, compile_profile
from casemate.jail.egress import with_broker
from casemate.jail.policy import Identity, IdentityMode
from casemate.jail.profiles import passt_profile
from casemate.jail.spawn import Spawned, kill_and_reap, spawn
from casemate.plan.model import EgressPlan, HelperPlan, LaunchPlan
from casemate.plan.passt import GATEWAY, GUEST, passt_wall
from casemate.sys import process
from casemate.sys.rtnetlink import RouteTable

DEADLINE_S = 10.0
KERNEL_MINIMUM = (5, 14)
ERRORS_MAX_BYTES = 4096
_SO_PASSRIGHTS = 83
_GUEST_MAC = bytes.fromhex("525400123456")
_WORD_MAX_BYTES = 65536


@dataclass
class Network:
    """The running network of a VM. The caller owns the descriptors; `stop` ends and closes everything.

    Attributes:
        pid, pidfd: passt. It is the broker's child, not ours.
        broker_pid, broker_pidfd: our child; it ends when passt ends.
        qemu_socket_fd: QEMU's end of the link, for its ``-netdev stream``.
        resolver: the resolver that the guest may use, or None.
    """

    pid: int
    pidfd: int
    broker_pid: int
    broker_pidfd: int
    qemu_socket_fd: int
    resolver: str | None

    def stop(self) -> None:
        """Kill both, reap the broker, close the descriptors. Safe to call when they are dead already."""
        for pidfd in (self.pidfd, self.broker_pidfd):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self.broker_pidfd, os.WEXITED)
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        poller.poll(DEADLINE_S * 1000)  # its reaper is another process
        for name in ("pidfd", "broker_pidfd", "qemu_socket_fd"):
            descriptor = getattr(self, name)
            if descriptor >= 0:
                os.close(descriptor)
                setattr(self, name, -1)


@dataclass(frozen=True)
class _Job:
    """What the broker's process needs of the launch."""

    helper: HelperPlan
    plan: LaunchPlan
    identity: Identity
    cgroups: tuple[str, ...]
    policy: Policy
    files: dict[str, str]
    program: bytes
    log_fd: int


def start_network(
    plan: LaunchPlan,
    vm_uid: int,
    vm_gid: int,
    cgroup_dirs: tuple[str, ...],
    log_fd: int = -1,
    cache_dir: str | None = None,
) -> Network:
    """Start passt and its broker; returns once every published port is bound and passt answers frames.

    The caller must be single-threaded (it forks) and becomes the broker's parent.

    Args:
        plan: its helper ``passt`` and the VM's wall.
        vm_uid: as ``plan.run_as``; passt and, as root, the broker's sockets get it.
        vm_gid: as ``plan.run_as``.
        cgroup_dirs: joined by both processes.
        log_fd: takes passt's messages and refused destinations, a bounded number; -1 for none.
        cache_dir: Casemate's cache; the default one when None.

    Raises:
        HostError: a published port is taken, passt or libseccomp is missing, passt does not start.
        RefusedError: the egress policy cannot be enforced on this kernel (control net.egress).
        VmError: it did not finish in time.
    """
    helper = next(item for item in plan.helpers if item.name == "passt")
    egress = helper.egress
    if egress is None or (vm_uid, vm_gid) != (plan.run_as.uid, plan.run_as.gid):
        raise RuntimeError("start_network: the plan's helper has no egress policy, or the ids are not the plan's")
    check_kernel(os.uname().release)
    check_ports(egress)
    machine, cache = os.uname().machine, Path(cache_dir or default_paths().cache)
    policy = make_policy(egress, host_resolver() if egress.dns else None)
    job = _Job(
        helper,
        plan,
        plan.run_as,
        cgroup_dirs,
        policy,
        _program_files(helper.program, cache),
        cached_program(with_broker(passt_profile()), machine, cache / "filters"),
        log_fd,
    )
    qemu_end, passt_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    _refuse_descriptors(qemu_end, passt_end)
    word, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        word.close()
        _become_broker(job, qemu_end, passt_end, theirs)
    theirs.close()
    passt_end.close()
    broker_pidfd = os.pidfd_open(pid)
    try:
        with word:
            passt_pid, passt_pidfd = _wait_for_word(word)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(broker_pidfd, signal.SIGKILL)
        os.waitid(os.P_PIDFD, broker_pidfd, os.WEXITED)
        os.close(broker_pidfd)
        qemu_end.close()
        raise
    return Network(passt_pid, passt_pidfd, pid, broker_pidfd, qemu_end.detach(), policy.resolver)


def check_kernel(release: str) -> None:
    """Refuse kernels on which the broker cannot place descriptors; pure.

    Raises:
        RefusedError: control net.egress.
    """
    parts = release.split("-")[0].split(".")
    try:
        version = (int(parts[0]), int(parts[1]))
    except (ValueError, IndexError):
        version = (0, 0)
    if version < KERNEL_MINIMUM:
        raise RefusedError(
            "net.egress",
            "the egress policy cannot be enforced on this kernel",
            got=f"Linux {release}",
            expected=f"Linux {KERNEL_MINIMUM[0]}.{KERNEL_MINIMUM[1]} or newer (SECCOMP_ADDFD_FLAG_SEND)",
            next_step='a newer kernel, or network.mode = "none"',
        )


def check_ports(egress: EgressPlan) -> None:
    """Every published port can be bound now; an early, clear answer (passt's own bind decides for good).

    Raises:
        HostError: all ports that cannot be had, with the reason.
    """
    faults = []
    for protocol, address, port in egress.published:
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                if protocol == "tcp":
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, port))
            except OSError as fault:
                faults.append(f"{address}:{port}/{protocol}: {fault.strerror}")
    if faults:
        raise _ports_error(faults)


def _ports_error(faults: list[str]) -> HostError:
    taken = any(os.strerror(errno.EADDRINUSE) in fault for fault in faults)
    step = "ss -lntup shows who has it; or publish another port" if taken else "publish another address or port"
    return HostError("published ports cannot be bound", got="; ".join(faults), next_step=step)


def make_policy(egress: EgressPlan, resolver: str | None) -> Policy:
    """The broker's policy; under ``list`` the guest gets DNS only when the resolver is listed."""
    published = tuple(Published(*item) for item in egress.published)
    policy = Policy(egress.mode, egress.allow, None, published, egress.gateway)
    if resolver is None or not egress.dns:
        return policy
    if egress.mode == "list":
        endpoint = Published("udp", resolver, 53).endpoint
        if policy.refusal("udp", endpoint, lambda _family, _address: 1):
            return policy
    return Policy(egress.mode, egress.allow, resolver, published, egress.gateway)


def _program_files(program: str, cache: Path) -> dict[str, str]:
    """Path inside the root -> file on the host, for passt and its libraries; its AVX2 build where the CPU has AVX2."""
    source = program
    if os.access(f"{program}.avx2", os.X_OK) and _has_avx2():
        source = f"{program}.avx2"
    name = os.path.basename(source)
    closure = cached_closure(source, (), cache / "emulators" / f"{name}.closure")
    return {program: source, **{item.target: item.source for item in closure}}


def _has_avx2() -> bool:
    with open("/proc/cpuinfo", "rb") as file:
        return b" avx2 " in file.read(16384)


def _refuse_descriptors(*ends: socket.socket) -> None:
    """Linux 6.16: neither side can hand the other a descriptor, so passt cannot give QEMU a socket of the host."""
    for end in ends:
        with contextlib.suppress(OSError):  # older kernels do not know it: both sides would have to be taken over
            end.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)


def _wait_for_word(word: socket.socket) -> tuple[int, int]:
    poller = select.poll()
    poller.register(word.fileno(), select.POLLIN)
    if not poller.poll(DEADLINE_S * 2000):
        raise VmError("the network did not start in time", next_step="look at the host's load")
    data, ancillary, _, _ = word.recvmsg(_WORD_MAX_BYTES, socket.CMSG_SPACE(4))
    if not data:
        raise VmError("the network's broker died while passt was started")
    message = json.loads(data)
    if "error" in message:
        raise errorwire.decode(message["error"])
    descriptors = array.array("i")
    for level, kind, raw in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(raw[:4])
    pidfd = descriptors[0]
    os.set_inheritable(pidfd, False)
    return int(message["pid"]), pidfd


# ---- the broker's process, until its exec ---------------------------------------------------------------------------


def _become_broker(job: _Job, qemu_end: socket.socket, passt_end: socket.socket, word: socket.socket) -> Never:
    try:
        parent = os.getppid()
        process.prctl(process.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        os.setsid()
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


def _start_and_serve(job: _Job, qemu_end: socket.socket, passt_end: socket.socket, word: socket.socket) -> None:
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
        shutil.rmtree(staging, ignore_errors=True)
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
        _exec(job, spawned, routes, errors_read)
    except BaseException:
        kill_and_reap(spawned)
        raise


def _text_file(text: str) -> int:
    descriptor = os.memfd_create("casemate-passt", os.MFD_CLOEXEC)
    os.write(descriptor, text.encode())
    return descriptor


class _Starting:
    """passt between exec and its first answer to a frame: everything that can arrive meanwhile, in one loop."""

    def __init__(self, job: _Job, broker: Broker, spawned: Spawned, qemu_end: socket.socket, errors: int) -> None:
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
                    self._read_frame()
        self._link.setblocking(True)
        if self._broker.bind_failures:
            raise _ports_error(self._broker.bind_failures)

    def _read_messages(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._messages += os.read(self._errors, 4096)
            del self._messages[:-ERRORS_MAX_BYTES]

    def _read_frame(self) -> None:
        """One frame at a time, so that nothing of a later one is taken from QEMU."""
        with contextlib.suppress(BlockingIOError):
            length = int.from_bytes(self._frames[:4], "big") if len(self._frames) >= 4 else 0
            data = self._link.recv(4 + length - len(self._frames))
            self._frames += data
        if len(self._frames) < 4:
            return
        length = int.from_bytes(self._frames[:4], "big")
        if length > 65536:
            raise VmError("passt sent a frame that is too long", got=f"{length} bytes")
        if len(self._frames) == 4 + length:
            self._answered = self._frames[16:18] == b"\x08\x06"
            self._frames.clear()

    def _died(self) -> Never:
        self._read_messages()
        if self._broker.bind_failures:
            raise _ports_error(self._broker.bind_failures)
        status = os.waitid(os.P_PIDFD, self._spawned.pidfd, os.WEXITED | os.WNOWAIT)
        how = "it ended"
        if status is not None:
            killed = status.si_code != os.CLD_EXITED
            how = signal.Signals(status.si_status).name if killed else f"exit status {status.si_status}"
        text = self._text()
        raise HostError(
            "passt did not start",
            got=f"{how}; {text}" if text else how,
            next_step="SIGSYS: a system call outside of its allowlist; report it with passt --version"
            if how == "SIGSYS"
            else "casemate doctor",
        )

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


def _exec(job: _Job, spawned: Spawned, routes: RouteTable, errors: int) -> Never:
    rooted = job.identity.mode is IdentityMode.ROOT
    keep = [spawned.listener, spawned.pidfd, routes.socket.fileno(), errors]
    if job.log_fd >= 0:
        keep.append(job.log_fd)
    profile = broker_profile(spawned.pid, spawned.pidfd, spawned.listener)
    config = {
        "listener": spawned.listener,
        "pidfd": spawned.pidfd,
        "pid": spawned.pid,
        "netlink": routes.socket.fileno(),
        "errors": errors,
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
    os.execve(interpreter, [interpreter, "-I", "-S", "-B", "-c", code, job.plan.vm_id], {"LC_ALL": "C.UTF-8"})
