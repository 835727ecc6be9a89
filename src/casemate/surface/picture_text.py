"""A data path in the terminal: lanes as columns, a line per step, at most 80 columns."""

from __future__ import annotations

import textwrap
from typing import Any, Final

from casemate.surface.paths_model import LANES, Kind, Path, Step, figure_text

WIDTH: Final = 80
_BOX: Final = 16
_HEADS: Final = {
    Kind.EXIT: "exit",
    Kind.NOTIFICATION: "wakes",
    Kind.ACCESS: "access",
    Kind.COPY: "copy",
    Kind.INTERRUPT: "irq",
}


def draw_text(path: Path, figures: dict[str, Any] | None = None, width: int = WIDTH) -> list[str]:
    """The picture as lines.

    Args:
        figures: numbers of a measurement, by device and direction.
        width: columns, 80 at least; more only move the lanes apart.
    """
    lanes = path.lanes
    pitch = max(_BOX, (max(width, WIDTH) - 1) // len(lanes))
    centre = {lane: number * pitch + _BOX // 2 - 1 for number, lane in enumerate(lanes)}
    lines = [path.title + (f"  ({path.not_measured})" if path.not_measured else "")]
    lines += _boxes(path, pitch)
    for number, step in enumerate(path.steps, 1):
        lines += _step(path, step, number, centre, figures, width)
    lines += textwrap.wrap(f"steps: {path.source}", max(width, WIDTH), subsequent_indent="       ")
    return [line.rstrip() for line in lines]


def _boxes(path: Path, pitch: int) -> list[str]:
    inner = _BOX - 2 - 2
    rows = ["", "", "", ""]
    for lane in path.lanes:
        text = LANES[lane]
        zone = text.zone.value.removesuffix(" process")
        cells = (
            f"┌{'─' * inner}┐",
            f"│{text.title:^{inner}}│",
            f"│{zone:^{inner}}│",
            f"└{'─' * (inner // 2)}┬{'─' * (inner - inner // 2 - 1)}┘",
        )
        rows = [row + cell.ljust(pitch) for row, cell in zip(rows, cells, strict=True)]
    return rows


def _step(
    path: Path, step: Step, number: int, centre: dict[Any, int], figures: dict[str, Any] | None, width: int
) -> list[str]:
    left, right = sorted((centre[step.source], centre[step.to]))
    forward = centre[step.to] == right
    row = [" "] * (max(centre.values()) + 1)
    for column in centre.values():
        row[column] = "│"
    body = f"{number} {_HEADS[step.kind]}"
    space = right - left - 1
    line = {Kind.INTERRUPT: "═", Kind.ACCESS: "╌", Kind.NOTIFICATION: "┄"}.get(step.kind, "─")
    inside = f" {body} ".center(space - 1, line)
    arrow = list(f"{inside}▶" if forward else f"◀{inside}")
    for column in centre.values():
        if left < column < right and arrow[column - left - 1] == line:
            arrow[column - left - 1] = "┼"
    row[left + 1 : right] = arrow
    measured = figure_text(path, step, figures)
    text = f"{number}  {step.text}" + (f"  [{measured}]" if measured else "")
    return ["".join(row), *textwrap.wrap(text, max(width, WIDTH) - 2, initial_indent="  ", subsequent_indent="     ")]
