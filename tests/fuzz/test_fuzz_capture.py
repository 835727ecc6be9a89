"""Smoke run of the fuzzer of captures: its seed is valid, its kept corpus and some thousand inputs do no harm."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz import fuzz_capture

from casemate.audit.captures import report_capture

CORPUS = sorted((Path(__file__).parent / "corpus-capture").iterdir())


def test_the_seed_has_a_host_a_vm_and_a_domain() -> None:
    reports = list(report_capture(fuzz_capture.seed(), "seed", fuzz_capture.SETTING))
    assert [report.target.kind.value for report in reports] == ["host", "process", "domain"]
    assert {report.target.host for report in reports} == {"web7"}


@pytest.mark.parametrize("path", CORPUS, ids=[path.name for path in CORPUS])
def test_the_kept_corpus(path: Path) -> None:
    fuzz_capture.one_input(path.read_bytes())


@settings(max_examples=250, deadline=None)
@given(st.sampled_from([b"\x03", b"\x04", b"\x05"]), st.binary(max_size=40))
def test_mutations_of_a_valid_capture(kind: bytes, choices: bytes) -> None:
    fuzz_capture.one_input(kind + choices)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=2000))
def test_any_bytes(data: bytes) -> None:
    fuzz_capture.one_input(b"\0" + data)
