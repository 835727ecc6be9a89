"""Attempts on the network and on sockets of the host. Data only.

Everything that could leave this machine goes to 127.0.0.1, where a listener of the prover's parent waits.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from casemate.jail.policy import Layer
from casemate.jail.probe.model import Attempt, Bait, Call, Got, Group

ENOENT, EPERM, EACCES, ECONNREFUSED, ENETUNREACH, EADDRNOTAVAIL, EAFNOSUPPORT = 2, 1, 13, 111, 101, 99, 97
_NETWORK: Final = (
    (EACCES, (Layer.LANDLOCK, Layer.IDENTITY)),
    (ENETUNREACH, (Layer.NAMESPACES,)),
    (EADDRNOTAVAIL, (Layer.NAMESPACES,)),
    (ECONNREFUSED, (Layer.NAMESPACES,)),
    (ENOENT, (Layer.ROOT,)),
    (EPERM, (Layer.CAPABILITIES, Layer.LANDLOCK)),
)
_CLOEXEC_NONBLOCK: Final = 0o2000000 | 0o4000
_STREAM, _DGRAM, _RAW = 1, 2, 3
_LOOPBACK: Final = socket.inet_aton("127.0.0.1")

# Families that no emulator needs; asking for one makes the kernel load its module, if the kernel is reached at all.
_RARE: Final = (
    ("ax25", 3), ("x25", 9), ("key", 15), ("packet", 17), ("rds", 21), ("pppox", 24), ("can", 29), ("tipc", 30),
    ("bluetooth", 31), ("rxrpc", 33), ("phonet", 35), ("ieee802154", 36), ("alg", 38), ("nfc", 39), ("vsock", 40),
    ("kcm", 41), ("qipcrtr", 42), ("smc", 43), ("xdp", 44), ("mctp", 45),
)  # fmt: skip

_SERVICES: Final = (
    ("dbus", "/run/dbus/system_bus_socket"),
    ("docker", "/run/docker.sock"),
    ("libvirt", "/run/libvirt/libvirt-sock"),
    ("containerd", "/run/containerd/containerd.sock"),
    ("systemd", "/run/systemd/private"),
)


def _inet(port: int) -> bytes:
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + _LOOPBACK + bytes(8)


def _inet6(port: int) -> bytes:
    return struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", port, 0) + bytes(15) + b"\x01" + bytes(4)


def _unix(path: str) -> bytes:
    return struct.pack("=H", socket.AF_UNIX) + path.encode()[:107] + b"\0"


def _abstract(name: str) -> bytes:
    return struct.pack("=H", socket.AF_UNIX) + b"\0" + name.encode()


def _attempt(
    name: str, what: str, *steps: Call, expected: tuple[str, ...], only_with: tuple[Layer, ...] = (), harm: str = ""
) -> Attempt:
    return Attempt(
        id=f"sockets.{name}",
        group=Group.SOCKETS,
        what=what,
        steps=steps,
        expected=(Layer.SECCOMP, *expected),
        errnos=_NETWORK,
        only_with=only_with,
        harm=harm,
    )


def _socket(family: int, kind: int, protocol: int = 0) -> Call:
    return Call("socket", (family, kind | (_CLOEXEC_NONBLOCK if kind == _DGRAM else 0o2000000), protocol))


def _connect(address: bytes) -> Call:
    return Call("connect", (Got(0), address, len(address)))


def socket_attempts(bait: Bait) -> tuple[Attempt, ...]:
    """Sockets of every family, and connections to what listens on the host."""
    inet, inet6 = _inet(bait.tcp_port), _inet6(bait.tcp_port)
    stream, stream6, datagram = _socket(2, _STREAM), _socket(10, _STREAM), _socket(2, _DGRAM)
    local = _socket(1, _STREAM)
    both = (Layer.NAMESPACES, Layer.LANDLOCK)
    udp = _inet(bait.udp_port)
    attempts = [
        _attempt("tcp-loopback", "connect to a TCP server of the host", stream, _connect(inet), expected=both),
        _attempt(
            "tcp6-loopback", "connect to a TCP server of the host over IPv6", stream6, _connect(inet6), expected=both
        ),
        _attempt(
            "tcp-listen",
            "wait for TCP connections",
            stream,
            Call("bind", (Got(0), _inet(0), 16)),
            Call("listen", (Got(0), 1)),
            expected=(Layer.LANDLOCK,),
        ),
        _attempt(
            "udp-loopback",
            "send a datagram to the host",
            datagram,
            Call("sendto", (Got(0), b"x", 1, 0, udp, len(udp))),
            expected=(Layer.NAMESPACES,),
        ),
        _attempt("raw", "open a raw IP socket", _socket(2, _RAW, 1), expected=(Layer.CAPABILITIES,)),
        _attempt("netlink", "speak netlink", _socket(16, _RAW), expected=()),
        _attempt(
            "abstract",
            "connect to an abstract socket of the host",
            local,
            _connect(_abstract(bait.abstract)),
            expected=both,
        ),
        _attempt(
            "unix-bait",
            "connect to a socket file of the host",
            local,
            _connect(_unix(bait.socket_path)),
            expected=(Layer.ROOT,),
        ),
        _attempt("socketpair", "make a pair of sockets", Call("socketpair", (1, _STREAM, 0, b"12345678")), expected=()),
    ]
    attempts += [
        _attempt(
            f"unix-{name}",
            f"connect to {path}",
            local,
            _connect(_unix(path)),
            expected=(Layer.ROOT,),
            only_with=(Layer.ROOT,),
            harm="a service of the host",
        )
        for name, path in (*_SERVICES, *bait.sockets)
    ]
    attempts += [
        _attempt(
            f"family-{name}",
            f"open a socket of family {name}",
            Call("socket", (family, _DGRAM, 0)),
            expected=(),
            only_with=(Layer.SECCOMP,),
            harm="the kernel would load the family's module",
        )
        for name, family in _RARE
    ]
    return tuple(attempts)
