"""What the prover saw of itself, compared with the wall as planned. Pure."""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import Final

import msgspec

from casemate.jail.policy import (
    BindFile,
    CopyFile,
    Device,
    Directory,
    IdentityMode,
    Layer,
    Link,
    OneShot,
    RootEntry,
    Scratch,
    StateDirectory,
    Wall,
)
from casemate.jail.probe.model import Node, Sight
from casemate.jail.root import DEVICE_NUMBERS
from casemate.sys.caps import SECUREBITS_LOCKED

# Fallback devices that the kernel itself puts, down, into every new network namespace (sysctl
# net.core.fb_tunnels_only_for_init_net).
_KERNELS_OWN: Final = frozenset(
    [
        "lo",
        "sit0",
        "tunl0",
        "gre0",
        "gretap0",
        "erspan0",
        "ip_vti0",
        "ip6tnl0",
        "ip6_vti0",
        "ip6gre0",
        "ip6gretap0",
        "ip6erspan0",
    ]
)
_ACCESS: Final = {"ro": os.O_RDONLY, "wo": os.O_WRONLY}


class Seen(msgspec.Struct, frozen=True):
    """One thing compared. ``layer``: whose removal explains a difference."""

    id: str
    declared: str
    observed: str
    holds: bool
    layer: str


def judge_sight(sight: Sight, wall: Wall, sources: dict[str, tuple[int, int]]) -> tuple[Seen, ...]:
    """Every comparison that the layers in force allow.

    Args:
        sight: from the prover.
        wall: as planned.
        sources: path of a bound file -> (st_dev, st_ino) on the host.
    """
    seen: list[Seen] = []

    def compare(name: str, declared: object, observed: object, layer: Layer, holds: bool | None = None) -> None:
        if wall.has(layer):
            same = declared == observed if holds is None else holds
            seen.append(Seen(f"sight.{name}", str(declared), str(observed), same, layer.value))

    who = wall.identity
    compare("uid", (who.uid,) * 3, sight.uids, Layer.IDENTITY)
    compare("gid", (who.gid,) * 3, sight.gids, Layer.IDENTITY)
    if not who.keep_groups:
        compare("groups", (), sight.groups, Layer.IDENTITY)
    for name in ("effective", "permitted", "inheritable", "bounding", "ambient"):
        compare(f"capabilities-{name}", "0x0", hex(getattr(sight, name)), Layer.CAPABILITIES)
    compare("securebits", SECUREBITS_LOCKED, sight.securebits, Layer.CAPABILITIES)
    seen.append(Seen("sight.no-new-privs", "True", str(sight.no_new_privs), sight.no_new_privs, "no_new_privs"))
    compare("pid", 1, sight.pid, Layer.NAMESPACES)
    compare("hostname", wall.hostname, sight.hostname, Layer.NAMESPACES)
    foreign = tuple(name for name in sight.interfaces if name not in _KERNELS_OWN)
    compare("interfaces", (), foreign, Layer.NAMESPACES)
    for limit in wall.rlimits:
        got = next(((soft, hard) for name, soft, hard in sight.limits if name == limit.name), None)
        compare(f"limit-{limit.name}", (limit.value, limit.value), got, Layer.RLIMITS)
    seen += _descriptors(sight, wall)
    if wall.has(Layer.ROOT):
        seen += _tree(sight, wall, sources)
    return tuple(seen)


def _descriptors(sight: Sight, wall: Wall) -> list[Seen]:
    planned = {item.number: item for item in wall.descriptors}
    found = dict(sight.descriptors)
    extra = sorted(set(found) - set(planned))
    missing = sorted(set(planned) - set(found))
    seen = [
        Seen("sight.descriptors-extra", "()", str(tuple(extra)), not extra, "descriptor"),
        Seen("sight.descriptors-missing", "()", str(tuple(missing)), not missing, "descriptor"),
    ]
    for number, item in planned.items():
        wanted = _ACCESS.get(item.access)
        # /dev/null is the same thing in every mode; sockets and writable files have nothing narrower to be.
        if wanted is not None and number in found and item.role != "null":
            name = f"sight.descriptor-{number}-{item.role}"
            seen.append(Seen(name, item.access, str(found[number]), found[number] == wanted, "descriptor"))
    return seen


def _tree(sight: Sight, wall: Wall, sources: dict[str, tuple[int, int]]) -> list[Seen]:
    """Nothing but what is planned, the very files, nothing writable, nothing setuid."""
    layer = Layer.ROOT.value
    if sight.tree_error or sight.tree_cut:
        why = sight.tree_error or "more entries than any plan has"
        return [Seen("sight.root-readable", "the whole tree", why, False, layer)]
    planned = {_target(entry): entry for entry in wall.root}
    directories = {str(parent) for target in planned for parent in PurePosixPath(target).parents} - {"/"}
    found = {node.path: node for node in sight.tree}
    extra = tuple(sorted(set(found) - set(planned) - directories))
    missing = tuple(sorted(set(planned) - set(found)))
    other = tuple(
        path for path in sorted(set(planned) & set(found)) if not _is(planned[path], found[path], wall, sources)
    )
    writable = tuple(node.path for node in sight.tree if not node.read_only)
    suid = tuple(node.path for node in sight.tree if not node.nosuid)
    return [
        Seen("sight.root-extra", "()", str(extra), not extra, layer),
        Seen("sight.root-missing", "()", str(missing), not missing, layer),
        Seen("sight.root-other-file", "()", str(other), not other, layer),
        Seen("sight.root-writable", "()", str(writable), not writable, layer),
        Seen("sight.root-suid", "()", str(suid), not suid, layer),
    ]


def _target(entry: RootEntry) -> str:
    return f"/dev/{entry.name}" if isinstance(entry, Device) else entry.target


def _is(
    entry: RootEntry,
    node: Node,
    wall: Wall,
    sources: dict[str, tuple[int, int]],
) -> bool:
    match entry:
        case BindFile(source=source):
            return node.kind == "file" and sources.get(source) == (node.device, node.inode)
        case CopyFile():
            return node.kind == "file"
        case Device(name=name):
            rooted = wall.identity.mode is IdentityMode.ROOT
            private = not rooted or node.mode & 0o007 == (0 if name == "kvm" else 0o006)
            return node.kind == "device" and node.rdev == os.makedev(*DEVICE_NUMBERS[name]) and private
        case Link():
            return node.kind == "link"
        case Directory():
            return node.kind == "directory"
        case OneShot():
            return node.kind == "fifo"
        case StateDirectory() | Scratch():
            return node.kind == "directory"
