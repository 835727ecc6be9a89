"""The pictures that belong to a surface document: which paths, with which figures. Pure."""

from __future__ import annotations

from typing import Any

from casemate.surface.paths_data import paths_of
from casemate.surface.paths_model import Path
from casemate.surface.picture_svg import draw_svg
from casemate.surface.picture_text import WIDTH, draw_text


def paths_in(document: dict[str, Any]) -> tuple[Path, ...]:
    """The paths of a document of ``casemate surface``, both directions of each device that it names."""
    kvm = document["accel"] == "kvm"
    return tuple(path for device in document["paths"] for path in paths_of(device, kvm=kvm))


def figures_in(document: dict[str, Any]) -> dict[str, Any] | None:
    """Numbers per packet and block by device and direction; None when nothing was measured."""
    measured = document["measured"]
    return None if measured is None else measured["per_unit"]


def note_in(document: dict[str, Any]) -> str:
    """How the figures came about; empty without any."""
    measured = document["measured"]
    return "" if measured is None else str(measured["how"])


def document_svg(document: dict[str, Any]) -> str:
    """All pictures of a document as one SVG; empty when it has none."""
    paths = paths_in(document)
    return draw_svg(paths, figures_in(document), note_in(document)) if paths else ""


def document_text(document: dict[str, Any], width: int = WIDTH) -> list[str]:
    """All pictures of a document as lines for a terminal."""
    lines: list[str] = []
    for path in paths_in(document):
        lines += [*draw_text(path, figures_in(document), width), ""]
    return lines
