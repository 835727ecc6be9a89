"""The broker: makes passt's sockets and agrees to their destinations. Standard library only.

passt's filter (`jail/egress.py`) stops it at every call that could reach a network and hands the call to us. We read
the arguments once, decide on our copy and make the call ourselves on a copy of the descriptor; passt's own call is
never let go on, so nothing that it changes afterwards matters. Fails closed: without us the filter answers ENOSYS.

Nothing here waits: sockets are made non-blocking and stay so, the filter forbids the change.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time
from typing import Final

from casemate.bpf.syscalls import numbers
from casemate.engine.egress_policy import Endpoint, Policy
from casemate.engine.egress_wire import (
    BATCH_MAX_BYTES,
    CONTROLLEN_AT,
    FLAGS_AT,
    LENGTH_AT,
    MESSAGES_MAX,
    NAMELEN_AT,
    Memory,
    Message,
    fault,
    pack_address,
    scatter,
)
from casemate.jail.ranges import DATAGRAM, OWN, PUBLISHED, STREAM
from casemate.sys import seccomp, unotify
from casemate.sys.process import pidfd_getfd
from casemate.sys.rtnetlink import RouteTable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from casemate.sys.seccomp import Notification

PEERS_MAX: Final = 4096
PEER_TTL_S: Final = 180.0
ROUNDS_MAX: Final = 64
REPORTS_MAX: Final = 32
_PROBES_MAX: Final = 512
_MSG_KEPT: Final = socket.MSG_PEEK | socket.MSG_ERRQUEUE
_KINDS: Final[dict[tuple[int, int], str]] = {
    (socket.SOCK_STREAM, 0): "tcp",
    (socket.SOCK_STREAM, socket.IPPROTO_TCP): "tcp",
    (socket.SOCK_DGRAM, 0): "udp",
    (socket.SOCK_DGRAM, socket.IPPROTO_UDP): "udp",
    (socket.SOCK_DGRAM, socket.IPPROTO_ICMP): "icmp",
    (socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6): "icmp",
}
_LOOPBACK: Final = 127


class Broker:
    """Answers one passt. Owns none of the descriptors it is given.

    Args:
        listener: the notifications of passt's filter.
        pidfd: passt.
        policy: what its guest may reach.
        routes: the routing table of the host's network namespace.
        report: takes one line of text; called a bounded number of times.

    Attributes:
        released: set once start-up is over; from then on calls that only start-up needs fail.
        bind_failures: published ports that could not be had, with the reason.
        refused: reason -> number of refusals.
    """

    def __init__(
        self, listener: int, pidfd: int, policy: Policy, routes: RouteTable, report: Callable[[str], None], machine: str
    ) -> None:
        self.listener = listener
        self.policy = policy
        self.released = False
        self.bind_failures: list[str] = []
        self.refused: dict[str, int] = {}
        self._pidfd = pidfd
        self._routes = routes
        self._report = report
        self._executed = False
        self._next = {span: span[0] for span in (PUBLISHED, DATAGRAM, STREAM)}
        self._peers: dict[tuple[Endpoint, Endpoint], float] = {}
        self._reported: set[str] = set()
        self._poller = select.poll()
        self._poller.register(listener, select.POLLIN)
        self._handlers: dict[int, Callable[[Notification, Memory], None]] = {}
        handlers = {
            "socket": self._socket,
            "bind": self._bind,
            "connect": self._connect,
            "listen": self._listen,
            "accept": self._accept,
            "accept4": self._accept,
            "sendto": self._sendto,
            "sendmsg": self._sendmsg,
            "sendmmsg": self._sendmmsg,
            "recvfrom": self._recvfrom,
            "recvmsg": self._recvmsg,
            "recvmmsg": self._recvmmsg,
            "fcntl": self._fcntl,
        }
        table = numbers(machine)
        for name, handler in handlers.items():
            self._handlers[table[name]] = handler
        self._execve = table["execve"]
        self._accept_nr = table["accept"]

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self.listener

    def handle_ready(self) -> bool:
        """Answer the calls that wait, a bounded number; False once passt is gone."""
        for _ in range(ROUNDS_MAX):
            ready = self._poller.poll(0)
            if not ready:
                return True
            if not ready[0][1] & select.POLLIN:
                return False  # POLLHUP: nobody has this filter any more
            try:
                call = seccomp.notif_recv(self.listener)
            except (FileNotFoundError, InterruptedError):
                continue
            self._answer(call)
        return True

    # ---- one call ---------------------------------------------------------------------------------------------------

    def _answer(self, call: Notification) -> None:
        handler = self._handlers.get(call.nr)
        try:
            if handler is None:
                self._startup_only(call)
            else:
                handler(call, Memory(call.pid))
        except (OSError, ValueError, OverflowError, struct.error) as problem:
            number = problem.errno if isinstance(problem, OSError) and problem.errno else errno.EINVAL
            with contextlib.suppress(OSError):  # answered already, or the caller died meanwhile
                seccomp.notif_send_error(self.listener, call.id, number)

    def _startup_only(self, call: Notification) -> None:
        if self.released or (call.nr == self._execve and self._executed):
            raise fault(errno.EPERM)
        self._executed = self._executed or call.nr == self._execve
        seccomp.notif_send_continue(self.listener, call.id)

    def _value(self, call: Notification, value: int = 0) -> None:
        unotify.notif_send_value(self.listener, call.id, value)

    def _own(self, call: Notification) -> bool:
        """Calls on passt's own descriptors: its empty namespace, during start-up only. True when answered."""
        if not OWN[0] <= _int(call.args[0]) < OWN[0] + OWN[1]:
            return False
        self._startup_only(call)
        return True

    def _copy(self, number: int) -> socket.socket:
        """A copy of passt's socket; EBADF for numbers outside of the ranges where sockets of ours are."""
        if not any(first <= number < first + size for first, size in (PUBLISHED, DATAGRAM, STREAM)):
            raise fault(errno.EBADF)
        descriptor = pidfd_getfd(self._pidfd, number)
        try:
            return socket.socket(fileno=descriptor)
        except OSError:
            os.close(descriptor)
            raise

    def _place(self, call: Notification, made: socket.socket, span: tuple[int, int], *, close_on_exec: bool) -> None:
        """Put ``made`` on a free number of ``span`` and make that number the call's result."""
        first, size = span
        for _ in range(min(size, _PROBES_MAX)):
            number = self._next[span]
            self._next[span] = first + (number + 1 - first) % size
            try:
                os.close(pidfd_getfd(self._pidfd, number))
            except OSError as problem:
                if problem.errno != errno.EBADF:
                    raise
                unotify.notif_addfd(self.listener, call.id, made.fileno(), number, close_on_exec=close_on_exec)
                return
        raise fault(errno.EMFILE)

    def _refuse(self, protocol: str, to: Endpoint, why: str) -> OSError:
        self.refused[why] = self.refused.get(why, 0) + 1
        line = f"egress refused: {protocol} {to.text}: {why}"
        if line not in self._reported and len(self._reported) < REPORTS_MAX:
            self._reported.add(line)
            self._report(line)
        return fault(errno.EACCES)

    # ---- sockets ----------------------------------------------------------------------------------------------------

    def _socket(self, call: Notification, _memory: Memory) -> None:
        family, kind, protocol = (_int(value) for value in call.args[:3])
        if family in {socket.AF_UNIX, socket.AF_NETLINK}:
            self._startup_only(call)
            return
        flags = kind & (socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        kind &= ~flags
        name = _KINDS.get((kind, protocol)) if family in {socket.AF_INET, socket.AF_INET6} else None
        if name is None:
            raise fault(errno.EAFNOSUPPORT)
        span = STREAM if name == "tcp" else DATAGRAM if self.released or name == "icmp" else PUBLISHED
        with socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol) as made:
            self._place(call, made, span, close_on_exec=bool(flags & socket.SOCK_CLOEXEC))

    def _bind(self, call: Notification, memory: Memory) -> None:
        """Published ports exactly; everything else gets a port that the kernel chooses.

        passt binds an outgoing UDP socket to the guest's source port, and would so take ports of the host.
        """
        if self._own(call):
            return
        where = memory.address(call.args[1], _int(call.args[2]))
        with self._copy(_int(call.args[0])) as mine:
            protocol = _protocol(mine)
            if self.policy.is_published(protocol, where):
                self._bind_published(mine, protocol, where)
            elif any(where.address) or protocol == "tcp":
                raise fault(errno.EACCES)
            else:
                port = where.port if protocol == "icmp" else 0
                mine.bind(_python_address(Endpoint(where.family, where.address, port)))
        self._value(call)

    def _bind_published(self, mine: socket.socket, protocol: str, where: Endpoint) -> None:
        try:
            mine.bind(_python_address(where))
        except OSError as problem:
            if not self.released:
                self.bind_failures.append(f"{where.text}/{protocol}: {problem.strerror}")
            raise

    def _listen(self, call: Notification, _memory: Memory) -> None:
        with self._copy(_int(call.args[0])) as mine:
            if not self.policy.is_published(_protocol(mine), _local(mine)):
                raise fault(errno.EACCES)
            mine.listen(max(0, min(_int(call.args[1]), 4096)))
        self._value(call)

    def _accept(self, call: Notification, memory: Memory) -> None:
        flags = _int(call.args[3]) if call.nr != self._accept_nr else 0
        with self._copy(_int(call.args[0])) as mine:
            accepted, name = mine.accept()
            peer = _endpoint(mine.family, name)
        with accepted:
            accepted.setblocking(False)
            memory.give_address(call.args[1], call.args[2], pack_address(peer))
            self._place(call, accepted, STREAM, close_on_exec=bool(flags & socket.SOCK_CLOEXEC))

    def _connect(self, call: Notification, memory: Memory) -> None:
        if self._own(call):
            return
        to = memory.address(call.args[1], _int(call.args[2]))
        with self._copy(_int(call.args[0])) as mine:
            to = self._agree(mine, _protocol(mine), to)
            mine.connect(_python_address(to))
        self._value(call)

    def _fcntl(self, call: Notification, _memory: Memory) -> None:
        """F_DUPFD_CLOEXEC: the copy stays in the range of the original."""
        number = _int(call.args[0])
        with self._copy(number) as mine:
            span = next(span for span in (PUBLISHED, DATAGRAM, STREAM) if span[0] <= number < span[0] + span[1])
            self._place(call, mine, span, close_on_exec=True)

    # ---- destinations -----------------------------------------------------------------------------------------------

    def _agree(self, mine: socket.socket, protocol: str, to: Endpoint) -> Endpoint:
        """Where to send instead of ``to``: itself, or the loopback peer that passt shows as the gateway.

        Raises:
            OSError: EACCES when the guest may not send there, or what the routing table says.
        """
        if protocol == "udp" and self.policy.published:
            answered = self._answered_peer(_local(mine), to)
            if answered is not None:
                return answered
        why = self.policy.refusal(protocol, to, self._routes.kind)
        if why:
            raise self._refuse(protocol, to, why)
        return to

    def _note_peer(self, local: Endpoint, peer: Endpoint) -> None:
        """Someone wrote to a published port: the guest may answer for a while."""
        now = time.monotonic()
        self._peers.pop((local, peer), None)
        self._peers[(local, peer)] = now + PEER_TTL_S
        while len(self._peers) > PEERS_MAX or next(iter(self._peers.values())) < now:
            del self._peers[next(iter(self._peers))]

    def _answered_peer(self, local: Endpoint, to: Endpoint) -> Endpoint | None:
        if not self.policy.is_published("udp", local):
            return None
        candidates = [to]
        if to.address == self.policy.gateway:
            # passt shows every loopback peer under the gateway's address; versions of 2023 do not undo that.
            candidates = [
                peer
                for at, peer in self._peers
                if at == local and peer.port == to.port and peer.address[0] == _LOOPBACK
            ]
        now = time.monotonic()
        for peer in candidates:
            if self._peers.get((local, peer), 0.0) > now:
                self._note_peer(local, peer)
                return peer
        return None

    # ---- sending ----------------------------------------------------------------------------------------------------

    def _sendto(self, call: Notification, memory: Memory) -> None:
        _, data, length, _, name, name_length = call.args
        if not 0 <= length <= BATCH_MAX_BYTES:
            raise fault(errno.EMSGSIZE)
        message = Message(0, name, _int(name_length), ((data, length),), 0, 0)
        with self._copy(_int(call.args[0])) as mine:
            lengths = self._send(mine, memory, [message])
        self._value(call, lengths[0])

    def _sendmsg(self, call: Notification, memory: Memory) -> None:
        messages = memory.messages(call.args[1], 1, several=False)
        with self._copy(_int(call.args[0])) as mine:
            lengths = self._send(mine, memory, messages)
        self._value(call, lengths[0])

    def _sendmmsg(self, call: Notification, memory: Memory) -> None:
        count = min(call.args[2] & 0xFFFF_FFFF, MESSAGES_MAX)
        messages = memory.messages(call.args[1], count, several=True)
        with self._copy(_int(call.args[0])) as mine:
            lengths = self._send(mine, memory, messages)
        pieces = [
            (message.at + LENGTH_AT, length.to_bytes(4, "little"))
            for message, length in zip(messages, lengths, strict=False)
        ]
        memory.write(pieces)
        self._value(call, len(lengths))

    def _send(self, mine: socket.socket, memory: Memory, messages: list[Message]) -> list[int]:
        """Send datagrams in order; the lengths of those that went, at least one.

        Raises:
            OSError: what stopped the first one.
        """
        protocol = _protocol(mine)
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
                    agreed[to] = _python_address(self._agree(mine, protocol, to))
                lengths.append(mine.sendto(data, flags, agreed[to]))
            except OSError:
                if not lengths:
                    raise
                break
        return lengths

    # ---- receiving on published UDP ports ---------------------------------------------------------------------------

    def _recvfrom(self, call: Notification, memory: Memory) -> None:
        number, data, length, flags, name, name_length = call.args
        message = Message(0, 0, 128, ((data, min(length, BATCH_MAX_BYTES)),), 0, 0)
        with self._copy(_int(number)) as mine:
            got, payload, _, _, sender = self._receive(mine, message, _int(flags))
        memory.write(scatter(message, payload))
        memory.give_address(name, name_length, sender)
        self._value(call, got)

    def _recvmsg(self, call: Notification, memory: Memory) -> None:
        message = memory.messages(call.args[1], 1, several=False)[0]
        with self._copy(_int(call.args[0])) as mine:
            got = self._receive_into(mine, memory, message, _int(call.args[2]))
        self._value(call, got)

    def _recvmmsg(self, call: Notification, memory: Memory) -> None:
        count = min(call.args[2] & 0xFFFF_FFFF, MESSAGES_MAX)
        messages = memory.messages(call.args[1], count, several=True)
        done = 0
        with self._copy(_int(call.args[0])) as mine:
            for message in messages:
                try:
                    got = self._receive_into(mine, memory, message, _int(call.args[3]))
                except OSError:
                    if not done:
                        raise
                    break
                memory.write([(message.at + LENGTH_AT, got.to_bytes(4, "little"))])
                done += 1
        self._value(call, done)

    def _receive_into(self, mine: socket.socket, memory: Memory, message: Message, flags: int) -> int:
        got, payload, control, got_flags, sender = self._receive(mine, message, flags)
        pieces = scatter(message, payload)
        if message.name:
            pieces.append((message.name, sender[: message.name_length]))
        if message.control:
            pieces.append((message.control, control))
        pieces.append((message.at + NAMELEN_AT, len(sender).to_bytes(4, "little")))
        pieces.append((message.at + CONTROLLEN_AT, len(control).to_bytes(8, "little")))
        pieces.append((message.at + FLAGS_AT, (got_flags & 0xFFFF_FFFF).to_bytes(4, "little")))
        memory.write(pieces)
        return got

    def _receive(self, mine: socket.socket, message: Message, flags: int) -> tuple[int, bytes, bytes, int, bytes]:
        """Length, bytes, control bytes, flags and sender of one datagram; its sender may be answered from now on."""
        kept = flags & _MSG_KEPT | socket.MSG_DONTWAIT
        room = min(message.length, BATCH_MAX_BYTES)
        payload, control, got_flags, name = mine.recvmsg(room, min(message.control_length, 4096), kept)
        sender = _endpoint(mine.family, name) if name else None
        if sender is not None and not (flags | got_flags) & socket.MSG_ERRQUEUE and mine.type == socket.SOCK_DGRAM:
            # An entry of the error queue bears the address that the guest wrote to, which proves nothing.
            local = _local(mine)
            if self.policy.is_published("udp", local):
                self._note_peer(local, sender)
        raw = pack_address(sender) if sender is not None else b""
        return len(payload), payload, _pack_control(control), got_flags, raw


def _int(value: int) -> int:
    """An argument that the kernel reads as a 32-bit int."""
    value &= 0xFFFF_FFFF
    return value - (1 << 32) if value >> 31 else value


def _protocol(mine: socket.socket) -> str:
    name = _KINDS.get((mine.type, mine.proto))
    if name is None:
        raise fault(errno.EBADF)
    return name


def _endpoint(family: int, name: tuple[Any, ...]) -> Endpoint:
    """An address as Python gives it."""
    return Endpoint(int(family), socket.inet_pton(family, str(name[0]).partition("%")[0]), int(name[1]))


def _python_address(endpoint: Endpoint) -> tuple[str, int]:
    return socket.inet_ntop(endpoint.family, endpoint.address), endpoint.port


def _local(mine: socket.socket) -> Endpoint:
    return _endpoint(mine.family, mine.getsockname())


def _pack_control(control: list[tuple[int, int, bytes]]) -> bytes:
    """Control messages as cmsg(3) lays them out: length, level, type, data, padded to 8 bytes."""
    parts = [
        struct.pack("=Qii", 16 + len(data), level, kind) + data + bytes(-len(data) % 8) for level, kind, data in control
    ]
    return b"".join(parts)
