"""One question to the kernel's routing table over rtnetlink(7): what kind of destination is this address?"""

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
_RTA_DST: Final = 1
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

        Raises:
            OSError: no route (ENETUNREACH and the like), or the kernel gave no usable answer (EIO).
        """
        self._sequence = (self._sequence + 1) & 0xFFFF_FFFF
        attribute = struct.pack("=HH", 4 + len(address), _RTA_DST) + address
        body = _ROUTE.pack(family, len(address) * 8, 0, 0, 0, 0, 0, 0, 0) + attribute
        header = _HEADER.pack(_HEADER.size + len(body), RTM_GETROUTE, NLM_F_REQUEST, self._sequence, 0)
        self.socket.sendto(header + body, (0, 0))
        while True:
            data, sender = self.socket.recvfrom(_REPLY_MAX_BYTES)
            if sender[0] != 0 or len(data) < _HEADER.size:
                continue  # only the kernel has port 0
            _length, kind, _flags, sequence, _port = _HEADER.unpack_from(data)
            if sequence == self._sequence:
                return _route_kind(kind, data[_HEADER.size :])


def _route_kind(kind: int, body: bytes) -> int:
    if kind == NLMSG_ERROR and len(body) >= 4:
        number = -int.from_bytes(body[:4], "little", signed=True)
        number = number if number > 0 else errno.EIO
        raise OSError(number, os.strerror(number), "route")
    if kind != RTM_NEWROUTE or len(body) < _ROUTE.size:
        raise OSError(errno.EIO, f"netlink answered {kind}", "route")
    route_type: int = _ROUTE.unpack_from(body)[7]
    return route_type
