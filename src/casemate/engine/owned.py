"""A directory that belongs to another uid of ours: take it over for this run's uid, or remove it.

The TPM's emulator runs under a uid of its own, which may be another one at each start, and its state is that uid's
alone. Root changes owners itself. An ordinary user cannot, not even for his own subordinate ids: a child does it as
root of a user namespace that maps them all, which is what newuidmap is for (user_namespaces(7)).

What lies in such a directory was written by a process that may have been taken over: entries are looked at through
the directory's descriptor, no link is followed, and whatever the program never makes is refused.
"""

from __future__ import annotations

import json
import os
import pwd
import stat
from collections.abc import Callable

from casemate.engine import errorwire
from casemate.errors import CasemateError, HostError
from casemate.facts.root import Root
from casemate.facts.subid import SubidRange, read_subids
from casemate.jail.policy import Identity, IdentityMode
from casemate.sys.process import CLONE_NEWUSER, unshare

ENTRIES_MAX = 64
_ERROR_MAX_BYTES = 65536


def take_over(directory: str, who: Identity, names: frozenset[str], size_max_bytes: int) -> None:
    """Give ``directory`` and the files in it to ``who``; the directory is closed to all others (0700).

    Args:
        names: what may lie in it: regular files with one link.

    Raises:
        HostError: something else lies in it, or the owner cannot be changed.
    """
    _as_owner(who.mode, lambda: _give(directory, who, names, size_max_bytes), directory)


def remove(directory: str, mode: IdentityMode | None = None) -> None:
    """Remove ``directory`` and what is in it, whoever of our uids owns it; its absence is fine.

    Args:
        mode: how VMs of this user run; found out when None.

    Raises:
        HostError: it is still there.
    """
    if os.path.lexists(directory):
        _as_owner(mode or _usual_mode(), lambda: _remove(directory), directory)


def _usual_mode() -> IdentityMode:
    if os.geteuid() == 0:
        return IdentityMode.ROOT
    return IdentityMode.SUBID if os.access("/usr/bin/newuidmap", os.X_OK) and _ranges("subuid") else IdentityMode.CALLER


def _give(directory: str, who: Identity, names: frozenset[str], size_max_bytes: int) -> None:
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.listdir(folder)
        for name in found[: ENTRIES_MAX + 1]:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            plain = stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_size <= size_max_bytes
            if name not in names or not plain:
                raise HostError(
                    f"{directory} holds what does not belong there",
                    got=f"{name[:64]!r}, mode {status.st_mode:o}, {status.st_size} bytes, {status.st_nlink} links",
                    expected=", ".join(sorted(names)),
                    next_step="find out who wrote it; casemate rm removes the VM and its TPM",
                )
            os.chown(name, who.uid, who.gid, dir_fd=folder, follow_symlinks=False)
        os.fchown(folder, who.uid, who.gid)
        os.fchmod(folder, 0o700)
    finally:
        os.close(folder)


def _remove(directory: str) -> None:
    import shutil

    shutil.rmtree(directory)


def _as_owner(mode: IdentityMode, action: Callable[[], None], directory: str) -> None:
    try:
        if mode is IdentityMode.SUBID:
            _in_user_namespace(action)
        else:
            action()
    except OSError as fault:
        raise HostError(
            f"{directory} cannot be changed", got=f"{fault.strerror} ({fault.filename})", next_step="casemate doctor"
        ) from fault


def _ranges(kind: str) -> tuple[SubidRange, ...]:
    uid = os.getuid()
    try:
        name: str | None = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = None
    return read_subids(Root(), f"/etc/{kind}", uid, name)


def _in_user_namespace(action: Callable[[], None]) -> None:
    """Run ``action`` in a child that is root over the caller's own and all of his subordinate ids.

    Raises:
        HostError: what the child raised, or newuidmap refused.
    """
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    go_read, go_write = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        os.close(ready_read)
        os.close(go_write)
        _child(action, ready_write, go_read)
    os.close(ready_write)
    os.close(go_read)
    try:
        with os.fdopen(ready_read, "rb") as pipe:
            if pipe.read(1) == b"r":
                for tool, own, kind in (("newuidmap", os.getuid(), "subuid"), ("newgidmap", os.getgid(), "subgid")):
                    _map(tool, child, own, _ranges(kind))
                os.write(go_write, b"g")
            said = pipe.read(_ERROR_MAX_BYTES)
    finally:
        os.close(go_write)
        _, status = os.waitpid(child, 0)
    if status != 0:
        if said:
            raise errorwire.decode(json.loads(said))
        raise HostError("no user namespace in which to change an owner", next_step="casemate doctor")


def _child(action: Callable[[], None], ready: int, go: int) -> None:
    """In the child. Leaves only by _exit."""
    try:
        unshare(CLONE_NEWUSER)
        os.write(ready, b"r")
        if os.read(go, 1) != b"g":
            os._exit(1)
        action()
        os._exit(0)
    except BaseException as fault:
        text = f"{type(fault).__name__}: {fault}"
        error = fault if isinstance(fault, CasemateError) else HostError("an owner cannot be changed", got=text[:1000])
        os.write(ready, json.dumps(errorwire.encode(error)).encode())
    finally:
        os._exit(1)


def _map(tool: str, pid: int, own: int, ranges: tuple[SubidRange, ...]) -> None:
    words = [str(pid), str(own), str(own), "1"]
    for item in ranges:
        words += [str(item.first), str(item.first), str(item.count)]
    child = os.posix_spawn(f"/usr/bin/{tool}", [tool, *words], {})
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise HostError(f"{tool} refused the subordinate ids", next_step="check /etc/subuid and /etc/subgid")
