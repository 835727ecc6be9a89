"""Smoke run of the fuzzer of measured files, proof that its seeds reach the readers, and the bound on their memory."""

from __future__ import annotations

import lzma
import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz import fuzz_measure
from tests.fuzz.fuzz_measure import READERS, one_input, reader_of, seed_of

from casemate.errors import InputError
from casemate.measure.fat import Fat
from casemate.measure.gpt import read_gpt
from casemate.measure.grub_script import NotUnderstoodError
from casemate.measure.pe import parse_pe
from casemate.measure.tdvf import parse_tdvf
from casemate.measure.variables import parse_variables
from casemate.measure.volumes import measured_volumes

MOST_BYTES = 64 << 20


def test_the_seeds_are_read_whole() -> None:
    for index in range(len(READERS)):
        if READERS[index][1] is not fuzz_measure.run_script:
            READERS[index][1](seed_of(index))
    image = parse_pe(fuzz_measure.pe_seed(), "seed")
    assert [section.name for section in image.sections] == [".text", ".sdmagic"]
    assert len(image.signatures) == 1
    table = read_gpt(reader_of(fuzz_measure.gpt_seed()))
    assert table is not None
    assert table.esp is not None
    volume = Fat(reader_of(fuzz_measure.fat_seed()))
    assert volume.names("/") == ["EFI"]
    assert volume.file("efi/grub.cfg") == fuzz_measure.SCRIPT.ljust(1024, b"#")[:600]
    assert {name for _, name in parse_variables(fuzz_measure.variables_seed())} == {"SecureBootEnable", "db"}
    assert len(measured_volumes(fuzz_measure.volumes_seed())) == 2
    assert len(parse_tdvf(fuzz_measure.firmware_seed()).sections) == 2


@pytest.mark.parametrize("index", range(len(READERS)))
@settings(max_examples=250, deadline=None)
@given(choices=st.binary(max_size=60))
def test_mutations_of_valid_files(index: int, choices: bytes) -> None:
    one_input(bytes([index]) + choices)


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=1, max_size=800))
def test_any_bytes(data: bytes) -> None:
    one_input(data)


def bomb() -> bytes:
    """A firmware whose LZMA section unpacks to 256 MiB."""
    packed = lzma.compress(bytes(256 << 20), lzma.FORMAT_ALONE, preset=0)
    seed = fuzz_measure.volumes_seed()
    at = seed.index(struct.pack("<HH", 24, 1)) + 4
    body = seed[at - 24 : at] + packed
    sized = (len(body) & 0xFFFFFF).to_bytes(3, "little") + body[3:]
    head = seed[72:96]
    return fuzz_measure.volume(head[:20] + (24 + len(sized)).to_bytes(3, "little") + head[23:24] + sized)


def endless_chain() -> bytes:
    """A FAT whose file of 4 GB is one cluster that follows itself."""
    data = bytearray(fuzz_measure.fat_seed())
    data[512 + 4 : 512 + 6] = b"\x3f\x00"  # cluster 3 -> 3
    entry = data.index(b"GRUB~1  CFG")
    data[entry + 28 : entry + 32] = (1 << 30).to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize(
    ("index", "make"), [(5, bomb), (2, endless_chain), (8, lambda: b"[ a -o" * 20_000), (8, lambda: b"source /x;" * 9)]
)
def test_greedy_files_stay_in_bounds(index: int, make: object) -> None:
    data = make()  # type: ignore[operator]
    tracemalloc.start()
    try:
        with pytest.raises((InputError, NotUnderstoodError)):
            READERS[index][1](data)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
