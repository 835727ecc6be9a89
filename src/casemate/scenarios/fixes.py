"""The cheapest set of controls that closes chosen paths: branch and bound, exact unless it says otherwise.

A path is closed when one of its techniques is; a technique is closed by any of its closing sets (`formula.py`). So each
path has *options*, sets of controls that would have to pass, and the cheapest plan is the union of one option of each
path with the least cost, where a control that several paths need is paid once. (A weighted hitting set of sets.) Of
plans that cost the same, one with the fewest controls. Sets are of numbers, as bits (`paths.py`).

1. A technique without an option is no way to close a path; paths of such techniques alone cannot be closed by any
   control: they remain.
2. A path with all the other techniques of another path, and more, is closed with it; an option that contains another is
   no option.
3. What a path has one option for is in every plan.
4. Paths that share no control, directly or through others, are apart: each group is planned by itself.
5. The branch takes the open path with the fewest options, the cheapest option first.
6. The bound: the cheapest options of paths that share no control add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from casemate.scenarios.paths import Bits, bits_of, numbers_of

MAX_NODES: Final = 20_000
MAX_OPTIONS: Final = 96
"""Options of one path that are considered: the smallest ones. Where others are left out the plan is not exact."""
_PER_POINT: Final = 1_000_000
_PER_COST: Final = 1 << 20
"""Costs are counted in millionths of a point, so that sums are exact, and one more for each control."""
Cost = Callable[[str], float]
Options = tuple[Bits, ...]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do. ``controls``: numbers of the controls, cheapest first. ``remaining``: places of the paths that
    nothing closes. ``exact``: whether no cheaper plan exists; otherwise the search stopped at a bound with the best one
    found so far."""

    controls: tuple[int, ...]
    cost: float
    remaining: tuple[int, ...]
    exact: bool


class Prices:
    """What sets of controls cost, each worked out once. ``points``: by number of the control, 0 or more."""

    def __init__(self, points: Sequence[float]) -> None:
        self.points = tuple(points)
        self._each = [round(cost * _PER_POINT) * _PER_COST + 1 for cost in points]
        self._known: dict[Bits, int] = {0: 0}

    def of(self, controls: Bits) -> int:
        """Cost first, number of controls second, as one number."""
        found = self._known.get(controls)
        if found is None:
            found = sum(self._each[number] for number in numbers_of(controls))
            if len(self._known) > 50_000:
                self._known = {0: 0}
            self._known[controls] = found
        return found


def cheapest(paths: Sequence[Bits], sets: Mapping[int, Options], prices: Prices, *, max_nodes: int = MAX_NODES) -> Plan:
    """The cheapest plan that closes these paths.

    Args:
        paths: each as a set of techniques, by number.
        sets: of each technique on a path, the sets of controls that would close it.
    """
    closable = bits_of(number for number, options in sets.items() if options)
    remaining = tuple(place for place, path in enumerate(paths) if not path & closable)
    left = _smallest({path & closable for path in paths} - {0})
    choices = [_smallest({option for number in numbers_of(path) for option in sets[number]}) for path in left]
    cut = any(len(options) > MAX_OPTIONS for options in choices)
    taken, open_paths = _forced({options[:MAX_OPTIONS] for options in choices if options[0]})
    nodes = max_nodes
    for group in _groups(open_paths):
        search = _Search(group, prices, nodes)
        search.go(0, search.paths)
        taken |= search.best
        nodes = search.nodes
    chosen = sorted(numbers_of(taken), key=lambda number: (prices.points[number], number))
    cost = float(sum(prices.points[number] for number in sorted(chosen)))
    return Plan(controls=tuple(chosen), cost=cost, remaining=remaining, exact=nodes >= 0 and not cut)


def _smallest(found: Iterable[Bits]) -> Options:
    """Those that contain no other one, smallest first (step 2)."""
    kept: list[Bits] = []
    for candidate in sorted(found, key=_size_first):
        outside = ~candidate
        for other in kept:
            if not other & outside:
                break
        else:
            kept.append(candidate)
    return tuple(kept)


def _size_first(bits: Bits) -> tuple[int, Bits]:
    return bits.bit_count(), bits


def _forced(paths: set[Options]) -> tuple[Bits, set[Options]]:
    """Step 3: what has to be taken, and the paths that are still open then."""
    taken = 0
    while True:
        forced = 0
        for options in paths:
            if len(options) == 1:
                forced |= options[0]
        if not forced:
            return taken, paths
        taken |= forced
        rest = (_smallest({option & ~forced for option in options}) for options in paths)
        paths = {options for options in rest if options[0]}


def _groups(paths: Iterable[Options]) -> list[list[Options]]:
    """Step 4, in a fixed order."""
    groups: list[tuple[Bits, list[Options]]] = []
    for options in sorted(paths, key=lambda options: (len(options), options)):
        controls, members = _all_of(options), [options]
        apart = []
        for other, others in groups:
            if other & controls:
                controls |= other
                members = others + members
            else:
                apart.append((other, others))
        groups = [*apart, (controls, members)]
    return [sorted(members, key=lambda options: (len(options), options)) for _, members in groups]


def _is_open(options: Options, free: Bits) -> bool:
    """Whether each option still needs one of the controls that are free; asked so often that a generator would cost."""
    for option in options:  # noqa: SIM110
        if not option & free:
            return False
    return True


def _all_of(options: Options) -> Bits:
    controls = 0
    for option in options:
        controls |= option
    return controls


class _Search:
    """Steps 5 and 6 for one group of paths."""

    def __init__(self, paths: Sequence[Options], prices: Prices, nodes: int) -> None:
        self.paths = [(options, _all_of(options)) for options in paths]
        self.price = prices.of
        self.nodes = nodes
        self.best = self._greedy()
        self.least = self.price(self.best)

    def _greedy(self) -> Bits:
        taken = 0
        for options, _ in self.paths:
            if _is_open(options, ~taken):
                taken |= min(options, key=lambda option: (self.price(option & ~taken), option))
        return taken

    def bound(self, open_paths: Sequence[tuple[Options, Bits]], taken: Bits) -> int:
        total, used, free = 0, 0, ~taken
        for options, controls in open_paths:
            if not used & controls & free:
                total += min([self.price(option & free) for option in options])
                used |= controls
        return total

    def go(self, taken: Bits, open_paths: Sequence[tuple[Options, Bits]]) -> None:
        self.nodes -= 1
        free, cost = ~taken, self.price(taken)
        left = [path for path in open_paths if _is_open(path[0], free)]
        if not left:
            if cost < self.least:
                self.best, self.least = taken, cost
            return
        if self.nodes < 0 or cost + self.bound(left, taken) >= self.least:
            return
        options, _ = min(left, key=lambda path: len(path[0]))
        for option in sorted(options, key=lambda item: (self.price(item & free), item)):
            self.go(taken | option, left)
