"""HTTP/1.1 around the broker: one connection at a time, every read bounded in bytes and in time.

h11 does the protocol (no I/O of its own, refuses what is ambiguous: two lengths, lengths beside chunks, bare CR); the
sockets and the clock are ours. A request that is too large or too slow ends its connection. On a VM's serial port there
is no connection that could end: after an error, what comes is thrown away until the guest was silent for a while.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from casemate.release.broker import Answer, Asked
from casemate.release.protocol import COOKIE, problem

if TYPE_CHECKING:
    import h11

HEAD_MAX_BYTES: Final = 16 << 10
REQUEST_DEADLINE_S: Final = 10.0
"""From a request's first byte to its last; and for an answer to be taken."""
IDLE_S: Final = 15.0
SILENCE_S: Final = 1.0
REQUESTS_MAX: Final = 1000
_PIECE_BYTES: Final = 64 << 10
_COOKIE_VALUE: Final = re.compile(rf"(?:^|;)\s*{COOKIE}=([0-9a-f]{{32}})\s*(?:;|$)")
_BEARER: Final = re.compile(r"Bearer ([A-Za-z0-9_.-]{1,8192})")


class _EndedError(Exception):
    """The other side went, or the time is over."""


class _FaultError(Exception):
    """A request that is answered with an error, and the last of its connection."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Connection:
    """One connection, served until it ends."""

    def __init__(
        self,
        channel: socket.socket,
        peer: str,
        answer: Callable[[Asked], Answer],
        limit: Callable[[str, str], int],
        *,
        port_is_over: Callable[[], bool] | None = None,
    ) -> None:
        """``limit``: (method, path) to the bytes that a request may have. ``port_is_over``: this is a VM's serial port,
        where silence is nothing unusual, and asked now and then whether to go on."""
        self._channel = channel
        self._peer = peer
        self._answer = answer
        self._limit = limit
        self._is_port = port_is_over is not None
        self._is_over = port_is_over or (lambda: False)
        self._wants_head_alone = False

    def serve(self) -> None:
        """Answer requests until the other side goes, breaks a rule, or has had enough of them."""
        try:
            while self._serve_until_fault() and self._is_port:
                self._wait_for_silence()
        except _EndedError:
            return

    def _serve_until_fault(self) -> bool:
        """True after a request that broke a rule; the connection's state is lost.

        Raises:
            _EndedError: there is nobody any more.
        """
        import h11

        state = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX_BYTES)
        count = 0
        while True:
            try:
                asked = self._request(state)
                count += 1
                is_last = not self._is_port and count >= REQUESTS_MAX
                self._send(state, self._answer(asked), is_last=is_last)
                if state.our_state is h11.MUST_CLOSE or is_last:
                    return not is_last
                state.start_next_cycle()
            except _FaultError as fault:
                self._refuse(state, fault.status, str(fault))
                return True
            except h11.RemoteProtocolError as fault:
                self._refuse(state, fault.error_status_hint, "this is not HTTP as it is spoken here")
                return True

    def _request(self, state: h11.Connection) -> Asked:
        import h11

        end: float | None = None
        head: h11.Request | None = None
        body, limit = bytearray(), 0
        self._wants_head_alone = False
        while True:
            event = state.next_event()
            if event is h11.NEED_DATA:
                if head is not None and state.they_are_waiting_for_100_continue:
                    self._write(state.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
                if end is None and state.trailing_data[0]:
                    end = time.monotonic() + REQUEST_DEADLINE_S
                data = self._read(end)
                end = time.monotonic() + REQUEST_DEADLINE_S if end is None else end
                state.receive_data(data)
            elif isinstance(event, h11.Request):
                head = event
                self._wants_head_alone = event.method == b"HEAD"
                if event.http_version not in (b"1.0", b"1.1"):
                    raise _FaultError(505, "HTTP/1.1 is spoken here")
                limit = self._limit(event.method.decode("ascii"), _path(event))
                _check_length(event, limit)
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > limit:
                    raise _FaultError(413, f"more than {limit} bytes")
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return _asked(head, self._peer, bytes(body))
            else:
                raise _EndedError

    def _send(self, state: h11.Connection, answer: Answer, *, is_last: bool = False) -> None:
        import h11

        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(answer.body))),
            ("Cache-Control", "no-store"),
        ]
        if answer.cookie:
            headers.append(("Set-Cookie", f"{COOKIE}={answer.cookie}; Path=/kbs/; HttpOnly"))
        if is_last:
            headers.append(("Connection", "close"))
        data = state.send(h11.Response(status_code=answer.status, headers=headers)) or b""
        if not self._wants_head_alone:
            data += state.send(h11.Data(data=answer.body)) or b""
        data += state.send(h11.EndOfMessage()) or b""
        self._write(data)

    def _refuse(self, state: h11.Connection, status: int, why: str) -> None:
        """Say why, where it can still be said, and log it as the broker logs what has no place."""
        import h11

        self._answer(Asked("-", f"- ({why})", self._peer))
        if state.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._send(state, Answer(status, problem("SerdeError", why)), is_last=True)

    def _read(self, end: float | None) -> bytes:
        """Some bytes; ``end``: when the request has to be complete, None before its first byte."""
        while True:
            wait_s = (SILENCE_S if self._is_port else IDLE_S) if end is None else end - time.monotonic()
            try:
                self._channel.settimeout(max(wait_s, 0.001))
                data = self._channel.recv(_PIECE_BYTES)
            except TimeoutError:
                if end is not None:
                    raise _FaultError(408, f"a request that takes longer than {REQUEST_DEADLINE_S:.0f} s") from None
                if self._is_port and not self._is_over():
                    continue
                raise _EndedError from None
            except OSError:
                raise _EndedError from None
            if not data:
                raise _EndedError
            if end is not None and time.monotonic() > end:
                raise _FaultError(408, f"a request that takes longer than {REQUEST_DEADLINE_S:.0f} s")
            return data

    def _write(self, data: bytes) -> None:
        end, view = time.monotonic() + REQUEST_DEADLINE_S, memoryview(data)
        try:
            while view:
                self._channel.settimeout(max(0.001, end - time.monotonic()))
                view = view[self._channel.send(view) :]
        except OSError:
            raise _EndedError from None

    def _wait_for_silence(self) -> None:
        try:
            self._channel.settimeout(SILENCE_S)
            while self._channel.recv(_PIECE_BYTES):
                pass
        except TimeoutError:
            return
        except OSError:
            raise _EndedError from None
        raise _EndedError


def _path(head: h11.Request) -> str:
    return head.target.decode("latin-1").partition("?")[0]


def _check_length(head: h11.Request, limit: int) -> None:
    """Refuse what is too long before it is read."""
    for name, value in head.headers:
        if name == b"content-length" and int(value) > limit:
            raise _FaultError(413, f"{int(value)} bytes, and {limit} are the most")


def _asked(head: Any, peer: str, body: bytes) -> Asked:
    cookie = token = ""
    for name, value in head.headers:
        text = value.decode("latin-1")
        if name == b"cookie" and (found := _COOKIE_VALUE.search(text)):
            cookie = found[1]
        elif name == b"authorization" and (found := _BEARER.fullmatch(text)):
            token = found[1]
    return Asked(head.method.decode("ascii"), _path(head), peer, cookie, token, body)
