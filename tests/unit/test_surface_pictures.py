"""Data paths: complete, drawn the same in the terminal and as SVG, readable without colour and without eyes."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.surface.paths_data import DEVICES, devices_in, paths_of
from casemate.surface.paths_model import LANES, MEASURES, Kind, Lane, Step, Zone, figure_text
from casemate.surface.paths_model import Path as DataPath
from casemate.surface.picture_svg import WORDS, describe, draw_svg
from casemate.surface.picture_text import draw_text
from casemate.surface.pictures import document_svg, document_text

ALL = [path for device in DEVICES for kvm in (True, False) for path in paths_of(device, kvm=kvm)]
NAMES = [f"{path.title}-{number}" for number, path in enumerate(ALL)]
FIGURES = {
    path.device: {
        direction.direction: dict.fromkeys(MEASURES, 2.5) for direction in ALL if direction.device == path.device
    }
    for path in ALL
}
SVG = "{http://www.w3.org/2000/svg}"


def test_every_device_has_both_directions() -> None:
    for device in DEVICES:
        assert len({path.direction for path in paths_of(device, kvm=True)}) == 2
        assert len(paths_of(device, kvm=False)) == (0 if device == "vhost-net" else 2)


@pytest.mark.parametrize("path", ALL, ids=NAMES)
def test_a_path_is_whole(path: DataPath) -> None:
    kinds = {step.kind for step in path.steps}
    assert {Kind.EXIT, Kind.COPY, Kind.INTERRUPT} <= kinds
    assert path.steps[-1].kind is not Kind.COPY
    assert any(step.figure == "interrupts" for step in path.steps)
    assert all(step.figure in ("", *MEASURES) for step in path.steps)
    assert all(step.source is not step.to for step in path.steps)
    if path.device == "vhost-net":
        assert path.not_measured
        assert Zone.EMULATOR not in {LANES[lane].zone for lane in path.lanes}


def test_only_kvm_has_exits_into_the_kernel() -> None:
    for device in DEVICES:
        assert all(Lane.KVM not in path.lanes for path in paths_of(device, kvm=False))
        assert all(Lane.KVM in path.lanes for path in paths_of(device, kvm=True))


@pytest.mark.parametrize("path", ALL, ids=NAMES)
@pytest.mark.parametrize("width", [40, 80, 140])
def test_the_terminal_picture_has_every_step_within_its_width(path: DataPath, width: int) -> None:
    lines = draw_text(path, FIGURES, width)
    assert max(map(len, lines)) <= max(width, 80)
    text = " ".join(" ".join(lines).split())
    for number, step in enumerate(path.steps, 1):
        assert f"{number} {step.text}" in text
    arrows = [line for line in lines if "▶" in line or "◀" in line]
    assert len(arrows) == len(path.steps)


@pytest.mark.parametrize("path", ALL, ids=NAMES)
def test_the_svg_is_self_contained_labelled_and_complete(path: DataPath) -> None:
    svg = draw_svg([path], FIGURES, "how & why")
    root = ET.fromstring(svg)
    assert root.findtext(f"{SVG}title")
    group = root.find(f".//{SVG}g[@role='img']")
    assert group is not None
    assert path.title in group.attrib["aria-label"]
    said = group.findtext(f"{SVG}desc") or ""
    for step in path.steps:
        assert step.text in said
        assert WORDS[step.kind] in said
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|<script|<image|@import|url\(|\bid=", svg)
    assert "prefers-color-scheme:dark" in svg
    assert not root.findall(f".//{SVG}script")
    width = float(root.attrib["width"])
    for text in root.iter(f"{SVG}text"):
        assert 0 <= float(text.attrib["x"]) <= width
        assert 0 <= float(text.attrib["y"]) <= float(root.attrib["height"])


def test_kinds_differ_by_more_than_colour() -> None:
    style = draw_svg(ALL[:1])
    looks = {kind: re.search(rf"\.{kind.value}\{{stroke:[^;}}]+;?([^}}]*)\}}", style) for kind in Kind}
    assert len({found[1] if found else "" for found in looks.values()}) == len(Kind)


@settings(deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_whatever_the_text_the_svg_is_well_formed(title: str, text: str) -> None:
    clean = "".join(char for char in title if char.isprintable()), "".join(char for char in text if char.isprintable())
    step = Step(Lane.DRIVER, Lane.KVM, Kind.EXIT, clean[1])
    path = DataPath(device=clean[0], direction="x", unit="packet", steps=(step,), source=clean[1])
    ET.fromstring(draw_svg([path], None, clean[1]))
    assert draw_text(path)


def test_figures_stand_where_they_belong() -> None:
    path = paths_of("e1000", kvm=True)[0]
    assert figure_text(path, path.steps[0], {"e1000": {"transmit": {"accesses": 1.25}}}) == "1.2 per packet"
    assert figure_text(path, path.steps[0], {"e1000": {"transmit": {"accesses": 1234.5}}}) == "1234 per packet"
    assert figure_text(path, path.steps[0], {"e1000": {}}) == ""
    assert figure_text(path, path.steps[0], {"e1000": {"transmit": {"accesses": "x"}}}) == ""
    assert figure_text(path, path.steps[0], None) == ""
    assert "(2.5 per packet)" in describe(path, FIGURES)


def test_which_pictures_a_machine_gets() -> None:
    assert devices_in(["rtl8139", "ide-hd", "piix3-ide"], []) == ("e1000", "ide")
    assert devices_in(["virtio-net-pci", "virtio-blk-pci"], ["vhost:net"]) == ("vhost-net", "virtio-blk")
    assert devices_in(["virtio-net-device"], []) == ("virtio-net",)
    assert devices_in(["ide-cd", "ich9-ahci"], []) == ()
    empty: dict[str, Any] = {"paths": [], "accel": "kvm", "measured": None}
    assert document_svg(empty) == ""
    assert document_text(empty) == []
    with pytest.raises(ValueError, match="nothing"):
        draw_svg([])


def test_the_committed_picture_is_what_the_code_draws() -> None:
    """docs/surface.svg is made by tools/surface_svg.py; its steps are today's."""
    root = ET.parse(Path(__file__).parents[2] / "docs" / "surface.svg").getroot()
    said = [re.sub(r" \([\d.]+ per \w+\)", "", node.text or "") for node in root.iter(f"{SVG}desc")]
    assert said == [describe(path) for device in DEVICES for path in paths_of(device, kvm=True)]
