"""Smoke runs of the fuzzers of machine descriptions: the kept corpus, mutated seeds, what is known to be hostile."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz.machine_cases import CORPUS, mutated, one_input, seeds

from casemate.audit.documents import read_machine
from casemate.controls.audit_model import TargetKind
from casemate.errors import InputError

KINDS = ("command-line", "domain", "vmm-config")


@pytest.mark.parametrize("kind", KINDS)
def test_every_seed_is_a_machine(kind: str) -> None:
    assert len(seeds(kind)) >= 7
    for data in seeds(kind):
        read_machine(TargetKind(kind), data, "seed")
        one_input(kind, data)


@pytest.mark.parametrize(
    "path", [path for kind in KINDS for path in sorted((CORPUS / kind).iterdir())], ids=lambda path: path.name
)
def test_the_kept_corpus(path: Path) -> None:
    one_input(path.parent.name, path.read_bytes())


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(KINDS), st.binary(max_size=60))
def test_mutated_seeds(kind: str, choices: bytes) -> None:
    one_input(kind, mutated(kind, choices))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(KINDS), st.binary(max_size=200))
def test_any_bytes(kind: str, data: bytes) -> None:
    one_input(kind, data)


BOMB = (
    b"<!DOCTYPE d [<!ENTITY a '"
    + b"x" * 1000
    + b"'>"
    + b"".join(b"<!ENTITY %c '%s'>" % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(9))
    + b"]><domain>&j;</domain>"
)


@pytest.mark.parametrize(
    "data",
    [
        BOMB,
        b"<!DOCTYPE d [<!ENTITY x SYSTEM 'file:///etc/shadow'>]><domain><name>&x;</name></domain>",
        b"<!DOCTYPE d SYSTEM 'http://127.0.0.1:1/x.dtd'><domain/>",
        b"<domain><name a='" + b"x" * (100 << 20) + b"'/></domain>",
        b"<domain><name a='" + b"x" * (1 << 20) + b"'/></domain>",
        b"<domain>" + b"<a>" * 100_000,
        b"<domain>" + b"<a/>" * 100_000 + b"</domain>",
        b"<domain><name>\xff\xfe</name></domain>",
        b"<?xml version='1.0' encoding='no-such-thing'?><domain/>",
        b"<?xml version='1.0' encoding='utf-16'?><domain/>",
    ],
    ids=[
        "bomb",
        "external",
        "dtd",
        "100-mb-attribute",
        "1-mb-attribute",
        "deep",
        "many",
        "utf-8",
        "encoding",
        "utf-16",
    ],
)
def test_hostile_xml_is_refused(data: bytes) -> None:
    with pytest.raises(InputError):
        read_machine(TargetKind.DOMAIN, data, "hostile.xml")
