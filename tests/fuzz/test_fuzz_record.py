"""Smoke run of the fuzzer of records, keys and policies, and proof that its seeds are valid."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz import fuzz_record

from casemate.evidence.record import public_key_text


def test_the_seeds_are_read_whole() -> None:
    record = fuzz_record.read_record(fuzz_record.signed(fuzz_record.payload()))
    assert record is not None
    assert record.name == "web"
    policy = fuzz_record.read_policy(fuzz_record.POLICY)
    assert policy is not None
    assert policy.limits.vms == 20
    assert fuzz_record.read_key(public_key_text(fuzz_record.public()).encode()) == fuzz_record.public()


@settings(max_examples=1500, deadline=None)
@given(st.binary(max_size=30))
def test_mutations_of_valid_files(choices: bytes) -> None:
    fuzz_record.one_input(choices)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=300))
def test_any_text(text: str) -> None:
    fuzz_record.one_input(text.encode())
