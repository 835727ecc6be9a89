"""One uid and gid per VM, held by a lock for as long as the VM lives. Never 0; never shared when it can be helped."""

from __future__ import annotations

import os

from casemate.engine.files import take_lock
from casemate.engine.paths import Paths
from casemate.errors import HostError
from casemate.facts.root import Root
from casemate.jail.policy import Identity, IdentityMode


def claim(paths: Paths, reserved: range) -> tuple[Identity, int]:
    """Claim an identity that no running VM has.

    Args:
        reserved: uids (and the same gids) that the host's policy reserves for VMs of root.

    Returns:
        the identity and the descriptor that holds its lock; closing it frees the identity.

    Raises:
        HostError: none is free, or (rootless without subordinate ids) another VM already runs under the caller's uid.
    """
    if os.geteuid() == 0:
        return _first_free(paths, reserved, _root_identity)
    import pwd

    from casemate.facts.subid import nth_id, read_subids, total_ids

    uid = os.getuid()
    root = Root()
    try:
        name: str | None = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = None
    uids, gids = (read_subids(root, f"/etc/{kind}", uid, name) for kind in ("subuid", "subgid"))
    count = min(total_ids(uids), total_ids(gids), 65_536)
    tools = all(os.access(f"/usr/bin/{tool}", os.X_OK) for tool in ("newuidmap", "newgidmap"))
    if count > 1 and tools:
        # The first ids of a range belong to other tools' users by custom (podman maps 1 there): start from the end.
        indexes = range(count - 1, max(-1, count - 1 - 4096), -1)
        return _first_free(paths, indexes, lambda n: Identity(nth_id(uids, n), nth_id(gids, n), IdentityMode.SUBID))
    lock = take_lock(f"{paths.runtime}/ids/{uid}", wait=False)
    if lock is None:
        missing = "package uidmap" if not tools else "a range in /etc/subuid and /etc/subgid"
        raise HostError(
            "another VM already runs under this user's own uid",
            got=f"no subordinate ids: {missing} is missing",
            next_step="apt-get install uidmap; usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER",
        )
    groups = tuple(sorted(set(os.getgroups()) - {os.getgid()}))
    return Identity(uid, os.getgid(), IdentityMode.CALLER, keep_groups=True, groups=groups), lock


def claim_beside(paths: Paths, reserved: range, who: Identity) -> tuple[Identity, list[int]]:
    """A second identity for a helper of the VM that runs as ``who``, and what holds it.

    An ordinary user without subordinate ids has one uid: there the helper shares it, behind a wall of its own.
    """
    if who.mode is IdentityMode.CALLER:
        return who, []
    second, lock = claim(paths, reserved)
    return second, [lock]


def _root_identity(uid: int) -> Identity:
    return Identity(uid, uid, IdentityMode.ROOT)


def _first_free(paths: Paths, candidates: range, make: object) -> tuple[Identity, int]:
    assert callable(make)
    for candidate in candidates:
        lock = take_lock(f"{paths.runtime}/ids/{candidate}", wait=False)
        if lock is not None:
            return make(candidate), lock
    raise HostError("every reserved uid is in use", got=f"{len(candidates)} running VMs", next_step="stop some VMs")
