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
import contextlib
import json
import os
import select
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

from casemate.engine import errorwire
from casemate.engine.egress_policy import Policy, Published
from casemate.engine.egress_start import DEADLINE_S, Job, become_broker
from casemate.engine.helpers import Member
from casemate.engine.paths import default_paths
from casemate.engine.ports import check_ports
from casemate.engine.resolver import host_resolver
from casemate.errors import HostError, RefusedError, VmError
from casemate.facts.closure import cached_closure
from casemate.jail.compile import cached_program
from casemate.jail.egress import with_broker
from casemate.jail.profiles import passt_profile
from casemate.plan.model import EgressPlan, LaunchPlan

KERNEL_MINIMUM = (5, 14)
_SO_PASSRIGHTS = 83
_WORD_MAX_BYTES = 65536


@dataclass
class Network:
    """The running network of a VM. The caller owns the descriptors; `stop` ends and closes everything.

    Attributes:
        pid, pidfd: passt. It is the broker's child, not ours.
        broker_pid, broker_pidfd: our child; it ends when passt ends.
        qemu_socket_fd: QEMU's end of the link, for its ``-netdev stream``.
        resolver: the resolver that the guest may use, or None.
        word_fd: the broker's word that it has confined itself arrives here.
    """

    pid: int
    pidfd: int
    broker_pid: int
    broker_pidfd: int
    qemu_socket_fd: int
    resolver: str | None
    word_fd: int

    def confirm(self) -> Policy:
        """Wait for the broker's own wall, then look at both live processes. To be called once, before the guest runs.

        The broker confines itself while QEMU starts; that is why this is not part of `start_network`.

        Returns:
            the policy that the confined broker says it enforces.

        Raises:
            RefusedError: passt or the broker is not confined as planned (control net.egress).
        """
        poller = select.poll()
        poller.register(self.word_fd, select.POLLIN)
        said = os.read(self.word_fd, _WORD_MAX_BYTES) if poller.poll(DEADLINE_S * 1000) else b""
        faults = [] if said else ["the broker did not confine itself"]
        faults += observe_walls(self.pid, self.broker_pid)
        if faults:
            raise RefusedError(
                "net.egress",
                "the network's helpers are not confined as planned",
                got="; ".join(faults),
                next_step="casemate doctor; the emulator's log has their last words",
            )
        return Policy.from_data(json.loads(said)["policy"])

    def members(self) -> tuple[Member, ...]:
        """passt and the broker."""
        return (
            Member("passt", "passt", self.pid, self.pidfd),
            Member("broker", "the network's broker", self.broker_pid, self.broker_pidfd),
        )

    def unlink(self) -> None:
        """Close our copy of QEMU's end once QEMU has its own: passt ends when the last copy is closed."""
        self._close("qemu_socket_fd")

    def _close(self, name: str) -> None:
        descriptor = getattr(self, name)
        if descriptor >= 0:
            os.close(descriptor)
            setattr(self, name, -1)

    def stop(self) -> None:
        """Kill both, reap the broker, close the descriptors. Safe to call when they are dead already."""
        if self.pidfd < 0:
            return
        _kill(self.pidfd)
        _ended(self.pidfd, DEADLINE_S)
        if not _ended(self.broker_pidfd, 1.0):  # it reaps passt and ends; unless it is stuck
            _kill(self.broker_pidfd)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self.broker_pidfd, os.WEXITED)
        for name in ("pidfd", "broker_pidfd", "qemu_socket_fd", "word_fd"):
            self._close(name)


def _kill(pidfd: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def _ended(pidfd: int, wait_s: float) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(wait_s * 1000))


def observe_walls(passt: int, broker: int) -> list[str]:
    """What is wrong with the two live processes; empty when nothing is. Unreadable counts as wrong."""
    faults = []
    for name, pid, filters in (("passt", passt, 2), ("the broker", broker, 1)):
        try:
            status = _status(pid)
            own_network = os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat("/proc/self/ns/net").st_ino
        except (OSError, ValueError) as fault:
            faults.append(f"{name} cannot be looked at: {fault}")
            continue
        if status.get("Seccomp") != "2" or int(status.get("Seccomp_filters", filters)) < filters:
            faults.append(f"{name} has no seccomp filter, or not all of them")
        if status.get("NoNewPrivs") != "1":
            faults.append(f"{name} has no no_new_privs")
        if int(status.get("CapEff", "1"), 16) or int(status.get("CapPrm", "1"), 16):
            faults.append(f"{name} has capabilities")
        if name == "passt" and own_network:
            faults.append("passt is in the host's network namespace")
    return faults


def _status(pid: int) -> dict[str, str]:
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        lines = file.read(16384).splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


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
    if egress.gateway6:
        check_ipv6()
    check_ports(egress.published)
    machine, cache = os.uname().machine, Path(cache_dir or default_paths().cache)
    policy = make_policy(egress, host_resolver(ipv6=bool(egress.gateway6)) if egress.dns else None)
    job = Job(
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
        become_broker(job, qemu_end, passt_end, theirs)
    theirs.close()
    passt_end.close()
    broker_pidfd = os.pidfd_open(pid)
    try:
        passt_pid, passt_pidfd = _wait_for_word(word)
    except BaseException:
        word.close()
        _kill(broker_pidfd)
        os.waitid(os.P_PIDFD, broker_pidfd, os.WEXITED)
        os.close(broker_pidfd)
        qemu_end.close()
        raise
    return Network(passt_pid, passt_pidfd, pid, broker_pidfd, qemu_end.detach(), policy.resolver, word.detach())


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


def check_ipv6(table: str = "/proc/net/if_inet6") -> None:
    """The kernel speaks IPv6.

    Raises:
        HostError: it does not.
    """
    if not os.path.exists(table):
        raise HostError(
            "the specification asks for IPv6, and this kernel has none",
            got=f"no {table}",
            next_step="boot the host without ipv6.disable=1; or network.ipv6 = false",
        )


def make_policy(egress: EgressPlan, resolver: str | None) -> Policy:
    """The broker's policy; under ``list`` the guest gets DNS only when the resolver is listed."""
    published = tuple(Published(*item) for item in egress.published)
    gateways = (egress.gateway, egress.gateway6)
    policy = Policy(egress.mode, egress.allow, None, published, *gateways)
    if resolver is None or not egress.dns:
        return policy
    if egress.mode == "list":
        endpoint = Published("udp", resolver, 53).endpoint
        if policy.refusal("udp", endpoint, lambda _family, _address: 1):
            return policy
    return Policy(egress.mode, egress.allow, resolver, published, *gateways)


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
