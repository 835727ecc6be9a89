"""The wall of one process, as data. Closed by default: whatever is not listed is not there.

Nothing here knows of virtual machines: a wall confines any program, an emulator, a helper or the hostile probe.
"""

from __future__ import annotations

import enum

import msgspec


class IdentityMode(enum.StrEnum):
    """``root``: a reserved uid, set up by root. ``subid``: a subordinate uid of the caller. ``caller``: his own."""

    ROOT = "root"
    SUBID = "subid"
    CALLER = "caller"


class Identity(msgspec.Struct, frozen=True):
    """Who the process is on the host; inside its user namespace the numbers are the same, and no other exists.

    ``keep_groups``: supplementary groups cannot be dropped (a caller without newgidmap) or one is needed (/dev/kvm);
    ``groups`` are those that stay, ``kvm_group`` the one of them that owns /dev/kvm.
    """

    uid: int
    gid: int
    mode: IdentityMode
    keep_groups: bool = False
    groups: tuple[int, ...] = ()
    kvm_group: int | None = None


class Layer(enum.StrEnum):
    """The layers of a wall; `Wall.without` may name some, for ``prove --without`` only."""

    NAMESPACES = "namespaces"
    ROOT = "root"
    IDENTITY = "identity"
    CAPABILITIES = "capabilities"
    CGROUP = "cgroup"
    RLIMITS = "rlimits"
    LANDLOCK = "landlock"
    SECCOMP = "seccomp"


class BindFile(msgspec.Struct, frozen=True, tag="bind"):
    """A host file seen read-only at ``target``."""

    source: str
    target: str


class CopyFile(msgspec.Struct, frozen=True, tag="copy"):
    """The content of inherited descriptor ``role``, copied while it is hashed, then sealed read-only."""

    role: str
    target: str
    size_max_bytes: int


class Device(msgspec.Struct, frozen=True, tag="device"):
    """A character device: ``null``, ``urandom``, ``zero``, ``kvm`` or ``sev``."""

    name: str


class Link(msgspec.Struct, frozen=True, tag="link"):
    """A symbolic link inside the root."""

    target: str
    points_to: str


class Directory(msgspec.Struct, frozen=True, tag="directory"):
    """An empty directory, read-only like everything else; a place to mount on."""

    target: str


class OneShot(msgspec.Struct, frozen=True, tag="pipe"):
    """A FIFO through which the process reads descriptor ``role`` once: afterwards nothing of it lies in the root."""

    role: str
    target: str
    size_max_bytes: int


class StateDirectory(msgspec.Struct, frozen=True, tag="state"):
    """A directory of the host, writable at ``target``, without devices, set-user-ID or programs: state that stays."""

    source: str
    target: str


class Scratch(msgspec.Struct, frozen=True, tag="scratch"):
    """A small writable tmpfs of the process's own: state that ends with it. ``files_max``: directory included."""

    target: str
    size_bytes: int
    files_max: int


RootEntry = BindFile | CopyFile | Device | Link | Directory | OneShot | StateDirectory | Scratch


class Rlimit(msgspec.Struct, frozen=True):
    """One resource limit, soft = hard; ``name`` as in setrlimit(2) without RLIMIT_, lower case."""

    name: str
    value: int


class LandlockPath(msgspec.Struct, frozen=True):
    """Rights that stay on a path: any of ``read``, ``execute``, ``write``, ``ioctl``; ``replace``: make, rename and
    remove files of a directory.
    """

    path: str
    rights: tuple[str, ...]


class CgroupPlan(msgspec.Struct, frozen=True):
    """Directories to make, files to write, in this order, and the directories whose ``cgroup.procs`` the child joins.

    ``limits`` repeats the limits in the terms of cgroup v2, for people and for the read-back. ``why_none`` says why
    there is no cgroup when ``directories`` is empty.
    """

    directories: tuple[str, ...] = ()
    writes: tuple[tuple[str, str], ...] = ()
    limits: tuple[str, ...] = ()
    controllers: tuple[str, ...] = ()
    why_none: str = ""


class Descriptor(msgspec.Struct, frozen=True):
    """A descriptor that the process inherits: its number there, what it is, how it was opened."""

    number: int
    role: str
    access: str


class Wall(msgspec.Struct, frozen=True):
    """Everything about the confinement of one process.

    ``argv[0]`` is the program's path inside the new root. Environment entries are (name, value). ``makes_own_mounts``:
    Landlock takes TCP, abstract sockets and signals but no files, because under Landlock for files a program can
    neither mount nor pivot_root; for helpers that shut themselves into an empty root. ``link_local``: an IPv6 address
    for the loopback device of its empty network namespace, which stays down: nothing can be sent. ``exec_label``: the
    label that the process has at exec and ever after, ``selinux:CONTEXT`` or ``apparmor:PROFILE``.
    """

    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    root: tuple[RootEntry, ...]
    root_size_bytes: int
    identity: Identity
    rlimits: tuple[Rlimit, ...]
    landlock_abi: int
    landlock: tuple[LandlockPath, ...]
    cgroup: CgroupPlan
    descriptors: tuple[Descriptor, ...]
    profile: str
    hostname: str = "casemate"
    core_cookie: bool = False
    exec_label: str | None = None
    without: tuple[Layer, ...] = ()
    makes_own_mounts: bool = False
    link_local: str = ""

    def has(self, layer: Layer) -> bool:
        """True if the layer is in force."""
        return layer not in self.without


NAMESPACES = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
"""Every namespace that a wall makes new."""
