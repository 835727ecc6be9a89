"""What only shows when all VMs of a host are looked at together: shared uids, labels and images. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import msgspec

from casemate.facts.fact import Fact, Facts, Known, Unknown
from casemate.facts.vmm_process import VmmProcess
from casemate.facts.vmm_process_reach import writable_files

_LEVEL = re.compile(r"(s\d+(?:-s\d+)?):?((?:c\d+[,.]?)*)")
FileKey = tuple[int, int]


class Crowd(msgspec.Struct, frozen=True):
    """All VMs of one host, by pid. ``names``: what to call each. ``blind``: why others may have been missed."""

    members: dict[int, VmmProcess]
    names: dict[int, str]
    blind: str = ""


def relation_facts(pid: int, crowd: Crowd) -> Facts:
    """``run.uid-unique``, ``proc.mcs-unique``, ``img.shared-writable`` of one VM among the others."""
    own = crowd.members[pid]
    others = {number: member for number, member in crowd.members.items() if number != pid}
    facts: Facts = {"run.uid-unique": _uid_unique(own, others, crowd)}
    facts["proc.mcs-unique"] = _label_unique(own, others, crowd)
    facts["img.shared-writable"] = _shared_images(pid, crowd)
    return facts


def images_of_others(pid: int, crowd: Crowd) -> dict[FileKey, str]:
    """(device, inode) -> name of the VM, for every file that another VM holds open for writing."""
    found: dict[FileKey, str] = {}
    own = writable_files(crowd.members[pid].process)
    for number, member in crowd.members.items():
        if number == pid:
            continue
        for key in writable_files(member.process):
            if key not in own:  # written by both: img.shared-writable
                found.setdefault(key, crowd.names.get(number, str(number)))
    return found


def _known(crowd: Crowd, is_unique: bool, source: str) -> Fact:
    """That nobody else has it can only be said when everybody was looked at."""
    if is_unique and crowd.blind:
        return Unknown(f"no other VM found, but {crowd.blind}")
    return Known(is_unique, source)


def _uid_unique(own: VmmProcess, others: Mapping[int, VmmProcess], crowd: Crowd) -> Fact:
    uids = _uids(own)
    if not uids:
        return Unknown("its uids could not be read")
    same = [crowd.names.get(number, str(number)) for number, member in others.items() if uids & _uids(member)]
    shared = f"; shared with {', '.join(sorted(same)[:8])}" if same else ""
    return _known(crowd, not same, f"task/*/status of {len(others) + 1} VMs{shared}")


def _uids(member: VmmProcess) -> set[int]:
    return {uid for thread in member.process.threads for uid in thread.uids}


def categories(label: str) -> frozenset[str]:
    """The categories of an SELinux context: ``c12`` and ``c700`` of ``…:s0:c12,c700``; empty without any."""
    parts = label.split(":", 3)
    if len(parts) < 4:
        return frozenset()
    match = _LEVEL.fullmatch(parts[3])
    if match is None or "." in match[2]:
        return frozenset()
    return frozenset(word for word in match[2].split(",") if word)


def _label_unique(own: VmmProcess, others: Mapping[int, VmmProcess], crowd: Crowd) -> Fact:
    label = own.process.label or ""
    mine = categories(label)
    if not mine:
        if label.count(":") >= 3:
            return Known(False, f"attr/current: {label} has no categories of its own")
        return Unknown("it has no SELinux context")
    same = [
        crowd.names.get(number, str(number))
        for number, member in others.items()
        if categories(member.process.label or "") == mine
    ]
    shared = f"; shared with {', '.join(sorted(same)[:8])}" if same else ""
    return _known(crowd, not same, f"attr/current of {len(others) + 1} VMs{shared}")


def _shared_images(pid: int, crowd: Crowd) -> Fact:
    if crowd.members[pid].process.descriptors is None:
        return Unknown(crowd.members[pid].process.unknown.get("descriptors", "not readable").lower())
    unread = [crowd.names[n] for n, member in crowd.members.items() if not _told_apart(member)]
    writers: dict[FileKey, list[int]] = defaultdict(list)
    paths: dict[FileKey, str] = {}
    for number, member in crowd.members.items():
        for key, path in writable_files(member.process).items():
            writers[key].append(number)
            paths[key] = path
    shared = sorted(paths[key] for key, who in writers.items() if pid in who and len(who) > 1)
    if not shared and (unread or crowd.blind):
        return Unknown(f"the descriptors of {', '.join(unread[:4])} cannot be read" if unread else crowd.blind)
    return Known(tuple(shared), f"fd/* of {len(crowd.members)} VMs")


def _told_apart(member: VmmProcess) -> bool:
    """Whether its open files are known by device and inode; a captured tree may hold no more than their paths."""
    files = member.process.descriptors
    return files is not None and not any(item.identity is None and item.target.startswith("/") for item in files)


_NEVER = frozenset(
    """execve execveat ptrace process_vm_readv process_vm_writev bpf perf_event_open userfaultfd io_uring_setup
    mount umount2 move_mount fsmount pivot_root chroot unshare setns init_module finit_module delete_module kexec_load
    kexec_file_load reboot swapon add_key keyctl modify_ldt iopl ioperm personality pidfd_getfd acct""".split()  # noqa: SIM905
)
"""Calls that no helper needs while it serves; sockets, ids and file handles some do need."""


def helper_faults(helpers: Sequence[tuple[str, Facts]]) -> Fact:
    """``proc.helpers-faults``: what each helper process of a VM may do that a confined one may not.

    Args:
        helpers: name and facts of each.

    Returns:
        the faults that are known; Unknown when none is, and something could not be read.
    """
    faults: list[str] = []
    unread: list[str] = []
    for name, facts in helpers:
        found, unknown = _faults_of(facts)
        if found:
            faults.append(f"{name}: {', '.join(found)}")
        unread += [f"{name}: {text}" for text in unknown]
    if unread and not faults:
        return Unknown("; ".join(unread)[:400])
    return Known(tuple(faults), f"/proc of {', '.join(name for name, _ in helpers) or 'no helper'}")


def _faults_of(facts: Facts) -> tuple[list[str], list[str]]:
    """(what it may do, what could not be read)."""
    faults: list[str] = []
    unread: list[str] = []

    def value(name: str) -> object:
        fact = facts.get(name)
        if isinstance(fact, Known):
            return fact.value
        unread.append(f"{name}: {fact.why if isinstance(fact, Unknown) else 'not read'}")
        return None

    namespaces = value("proc.namespaces")
    inside = isinstance(namespaces, tuple) and "user" in namespaces
    held = value("proc.caps")
    if value("proc.uid") == 0:
        faults.append("runs as root")
    if isinstance(held, tuple) and held and not inside:
        faults.append(f"{len(held)} capabilities over the host")
    if value("proc.no-new-privs") is False:
        faults.append("may gain privileges")
    mode = value("proc.seccomp-mode")
    if mode is not None and mode != 2:
        faults.append("no seccomp filter")
    if mode == 2:
        dangerous = value("proc.seccomp-dangerous")
        wrong = sorted(_NEVER & set(dangerous)) if isinstance(dangerous, tuple) else []
        if wrong:
            faults.append(f"its filter lets {len(wrong)} dangerous calls through: {', '.join(wrong[:4])}")
    return faults, unread
