"""Smoke run of the ELF fuzzer, and proof that its seed reaches every part of the reader."""

from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz import fuzz_elf

from casemate.facts.elf import parse_elf


def test_the_seed_is_read_whole() -> None:
    descriptor = os.memfd_create("seed")
    try:
        os.write(descriptor, fuzz_elf.seed())
        image = parse_elf(descriptor)
    finally:
        os.close(descriptor)
    assert (image.needed, image.soname, image.interpreter) == (("libc.so.6",), "me.so.1", "/ld")
    assert (image.rpath, image.runpath) == (("/run", "/path"), ("/run", "/path"))
    assert (image.bind_now, image.has_relro, image.stack_executable) == (True, True, False)


@settings(max_examples=2000, deadline=None)
@given(st.binary(max_size=90))
def test_mutations_of_a_valid_file(choices: bytes) -> None:
    fuzz_elf.one_input(fuzz_elf.mutated(choices))


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_after_the_magic(data: bytes) -> None:
    fuzz_elf.one_input(data)
    fuzz_elf.one_input(b"\x7fELF\x02\x01" + data)
