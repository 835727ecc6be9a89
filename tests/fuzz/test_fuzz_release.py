"""A short run of fuzz_release.py, with hypothesis in the place of libFuzzer."""

from __future__ import annotations

import json

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.fuzz import fuzz_release as fuzz

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=12,
)


@QUICK
@given(st.integers(0, 255), st.integers(0, 255), st.binary(max_size=400))
@example(0x82, 0, b"[" * 100_000)
@example(0x82, 1, b"1" * 100_000)
def test_any_bytes_as_attestation_or_evidence(version: int, kind: int, data: bytes) -> None:
    fuzz.attest(bytes([version, kind]) + data)


@QUICK
@given(st.integers(0, 255), st.integers(0, 255), JSON)
def test_any_json_as_attestation_or_evidence(version: int, kind: int, document: object) -> None:
    fuzz.attest(bytes([version, kind]) + json.dumps(document).encode("utf-8", "surrogatepass"))


@QUICK
@given(st.sampled_from(fuzz.SEEDS), st.integers(0, 4), st.integers(0, 500), st.binary(min_size=1, max_size=4))
def test_evidence_with_a_few_bytes_changed(seed: bytes, kind: int, place: int, change: bytes) -> None:
    at = place % len(seed)
    fuzz.attest(bytes([0x82, kind]) + seed[:at] + change + seed[at + len(change) :])


@QUICK
@given(st.binary(max_size=300))
@example(b"POST /kbs/v0/auth HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n")
@example(b"POST /kbs/v0/auth HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nab")
@example(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2000)
@example(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
@example(b"HEAD / HTTP/1.0\r\n\r\n")
@example(b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\nmore")
@example(b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n")
def test_any_bytes_on_a_connection(data: bytes) -> None:
    fuzz.converse(data)


@QUICK
@given(
    st.sampled_from(["GET", "POST", "HEAD", "PUT", "CONNECT", "OPTIONS", "TRACE", "PRI"]),
    st.sampled_from(["/", "*", "/kbs/v0/auth", "/kbs/v0/attest", "a:1", "http://x/"]),
    st.lists(
        st.sampled_from(
            [
                "Content-Length: 2",
                "Content-Length: 0",
                "Transfer-Encoding: chunked",
                "Connection: close",
                "Connection: x",
                "Expect: 100-continue",
                "Upgrade: websocket",
                "Connection: upgrade",
                "Cookie: a",
                "Authorization: Bearer x",
            ]
        ),
        max_size=4,
    ),
    st.sampled_from(["1.1", "1.0"]),
)
def test_requests_of_every_kind(method: str, target: str, headers: list[str], version: str) -> None:
    lines = [f"{method} {target} HTTP/{version}", "Host: x", *headers]
    fuzz.converse("\r\n".join(lines).encode() + b"\r\n\r\n{}" + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")


@QUICK
@given(st.integers(0, 400), st.binary(min_size=1, max_size=6))
def test_a_request_with_a_few_bytes_changed(place: int, change: bytes) -> None:
    seed = b"POST /kbs/v0/auth HTTP/1.1\r\nHost: x\r\nCookie: kbs-session-id=00\r\nContent-Length: 2\r\n\r\n{}"
    at = place % len(seed)
    fuzz.converse(seed[:at] + change + seed[at + len(change) :])


@QUICK
@given(st.integers(0, 400), st.binary(min_size=1, max_size=6))
def test_a_release_policy_with_a_few_bytes_changed(place: int, change: bytes) -> None:
    at = place % len(fuzz.RELEASE)
    fuzz.read_policy(fuzz.RELEASE[:at] + change + fuzz.RELEASE[at + len(change) :])


@QUICK
@given(st.integers(0, 2000), st.binary(min_size=1, max_size=3))
def test_a_line_of_the_log_with_a_few_bytes_changed(place: int, change: bytes) -> None:
    seed = fuzz.line()
    at = place % len(seed)
    fuzz.read_line(seed[:at] + change + seed[at + len(change) :])


def test_a_line_of_the_log_verifies() -> None:
    assert fuzz.read_line(fuzz.line())
    assert fuzz.answer_of(b"{}").status == 401
