"""What is really in force around a live emulator, whoever started it, under the fact names that the launch uses.

1. A descriptor of the process (pidfd) is taken and its start time compared with the one that was meant.
2. /proc is read, then every thread's filters, then what the process's root directory holds.
3. The pidfd says at the end that it still is the same process: what was read belongs together, or is thrown away.

Nothing here judges, and nothing asks the process itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from casemate.facts.fact import Facts, Known, Unknown
from casemate.facts.mountinfo import Mount, parse_mountinfo
from casemate.facts.process import (
    ProcessFacts,
    RootListing,
    captured_namespaces,
    own_namespaces,
    read_process,
    walk_root,
)
from casemate.facts.process_find import MAX_PROCESSES
from casemate.facts.procfs import parse_maps
from casemate.facts.root import Root
from casemate.facts.vmm_process_identity import identity_facts, label_fact, namespace_facts
from casemate.facts.vmm_process_limits import cgroup_facts, limit_facts, planned_rlimits
from casemate.facts.vmm_process_reach import Expected, descriptor_facts, mount_facts, root_facts
from casemate.facts.vmm_process_seccomp import LiveFilters, read_filters, seccomp_facts

_MAPS_BYTES: Final = 16 << 20
_OUTSIDE: Final = "the kernel shows this to the process alone"


class HostView(msgspec.Struct, frozen=True):
    """What processes are compared with. ``namespaces``: the host's, by kind, and whose they are. ``root``: device and
    inode of its root directory. ``kvm_group``: group of /dev/kvm. ``mounts``: ours, to find the control groups.
    ``sessions``: how many processes each session has, by its leader's pid."""

    namespaces: dict[str, int]
    whose: str
    root: tuple[int, int] | None
    kvm_group: int | None
    mounts: tuple[Mount, ...]
    machine: str
    sessions: dict[int, int]


class VmmProcess(msgspec.Struct, frozen=True):
    """One process, read whole. ``listing`` is None when its root is the host's, or could not be read (``root_why``).
    ``mapped``: files that it has mapped. ``owner``: uid of its files in /proc. ``own_session``: whether it is alone in
    its session."""

    process: ProcessFacts
    filters: LiveFilters
    is_host_tree: bool
    listing: RootListing | None
    root_why: str
    mapped: frozenset[str]
    owner: int | None
    own_session: bool | None


def host_view(root: Root) -> HostView:
    """The host as the audit's own process sees it; process 1 stands for the host where we may look at it."""
    namespaces: dict[str, int] = {}
    whose = "the host's"
    if root.is_live:
        namespaces, whose = _host_namespaces()
    else:
        for pid, owner in (("1", "process 1's"), ("self", "the capturing process's")):
            with contextlib.suppress(OSError, ValueError):
                namespaces, whose = captured_namespaces(root, pid), owner
                break
    top: tuple[int, int] | None = None
    kvm_group: int | None = None
    mounts: tuple[Mount, ...] = ()
    with contextlib.suppress(OSError):
        status = root.stat("/")
        top = (status.st_dev, status.st_ino)
    with contextlib.suppress(OSError):
        kvm_group = root.stat("/dev/kvm").st_gid
    with contextlib.suppress(OSError, ValueError):
        mounts = parse_mountinfo(root.read_text("/proc/self/mountinfo", 8 << 20))
    return HostView(namespaces, whose, top, kvm_group, mounts, os.uname().machine, _sessions(root))


def _host_namespaces() -> tuple[dict[str, int], str]:
    ours = own_namespaces()
    found = {}
    for kind in ours:
        try:
            text = os.readlink(f"/proc/1/ns/{kind}")  # noqa: PTH115  text, not a Path
            found[kind] = int(text.partition("[")[2].rstrip("]"))
        except (OSError, ValueError):
            return ours, "the auditing process's"
    return found, "process 1's"


def read_vmm(pid: int, start_time: int, root: Root, host: HostView) -> VmmProcess:
    """Read one process whole.

    Args:
        start_time: of the process that is meant, in clock ticks after boot.

    Raises:
        ProcessLookupError: it is gone, is another one by now, or ended meanwhile.
        OSError, ValueError: even what is open to everybody cannot be read or understood.
    """
    with _held(pid, root) as pidfd:
        process = read_process(pid, pidfd=pidfd, root=root, with_root=False)
        if process.start_time != start_time:
            raise ProcessLookupError(errno.ESRCH, "another process has this number by now", str(pid))
        if process.threads_complete and all(thread.seccomp == 0 for thread in process.threads):
            filters = LiveFilters(stacks=((),))  # status says so to everybody: there are none to read
        elif root.is_live:
            filters = read_filters(thread.tid for thread in process.threads)
        else:
            filters = LiveFilters(why="a captured tree has no live filters")
        is_host_tree, listing, why = _root_of(pid, root, host)
        found = VmmProcess(
            process=process,
            filters=filters,
            is_host_tree=is_host_tree,
            listing=listing,
            root_why=why,
            mapped=_mapped(pid, root),
            owner=_owner(pid, root),
            own_session=_session(pid, root, host),
        )
        if pidfd is not None and select.select([pidfd], [], [], 0)[0]:
            raise ProcessLookupError(errno.ESRCH, "the process ended while it was read", str(pid))
        return found


@contextlib.contextmanager
def _held(pid: int, root: Root) -> Iterator[int | None]:
    """A pidfd of the process; None in a captured tree, where nothing can change."""
    if not root.is_live:
        yield None
        return
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _root_of(pid: int, root: Root, host: HostView) -> tuple[bool, RootListing | None, str]:
    """(whether its root is the host's, else the listing, else why there is none)."""
    if not root.is_live:
        why = "a captured tree does not hold its root directory"
        try:
            noted = root.noted_stat(f"/proc/{pid}/root")
            if noted is not None:
                return host.root == (noted.st_dev, noted.st_ino), None, why
            return root.readlink(f"/proc/{pid}/root") == "/", None, why
        except OSError as error:
            return False, None, f"its root cannot be seen: {(error.strerror or str(error)).lower()}"
    try:
        status = root.stat(f"/proc/{pid}/root")
        if host.root is not None and (status.st_dev, status.st_ino) == host.root:
            return True, None, ""
        descriptor = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return False, walk_root(descriptor), ""
        finally:
            os.close(descriptor)
    except ProcessLookupError:
        raise
    except OSError as error:
        return False, None, f"its root cannot be seen: {(error.strerror or str(error)).lower()}"


def _mapped(pid: int, root: Root) -> frozenset[str]:
    try:
        ranges = parse_maps(root.read_text(f"/proc/{pid}/maps", _MAPS_BYTES))
    except (OSError, ValueError):
        return frozenset()
    return frozenset(item.name for item in ranges if item.name.startswith("/"))


def _owner(pid: int, root: Root) -> int | None:
    try:
        return root.stat(f"/proc/{pid}/status").st_uid
    except OSError:
        return None


def _sessions(root: Root) -> dict[int, int]:
    """Number of processes of each session, by its leader's pid."""
    found: dict[int, int] = {}
    with contextlib.suppress(OSError):
        for name in root.list_dir("/proc", MAX_PROCESSES):
            if name.isascii() and name.isdigit():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    session, _ = _session_and_terminal(int(name), root)
                    found[session] = found.get(session, 0) + 1
    return found


def _session_and_terminal(pid: int, root: Root) -> tuple[int, int]:
    words = root.read_text(f"/proc/{pid}/stat", 4096).rpartition(")")[2].split()
    return int(words[3]), int(words[4])


def _session(pid: int, root: Root, host: HostView) -> bool | None:
    """Whether it leads its session, or is alone in one without a terminal, as whoever makes daemons leaves them."""
    try:
        session, terminal = _session_and_terminal(pid, root)
    except (OSError, ValueError, IndexError):
        return None
    return session == pid or (terminal == 0 and session != 0 and host.sessions.get(session, 0) <= 1)


def vmm_facts(
    found: VmmProcess,
    host: HostView,
    root: Root,
    *,
    plan: Expected | None = None,
    named: Mapping[tuple[int, int], str] | None = None,
    foreign: Mapping[tuple[int, int], str] | None = None,
    by_path: frozenset[str] = frozenset(),
) -> Facts:
    """All facts of one process that need no other process.

    Args:
        plan: what was planned for a VM of ours.
        named: files that its description names, by (device, inode).
        foreign: images of other VMs, by (device, inode).
        by_path: paths of ``named``, for a captured tree, which does not hold those files.
    """
    process = found.process
    base = f"/proc/{process.pid}"
    words = [word for argument in process.command for word in argument.replace("=", ",").split(",")]
    facts = identity_facts(base, process, host.kvm_group)
    facts |= namespace_facts(base, process, host.namespaces, host.whose)
    facts |= label_fact(base, process)
    facts |= limit_facts(base, process)
    facts |= cgroup_facts(base, process, host.mounts, root)
    facts |= root_facts(
        base, found.listing, found.root_why, is_host_tree=found.is_host_tree, mapped={*found.mapped, *words}, plan=plan
    )
    facts |= mount_facts(base, process, plan)
    facts |= descriptor_facts(base, process, plan=plan, named=named or {}, foreign=foreign or {}, by_path=by_path)
    facts |= seccomp_facts(base, found.filters, host.machine)
    facts |= _rest(base, found)
    if plan is not None:
        facts |= planned_rlimits(base, process, plan.rlimits)
    return facts


def _rest(base: str, found: VmmProcess) -> Facts:
    process = found.process
    facts: Facts = {
        name: Unknown(_OUTSIDE) for name in ("proc.landlock", "proc.parent-death-signal", "proc.securebits")
    }
    uid = process.threads[0].uids[1] if process.threads else None
    if found.owner is None or uid is None:
        facts["proc.dumpable"] = Unknown("the owner of its files cannot be read")
    elif uid == 0:
        # Files of a process that may not be dumped belong to root (proc_pid(5)): of root's own, both look alike.
        facts["proc.dumpable"] = Unknown("root's processes look the same either way")
    else:
        facts["proc.dumpable"] = Known(found.owner == uid, f"{base}/status: owner")
    if found.own_session is None:
        facts["proc.session"] = Unknown("its session cannot be read")
    else:
        facts["proc.session"] = Known(found.own_session, f"{base}/stat: session, terminal")
    return facts
