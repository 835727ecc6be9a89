"""The broker's own seccomp allowlist, by which it cannot open, execute or signal anything but passt.

Traced with Python 3.11 and 3.13 (musl is not supported); ``pid`` and ``pidfd`` are those of its passt.
"""

from __future__ import annotations

from casemate.jail.rules import Arg, Op, Origin, Profile, Rule

_LOW_32 = 0xFFFF_FFFF
_PROT_EXEC = 4
_SOCKETS = (
    ("bind", "published ports were bound before; later ones get a port of the kernel's choice"),
    ("connect", "where the policy agreed"),
    ("listen", "published ports"),
    ("accept4", "published ports"),
    ("sendto", "UDP, ping; questions to the routing table"),
    ("recvfrom", "answers of the routing table"),
    ("recvmsg", "published UDP ports"),
    ("getsockname", "which port a socket is"),
    ("getsockopt", "family, type and protocol of a copied socket"),
)
_RUNTIME = (
    ("poll", "waits for calls of passt, and for its end"),
    ("ppoll", "as poll, on architectures without it"),
    ("read", "passt's messages"),
    ("write", "log"),
    ("close", "copies of sockets"),
    ("brk", "memory"),
    ("munmap", "memory"),
    ("mremap", "memory"),
    ("madvise", "memory"),
    ("futex", "the interpreter's lock"),
    ("clock_gettime", "age of peers, where the vDSO cannot say"),
    ("rt_sigreturn", "after a signal"),
    ("rt_sigprocmask", "abort"),
    ("exit_group", "the end"),
    ("restart_syscall", "after a stop"),
)


def _int(index: int, value: int) -> Arg:
    return Arg(index, Op.MASKED_EQ, value, _LOW_32)


def broker_profile(pid: int, pidfd: int, listener: int, *, ipv6: bool = False) -> Profile:
    """The allowlist of the broker of one passt; ``ipv6``: its guest has that, too."""
    rules = [Rule(name, reason) for name, reason in (*_RUNTIME, *_SOCKETS)]
    rules += [
        Rule("mmap", "memory, never executable", (Arg(2, Op.MASKED_EQ, 0, _PROT_EXEC),)),
        Rule("socket", "on behalf of passt: IPv4", (_int(0, 2),)),
        Rule("setsockopt", "SO_ATTACH_FILTER: who may write to a UDP socket", (_int(1, 1), _int(2, 26))),
        Rule("ioctl", "take, check and answer notifications", (_int(0, listener),)),
        Rule("ioctl", "FIONBIO: accepted sockets are non-blocking", (_int(1, 0x5421),)),
        Rule("fcntl", "F_GETFL, of a copied socket", (_int(1, 3),)),
        Rule("waitid", "its passt has ended", (_int(0, 3), _int(1, pidfd))),
        Rule("pidfd_getfd", "sockets of its passt", (_int(0, pidfd),)),
        Rule("process_vm_readv", "arguments of its passt", (_int(0, pid),)),
        Rule("process_vm_writev", "results for its passt", (_int(0, pid),)),
    ]
    if ipv6:
        rules.append(Rule("socket", "on behalf of passt: IPv6", (_int(0, 10),)))
        rules.append(Rule("setsockopt", "IPV6_V6ONLY: no IPv4 through such a socket", (_int(1, 41), _int(2, 26))))
    origin = Origin.TRACED
    return Profile("broker", tuple(Rule(r.syscall, r.reason, r.args, r.phase, origin) for r in rules), ("broker",))
