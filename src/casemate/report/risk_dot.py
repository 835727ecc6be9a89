"""The attack graph for Graphviz: all techniques as edges, coloured by what was found. `dot -Tsvg` draws it."""

from __future__ import annotations

from typing import Final

from casemate.report.risk_picture import LOOKS, edges_of
from casemate.scenarios.data import graph
from casemate.scenarios.labels import NODES
from casemate.scenarios.model import GOODS, Node
from casemate.scenarios.risk_model import RiskReport, VmRisk

_COLOURS: Final = dict(zip(LOOKS, ("#b3261e", "#1f6f8b", "#a15c00", "#7a5195", "#9aa4b0", "#5a6675"), strict=True))


def to_dot(report: RiskReport) -> str:
    """One digraph for each VM."""
    return "\n".join(_digraph(vm) for vm in report.vms)


def _digraph(vm: VmRisk) -> str:
    titles = {item.id: item.title for item in graph().techniques}
    lines = [f"digraph {_quoted(vm.name)} {{", "  rankdir=LR; node [shape=box, style=rounded, fontname=sans];"]
    lines += [
        f"  {_quoted(node.value)} [label={_quoted(NODES[node][0])}{', shape=ellipse' if node in GOODS else ''}];"
        for node in Node
    ]
    for edge in edges_of(vm):
        for item in edge.techniques:
            ends = f"{_quoted(edge.source.value)} -> {_quoted(edge.target.value)}"
            look = f'color="{_COLOURS[edge.look]}", class={_quoted(item.status.value)}'
            lines.append(f"  {ends} [label={_quoted(titles[item.id])}, {look}];")
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(text: str) -> str:
    """A DOT string: backslashes and quotes escaped, control characters out."""
    clean = "".join(char if char.isprintable() else "?" for char in text)
    return '"' + clean.replace("\\", "\\\\").replace('"', '\\"') + '"'
