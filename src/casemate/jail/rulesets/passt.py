"""passt, from its exec on: start-up until it has built its own sandbox and waits, then traffic.

Traced with the versions of 2023-03-09 and 2025-05-03. passt confines itself (user, mount, ipc and uts namespaces, an
empty root, no capabilities, a filter of its own): the calls for that are start-up only, and so is everything that
allocates memory, because passt works with static buffers. Where a broker answers its start-up calls (jail/egress.py),
the rules for sockets give way to the broker's.
"""

from __future__ import annotations

from casemate.jail.rules import Arg, Op, Origin, Phase, Rule
from casemate.jail.rulesets.values import (
    ARCH_SET_FS,
    EPERM,
    LOW_32,
    PR_CAPBSET_DROP,
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_SECCOMP,
    PROT_EXEC,
    SIOCGIFHWADDR,
    SIOCGIFINDEX,
    SIOCGIFNAME,
    bits_are,
    int_is,
)

_START = Phase.STARTUP
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_SOCK_STREAM, _SOCK_DGRAM, _SOCK_RAW = 1, 2, 3
# SOCK_NONBLOCK and SOCK_CLOEXEC may be there or not: versions differ.
_TYPE_MASK = LOW_32 & ~0x0008_0800

_TRAFFIC = (
    ("accept4", "the outside connects to a published port"),
    ("bind", "a source address or port, before connect"),
    ("connect", "the guest opens a TCP connection"),
    ("epoll_wait", "the main loop"),
    ("epoll_ctl", "sockets join and leave the main loop"),
    ("getsockname", "newer versions ask which port a socket got"),
    ("getsockopt", "TCP state, buffer sizes, pending errors"),
    ("recvfrom", "TCP data to the guest; QEMU's socket in older versions"),
    ("recvmsg", "TCP data is peeked at until the guest has acknowledged it"),
    ("recvmmsg", "UDP and ping replies"),
    ("sendto", "TCP data, ping"),
    ("sendmsg", "frames to QEMU, TCP data from the guest"),
    ("sendmmsg", "UDP from the guest"),
    ("shutdown", "the guest closes its half of a TCP connection"),
    ("timerfd_create", "a timer per TCP connection"),
    ("timerfd_gettime", "newer versions look whether a timer runs"),
    ("timerfd_settime", "a timer per TCP connection"),
    ("close", "ended connections"),
    ("write", "messages on standard error"),
    ("exit_group", "QEMU's side of the link was closed"),
)

_STARTUP = (
    ("access", "ld.so"),
    ("brk", "memory: everything is allocated before the first frame"),
    ("capget", "passt reads its capabilities"),
    ("capset", "passt drops them"),
    ("chdir", "on the way to its empty root"),
    ("close_range", "newer versions close what they inherited"),
    ("epoll_create1", "the main loop"),
    ("execve", "the launcher becomes passt; passt becomes its AVX2 build"),
    ("fstat", "glibc 2.41"),
    ("geteuid", "passt looks at who it is"),
    ("getegid", "passt looks at who it is"),
    ("getpid", "kept for its pid file and its messages"),
    ("getrandom", "hash secrets"),
    ("listen", "published ports"),
    ("madvise", "huge pages for its buffers"),
    ("mount", "its empty root"),
    ("newfstatat", "ld.so"),
    ("openat", "libraries, resolv.conf"),
    ("pivot_root", "its empty root"),
    ("pread64", "ld.so"),
    ("prlimit64", "raises the soft limit of open files to the hard one"),
    ("read", "libraries, resolv.conf"),
    ("readlink", "which build it is"),
    ("rseq", "glibc, once"),
    ("rt_sigaction", "SIGQUIT, SIGTERM; newer: SIGPIPE"),
    ("rt_sigprocmask", "glibc 2.41, around signal()"),
    ("set_robust_list", "glibc, once"),
    ("set_tid_address", "glibc, once"),
    ("setgid", "passt gives up group ids"),
    ("setgroups", "passt gives up groups"),
    ("setuid", "passt gives up user ids"),
    ("umount2", "the old root"),
    ("unshare", "its own user, mount, ipc, uts and pid namespaces"),
)

# (level, option)
_OPTIONS = (
    (0, 2, "IP_TTL of ping and UDP"),
    (0, 8, "IP_PKTINFO, newer versions"),
    (0, 11, "IP_RECVERR, newer versions"),
    (1, 2, "SO_REUSEADDR on published ports"),
    (1, 7, "SO_SNDBUF"),
    (1, 8, "SO_RCVBUF"),
    (1, 42, "SO_PEEK_OFF, newer versions"),
    (6, 1, "TCP_NODELAY"),
    (6, 2, "TCP_MAXSEG"),
    (6, 10, "TCP_WINDOW_CLAMP, older versions"),
    (41, 16, "IPV6_UNICAST_HOPS, newer versions"),
    (41, 25, "IPV6_RECVERR, newer versions"),
    (41, 26, "IPV6_V6ONLY"),
    (41, 49, "IPV6_RECVPKTINFO, newer versions"),
)


def _socket(family: int, kind: int, reason: str, phase: Phase = Phase.ALWAYS) -> Rule:
    return Rule("socket", reason, (int_is(0, family), bits_are(1, _TYPE_MASK, kind)), phase)


SOCKETS: tuple[Rule, ...] = (
    _socket(_AF_INET, _SOCK_STREAM, "TCP over IPv4"),
    _socket(_AF_INET, _SOCK_DGRAM, "UDP and ping over IPv4"),
    _socket(_AF_INET6, _SOCK_STREAM, "TCP over IPv6"),
    _socket(_AF_INET6, _SOCK_DGRAM, "UDP and ping over IPv6"),
    _socket(_AF_NETLINK, _SOCK_RAW, "addresses and routes of its network namespace", _START),
    _socket(_AF_UNIX, _SOCK_DGRAM, "the system log, which its root does not have", _START),
    *(Rule("setsockopt", reason, (int_is(1, level), int_is(2, name))) for level, name, reason in _OPTIONS),
    Rule("setsockopt", "NETLINK_GET_STRICT_CHK", (int_is(1, 270), int_is(2, 12)), _START),
    Rule("setsockopt", "no source routes, devices, marks or filters", origin=Origin.SOURCE, errno=EPERM),
)

RULES: tuple[Rule, ...] = (
    *(Rule(name, reason) for name, reason in _TRAFFIC),
    *SOCKETS,
    Rule("writev", "messages on standard error, newer versions"),
    *(Rule(name, reason, phase=_START) for name, reason in _STARTUP),
    Rule("arch_prctl", "glibc sets the thread pointer", (Arg(0, Op.EQ, ARCH_SET_FS),), _START),
    Rule("mmap", "ld.so maps libraries; buffers", phase=_START),
    Rule("munmap", "ld.so, where there is a cache of libraries", phase=_START, origin=Origin.SOURCE),
    Rule("mprotect", "ld.so seals relocated data", (bits_are(2, PROT_EXEC, 0),), _START),
    Rule("ioctl", "name of its template interface", (int_is(1, SIOCGIFNAME),), _START, Origin.SOURCE),
    Rule("ioctl", "hardware address of its template interface", (int_is(1, SIOCGIFHWADDR),), _START, Origin.SOURCE),
    Rule("ioctl", "index of its template interface", (int_is(1, SIOCGIFINDEX),), _START, Origin.SOURCE),
    Rule("prctl", "drops its bounding set", (int_is(0, PR_CAPBSET_DROP),), _START),
    Rule("prctl", "makes itself non-dumpable", (int_is(0, PR_SET_DUMPABLE),), _START),
    Rule("prctl", "before its own filter", (int_is(0, PR_SET_NO_NEW_PRIVS),), _START),
    Rule("prctl", "loads its own filter on top of this one", (int_is(0, PR_SET_SECCOMP),), _START),
    Rule("clock_gettime", "time of day, where the vDSO cannot say", origin=Origin.SOURCE),
    Rule("rt_sigreturn", "return from the handler of SIGTERM and SIGQUIT", origin=Origin.SOURCE),
    Rule("restart_syscall", "the kernel resumes a wait after a stop", origin=Origin.SOURCE),
)
