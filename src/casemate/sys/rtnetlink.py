"""rtnetlink(7): what kind of destination is this address; one more address for an interface."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Final

RTM_NEWROUTE: Final = 24
RTM_GETROUTE: Final = 26
NLM_F_REQUEST: Final = 1
NLMSG_ERROR: Final = 2
RTN_UNICAST: Final = 1
RTN_LOCAL: Final = 2
RTN_BROADCAST: Final = 3
RTN_ON_LINK: Final = 256
"""Ours, beyond the 8 bits of an RTN_* type: remote, by IPv6, on a network that an interface of this host is part of."""
RTM_NEWADDR: Final = 20
NLM_F_ACK: Final = 4
_NLM_F_CREATE_EXCL: Final = 0x600
_RTM_F_FIB_MATCH: Final = 0x2000
_RTA_DST: Final = 1
_GATEWAYS: Final = frozenset({5, 9, 18})
"""RTA_GATEWAY, RTA_MULTIPATH, RTA_VIA: the destination is behind a router."""
_SITE_PREFIX: Final = 48
"""The shortest IPv6 prefix that is a site's (RFC 6177). A shorter one without a gateway is a tunnel to everywhere."""
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_F_NODAD: Final = 2
_RT_SCOPE_LINK: Final = 253
_HEADER: Final = struct.Struct("=IHHII")
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
_REPLY_MAX_BYTES: Final = 65536
_WAIT_S: Final = 2


class RouteTable:
    """A netlink socket of the calling process's network namespace, as it is at construction."""

    def __init__(self, descriptor: int | None = None) -> None:
        if descriptor is None:
            self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        else:
            self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0, fileno=descriptor)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", _WAIT_S, 0))
        self._sequence = 0

    def kind(self, family: int, address: bytes) -> int:
        """The RTN_* type of the route to ``address``: RTN_UNICAST for a remote one, RTN_LOCAL for this host's own.

        IPv6 has no private addresses that everybody behind a router uses: a neighbour on this host's network has a
        public one. A remote address on a network of this host is therefore told apart, as `RTN_ON_LINK`.

        Raises:
            OSError: no route (ENETUNREACH and the like), or the kernel gave no usable answer (EIO).
        """
        self._sequence = (self._sequence + 1) & 0xFFFF_FFFF
        # The entry of the table, not a copy of it for this one address, says how wide its network is.
        flags = _RTM_F_FIB_MATCH if family == socket.AF_INET6 else 0
        body = _ROUTE.pack(family, len(address) * 8, 0, 0, 0, 0, 0, 0, flags) + _attribute(_RTA_DST, address)
        self.socket.sendto(_message(RTM_GETROUTE, NLM_F_REQUEST, self._sequence, body), (0, 0))
        return _route_kind(*_answer(self.socket, self._sequence))


def add_address(interface: int, address: str) -> None:
    """Give an interface of the calling process's network namespace a link-local IPv6 address.

    Raises:
        OSError: EPERM, EEXIST, EACCES where IPv6 is switched off (sysctl disable_ipv6), EAFNOSUPPORT without IPv6.
    """
    raw = socket.inet_pton(socket.AF_INET6, address)
    body = struct.pack("=BBBBI", socket.AF_INET6, 64, _IFA_F_NODAD, _RT_SCOPE_LINK, interface)
    body += _attribute(_IFA_LOCAL, raw) + _attribute(_IFA_ADDRESS, raw)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as talk:
        talk.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", _WAIT_S, 0))
        talk.sendto(_message(RTM_NEWADDR, NLM_F_REQUEST | NLM_F_ACK | _NLM_F_CREATE_EXCL, 1, body), (0, 0))
        kind, answer = _answer(talk, 1)
    number = -int.from_bytes(answer[:4], "little", signed=True)
    if kind != NLMSG_ERROR or len(answer) < 4 or number < 0:
        raise OSError(errno.EIO, f"netlink answered {kind}", address)
    if number:
        raise OSError(number, os.strerror(number), address)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value


def _message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def _answer(talk: socket.socket, wanted: int) -> tuple[int, bytes]:
    """Type and body of the kernel's answer to a sequence number."""
    while True:
        data, sender = talk.recvfrom(_REPLY_MAX_BYTES)
        if sender[0] != 0 or len(data) < _HEADER.size:
            continue  # only the kernel has port 0
        _length, kind, _flags, sequence, _port = _HEADER.unpack_from(data)
        if sequence == wanted:
            return kind, data[_HEADER.size :]


def _route_kind(kind: int, body: bytes) -> int:
    if kind == NLMSG_ERROR and len(body) >= 4:
        number = -int.from_bytes(body[:4], "little", signed=True)
        number = number if number > 0 else errno.EIO
        raise OSError(number, os.strerror(number), "route")
    if kind != RTM_NEWROUTE or len(body) < _ROUTE.size:
        raise OSError(errno.EIO, f"netlink answered {kind}", "route")
    family, prefix, *_, route_type, _flags = _ROUTE.unpack_from(body)
    if family != socket.AF_INET6 or route_type != RTN_UNICAST or prefix < _SITE_PREFIX:
        return int(route_type)
    return RTN_UNICAST if _GATEWAYS & _attributes(body[_ROUTE.size :]) else RTN_ON_LINK


def _attributes(raw: bytes) -> set[int]:
    """The types of the attributes, up to the first that does not fit."""
    found: set[int] = set()
    while len(raw) >= 4:
        length, kind = struct.unpack_from("=HH", raw)
        if not 4 <= length <= len(raw):
            break
        found.add(kind & 0x3FFF)  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
        raw = raw[length + -length % 4 :]
    return found
