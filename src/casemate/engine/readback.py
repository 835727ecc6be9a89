"""Read the paused emulator back: what is really in force, under the same fact names as the plan declares.

Nothing here decides. /proc and ptrace say what the kernel holds, QMP says what the emulator built; what cannot be read
from outside (Landlock, the parent-death signal) is what the child itself reported after the call returned 0, and its
source says so.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from typing import Final

import msgspec

from casemate.bpf.analyse import VerdictKind, survey, survey_other_arches
from casemate.bpf.instruction import decode
from casemate.engine.labels import observe_unique
from casemate.errors import VmError
from casemate.facts.fact import Fact, Facts, Known, Stage, Unknown, Value
from casemate.facts.process import ProcessFacts, own_namespaces, read_process
from casemate.jail.policy import BindFile, Device, Identity, IdentityMode, RootEntry, Wall
from casemate.jail.spawn import Spawned
from casemate.plan.model import LaunchPlan
from casemate.sys.caps import SECUREBITS_LOCKED
from casemate.sys.process import CLONE_NEWUSER, setns
from casemate.sys.ptrace import live_filters

DANGEROUS: Final = frozenset(
    """execve execveat ptrace process_vm_readv process_vm_writev bpf perf_event_open userfaultfd io_uring_setup
    io_uring_enter io_uring_register mount umount2 move_mount open_tree fsopen fsmount fsconfig mount_setattr pivot_root
    chroot unshare setns clone3 fork vfork init_module finit_module delete_module kexec_load kexec_file_load reboot
    swapon swapoff add_key request_key keyctl open_by_handle_at name_to_handle_at pidfd_getfd pidfd_open acct quotactl
    setuid setgid setreuid setregid setresuid setresgid setgroups capset personality iopl ioperm modify_ldt kcmp
    lookup_dcookie settimeofday clock_settime adjtimex sethostname setdomainname syslog fanotify_init memfd_secret
    landlock_create_ruleset seccomp socket socketpair connect bind listen""".split()  # noqa: SIM905
)
"""Calls that no emulator needs once the guest runs. ``seccomp`` and sockets are here because nothing starts late."""

_ANSWER_MAX_BYTES: Final = 8 << 20
_NO_FILES: Final = ("anon_inode:", "socket:", "pipe:", "/memfd:")


def observe_process(plan: LaunchPlan, spawned: Spawned, roles: dict[str, int]) -> Facts:
    """Facts about the process: /proc of every thread, and its live seccomp filters.

    Args:
        plan: what was planned; used to tell expected files, mounts and descriptors from others.
        spawned: the emulator.
        roles: role -> our descriptor of the same file, to recognise the emulator's.

    Raises:
        ProcessLookupError: it died.
    """
    wall = plan.wall
    process = _read(spawned, wall.identity.mode)
    facts = _Facts(f"/proc/{spawned.pid}")
    _identity(facts, process, wall.identity)
    _namespaces(facts, process)
    _root(facts, process, wall)
    _descriptors(facts, process, wall, roles)
    _limits(facts, process, wall)
    _seccomp(facts, process, plan)
    _own_report(facts, spawned)
    _label(facts, process, plan, roles)
    return facts.found


def _read(spawned: Spawned, mode: IdentityMode) -> ProcessFacts:
    """Everything that /proc shows.

    An ordinary user may trace a process under his subordinate uid, but not open its /proc/PID/fd, which belongs to
    that uid: a child joins the emulator's user namespace, in which it may, and sends what it read.
    """
    if mode is not IdentityMode.SUBID:
        return read_process(spawned.pid, pidfd=spawned.pidfd)
    ours = own_namespaces()
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            os.close(read_end)
            setns(spawned.pidfd, CLONE_NEWUSER)
            with os.fdopen(write_end, "wb") as out:
                out.write(msgspec.msgpack.encode(read_process(spawned.pid, pidfd=spawned.pidfd)))
            os._exit(0)
        except BaseException:
            os._exit(1)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        data = pipe.read(_ANSWER_MAX_BYTES)
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise VmError("the emulator could not be read back from inside its user namespace")
    facts = msgspec.msgpack.decode(data, type=ProcessFacts)
    return msgspec.structs.replace(facts, own_namespaces=ours)


class _Facts:
    def __init__(self, base: str) -> None:
        self.base = base
        self.found: Facts = {}

    def know(self, name: str, value: Value, source: str) -> None:
        self.found[name] = Known(value, f"{self.base}/{source}", Stage.OBSERVED)

    def tell(self, name: str, fact: Fact) -> None:
        self.found[name] = fact

    def miss(self, name: str, why: str) -> None:
        self.found[name] = Unknown(why)


def _same(facts: _Facts, name: str, values: Iterable[int], source: str) -> None:
    """One value for all threads, or unknown: threads that differ are never averaged."""
    distinct = set(values)
    if len(distinct) == 1:
        facts.know(name, distinct.pop(), source)
    else:
        facts.miss(name, f"the threads differ: {sorted(distinct)}")


def _identity(facts: _Facts, process: ProcessFacts, identity: Identity) -> None:
    threads = process.threads
    if not threads or not process.threads_complete:
        facts.miss("proc.uid", "not every thread could be read")
        return
    _same(facts, "proc.uid", (uid for t in threads for uid in t.uids), "task/*/status: Uid")
    _same(facts, "proc.gid", (gid for t in threads for gid in t.gids), "task/*/status: Gid")
    groups = {str(group) for t in threads for group in t.groups}
    kvm = {str(identity.kvm_group)}
    facts.know("proc.groups", tuple(sorted(groups - kvm)), "task/*/status: Groups")
    facts.know("proc.kvm-group", tuple(sorted(groups & kvm)), "task/*/status: Groups")
    held = 0
    for t in threads:
        held |= t.cap_inheritable | t.cap_permitted | t.cap_effective | t.cap_bounding | t.cap_ambient
    names = tuple(f"cap-{bit}" for bit in range(64) if held >> bit & 1)
    facts.know("proc.caps", names, "task/*/status: CapInh CapPrm CapEff CapBnd CapAmb")
    facts.know("proc.no-new-privs", all(t.no_new_privs for t in threads), "task/*/status: NoNewPrivs")
    facts.know("proc.seccomp-mode", min(t.seccomp for t in threads), "task/*/status: Seccomp")
    counts = [t.seccomp_filters for t in threads]
    if None in counts:
        facts.miss("proc.seccomp-filters", "this kernel does not show Seccomp_filters")
    else:
        facts.know("proc.seccomp-filters", min(c for c in counts if c is not None), "task/*/status: Seccomp_filters")
    cookies = {t.core_cookie for t in threads}
    if None in cookies:
        facts.miss("proc.core-cookie", "the kernel has no core scheduling, or did not tell")
    else:
        facts.know("proc.core-cookie", 0 not in cookies, "prctl PR_SCHED_CORE_GET")
    # Files below /proc/PID of a process that may not be dumped belong to root, not to its uid (proc_pid(5)).
    owner = os.stat(f"/proc/{process.pid}/status").st_uid
    facts.know("proc.dumpable", owner == threads[0].uids[1], "status: owner")
    digest = hashlib.sha256("\0".join(process.command).encode()).hexdigest()
    facts.know("proc.argv", digest, "cmdline")
    if process.executable is not None:
        facts.know("proc.exe", process.executable, "exe")
    else:
        facts.miss("proc.exe", process.unknown.get("executable", "not readable"))


def _namespaces(facts: _Facts, process: ProcessFacts) -> None:
    kinds = [kind for kind in process.own_namespaces if kind != "time"]
    unreadable = [kind for kind in kinds if kind not in process.namespaces]
    if unreadable:
        facts.miss("proc.namespaces", f"cannot read {', '.join(unreadable)}")
        return
    new = [kind for kind in kinds if process.namespaces[kind] != process.own_namespaces[kind]]
    facts.know("proc.namespaces", tuple(sorted(new)), "ns/*, compared with the supervisor's")


def _root(facts: _Facts, process: ProcessFacts, wall: Wall) -> None:
    if process.root is None or not process.root.complete or process.root.unread:
        facts.miss("proc.root-unexpected", process.unknown.get("root", "the root could not be listed whole"))
    else:
        planned = {_target(entry) for entry in wall.root}
        folders = {str(parent) for target in planned for parent in _parents(target)}
        extra = [e.path for e in process.root.entries if e.path not in planned and e.path not in folders]
        missing = planned - {e.path for e in process.root.entries}
        strange = tuple(sorted(extra)) + tuple(f"missing: {path}" for path in sorted(missing))
        facts.know("proc.root-unexpected", strange, "root, listed whole")
    if not process.mounts:  # a plain chroot shows none at all: that is no pass
        facts.miss("proc.mounts-writable", process.unknown.get("mounts", "not readable"))
        return
    devices = {f"/dev/{entry.name}" for entry in wall.root if isinstance(entry, Device)}
    writable = [
        m.point
        for m in process.mounts
        if "ro" not in m.options and not (wall.identity.mode is not IdentityMode.ROOT and m.point in devices)
    ]
    facts.know("proc.mounts-writable", tuple(sorted(writable)), "mountinfo")


def _target(entry: RootEntry) -> str:
    return f"/dev/{entry.name}" if isinstance(entry, Device) else entry.target


def _parents(path: str) -> list[str]:
    found = []
    while (path := os.path.dirname(path)) != "/":
        found.append(path)
    return found


def _descriptors(facts: _Facts, process: ProcessFacts, wall: Wall, roles: dict[str, int]) -> None:
    if process.descriptors is None:
        facts.miss("proc.fds-unexpected", process.unknown.get("descriptors", "not readable"))
        facts.miss("vhost.descriptors", process.unknown.get("descriptors", "not readable"))
        return
    ours = set()
    for descriptor in roles.values():
        status = os.fstat(descriptor)
        ours.add((status.st_dev, status.st_ino))
    devices = {f"/dev/{entry.name}" for entry in wall.root if isinstance(entry, Device)}
    module_files = {entry.target for entry in wall.root if isinstance(entry, BindFile)}
    strange = []
    for item in process.descriptors:
        if item.target.startswith(_NO_FILES) or item.target in devices or item.target in module_files:
            continue
        if item.identity is not None and (item.identity.dev, item.identity.inode) in ours:
            continue
        strange.append(f"{item.number}: {item.target}")
    facts.know("proc.fds-unexpected", tuple(strange), "fd/*, compared with what was handed over")
    vhost = tuple(item.target for item in process.descriptors if "vhost" in item.target)
    facts.know("vhost.descriptors", vhost, "fd/*")


def _limits(facts: _Facts, process: ProcessFacts, wall: Wall) -> None:
    if process.limits is None:
        facts.miss("proc.rlimits", process.unknown.get("limits", "not readable"))
    else:
        shown = []
        for limit in wall.rlimits:
            soft, hard = process.limits.get(limit.name, (None, None))
            text = str(hard) if soft == hard else f"{soft}:{hard}"
            shown.append(f"{limit.name}={text}")
        facts.know("proc.rlimits", tuple(sorted(shown)), "limits")
        facts.know("proc.rlimit-core", process.limits.get("core", (None, -1))[1] or 0, "limits")
    if process.cgroups is None or not wall.cgroup.directories:
        facts.miss("proc.cgroup", wall.cgroup.why_none or "not readable")
        facts.know("proc.cgroup-controllers", (), "cgroup")
        return
    _cgroup_limits(facts, process.pid, wall)
    if process.writable_code is not None:
        facts.know("proc.wx-maps", len(process.writable_code), "maps")


def _cgroup_limits(facts: _Facts, pid: int, wall: Wall) -> None:
    """Read the limits back from the files, and check that the process really is in each directory."""
    wrong = []
    for directory in wall.cgroup.directories:
        with open(f"{directory}/cgroup.procs", encoding="ascii") as file:
            if str(pid) not in file.read(65536).split():
                wrong.append(directory)
    for path, text in wall.cgroup.writes:
        try:
            with open(path, encoding="ascii") as file:
                found = file.read(256).strip()
        except FileNotFoundError:
            continue
        # Version 1 rounds memory limits down to whole pages.
        if found != text and not (found.isdigit() and text.isdigit() and 0 <= int(text) - int(found) < 4096):
            wrong.append(f"{path}: {found}")
    if wrong:
        facts.miss("proc.cgroup", f"not in force: {', '.join(wrong)}")
        facts.know("proc.cgroup-controllers", (), "cgroup")
        return
    facts.know("proc.cgroup", wall.cgroup.limits, "cgroup, and the limit files")
    facts.know("proc.cgroup-controllers", wall.cgroup.controllers, "cgroup, and the limit files")


def _seccomp(facts: _Facts, process: ProcessFacts, plan: LaunchPlan) -> None:
    """Every thread's filters, decoded and evaluated call by call."""
    machine = os.uname().machine
    try:
        stacks = {live_filters(thread.tid) for thread in process.threads}
    except PermissionError:
        _seccomp_from_outside(facts)
        return
    if len(stacks) != 1:
        for name in ("proc.seccomp-allowed", "proc.seccomp-dangerous", "proc.seccomp-foreign-arch"):
            facts.miss(name, "the threads have different filters")
        return
    programs = [decode(raw) for raw in stacks.pop()]
    verdicts = survey(programs, machine)
    passing = {name for name, verdict in verdicts.items() if verdict.may_pass}
    source = "task/*, PTRACE_SECCOMP_GET_FILTER, evaluated for every call of the architecture"
    facts.know("proc.seccomp-allowed", len(passing), source)
    facts.know("proc.seccomp-dangerous", tuple(sorted(passing & DANGEROUS)), source)
    foreign = survey_other_arches(programs, machine)
    facts.know("proc.seccomp-foreign-arch", "kill" if foreign.kind is VerdictKind.KILL else foreign.kind.value, source)


def _seccomp_from_outside(facts: _Facts) -> None:
    """Rootless: reading filters needs CAP_SYS_ADMIN. The caller adds what the notifications proved."""
    why = "reading live filters needs CAP_SYS_ADMIN in the initial user namespace"
    for name in ("proc.seccomp-allowed", "proc.seccomp-dangerous", "proc.seccomp-foreign-arch"):
        facts.miss(name, why)


def _own_report(facts: _Facts, spawned: Spawned) -> None:
    """What only the child could know, reported after the call returned 0 and before exec."""
    source = "the launch's own child, after the call returned 0"
    facts.found["proc.landlock"] = Known(int(spawned.notes.get("landlock_abi", "0")), source, Stage.OBSERVED)
    facts.found["proc.parent-death-signal"] = Known(9, source, Stage.OBSERVED)
    facts.found["proc.securebits"] = Known(f"{SECUREBITS_LOCKED:#x}", source, Stage.OBSERVED)
    try:
        session = os.getsid(spawned.pid) == spawned.pid
        facts.know("proc.session", session, "stat: session")
    except OSError as fault:
        facts.miss("proc.session", str(fault))


def _label(facts: _Facts, process: ProcessFacts, plan: LaunchPlan, roles: dict[str, int]) -> None:
    if not process.label:
        facts.miss("proc.mac-label", "no LSM gives this process a label")
        return
    facts.know("proc.mac-label", process.label, "attr/current")
    if (plan.wall.exec_label or "").startswith("selinux:"):
        answer, evidence = observe_unique(plan, process.pid, process.label, roles)
        if answer is None:
            facts.miss("proc.mcs-unique", evidence)
        else:
            facts.tell("proc.mcs-unique", Known(answer, evidence, Stage.OBSERVED))
