"""Datagrams on behalf of passt: whom the guest may write to, who may write to it, and the sending itself.

Inbound: a published port takes datagrams from anyone, and the guest may answer who wrote to it for as long as passt
keeps such a flow (180 s). Every other UDP socket carries a classic BPF filter that lets in only those addresses and
ports to which the broker has agreed; without it a socket of passt's is open to the whole network.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from typing import Final

from casemate.engine.egress_policy import Endpoint, Policy
from casemate.engine.egress_wire import (
    BATCH_MAX_BYTES,
    CONTROLLEN_AT,
    FLAGS_AT,
    NAMELEN_AT,
    Memory,
    Message,
    fault,
    pack_address,
    scatter,
)
from casemate.sys.sockfilter import attach_filter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PEERS_MAX: Final = 4096
PEER_TTL_S: Final = 180.0
SOCKETS_MAX: Final = 4096
SOURCES_MAX: Final = 64
REPORTS_MAX: Final = 32
_MSG_KEPT: Final = socket.MSG_PEEK | socket.MSG_ERRQUEUE
_SO_COOKIE: Final = 57
_LOOPBACK: Final = 127
_LOOPBACK6: Final = bytes(15) + b"\1"
_KINDS: Final[dict[tuple[int, int], str]] = {
    (socket.SOCK_STREAM, 0): "tcp",
    (socket.SOCK_STREAM, socket.IPPROTO_TCP): "tcp",
    (socket.SOCK_DGRAM, 0): "udp",
    (socket.SOCK_DGRAM, socket.IPPROTO_UDP): "udp",
}
_PING: Final = {int(socket.AF_INET): socket.IPPROTO_ICMP, int(socket.AF_INET6): socket.IPPROTO_ICMPV6}


class Destinations:
    """Decides about single destinations and remembers who may be answered.

    Attributes:
        refused: reason -> number of refusals.
    """

    def __init__(
        self,
        policy: Policy,
        route_kind: Callable[[int, bytes], int],
        report: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy = policy
        self.refused: dict[str, int] = {}
        self._route_kind = route_kind
        self._report = report
        self._clock = clock
        self._reported: set[str] = set()
        self._peers: dict[tuple[Endpoint, Endpoint], float] = {}
        self._sources: dict[bytes, list[Endpoint]] = {}

    def agree(self, mine: socket.socket, protocol: str, to: Endpoint) -> Endpoint:
        """Where to send instead of ``to``: itself, or the loopback peer that passt shows as the gateway.

        Raises:
            OSError: EACCES when the guest may not send there, EAFNOSUPPORT for an address of another family than the
                socket's, or what the routing table says.
        """
        same_family(mine, to)
        if protocol == "udp" and self.policy.published:
            answered = self._answered_peer(local_of(mine), to)
            if answered is not None:
                return answered
        why = self.policy.refusal(protocol, to, self._route_kind)
        if why:
            raise self._refuse(protocol, to, why)
        if protocol == "udp":
            self._let_in(mine, to)
        return to

    def close_to_strangers(self, mine: socket.socket) -> None:
        """Nobody has been written to yet: nobody may write."""
        _attach(mine, [])

    def note_peer(self, local: Endpoint, peer: Endpoint) -> None:
        """Someone wrote to a published port: the guest may answer for a while."""
        now = self._clock()
        self._peers.pop((local, peer), None)
        self._peers[(local, peer)] = now + PEER_TTL_S
        while len(self._peers) > PEERS_MAX or next(iter(self._peers.values())) < now:
            del self._peers[next(iter(self._peers))]

    def _refuse(self, protocol: str, to: Endpoint, why: str) -> OSError:
        self.refused[why] = self.refused.get(why, 0) + 1
        line = f"egress refused: {protocol} {to.text}: {why}"
        if line not in self._reported and len(self._reported) < REPORTS_MAX:
            self._reported.add(line)
            self._report(line)
        return fault(errno.EACCES)

    def _answered_peer(self, local: Endpoint, to: Endpoint) -> Endpoint | None:
        if not self.policy.is_published("udp", local):
            return None
        candidates = [to]
        if to.address in {self.policy.gateway, self.policy.gateway6}:
            # passt shows every loopback peer under the gateway's address; versions of 2023 do not undo that.
            known = (peer for at, peer in self._peers if at == local)
            candidates = [peer for peer in known if peer.port == to.port and _is_loopback(peer)]
        now = self._clock()
        for peer in candidates:
            if self._peers.get((local, peer), 0.0) > now:
                self.note_peer(local, peer)
                return peer
        return None

    def _let_in(self, mine: socket.socket, peer: Endpoint) -> None:
        """From now on ``peer`` may answer on this socket."""
        if self.policy.is_published("udp", local_of(mine)):
            return
        cookie = cookie_of(mine)
        sources = self._sources.pop(cookie, [])
        if peer not in sources:
            sources = [*sources, peer][-SOURCES_MAX:]
            _attach(mine, sources)
        self._sources[cookie] = sources
        if len(self._sources) > SOCKETS_MAX:
            del self._sources[next(iter(self._sources))]


def send(mine: socket.socket, memory: Memory, messages: list[Message], destinations: Destinations) -> list[int]:
    """Send datagrams in order; the lengths of those that went, at least one unless there were none.

    Raises:
        OSError: what stopped the first one.
    """
    protocol = protocol_of(mine)
    if protocol == "tcp" or any(message.control and message.control_length for message in messages):
        raise fault(errno.EINVAL)
    kept, total = 0, 0
    for message in messages:
        total += message.length
        if kept and total > BATCH_MAX_BYTES:
            break
        kept += 1
    messages = messages[:kept]
    payloads, names = memory.payloads(messages), memory.names(messages)
    agreed: dict[Endpoint, tuple[str, int]] = {}
    lengths: list[int] = []
    flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
    for data, to in zip(payloads, names, strict=True):
        try:
            if to is None:
                lengths.append(mine.send(data, flags))
                continue
            if to not in agreed:
                agreed[to] = python_address(destinations.agree(mine, protocol, to))
            lengths.append(mine.sendto(data, flags, agreed[to]))
        except OSError:
            if not lengths:
                raise
            break
    return lengths


def receive(
    mine: socket.socket, message: Message, flags: int, destinations: Destinations
) -> tuple[bytes, bytes, int, bytes]:
    """Bytes, control bytes, flags and sockaddr of the sender of one datagram; it may be answered from now on."""
    kept = flags & _MSG_KEPT | socket.MSG_DONTWAIT
    room = min(message.length, BATCH_MAX_BYTES)
    payload, control, got_flags, name = mine.recvmsg(room, min(message.control_length, 4096), kept)
    sender = endpoint_of(mine.family, name) if name else None
    if sender is not None and not (flags | got_flags) & socket.MSG_ERRQUEUE and protocol_of(mine) == "udp":
        # An entry of the error queue bears the address that the guest wrote to, which proves nothing.
        local = local_of(mine)
        if destinations.policy.is_published("udp", local):
            destinations.note_peer(local, sender)
    return payload, _pack_control(control), got_flags, pack_address(sender) if sender is not None else b""


def receive_into(mine: socket.socket, memory: Memory, message: Message, flags: int, destinations: Destinations) -> int:
    """One datagram into the caller's msghdr; its length."""
    payload, control, got_flags, sender = receive(mine, message, flags, destinations)
    pieces = scatter(message, payload)
    if message.name:
        pieces.append((message.name, sender[: message.name_length]))
    if message.control:
        pieces.append((message.control, control))
    pieces.append((message.at + NAMELEN_AT, len(sender).to_bytes(4, "little")))
    pieces.append((message.at + CONTROLLEN_AT, len(control).to_bytes(8, "little")))
    pieces.append((message.at + FLAGS_AT, (got_flags & 0xFFFF_FFFF).to_bytes(4, "little")))
    memory.write(pieces)
    return len(payload)


def protocol_of(mine: socket.socket) -> str:
    """``tcp``, ``udp`` or ``icmp``; EBADF for anything that we never made."""
    name = protocol_name(mine.family, mine.type, mine.proto)
    if name is None:
        raise fault(errno.EBADF)
    return name


def protocol_name(family: int, kind: int, protocol: int) -> str | None:
    """The name of a socket's family, type and protocol number, None for one that passt does not need."""
    if family not in _PING:
        return None
    if (kind, protocol) == (socket.SOCK_DGRAM, _PING[family]):
        return "icmp"
    return _KINDS.get((kind, protocol))


def same_family(mine: socket.socket, where: Endpoint) -> None:
    """EAFNOSUPPORT for an address that is not of the socket's family: Python would look it up as a name."""
    if mine.family != where.family:
        raise fault(errno.EAFNOSUPPORT)


def _is_loopback(peer: Endpoint) -> bool:
    return peer.address == _LOOPBACK6 if peer.family == socket.AF_INET6 else peer.address[0] == _LOOPBACK


def endpoint_of(family: int, name: tuple[Any, ...]) -> Endpoint:
    """An address as Python gives it."""
    return Endpoint(int(family), socket.inet_pton(family, str(name[0]).partition("%")[0]), int(name[1]))


def python_address(endpoint: Endpoint) -> tuple[str, int]:
    """An address as Python takes it."""
    return socket.inet_ntop(endpoint.family, endpoint.address), endpoint.port


def cookie_of(mine: socket.socket) -> bytes:
    """The number that the kernel gives to this socket alone, as long as it runs."""
    return mine.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8)


def local_of(mine: socket.socket) -> Endpoint:
    """Where a socket is bound."""
    return endpoint_of(mine.family, mine.getsockname())


def source_filter(sources: list[Endpoint]) -> bytes:
    """Classic BPF for a UDP socket: a datagram passes when address and port of its sender are listed; all of
    ``sources`` are of the socket's family.

    The socket's filter sees the UDP header at 0 and the IP header at SKF_NET_OFF; see linux/filter.h.
    """
    instruction = struct.Struct("=HBBI")
    drop = instruction.pack(0x06, 0, 0, 0)  # ret 0
    if not sources:
        return drop
    version, at = (0x60, 8) if sources[0].family == socket.AF_INET6 else (0x40, 12)
    code = instruction.pack(0x30, 0, 0, 0xFFF0_0000)  # ldb [version and header length]
    code += instruction.pack(0x54, 0, 0, 0xF0)  # and
    code += instruction.pack(0x15, 1, 0, version) + drop
    for source in sources:
        words = struct.unpack(f"!{len(source.address) // 4}I", source.address)
        for index, word in enumerate(words):
            code += instruction.pack(0x20, 0, 0, 0xFFF0_0000 + at + 4 * index)  # ld [source address]
            code += instruction.pack(0x15, 0, 2 * (len(words) - index) + 1, word)  # jeq else next source
        code += instruction.pack(0x28, 0, 0, 0)  # ldh [source port]
        code += instruction.pack(0x15, 0, 1, source.port)  # jeq else next source
        code += instruction.pack(0x06, 0, 0, 0xFFFF_FFFF)  # ret: keep it all
    return code + drop


def _attach(mine: socket.socket, sources: list[Endpoint]) -> None:
    attach_filter(mine.fileno(), source_filter(sources))


def _pack_control(control: list[tuple[int, int, bytes]]) -> bytes:
    """Control messages as cmsg(3) lays them out: length, level, type, data, padded to 8 bytes."""
    parts = [
        struct.pack("=Qii", 16 + len(data), level, kind) + data + bytes(-len(data) % 8) for level, kind, data in control
    ]
    return b"".join(parts)
