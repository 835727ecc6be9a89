"""All paths of a graph as bit sets, and where each of them stands on one machine. Pure.

Paths depend on the data alone: they are searched once (`search.py`), and a path that several scenarios share is one
bit. A machine then says of each technique how far it is closed and how likely it is, and whole sets of paths are judged
at a time:

1. A path is closed as well as its best-closed technique: *closed*, *on paper*, *unknown* or *open*.
2. With an unknown bug in it, it is never open, nor closed for good: *residual*, or *contained* when something else on
   it is closed by observed facts.
3. Its likelihood is that of its hardest technique; what simply follows from a position makes nothing harder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from casemate.scenarios.formula import Value
from casemate.scenarios.model import Graph, Nature, Status
from casemate.scenarios.search import find_paths

Bits = int
"""A set of numbers, as an integer with these bits."""


def bits_of(numbers: Iterable[int]) -> Bits:
    """The set of these numbers."""
    bits = 0
    for number in numbers:
        bits |= 1 << number
    return bits


def numbers_of(bits: Bits) -> Iterator[int]:
    """The numbers of a set, smallest first."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


class Table(msgspec.Struct, frozen=True):
    """The paths of a graph, each once, shorter ones first.

    ``rows``: the techniques of each by number. ``names``: the same by id. ``masks``: the same as sets. ``bugs``: how
    many unknown bugs each needs. ``on``: by technique, the paths that it is on. ``of``: by scenario, its paths;
    ``complete``: whether these are all. ``unknown_bugs``: paths that need one. ``harder``: by technique, whether its
    likelihood counts.
    """

    rows: tuple[tuple[int, ...], ...]
    names: tuple[tuple[str, ...], ...]
    masks: tuple[Bits, ...]
    bugs: tuple[int, ...]
    on: tuple[Bits, ...]
    of: dict[str, Bits]
    complete: dict[str, bool]
    unknown_bugs: Bits
    harder: tuple[bool, ...]


def table_of(graph: Graph) -> Table:
    """Search all scenarios of a graph."""
    found = {variant.id: find_paths(graph, variant) for variant in graph.variants}
    rows = sorted({row for paths in found.values() for row in paths.rows}, key=lambda row: (len(row), row))
    numbers = {row: number for number, row in enumerate(rows)}
    on: list[set[int]] = [set() for _ in graph.techniques]
    for number, row in enumerate(rows):
        for technique in row:
            on[technique].add(number)
    natures = [technique.nature for technique in graph.techniques]
    bugs = tuple(sum(natures[index] is Nature.UNKNOWN_BUG for index in row) for row in rows)
    return Table(
        rows=tuple(rows),
        names=tuple(tuple(graph.techniques[index].id for index in row) for row in rows),
        bugs=bugs,
        masks=tuple(bits_of(row) for row in rows),
        on=tuple(bits_of(paths) for paths in on),
        of={name: bits_of(numbers[row] for row in paths.rows) for name, paths in found.items()},
        complete={name: paths.complete for name, paths in found.items()},
        unknown_bugs=bits_of(number for number, needed in enumerate(bugs) if needed),
        harder=tuple(nature is not Nature.CONSEQUENCE for nature in natures),
    )


class Judged(msgspec.Struct, frozen=True):
    """All paths of a table on one machine: each is in one set of ``by_status`` and in one of ``by_likelihood`` (V1 to
    V4, in this order)."""

    by_status: dict[Status, Bits]
    by_likelihood: tuple[Bits, Bits, Bits, Bits]

    def likelihood(self, paths: Bits) -> int:
        """Of the easiest of these paths, 1 to 4; 0 when there is none."""
        return next((level for level in (4, 3, 2, 1) if paths & self.by_likelihood[level - 1]), 0)

    def worst_first(self, by_status: Mapping[Status, Bits]) -> Iterator[tuple[int, Status, int]]:
        """(number, status, likelihood) of some paths: by status, then the likeliest, then the shortest."""
        for status, paths in by_status.items():
            if paths:
                for level in (4, 3, 2, 1):
                    for number in numbers_of(paths & self.by_likelihood[level - 1]):
                        yield number, status, level

    def any_of(self, *statuses: Status) -> Bits:
        """The paths that stand in one of these ways."""
        found = 0
        for status in statuses:
            found |= self.by_status[status]
        return found


def judge(table: Table, closings: Sequence[Value], likelihoods: Sequence[int]) -> Judged:
    """Steps 1 to 3.

    Args:
        closings: by technique, how far its closing condition is met.
        likelihoods: by technique, 1 to 4.
    """
    by_value = [0, 0, 0, 0]
    up_to = [0, 0, 0, 0, 0]
    for paths, closing, likelihood, harder in zip(table.on, closings, likelihoods, table.harder, strict=True):
        by_value[closing] |= paths
        if harder:
            up_to[likelihood] |= paths
    everything = (1 << len(table.rows)) - 1
    one, two, three = up_to[1], up_to[2] & ~up_to[1], up_to[3] & ~(up_to[1] | up_to[2])
    bugs, closed = table.unknown_bugs, by_value[Value.YES]
    plain = everything & ~bugs & ~closed
    paper = plain & by_value[Value.PAPER]
    unknown = plain & ~paper & by_value[Value.UNKNOWN]
    return Judged(
        {
            Status.OPEN: plain & ~paper & ~unknown,
            Status.UNKNOWN: unknown,
            Status.PAPER: paper,
            Status.RESIDUAL: bugs & ~closed,
            Status.CONTAINED: bugs & closed,
            Status.CLOSED: closed & ~bugs,
        },
        (one, two, three, everything & ~(one | two | three)),
    )
