"""Where clients come in: a Unix socket (peer: its user), TLS on TCP (peer: its certificate, or its address), and
sockets that are open already, for the serial ports of VMs (peer: the VM). One thread a connection, bounded over all and
per peer.

A client that is one too many is hung up on, and the log says so: waiting would be a place to fill.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import socket
import stat
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from casemate.errors import HostError, InputError
from casemate.release.broker import Answer, Asked, body_limit
from casemate.release.http import REQUEST_DEADLINE_S, Connection

if TYPE_CHECKING:
    import ssl

CONNECTIONS_MAX: Final = 64
CONNECTIONS_PER_PEER: Final = 16
VM: Final = "vm "
"""How peers on a VM's port begin; others begin otherwise."""
AGAIN_S: Final = 1.0
"""How often a VM that does not run is looked for."""
PAUSE_S: Final = 0.05
_BACKLOG: Final = 64
_CREDENTIALS: Final = struct.Struct("3i")


class Tls(msgspec.Struct, frozen=True):
    """``client_ca``: certificates of those who may come; empty: anybody, who is then told apart by address."""

    certificate: str
    key: str
    client_ca: str = ""


class Server:
    """Listeners and the connections that came in through them. Close it after use."""

    def __init__(self, answer: Callable[[Asked], Answer], *, most: int = CONNECTIONS_MAX) -> None:
        self._answer = answer
        self._most = most
        self._listeners: list[tuple[socket.socket, ssl.SSLContext | None]] = []
        self._peers: dict[socket.socket, str] = {}
        self._threads: set[threading.Thread] = set()
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._paths: list[tuple[str, int]] = []
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC)

    def listen_unix(self, path: str) -> None:
        """Listen on a Unix socket that only its owner may use.

        Raises:
            HostError: the place is taken, or cannot be written.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            _remove_dead_socket(path)
            before = os.umask(0o177)
            try:
                listener.bind(path)
            finally:
                os.umask(before)
            listener.listen(_BACKLOG)
        except OSError as fault:
            listener.close()
            raise HostError(f"cannot listen on {path}", got=fault.strerror or str(fault)) from None
        self._paths.append((path, os.stat(path).st_ino))
        self._listeners.append((listener, None))

    def listen_tls(self, host: str, port: int, tls: Tls) -> int:
        """Listen on TCP, TLS 1.3 only. Returns the port.

        Raises:
            InputError: certificate or key are none. HostError: the address cannot be had.
        """
        context = _tls_context(tls)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as fault:
            raise HostError(f"cannot listen on {host} port {port}", got=fault.strerror or str(fault)) from None
        self._listeners.append((listener, context))
        found: int = listener.getsockname()[1]
        return found

    def serve_port(self, channel: socket.socket, name: str) -> None:
        """Serve a VM's serial port, in a thread of its own, until the VM ends. Takes the socket over."""
        with self._lock:
            self._peers[channel] = VM + name
        self._start(channel, None, VM + name, is_port=True)

    def follow_port(self, connect: Callable[[], socket.socket | None], name: str) -> None:
        """Serve the serial port of each run of a VM, in a thread of its own, until `close`.

        Args:
            connect: the port of the present run, None while there is none.
        """

        def follow() -> None:
            while not self._ending.is_set():
                with self._lock:
                    self._threads.add(threading.current_thread())
                channel = connect()
                if channel is not None:
                    with self._lock:
                        self._peers[channel] = VM + name
                    self._serve(channel, None, VM + name, is_port=True)
                self._ending.wait(AGAIN_S)
            with self._lock:
                self._threads.discard(threading.current_thread())

        threading.Thread(target=follow, name=VM + name, daemon=True).start()

    def run(self) -> None:
        """Take connections until `stop`."""
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        found = {listener.fileno(): (listener, context) for listener, context in self._listeners}
        for descriptor in found:
            poller.register(descriptor, select.POLLIN)
        while True:
            for descriptor, _ in poller.poll():
                if descriptor == self._wake:
                    return
                try:
                    self._take(*found[descriptor])
                except (OSError, RuntimeError):  # it went before we took it; or no descriptor, no thread can be had
                    self._ending.wait(PAUSE_S)

    def stop(self) -> None:
        """Make `run` return; may be called from a signal handler."""
        with contextlib.suppress(OSError):
            os.write(self._woken, b"x")

    def close(self) -> None:
        """Close listeners and connections, wait for their threads, and take our sockets' names away."""
        self._ending.set()
        for listener, _ in self._listeners:
            listener.close()
        with self._lock:
            # Not the ports of VMs: the VM has that very socket, too, for the broker that comes next. They look up.
            for channel, peer in self._peers.items():
                if not peer.startswith(VM):
                    with contextlib.suppress(OSError):
                        channel.shutdown(socket.SHUT_RDWR)
            threads = list(self._threads)
        for thread in threads:  # each wakes up from its socket
            thread.join(REQUEST_DEADLINE_S)
        for path, inode in self._paths:
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino == inode:
                    os.unlink(path)
        os.close(self._wake)
        os.close(self._woken)

    def _take(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        channel, address = listener.accept()
        peer = _user_of(channel) if context is None else f"address {address[0]}"
        with self._lock:
            if (
                len(self._peers) >= self._most
                or sum(one == peer for one in self._peers.values()) >= CONNECTIONS_PER_PEER
            ):
                refused = True
            else:
                refused = False
                self._peers[channel] = peer
        if refused:
            self._answer(Asked("-", "- (too many connections)", peer))
            channel.close()
            return
        self._start(channel, context, peer)

    def _start(
        self, channel: socket.socket, context: ssl.SSLContext | None, peer: str, *, is_port: bool = False
    ) -> None:
        thread = threading.Thread(
            target=self._serve, args=(channel, context, peer, is_port), name=f"client {peer}", daemon=True
        )
        with self._lock:
            self._threads.add(thread)
        thread.start()

    def _serve(self, channel: socket.socket, context: ssl.SSLContext | None, peer: str, is_port: bool) -> None:
        wrapped = channel
        try:
            if context is not None:
                channel.settimeout(REQUEST_DEADLINE_S)
                try:
                    wrapped = context.wrap_socket(channel, server_side=True)
                except OSError as fault:
                    self._answer(Asked("-", f"- (TLS: {fault.args[-1] if fault.args else fault})", peer))
                    return
                peer = _certificate_of(wrapped) or peer
            over = self._ending.is_set if is_port else None
            Connection(wrapped, peer, self._answer, body_limit, port_is_over=over).serve()
        except Exception:  # a bug of ours ends this connection, not the server
            traceback.print_exc(file=sys.stderr)
        finally:
            with self._lock:
                self._peers.pop(channel, None)
                self._threads.discard(threading.current_thread())
            wrapped.close()
            channel.close()


def _user_of(channel: socket.socket) -> str:
    _, uid, _ = _CREDENTIALS.unpack(channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return f"uid {uid}"


def _certificate_of(channel: ssl.SSLSocket) -> str:
    encoded = channel.getpeercert(binary_form=True)
    return f"certificate {hashlib.sha256(encoded).hexdigest()}" if encoded else ""


def _tls_context(tls: Tls) -> ssl.SSLContext:
    import ssl

    try:
        mode = os.stat(tls.key)
        if mode.st_mode & 0o077 or mode.st_uid not in (0, os.geteuid()):
            raise InputError(
                f"{tls.key} is open to others",
                got=stat.filemode(mode.st_mode),
                expected="yours, mode 0600",
                next_step=f"chmod 600 {tls.key}",
            )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
        context.load_cert_chain(tls.certificate, tls.key)
        if tls.client_ca:
            context.load_verify_locations(tls.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as fault:  # ssl.SSLError is one
        raise InputError("the TLS certificate, key or client CA", got=fault.strerror or str(fault)) from None
    return context


def _remove_dead_socket(path: str) -> None:
    """A socket that nobody listens on is what a crash left; anything else stays."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
