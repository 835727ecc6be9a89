"""Whether this user may make user namespaces, found out by making one, and which switch forbids it if not.

The child goes as far as a launch does (user namespace, its maps, then a mount and a network namespace inside it):
Ubuntu's AppArmor lets an unprivileged process make the namespace and denies every capability in it.
"""

from __future__ import annotations

import errno
import os
import select
import signal
from typing import Final

from casemate.facts.fact import Fact, Known, Unknown
from casemate.facts.root import Root
from casemate.sys.process import CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWUSER, unshare

_TIMEOUT_MS: Final = 5000
_STEPS: Final = ("unshare user", "write the id maps", "unshare mount and network")


def try_user_namespace(root: Root) -> Fact:
    """Known(``yes``) when it works; Known(``no: …``) with the switch at fault; Unknown when it cannot be tried."""
    if not root.is_live:
        return Unknown("a captured tree cannot be tried")
    try:
        step, number = _try_in_child()
    except OSError as error:
        return Unknown(f"no child to try it in: {error.strerror or error}")
    if step < 0:
        return Unknown("the child that tried it gave no answer")
    if number == 0:
        return Known("yes", "unshare in a child")
    return Known(f"no: {explain_refusal(root, step, number)}", f"{_STEPS[step]}: {errno.errorcode.get(number, number)}")


def explain_refusal(root: Root, step: int, number: int) -> str:
    """The switch that forbids user namespaces here, with the way out.

    Args:
        root: where the switches are read.
        step: index of the step that failed: 0 unshare, 1 id maps, 2 further namespaces.
        number: its errno.
    """
    if _switch(root, "/proc/sys/user/max_user_namespaces") == 0 or (step == 0 and number == errno.ENOSPC):
        return "user.max_user_namespaces is used up or 0; sysctl -w user.max_user_namespaces=15000"
    if _switch(root, "/proc/sys/kernel/unprivileged_userns_clone") == 0:
        return "kernel.unprivileged_userns_clone is 0; sysctl -w kernel.unprivileged_userns_clone=1"
    if _switch(root, "/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == 1:
        return "AppArmor restricts unprivileged user namespaces (Ubuntu); install an AppArmor profile with userns"
    if number == errno.EINVAL:
        return "the kernel has no user namespaces (CONFIG_USER_NS)"
    if number == errno.ENOSYS:
        return "a seccomp filter hides the call (a container?)"
    return f"{_STEPS[step]} was refused ({errno.errorcode.get(number, number)}): a container or a security module"


def _switch(root: Root, path: str) -> int | None:
    fact = root.fact(path, int, limit_bytes=64)
    return fact.value if isinstance(fact, Known) and isinstance(fact.value, int) else None


def _try_in_child() -> tuple[int, int]:
    """(step, errno) of the step that failed, (0, 0) when all worked, (-1, 0) without an answer in time."""
    uid, gid = os.geteuid(), os.getegid()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        # Only system calls from here to _exit: other threads of the parent do not exist in this process.
        try:
            os.write(writer, bytes(_child(uid, gid)))
        finally:
            os._exit(0)
    os.close(writer)
    try:
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        data = os.read(reader, 2) if poll.poll(_TIMEOUT_MS) else b""
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return (data[0], data[1]) if len(data) == 2 else (-1, 0)


def _child(uid: int, gid: int) -> tuple[int, int]:
    step = 0
    try:
        unshare(CLONE_NEWUSER)
        step = 1
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            descriptor = os.open(f"/proc/self/{name}", os.O_WRONLY)
            os.write(descriptor, text.encode())
            os.close(descriptor)
        step = 2
        unshare(CLONE_NEWNS | CLONE_NEWNET)
    except OSError as error:
        return step, min(error.errno or 255, 255)
    return 0, 0
