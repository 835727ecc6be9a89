"""casemate harden at the command line: output, diff, JSON, replacing a file with its backup, exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from casemate.cli.main import main

DOMAINS = Path(__file__).parents[1] / "data" / "domains"


@pytest.fixture
def domain(tmp_path: Path) -> Path:
    path = tmp_path / "vm.xml"
    shutil.copy(DOMAINS / "old-guest-pc.xml", path)
    path.chmod(0o640)
    return path


def test_the_document_goes_to_stdout_and_the_reasons_to_stderr(
    domain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["harden", str(domain)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith('<?xml version="1.0" encoding="UTF-8"?>\n<!-- written by hand')
    assert said.out.rstrip().endswith("</domain>")
    assert "dev.no-floppy: floppy fda removed" in said.err
    assert "    cost: no floppy drive" in said.err
    assert domain.read_bytes() == (DOMAINS / "old-guest-pc.xml").read_bytes()


def test_a_diff_applies(domain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["harden", str(domain), "--diff", "--keep", "dev.kvm"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"--- {domain}"
    assert (
        '-        <disk type="file" device="floppy"><source file="/srv/boot.img"/><target dev="fda"/></disk>' in lines
    )
    assert not any(line.startswith("+") and "kvm" in line for line in lines)


def test_json_has_every_change(domain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["harden", str(domain), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "casemate.harden/1"
    assert {"control", "where", "what", "why", "cost"} == set(document["changes"][0])
    assert {left["reason"] for left in document["left"]} == {"limit"}
    assert "dev.no-usb" in document["claims"]


def test_in_place_keeps_the_first_original_for_ever(domain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = domain.read_bytes()
    assert main(["harden", str(domain), "--in-place", "--keep", "dev.no-usb"]) == 0
    first = domain.read_bytes()
    assert Path(f"{domain}.orig").read_bytes() == original
    assert main(["harden", str(domain), "--in-place"]) == 0
    assert Path(f"{domain}.orig").read_bytes() == original
    assert Path(f"{domain}.bak").read_bytes() == first
    capsys.readouterr()
    assert main(["harden", str(domain), "--in-place"]) == 0
    assert "nothing to change" in capsys.readouterr().err
    assert domain.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in domain.parent.iterdir()) == ["vm.xml", "vm.xml.bak", "vm.xml.orig"]


def test_output_is_private_when_new(domain: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.xml"
    assert main(["harden", str(domain), "-o", str(target)]) == 0
    assert target.stat().st_mode & 0o777 == 0o600
    assert 'machine="q35"' in target.read_text()


def test_exit_code_1_when_the_owner_has_to_decide(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["harden", str(DOMAINS / "nova.xml")]) == 1
    assert "left, for you to decide: iommu.no-hostdev" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["/nonexistent.xml"], "/nonexistent.xml"),
        (["/dev/null"], "regular file"),
        ([str(DOMAINS / "arm.xml")], "aarch64"),
        ([str(DOMAINS / "nova.xml"), "--libvirt", "new"], "a version such as"),
        ([str(DOMAINS / "nova.xml"), "--libvirt", "7.0"], "8.0"),
        ([str(DOMAINS / "nova.xml"), "--keep", "x.y"], "x.y"),
    ],
)
def test_wrong_use_is_named(arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["harden", *arguments]) == 2
    assert word in capsys.readouterr().err
