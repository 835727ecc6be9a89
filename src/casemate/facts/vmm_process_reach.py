"""What a process can reach: its root directory, its mounts, its open descriptors.

With a plan, everything that it does not list is unexpected. Without one, what no emulator should have is: the host's
own file tree, directories, memory and disks of the host, files that its command line does not name, a terminal.
"""

from __future__ import annotations

import stat as stat_module
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from casemate.facts.fact import Facts, Known, Unknown
from casemate.facts.process import Descriptor, FileIdentity, ProcessFacts, RootListing

NO_FILES: Final = ("anon_inode:", "socket:", "pipe:", "/memfd:", "/[kvm-gmem]")
HOST_TREE: Final = "/ is the host's own file tree"
_HARMLESS_DEVICES: Final = frozenset(
    {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/kvm", "/dev/net/tun", "/dev/ptmx"}
    | {"/dev/hpet", "/dev/rtc0", "/dev/userfaultfd", "/dev/sev", "/dev/sgx_vepc", "/dev/vfio/vfio"}
)
_HARMLESS_PREFIXES: Final = ("/dev/hugepages", "/dev/vfio/")
_TERMINALS: Final = ("/dev/pts/", "/dev/tty", "/dev/console")
_READ_ONLY_DATA: Final = (".bin", ".fd", ".rom", ".img", ".dtb", ".json", ".elf")
"""What firmware files are called; an emulator's root may hold them without mapping them."""
_SHOWN_MAX: Final = 64


class Expected(msgspec.Struct, frozen=True):
    """What the launch of a VM of ours handed over. ``root``: planned files of its root. ``files``: (device, inode) of
    the descriptors given to it. ``devices``: device nodes of its root; with ``devices_writable`` their mounts stay
    writable. ``rlimits``: names of the limits that were set."""

    root: tuple[str, ...]
    files: tuple[tuple[int, int], ...]
    devices: tuple[str, ...] = ()
    devices_writable: bool = False
    rlimits: tuple[str, ...] = ()


def root_facts(
    base: str,
    listing: RootListing | None,
    why: str,
    *,
    is_host_tree: bool,
    mapped: Iterable[str],
    plan: Expected | None,
) -> Facts:
    """``proc.root-unexpected``.

    Args:
        listing: the whole root, None when it is the host's or could not be read; then ``why`` says so.
        mapped: files that the process has mapped, as it names them.
    """
    name, source = "proc.root-unexpected", f"{base}/root"
    if is_host_tree:
        return {name: Known((HOST_TREE,), f"{source}: device and inode of the host's root")}
    if listing is None or not listing.complete or listing.unread:
        return {name: Unknown(why or "its root could not be listed whole")}
    if plan is not None:
        return {name: Known(beyond_plan(listing, plan.root), f"{source}, listed whole, compared with the plan")}
    known = {*mapped}
    strange = [entry.path for entry in listing.entries if not _is_needed(entry.path, entry.identity, known)]
    return {name: Known(_short(strange), f"{source}, listed whole; no plan: what is not mapped, firmware or a device")}


def beyond_plan(listing: RootListing, planned: Iterable[str]) -> tuple[str, ...]:
    """Entries that are not planned, and planned ones that are missing."""
    targets = set(planned)
    folders = {parent for target in targets for parent in _parents(target)}
    extra = sorted(e.path for e in listing.entries if e.path not in targets and e.path not in folders)
    missing = sorted(targets - {e.path for e in listing.entries})
    return (*extra, *(f"missing: {path}" for path in missing))


def _parents(path: str) -> list[str]:
    found = []
    while (path := path.rpartition("/")[0]) not in ("", "/"):
        found.append(path)
    return found


def _is_needed(path: str, identity: FileIdentity, mapped: set[str]) -> bool:
    """Whether an emulator in a root of its own may have this entry, when nobody says what was planned."""
    if identity.kind in ("directory", "symlink"):
        return True
    if identity.kind in ("char", "block"):
        return identity.kind == "char" and (path in _HARMLESS_DEVICES or path.startswith(_HARMLESS_PREFIXES))
    if identity.kind != "file":
        return False
    if identity.mode & (stat_module.S_ISUID | stat_module.S_ISGID):
        return False
    own_writable = identity.mode & 0o022
    return path in mapped or (not own_writable and (path.endswith(_READ_ONLY_DATA) or ".so" in path))


def mount_facts(base: str, process: ProcessFacts, plan: Expected | None) -> Facts:
    """``proc.mounts-writable``: mount points that are not read-only."""
    if not process.mounts:  # a plain chroot shows none at all: that is no pass
        return {"proc.mounts-writable": Unknown(process.unknown.get("mounts", "no mount is visible"))}
    spared = plan.devices if plan is not None and plan.devices_writable else ()
    writable = {m.point for m in process.mounts if "ro" not in m.options and m.point not in spared}
    return {"proc.mounts-writable": Known(tuple(sorted(writable)), f"{base}/mountinfo")}


def descriptor_facts(
    base: str,
    process: ProcessFacts,
    *,
    plan: Expected | None,
    named: Mapping[tuple[int, int], str],
    foreign: Mapping[tuple[int, int], str],
    by_path: frozenset[str] = frozenset(),
) -> Facts:
    """``proc.fds-unexpected`` and ``vhost.descriptors``.

    Args:
        named: (device, inode) -> path of the files that the process's own command line or description names.
        foreign: (device, inode) -> name of another VM that has the file as its image.
        by_path: paths that its description names, for a tree that does not hold those files.
    """
    if process.descriptors is None:
        why = Unknown(process.unknown.get("descriptors", "not readable").lower())
        return {"proc.fds-unexpected": why, "vhost.descriptors": why}
    strange = []
    for item in process.descriptors:
        why_not = _strangeness(item, plan, named, foreign, by_path)
        if why_not:
            strange.append(f"{item.number}: {item.target} ({why_not})")
    compared = "with what was handed over" if plan is not None else "with its command line"
    vhost = tuple(item.target for item in process.descriptors if "vhost" in item.target)
    return {
        "proc.fds-unexpected": Known(_short(strange), f"{base}/fd/*, compared {compared}"),
        "vhost.descriptors": Known(vhost, f"{base}/fd/*"),
    }


def _strangeness(
    item: Descriptor,
    plan: Expected | None,
    named: Mapping[tuple[int, int], str],
    foreign: Mapping[tuple[int, int], str],
    by_path: frozenset[str],
) -> str:
    """Why this descriptor should not be there; empty when it may."""
    target, identity = item.target, item.identity
    if target.startswith(NO_FILES):
        return ""
    key = None if identity is None else (identity.dev, identity.inode)
    if plan is not None:
        planned = target in plan.devices or target in plan.root or key in plan.files
        return "" if planned else "not in the plan"
    if key is not None and key in foreign:
        return f"an image of {foreign[key]}"
    if identity is not None and identity.kind == "directory":
        return "a directory"
    if target.startswith(_TERMINALS):
        return "a terminal"
    if target in _HARMLESS_DEVICES or target.startswith(_HARMLESS_PREFIXES) or "vhost" in target:
        return ""  # vhost has controls of its own
    if (key is not None and key in named) or (target.startswith("/") and target in by_path):
        return ""
    if identity is not None and identity.kind in ("char", "block"):
        return f"a {identity.kind} device"
    return "not on its command line"


def writable_files(process: ProcessFacts) -> dict[tuple[int, int], str]:
    """(device, inode) -> path of regular files and block devices that it holds open for writing."""
    found = {}
    for item in process.descriptors or ():
        identity = item.identity
        if identity is None or identity.kind not in ("file", "block") or item.access not in ("write", "read-write"):
            continue
        if not item.target.startswith(NO_FILES) and not item.target.startswith("/dev/hugepages"):
            found[identity.dev, identity.inode] = item.target
    return found


def _short(items: list[str]) -> tuple[str, ...]:
    """At most some tens of entries: a hostile process may have any number of them."""
    if len(items) <= _SHOWN_MAX:
        return tuple(items)
    return (*items[:_SHOWN_MAX], f"and {len(items) - _SHOWN_MAX} more")
