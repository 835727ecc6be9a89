"""A key broker client, written from the protocol's documents and from guest-components' kbs_protocol, not from our
server: its own JSON, its own binding, and joserfc to open what comes. Any transport that gives a socket will do."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
from collections.abc import Callable
from typing import Any

from joserfc import jwe
from joserfc.jwk import ECKey, RSAKey

Evidence = Callable[[bytes], object]
"""Report data (SHA-384) to evidence as JSON."""


class Answered:
    """Status, headers by lower-case name, body."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


class Client:
    """One client with a key of its own. ``connect``: a new connection; kept open between requests."""

    def __init__(self, connect: Callable[[], socket.socket], *, version: str = "0.4.0", key: str = "P-256") -> None:
        self.connect = connect
        self.version = version
        self.cookie = ""
        self.nonce = ""
        self.token = ""
        self._channel: socket.socket | None = None
        self.key: ECKey | RSAKey = (
            RSAKey.generate_key(2048, auto_kid=False) if key == "RSA" else ECKey.generate_key(key, auto_kid=False)
        )

    def jwk(self) -> dict[str, str]:
        """As `TeeKeyPair::export_pubkey` writes it."""
        public: dict[str, str] = self.key.as_dict(private=False)  # type: ignore[assignment]
        names = ("kty", "n", "e") if public["kty"] == "RSA" else ("kty", "crv", "x", "y")
        alg = "RSA-OAEP-256" if public["kty"] == "RSA" else "ECDH-ES+A256KW"
        return {**{name: public[name] for name in names}, "alg": alg}

    def auth(self, tee: str) -> Answered:
        """Request, Challenge."""
        found = self.send("POST", "/kbs/v0/auth", {"version": self.version, "tee": tee, "extra-params": self.offers()})
        if found.status == 200:
            self.nonce = found.json()["nonce"]
            self.cookie = found.headers["set-cookie"].partition(";")[0].partition("=")[2]
        return found

    def offers(self) -> object:
        """What rcar_client.rs sends."""
        return {"supported-hash-algorithms": ["sha-256", "sha-384", "sha-512"]}

    def binding(self) -> bytes:
        """Report data of the primary evidence."""
        document: dict[str, object] = {"tee-pubkey": self.jwk(), "nonce": self.nonce}
        if self.version >= "0.3.0":
            document["additional-evidence"] = ""
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha384(text.encode()).digest()

    def attestation(self, evidence: object) -> dict[str, object]:
        """The message of this version."""
        composite = {"primary_evidence": evidence, "additional_evidence": ""}
        if self.version == "0.2.0":
            return {"tee-pubkey": self.jwk(), "tee-evidence": evidence}
        if self.version == "0.3.0":
            return {"tee-pubkey": self.jwk(), "tee-evidence": composite}
        runtime = {"nonce": self.nonce, "tee-pubkey": self.jwk()}
        return {"init-data": None, "runtime-data": runtime, "tee-evidence": composite}

    def attest(self, evidence: Evidence) -> Answered:
        """Attestation, Response."""
        found = self.send("POST", "/kbs/v0/attest", self.attestation(evidence(self.binding())))
        if found.status == 200:
            self.token = found.json()["token"]
        return found

    def resource(self, name: str) -> Answered:
        """One resource, still encrypted."""
        return self.send("GET", f"/kbs/v0/resource/{name}", None)

    def open(self, answered: Answered) -> bytes:
        """Decrypt as kbs_protocol does: it serialises the header anew and authenticates that."""
        sealed = answered.json()
        header = json.loads(_url64(sealed["protected"]))
        again = {"alg": header.pop("alg"), "enc": header.pop("enc"), **_sorted(header)}
        encoded = base64.urlsafe_b64encode(json.dumps(again, separators=(",", ":")).encode()).rstrip(b"=")
        assert encoded.decode() == sealed["protected"], "kbs_protocol would authenticate another header"
        registry = jwe.JWERegistry(algorithms=["RSA-OAEP-256", "ECDH-ES+A256KW", "A256GCM"])
        found = jwe.decrypt_json(sealed, self.key, registry=registry)
        assert found.plaintext is not None
        return found.plaintext

    def send(self, method: str, path: str, document: object, *, bearer: str = "") -> Answered:
        """One request on the connection that is kept open."""
        body = b"" if document is None else json.dumps(document).encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: kbs", f"Content-Length: {len(body)}"]
        if body:
            lines.append("Content-Type: application/json")
        if self.cookie:
            lines.append(f"Cookie: other=1; kbs-session-id={self.cookie}")
        if bearer:
            lines.append(f"Authorization: Bearer {bearer}")
        if self._channel is None:
            self._channel = self.connect()
        self._channel.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        return read_answer(self._channel)

    def close(self) -> None:
        """Hang up."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def read_answer(channel: socket.socket) -> Answered:
    """One answer with a Content-Length."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = channel.recv(65536)
        if not piece:
            raise ConnectionError(f"hung up after {data[:100]!r}")
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers["content-length"]):
        piece = channel.recv(65536)
        if not piece:
            raise ConnectionError("hung up in the body")
        body += piece
    return Answered(int(first.split()[1]), headers, body)


def _sorted(value: Any) -> Any:
    return {name: _sorted(value[name]) for name in sorted(value)} if isinstance(value, dict) else value


def _url64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
