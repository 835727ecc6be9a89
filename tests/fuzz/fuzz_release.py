"""Fuzzes what a hostile client reaches: HTTP over a socket, the broker's messages, evidence of each kind, log lines.

Whatever comes, the server answers or hangs up, releases nothing, and raises nothing. Run for longer with
``python tests/fuzz/fuzz_release.py -max_total_time=60``; tests/fuzz/test_fuzz_release.py runs a few thousand inputs.
"""

from __future__ import annotations

import json
import socket
import sys
from functools import cache
from unittest import mock

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from casemate.errors import InputError, SpecError
from casemate.evidence.policy import Policy
from casemate.evidence.record import GENESIS, sha256_hex
from casemate.evidence.verify import Inputs
from casemate.release import http, protocol
from casemate.release.broker import Answer, Asked, Broker, Guarded, body_limit
from casemate.release.decisions import Because, Decision, sign, verify_line
from casemate.release.http import Connection
from casemate.release.policy import parse_release_policy
from casemate.release.sessions import Sessions

KINDS = ("tpm", "snp", "tdx", "azsnpvtpm", "aztdxvtpm")
KEY = {
    "kty": "EC",
    "crv": "P-256",
    "alg": "ECDH-ES+A256KW",
    "x": "axfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpY",
    "y": "T-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfU",
}
"""The curve's generator: a key that everybody has."""
SEEDS = (
    b'{"ak_public":"MCowBQYDK2VwAyEA","tpm_quote":{"signature":"ABQACw==","message":"/1RDR4AY","pcrs":[]}}',
    b'{"attestation_report":{"version":2,"report_data":[0]},"cert_chain":[{"cert_type":"VCEK","data":[48,130]}]}',
    b'{"quote":"BAACAIEAAAA=","cc_eventlog":null}',
    b'{"version":1,"hcl_report":"SENMQQ","tpm_quote":{"signature":"","message":"","pcrs":[]},"vcek":""}',
)
RELEASE = b'format = 1\n[resource."a/b/c"]\npolicy = "p"\nsecret = { file = "f" }\nkinds = ["tpm"]\n'


class _Log:
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
        if event in ("released", "attested"):
            raise AssertionError(f"{event} for evidence that nobody signed")


def _secret() -> bytearray:
    raise AssertionError("a secret was asked for")


def broker() -> Broker:
    """One resource that any true evidence would get."""
    guarded = Guarded("p", Policy(), Inputs(), frozenset(protocol.TEES.values()), _secret)
    return Broker({"a/b/c": guarded}, _Log(), lambda _: "token", sessions=Sessions(per_peer=1 << 20))


def attest(data: bytes) -> int:
    """A session of the version and kind that the first bytes name; the rest is the message, or evidence in one."""
    if len(data) < 2:
        return 0
    version = protocol.VERSIONS[data[0] % 3]
    found = broker()
    request = {"version": version, "tee": KINDS[data[1] % len(KINDS)], "extra-params": ""}
    challenge = found.answer(Asked("POST", "/kbs/v0/auth", "f", body=json.dumps(request).encode()))
    body = data[2:]
    if data[0] & 0x80:
        nonce = json.loads(challenge.body)["nonce"]
        message: dict[str, object] = {"tee-pubkey": KEY} if version < "0.4.0" else {}
        if version == "0.4.0":
            message["runtime-data"] = {"nonce": nonce, "tee-pubkey": KEY}
        text = json.dumps(message)[:-1].encode()
        wrapped = body if version == "0.2.0" else b'{"additional_evidence":"","primary_evidence":' + body + b"}"
        body = text + b',"tee-evidence":' + wrapped + b"}"
    status = found.answer(Asked("POST", "/kbs/v0/attest", "f", challenge.cookie, body=body)).status
    if status not in (401, 500):
        raise AssertionError(f"status {status}")
    return status


def converse(data: bytes) -> None:
    """The bytes as what a client sends that never reads: it is given up on in a moment, not in the usual seconds."""
    ours, theirs = socket.socketpair()
    theirs.sendall(data[:65536])
    theirs.shutdown(socket.SHUT_WR)
    with mock.patch.object(http, "REQUEST_DEADLINE_S", 0.2):
        Connection(ours, "f", broker().answer, body_limit).serve()
    ours.close()
    theirs.close()


def read_policy(data: bytes) -> None:
    """A release policy, or an error of ours."""
    try:
        parse_release_policy(data.decode("utf-8", "replace"), "fuzz")
    except (InputError, SpecError):
        return


@cache
def _key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def line() -> bytes:
    """A valid line of the log."""
    public = sha256_hex(_key().public_key().public_bytes_raw())
    entry = Decision(sequence=1, previous=GENESIS, key_sha256=public, at="2026-01-01T00:00:00Z", event="released")
    return sign(entry, _key())


def read_line(data: bytes) -> bool:
    """Whether it verifies: only what was signed does."""
    try:
        verify_line(data, _key().public_key().public_bytes_raw())
    except InputError:
        return False
    if data != line():
        raise AssertionError("another line verifies")
    return True


def one_input(data: bytes) -> None:
    """libFuzzer's entry: the first byte chooses the reader."""
    kind, rest = (data[0] % 4, data[1:]) if data else (0, b"")
    (attest, converse, read_policy, read_line)[kind](rest)


def answer_of(data: bytes) -> Answer:
    """For the property tests: one message without a session."""
    return broker().answer(Asked("POST", "/kbs/v0/auth", "f", body=data))


if __name__ == "__main__":
    import atheris

    atheris.instrument_all()
    atheris.Setup([*sys.argv, "-rss_limit_mb=512", "-timeout=5"], one_input)
    atheris.Fuzz()
