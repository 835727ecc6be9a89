"""passt's seccomp profile with a broker in front of every call that could reach a network.

passt lives in an empty network namespace of its own: a socket that it makes itself reaches nothing. Sockets of the
host come from the broker only, which puts each on a number whose range says what it is. The filter, which can see
numbers but no addresses, lets data pass at full speed where a range makes every destination impossible but the one
that the broker agreed to, and asks the broker for everything else:

    0x0000-0x00ff  passt's own: QEMU's socket, epoll, timers, netlink of its empty namespace
    0x0100-0x01ff  UDP sockets made during start-up, that is the published ones: receiving is brokered too, which is
                   how the broker knows whom the guest may answer
    0x0800-0x0fff  other UDP and ping sockets: sending to an address is brokered, and which port they have
    0x1000-0x1fff  TCP sockets: connect, listen and accept are brokered, data is not

Nothing but the broker can put a descriptor on a number of these ranges: RLIMIT_NOFILE bounds them, dup2, dup3 and
F_DUPFD at a number do not exist for passt, and the ranges are compared under a mask of the 32 bits that the kernel
reads, so a number with rubbish above them matches as the number that the kernel will use.
"""

from __future__ import annotations

from typing import Final

from casemate.jail.ranges import DATAGRAM, OWN, PUBLISHED, STREAM, TAP_FD
from casemate.jail.rules import Arg, Op, Origin, Phase, Profile, Rule

_LOW_32: Final = 0xFFFF_FFFF
_MSG_FASTOPEN: Final = 0x2000_0000
_EPERM: Final = 1
_F_DUPFD_CLOEXEC: Final = 1030

BROKERED: Final = frozenset(
    {"socket", "bind", "connect", "listen", "accept", "accept4", "sendto", "sendmsg", "sendmmsg"}
    | {"recvfrom", "recvmsg", "recvmmsg", "fcntl", "getsockname"}
)
"""Calls of which at least some are answered by the broker for as long as passt lives."""

REPLACED: Final = BROKERED | {"setsockopt", "ioctl"}
"""Calls whose rules in a profile give way to the ones below."""

FORBIDDEN: Final = frozenset(
    {"dup", "dup2", "dup3", "clone", "clone3", "fork", "vfork", "io_uring_setup", "io_uring_enter", "io_uring_register"}
    | {"pidfd_getfd", "pidfd_open", "process_vm_readv", "process_vm_writev", "ptrace", "setns", "bpf", "socketpair"}
    | {"userfaultfd", "process_madvise", "sendfile", "splice", "open_by_handle_at"}
)
"""Calls that would undo the ranges or need no socket; a profile that allows one is refused."""


def _int_is(index: int, value: int) -> Arg:
    return Arg(index, Op.MASKED_EQ, value, _LOW_32)


def _in(index: int, span: tuple[int, int]) -> Arg:
    """Argument ``index`` is a descriptor of the range; sizes are powers of two and starts multiples of them."""
    first, size = span
    return Arg(index, Op.MASKED_EQ, first, _LOW_32 & ~(size - 1))


_NOT_FAST_OPEN: Final = Arg(3, Op.MASKED_EQ, 0, _MSG_FASTOPEN)
_NOT_FAST_OPEN_MSG: Final = Arg(2, Op.MASKED_EQ, 0, _MSG_FASTOPEN)
# (level, option): include/uapi/asm-generic/socket.h, linux/in.h, linux/in6.h, linux/tcp.h, linux/netlink.h.
_OPTIONS: Final = (
    (0, 2, "IP_TTL, newer versions"),
    (1, 2, "SO_REUSEADDR on listening sockets"),
    (1, 7, "SO_SNDBUF"),
    (1, 8, "SO_RCVBUF"),
    (1, 13, "SO_LINGER"),
    (1, 42, "SO_PEEK_OFF, newer versions"),
    (6, 1, "TCP_NODELAY"),
    (6, 2, "TCP_MAXSEG"),
    (6, 10, "TCP_WINDOW_CLAMP"),
    (6, 12, "TCP_QUICKACK"),
    (0, 8, "IP_PKTINFO, newer versions"),
    (0, 11, "IP_RECVERR, newer versions"),
    (41, 16, "IPV6_UNICAST_HOPS, newer versions"),
    (41, 25, "IPV6_RECVERR, newer versions"),
    (41, 49, "IPV6_RECVPKTINFO, newer versions"),
    (270, 11, "NETLINK_EXT_ACK, newer versions"),
    (270, 12, "NETLINK_GET_STRICT_CHK"),
)


def _rule(syscall: str, reason: str, *args: Arg, brokered: bool = False, errno: int | None = None) -> Rule:
    phase = Phase.STARTUP if brokered else Phase.ALWAYS  # STARTUP compiles to a notification, which the broker keeps
    return Rule(syscall, reason, args, phase, Origin.TRACED, errno)


def _receiving(syscall: str) -> list[Rule]:
    spans = (("its own descriptors", OWN), ("outgoing UDP and ping", DATAGRAM), ("TCP", STREAM))
    rules = [_rule(syscall, f"{what}: receiving names no destination", _in(0, span)) for what, span in spans]
    return [*rules, _rule(syscall, "published UDP ports: the broker notes who wrote", brokered=True)]


def broker_rules() -> tuple[Rule, ...]:
    """Rules for the calls of `REPLACED`."""
    rules = [
        _rule(name, "made or refused by the broker", brokered=True)
        for name in ("socket", "bind", "connect", "listen", "accept", "accept4", "sendmmsg")
    ]
    rules += [
        _rule("sendto", "no address: a connected peer only", Arg(4, Op.EQ, 0), _NOT_FAST_OPEN),
        _rule("sendto", "to an address: the broker looks at it", brokered=True),
        _rule("sendmsg", "frames to QEMU", _int_is(0, TAP_FD)),
        _rule("sendmsg", "TCP ignores an address", _in(0, STREAM), _NOT_FAST_OPEN_MSG),
        _rule("sendmsg", "UDP: the broker looks at the address", brokered=True),
        *_receiving("recvfrom"),
        *_receiving("recvmsg"),
        *_receiving("recvmmsg"),
        _rule(
            "fcntl",
            "F_DUPFD_CLOEXEC: the broker keeps the copy in its range",
            _int_is(1, _F_DUPFD_CLOEXEC),
            brokered=True,
        ),
        _rule("fcntl", "flags of QEMU's socket and of pipes", _in(0, OWN), _int_is(1, 4)),
        *(_rule("fcntl", "reads or sets close-on-exec, reads flags", _int_is(1, command)) for command in (1, 2, 3)),
        _rule("fcntl", "sockets stay non-blocking: the broker must never wait", errno=_EPERM),
    ]
    rules += [_rule("setsockopt", reason, _int_is(1, level), _int_is(2, name)) for level, name, reason in _OPTIONS]
    rules += [
        _rule(
            "setsockopt",
            "no source routes, devices, marks or filters; IPV6_V6ONLY stays as the broker set it",
            errno=_EPERM,
        ),
        _rule("ioctl", "interface name and index of its empty namespace", _in(0, OWN), brokered=True),
        *(_rule("getsockname", "which port a socket has", _in(0, span)) for span in (OWN, PUBLISHED, STREAM)),
        _rule("getsockname", "outgoing UDP: the port that it asked for", brokered=True),
        _rule("timerfd_gettime", "which of a TCP connection's timers ran out"),
    ]
    return tuple(rules)


def with_broker(profile: Profile) -> Profile:
    """``profile`` with the broker's rules in place of its own for the calls of `REPLACED`.

    Raises:
        ValueError: the profile allows a call of `FORBIDDEN`; all of them are named.
    """
    bad = sorted({rule.syscall for rule in profile.rules if rule.syscall in FORBIDDEN and rule.errno is None})
    if bad:
        raise ValueError(f"{profile.name}: calls that would go round the broker: {', '.join(bad)}")
    kept = tuple(rule for rule in profile.rules if rule.syscall not in REPLACED)
    return Profile(f"{profile.name}+broker", (*kept, *broker_rules()), (*profile.parts, "broker"))
