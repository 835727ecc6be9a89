"""Who can command a running VMM: its monitor is judged by who can open the socket, not by there being one.

libvirt speaks to QEMU over a socket with a name. When only root can open it, or only the VM's own uid and nothing else
runs under that, or a label keeps every other VM away from it, then it is the VMM's own door and no further one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from casemate.audit.live import LiveHost, LiveVm
from casemate.facts.fact import Facts, Known, Unknown
from casemate.facts.root import Root
from casemate.facts.socket_access import EVERYBODY, ROOT, listening_paths, socket_of, who_can_connect

ROOT_ONLY: Final = "root-only-socket"
_PROCESSES_MAX: Final = 1 << 18


def monitor_facts(vm: LiveVm, host: LiveHost, root: Root, described: Facts, ways: Iterable[str]) -> Facts:
    """``qmp.transport`` again, when every monitor is a Unix socket whose path and rights can be looked at.

    Args:
        described: facts out of the command line; a transport that is no socket is left as it is.
        ways: the monitors as the description has them (``unix:/path``, ``fd-server:26``, ``fd``).
    """
    stated = described.get("qmp.transport")
    if vm.own is not None or not isinstance(stated, Known) or stated.value not in ("unix", "fd-server"):
        return {}
    found: dict[str, frozenset[str]] = {}
    for way in ways:
        kind, _, rest = way.partition(":")
        if kind not in ("unix", "fd-server"):
            continue
        try:
            path = rest.partition(",")[0] if kind == "unix" else _path_of(vm, root, rest)
            found[path] = who_can_connect(root, _absolute(vm, root, path))
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            return {"qmp.transport": Unknown(f"who can open its monitor's socket cannot be seen: {way[:120]}: {why}")}
    strangers = {path: _strangers(vm, host, root, who) for path, who in found.items()}
    wrong = [f"{path}: {', '.join(who)}" for path, who in strangers.items() if who]
    if wrong:
        return {
            "qmp.transport": Known(stated.value, f"{stated.source}; it can be opened by others: {'; '.join(wrong)}")
        }
    return {"qmp.transport": Known(ROOT_ONLY, f"{', '.join(found)}: rights of the socket and its directories")}


def _path_of(vm: LiveVm, root: Root, number: str) -> str:
    inode = socket_of(vm.read.process.descriptors or (), int(number)) if number.isdecimal() else 0
    if not inode:
        raise ValueError("its descriptor cannot be seen")
    path = listening_paths(root, vm.found.pid).get(inode)
    if path is None:
        raise ValueError("the kernel lists no listening socket behind it")
    return path


def _absolute(vm: LiveVm, root: Root, path: str) -> str:
    if path.startswith(("/", "@")):
        return path
    return f"{root.readlink(f'/proc/{vm.found.pid}/cwd')}/{path}"


def _strangers(vm: LiveVm, host: LiveHost, root: Root, who: frozenset[str]) -> list[str]:
    """Those who can connect and should not, in words."""
    threads = vm.read.process.threads
    uids = {uid for thread in threads for uid in thread.uids}
    gids = {gid for thread in threads for gid in thread.gids}
    own = {f"uid:{uid}" for uid in uids} | {f"gid:{gid}" for gid in gids}
    others = sorted(who - own - ROOT)
    if EVERYBODY in others:
        return [EVERYBODY]
    if (who & own) - ROOT and not _is_labelled(vm):
        sharing = _sharing(vm, host, root, uids - {0})
        if sharing:
            others.append(sharing)
    return others


def _is_labelled(vm: LiveVm) -> bool:
    """A label that libvirt gives to one VM alone: its own AppArmor profile, or SELinux categories."""
    label = vm.read.process.label or ""
    apparmor = label.startswith("libvirt-") and label.endswith("(enforce)")
    return apparmor or (":svirt" in label and label.count(":") >= 4)


def _sharing(vm: LiveVm, host: LiveHost, root: Root, uids: set[int]) -> str:
    """What else runs under the VM's uid and could therefore open its socket; empty when nothing does."""
    mine = {vm.found.pid, *(int(name.rpartition(" ")[2]) for name, _ in vm.helpers)}
    vms = [other.name for other in host.vms if other.found.pid != vm.found.pid and uids & _uids(other)]
    if vms:
        return f"{', '.join(sorted(vms)[:4])} with the same uid {', '.join(map(str, sorted(uids)))}"
    others = 0
    for name in root.list_dir("/proc", _PROCESSES_MAX):
        if name.isdecimal() and int(name) not in mine:
            try:
                others += root.stat(f"/proc/{name}").st_uid in uids
            except OSError:
                continue
    return f"{others} other processes of uid {', '.join(map(str, sorted(uids)))}" if others else ""


def _uids(vm: LiveVm) -> set[int]:
    return {uid for thread in vm.read.process.threads for uid in thread.uids}
