"""CPython while it reads an image with a separately installed library (`cell/other.py`), from its exec on: one image
that it inherits read-only, one socket, and the modules of its root.

Traced on CPython 3.11 in a root without /proc, /sys and /etc. No program is started, no socket made, no thread, nothing
written but the answers. Modules are loaded before the first byte of the image is read, but Python imports lazily too,
so opening files of the root stays allowed: they are read-only, and all of them are the interpreter's.
"""

from __future__ import annotations

from typing import Final

from casemate.jail.rules import Arg, Op, Origin, Phase, Rule
from casemate.jail.rulesets.values import ARCH_SET_FS, ENOSYS, EPERM, PROT_EXEC, SIGABRT, bits_are, int_is

_START = Phase.STARTUP
_SOURCE = Origin.SOURCE
_TCGETS, _FIOCLEX = 0x5401, 0x5451
_O_WRITES: Final = 0o1103  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC

_ALWAYS = (
    ("read", "the image, questions, modules"),
    ("write", "answers, messages on standard error"),
    ("lseek", "positions in the image and in modules"),
    ("close", "modules that have been read"),
    ("brk", "malloc"),
    ("munmap", "malloc frees large blocks"),
    ("futex", "the interpreter's lock"),
    ("newfstatat", "looks for modules"),
    ("readlink", "looks for modules"),
    ("getdents64", "lists the directories of modules"),
    ("rt_sigaction", "Python's own handlers"),
    ("exit_group", "the end"),
    ("getrandom", "hash seeds"),
    ("fcntl", "close-on-exec of what it opens"),
    ("gettid", "the main thread's number"),
    ("sysinfo", "how much memory there is"),
    ("uname", "module platform"),
    ("poll", "module selectors looks whether it works; glibc before it reads random bytes"),
)
_STARTUP = (
    ("execve", "the launcher becomes the interpreter"),
    ("access", "ld.so"),
    ("set_tid_address", "glibc, once"),
    ("set_robust_list", "glibc, once"),
    ("rseq", "glibc, once"),
    ("pread64", "ld.so"),
)

RULES: tuple[Rule, ...] = (
    *(Rule(name, reason) for name, reason in _ALWAYS),
    *(Rule(name, reason, phase=_START) for name, reason in _STARTUP),
    Rule("openat", "modules, for reading only", (bits_are(2, _O_WRITES, 0),)),
    Rule("openat", "nothing is written or made", (bits_are(2, 1, 1),), errno=EPERM, origin=_SOURCE),
    Rule("mmap", "memory: never executable", (bits_are(2, PROT_EXEC, 0),)),
    Rule(
        "mmap",
        "ld.so maps code; extension modules are loaded when they are imported",
        (bits_are(2, PROT_EXEC, PROT_EXEC),),
    ),
    Rule("mprotect", "ld.so seals relocated data: never executable", (bits_are(2, PROT_EXEC, 0),)),
    Rule("arch_prctl", "glibc sets the thread pointer", (Arg(0, Op.EQ, ARCH_SET_FS),), _START),
    Rule("prlimit64", "glibc reads limits", (Arg(2, Op.EQ, 0),)),
    Rule("epoll_create1", "module selectors looks whether it works", errno=ENOSYS),
    Rule("socket", "modules look whether there is IPv6", errno=ENOSYS),
    Rule("ioctl", "isatty of a file that it opens", (int_is(1, _TCGETS),)),
    Rule("ioctl", "close-on-exec of a file that it opens", (int_is(1, _FIOCLEX),)),
    Rule("getuid", "module pathlib, when it looks for a home"),
    # Not seen, and needed by other builds or other kernels.
    Rule("fstat", "newer glibc", origin=_SOURCE),
    Rule("statx", "newer Python", errno=ENOSYS, origin=_SOURCE),
    Rule("getcwd", "module os", errno=ENOSYS, origin=_SOURCE),
    Rule("tgkill", "abort() shall look like one", (int_is(2, SIGABRT),), origin=_SOURCE),
    Rule("rt_sigreturn", "return from a signal handler", origin=_SOURCE),
    *(Rule(name, "who it is", origin=_SOURCE) for name in ("getpid", "geteuid", "getgid", "getegid")),
    *(
        Rule(name, "malloc, in other builds and for larger images", origin=_SOURCE)
        for name in ("mremap", "madvise", "pread64", "rt_sigprocmask")
    ),
    *(
        Rule(name, "the clock where the vDSO cannot say", origin=_SOURCE)
        for name in ("clock_gettime", "clock_getres", "gettimeofday", "restart_syscall")
    ),
)
