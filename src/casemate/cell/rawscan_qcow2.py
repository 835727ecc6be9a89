"""Walks the tables of a qcow2 image, in the jail. Every number in them is hostile.

    L1 entry  bits 9-55: offset of an L2 table (one cluster)
    L2 entry  bit 62 clear: bits 9-55 offset of a data cluster (0: none), bit 0: reads as zeros
              bit 62 set:   place of compressed bytes (`packed_place`)
    extended  16 bytes an entry: the above, and a bitmap of subclusters

Bounds, so that a small file cannot make much work: each L2 table is walked once per view, the bytes read or unpacked
here are limited by the size of the file. What is left out is said.
"""

from __future__ import annotations

import itertools
import struct
import sys
import zlib
from array import array
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, Protocol

from casemate.cell.rawscan_wire import Resolved, View
from casemate.image.qcow2 import COMPRESSED_CLUSTER, EXTENDED_L2, MAX_L1_BYTES, TABLE_OFFSET, Fixed, packed_place

_SNAPSHOT: Final = struct.Struct(">QIHHIIQII")
MAX_WINDOW_BYTES: Final = 4 << 20
UNPACK_FACTOR: Final = 64
READ_FACTOR: Final = 4
FLOOR_BYTES: Final = 256 << 20
UNPACKED_SECTOR: Final = 512


class Source(Protocol):
    """Bytes of the file; short at its end, never an error for places outside of it."""

    size_bytes: int

    def read(self, offset: int, length: int) -> bytes:
        """At most ``length`` bytes at ``offset``."""


class Cluster(NamedTuple):
    """A cluster of the guest's disk. ``host``: where its bytes lie; ``packed``: length of its compressed form or 0."""

    guest: int
    host: int
    packed: int


class Window(NamedTuple):
    """Guest bytes from ``start`` on; ``lead`` of them are context of what lies before."""

    start: int
    lead: int
    data: bytes


def views_of(source: Source, fixed: Fixed) -> tuple[tuple[View, ...], tuple[str, ...]]:
    """The tables of an image whose header was accepted, and notes on snapshots that were not believed."""
    views = [View("", fixed.l1_offset, fixed.l1_entries, fixed.size_bytes)]
    notes: list[str] = []
    at = fixed.snapshots_offset
    for number in range(fixed.snapshots):
        head = source.read(at, _SNAPSHOT.size)
        if len(head) < _SNAPSHOT.size:
            notes.append(f"the table of snapshots ends in the middle, after {number}")
            break
        l1_offset, entries, id_length, name_length, *_times, extra = _SNAPSHOT.unpack(head)
        if entries * 8 > MAX_L1_BYTES or extra > 1024:
            notes.append(f"snapshot {number + 1} cannot be true: {entries} entries in its table")
            break
        raw = source.read(at + _SNAPSHOT.size + extra + id_length, min(name_length, 128))
        size = fixed.size_bytes
        if extra >= 16:
            size = int.from_bytes(source.read(at + _SNAPSHOT.size + 8, 8), "big")
        name = raw.decode("utf-8", "backslashreplace") or f"number {number + 1}"
        views.append(View("".join(c if c.isprintable() else "?" for c in name), l1_offset, entries, size))
        at += -(-(_SNAPSHOT.size + extra + id_length + name_length) // 8) * 8
    return tuple(views), tuple(notes)


class Tables:
    """The tables of one image, and what may still be spent on them."""

    def __init__(self, source: Source, fixed: Fixed) -> None:
        self._source = source
        self._bits = fixed.cluster_bits
        self.cluster = 1 << fixed.cluster_bits
        self._words = 2 if fixed.incompatible & EXTENDED_L2 else 1
        self._zstd = fixed.compression == 1
        self._unpack_left = UNPACK_FACTOR * source.size_bytes + FLOOR_BYTES
        self._read_left = READ_FACTOR * source.size_bytes + FLOOR_BYTES
        self._seen_packed: set[int] = set()
        self.notes: dict[str, int] = {}

    def _note(self, text: str) -> None:
        self.notes[text] = self.notes.get(text, 0) + 1

    def _table(self, offset: int, count: int) -> array[int]:
        raw = self._source.read(offset, count * 8)
        entries = array("Q", raw[: len(raw) // 8 * 8])
        if sys.byteorder == "little":
            entries.byteswap()
        return entries

    def l2_tables(self, view: View, first: int, count: int) -> Iterator[tuple[int, array[int]]]:
        """(offset on the guest's disk, entries) of each L2 table of the view; each table of the file once."""
        per_table = self.cluster // (8 * self._words)
        seen: set[int] = set()
        for index, entry in enumerate(self._table(view.l1_offset + first * 8, count), first):
            offset = entry & TABLE_OFFSET
            if not offset or offset in seen:
                continue
            seen.add(offset)
            if offset % self.cluster or offset >= self._source.size_bytes:
                self._note("an L1 entry points outside of the file")
                continue
            yield index * per_table * self.cluster, self._table(offset, self.cluster // 8)

    def clusters(self, view: View, first: int, count: int) -> Iterator[Cluster]:
        """Clusters that have bytes in the file, in the guest's order."""
        for start, entries in self.l2_tables(view, first, count):
            for number, entry in enumerate(entries[:: self._words]):
                if not entry:
                    continue
                guest = start + number * self.cluster
                if guest >= view.size_bytes:
                    break
                if entry & COMPRESSED_CLUSTER:
                    host, length = packed_place(entry, self._bits)
                    if host < self._source.size_bytes:
                        yield Cluster(guest, host, length)
                    else:
                        self._note("a compressed cluster lies outside of the file")
                elif host := entry & TABLE_OFFSET:
                    if host % self.cluster or host >= self._source.size_bytes:
                        self._note("a cluster lies outside of the file")
                    else:
                        yield Cluster(guest, host, 0)

    def windows(self, view: View, first: int, count: int, lead: int, tail: int) -> Iterator[Window]:
        """Runs of the guest's disk that the file does not hold in one piece, with context around them.

        Runs that lie in the file as they are were scanned there. What lies before entry ``first`` is context only.
        """
        border = first * (self.cluster // (8 * self._words)) * self.cluster
        known = min(first, 1)
        run: list[Cluster] = []
        most = max(1, MAX_WINDOW_BYTES // self.cluster)
        lead_clusters = -(-lead // self.cluster)
        context: list[Cluster] = []
        for cluster in self.clusters(view, first - known, count + known):
            if cluster.guest < border:
                context = [*context[-lead_clusters + 1 :], cluster] if lead_clusters > 1 else [cluster]
                continue
            if not run and context and cluster.guest != context[-1].guest + self.cluster:
                context = []
            if run and (cluster.guest != run[-1].guest + self.cluster or len(run) >= most):
                adjacent = cluster.guest == run[-1].guest + self.cluster
                yield from self._window(context, run, lead)
                context = run[-lead_clusters:] if adjacent else []
                run = []
            run.append(cluster)
        if run:
            yield from self._window(context, run, lead)

    def _window(self, context: list[Cluster], run: list[Cluster], lead: int) -> Iterator[Window]:
        both = [*context, *run]
        if all(not one.packed for one in both) and all(
            two.host == one.host + self.cluster for one, two in itertools.pairwise(both)
        ):
            return
        if all(one.packed and one.host in self._seen_packed for one in run):
            return  # shared with another view, and scanned there
        self._seen_packed.update(one.host for one in run if one.packed)
        before = b"".join(self._bytes(one) for one in context)[-lead:]
        data = before + b"".join(self._bytes(one) for one in run)
        if data.count(0) != len(data):
            yield Window(run[0].guest - len(before), len(before), data)

    def _bytes(self, cluster: Cluster) -> bytes:
        """The cluster as the guest sees it; zeros where it cannot be had."""
        if not cluster.packed:
            if self._read_left < self.cluster:
                self._note(
                    "clusters that lie apart were left out: the tables ask for more reading than the file is large"
                )
                return bytes(self.cluster)
            self._read_left -= self.cluster
            return self._source.read(cluster.host, self.cluster).ljust(self.cluster, b"\0")
        if self._unpack_left < self.cluster:
            self._note(f"compressed clusters were left out: unpacked they are over {UNPACK_FACTOR} times the file")
            return bytes(self.cluster)
        self._unpack_left -= self.cluster
        packed = self._source.read(cluster.host, min(cluster.packed, self.cluster + 1024))
        data = _unzstd(packed, self.cluster) if self._zstd else _inflate(packed, self.cluster)
        if not data:
            self._note("a compressed cluster cannot be unpacked")
        return data[: self.cluster].ljust(self.cluster, b"\0")

    def resolve(self, views: tuple[View, ...], offsets: tuple[int, ...]) -> Iterator[Resolved]:
        """Which views show the clusters at these offsets of the file. The disk comes first."""
        wanted: dict[int, list[int]] = {}
        for offset in offsets:
            wanted.setdefault(offset & ~(self.cluster - 1), []).append(offset)
        keys = wanted.keys()
        for number, view in enumerate(views):
            for start, entries in self.l2_tables(view, 0, view.l1_entries):
                plain = entries[:: self._words]
                hosts = {entry & TABLE_OFFSET for entry in plain if not entry & COMPRESSED_CLUSTER}
                if not hosts & keys:
                    continue
                for index, entry in enumerate(plain):
                    host = entry & TABLE_OFFSET
                    if host in keys and not entry & COMPRESSED_CLUSTER:
                        guest = start + index * self.cluster
                        yield from (Resolved(o, number, guest + o - host) for o in wanted[host])


def _inflate(packed: bytes, most: int) -> bytes:
    """Raw deflate with a 4 KiB window, as QEMU writes it."""
    try:
        return zlib.decompressobj(wbits=-15).decompress(packed, most)
    except zlib.error:
        return b""


_zstd: list[Any] = []


def load_zstd() -> None:
    """Import it now: a confined process finds no file later."""
    if not _zstd:
        import zstandard

        _zstd.append(zstandard)


def _unzstd(packed: bytes, most: int) -> bytes:
    if not _zstd:
        return b""
    library = _zstd[0]
    try:
        reader = library.ZstdDecompressor(max_window_size=1 << 27).stream_reader(packed)
        return bytes(reader.read(most))
    except (library.ZstdError, MemoryError):
        return b""
