"""What risk reads: audits as JSON, the owner's context, what-if statements; and its command."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate import assess, reports, risks
from casemate.cli.main import main
from casemate.controls.audit_model import TargetKind
from casemate.controls.model import Verdict
from casemate.errors import InputError, SpecError
from casemate.facts.fact import Stage
from casemate.scenarios.context import Context
from casemate.scenarios.context_file import default_text
from casemate.scenarios.formula import State, Value
from casemate.scenarios.model import GOODS, Node
from casemate.scenarios.reading import Audit, Audited, parse_audit
from casemate.scenarios.subjects import subjects_of
from casemate.scenarios.verdicts import Verdicts, states_of

DOMAINS = Path(__file__).parents[1] / "data/domains"


def audited(name: str = "nova.xml") -> bytes:
    return reports.render(reports.printable(assess.audit([str(DOMAINS / name)])), "json").encode()


@pytest.fixture(scope="module")
def document() -> bytes:
    return audited()


def test_json_and_jsonl_say_the_same_as_the_report(document: bytes, tmp_path: Path) -> None:
    report = reports.printable(assess.audit([str(DOMAINS / "nova.xml")]))
    lines = reports.render(report, "jsonl").encode()
    first, second = parse_audit(document, "a"), parse_audit(lines, "a")
    assert first.targets == second.targets
    direct = risks.analyse([str(DOMAINS / "nova.xml")])
    file = tmp_path / "audit.json"
    file.write_bytes(document)
    again = risks.analyse([str(file)])
    assert [vm.counts for vm in again.vms] == [vm.counts for vm in direct.vms]
    assert [vm.scenarios for vm in again.vms] == [vm.scenarios for vm in direct.vms]
    assert [vm.counts for vm in risks.analyse_stream([str(file)])] == [vm.counts for vm in direct.vms]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[: len(text) // 2], "is no audit report"),
        (lambda text: b"", "is empty"),
        (lambda text: b"[]", "is no audit report"),
        (lambda text: b'{"schema": "casemate.audit/1"}', "is no audit report"),
        (lambda text: text.replace(b"casemate.audit/1", b"casemate.audit/9"), "is no audit report"),
        (lambda text: text.replace(b'"baseline": null', b'"baseline": {"since": "x"}'), "since a baseline"),
        (lambda text: b"[" * 100_000, "is no audit report"),
    ],
)
def test_bad_audits(document: bytes, change: object, said: str, tmp_path: Path) -> None:
    assert b'"baseline": null' in document
    with pytest.raises(InputError, match=said):
        parse_audit(change(document), "x.json")  # type: ignore[operator]


def test_another_catalogue_is_refused(document: bytes, tmp_path: Path) -> None:
    data = json.loads(document)
    data["catalogue"] = "0" * 16
    file = tmp_path / "old.json"
    file.write_text(json.dumps(data))
    with pytest.raises(InputError, match="another version of the catalogue") as caught:
        risks.load_audit(str(file))
    assert caught.value.next_step


@given(st.binary(max_size=300))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(InputError):
        parse_audit(b"{" + data, "x")


def test_a_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f")
    with pytest.raises(InputError):
        risks.analyse([str(tmp_path / "f")])


def test_states() -> None:
    """The worst of several findings; declared is paper; waived is not met; manual is unknown."""
    found = states_of(
        [
            Verdicts("a", Verdict.PASS),
            Verdicts("a", Verdict.UNKNOWN),
            Verdicts("b", Verdict.PASS, Stage.DECLARED),
            Verdicts("c", Verdict.WAIVED),
            Verdicts("d", Verdict.MANUAL),
            Verdicts("e", Verdict.UNKNOWN, Stage.DECLARED, pending=True),
            Verdicts("f", Verdict.NOT_APPLICABLE),
            Verdicts("f", Verdict.PASS),
            Verdicts("g", Verdict.NOT_APPLICABLE, Stage.DECLARED),
        ]
    )
    assert found == {
        "a": State(Value.UNKNOWN),
        "b": State(Value.PAPER),
        "c": State(Value.NO),
        "d": State(Value.UNKNOWN),
        "e": State(Value.PAPER),
        "f": State(Value.YES),
        "g": State(Value.PAPER, absent=True),
    }


def test_subjects_share_their_host_and_no_more() -> None:
    host = Audited(TargetKind.HOST, "h", Stage.OBSERVED, (Verdicts("os.mac", Verdict.PASS),))
    one = Audited(TargetKind.EMULATOR, "qemu-a", Stage.OBSERVED, (Verdicts("bin.pie", Verdict.PASS),))
    two = Audited(TargetKind.EMULATOR, "qemu-b", Stage.OBSERVED, (Verdicts("bin.pie", Verdict.FAIL),))
    web = Audited(
        TargetKind.VM, "web", Stage.OBSERVED, (Verdicts("dev.kvm", Verdict.PASS),), history=("CVE-2015-3456",)
    )
    file = Audited(TargetKind.DOMAIN, "db", Stage.DECLARED, (Verdicts("dev.kvm", Verdict.PASS),))
    image = Audited(TargetKind.IMAGE, "disk", Stage.OBSERVED, (Verdicts("sec.keys", Verdict.PASS),))
    found = list(subjects_of(Audit("x", "h", "t", "c", (host, one, two, web, file, image))))
    assert [(item.name, item.host, item.history) for item in found] == [
        ("web", "h", ("CVE-2015-3456",)),
        ("db", "h", ()),
    ]
    assert found[0].states == {"os.mac": State(Value.YES), "bin.pie": State(Value.NO), "dev.kvm": State(Value.YES)}
    assert found[1].states["dev.kvm"] == State(Value.PAPER)
    (alone,) = subjects_of(Audit("x", "h", "t", "c", (host,)))
    assert (alone.kind, alone.notes[0][:16]) == ("host", "no VM was audite")


# ---- the owner's context ---------------------------------------------------------------------------


def test_the_default_file_says_the_defaults(tmp_path: Path) -> None:
    place = tmp_path / "risk.toml"
    risks.init_context(place)
    read = risks.load_context(str(place))
    assert read.stated == frozenset(GOODS)
    assert read.states_trust
    assert msgspec.structs.replace(read, origin="", stated=frozenset(), states_trust=False) == Context()
    assert "malicious-host" in default_text()
    with pytest.raises(InputError, match="exists"):
        risks.init_context(place)
    risks.init_context(place, replace=True)
    with pytest.raises(InputError, match="cannot write"):
        risks.init_context(tmp_path / "no" / "where")


def test_a_context_of_ones_own(tmp_path: Path) -> None:
    place = tmp_path / "risk.toml"
    place.write_text(
        'format = 1\n[goods]\nhost = 2\n[goods-of."w*"]\nvm-data = 4\n[trust]\nhost-user = "only I log in"\n'
        '[costs]\n"cpu.smt" = 0\n[[accept]]\nscenario = "theft"\nreason = "locked room"\nuntil = 2030-01-01\n'
    )
    context = risks.load_context(str(place))
    assert context.gravity("x", (Node.HOST,)) == 2
    assert context.gravity("web", (Node.HOST, Node.VM_DATA)) == 4
    assert set(context.trust) == {Node.HOST_USER}, "naming trust replaces the default"
    assert context.costs == {"cpu.smt": 0}


def test_all_faults_of_a_context_together(tmp_path: Path) -> None:
    place = tmp_path / "risk.toml"
    place.write_text(
        'format = 2\n[goods]\ngold = 1\nhost = 5\n[trust]\nmartian = "x"\nhost-user = " "\n[costs]\n"cpu.smt" = -1\n'
        'nothing = 1\n[[accept]]\nscenario = "tuesday"\nreason = ""\nuntil = 2030-01-01\n'
    )
    with pytest.raises(SpecError) as caught:
        risks.load_context(str(place))
    assert sorted(fault.path for fault in caught.value.faults) == [
        *("accept[0].reason", "accept[0].scenario", "costs.cpu.smt", "costs.nothing", "format", "goods.gold"),
        *("goods.host", "trust.host-user", "trust.martian"),
    ]
    for text in ("", "format = 'x'", "format = 1\ncolour = 1", "format = 1\n[costs]\na = nan", "\x00"):
        place.write_text(text)
        with pytest.raises(InputError):
            risks.load_context(str(place))


# ---- what if -------------------------------------------------------------------------------------------


def counts(tmp_path: Path, document: bytes, **said: object) -> dict[str, int]:
    file = tmp_path / "audit.json"
    file.write_bytes(document)
    (vm,) = risks.analyse([str(file)], what_if=risks.WhatIf(**said)).vms  # type: ignore[arg-type]
    return vm.counts


def test_what_if(tmp_path: Path, document: bytes) -> None:
    now = counts(tmp_path, document)
    fixed = counts(tmp_path, document, fix_all_below=1e6)
    assert fixed["open"] == fixed["unknown"] == 0 < now["open"]
    assert counts(tmp_path, document, without=["confinement"])["open"] > now["open"]
    assert counts(tmp_path, document, assume={"kvm.no-vhost-net": "pass"})["open"] < now["open"]
    for cost in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="a cost in points"):
            counts(tmp_path, document, fix_all_below=cost)
    for said, match in (({"assume": {"cpu.smtt": "pass"}}, "did you mean cpu.smt"), ({"without": ["walls"]}, "layer")):
        with pytest.raises(InputError, match=match):
            counts(tmp_path, document, **said)


# ---- the command --------------------------------------------------------------------------------------


def test_command(tmp_path: Path, document: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "audit.json"
    file.write_bytes(document)
    assert main(["risk", str(file)]) == 1
    shown = capsys.readouterr().out
    assert " open, " in shown
    assert " residual" in shown
    assert "Cheapest plan" in shown
    assert "What remains whatever one does" in shown
    assert main(["risk", str(file), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["schema"] == "casemate.risk/1"
    assert main(["risk", str(file), str(file), "--jsonl"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["schema"] for line in lines] == ["casemate.risk-vm/1"] * 2
    assert main(["risk", str(file), "--fix-all-below", "1000000"]) == 0
    assert "what if: everything" in capsys.readouterr().out
    assert main(["risk", str(file), str(file)]) == 1
    assert "Fixes that help most VMs" in capsys.readouterr().out


def test_init_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(tmp_path / "mine.toml")
    assert main(["risk", "init", place]) == 0
    assert main(["risk", "init", place]) == 2
    assert main(["risk", "init", place, "--force"]) == 0
    assert main(["risk", "init", place, "more"]) == 2
    assert main(["risk", str(DOMAINS / "nova.xml"), "--context", place]) == 1
    assert main(["risk", "--assume", "cpu.smt=perhaps"]) == 2
    assert main(["risk", "--assume", "cpu.smt=pass", "--assume", "cpu.smt=fail"]) == 2
    assert "CONTROL=pass" in capsys.readouterr().err


def test_no_open_paths_are_never_said_without_the_residual_ones(capsys: pytest.CaptureFixture[str]) -> None:
    main(["risk", str(DOMAINS / "nova.xml"), "--fix-all-below", "1000000"])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("0 open"))
    assert " residual" in line


def test_many_files_in_several_processes_come_in_order(tmp_path: Path, document: bytes) -> None:
    data = json.loads(document)
    files = []
    for number in range(5):
        data["targets"][0]["name"] = f"vm{number}"
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps(data))
        files.append(str(file))
    one, two = (list(risks.analyse_stream(files, jobs=jobs)) for jobs in (1, 2))
    assert [vm.name for vm in two] == [f"vm{number}" for number in range(5)]
    assert one == two
    (tmp_path / "3.json").write_text("{")
    with pytest.raises(InputError, match=r"3\.json"):
        list(risks.analyse_stream(files, jobs=2))
