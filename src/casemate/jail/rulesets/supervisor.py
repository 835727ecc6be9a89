"""The supervisor, from the moment it has nothing left to start: it loads this filter itself, so no call is start-up
only.

Unknown calls kill it, on purpose. A supervisor that tries to execute, trace, mount or open a network socket is no
longer ours; its death kills the emulator and the helpers (PDEATHSIG), and the next command finds a stale record and
says so. An errno would let it go on. Only what the interpreter tries and survives gets an errno.

Files: seccomp cannot see paths; Landlock confines it to its VM's directories (engine/confine.py).
"""

from __future__ import annotations

from casemate.jail.rules import Origin, Rule
from casemate.jail.rulesets.values import (
    ENOTTY,
    F_GETFL,
    FIONBIO,
    PROT_EXEC,
    SIGKILL,
    SO_PEERCRED,
    SOL_SOCKET,
    TCGETS,
    bits_are,
    int_is,
)

_P_PIDFD = 3

_TRACED = (
    ("poll", "the main loop"),
    ("read", "the emulator's log, the signal pipe"),
    ("write", "logs, state files, the signal pipe"),
    ("recvfrom", "console, QMP, clients"),
    ("sendto", "console, QMP, clients"),
    ("accept4", "a client of the control socket"),
    ("getsockname", "the interpreter looks at the family of a new socket"),
    ("getuid", "is the client our user?"),
    ("close", "clients, state files"),
    ("openat", "state files and logs; Landlock says which"),
    ("newfstatat", "size of a log, does a cgroup exist"),
    ("fsync", "state files"),
    ("rename", "state files are replaced, logs rotated"),
    ("unlink", "the end: sockets, state files"),
    ("rmdir", "the end: runtime directory, cgroups"),
    ("getdents64", "the end of a VM that leaves nothing behind"),
    ("clock_nanosleep", "the end: a cgroup is busy until the kernel has let go of the processes"),
    ("rt_sigaction", "signal handlers of the interpreter, at its start and end"),
    ("rt_sigreturn", "return from a signal handler"),
    ("exit_group", "the end"),
)

_SOURCE = (
    ("recvmsg", "clients, one of which may hand over a pipe"),
    ("sendmsg", "QMP's getfd, with that pipe"),
    ("fstat", "glibc 2.41 calls it instead of newfstatat"),
    ("lseek", "the interpreter reads a source file for a traceback"),
    ("brk", "memory"),
    ("munmap", "memory"),
    ("mremap", "memory"),
    ("madvise", "memory"),
    ("futex", "the interpreter's lock, were there a second thread"),
    ("truncate", "a log that cannot be renamed"),
    ("clock_gettime", "time of day, where the vDSO cannot say"),
    ("rt_sigprocmask", "abort"),
    ("restart_syscall", "the kernel resumes a wait after a stop"),
)

RULES: tuple[Rule, ...] = (
    *(Rule(name, reason) for name, reason in _TRACED),
    Rule("mmap", "memory, never executable", (bits_are(2, PROT_EXEC, 0),), origin=Origin.SOURCE),
    Rule("waitid", "ends of the emulator and the helpers, by pidfd", (int_is(0, _P_PIDFD),)),
    Rule("pidfd_send_signal", "kill of the emulator and the helpers", (int_is(1, SIGKILL),)),
    Rule("getsockopt", "who is the client?", (int_is(1, SOL_SOCKET), int_is(2, SO_PEERCRED))),
    Rule("fcntl", "is a pipe non-blocking? (wake-up descriptor of signals)", (int_is(1, F_GETFL),)),
    Rule("ioctl", "a new client's socket becomes non-blocking", (int_is(1, FIONBIO),)),
    *(Rule(name, reason, origin=Origin.SOURCE) for name, reason in _SOURCE),
    Rule("ioctl", "open() asks whether a file is a terminal", (int_is(1, TCGETS),), origin=Origin.SOURCE, errno=ENOTTY),
)
