"""The attack graph as a picture: inline SVG, laid out by hand so that positions and their edges stay apart.

Positions are boxes in columns, from where attackers start on the left to what lies below the host on the right. The
techniques between two positions are one edge, as bad as the worst of them. What an attacker *has* at a position (data,
the host, …) is not drawn as edges, which would cross everything, but as small labels inside its box. A technique that
a weaker position of the guest offers is drawn from there only: whoever is stronger can do it too. What simply follows
from a position is *given*, and has no colour of danger.
"""

from __future__ import annotations

from collections import defaultdict
from html import escape
from typing import Final

import msgspec

from casemate.scenarios.data import graph
from casemate.scenarios.labels import NODES, STATUSES, Language, pick
from casemate.scenarios.model import GOODS, Nature, Node, Status, Technique
from casemate.scenarios.risk_model import TechniqueRisk, VmRisk

WIDTH: Final = 1240
HEIGHT: Final = 690
TOP: Final = -44
BOX_WIDTH: Final = 160
BOX_HEIGHT: Final = 80
_LINE_CHARS: Final = 20
_ORDER: Final = (Status.OPEN, Status.UNKNOWN, Status.PAPER, Status.RESIDUAL, Status.CLOSED)
GIVEN: Final = "given"
LOOKS: Final = (*(status.value for status in _ORDER), GIVEN)
_CHAIN: Final = (Node.GUEST_USER, Node.GUEST_ROOT, Node.GUEST_KERNEL)
"""Each can do what the one before it can."""

PLACES: Final[dict[Node, tuple[int, int]]] = {
    Node.NETWORK: (20, 30),
    Node.GUEST_USER: (226, 30),
    Node.GUEST_ROOT: (432, 30),
    Node.GUEST_KERNEL: (638, 30),
    Node.EMULATOR: (844, 30),
    Node.HELPER: (844, 190),
    Node.HOST_ROOT: (1072, 270),
    Node.HIDDEN_HYPERVISOR: (1072, 480),
    Node.IMAGE_PUBLISHER: (20, 190),
    Node.HOST_USER: (432, 350),
    Node.VMM_API: (638, 500),
    Node.IMAGE_READER: (20, 350),
    Node.CLOUD_OPERATOR: (226, 540),
}
"""Upper left corner of each box."""
_SHORT: Final[dict[Node, tuple[str, str]]] = {
    Node.VM_DATA: ("VM", "VM"),
    Node.OTHER_VM_DATA: ("others", "autres"),
    Node.HOST: ("host", "hôte"),
    Node.SECRETS: ("secrets", "secrets"),
    Node.AVAILABILITY: ("uptime", "dispo."),
    Node.EVIDENCE: ("evidence", "traces"),
}


class Edge(msgspec.Struct, frozen=True):
    """All techniques from one position to another. ``status``: the worst of them."""

    source: Node
    target: Node
    status: Status
    techniques: tuple[TechniqueRisk, ...]

    @property
    def look(self) -> str:
        """How it is drawn: its status, or ``given``."""
        given = all(_NATURE[item.id] is Nature.CONSEQUENCE for item in self.techniques)
        return GIVEN if given else self.status.value

    @property
    def anchor(self) -> str:
        """Its id in the page."""
        return f"{self.source.value}--{self.target.value}"


def edges_of(vm: VmRisk) -> tuple[Edge, ...]:
    """The edges of the picture and of the table below it, worst first within a source."""
    by_id = {item.id: item for item in vm.techniques}
    found: dict[tuple[Node, Node], list[TechniqueRisk]] = defaultdict(list)
    for technique in graph().techniques:
        for source in _drawn_sources(technique):
            found[source, technique.target].append(by_id[technique.id])
    return tuple(
        Edge(source, target, min((_seen(item) for item in items), key=_ORDER.index), tuple(items))
        for (source, target), items in found.items()
    )


def _seen(item: TechniqueRisk) -> Status:
    """An unknown bug is drawn as residual, whether or not something else holds it; a closed one as closed."""
    if _NATURE[item.id] is Nature.UNKNOWN_BUG and item.status is not Status.CLOSED:
        return Status.RESIDUAL
    return item.status


_NATURE: Final = {item.id: item.nature for item in graph().techniques}


def _drawn_sources(technique: Technique) -> tuple[Node, ...]:
    weakest = next((node for node in _CHAIN if node in technique.sources), None)
    return tuple(node for node in technique.sources if node not in _CHAIN or node is weakest)


def to_svg(vm: VmRisk, *, prefix: str = "", language: Language = "en") -> str:
    """The picture of a VM out of a clean report.

    Args:
        prefix: of the ids that edges link to, for pages with several pictures.
    """
    edges = edges_of(vm)
    moves = [edge for edge in edges if edge.target not in GOODS]
    count = sum(edge.look == Status.OPEN for edge in moves)
    label = f"Attack graph of {vm.name}: {len(moves)} edges between positions, {count} of them open"
    parts = [
        f'<svg class="graph" viewBox="0 {TOP} {WIDTH} {HEIGHT}" role="group" aria-label="{escape(label, quote=True)}" '
        'xmlns="http://www.w3.org/2000/svg">',
        "<defs>",
        *(_arrow_head(look) for look in LOOKS),
        "</defs>",
    ]
    parts += [_edge(edge, prefix, language) for edge in sorted(moves, key=lambda edge: -_ORDER.index(edge.status))]
    parts += [_box(node, [edge for edge in edges if edge.source is node], prefix, language) for node in PLACES]
    return "\n".join([*parts, "</svg>"])


def _arrow_head(look: str) -> str:
    return (
        f'<marker id="arrow-{look}" class="head e-{look}" viewBox="0 0 8 8" refX="7" refY="4" '
        'markerWidth="7" markerHeight="7" orient="auto-start-reverse"><path d="M0 0L8 4L0 8z"/></marker>'
    )


def _edge(edge: Edge, prefix: str, language: Language) -> str:
    start, end, bend = _ends(edge.source, edge.target)
    path = f"M{start[0]} {start[1]}C{bend[0][0]} {bend[0][1]} {bend[1][0]} {bend[1][1]} {end[0]} {end[1]}"
    middle = tuple((start[axis] + 3 * bend[0][axis] + 3 * bend[1][axis] + end[axis]) / 8 for axis in (0, 1))
    what = _describe(edge, language)
    number = len(edge.techniques)
    badge = (
        f'<g class="badge"><circle cx="{middle[0]:.0f}" cy="{middle[1]:.0f}" r="9"/>'
        f'<text x="{middle[0]:.0f}" y="{middle[1] + 4:.0f}">{number}</text></g>'
    )
    return (
        f'<a class="edge e-{edge.look}" href="#{prefix}{edge.anchor}" aria-label="{escape(what, quote=True)}">'
        f'<title>{escape(what)}</title><path class="hit" d="{path}"/>'
        f'<path class="line" marker-end="url(#arrow-{edge.look})" d="{path}"/>{badge}</a>'
    )


def _describe(edge: Edge, language: Language) -> str:
    titles = {item.id: item.title for item in graph().techniques}
    ways = "\n".join(f"{pick(STATUSES[_seen(item)], language)}: {titles[item.id]}" for item in edge.techniques)
    return f"{pick(NODES[edge.source], language)} → {pick(NODES[edge.target], language)}\n{ways}"


Point = tuple[float, float]


def _ends(source: Node, target: Node) -> tuple[Point, Point, tuple[Point, Point]]:
    """(start, end, the two control points of the curve) between the sides of two boxes that face each other."""
    from_x, from_y = (float(part) for part in PLACES[source])
    to_x, to_y = (float(part) for part in PLACES[target])
    special = _ROUTES.get((source, target))
    if special is not None:
        return special
    if to_x >= from_x + BOX_WIDTH:
        start, end = (from_x + BOX_WIDTH, from_y + BOX_HEIGHT / 2), (to_x - 2, to_y + BOX_HEIGHT / 2)
        pull = max(24.0, (end[0] - start[0]) * 0.45)
        return start, end, ((start[0] + pull, start[1]), (end[0] - pull, end[1]))
    if to_y > from_y:
        start, end = (from_x + BOX_WIDTH / 2, from_y + BOX_HEIGHT), (to_x + BOX_WIDTH / 2, to_y - 2)
    else:
        start, end = (from_x + BOX_WIDTH / 2, from_y), (to_x + BOX_WIDTH / 2, to_y + BOX_HEIGHT + 2)
    pull = (end[1] - start[1]) * 0.45
    return start, end, ((start[0], start[1] + pull), (end[0], end[1] - pull))


def _curve(*points: float) -> tuple[Point, Point, tuple[Point, Point]]:
    """Start x y, first control x y, second control x y, end x y."""
    return (points[0], points[1]), (points[6], points[7]), ((points[2], points[3]), (points[4], points[5]))


_ROUTES: Final[dict[tuple[Node, Node], tuple[Point, Point, tuple[Point, Point]]]] = {
    # Over the guest's row, where a straight line would run through its boxes.
    (Node.NETWORK, Node.GUEST_ROOT): _curve(120, 30, 190, -12, 400, -12, 470, 28),
    (Node.NETWORK, Node.EMULATOR): _curve(94, 30, 240, -36, 760, -36, 890, 28),
    (Node.GUEST_USER, Node.GUEST_KERNEL): _curve(330, 30, 390, 0, 610, 0, 680, 28),
    (Node.GUEST_USER, Node.EMULATOR): _curve(300, 110, 380, 150, 760, 150, 858, 112),
    (Node.GUEST_ROOT, Node.EMULATOR): _curve(540, 110, 600, 132, 770, 132, 842, 88),
    (Node.GUEST_ROOT, Node.HELPER): _curve(520, 110, 580, 215, 740, 222, 842, 222),
    (Node.GUEST_USER, Node.HOST_USER): _curve(280, 110, 300, 230, 400, 270, 470, 348),
    (Node.NETWORK, Node.HOST_USER): _curve(180, 92, 205, 150, 190, 385, 430, 385),
    (Node.NETWORK, Node.VMM_API): _curve(180, 102, 215, 190, 170, 530, 636, 530),
    (Node.IMAGE_PUBLISHER, Node.GUEST_ROOT): _curve(180, 214, 290, 210, 400, 180, 470, 112),
    (Node.IMAGE_PUBLISHER, Node.EMULATOR): _curve(180, 236, 420, 250, 760, 190, 880, 112),
    (Node.IMAGE_PUBLISHER, Node.HOST_ROOT): _curve(180, 252, 480, 310, 780, 296, 1070, 300),
    (Node.GUEST_KERNEL, Node.HOST_ROOT): _curve(720, 110, 705, 312, 900, 290, 1070, 290),
    (Node.GUEST_KERNEL, Node.HIDDEN_HYPERVISOR): _curve(670, 110, 700, 420, 900, 500, 1070, 505),
    (Node.EMULATOR, Node.HOST_ROOT): _curve(1004, 67, 1090, 90, 1130, 190, 1140, 268),
    (Node.EMULATOR, Node.HOST_USER): _curve(870, 110, 820, 250, 690, 340, 594, 366),
    (Node.HELPER, Node.HOST_ROOT): _curve(1004, 227, 1040, 232, 1085, 245, 1100, 268),
    (Node.HELPER, Node.HOST_USER): _curve(880, 270, 830, 330, 700, 380, 594, 382),
    (Node.HOST_USER, Node.EMULATOR): _curve(560, 350, 640, 260, 800, 190, 910, 112),
    (Node.HOST_USER, Node.HOST_ROOT): _curve(592, 402, 760, 420, 950, 340, 1070, 322),
    (Node.HOST_USER, Node.VMM_API): _curve(506, 430, 520, 480, 570, 520, 636, 526),
    (Node.VMM_API, Node.HOST_ROOT): _curve(798, 525, 930, 520, 1040, 430, 1105, 352),
    (Node.CLOUD_OPERATOR, Node.HOST_ROOT): _curve(386, 590, 700, 640, 1010, 600, 1125, 352),
    (Node.HOST_ROOT, Node.HIDDEN_HYPERVISOR): _curve(1170, 350, 1170, 380, 1170, 430, 1170, 478),
}


def _box(node: Node, edges: list[Edge], prefix: str, language: Language) -> str:
    x, y = PLACES[node]
    words = pick(NODES[node], language).split()
    lines = [" ".join(words)]
    if len(lines[0]) > _LINE_CHARS:
        cut = max(n for n in range(1, len(words)) if len(" ".join(words[:n])) <= _LINE_CHARS)
        lines = [" ".join(words[:cut]), " ".join(words[cut:])]
    name = "".join(
        f'<text class="name" x="{x + 9}" y="{y + 20 + 15 * number}">{escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    chips, left = [], float(x + 6)
    for edge in edges:
        if edge.target in GOODS:
            width = 8 + 5.3 * len(pick(_SHORT[edge.target], language))
            chips.append(_chip(edge, left, y + 54, width, prefix, language))
            left += width + 3
    return (
        f'<g class="node"><rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="8"/>'
        f"{name}{''.join(chips)}</g>"
    )


def _chip(edge: Edge, x: float, y: float, width: float, prefix: str, language: Language) -> str:
    what = escape(_describe(edge, language), quote=True)
    return (
        f'<a class="chip e-{edge.look}" href="#{prefix}{edge.anchor}" aria-label="{what}">'
        f'<title>{what}</title><rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="18" rx="9"/>'
        f'<text x="{x + width / 2:.0f}" y="{y + 12.5}">{escape(pick(_SHORT[edge.target], language))}</text></a>'
    )
