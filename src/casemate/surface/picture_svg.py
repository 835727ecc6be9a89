"""Data paths as one self-contained SVG: a lane per party, an arrow per step, top to bottom.

Readable in light and dark (`prefers-color-scheme`), without colour (each kind has its own line and its word), and by
screen readers: each picture is a labelled group whose description says the steps as sentences. Nothing is loaded from
anywhere, no script, and no element has an id: several pictures can stand in one page.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape
from typing import Any, Final

from casemate.surface.paths_model import LANES, Kind, Lane, Path, Step, figure_text

WIDTH: Final = 960
_MARGIN: Final = 24
_TITLE: Final = 34
_HEAD: Final = 46
_STEP: Final = 48
_LINE: Final = 16
_FOOT: Final = 30
_GAP: Final = 26
_LANE_WIDTH: Final = 132
_CHARS: Final = 52
_CHAR_WIDTH: Final = 6.6

WORDS: Final[dict[Kind, str]] = {
    Kind.EXIT: "exit",
    Kind.NOTIFICATION: "wakes",
    Kind.ACCESS: "access",
    Kind.COPY: "copy",
    Kind.INTERRUPT: "interrupt",
}

_STYLE: Final = """
.cmp{--bg:#fff;--ink:#1b1f24;--dim:#57606a;--line:#8c959f;--guest:#ddf4ff;--emu:#fff8c5;--kern:#ffe2e0;
--exit:#b42318;--wake:#6639ba;--acc:#57606a;--copy:#0550ae;--irq:#0a6b2f;
font:13px system-ui,-apple-system,"Segoe UI",sans-serif}
@media (prefers-color-scheme:dark){.cmp{--bg:#0d1117;--ink:#e6edf3;--dim:#9da7b3;--line:#6e7681;--guest:#0c2d4d;
--emu:#3b2e05;--kern:#4c1613;--exit:#ff8f86;--wake:#cfb0ff;--acc:#9da7b3;--copy:#8ac4ff;--irq:#6fdd8b}}
.cmp .bg{fill:var(--bg)}.cmp text{fill:var(--ink)}.cmp .t{font-size:16px;font-weight:600}
.cmp .z,.cmp .s{fill:var(--dim);font-size:12px}
.cmp .lane{stroke:var(--line);stroke-dasharray:2 4}.cmp .box{stroke:var(--line)}
.cmp .guest{fill:var(--guest)}.cmp .emu{fill:var(--emu)}.cmp .kern{fill:var(--kern)}
.cmp .a{fill:none;stroke-width:2}.cmp .f{font-weight:600}
.cmp .halo{stroke:var(--bg);stroke-width:5;paint-order:stroke;stroke-linejoin:round}
.cmp .exit{stroke:var(--exit)}.cmp .exit-h{fill:var(--exit)}
.cmp .notification{stroke:var(--wake);stroke-dasharray:7 4}.cmp .notification-h{fill:var(--wake)}
.cmp .access{stroke:var(--acc);stroke-dasharray:2 3}.cmp .access-h{fill:var(--acc)}
.cmp .copy{stroke:var(--copy);stroke-width:4}.cmp .copy-h{fill:var(--copy)}
.cmp .interrupt{stroke:var(--irq);stroke-dasharray:12 3 3 3}.cmp .interrupt-h{fill:var(--irq)}
""".replace("\n", "")

_ZONES: Final = {"guest": "guest", "emulator process": "emu", "host kernel": "kern"}


def draw_svg(paths: Sequence[Path], figures: dict[str, Any] | None = None, note: str = "") -> str:
    """One SVG document with a picture per path, one below the other.

    Args:
        paths: at least one.
        figures: numbers of a measurement, by device and direction.
        note: a line below all of them, such as how the figures were measured.
    """
    if not paths:
        raise ValueError("a picture of nothing")
    parts: list[str] = []
    top = _MARGIN
    for path in paths:
        body, height = _picture(path, figures)
        parts.append(f'<g transform="translate(0 {top})">{body}</g>')
        top += height + _GAP
    if note:
        for line in textwrap.wrap(note, 130):
            parts.append(f'<text class="s" x="{_MARGIN}" y="{top}">{escape(line)}</text>')
            top += _LINE
    title = "Data paths: " + "; ".join(path.title for path in paths)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="cmp" width="{WIDTH}" height="{top}" '
        f'viewBox="0 0 {WIDTH} {top}" style="max-width:100%;height:auto" role="group" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        f'<rect class="bg" width="{WIDTH}" height="{top}"/>{"".join(parts)}</svg>\n'
    )


def describe(path: Path, figures: dict[str, Any] | None = None) -> str:
    """The picture as sentences, for those who cannot see it."""
    said = []
    for number, step in enumerate(path.steps, 1):
        measured = figure_text(path, step, figures)
        ends = f"{LANES[step.source].title} to {LANES[step.to].title}"
        said.append(f"{number}. {WORDS[step.kind]}, {ends}: {step.text}{f' ({measured})' if measured else ''}.")
    return " ".join(said)


def _picture(path: Path, figures: dict[str, Any] | None) -> tuple[str, int]:
    lanes = path.lanes
    pitch = (WIDTH - 2 * _MARGIN - _LANE_WIDTH) / (len(lanes) - 1)
    centre = {lane: round(_MARGIN + _LANE_WIDTH / 2 + number * pitch) for number, lane in enumerate(lanes)}
    parts = [f'<text class="t" x="{_MARGIN}" y="16">{escape(path.title)}</text>']
    if path.not_measured:
        parts.append(
            f'<text class="s" x="{WIDTH - _MARGIN}" y="16" text-anchor="end">{escape(path.not_measured)}</text>'
        )
    y = _TITLE + _HEAD + 14
    arrows = []
    for number, step in enumerate(path.steps, 1):
        drawn, height = _arrow(path, step, number, centre, y, figures)
        arrows.append(drawn)
        y += height
    parts += [f'<line class="lane" x1="{x}" x2="{x}" y1="{_TITLE + _HEAD}" y2="{y}"/>' for x in centre.values()]
    parts += [_box(lane, x) for lane, x in centre.items()]
    parts += arrows
    parts.append(f'<text class="s" x="{_MARGIN}" y="{y + 18}">steps: {escape(path.source)}</text>')
    label, long = escape(f"Data path: {path.title}"), escape(describe(path, figures))
    return f'<g role="img" aria-label="{label}"><desc>{long}</desc>{"".join(parts)}</g>', y + _FOOT


def _box(lane: Lane, x: int) -> str:
    text = LANES[lane]
    left = x - _LANE_WIDTH // 2
    return (
        f'<rect class="box {_ZONES[text.zone.value]}" x="{left}" y="{_TITLE}" '
        f'width="{_LANE_WIDTH}" height="{_HEAD}" rx="6"/>'
        f'<text x="{x}" y="{_TITLE + 19}" text-anchor="middle" class="f">{escape(text.title)}</text>'
        f'<text x="{x}" y="{_TITLE + 36}" text-anchor="middle" class="z">{escape(text.zone.value)}</text>'
    )


def _balanced(text: str, chars: int) -> list[str]:
    """Lines of about the same length: no single word is left for the last one."""
    number = len(textwrap.wrap(text, chars))
    return next(
        lines for width in range(len(text) // number, chars + 1) if len(lines := textwrap.wrap(text, width)) <= number
    )


def _arrow(
    path: Path, step: Step, number: int, centre: dict[Lane, int], y: int, figures: dict[str, Any] | None
) -> tuple[str, int]:
    start, end = centre[step.source], centre[step.to]
    way = 1 if end > start else -1
    measured = figure_text(path, step, figures)
    text = f"{number}  {WORDS[step.kind]}: {step.text}"
    lines = _balanced(text, max(_CHARS, int(abs(end - start) / _CHAR_WIDTH)))
    if measured:
        lines.append(measured)
    middle = min(max((start + end) / 2, _MARGIN + 180), WIDTH - _MARGIN - 180)
    parts = []
    for line_number, line in enumerate(lines):
        style = "halo f" if measured and line_number == len(lines) - 1 else "halo"
        top = y + 8 + line_number * _LINE
        parts.append(f'<text class="{style}" x="{middle:.0f}" y="{top}" text-anchor="middle">{escape(line)}</text>')
    at = y + 8 + (len(lines) - 1) * _LINE + 12
    tip = end - way
    parts.append(f'<path class="a {step.kind.value}" d="M{start} {at}H{tip - way * 8}"/>')
    parts.append(f'<path class="{step.kind.value}-h" d="M{tip} {at}l{-way * 11} -6v12z"/>')
    return "".join(parts), _STEP + (len(lines) - 1) * _LINE - 4
