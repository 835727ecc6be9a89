"""The forms of a risk analysis: hostile names stay text, schemas hold, pictures and drafts say what the data say."""

from __future__ import annotations

import datetime
import json
import re
import unicodedata
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import lxml.etree
import msgspec
import pytest
from tests.unit.test_risk_examples import NOBODY_TRUSTED, risk, states

from casemate import risk_reports, risks
from casemate.cli.main import main
from casemate.controls.catalogue.all import all_controls
from casemate.errors import InputError
from casemate.facts.cve_table import table
from casemate.report.risk_clean import clean
from casemate.report.risk_picture import BOX_HEIGHT, BOX_WIDTH, HEIGHT, PLACES, TOP, WIDTH, edges_of, to_svg
from casemate.report.risk_text import to_text
from casemate.scenarios.context import Context
from casemate.scenarios.data import graph
from casemate.scenarios.labels import technique_titles
from casemate.scenarios.model import GOODS, POSITIONS, Node
from casemate.scenarios.placements import compare
from casemate.scenarios.risk_model import RiskReport, VmRisk

CONTROLS = tuple(control.id for control in all_controls())
HOSTILE = "<script>alert(1)</script>\"'`|*_[x](javascript:1)\x1b[2J\u202e\n# h {{7*7}} & \\"
ROOT = Path(__file__).parents[2]


@cache
def report(name: str = HOSTILE) -> RiskReport:
    found = states(fail=["dev.no-floppy", "proc.uid", "cpu.ksm", "cpu.ksm-host"], unknown=["os.no-loop-image"])
    first = msgspec.structs.replace(
        risk(found), name=name, host=name, notes=(name,), evidence={"dev.no-floppy": f"fail: {name}"}
    )
    second = msgspec.structs.replace(risk(states()), name="quiet")
    return RiskReport(
        tool_version="1",
        catalogue="c" * 16,
        time="2026-11-23T00:00:00Z",
        audited="2026-11-22T00:00:00Z",
        context=name,
        assumed=(name,),
        vms=(first, second),
        notes=(name,),
    )


def rendered(name: str, **options: Any) -> str:
    return risk_reports.render(report(), name, context=NOBODY_TRUSTED, **options)


@pytest.mark.parametrize("name", [*risk_reports.FORMATS, "text"])
def test_hostile_names_bring_nothing_of_their_own(name: str) -> None:
    text = risk_reports.render_text(report()) if name == "text" else rendered(name)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "<script>" not in text or name in ("json", "sarif", "dot", "text", "ebios-json")
    assert "\n# h" not in text
    assert "49" not in re.findall(r"(?<![\w.#-])49(?![\w.-])", text.split("{{7*7}}")[0])


class _Page(HTMLParser):
    """Tags, ids and links of a page; void elements aside, every one is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "br", "circle", "path", "rect"):
            self.open.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(str(value))
            if key == "href":
                self.links.append(str(value))
            assert not key.startswith("on")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", ["html", "ebios-html"])
def test_pages_are_whole_and_self_contained(name: str) -> None:
    page = _Page()
    page.feed(rendered(name))
    assert page.open == []
    assert "script" not in page.tags
    assert "img" not in page.tags
    identifiers = [item for item in page.ids if not item.startswith("arrow-")]
    assert len(identifiers) == len(set(identifiers))
    inner = {link[1:] for link in page.links if link.startswith("#")}
    assert len(inner) == len(set(page.links)), "no link leads out of the page"


def test_every_open_edge_of_the_picture_leads_to_its_evidence() -> None:
    text = rendered("html")
    page = _Page()
    page.feed(text)
    for link in page.links:
        target = link[1:]
        edge_kind = "--" in target
        assert target in page.ids or edge_kind, link
    (vm, *_) = report().vms
    wanted = {f"vm1-{edge.anchor}" for edge in edges_of(vm) if edge.look == "open"}
    assert wanted
    assert wanted <= set(page.ids)
    assert "dev.no-floppy" in text


def test_no_open_path_is_never_said_alone() -> None:
    quiet = msgspec.structs.replace(report(), vms=report().vms[1:])
    for text in (to_text(quiet), risk_reports.render(quiet, "html")):
        assert "residual" in text
    assert re.search(r"0 open, [1-9]\d* residual", to_text(quiet))


# ---- the picture ----------------------------------------------------------------------------------------


def test_the_picture_is_xml_and_has_every_position() -> None:
    (vm, _) = clean(report()).vms
    svg = to_svg(vm, prefix="p-")
    tree = lxml.etree.fromstring(svg.encode())
    assert len(tree.findall(".//{*}g[@class='node']")) == len(POSITIONS) == len(PLACES)
    edges = tree.findall(".//{*}a[@class]")
    assert all(edge.get("aria-label") for edge in edges)
    assert len(edges) == len(edges_of(vm))
    assert all(str(edge.get("href")).startswith("#p-") for edge in edges)


def test_boxes_stay_apart_and_inside() -> None:
    places = list(PLACES.items())
    for index, (node, (x, y)) in enumerate(places):
        assert 0 <= x <= WIDTH - BOX_WIDTH
        assert TOP <= y <= TOP + HEIGHT - BOX_HEIGHT
        for other, (left, top) in places[index + 1 :]:
            apart = abs(x - left) >= BOX_WIDTH + 10 or abs(y - top) >= BOX_HEIGHT + 10
            assert apart, f"{node} lies on {other}"


def test_the_picture_has_no_knot() -> None:
    """Fifteen positions, and few enough edges between them that a person can follow each."""
    moves = [edge for edge in edges_of(report().vms[0]) if edge.target not in GOODS]
    assert len(moves) <= 40
    ids = {item.id for edge in edges_of(report().vms[0]) for item in edge.techniques}
    assert ids == {technique.id for technique in graph().techniques}, "each technique is on an edge"


# ---- formats ---------------------------------------------------------------------------------------------


def test_sarif_validates() -> None:
    schema = json.loads((ROOT / "tests/data/sarif/sarif-schema-2.1.0-rtm.5.json").read_text())
    log = json.loads(rendered("sarif"))
    assert list(jsonschema.Draft4Validator(schema).iter_errors(log)) == []
    results = log["runs"][0]["results"]
    assert len(results) == 2 * len(graph().variants)
    failed = [item for item in results if item["kind"] == "fail"]
    assert failed
    assert all(item["codeFlows"] for item in failed)


def test_dot_has_each_technique_and_quotes_names() -> None:
    text = rendered("dot")
    assert text.count("digraph ") == 2
    assert text.count("->") >= 2 * len(graph().techniques)
    first = next(line for line in text.splitlines() if line.startswith("digraph "))
    assert re.fullmatch(r'digraph "(?:[^"\\]|\\.)*" \{', first)


def test_json_says_the_report() -> None:
    document = json.loads(rendered("json"))
    assert document["schema"] == "casemate.risk/1"
    assert msgspec.convert(document, RiskReport) == clean(report())


def test_ebios_marks_where_each_value_comes_from() -> None:
    mine = Context(trust={}, origin="mine.toml", stated=frozenset(GOODS), states_trust=True)
    for context, origin in ((Context(trust={}), "assumption"), (mine, "owner")):
        document = json.loads(risk_reports.render(report(), "ebios-json", context=context))
        assert {row["gravity"]["from"] for row in document["workshop_1"]["values"]} == {origin}
        assert {row["gravity"]["from"] for row in document["workshop_3"]["scenarios"]} == {origin}
        assert {row["trusted"]["from"] for row in document["workshop_3"]["stakeholders"]} == {origin}
        found = list(_said(document))
        assert found
        assert {item["from"] for item in found} <= {"evidence", "owner", "assumption"}
    for number in range(1, 6):
        assert document[f"workshop_{number}"]


def test_ebios_says_only_what_was_found_to_be_evidence() -> None:
    """A likelihood that hangs on something unknown, or on a what-if, is an assumption; so is every level of risk."""
    vm = risk(states(unknown=["os.no-loop-image"], fail=["cpu.ksm", "cpu.ksm-host"]))
    known = msgspec.structs.replace(_report_of(vm), assumed=())
    document = json.loads(risk_reports.render(known, "ebios-json", context=NOBODY_TRUSTED))
    rows = {row["scenario"]: row for row in document["workshop_4"]}
    assert rows["mounted-file-system"]["likelihood"]["from"] == "assumption"
    assert rows["page-sharing"]["likelihood"]["from"] == "evidence"
    assert {row["level"]["from"] for row in rows.values()} == {"assumption"}
    guess = msgspec.structs.replace(known, assumed=("cpu.smt is assumed to pass",))
    document = json.loads(risk_reports.render(guess, "ebios-json", context=NOBODY_TRUSTED))
    assert {row["likelihood"]["from"] for row in document["workshop_4"]} == {"assumption"}


def test_ebios_says_whose_costs_and_exceptions_they_are() -> None:
    mine = Context(trust={}, costs={"cpu.ksm": 3.0}, goods_of=(("shop-*", {Node.VM_DATA: 4}),), origin="mine.toml")
    vm = risk(states(fail=["cpu.ksm", "cpu.ksm-host", "dev.no-floppy", "proc.uid"]), costs={"cpu.ksm": 3.0})
    document = json.loads(risk_reports.render(_report_of(vm), "ebios-json", context=mine, language="fr"))
    costs = {row["control"]: row["cost"]["from"] for row in document["workshop_5"][0]["measures"]}
    assert costs.pop("cpu.ksm") == "owner"
    assert set(costs.values()) == {"assumption"}
    shown = {row["value"]: row["gravity"] for row in document["workshop_1"]["values"]}
    assert shown["données de la VM (shop-*)"] == {"value": "G4 critique", "from": "owner"}


def _said(node: Any) -> Any:
    if isinstance(node, dict):
        if node.keys() == {"value", "from"}:
            yield node
        for value in node.values():
            yield from _said(value)
    elif isinstance(node, list):
        for item in node:
            yield from _said(item)


def test_readme_shows_the_table_that_is_printed() -> None:
    block = (ROOT / "README.md").read_text().partition("$ casemate risk vm.xml\n")[2].partition("```")[0]
    printed = to_text(_report_of(risk(states(fail=["cpu.ksm"])))).splitlines()
    assert [line.split() for line in block.splitlines() if " scenario " in line] == [
        line.split() for line in printed if line.startswith("  risk ")
    ]
    assert ", audited " in printed[0]
    assert ", audited " in block.splitlines()[0]


def test_unknown_formats_and_languages() -> None:
    with pytest.raises(InputError, match="no format"):
        rendered("pdf")
    with pytest.raises(InputError, match="no language"):
        rendered("ebios-md", language="de")


# ---- compare and difference ------------------------------------------------------------------------------


def test_compare_worked_out_by_hand() -> None:
    """Three services; everything holds but that nobody updates the guests and the VMs share a disk.

    - Separate machines: the next service is attacked from the network as the first was: its known bugs are open (1),
      its unknown ones residual, default passwords closed.
    - One system: users of one system are separated by its kernel alone. It is updated, so a local known bug is closed;
      an unknown one is residual.
    - One VM: the guest's kernel separates the services; nobody updates it: known bug, then loading code, which lockdown
      closes; so only unknown bugs are left after becoming root. As a path to the kernel: known bug, then an unknown one
      past lockdown: residual. Nothing open.
    - One VM each: the shared disk needs root in the guest, which the guest's known bug gives: open. That is one path
      (known bug, shared disk) for root; the kernel offers the same disk to whoever is root already, so it is not
      counted twice. Side channels that nobody knows yet stay.
    """
    found = compare(
        graph(), states(fail=["guest.updates", "img.exclusive"]), (), table(), services=3, evidence="by hand"
    )
    machines, system, one, each = found.placements
    assert (machines.isolation.counts["open"], machines.isolation.counts["residual"]) == (1, 1)
    assert (system.isolation.counts["open"], one.isolation.counts["open"]) == (0, 0)
    assert system.isolation.counts["residual"] >= 1
    assert one.isolation.counts["residual"] >= 1
    assert each.isolation.counts["open"] == 1
    assert next(way.techniques for way in each.isolation.worst) == ("guest.local-known-bug", "side.shared-disk")
    ways = {step for way in system.isolation.worst for step in way.techniques}
    assert ways == {"host.user-unknown-bug"}, "a system without VMs has no VMM, no emulator and no /dev/kvm"
    assert machines.exposure is system.exposure is None
    assert one.exposure is not None
    assert each.exposure is not None
    assert one.exposure.counts["open"] == each.exposure.counts["open"] == 0
    assert [item.inventory.kernels for item in found.placements] == [3, 1, 2, 4]
    assert [item.inventory.emulators for item in found.placements] == [0, 0, 1, 3]
    with pytest.raises(RuntimeError):
        compare(graph(), {}, (), table(), services=1, evidence="")


def test_a_service_is_reached_over_a_network() -> None:
    """Judged by a VM without a network: another service can still be attacked, at least by a bug that nobody knows."""
    absent = [name for name in CONTROLS if name.startswith("net.")]
    found = compare(graph(), states(absent=absent), (), table(), services=3, evidence="by hand")
    assert found.placements[0].isolation.counts["residual"] == 1
    assert all(item.isolation.counts["residual"] for item in found.placements)


def test_the_page_of_four_columns() -> None:
    found = compare(
        graph(), states(fail=["guest.updates"]), (), table(), services=3, evidence=HOSTILE, assumed=(HOSTILE,)
    )
    text = risk_reports.render_comparison(found, page=True)
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert not page.tags & {"script", "img", "a"}
    assert "<script>" not in text
    tree = lxml.etree.HTML(text)
    headers = [node.text for node in tree.findall(".//th[@scope='col']")]
    assert headers == [item.title for item in found.placements]
    rows = {node.findtext("th"): node for node in tree.findall(".//tr") if node.find("th[@scope='row']") is not None}
    assert rows.keys() >= {"kernels", "user spaces", "networks", "administration interfaces", "isolation gained"}
    for row in rows.values():
        assert [cell.get("data-column") for cell in row.findall("td")] == headers
    kernels = [cell.findtext(".//span[@class='figure']") for cell in rows["kernels"].findall("td")]
    assert kernels == [str(item.inventory.kernels) for item in found.placements]
    assert "".join(map(str, rows["exposure added"].itertext())).count("−") == sum(
        len(item.added) for item in found.placements
    )


def _report_of(*vms: VmRisk, audited: str = "2026-01-01T00:00:00Z") -> RiskReport:
    return msgspec.structs.replace(report(), vms=vms, audited=audited)


def test_difference_between_two_dates() -> None:
    was = risk(states(fail=["dev.no-floppy", "proc.uid"]))
    now = risk(states(fail=["proc.uid"]))
    found = risks.difference_of(_report_of(was), _report_of(now))
    (vm,) = found.vms
    assert vm.open_paths == (1, 0)
    (change,) = vm.techniques
    assert (change.id, change.was, change.now) == ("emu.floppy", "open", "closed")
    assert change.controls == ("dev.no-floppy: fails, now passes",)
    assert {item.id for item in vm.scenarios} >= {"emulated-device"}
    text = risk_reports.render_difference(found)
    assert "1 → 0 open paths" in text
    (device,) = [item for item in vm.scenarios if item.id == "emulated-device"]
    assert device.paths["open"] == (1, 0)
    assert "Escape through an emulated device: 1 → 0 open" in text
    assert text.startswith("since 2026-01-01T00:00:00Z: 1 VM changed, 0 did not")
    assert risks.difference_of(_report_of(was), _report_of(was)).same == ("web",)


def test_difference_between_two_hosts() -> None:
    """Matched by name where the host is another; what is on one side only is said."""
    here, there = risk(states()), msgspec.structs.replace(risk(states()), host="other")
    lone = msgspec.structs.replace(risk(states()), name="db")
    found = risks.difference_of(_report_of(here, lone), _report_of(there))
    assert (found.same, found.gone, found.added) == (("web",), ("db",), ())


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    domain = str(ROOT / "tests/data/domains/nova.xml")
    page = tmp_path / "page.html"
    assert main(["risk", domain, "--html", "-o", str(page)]) == 1
    assert page.read_text().startswith("<!doctype html>")
    assert page.stat().st_mode & 0o777 == 0o600
    assert main(["risk", domain, "--ebios", "html", "--lang", "fr"]) == 1
    assert 'lang="fr"' in capsys.readouterr().out
    assert main(["risk", "compare", domain, "--services", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["services"] == 5
    assert main(["risk", "compare", domain]) == 0
    assert "one VM each" in capsys.readouterr().out
    assert main(["risk", "compare", domain, "--html", "-o", str(page)]) == 0
    assert "placed four ways" in page.read_text()
    for wrong in (["--dot"], ["--context", "x"], ["--baseline", "x"], ["--jsonl"], ["--assume", "cpu.smtt=pass"]):
        assert main(["risk", "compare", domain, *wrong]) == 2
    capsys.readouterr()
    assert main(["risk", "compare", domain, "--assume", "cpu.smt=pass", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["assumed"] == ["cpu.smt is assumed to pass"]
    assert main(["risk", domain, "--html", "--dot"]) == 2
    assert main(["risk", "compare", domain, "--services", "1"]) == 2
    assert main(["audit", domain, "--json", "-o", str(tmp_path / "old.json")]) in (0, 1)
    capsys.readouterr()
    assert main(["risk", domain, "--baseline", str(tmp_path / "old.json")]) == 0
    assert "0 VMs changed, 1 did not" in capsys.readouterr().out
    fixed = ["--assume", "kvm.no-vhost-net=pass", "--assume", "kvm.no-vhost-other=pass"]
    assert main(["risk", domain, "--baseline", str(tmp_path / "old.json"), *fixed]) == 0
    shown = capsys.readouterr().out
    assert "what if, now: kvm.no-vhost-net is assumed to pass" in shown
    assert "1 VM changed" in shown
    assert "kvm.no-vhost-net: fails, now passes" in shown
    assert main(["risk", domain, "--baseline", str(tmp_path / "old.json"), "--html"]) == 2


def test_dates_are_not_read_from_a_clock_in_the_core() -> None:
    """The day that acceptances end by is given from outside."""
    source = (ROOT / "src/casemate/scenarios").glob("*.py")
    assert not [
        path.name for path in source if re.search(r"datetime\.(now|today|utcnow)|date\.today", path.read_text())
    ]
    assert datetime.date(2026, 11, 23)


# ---- the screen -------------------------------------------------------------------------------------------


def _screens() -> list[RiskReport]:
    """One VM with everything wrong, with nothing wrong, with notes and long names; many of them."""
    every_wrong = msgspec.structs.replace(risk(states(fail=CONTROLS)), name="n" * 90)
    noted = msgspec.structs.replace(risk(states(unknown=CONTROLS)), notes=("x" * 300,) * 9)
    wide = msgspec.structs.replace(risk(states(fail=CONTROLS[::2])), name="仮想計算機" * 12, host="h" * 90)
    named = [msgspec.structs.replace(wide, name=f"vm{number}") for number in range(50)]
    said = {"assumed": ("a" * 200,) * 7, "notes": ("b" * 200,) * 7}
    return [
        *(_report_of(vm) for vm in (every_wrong, noted, wide, risk(states()))),
        _report_of(*named),
        msgspec.structs.replace(_report_of(every_wrong), **said),
        msgspec.structs.replace(_report_of(*named), **said),
        _report_of(),
    ]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 25), (100, 30), (120, 40), (200, 60)])
@pytest.mark.parametrize("colour", [False, True])
def test_the_summary_fits_one_screen(width: int, height: int, colour: bool) -> None:
    for item in _screens():
        text = risk_reports.render_text(item, colour=colour, width=width, height=height)
        lines = re.sub("\x1b\\[[0-9;]*m", "", text).splitlines()
        assert len(lines) < height, "one line is the shell's"
        taken = [sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in line) for line in lines]
        assert max(taken) <= width
        assert text.count("\x1b[0m") == len(re.findall("\x1b\\[[1-9][0-9;]*m", text)), "no colour is left on"
        if item.vms:
            assert re.search(r"\d+ open, \d+ residual", text)
    assert "--all" in risk_reports.render_text(_screens()[0], width=width, height=height)


def test_all_leaves_nothing_out() -> None:
    (vm,) = (report := _screens()[0]).vms
    text = risk_reports.render_text(report, everything=True, width=80, height=24)
    assert "--all" not in text
    assert all(f" {fix.control} " in text for fix in vm.fixes if fix.of_plan)
    assert all(
        f"{titles[item.technique]}: held" in text for item in vm.residuals for titles in [technique_titles("en")]
    )
