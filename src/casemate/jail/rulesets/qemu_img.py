"""qemu-img while it converts an image, from its exec on. Source and target are two NBD sockets that it inherits: it
opens no file of an image and creates none, so nothing here reads or writes a file after start-up.

Traced on QEMU 7.2 in a root without /proc, /sys and /etc. Start-up ends with its first request for the source, which is
answered only then: it has not seen a byte of the image before. A start-up call that it tries later gets ENOSYS.
"""

from __future__ import annotations

from typing import Final

from casemate.jail.rules import Arg, Op, Origin, Phase, Rule
from casemate.jail.rulesets.values import (
    ARCH_SET_FS,
    AT_EMPTY_PATH,
    CLONE_THREAD_GLIBC,
    EINVAL,
    ENOENT,
    ENOSYS,
    EOPNOTSUPP,
    F_GETFL,
    F_SETFL,
    IPPROTO_TCP,
    MADV_DONTNEED,
    PR_SET_NAME,
    PR_SET_TIMERSLACK,
    PROT_EXEC,
    SIGABRT,
    SO_TYPE,
    SO_ZEROCOPY,
    SOL_SOCKET,
    bits_are,
    int_is,
)

_START = Phase.STARTUP
_SOURCE = Origin.SOURCE
_TCP_CORK: Final = 3
_TCP_NODELAY: Final = 1

_ALWAYS = (
    ("recvmsg", "replies of both sockets"),
    ("sendmsg", "requests on both sockets"),
    ("ppoll", "the main loop"),
    ("read", "event descriptors"),
    ("write", "event descriptors, messages on standard error"),
    ("brk", "glibc malloc"),
    ("munmap", "glibc frees large blocks and stacks of ended threads"),
    ("futex", "locks, RCU"),
    ("set_robust_list", "glibc, at the start of each thread"),
    ("rseq", "glibc, at the start of each thread"),
    ("rt_sigprocmask", "coroutines, thread creation"),
    ("exit", "an idle worker ends its thread"),
    ("exit_group", "the end"),
    ("shutdown", "both sockets at the end"),
    ("close", "descriptors at the end"),
    ("getsockname", "names an inherited socket"),
    ("getpeername", "names the peer of an inherited socket"),
)

_STARTUP = (
    ("execve", "the launcher becomes qemu-img"),
    ("access", "ld.so"),
    ("set_tid_address", "glibc, once"),
    ("getrandom", "glibc and glib seed hash tables"),
    ("openat", "libraries, /dev/urandom; /proc and /sys are not there"),
    ("pread64", "ld.so"),
    ("readlink", "where it was installed"),
    ("rt_sigaction", "SIGPIPE and the coroutine signal"),
    ("signalfd4", "the main loop"),
    ("eventfd2", "event notifiers of the main loop"),
    ("sched_getaffinity", "glib and malloc count processors"),
)

RULES: tuple[Rule, ...] = (
    *(Rule(name, reason) for name, reason in _ALWAYS),
    *(Rule(name, reason, phase=_START) for name, reason in _STARTUP),
    Rule("mmap", "buffers and stacks: never executable", (bits_are(2, PROT_EXEC, 0),)),
    Rule("mmap", "ld.so maps code", (bits_are(2, PROT_EXEC, PROT_EXEC),), _START),
    Rule("mprotect", "ld.so seals relocated data, stack guards: never executable", (bits_are(2, PROT_EXEC, 0),)),
    Rule("madvise", "the stack of an ended thread", (int_is(2, MADV_DONTNEED),)),
    Rule("clone", "a worker thread that inflates clusters, RCU", (Arg(0, Op.EQ, CLONE_THREAD_GLIBC),)),
    Rule("arch_prctl", "glibc sets the thread pointer", (Arg(0, Op.EQ, ARCH_SET_FS),), _START),
    Rule("prlimit64", "glibc reads limits", (Arg(2, Op.EQ, 0),), _START),
    Rule("newfstatat", "looks at a path: there is none", (bits_are(3, AT_EMPTY_PATH, 0),), _START),
    Rule("newfstatat", "size and kind of an open descriptor", (bits_are(3, AT_EMPTY_PATH, AT_EMPTY_PATH),), _START),
    Rule("prctl", "precise timers", (int_is(0, PR_SET_TIMERSLACK),), _START),
    Rule("fcntl", "makes inherited sockets non-blocking", (int_is(1, F_GETFL),)),
    Rule("fcntl", "makes inherited sockets non-blocking", (int_is(1, F_SETFL),)),
    Rule("getsockopt", "what type an inherited socket has", (int_is(1, SOL_SOCKET), int_is(2, SO_TYPE))),
    Rule("clone3", "its flags lie in memory; glibc falls back to clone", errno=ENOSYS),
    Rule("io_uring_setup", "it probes; nothing is read from files", errno=ENOSYS),
    Rule("get_mempolicy", "libnuma's constructor; no placement is used", errno=ENOSYS),
    Rule("setsockopt", "not TCP", (int_is(1, IPPROTO_TCP), int_is(2, _TCP_CORK)), errno=EOPNOTSUPP),
    Rule("setsockopt", "not TCP", (int_is(1, IPPROTO_TCP), int_is(2, _TCP_NODELAY)), errno=EOPNOTSUPP),
    Rule("setsockopt", "zero copy", (int_is(1, SOL_SOCKET), int_is(2, SO_ZEROCOPY)), errno=EOPNOTSUPP),
    # Not seen, and needed by other builds, other kernels, or on the way to a clear end.
    Rule("set_mempolicy", "libnuma, where it finds nodes", errno=ENOSYS, origin=_SOURCE),
    Rule("statfs", "libselinux's constructor, in other builds", errno=ENOENT, origin=_SOURCE),
    Rule("mremap", "glibc grows a large block; without it copies", errno=ENOSYS, origin=_SOURCE),
    Rule("madvise", "other advice about memory is only advice", errno=EINVAL, origin=_SOURCE),
    Rule("epoll_create1", "event contexts, newer versions", phase=_START, origin=_SOURCE),
    Rule("epoll_ctl", "beyond 64 descriptors", errno=ENOSYS, origin=_SOURCE),
    Rule("fstat", "newer glibc", phase=_START, origin=_SOURCE),
    Rule("lseek", "standard error, newer glibc", phase=_START, origin=_SOURCE),
    Rule("poll", "a channel waits for its socket", origin=_SOURCE),
    Rule("gettid", "threads note their number, newer versions", origin=_SOURCE),
    Rule("getpid", "abort", origin=_SOURCE),
    Rule("tgkill", "abort() shall look like one", (int_is(2, SIGABRT),), origin=_SOURCE),
    Rule("rt_sigreturn", "return from a signal handler", origin=_SOURCE),
    Rule("clock_nanosleep", "RCU waits between grace periods", origin=_SOURCE),
    Rule("prctl", "newer versions name their threads", (int_is(0, PR_SET_NAME),), origin=_SOURCE),
    *(
        Rule(name, "the clock where the vDSO cannot say", origin=_SOURCE)
        for name in ("clock_gettime", "gettimeofday", "restart_syscall")
    ),
    Rule("membarrier", "grace periods, in some builds", origin=_SOURCE),
)
