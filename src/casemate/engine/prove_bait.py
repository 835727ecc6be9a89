"""What a proof lays out on the host for its probe to reach for, and how much a proof may take from the host.

The bait is the proof's own: listeners on loopback, a socket file, a file, a sleeping process. Whether something
arrived at a listener is seen here, outside of the wall, whatever the probe says.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import socket
from dataclasses import dataclass, field
from typing import Final, Never

import msgspec

from casemate.engine.paths import Paths
from casemate.jail.policy import CgroupPlan, Device
from casemate.jail.probe.model import Bait
from casemate.plan.model import LaunchPlan

_MIB: Final = 1 << 20
MEMORY_CEILING_MIB: Final = 1024
MEMORY_LOWERED_MIB: Final = 512
MEMORY_BEYOND_MIB: Final = 256
VMS_MAX: Final = 4
PIDS_CEILING: Final = 512
_BEYOND: Final = 32
LOG_BYTES: Final = 64 * _MIB
LOG_QUICK_BYTES: Final = 4 * _MIB


@dataclass
class HostBait:
    """The bait while it lies out. Use as a context manager; leaving it removes everything."""

    directory: str
    abstract: str = ""
    tcp_port: int = 0
    udp_port: int = 0
    victim: int = 0
    _sockets: dict[str, socket.socket] = field(default_factory=dict)
    _leash: int = -1

    @property
    def secret_path(self) -> str:
        """A file with nothing in it worth having."""
        return f"{self.directory}/bait"

    @property
    def socket_path(self) -> str:
        """A listening socket file."""
        return f"{self.directory}/bait.sock"

    def __enter__(self) -> HostBait:
        try:
            self._listen()
            with open(self.secret_path, "x", encoding="ascii") as file:
                file.write("bait of casemate prove\n")
            os.chmod(self.secret_path, 0o644)
            self._start_victim()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for item in self._sockets.values():
            item.close()
        self._sockets.clear()
        if self.victim:
            os.close(self._leash)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.victim, signal.SIGKILL)  # our own child, not reaped yet
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.victim, 0)
            self.victim = 0
        for path in (self.secret_path, self.socket_path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def touched(self) -> tuple[str, ...]:
        """Names of the listeners that something reached."""
        reached = []
        for name, item in self._sockets.items():
            poller = select.poll()
            poller.register(item, select.POLLIN)
            if poller.poll(0):
                reached.append(name)
        return tuple(reached)

    def _listen(self) -> None:
        tcp = self._sockets["tcp-loopback"] = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        tcp.bind(("127.0.0.1", 0))
        tcp.listen(8)
        self.tcp_port = tcp.getsockname()[1]
        with contextlib.suppress(OSError):  # a host without IPv6
            tcp6 = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
            try:
                tcp6.bind(("::1", self.tcp_port))
                tcp6.listen(8)
            except OSError:
                tcp6.close()
                raise
            self._sockets["tcp6-loopback"] = tcp6
        udp = self._sockets["udp-loopback"] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        self.udp_port = udp.getsockname()[1]
        abstract = self._sockets["abstract"] = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.abstract = f"casemate-prove-{secrets.token_hex(8)}"
        abstract.bind(f"\0{self.abstract}")
        abstract.listen(8)
        named = self._sockets["unix-bait"] = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        directory = os.open(self.directory, os.O_PATH | os.O_CLOEXEC)
        try:  # a socket's path has at most 107 bytes
            named.bind(f"/proc/self/fd/{directory}/bait.sock")
        finally:
            os.close(directory)
        named.listen(8)

    def _start_victim(self) -> None:
        read_end, self._leash = os.pipe2(os.O_CLOEXEC)
        self.victim = os.fork()
        if self.victim == 0:
            os.close(self._leash)
            _sleep(read_end)
        os.close(read_end)


def _sleep(leash: int) -> Never:
    """Wait until the parent lets go or dies."""
    try:
        os.read(leash, 1)
    finally:
        os._exit(0)


def bait_of(host: HostBait, plan: LaunchPlan, paths: Paths, *, scratch: bool, quick: bool) -> tuple[Bait, list[str]]:
    """The bait as the probe needs it, and notes for the report."""
    wall = plan.wall
    limits = {limit.name: limit.value for limit in wall.rlimits}
    why_not: dict[str, str] = {}
    notes: list[str] = []
    memory = _memory_limit_mib(wall.cgroup) + MEMORY_BEYOND_MIB if wall.cgroup.directories else 0
    if quick:
        why_not["memory"] = "left out by --quick"
    elif not memory:
        why_not["memory"] = f"no memory limit to try: {wall.cgroup.why_none or 'no cgroup'}"
    elif memory > available_mib() // 2:
        why_not["memory"] = f"the host has only {available_mib()} MiB to spare"
    pids = limits.get("nproc", 0)
    if pids > PIDS_CEILING:
        for name in ("fork-bomb", "thread-bomb"):
            why_not[name] = f"a limit of {pids} is not tried on a live host"
    if not scratch:
        why_not["file-size"] = "no file to write to"
    elif "fsize" not in limits:
        why_not["file-size"] = "no limit planned"
    bait = Bait(
        pid=host.victim,
        tcp_port=host.tcp_port,
        udp_port=host.udp_port,
        abstract=host.abstract,
        socket_path=host.socket_path,
        secret_path=host.secret_path,
        paths=_casemate_paths(plan, paths),
        sockets=tuple((f"control-{vm_id}", f"{paths.vm_runtime(vm_id)}/control.sock") for vm_id in _others(paths)),
        program=wall.argv[0],
        has_kvm=any(isinstance(entry, Device) and entry.name == "kvm" for entry in wall.root),
        scratch=scratch,
        memory_try_mib=memory,
        pids_try=pids + _BEYOND,
        nofile_try=limits.get("nofile", 0) + _BEYOND,
        fsize_bytes=limits.get("fsize", 0),
        log_bytes=LOG_QUICK_BYTES if quick else LOG_BYTES,
        why_not=tuple(why_not.items()),
    )
    return bait, notes


def _casemate_paths(plan: LaunchPlan, paths: Paths) -> tuple[tuple[str, str], ...]:
    """What a VM must not see of Casemate, by label."""
    found = [
        ("runtime", paths.runtime),
        ("vms", f"{paths.runtime}/vms"),
        ("data", paths.data),
        ("definitions", f"{paths.data}/vms"),
        ("key", f"{paths.data}/key"),
        ("cache", paths.cache),
    ]
    boot = plan.spec.boot
    found += [(f"host-{role}", path) for role, path in (("kernel", boot.kernel), ("initrd", boot.initrd)) if path]
    found += [(f"image-{index}", disk.path) for index, disk in enumerate(plan.spec.disks)]
    for vm_id in _others(paths):
        found.append((f"state-of-{vm_id}", f"{paths.vm_runtime(vm_id)}/state.json"))
        found.append((f"console-of-{vm_id}", f"{paths.vm_data(vm_id)}/console.log"))
    return tuple(found)


def _others(paths: Paths) -> list[str]:
    """Ids of some VMs of this user, running or not."""
    try:
        return sorted(os.listdir(f"{paths.data}/vms"))[:VMS_MAX]
    except OSError:
        return []


def bounded(plan: LaunchPlan) -> tuple[LaunchPlan, tuple[str, ...]]:
    """The plan with a memory limit that can be reached without endangering the host; notes say what was lowered."""
    cgroup = plan.wall.cgroup
    if not cgroup.directories:
        return plan, ()
    limit = _memory_limit_mib(cgroup)
    floor = plan.wall.root_size_bytes // _MIB + 1
    lowered = floor + MEMORY_LOWERED_MIB
    if limit <= min(MEMORY_CEILING_MIB, available_mib() // 4) or lowered >= limit:
        return plan, ()
    text = str(lowered * _MIB)
    names = ("memory.max", "memory.limit_in_bytes")
    writes = tuple((path, text if path.endswith(names) else value) for path, value in cgroup.writes)
    shown = tuple(f"memory.max={text}" if item.startswith("memory.max=") else item for item in cgroup.limits)
    wall = msgspec.structs.replace(plan.wall, cgroup=msgspec.structs.replace(cgroup, writes=writes, limits=shown))
    note = f"the proof's own cgroup has a memory limit of {lowered} MiB in the place of {limit}: the host stays safe"
    return msgspec.structs.replace(plan, wall=wall), (note,)


def _memory_limit_mib(cgroup: CgroupPlan) -> int:
    for item in cgroup.limits:
        name, _, value = item.partition("=")
        if name == "memory.max":
            return int(value) // _MIB
    return 0


def available_mib() -> int:
    """MemAvailable of /proc/meminfo in MiB."""
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file.read(8192).splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) // 1024
    return 0


def cgroup_counters(cgroup: CgroupPlan) -> tuple[int, int]:
    """(processes killed for memory, processes refused) so far, summed over the directories, both versions."""
    kills = refused = 0
    for directory in cgroup.directories:
        kills += max(_counter(f"{directory}/{name}", "oom_kill") for name in ("memory.events", "memory.oom_control"))
        refused += _counter(f"{directory}/pids.events", "max")
    return kills, refused


def _counter(path: str, name: str) -> int:
    try:
        with open(path, encoding="ascii") as file:
            lines = file.read(4096).splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [name]), 0)
