"""All facts of one host, from every collector there is. A collector that fails costs its own facts only."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable

from casemate.facts.fact import Facts, Known, Unknown
from casemate.facts.root import Root

COLLECTORS: tuple[str, ...] = (
    "casemate.facts.cpu:collect_cpu",
    "casemate.facts.iommu:collect_iommu",
    "casemate.facts.kvm_module:collect_kvm_module",
    "casemate.facts.kernel_collect:collect_kernel",
    "casemate.facts.libvirt_config:collect_libvirt",
    "casemate.facts.os_collect:collect_os",
    "casemate.facts.entropy:collect_entropy",
    "casemate.audit.store:collect_store",
)
"""Functions ``(root) -> Facts``. Of two that know a fact under one name the later one counts."""


def collect_host_facts(root: Root) -> tuple[Facts, tuple[str, ...]]:
    """Everything about the host.

    Returns:
        the facts, and a note for each collector that failed as a whole.
    """
    facts, notes = _launch_names(root), []
    for place in COLLECTORS:
        try:
            facts |= _function(place)(root)
        except (OSError, ValueError, KeyError, IndexError, RecursionError, UnicodeError) as error:
            notes.append(f"{place.rpartition(':')[2]} failed: {type(error).__name__}: {str(error)[:200]}")
    return facts, tuple(notes)


def _function(place: str) -> Callable[[Root], Facts]:
    module, _, name = place.partition(":")
    found: Callable[[Root], Facts] = getattr(importlib.import_module(module), name)
    return found


def _launch_names(root: Root) -> Facts:
    """The host facts that a launch collects too, under the same names."""
    from casemate.facts.host import launch_facts

    facts = dict(launch_facts(root, os.geteuid()).facts)
    if isinstance(facts["host.lsm"], Unknown):
        facts |= _lsm_without_securityfs(root)
    mode, owner = facts.get("host.dev-kvm-mode"), facts.get("host.dev-kvm-owner")
    if isinstance(mode, Known) and isinstance(owner, Known):
        uid, _, gid = str(owner.value).partition(":")
        names = ("root" if uid == "0" else uid, "root" if gid == "0" else gid)
        facts["host.kvm-device"] = Known(f"{names[0]}:{names[1]} {mode.value}", "stat /dev/kvm")
    else:
        facts["host.kvm-device"] = mode or Unknown("/dev/kvm: not looked at")
    if root.is_live:
        from casemate.facts.userns import try_user_namespace

        tried = try_user_namespace(root)
        if isinstance(tried, Known):
            tried = Known(
                tried.value == "yes", tried.source if tried.value == "yes" else f"{tried.source}: {tried.value}"
            )
        facts["host.userns"] = tried
    else:
        facts["host.userns"] = Unknown("a captured tree cannot be asked for a namespace")
    return facts


def _lsm_without_securityfs(root: Root) -> Facts:
    """Where securityfs is not mounted, a process's own label tells whether an LSM gives out any."""
    found = []
    if _exists(root, "/sys/fs/selinux/enforce"):
        found.append("selinux")
    apparmor = root.fact("/sys/module/apparmor/parameters/enabled", str.strip)
    if isinstance(apparmor, Known) and apparmor.value == "Y":
        found.append("apparmor")
    if found:
        return {"host.lsm": Known(tuple(found), "/sys/fs/selinux, /sys/module/apparmor; securityfs is not mounted")}
    try:
        label = root.read_text("/proc/self/attr/current", 4096)
    except OSError as error:
        import errno

        if error.errno == errno.EINVAL and root.keeps_errors:
            return {"host.lsm": Known((), "/proc/self/attr/current: no LSM gives labels; securityfs is not mounted")}
        return {"host.lsm": Unknown(f"securityfs is not mounted; /proc/self/attr/current: {error.strerror}")}
    return {"host.lsm": Unknown(f"securityfs is not mounted, and processes have labels ({label[:40]!r})")}


def _exists(root: Root, path: str) -> bool:
    try:
        return root.exists(path)
    except OSError:
        return False
