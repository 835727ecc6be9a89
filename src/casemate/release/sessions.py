"""Sessions between the second and the last message: bounded in number and in time, each nonce good for one attempt.

    OPEN   a challenge was sent             -- attest, whatever comes of it --> ATTESTED or gone
    ATTESTED  at least one policy accepts   -- the time is over -->             gone

A session belongs to the peer that began it (a user of this host, a client certificate, an address): its cookie is worth
nothing elsewhere, and what is released is encrypted to the key that its evidence carries. The clock is given.
"""

from __future__ import annotations

import hmac
import secrets
import threading
from typing import Final

import msgspec

from casemate.release.protocol import NONCE_BYTES, encode_nonce
from casemate.release.tee_key import TeeKey

SESSION_S: Final = 300.0
"""trustee's default."""
SESSIONS_MAX: Final = 1024
SESSIONS_PER_PEER: Final = 64


class TooManyError(Exception):
    """No place for another session. ``whose``: ``peer`` or ``all``."""

    def __init__(self, whose: str) -> None:
        super().__init__(whose)
        self.whose = whose


class Session(msgspec.Struct):
    """One session. ``label``: names it in the log, where its cookie must not stand. ``accepted``: the resources that it
    may have, once attested."""

    cookie: str
    label: str
    peer: str
    version: str
    tee: str
    kind: str
    nonce: str
    expires: float
    token: str = ""
    key: TeeKey | None = None
    accepted: frozenset[str] = frozenset()

    @property
    def is_attested(self) -> bool:
        """Whether evidence was accepted in it."""
        return self.key is not None


class Sessions:
    """All sessions. Safe to use from several threads."""

    def __init__(
        self, lifetime_s: float = SESSION_S, most: int = SESSIONS_MAX, per_peer: int = SESSIONS_PER_PEER
    ) -> None:
        self._lifetime_s = lifetime_s
        self._most = most
        self._per_peer = per_peer
        self._open: dict[str, Session] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, *, peer: str, version: str, tee: str, kind: str, now: float) -> Session:
        """A new session with a nonce of its own.

        Raises:
            TooManyError: this peer has too many, or there are too many.
        """
        with self._lock:
            self._sweep(now)
            if sum(session.peer == peer for session in self._open.values()) >= self._per_peer:
                raise TooManyError("peer")
            if len(self._open) >= self._most:
                raise TooManyError("all")
            cookie = secrets.token_hex(16)
            session = Session(
                cookie=cookie,
                label=secrets.token_hex(8),
                peer=peer,
                version=version,
                tee=tee,
                kind=kind,
                nonce=encode_nonce(secrets.token_bytes(NONCE_BYTES)),
                expires=now + self._lifetime_s,
            )
            self._open[cookie] = session
            return session

    def take_challenge(self, cookie: str, peer: str, now: float) -> Session | None:
        """The open session of a cookie, taken out: its nonce cannot be used again, even if what follows fails."""
        with self._lock:
            session = self._find(cookie, peer, now)
            if session is None or session.is_attested:
                return None
            del self._open[cookie]
            return session

    def attested(self, session: Session) -> None:
        """Put it back, now that its evidence was accepted.

        Raises:
            RuntimeError: it was not, or was not taken out before.
        """
        if not session.is_attested or session.cookie in self._open:
            raise RuntimeError("a session is put back once, and only after its evidence was accepted")
        with self._lock:
            self._open[session.cookie] = session

    def find(self, cookie: str, peer: str, now: float) -> Session | None:
        """The session of a cookie, of this peer, within its time."""
        with self._lock:
            return self._find(cookie, peer, now)

    def find_token(self, token: str, peer: str, now: float) -> Session | None:
        """The attested session that a token was issued in."""
        with self._lock:
            self._sweep(now)
            for session in self._open.values():
                if session.token and session.peer == peer and hmac.compare_digest(session.token, token):
                    return session
            return None

    def _find(self, cookie: str, peer: str, now: float) -> Session | None:
        self._sweep(now)
        session = self._open.get(cookie)
        return session if session is not None and session.peer == peer else None

    def _sweep(self, now: float) -> None:
        # In the order in which they began, all with the same lifetime; those put back later are few.
        for cookie in [cookie for cookie, session in self._open.items() if session.expires <= now]:
            del self._open[cookie]
