"""Fuzzes what the scan reads: blocks, tables of qcow2 images, files by path, rule files, waiver files.

Each answers or raises its own error, and no finding holds the secret that it is about. Run for longer with
``python -m tests.fuzz.fuzz_scan -max_total_time=60``; tests/fuzz/test_fuzz_scan.py runs a few hundred inputs.
"""

from __future__ import annotations

import os
import random
import struct
import sys
from functools import cache

from tests.support.scan_corpus import planted

from casemate.cell.rawscan_qcow2 import views_of
from casemate.cell.rawscan_wire import Kind, Task
from casemate.cell.rawscan_worker import FileSource, Work
from casemate.errors import ImageError, InputError
from casemate.image.qcow2 import read_fixed
from casemate.image.reader import ImageReader
from casemate.scan.engine import Engine
from casemate.scan.paths import LOOKS
from casemate.scan.prefilter import Hyperscan, Plain, has_hyperscan
from casemate.scan.redact import Redactor
from casemate.scan.rulefile import read_rules
from casemate.scan.ruleset import builtin
from casemate.scan.waivers import read_waivers

CLUSTER = 4096
MAX_READ = 64 << 20


@cache
def engine() -> Engine:
    """All our rules."""
    rules = builtin().rules
    return Engine(rules, Hyperscan(rules) if has_hyperscan() else Plain(rules), Redactor(b"k" * 32))


@cache
def seeds() -> tuple[bytes, ...]:
    """One secret of each kind, next to each other."""
    return tuple(b"\n" + planted(rule.id, 5).text + b"\n" for rule in builtin().rules)


def blocks(data: bytes) -> None:
    """Secrets, mutated and cut."""
    rng = random.Random(data)
    text = bytearray(b"".join(rng.sample(seeds(), 6)))
    for byte in data:
        text[rng.randrange(len(text))] = byte
    raw = bytes(text[rng.randrange(50) :])
    for hit in engine().scan(raw):
        assert 0 <= hit.offset <= len(raw)
        assert len(hit.shown) <= 9


@cache
def image() -> bytes:
    """A qcow2 image of 16 clusters of 4 KiB: header, refcounts, L1, snapshot table, two L2 tables, data."""
    head = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", 3, 0, 0, 12, 4 << 20, 0, 2, 3 * CLUSTER, CLUSTER, 1, 1, 4 * CLUSTER
    )
    head += struct.pack(">QQQII", 0, 0, 0, 4, 104)
    l1 = struct.pack(">QQ", 5 * CLUSTER | 1 << 63, 6 * CLUSTER | 1 << 63)
    snapshot = struct.pack(">QIHHIIQII", 3 * CLUSTER, 2, 1, 4, 0, 0, 0, 0, 16) + bytes(8) + struct.pack(">Q", 4 << 20)
    l2 = b"".join(struct.pack(">Q", (7 + n) * CLUSTER | 1 << 63) for n in range(8)) + struct.pack(
        ">Q", 1 << 62 | 29_000
    )
    parts = [head, b"", b"", l1, snapshot + b"1" + b"name", l2, l2, *[seeds()[n] for n in range(8)], b"", b""]
    return b"".join(part.ljust(CLUSTER, b"\0")[:CLUSTER] for part in parts)


def tables(data: bytes) -> None:
    """Tables that lie: bounded work, no exception."""
    raw = bytearray(image())
    rng = random.Random(data)
    areas = ((24, 112), (3 * CLUSTER, 16), (4 * CLUSTER, 64), (5 * CLUSTER, 128), (6 * CLUSTER, 128))
    for byte in data:
        start, length = rng.choice(areas)
        raw[start + rng.randrange(length)] = byte
    fd = os.memfd_create("fuzz")
    try:
        os.write(fd, raw)
        source = FileSource(fd, len(raw))
        try:
            fixed = read_fixed(ImageReader(fd, "fuzz"))
        except ImageError:
            return
        if fixed.snapshots > 1024 or fixed.l1_entries > 4096:
            return  # refused by the header's reader before a scan begins
        views, _ = views_of(source, fixed)
        work = Work(source, engine(), fixed)
        tasks = [Task(Kind.VIEW, first=0, count=min(view.l1_entries, 64), view=n) for n, view in enumerate(views[:4])]
        tasks.append(Task(Kind.RESOLVE, offsets=(7 * CLUSTER + 3, 8 * CLUSTER)))
        read = 0
        for task in tasks:
            for report in work.reports(task):
                read += report.read
                assert read < MAX_READ
    finally:
        os.close(fd)


def texts(data: bytes) -> None:
    """Whatever a file may hold."""
    for look in LOOKS.values():
        assert isinstance(look(data), tuple)
    for reader in (read_rules, read_waivers):
        try:
            reader(data, "fuzz")
        except InputError:
            continue


def one_input(data: bytes) -> None:
    """The first byte chooses."""
    if data:
        (blocks, tables, texts)[data[0] % 3](data[1:])


def main() -> None:
    """Under atheris."""
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, lambda data: one_input(bytes(data)))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
