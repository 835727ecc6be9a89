"""The key broker: a request and who sends it in, an answer out. It decides; what it needs of the world is handed to it.

1. auth: a version and a kind of machine that we know; a place for one more session. A nonce goes out.
2. attest: the session's nonce is spent, whatever follows. The evidence carries the binding of nonce and key, it is
   true, and at least one resource's policy accepts it. Which ones is kept with the session, and the key that they go
   to.
3. resource: the session's evidence was accepted for this very resource. The secret is asked for, the decision is on
   disk, then the secret leaves, encrypted to that key.

Whoever is refused hears the kind of fault and codes of reasons, never what a policy wants; the log has all of it.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import msgspec

from casemate.errors import CasemateError, InputError
from casemate.evidence.policy import Policy
from casemate.evidence.verdict import Verified
from casemate.evidence.verify import Inputs, verify
from casemate.release import protocol
from casemate.release.decisions import Because
from casemate.release.evidence import prepare
from casemate.release.policy import KINDS
from casemate.release.sessions import Session, Sessions, TooManyError
from casemate.release.tee_key import check_key, encrypt

AUTH_MAX_BYTES: Final = 8 << 10
ATTEST_MAX_BYTES: Final = 1 << 20
"""An event log of 512 KiB in base64, and what goes with it."""
JUDGED_AT_ONCE: Final = 2
_LOGGED_CLAIMS: Final = 64
OK, UNAUTHORIZED, FORBIDDEN, NOT_FOUND, TOO_MANY, OUR_FAULT = 200, 401, 403, 404, 429, 500


class Asked(msgspec.Struct, frozen=True):
    """One request. ``peer``: who, as the listener knows it; ``cookie``, ``token``: empty when none came."""

    method: str
    path: str
    peer: str
    cookie: str = ""
    token: str = ""
    body: bytes = b""


class Answer(msgspec.Struct, frozen=True):
    """``cookie``: to be set, empty for none."""

    status: int
    body: bytes
    cookie: str = ""


class Guarded(msgspec.Struct, frozen=True):
    """One resource, ready: ``inputs`` has the attestation keys that may have it; ``read`` asks its source for the
    secret, which the broker wipes."""

    policy_name: str
    policy: Policy
    inputs: Inputs
    kinds: frozenset[str]
    read: Callable[[], bytearray]


class Log(Protocol):
    """Where decisions go; `DecisionLog` is one."""

    def write(
        self,
        event: str,
        *,
        peer: str = "",
        session: str = "",
        tee: str = "",
        resource: str = "",
        reasons: list[Because] | tuple[Because, ...] = (),
        claims: dict[str, str | int | bool] | None = None,
        evidence_sha256: str = "",
    ) -> None:
        """Append one entry; when it returns, the entry is safe."""


def body_limit(method: str, path: str) -> int:
    """How many bytes a request may have."""
    return {("POST", "auth"): AUTH_MAX_BYTES, ("POST", "attest"): ATTEST_MAX_BYTES}.get(
        (method, path.removeprefix(protocol.PREFIX)), 0
    )


class Broker:
    """One server's broker. Safe to use from several threads."""

    def __init__(
        self,
        resources: Mapping[str, Guarded],
        log: Log,
        sign_token: Callable[[dict[str, Any]], str],
        *,
        sessions: Sessions | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._resources = resources
        self._log = log
        self._sign_token = sign_token
        self._sessions = sessions or Sessions()
        self._clock = clock
        # Evidence in memory several times over (JSON, octets, fields) is what costs: not of all connections at once.
        self._judging = threading.BoundedSemaphore(JUDGED_AT_ONCE)

    def answer(self, asked: Asked) -> Answer:
        """Answer one request. A fault of ours is an answer, too: the server goes on, and nothing was released."""
        try:
            return self._answer(asked)
        except CasemateError as error:  # a secret's source, or the log: nothing leaves without an entry
            with contextlib.suppress(CasemateError):
                self._log.write("failed", peer=asked.peer, reasons=[Because("failed", str(error))])
            return _problem(OUR_FAULT, "PluginInternalError", "the broker could not do it")

    def _answer(self, asked: Asked) -> Answer:
        place = asked.path.removeprefix(protocol.PREFIX) if asked.path.startswith(protocol.PREFIX) else ""
        if (asked.method, place) == ("POST", "auth"):
            return self._auth(asked)
        if (asked.method, place) == ("POST", "attest"):
            return self._attest(asked)
        if asked.method == "GET" and place.startswith("resource/"):
            return self._resource(asked, place.removeprefix("resource/"))
        self._log.write("refused", peer=asked.peer, reasons=[Because("path", f"{asked.method} {asked.path}")])
        return _problem(NOT_FOUND, "InvalidRequestPath", "there is nothing here")

    # ---- 1. auth -----------------------------------------------------------------------------------------------------

    def _auth(self, asked: Asked) -> Answer:
        try:
            request = protocol.parse_request(asked.body)
            kind = protocol.TEES.get(request.tee)
            if kind is None:
                known = ", ".join(protocol.TEES)
                raise InputError("the kind of machine", got=request.tee, expected=known)
        except InputError as error:
            return self._refuse(asked, None, [Because("auth", str(error))], str(error))
        try:
            session = self._sessions.begin(
                peer=asked.peer, version=request.version, tee=request.tee, kind=kind, now=self._clock()
            )
        except TooManyError as error:
            why = f"too many sessions of {'this peer' if error.whose == 'peer' else 'all peers'}"
            self._log.write("refused", peer=asked.peer, reasons=[Because("sessions", why)])
            return _problem(TOO_MANY, "AttestationError", "too many sessions: try again later")
        return Answer(OK, protocol.challenge(session.nonce), session.cookie)

    # ---- 2. attest ---------------------------------------------------------------------------------------------------

    def _attest(self, asked: Asked) -> Answer:
        session = self._sessions.take_challenge(asked.cookie, asked.peer, self._clock())
        if session is None:
            why = "no open challenge of this peer has this cookie: it was used, is too old, or is somebody else's"
            return self._refuse(asked, None, [Because("session", why)], why)
        try:
            found = protocol.parse_attestation(asked.body, session.version, session.nonce)
            check_key(found.key)
            with self._judging:
                accepted, verified, reasons = self._judge(session, found)
        except InputError as error:
            return self._refuse(asked, session, [Because("attestation", str(error))], str(error))
        digest = hashlib.sha256(found.evidence).hexdigest()
        claims = dict(list(verified.claims.items())[:_LOGGED_CLAIMS]) if verified is not None else {}
        if not accepted:
            codes = ", ".join(dict.fromkeys(item.code for item in reasons))
            return self._refuse(asked, session, reasons, f"the evidence is refused: {codes}", claims, digest)
        session.key, session.accepted = found.key, frozenset(accepted)
        session.token = self._token(session)
        self._log.write(
            "attested",
            peer=asked.peer,
            session=session.label,
            tee=session.tee,
            resource=" ".join(sorted(accepted)),
            reasons=reasons,
            claims=claims,
            evidence_sha256=digest,
        )
        self._sessions.attested(session)
        return Answer(OK, msgspec.json.encode({"token": session.token}), session.cookie)

    def _judge(self, session: Session, found: protocol.Attestation) -> tuple[list[str], Verified | None, list[Because]]:
        """(resources whose policy accepts the evidence, its claims, what accepts it and the reasons of the others).

        Raises:
            InputError: the evidence is in no form of its kind.
        """
        if session.kind not in KINDS:
            raise RuntimeError("a session's kind is one of the protocol's")
        accepted: list[str] = []
        reasons: list[Because] = []
        verified: Verified | None = None
        moment = datetime.datetime.fromtimestamp(self._clock(), datetime.UTC)
        against: dict[tuple[str, tuple[str, ...]], list[Because]] = {}
        for name, guarded in self._resources.items():
            if session.kind not in guarded.kinds:
                continue
            same = (guarded.policy_name, guarded.inputs.keys)
            if same not in against:  # many resources of one policy cost one verification
                inputs = msgspec.structs.replace(guarded.inputs, moment=moment)
                evidence, inputs = prepare(session.kind, found.evidence, found.bound, inputs)
                verified = verify(evidence, inputs, guarded.policy)
                against[same] = [Because(item.code, item.message, guarded.policy_name) for item in verified.reasons]
                if verified.kind != session.kind:
                    against[same].append(Because("kind", f"{verified.kind} evidence in a session of {session.kind}"))
                against[same] += _init_data_faults(found, verified)
                reasons += [item for item in against[same] if item not in reasons]
            if not against[same]:
                accepted.append(name)
                reasons.append(Because("accepted", name, guarded.policy_name))
        if verified is None:
            reasons.append(Because("kind", f"no resource is for {session.kind} evidence"))
        return accepted, verified, reasons

    def _token(self, session: Session) -> str:
        assert session.key is not None
        now = int(self._clock())
        return self._sign_token(
            {
                "iss": "casemate",
                "iat": now,
                "nbf": now,
                "exp": int(session.expires),
                "jti": session.label,
                "tee": session.tee,
                "tee-pubkey": session.key.jwk(),
                "resources": sorted(session.accepted),
            }
        )

    # ---- 3. resource -------------------------------------------------------------------------------------------------

    def _resource(self, asked: Asked, name: str) -> Answer:
        now = self._clock()
        session = self._sessions.find(asked.cookie, asked.peer, now) if asked.cookie else None
        if session is None and asked.token:
            session = self._sessions.find_token(asked.token, asked.peer, now)
        if session is None or session.key is None:
            why = "no attested session of this peer: attest first"
            self._log.write("denied", peer=asked.peer, resource=name, reasons=[Because("session", why)])
            return _problem(UNAUTHORIZED, "TokenNotFound", why)
        guarded = self._resources.get(name)
        if guarded is None or name not in session.accepted:
            # The same words for what does not exist and what is not his: nobody learns names here.
            what = "its policy does not accept this guest" if guarded else "there is no such resource"
            self._log.write(
                "denied",
                peer=asked.peer,
                session=session.label,
                tee=session.tee,
                resource=name,
                reasons=[Because("policy", what)],
            )
            return _problem(FORBIDDEN, "PolicyDeny", "there is no such resource for this guest")
        secret = guarded.read()
        try:
            sealed = encrypt(session.key, bytes(secret))
        finally:
            secret[:] = bytes(len(secret))
        self._log.write("released", peer=asked.peer, session=session.label, tee=session.tee, resource=name)
        return Answer(OK, sealed)

    def _refuse(
        self,
        asked: Asked,
        session: Session | None,
        reasons: list[Because],
        detail: str,
        claims: dict[str, str | int | bool] | None = None,
        digest: str = "",
    ) -> Answer:
        self._log.write(
            "refused",
            peer=asked.peer,
            session=session.label if session else "",
            tee=session.tee if session else "",
            reasons=reasons,
            claims=claims,
            evidence_sha256=digest,
        )
        return _problem(UNAUTHORIZED, "AttestationError", detail)


def _init_data_faults(found: protocol.Attestation, verified: Verified) -> list[Because]:
    """Init-data that came along must be what the evidence was begun with: host data, MRCONFIGID, or PCR 8."""
    if found.init_data is None:
        return []
    digest = protocol.init_data_digest(found.init_data)
    register = hashlib.sha256(bytes(32) + digest).hexdigest() if len(digest) == 32 else ""
    bound = {
        "sev-snp": ("host-data", digest[:32].ljust(32, b"\0").hex()),
        "tdx": ("mrconfigid", digest[:48].ljust(48, b"\0").hex()),
    }.get(verified.kind, ("sha256-pcr8", register))
    if not bound[1] or verified.claims.get(bound[0]) != bound[1]:
        return [Because("init-data", f"the evidence's {bound[0]} is not that of the init-data that came along")]
    return []


def _problem(status: int, kind: str, detail: str) -> Answer:
    return Answer(status, protocol.problem(kind, detail))
