"""Smoke run of the fuzzer of proofs of origin, and proof that its seeds are valid."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz import fuzz_origin

from casemate.image.sums import parse_sums


def test_the_seeds_are_believed() -> None:
    assert fuzz_origin.read_ssh(*fuzz_origin.ssh_seed(), fuzz_origin.CONTENT)
    assert fuzz_origin.read_minisign(*fuzz_origin.minisign_seed(), fuzz_origin.CONTENT)
    assert len(parse_sums(fuzz_origin.SUMS, "s")) == 2


@settings(max_examples=1500, deadline=None)
@given(st.binary(max_size=40))
def test_mutations_of_valid_proofs(choices: bytes) -> None:
    fuzz_origin.one_input(choices)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=300))
def test_any_text(text: str) -> None:
    fuzz_origin.one_input(b"\0" + text.encode())
