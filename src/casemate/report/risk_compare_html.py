"""`casemate risk compare` as one self-contained page with four columns. No script; see `risk_html.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from casemate.report.pages import rendered
from casemate.report.risk_html import MARKS, page_policy, page_style
from casemate.report.text import one_line
from casemate.scenarios.data import graph
from casemate.scenarios.labels import LIKELIHOODS, STATUSES
from casemate.scenarios.model import Status
from casemate.scenarios.placements import Comparison, Tally

_SHOWN: Final = {Status.OPEN: "open", Status.RESIDUAL: "residual", Status.UNKNOWN: "unknown", Status.PAPER: "on paper"}
_COUNTED: Final = {
    "kernels": "kernels",
    "user_spaces": "user spaces",
    "networks": "networks",
    "admin_interfaces": "administration interfaces",
    "emulators": "emulators",
    "machines": "machines",
}
_BASE: Final = "one-system"
"""The placement that the others are counted against: the least there is to patch."""


class _Bar(msgspec.Struct, frozen=True):
    """A part of a bar, in hundredths of the longest one."""

    status: str
    x: float
    width: float


def compare_page(comparison: Comparison, version: str) -> str:
    """The page."""
    style = page_style("compare.css")
    columns = msgspec.to_builtins(comparison.placements)
    values: dict[str, Any] = {
        "comparison": msgspec.structs.replace(
            comparison,
            evidence=one_line(comparison.evidence),
            audited=one_line(comparison.audited),
            assumed=tuple(map(one_line, comparison.assumed)),
        ),
        # The inventory is looked up by name, the rest by attribute.
        "columns": [
            {
                "title": column.title,
                "inventory": plain["inventory"],
                "isolation": column.isolation,
                "exposure": column.exposure,
                "gained": column.gained,
                "added": column.added,
            }
            for column, plain in zip(comparison.placements, columns, strict=True)
        ],
        "base": next(column for column in columns if column["id"] == _BASE),
        "bars": _bars_of(comparison),
        "shown": _SHOWN,
        "counted": _COUNTED,
        "marks": MARKS,
        "statuses": {status: names[0] for status, names in STATUSES.items()},
        "likelihoods": [names[0] for names in LIKELIHOODS],
        "titles": {technique.id: technique.title for technique in graph().techniques},
        "version": one_line(version),
        # Our own file, as in `risk_html.py`.
        "style": style,
        "policy": page_policy(style),
    }
    return rendered("compare.html.j2", values)


def _bars_of(comparison: Comparison) -> Callable[[Tally], list[_Bar]]:
    """Parts of a bar for one tally, on the scale of the longest one."""
    tallies = [tally for column in comparison.placements for tally in (column.isolation, column.exposure) if tally]
    longest = max([1, *(sum(tally.counts[status.value] for status in _SHOWN) for tally in tallies)])

    def bars(tally: Tally) -> Iterator[_Bar]:
        x = 0.0
        for status in _SHOWN:
            width = 100 * tally.counts[status.value] / longest
            if width:
                yield _Bar(status.value, round(x, 2), round(width, 2))
            x += width

    return lambda tally: list(bars(tally))
