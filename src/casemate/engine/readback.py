"""Read the paused emulator back: what is really in force, under the same fact names as the plan declares.

Nothing here decides. /proc and ptrace say what the kernel holds, QMP says what the emulator built; what cannot be read
from outside (Landlock, the parent-death signal) is what the child itself reported after the call returned 0, and its
source says so. The same readers serve the audit of processes that nobody planned (`facts/vmm_process*.py`).
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

from casemate.engine.labels import observe_unique
from casemate.errors import VmError
from casemate.facts.fact import Facts, Known, Stage, Unknown, Value
from casemate.facts.process import ProcessFacts, own_namespaces, read_process
from casemate.facts.vmm_process_identity import identity_facts, label_fact, namespace_facts
from casemate.facts.vmm_process_limits import limit_facts, planned_rlimits
from casemate.facts.vmm_process_reach import Expected, descriptor_facts, mount_facts, root_facts
from casemate.facts.vmm_process_seccomp import DANGEROUS, launch_seccomp_facts
from casemate.jail.policy import Device, IdentityMode, RootEntry, Wall
from casemate.jail.spawn import Spawned
from casemate.plan.model import LaunchPlan
from casemate.sys.caps import SECUREBITS_LOCKED
from casemate.sys.process import CLONE_NEWUSER, setns

__all__ = ["DANGEROUS", "expected_reach", "observe_process"]

_ANSWER_MAX_BYTES: Final = 8 << 20


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
    base = f"/proc/{spawned.pid}"
    expected = expected_reach(wall, roles)
    facts = identity_facts(base, process, wall.identity.kvm_group)
    facts |= _dumpable(base, process)
    facts |= namespace_facts(base, process, process.own_namespaces, "the supervisor's")
    why = process.unknown.get("root", "")
    facts |= root_facts(base, process.root, why, is_host_tree=False, mapped=(), plan=expected)
    facts |= mount_facts(base, process, expected)
    facts |= descriptor_facts(base, process, plan=expected, named={}, foreign={})
    facts |= limit_facts(base, process) | planned_rlimits(base, process, expected.rlimits)
    facts |= _cgroup(base, process, wall)
    facts |= launch_seccomp_facts(base, (thread.tid for thread in process.threads), os.uname().machine)
    facts |= _own_report(base, spawned) | label_fact(base, process)
    if process.label and (wall.exec_label or "").startswith("selinux:"):
        answer, evidence = observe_unique(plan, process.pid, process.label, roles)
        facts["proc.mcs-unique"] = Unknown(evidence) if answer is None else Known(answer, evidence)
    return facts


def expected_reach(wall: Wall, roles: dict[str, int]) -> Expected:
    """What the launch hands over: files of the root, descriptors by identity, limits by name."""
    handed_over = [os.fstat(descriptor) for descriptor in roles.values()]
    return Expected(
        root=tuple(_target(entry) for entry in wall.root),
        files=tuple((status.st_dev, status.st_ino) for status in handed_over),
        devices=tuple(_target(entry) for entry in wall.root if isinstance(entry, Device)),
        # A user namespace cannot make a bound device read-only for whom it belongs to.
        devices_writable=wall.identity.mode is not IdentityMode.ROOT,
        rlimits=tuple(limit.name for limit in wall.rlimits),
    )


def _target(entry: RootEntry) -> str:
    return f"/dev/{entry.name}" if isinstance(entry, Device) else entry.target


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


def _dumpable(base: str, process: ProcessFacts) -> Facts:
    """Files below /proc/PID of a process that may not be dumped belong to root, not to its uid (proc_pid(5))."""
    if not process.threads:
        return {"proc.dumpable": Unknown("not every thread could be read")}
    owner = os.stat(f"{base}/status").st_uid
    return {"proc.dumpable": Known(owner == process.threads[0].uids[1], f"{base}/status: owner")}


def _cgroup(base: str, process: ProcessFacts, wall: Wall) -> Facts:
    """Read the limits back from the files, and check that the process really is in each directory."""
    source = f"{base}/cgroup"
    if process.cgroups is None or not wall.cgroup.directories:
        return {
            "proc.cgroup": Unknown(wall.cgroup.why_none or "not readable"),
            "proc.cgroup-controllers": Known((), source),
        }
    wrong = []
    for directory in wall.cgroup.directories:
        with open(f"{directory}/cgroup.procs", encoding="ascii") as file:
            if str(process.pid) not in file.read(65536).split():
                wrong.append(directory)
    for path, text in wall.cgroup.writes:
        try:
            with open(path, encoding="ascii") as file:
                found = file.read(65536).strip()
        except FileNotFoundError:
            continue
        if path.endswith("/io.max"):
            if not _has_io_limit(found, text):
                wrong.append(f"{path}: {found[:256]}")
            continue
        # Version 1 rounds memory limits down to whole pages.
        if found != text and not (found.isdigit() and text.isdigit() and 0 <= int(text) - int(found) < 4096):
            wrong.append(f"{path}: {found}")
    if wrong:
        why = Unknown(f"not in force: {', '.join(wrong)}")
        return {"proc.cgroup": why, "proc.cgroup-controllers": Known((), source)}
    source = f"{source}, and the limit files"
    return {
        "proc.cgroup": Known(wall.cgroup.limits, source),
        "proc.cgroup-controllers": Known(wall.cgroup.controllers, source),
    }


def _has_io_limit(found: str, wanted: str) -> bool:
    """io.max has a line per device, with words for what is not limited as well."""
    device, *words = wanted.split()
    lines = [line.split() for line in found.splitlines()]
    return any(line[0] == device and set(words) <= set(line[1:]) for line in lines if line)


def _own_report(base: str, spawned: Spawned) -> Facts:
    """What only the child could know, reported after the call returned 0 and before exec."""
    source = "the launch's own child, after the call returned 0"

    def reported(value: Value) -> Known:
        return Known(value, source, Stage.OBSERVED)

    facts: Facts = {
        "proc.landlock": reported(int(spawned.notes.get("landlock_abi", "0"))),
        "proc.parent-death-signal": reported(9),
        "proc.securebits": reported(f"{SECUREBITS_LOCKED:#x}"),
    }
    try:
        facts["proc.session"] = Known(os.getsid(spawned.pid) == spawned.pid, f"{base}/stat: session")
    except OSError as fault:
        facts["proc.session"] = Unknown(str(fault))
    return facts
