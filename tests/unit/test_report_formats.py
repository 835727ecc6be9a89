"""Every format of a report: golden, well formed, and inert whatever the evidence says."""

from __future__ import annotations

import json
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import jsonschema
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.reports import DOMAIN, HOST, HOSTILE, TWIN, VM, finding, hostile, report, target

from casemate.controls.audit_model import Report, TargetKind
from casemate.controls.baseline import compare
from casemate.controls.catalogue.all import all_controls
from casemate.controls.model import Verdict
from casemate.errors import InputError
from casemate.report import document, formats, markdown, sarif
from casemate.report.explain import explain, with_remedies
from casemate.report.terminal import to_text
from casemate.report.text import MAX_CHARS, clean, lines, one_line
from casemate.report.view import NO_CHANGES, Changes, alike, changes_of, view_of

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/report"
ENDING = {"markdown": "md", "junit": "xml", "prometheus": "prom", "text": "txt"}
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
hostile_text = st.text(max_size=60) | st.lists(st.sampled_from(HOSTILE.split(" ")), max_size=6).map(" ".join)


def golden_files() -> dict[str, str]:
    files = {f"report.{ENDING.get(name, name)}": formats.render(report(), name) for name in formats.NAMES}
    files["terminal.ansi"] = to_text(clean(report()), width=90, colour=True)
    files["narrow.txt"] = to_text(clean(report()), width=50)
    files["audit-schema.json"] = json.dumps(document.audit_schema(), indent=1) + "\n"
    return files


@pytest.mark.parametrize("name", sorted(golden_files()))
def test_golden(name: str) -> None:
    """After a wanted change: ``python -m tests.unit.test_report_formats`` writes the golden files."""
    assert golden_files()[name] == (GOLDEN / name).read_text()


@cache
def sarif_schema() -> Any:
    schema = json.loads((ROOT / "tests/data/sarif/sarif-schema-2.1.0-rtm.5.json").read_text())
    return jsonschema.Draft4Validator(schema)


def check_sarif(text: str) -> Any:
    log = json.loads(text)
    sarif_schema().validate(log)
    for run in log["runs"]:
        rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
        for result in run["results"]:
            assert rules[result["ruleIndex"]] == result["ruleId"]
            assert result["kind"] == "fail" or result["level"] == "none"
    return log


def check_json(text: str) -> Any:
    assert text.isascii()
    found = json.loads(text)
    jsonschema.Draft202012Validator(document.audit_schema()).validate(found)
    return found


SAMPLE = re.compile(r'[a-z_]+\{(?:[a-z]+="(?:[^"\\\n]|\\["\\n])*",?)*\} -?[0-9.]+(?:e[+-]?[0-9]+)?')


def check_prometheus(text: str) -> None:
    family = ""
    seen = set()
    for line in text.removesuffix("\n").split("\n"):
        if line.startswith("# HELP "):
            family = line.split(" ")[2]
            assert family not in seen
            seen.add(family)
        elif line.startswith("# TYPE "):
            assert line == f"# TYPE {family} gauge"
        else:
            assert SAMPLE.fullmatch(line), line
            assert line.startswith(family + "{")


class Page(HTMLParser):
    """Collects what is in a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def check_html(text: str) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    assert (
        page.tags.count("script") == page.tags.count("style") == page.tags.count("title") - page.tags.count("rect") == 1
    )
    assert not {"img", "iframe", "link", "object", "embed", "base"} & set(page.tags)
    assert not [item for item in page.attributes if item[1].startswith("on") or item[1] in ("style", "src")]
    assert {value[0] for tag, key, value in page.attributes if (tag, key) == ("a", "href")} <= {"#"}
    return page


def check_junit(text: str) -> Any:
    top = ET.fromstring(text)
    for suite in top.iter("testsuite"):
        assert int(suite.get("tests", "")) == len(suite.findall("testcase"))
        assert int(suite.get("failures", "")) == len(suite.findall("testcase/failure"))
        assert int(suite.get("errors", "")) == len(suite.findall("testcase/error"))
        assert int(suite.get("skipped", "")) == len(suite.findall("testcase/skipped"))
    assert int(top.get("tests", "")) == len(list(top.iter("testcase")))
    return top


def check_all(subject: Report, changes: Changes = NO_CHANGES) -> None:
    check_json(formats.render(subject, "json", changes))
    for line in formats.render(subject, "jsonl", changes).splitlines():
        assert json.loads(line)["schema"] == document.TARGET_SCHEMA
    check_sarif(formats.render(subject, "sarif", changes))
    check_junit(formats.render(subject, "junit", changes))
    check_html(formats.render(subject, "html", changes))
    check_prometheus(formats.render(subject, "prometheus", changes))
    for text in (
        formats.render(subject, "text", changes),
        formats.render(subject, "markdown", changes),
        to_text(clean(subject), changes, width=60),
    ):
        assert all(char.isprintable() or char == "\n" for char in text)


def test_every_format_is_well_formed() -> None:
    check_all(report())
    check_all(report(target(TargetKind.VM, "empty")))
    check_all(msgspec.structs.replace(report(), targets=()))


def test_hostile_text_is_inert_everywhere() -> None:
    check_all(hostile(HOSTILE))
    check_all(hostile("x" * 100_000))


@quick
@given(hostile_text)
def test_any_text_is_inert_everywhere(text: str) -> None:
    check_all(hostile(text))


@given(hostile_text)
def test_clean_text_stays_clean(text: str) -> None:
    assert one_line(text).isprintable()
    assert one_line(one_line(text)) == one_line(text)
    assert lines(lines(text)) == lines(text)
    assert clean(clean(hostile(text))) == clean(hostile(text))


def test_long_text_is_cut() -> None:
    for text in ("x" * 10_000_000, "\x00" * 1_000_000):
        assert len(one_line(text)) <= MAX_CHARS
        assert one_line(one_line(text)) == one_line(text)


@quick
@given(hostile_text)
def test_json_reads_back_as_it_was(text: str) -> None:
    subject = clean(hostile(text))
    assert document.from_json(document.to_json(subject).encode(), "x") == subject


def test_hostile_markdown_cannot_leave_its_cell() -> None:
    text = formats.render(hostile(HOSTILE), "markdown")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} <= {5, 6}
    for row in rows:
        outside = re.sub(r"<code>[^<]*</code>", "", row)
        assert not re.search(r"[\[\]*_@#\\<>]", outside), row
    assert markdown.inert("a|`@b") == "<code>a&#124;&#96;&#64;b</code>"


def test_page_carries_a_policy_that_allows_its_own_script_only() -> None:
    page = check_html(formats.render(hostile("</script><script>alert(1)</script>"), "html"))
    (policy,) = [v for t, k, v in page.attributes if (t, k) == ("meta", "content") and "default-src" in v]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert any("<script>alert(1)</script>" in text for text in page.text), "shown as text"


def test_sarif_says_what_each_verdict_is() -> None:
    log = check_sarif(formats.render(report(), "sarif"))
    kinds = {result["ruleId"]: result for result in log["runs"][0]["results"]}
    assert kinds["os.mac"]["level"] == "error"
    assert kinds["hk.landlock"]["kind"] == "pass"
    assert kinds["kvm.dev-perm"]["kind"] == "open"
    assert kinds["cpu.ksm"]["kind"] == "review"
    assert kinds["os.userns"]["suppressions"][0]["kind"] == "external"
    assert kinds["os.userns"]["kind"] == "fail"
    assert kinds["dev.no-usb"]["locations"][0]["physicalLocation"]["artifactLocation"]["uriBaseId"] == "TARGETS"
    flows = [
        [place["properties"]["step"] for place in flow["threadFlows"][0]["locations"]]
        for flow in kinds["os.mac"]["codeFlows"]
    ]
    assert flows == [["s1", "s2", "s4"], ["s1", "s2", "s5"]]
    assert log["runs"][0]["invocations"][0]["executionSuccessful"] is False
    assert set(sarif.KINDS) | {Verdict.WAIVED} == set(Verdict)


def test_junit_unknown_is_no_green_line() -> None:
    top = check_junit(formats.render(report(), "junit"))
    names = {case.get("name", "").partition(":")[0]: case for case in top.iter("testcase")}
    assert names["kvm.dev-perm"].find("error") is not None
    assert names["os.userns"].find("skipped") is not None


def test_targets_alike_are_shown_once_and_others_are_not() -> None:
    assert [[e.target.name for e in group] for group in alike((HOST, VM, TWIN, DOMAIN))] == [
        ["rack7"],
        ["web", "db"],
        ["win"],
    ]
    other = target(TargetKind.VM, "x", finding("proc.uid", Verdict.PASS), finding("proc.caps", why="another reason"))
    assert len(alike((VM, other))) == 2


def test_counts_are_never_one_number() -> None:
    view = view_of(HOST)
    assert view.counts == {"fail": 2, "unknown": 1, "manual": 1, "waived": 1, "pass": 1, "not-applicable": 1}
    assert (view.live, view.applicable) == (1, 6)
    assert view_of(DOMAIN).counts == {"fail": 1, "pending": 1}
    for name in formats.NAMES:
        assert not re.search(
            r"\d\s?%", re.sub(r"<style>.*</style>", "", formats.render(report(), name), flags=re.DOTALL)
        )


def test_failures_come_first_in_their_layer() -> None:
    text = formats.render(report(), "text")
    assert text.index("os.mac") < text.index("os.userns")
    assert "unknown                 kvm.dev-perm" in text


def test_a_baseline_shows_what_changed_in_every_format() -> None:
    before = report(HOST, VM)
    now = report(HOST, target(TargetKind.VM, "web", finding("proc.caps", Verdict.PASS), finding("proc.gid")), DOMAIN)
    comparison = compare(before, now)
    changes = changes_of(comparison)
    check_all(comparison.report, changes)
    assert [entry.target.name for entry in comparison.report.targets] == ["web", "win"]
    text = formats.render(comparison.report, "text", changes)
    assert "was fail" in text
    assert "no longer judged: proc.uid of vm web, was pass" in text
    assert "new target: domain win" in text
    log = check_sarif(formats.render(comparison.report, "sarif", changes))
    assert {r["ruleId"]: r["baselineState"] for r in log["runs"][0]["results"]}["proc.caps"] == "updated"
    found = check_json(formats.render(comparison.report, "json", changes))
    assert found["targets"][0]["findings"][0]["before"] == "fail"
    with pytest.raises(InputError, match="holds only what had changed"):
        document.from_json(json.dumps(found).encode(), "old.json")


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "cannot be read"),
        (b"[]", "cannot be read"),
        (b"{}", "not an audit"),
        (b'{"schema": "casemate.ps/1"}', "not an audit"),
        (b'{"schema": "casemate.audit/1"}', "cannot be read"),
        (b'{"schema": "\xff"}', "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
    ],
)
def test_what_is_no_report_is_refused(data: bytes, word: str) -> None:
    with pytest.raises(InputError, match=word):
        document.from_json(data, "old.json")


def test_explain_has_evidence_remedy_and_path() -> None:
    controls = {control.id: control for control in all_controls()}
    text = explain(clean(report()), controls["os.mac"], width=80)
    for word in ("host rack7: FAIL (critical)", "evidence    host.lsm = (none)", "Remedy", "s4:", "ANSSI"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 84
    assert "No target of this audit" in explain(clean(report(VM)), controls["os.mac"])
    assert "os.mac: " in with_remedies(controls["os.mac"])
    hostile_one = explain(clean(hostile(HOSTILE)), controls["proc.caps"])
    assert all(char.isprintable() or char == "\n" for char in hostile_one)


def test_format_of_a_file_name() -> None:
    names = ("a.html", "A.SARIF", "x.sarif.json", "x.json", "x.jsonl", "x.xml", "x.md", "x.prom", "x.txt", "x", "x.pdf")
    assert [formats.format_of(name) for name in names] == [
        *("html", "sarif", "sarif", "json", "jsonl", "junit", "markdown", "prometheus", "text", "", "")
    ]
    with pytest.raises(InputError, match="no such format"):
        formats.render(report(), "pdf")


if __name__ == "__main__":
    for file_name, content in golden_files().items():
        (GOLDEN / file_name).write_text(content)
