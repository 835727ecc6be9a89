"""Smoke run of the fuzzer of the scan, and proof that its seeds are valid."""

from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz import fuzz_scan

from casemate.cell.rawscan_wire import Kind, Task
from casemate.cell.rawscan_worker import FileSource, Work
from casemate.image.qcow2 import read_fixed
from casemate.image.reader import ImageReader


def test_the_seed_image_is_scanned_whole() -> None:
    fd = os.memfd_create("seed")
    try:
        os.write(fd, fuzz_scan.image())
        fixed = read_fixed(ImageReader(fd, "seed"))
        work = Work(FileSource(fd, len(fuzz_scan.image())), fuzz_scan.engine(), fixed)
        reports = list(work.reports(Task(Kind.RESOLVE, offsets=(7 * fuzz_scan.CLUSTER + 3,))))
        assert {(place.view, place.guest_offset) for place in reports[0].resolved} >= {(0, 3), (1, 3)}
        hits = [hit.rule for report in work.reports(Task(Kind.BYTES, first=0, count=1 << 20)) for hit in report.hits]
        assert "key.pem" in hits
    finally:
        os.close(fd)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=40))
def test_mutated_secrets(data: bytes) -> None:
    fuzz_scan.blocks(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=1, max_size=24))
def test_tables_that_lie(data: bytes) -> None:
    fuzz_scan.tables(data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes(data: bytes) -> None:
    fuzz_scan.texts(data)
