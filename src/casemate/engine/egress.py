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
from typing import Final

from casemate.bpf.syscalls import numbers
from casemate.engine.egress_datagrams import (
    SOCKETS_MAX,
    Destinations,
    cookie_of,
    endpoint_of,
    local_of,
    protocol_name,
    protocol_of,
    python_address,
    receive,
    receive_into,
    same_family,
    send,
)
from casemate.engine.egress_policy import Endpoint, Policy
from casemate.engine.egress_wire import (
    BATCH_MAX_BYTES,
    LENGTH_AT,
    MESSAGES_MAX,
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

    from casemate.sys.seccomp import Notification

ROUNDS_MAX: Final = 64
BACKLOG_MAX: Final = 4096
_PROBES_MAX: Final = 512
_SPANS: Final = (PUBLISHED, DATAGRAM, STREAM)


class Broker:
    """Answers one passt. Owns none of the descriptors it is given.

    Args:
        listener: the notifications of passt's filter.
        pidfd: passt.
        policy: what its guest may reach.
        routes: the routing table of the host's network namespace.
        report: takes one line of text; called a bounded number of times.
        machine: as ``uname -m`` says.

    Attributes:
        released: set once start-up is over; from then on calls that only start-up needs fail.
        bind_failures: published ports that could not be had, with the reason.
        destinations: what was refused, and why.
    """

    def __init__(
        self, listener: int, pidfd: int, policy: Policy, routes: RouteTable, report: Callable[[str], None], machine: str
    ) -> None:
        self.listener = listener
        self.policy = policy
        self.released = False
        self.bind_failures: list[str] = []
        self.destinations = Destinations(policy, routes.kind, report)
        self._pidfd = pidfd
        self._executed = False
        self._asked: dict[bytes, int] = {}
        self._next = {span: span[0] for span in _SPANS}
        self._poller = select.poll()
        self._poller.register(listener, select.POLLIN)
        table = numbers(machine)
        self._execve = table["execve"]
        self._accept_nr = table.get("accept", -1)
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
            "getsockname": self._getsockname,
        }
        self._handlers = {table[name]: handler for name, handler in handlers.items()}

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
            number = (problem.errno if isinstance(problem, OSError) else 0) or errno.EINVAL
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
        if not any(first <= number < first + size for first, size in _SPANS):
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

    # ---- sockets ----------------------------------------------------------------------------------------------------

    def _socket(self, call: Notification, _memory: Memory) -> None:
        family, kind, protocol = (_int(value) for value in call.args[:3])
        if family in {socket.AF_UNIX, socket.AF_NETLINK}:
            self._startup_only(call)
            return
        flags = kind & (socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        kind &= ~flags
        name = protocol_name(family, kind, protocol)
        if name is None or (family == socket.AF_INET6 and not self.policy.gateway6):
            raise fault(errno.EAFNOSUPPORT)
        span = STREAM if name == "tcp" else DATAGRAM if self.released or name == "icmp" else PUBLISHED
        with socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol) as made:
            if family == socket.AF_INET6:  # the filter forbids passt to undo it: no IPv4 in an IPv6 address
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self._place(call, made, span, close_on_exec=bool(flags & socket.SOCK_CLOEXEC))

    def _bind(self, call: Notification, memory: Memory) -> None:
        """Published ports exactly; everything else gets a port that the kernel chooses.

        passt binds an outgoing UDP socket to the guest's source port, and would so take ports of the host.
        """
        if self._own(call):
            return
        where = memory.address(call.args[1], _int(call.args[2]))
        with self._copy(_int(call.args[0])) as mine:
            same_family(mine, where)
            protocol = protocol_of(mine)
            if self.policy.is_published(protocol, where):
                self._bind_published(mine, protocol, where)
            elif any(where.address) or protocol == "tcp":
                raise fault(errno.EACCES)
            else:
                if protocol == "udp":
                    self.destinations.close_to_strangers(mine)
                    self._remember(mine, where.port)
                port = where.port if protocol == "icmp" else 0
                mine.bind(python_address(Endpoint(where.family, where.address, port)))
        self._value(call)

    def _bind_published(self, mine: socket.socket, protocol: str, where: Endpoint) -> None:
        try:
            mine.bind(python_address(where))
        except OSError as problem:
            if not self.released:
                self.bind_failures.append(f"{where.text}/{protocol}: {problem.strerror}")
            raise

    def _remember(self, mine: socket.socket, port: int) -> None:
        self._asked[cookie_of(mine)] = port
        if len(self._asked) > SOCKETS_MAX:
            del self._asked[next(iter(self._asked))]

    def _getsockname(self, call: Notification, memory: Memory) -> None:
        """With the port that passt asked for: versions from 2025 on give a flow up that has another one."""
        with self._copy(_int(call.args[0])) as mine:
            local = local_of(mine)
            port = self._asked.get(cookie_of(mine), local.port)
        memory.give_address(call.args[1], call.args[2], pack_address(Endpoint(local.family, local.address, port)))
        self._value(call)

    def _listen(self, call: Notification, _memory: Memory) -> None:
        with self._copy(_int(call.args[0])) as mine:
            where = local_of(mine)
            if not self.policy.is_published(protocol_of(mine), where):
                raise fault(errno.EACCES)
            try:
                mine.listen(max(0, min(_int(call.args[1]), BACKLOG_MAX)))
            except OSError as problem:  # with SO_REUSEADDR only listening tells that another one listens
                if not self.released:
                    self.bind_failures.append(f"{where.text}/tcp: {problem.strerror}")
                raise
        self._value(call)

    def _accept(self, call: Notification, memory: Memory) -> None:
        flags = _int(call.args[3]) if call.nr != self._accept_nr else 0
        with self._copy(_int(call.args[0])) as mine:
            accepted, name = mine.accept()
            peer = endpoint_of(mine.family, name)
        with accepted:
            accepted.setblocking(False)
            memory.give_address(call.args[1], call.args[2], pack_address(peer))
            self._place(call, accepted, STREAM, close_on_exec=bool(flags & socket.SOCK_CLOEXEC))

    def _connect(self, call: Notification, memory: Memory) -> None:
        if self._own(call):
            return
        to = memory.address(call.args[1], _int(call.args[2]))
        with self._copy(_int(call.args[0])) as mine:
            mine.connect(python_address(self.destinations.agree(mine, protocol_of(mine), to)))
        self._value(call)

    def _fcntl(self, call: Notification, _memory: Memory) -> None:
        """F_DUPFD_CLOEXEC, all that the filter sends here: the copy stays in the range of the original."""
        number = _int(call.args[0])
        with self._copy(number) as mine:
            span = next(span for span in _SPANS if span[0] <= number < span[0] + span[1])
            self._place(call, mine, span, close_on_exec=True)

    # ---- datagrams --------------------------------------------------------------------------------------------------

    def _sendto(self, call: Notification, memory: Memory) -> None:
        number, data, length, _, name, name_length = call.args
        if not 0 <= length <= BATCH_MAX_BYTES:
            raise fault(errno.EMSGSIZE)
        message = Message(0, name, _int(name_length), ((data, length),), 0, 0)
        with self._copy(_int(number)) as mine:
            lengths = send(mine, memory, [message], self.destinations)
        self._value(call, lengths[0])

    def _sendmsg(self, call: Notification, memory: Memory) -> None:
        messages = memory.messages(call.args[1], 1, several=False)
        with self._copy(_int(call.args[0])) as mine:
            lengths = send(mine, memory, messages, self.destinations)
        self._value(call, lengths[0])

    def _sendmmsg(self, call: Notification, memory: Memory) -> None:
        count = min(call.args[2] & 0xFFFF_FFFF, MESSAGES_MAX)
        messages = memory.messages(call.args[1], count, several=True)
        with self._copy(_int(call.args[0])) as mine:
            lengths = send(mine, memory, messages, self.destinations)
        sent = zip(messages, lengths, strict=False)
        memory.write([(message.at + LENGTH_AT, length.to_bytes(4, "little")) for message, length in sent])
        self._value(call, len(lengths))

    def _recvfrom(self, call: Notification, memory: Memory) -> None:
        number, data, length, flags, name, name_length = call.args
        message = Message(0, 0, 0, ((data, min(length, BATCH_MAX_BYTES)),), 0, 0)
        with self._copy(_int(number)) as mine:
            payload, _, _, sender = receive(mine, message, _int(flags), self.destinations)
        memory.write(scatter(message, payload))
        memory.give_address(name, name_length, sender)
        self._value(call, len(payload))

    def _recvmsg(self, call: Notification, memory: Memory) -> None:
        message = memory.messages(call.args[1], 1, several=False)[0]
        with self._copy(_int(call.args[0])) as mine:
            got = receive_into(mine, memory, message, _int(call.args[2]), self.destinations)
        self._value(call, got)

    def _recvmmsg(self, call: Notification, memory: Memory) -> None:
        count = min(call.args[2] & 0xFFFF_FFFF, MESSAGES_MAX)
        done = 0
        with self._copy(_int(call.args[0])) as mine:
            for message in memory.messages(call.args[1], count, several=True):
                try:
                    got = receive_into(mine, memory, message, _int(call.args[3]), self.destinations)
                except OSError:
                    if not done:
                        raise
                    break
                memory.write([(message.at + LENGTH_AT, got.to_bytes(4, "little"))])
                done += 1
        self._value(call, done)


def _int(value: int) -> int:
    """An argument that the kernel reads as a 32-bit int."""
    value &= 0xFFFF_FFFF
    return value - (1 << 32) if value >> 31 else value
