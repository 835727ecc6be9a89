"""What the probe tries, as data, and what it writes down. Nothing here does anything.

Bait      what the prover's parent laid out on the host: a listener, a process, a file, all harmless
Attempt   one thing a hostile program would try, as raw system calls or as the name of a routine
Record    what happened to it, as the process in the wall saw it
Sight     what the wall looks like from within, before any attempt
"""

from __future__ import annotations

import enum

import msgspec

from casemate.jail.policy import Layer

DESCRIPTOR = "descriptor"
KERNEL = "kernel"
SUPERVISOR = "supervisor"
STOPPERS = (*(layer.value for layer in Layer), DESCRIPTOR, KERNEL, SUPERVISOR)
"""What can stop an attempt: a layer of the wall; how a descriptor was opened; the kernel's own rules; the reader of
the log."""


RESULTS_FD = 960
SCRATCH_FD = 961
"""Where the prover keeps what is its own; above everything that a wall plans."""


class Group(enum.StrEnum):
    """Kinds of attempts, in the order in which they are made."""

    CONTROL = "control"
    CALLS = "calls"
    FILES = "files"
    DESCRIPTORS = "descriptors"
    PROCESSES = "processes"
    KERNEL = "kernel"
    SOCKETS = "sockets"
    IDENTITY = "identity"
    RESOURCES = "resources"


class Got(msgspec.Struct, frozen=True, tag="got"):
    """The result of an earlier step of the same attempt."""

    step: int


class Room(msgspec.Struct, frozen=True, tag="room"):
    """A zeroed buffer that the kernel may fill."""

    size_bytes: int


class Packed(msgspec.Struct, frozen=True, tag="packed"):
    """A structure in memory: ``layout`` as in the struct module, ``P`` for a pointer to a bytes or Room value."""

    layout: str
    fields: tuple[int | bytes | Room, ...]


Value = int | bytes | Got | Room | Packed
"""An argument. bytes: a pointer to them, NUL-terminated."""


class Entry(enum.StrEnum):
    """How the kernel is entered: the architecture's own way, or i386's gate on x86-64."""

    NATIVE = "native"
    INT80 = "int80"


class Call(msgspec.Struct, frozen=True):
    """One system call. ``nr`` overrides the number that the tables give for ``name``."""

    name: str
    args: tuple[Value, ...] = ()
    nr: int | None = None
    entry: Entry = Entry.NATIVE


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is tried.

    Attributes:
        what: in plain words, after "the probe tried to".
        expected: what should stop it, any of `STOPPERS`.
        steps: calls in order; all must succeed for the attempt to have reached its aim.
        undo: calls that take back what was reached.
        code: instead of ``steps``, a routine of `routines.ROUTINES`; ``amount`` is its bound.
        errnos: errno -> what answers so; the first that is in force is the stopper.
        past: errnos that come only after the permission check: the aim was reached.
        declared: reaching it is part of the plan.
        only_with: not tried when one of these layers is removed, because it would touch the host (``harm``).
        skip: why it is not tried here; empty: it is.
    """

    id: str
    group: Group
    what: str
    expected: tuple[str, ...] = (Layer.SECCOMP,)
    steps: tuple[Call, ...] = ()
    undo: tuple[Call, ...] = ()
    code: str = ""
    amount: int = 0
    errnos: tuple[tuple[int, tuple[str, ...]], ...] = ()
    past: tuple[int, ...] = ()
    declared: bool = False
    only_with: tuple[Layer, ...] = ()
    harm: str = ""
    skip: str = ""
    deadline_s: float = 3.0


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What happened to one attempt. ``stage``: 0 never began, 1 inside call ``nr``, 2 came to its end.

    ``result``, ``number`` (errno) and ``args`` belong to the last call made; ``signal`` and ``status`` say how the
    process ended; ``amount`` counts what a routine got (processes, MiB, descriptors, bytes).
    """

    id: str
    stage: int
    step: int = 0
    nr: int = -2
    args: tuple[int, ...] = ()
    result: int = 0
    number: int = 0
    amount: int = 0
    signal: int = 0
    status: int = 0
    core: bool = False
    late: bool = False


class Node(msgspec.Struct, frozen=True):
    """One entry of the root. ``kind``: file, directory, link, device, other; ``read_only``, ``nosuid`` of its mount."""

    path: str
    kind: str
    device: int
    inode: int
    rdev: int
    mode: int
    read_only: bool
    nosuid: bool


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """What the process in the wall can say of itself. Masks are bit sets of capabilities.

    ``descriptors``: (number, access mode as in F_GETFL & O_ACCMODE). ``limits``: (name, soft, hard).
    ``interfaces``: names of the network namespace.
    """

    pid: int
    parent_pid: int
    uids: tuple[int, int, int]
    gids: tuple[int, int, int]
    groups: tuple[int, ...]
    effective: int
    permitted: int
    inheritable: int
    bounding: int
    ambient: int
    no_new_privs: bool
    securebits: int
    hostname: str
    descriptors: tuple[tuple[int, int], ...]
    limits: tuple[tuple[str, int, int], ...]
    interfaces: tuple[str, ...]
    tree: tuple[Node, ...] = ()
    tree_cut: bool = False
    tree_error: str = ""


class Bait(msgspec.Struct, frozen=True, kw_only=True):
    """What the host offers to be stolen; numbers and paths as the host knows them.

    ``tcp_port``, ``udp_port``: listeners on 127.0.0.1 of the host. ``abstract``: name of a listening abstract socket.
    ``paths``: (label, path) of files and directories of Casemate and of other VMs; ``sockets``: of their sockets. The
    ``*_try`` amounts bound what the resource attempts take; ``why_not``: (attempt, reason) for those left out.
    """

    pid: int
    tcp_port: int
    udp_port: int
    abstract: str
    socket_path: str
    secret_path: str
    paths: tuple[tuple[str, str], ...] = ()
    sockets: tuple[tuple[str, str], ...] = ()
    program: str = ""
    has_kvm: bool = False
    scratch: bool = False
    memory_try_mib: int = 0
    pids_try: int = 0
    nofile_try: int = 0
    fsize_bytes: int = 0
    log_bytes: int = 0
    why_not: tuple[tuple[str, str], ...] = ()
