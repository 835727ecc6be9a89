"""The steps that build a wall, in order. Each can say what it does and do it; the same list is printed and run.

They run in the fresh, single-threaded child. A step that fails stops the launch: nothing is "if possible".

Order for root:     session, cgroup, root, hostname, user namespace, identity, capabilities, limits, …
Order for rootless: the child is born in its user namespace; the rest is the same.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import socket
import time

import msgspec

from casemate.jail.context import Context, Step
from casemate.jail.policy import IdentityMode, LandlockPath, Layer, Wall
from casemate.jail.root import NewRoot
from casemate.sys import caps, landlock, process
from casemate.sys.libc import check, libc
from casemate.sys.rtnetlink import add_address

_RIGHTS = {
    "read": landlock.READ_FILE | landlock.READ_DIR,
    "execute": landlock.EXECUTE,
    "write": landlock.WRITE_FILE,
    "ioctl": landlock.IOCTL_DEV,
    "replace": landlock.MAKE_REG | landlock.REMOVE_FILE | landlock.TRUNCATE,
}


class MapIdentity(msgspec.Struct, frozen=True):
    """Rootless: wait until the parent has written the maps of the namespace we were born in."""

    wall: Wall

    def describe(self) -> str:
        return f"user namespace with the ids {self.wall.identity.uid}:{self.wall.identity.gid} only"

    def apply(self, context: Context) -> None:
        context.ask_parent("M")


class NewSession(msgspec.Struct, frozen=True):
    """No controlling terminal, no keys of the caller, no environment-dependent masks."""

    def describe(self) -> str:
        return "new session, new session keyring, umask 077"

    def apply(self, context: Context) -> None:
        os.setsid()
        process.keyctl_join_session_keyring()
        os.umask(0o077)


class JoinCgroup(msgspec.Struct, frozen=True):
    """In force before the emulator's first instruction; then a cgroup namespace hides the path."""

    directories: tuple[str, ...]

    def describe(self) -> str:
        where = ", ".join(self.directories) or "no cgroup"
        return f"join {where}; new cgroup namespace"

    def apply(self, context: Context) -> None:
        for directory in self.directories:
            # Version 1: moving oneself as a thread takes no system-wide lock; as a process it waits some milliseconds
            # (cgroup_procs_write_start in the kernel). Version 2: clone3 has put us there already.
            if os.path.exists(f"{directory}/tasks"):
                with open(f"{directory}/tasks", "w", encoding="ascii") as file:
                    file.write("0")
        process.unshare(process.CLONE_NEWCGROUP)


class SetHostname(msgspec.Struct, frozen=True):
    """The host's name is the host's business."""

    name: str

    def describe(self) -> str:
        return f"host name {self.name}"

    def apply(self, context: Context) -> None:
        raw = self.name.encode()
        # SAFETY: buffer and its length.
        check(libc.sethostname(raw, ctypes.c_size_t(len(raw))), "sethostname")


class AddLinkLocal(msgspec.Struct, frozen=True):
    """While there are capabilities: a program that asks its own namespace for such an address finds one."""

    address: str

    def describe(self) -> str:
        return f"{self.address} on the loopback device of the empty network namespace, which stays down"

    def apply(self, context: Context) -> None:
        add_address(socket.if_nametoindex("lo"), self.address)


class NewUserNamespace(msgspec.Struct, frozen=True):
    """Root only: a user namespace that maps one uid and one gid, written by the parent."""

    wall: Wall

    def describe(self) -> str:
        return f"user namespace with the ids {self.wall.identity.uid}:{self.wall.identity.gid} only"

    def apply(self, context: Context) -> None:
        # A joined thread may take a moment longer to leave the kernel, which wants us to be alone (EINVAL).
        for attempt in range(200):
            try:
                process.unshare(process.CLONE_NEWUSER)
                break
            except OSError as fault:
                if fault.errno != errno.EINVAL or attempt == 199:
                    raise
                time.sleep(0.0005)
        context.ask_parent("M")


class DropGroups(msgspec.Struct, frozen=True):
    """Before the user namespace, in which setgroups may be forbidden."""

    def describe(self) -> str:
        return "no supplementary groups"

    def apply(self, context: Context) -> None:
        os.setgroups([])


class SetIdentity(msgspec.Struct, frozen=True):
    """Real, effective, saved ids."""

    uid: int
    gid: int

    def describe(self) -> str:
        return f"gid {self.gid}, uid {self.uid}"

    def apply(self, context: Context) -> None:
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        # The uid change made us undumpable, and an ordinary user's supervisor could not take the filter's listener.
        # exec decides again for the emulator.
        process.prctl(process.PR_SET_DUMPABLE, 1)


class SetRlimits(msgspec.Struct, frozen=True):
    """Soft and hard limits."""

    wall: Wall

    def describe(self) -> str:
        return "limits: " + ", ".join(f"{limit.name}={limit.value}" for limit in self.wall.rlimits)

    def apply(self, context: Context) -> None:
        for limit in self.wall.rlimits:
            resource.setrlimit(getattr(resource, f"RLIMIT_{limit.name.upper()}"), (limit.value, limit.value))


class KeepUntilDropped(msgspec.Struct, frozen=True):
    """Only without namespaces, where leaving uid 0 would take the very capability that emptying the sets needs."""

    def describe(self) -> str:
        return "securebits locked before the uid changes"

    def apply(self, context: Context) -> None:
        caps.lock_securebits()


class DropCapabilities(msgspec.Struct, frozen=True):
    """All five sets empty, secure bits locked, no_new_privs."""

    def describe(self) -> str:
        return "capabilities: ambient, bounding, inheritable, permitted, effective all empty; securebits locked"

    def apply(self, context: Context) -> None:
        caps.clear_ambient_set()
        caps.drop_bounding_set()
        caps.lock_securebits()
        caps.capset()


class DieWithParent(msgspec.Struct, frozen=True):
    """After the uid change, which clears it; the answer proves that the parent still lives."""

    def describe(self) -> str:
        return "killed when the supervisor dies"

    def apply(self, context: Context) -> None:
        process.prctl(process.PR_SET_PDEATHSIG, 9)
        context.ask_parent("P")


class NoNewPrivileges(msgspec.Struct, frozen=True):
    """exec can never add anything again."""

    def describe(self) -> str:
        return "no_new_privs"

    def apply(self, context: Context) -> None:
        process.prctl(process.PR_SET_NO_NEW_PRIVS, 1)


class CoreCookie(msgspec.Struct, frozen=True):
    """A core scheduling cookie of our own: no other VM runs on the sibling thread at the same time."""

    def describe(self) -> str:
        return "core scheduling cookie"

    def apply(self, context: Context) -> None:
        process.prctl(process.PR_SCHED_CORE, process.PR_SCHED_CORE_CREATE, 0, process.PR_SCHED_CORE_SCOPE_THREAD_GROUP)


LABEL_ROLE = "label-attribute"
_LABEL_FILES = {"selinux": "/proc/thread-self/attr/current", "apparmor": "/proc/thread-self/attr/apparmor/current"}


class OpenLabelFile(msgspec.Struct, frozen=True):
    """Our own label's file, while there is a /proc: the kernel takes a label only from the process that opened it."""

    label: str

    def describe(self) -> str:
        return f"open {_LABEL_FILES[self.label.partition(':')[0]]}"

    def apply(self, context: Context) -> None:
        path = _LABEL_FILES[self.label.partition(":")[0]]
        context.sources[LABEL_ROLE] = os.open(path, os.O_WRONLY | os.O_CLOEXEC)


class TakeLabel(msgspec.Struct, frozen=True):
    """The LSM's label for this process and all that follows, exec included.

    Before exec and not at it: SELinux and AppArmor clear the parent-death signal when exec changes the label
    (selinux_bprm_committing_creds, apparmor_bprm_committing_creds), and no_new_privs would refuse most changes.
    After the last privileged step, which the label would forbid, and before `DieWithParent`.
    """

    label: str

    def describe(self) -> str:
        return f"label {self.label}"

    def apply(self, context: Context) -> None:
        module, _, name = self.label.partition(":")
        command = f"changeprofile {name}" if module == "apparmor" else name
        descriptor = context.sources.pop(LABEL_ROLE)
        try:
            os.write(descriptor, command.encode())
        except OSError as fault:
            raise OSError(fault.errno, os.strerror(fault.errno or 0), self.label) from fault
        os.close(descriptor)


class RestrictSelf(msgspec.Struct, frozen=True):
    """Landlock at the plan's ABI."""

    abi: int
    paths: tuple[LandlockPath, ...]
    files: bool = True

    def describe(self) -> str:
        if not self.files:
            return f"Landlock ABI {self.abi}: no TCP, no abstract sockets or signals outside"
        shown = "; ".join(f"{item.path}: {'+'.join(item.rights)}" for item in self.paths)
        return f"Landlock ABI {self.abi}: {shown}; no TCP, no abstract sockets or signals outside"

    def apply(self, context: Context) -> None:
        rules = []
        for item in self.paths:
            rights = 0
            for right in item.rights:
                rights |= _RIGHTS[right]
            if not os.path.isdir(item.path):
                rights &= landlock.FILE_RIGHTS
            rules.append((item.path, rights))
        landlock.landlock_restrict_self(self.abi, tuple(rules), files=self.files)
        context.notes["landlock_abi"] = str(self.abi)


def outer_steps(wall: Wall) -> tuple[Step, ...]:
    """Everything but the two layers that a process puts on itself last (`inner_steps` and seccomp)."""
    rooted = wall.identity.mode is IdentityMode.ROOT
    identity, steps = wall.identity, list[Step]()
    if not rooted:
        steps.append(MapIdentity(wall))
    steps.append(NewSession())
    steps.append(JoinCgroup(wall.cgroup.directories if wall.has(Layer.CGROUP) else ()))
    open_label, take_label = _label_steps(wall)
    steps += open_label
    if wall.core_cookie:
        steps.append(CoreCookie())
    if wall.has(Layer.ROOT):
        steps.append(NewRoot(wall))
    if wall.has(Layer.NAMESPACES):
        steps.append(SetHostname(wall.hostname))
        if wall.link_local:
            steps.append(AddLinkLocal(wall.link_local))
    if wall.has(Layer.IDENTITY):
        if not identity.keep_groups:
            steps.append(DropGroups())
        if rooted and wall.has(Layer.NAMESPACES):
            steps.append(NewUserNamespace(wall))
        elif rooted and wall.has(Layer.CAPABILITIES):
            steps.append(KeepUntilDropped())
        steps.append(SetIdentity(identity.uid, identity.gid))
    if wall.has(Layer.RLIMITS):
        steps.append(SetRlimits(wall))
    if wall.has(Layer.CAPABILITIES):
        steps.append(DropCapabilities())
    steps += take_label
    steps.append(DieWithParent())
    steps.append(NoNewPrivileges())
    return tuple(steps)


def _label_steps(wall: Wall) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """(early, late) steps of the label; none without one."""
    if wall.exec_label is None:
        return (), ()
    return (OpenLabelFile(wall.exec_label),), (TakeLabel(wall.exec_label),)


def inner_steps(wall: Wall) -> tuple[Step, ...]:
    """The layers that a process puts on itself last, before the seccomp filter."""
    if wall.landlock_abi >= 1 and wall.has(Layer.LANDLOCK):
        if not wall.makes_own_mounts:
            return (RestrictSelf(wall.landlock_abi, wall.landlock),)
        if wall.landlock_abi >= 4:  # the first ABI that knows more than files
            return (RestrictSelf(wall.landlock_abi, (), files=False),)
    return ()


def describe(wall: Wall) -> tuple[str, ...]:
    """The whole wall in plain words, in the order in which it is built."""
    lines = [step.describe() for step in (*outer_steps(wall), *inner_steps(wall))]
    if wall.has(Layer.SECCOMP):
        lines.append(f"seccomp allowlist {wall.profile}, default kill; start-up calls by notification")
    lines.append("exec " + " ".join(wall.argv[:1]))
    return tuple(lines)


def place_descriptors(wall: Wall, context: Context) -> None:
    """Put inherited descriptors on their planned numbers and mark every other one close-on-exec."""
    above = 256  # planned numbers are small; copies go out of their way first
    copies = {d.number: fcntl.fcntl(context.sources[d.role], fcntl.F_DUPFD_CLOEXEC, above) for d in wall.descriptors}
    process.close_range_on_exec(0)
    for number, copy in copies.items():
        os.dup2(copy, number, inheritable=True)
