"""Who a process is: uids, groups, capabilities, label, namespaces, session. Shared by read-back and audit.

Threads are never averaged: values that must be equal and differ become unknown, of rights the worst thread counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

from casemate.facts.capability_names_data import capability_names
from casemate.facts.fact import Facts, Known, Unknown, Value
from casemate.facts.process import ProcessFacts

THREAD_NAMES: Final = (
    "proc.uid",
    "proc.gid",
    "proc.groups",
    "proc.kvm-group",
    "proc.caps",
    "proc.no-new-privs",
    "proc.seccomp-mode",
    "proc.seccomp-filters",
    "proc.core-cookie",
)


def identity_facts(base: str, process: ProcessFacts, kvm_group: int | None) -> Facts:
    """Facts that every thread's status shows, and what runs.

    Args:
        base: where the process was read (``/proc/812``).
        kvm_group: the group of /dev/kvm, set aside among the supplementary groups.
    """
    facts: Facts = {}
    threads = process.threads
    if not threads or not process.threads_complete:
        facts.update({name: Unknown("not every thread could be read") for name in THREAD_NAMES})
        return facts | _program_facts(base, process)

    def know(name: str, value: Value, source: str) -> None:
        facts[name] = Known(value, f"{base}/{source}")

    def same(name: str, values: Iterable[int], source: str) -> None:
        distinct = set(values)
        if len(distinct) == 1:
            know(name, distinct.pop(), source)
        else:
            facts[name] = Unknown(f"the threads differ: {sorted(distinct)}")

    same("proc.uid", (uid for t in threads for uid in t.uids), "task/*/status: Uid")
    same("proc.gid", (gid for t in threads for gid in t.gids), "task/*/status: Gid")
    groups = {str(group) for t in threads for group in t.groups}
    kvm = set() if kvm_group is None else {str(kvm_group)}
    know("proc.groups", tuple(sorted(groups - kvm)), "task/*/status: Groups")
    know("proc.kvm-group", tuple(sorted(groups & kvm)), "task/*/status: Groups")
    held = bounding = 0
    for t in threads:
        held |= t.cap_inheritable | t.cap_permitted | t.cap_effective | t.cap_ambient
        bounding |= t.cap_bounding
    # What only the bounding set has, the next program with a capability on its file would get.
    later = (f"bounding:{name}" for name in capability_names(bounding & ~held))
    know("proc.caps", (*capability_names(held), *later), "task/*/status: CapInh CapPrm CapEff CapBnd CapAmb")
    know("proc.no-new-privs", all(t.no_new_privs for t in threads), "task/*/status: NoNewPrivs")
    know("proc.seccomp-mode", min(t.seccomp for t in threads), "task/*/status: Seccomp")
    counts = [t.seccomp_filters for t in threads]
    if None in counts:
        facts["proc.seccomp-filters"] = Unknown("this kernel does not show Seccomp_filters")
    else:
        know("proc.seccomp-filters", min(c for c in counts if c is not None), "task/*/status: Seccomp_filters")
    cookies = {t.core_cookie for t in threads}
    if None in cookies:
        facts["proc.core-cookie"] = Unknown("the kernel has no core scheduling, or did not tell")
    else:
        know("proc.core-cookie", 0 not in cookies, "prctl PR_SCHED_CORE_GET")
    return facts | _program_facts(base, process)


def _program_facts(base: str, process: ProcessFacts) -> Facts:
    digest = hashlib.sha256("\0".join(process.command).encode()).hexdigest()
    facts: Facts = {"proc.argv": Known(digest, f"{base}/cmdline")}
    if process.executable is not None:
        facts["proc.exe"] = Known(process.executable, f"{base}/exe")
    else:
        facts["proc.exe"] = Unknown(process.unknown.get("executable", "not readable"))
    return facts


def namespace_facts(base: str, process: ProcessFacts, others: dict[str, int], whose: str) -> Facts:
    """``proc.namespaces``: the kinds of namespaces that it does not share with ``others`` (inode numbers by kind)."""
    kinds = [kind for kind in others if kind != "time"]
    unreadable = [kind for kind in kinds if kind not in process.namespaces]
    if unreadable or not kinds:
        return {"proc.namespaces": Unknown(f"cannot read {', '.join(unreadable) or whose}")}
    new = [kind for kind in kinds if process.namespaces[kind] != others[kind]]
    return {"proc.namespaces": Known(tuple(sorted(new)), f"{base}/ns/*, compared with {whose}")}


def label_fact(base: str, process: ProcessFacts) -> Facts:
    """``proc.mac-label``, unknown where no LSM labels processes."""
    if not process.label:
        why = process.unknown.get("label", "no LSM gives this process a label").lower()
        return {"proc.mac-label": Unknown(why)}
    return {"proc.mac-label": Known(process.label, f"{base}/attr/current")}
