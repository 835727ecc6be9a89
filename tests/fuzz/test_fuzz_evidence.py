"""Smoke run of the fuzzer of evidence, proof that its seeds are valid, and that no input makes it take much memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fuzz import fuzz_evidence
from tests.support.evidence_makers import event_log

from casemate.errors import CasemateError
from casemate.evidence.policy import Policy
from casemate.evidence.verify import Inputs, verify

MEBIBYTE = 1 << 20


@pytest.fixture(autouse=True, scope="module")
def _our_roots() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        fuzz_evidence.pin(patch.setattr)
        fuzz_evidence.seeds.cache_clear()
        yield
        fuzz_evidence.seeds.cache_clear()


def test_the_seeds_are_accepted() -> None:
    for seed in fuzz_evidence.seeds():
        assert fuzz_evidence.judge(seed, seed.data), seed.name
    assert {seed.name for seed in fuzz_evidence.seeds()} >= {"snp", "nitro", "nitro-tpm", "tpm-json", "gotpm", "se"}


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=25))
def test_mutations(choices: bytes) -> None:
    fuzz_evidence.one_input(choices)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 7), st.integers(0, 65535), st.integers(0, 255))
def test_one_octet_changed(which: int, position: int, value: int) -> None:
    seed = fuzz_evidence.seeds()[which]
    fuzz_evidence.judge(seed, fuzz_evidence.mutated(seed.data, position.to_bytes(2, "little") + bytes([value, 0])))


def _events(count: int) -> bytes:
    return event_log([(4, 4, b"")] * count)


HOSTILE = {
    "event log of many events": _events(20_000),
    "base64": b"abc+" * 250_000,
    "event log of zeros": event_log([]) + bytes(8) * 100_000,
    "nested CBOR": b"\x84\x44\xa1\x01\x38\x22\xa0" + b"\x81" * 60_000,
    "a CBOR string of gigabytes": b"\x84\x44\xa1\x01\x38\x22\xa0\x5a\xff\xff\xff\xff",
    "a CBOR list of gigabytes": b"\x84\x44\xa1\x01\x38\x22\xa0\x9a\xff\xff\xff\xff",
    "nested JSON": b'{"ak_public": "tpm_quote", "tpm_quote":' + b"[" * 500_000,
    "long JSON": b'{"vcek": "", "hcl_report": [' + b"1," * 400_000 + b"1]}",
    "protocol buffers of many fields": b"\x0a\x04\x00\x00\x01\x00" + b"\x08\x01" * 400_000,
    "hexadecimal": b"ab" * 500_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_evidence_takes_little_memory(name: str) -> None:
    data = HOSTILE[name]
    inputs = Inputs(moment=fuzz_evidence.NOW)
    tracemalloc.start()
    try:
        verify(data[:MEBIBYTE] if "log" not in name else data, inputs, Policy())
    except CasemateError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 64 * MEBIBYTE


def test_logs_of_more_events_than_anybody_reads() -> None:
    with pytest.raises(CasemateError, match="too many events"):
        verify(_events(100_001), Inputs(moment=fuzz_evidence.NOW), Policy())
