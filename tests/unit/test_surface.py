"""surface: rows, handlers, sorting, history before and after what harden really makes, targets of every kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from casemate.audit.surface_live import read_positions
from casemate.audit.surface_targets import look_at
from casemate.cli.main import main
from casemate.errors import InputError, VmError
from casemate.facts.cve_table import marks_of, table
from casemate.facts.domain import read_domain
from casemate.facts.fact import Facts, Known, Stage, Unknown
from casemate.facts.machine_facts import machine_facts
from casemate.harden.domain import harden_domain
from casemate.surface.build import Hardened, Look, surface_document
from casemate.surface.kinds_data import kind_of

DOMAINS = Path(__file__).parents[1] / "data" / "domains"
CARELESS = "qemu-system-x86_64 -machine pc,accel=kvm -m 512 -hda /d.img -nic user,model=e1000"


def document(line: str) -> dict[str, Any]:
    return surface_document(look_at(line.split()), table())


def test_a_careless_machine_has_more_history_than_a_small_one() -> None:
    careless = document(CARELESS)
    small = document("qemu-system-x86_64 -nodefaults -machine microvm,accel=kvm -kernel /k -device virtio-rng-device")
    emulator = [
        len([cve for cve in doc["history"]["reached"] if cve["side"] == "emulator"]) for doc in (careless, small)
    ]
    assert emulator[0] >= 10 > emulator[1]
    assert len(careless["history"]["hardened"]) < len(careless["history"]["reached"])
    weights = [row["weight"] for row in careless["rows"]]
    assert weights == sorted(weights, reverse=True)
    by_type = {row["type"]: row for row in careless["rows"]}
    assert by_type["e1000"]["kind"] == "network card, emulated"
    assert by_type["e1000"]["handler"] == "emulator process"
    assert by_type["kvm-ioapic"]["handler"] == "host kernel"
    assert "split" in by_type["kvm-ioapic"]["go"]
    assert by_type["accel:kvm"]["kind"].startswith("hypercalls")
    assert by_type["netdev:user"]["go"] == "replace by passt"
    assert "accel:kvm" not in {row["type"] for row in document("qemu-system-x86_64 -m 1 -accel tcg")["rows"]}


@pytest.mark.parametrize("name", ["linux-virt-install", "windows-boxes", "old-guest-pc"])
def test_hardened_history_is_that_of_the_domain_that_harden_writes(name: str) -> None:
    path = DOMAINS / f"{name}.xml"
    found = surface_document(look_at([str(path)]), table())["history"]
    after = read_domain(harden_domain(path.read_bytes(), "t").after.encode(), "t")
    expected = table().reaching(marks_of(machine_facts(after, Stage.DECLARED)))
    assert [cve["id"] for cve in found["hardened"]] == [cve.id for cve in expected]
    assert "changes" in found["hardened_how"]


def test_what_cannot_be_hardened_has_no_second_number() -> None:
    history = document("qemu-system-x86_64 -m 64 -nic none")["history"]
    assert history["hardened"] is None
    assert "nothing to boot" in history["hardened_why"]
    assert history["hardened_how"] == ""


def test_devices_that_could_not_be_read_leave_the_history_unknown() -> None:
    facts: Facts = {"dev.types": Unknown("hidden"), "dev.accel": Known("kvm", "t", Stage.DECLARED)}
    history = surface_document(
        Look(name="x", source="t", stage="declared", facts=facts, hardened=Hardened(facts=facts)), table()
    )["history"]
    assert history["reached"] is None
    assert history["hardened"] is None
    assert "not known" in history["hardened_why"]


def test_another_vmm_has_none_of_qemus_history() -> None:
    path = DOMAINS.parent / "vmm" / "firecracker-careless.json"
    found = surface_document(look_at([str(path)]), table())
    assert {cve["side"] for cve in found["history"]["reached"]} == {"kernel"}
    rows = {row["type"]: row for row in found["rows"]}
    assert rows["virtio-net-device"]["cves"] == ()
    assert rows["virtio-net-device"]["weight"] == 1
    assert rows["kvm-ioapic"]["cves"] != ()
    assert "harden knows" in found["history"]["hardened_why"]
    assert any("firecracker's own code" in note for note in found["notes"])


def test_what_was_read_of_a_machine_is_listed_and_said_to_be_incomplete(capsys: pytest.CaptureFixture[str]) -> None:
    line = "qemu-system-aarch64 -M virt -m 1G -device e1000 -frobnicate"
    found = document(line)
    assert "e1000" in {row["type"] for row in found["rows"]}
    assert found["history"]["reached"] is None
    assert any("not complete" in note for note in found["notes"])
    assert main(["surface", "--", *line.split()]) == 0
    said = capsys.readouterr().out
    assert "e1000" in said
    assert "unknown: the devices of this machine are not all known" in said


def test_under_tcg_the_reader_learns_why_the_kernel_side_grows() -> None:
    history = document(CARELESS.replace("kvm", "tcg"))["history"]
    assert "under KVM, whose history counts from then on" in history["hardened_how"]


def test_a_helper_handles_a_tpm_and_vhost_is_the_kernels() -> None:
    line = (
        f"{CARELESS} -tpmdev emulator,id=t,chardev=c -chardev socket,id=c,path=/s -device tpm-tis,tpmdev=t "
        "-device vhost-vsock-pci,guest-cid=3 -netdev tap,id=n,vhost=on -device virtio-net-pci,netdev=n"
    )
    rows = {row["type"]: row for row in document(line)["rows"]}
    assert rows["tpm-tis"]["handler"] == "helper process"
    assert rows["vhost-vsock-pci"]["handler"] == "host kernel"
    assert rows["vhost:net"]["go"] == "vhost=off"
    assert "vhost-net" in document(line)["paths"]


def test_counts_and_live_buses() -> None:
    look = look_at(f"{CARELESS} -device virtio-rng-pci -device virtio-rng-pci".split())
    assert look.counts["virtio-rng-pci"] == 2
    rows = {row["type"]: row for row in surface_document(look, table())["rows"]}
    assert rows["virtio-rng-pci"]["count"] == 2
    live = Look(name="x", source="t", stage="observed", facts=look.facts, buses={"e1000": "pci.0"})
    assert {row["type"]: row["bus"] for row in surface_document(live, table())["rows"]}["e1000"] == "pci.0"


def test_positions_are_read_from_a_device_tree() -> None:
    tree = {
        "/machine": [{"name": "unattached", "type": "child<container>"}, {"name": "q35", "type": "child<q35-pcihost>"}],
        "/machine/unattached": [{"name": "device[0]", "type": "child<isa-serial>"}, {"name": "x", "type": "string"}],
        "/machine/peripheral": [
            {"name": "a", "type": "child<virtio-rng-pci>"},
            {"name": "b", "type": "child<virtio-rng-pci>"},
        ],
        "/machine/peripheral-anon": [],
    }
    buses = {"/machine/unattached/device[0]": "/machine/x/isa.0", "/machine/peripheral/a": "/m/pcie.0"}

    def ask(question: str, *, path: str, **rest: str) -> object:
        if question == "qom-list":
            return tree[path]
        if path.endswith("/b"):
            raise VmError("no such property")
        return buses.get(path)

    found = read_positions(ask)
    assert found.counts == {"q35-pcihost": 1, "isa-serial": 1, "virtio-rng-pci": 2}
    assert found.buses == {"isa-serial": "isa.0", "virtio-rng-pci": "pcie.0"}


@pytest.mark.parametrize("answer", [None, "x", 7, [{}] * 600])
def test_a_device_tree_that_makes_no_sense_is_refused(answer: object) -> None:
    with pytest.raises(ValueError, match="makes no sense"):
        read_positions(lambda question, **rest: answer)


@pytest.mark.parametrize(
    "children", [[None], [{"name": 1, "type": "child<x>"}], [{"name": "a"}], [{"type": "child<irq>", "name": "i"}]]
)
def test_entries_that_are_no_devices_are_left_out(children: object) -> None:
    assert read_positions(lambda question, **rest: children).counts == {}


def test_kinds() -> None:
    assert kind_of("isa-fdc").name == "floppy"
    assert kind_of("vhost-user-fs-pci").name == "device of a helper"
    assert kind_of("i8257").name == "DMA controller"
    assert kind_of("i82551").name == "network card, emulated"
    assert kind_of("i82801b11-bridge").name == "PCI bridge"
    assert kind_of("apic").go == ""
    assert kind_of("never-heard-of").name == "board and chip set"


@pytest.mark.parametrize(
    ("target", "pid", "words"),
    [
        ([], None, "nothing to look at"),
        (["x"], 1, "--pid and a target"),
        ([], 1, "no emulator that could be read"),
        (["/bin/sh"], None, "describes no machine"),
        (["/nonexistent"], None, "no such file"),
        (["a.xml", "b.xml"], None, "several targets"),
    ],
)
def test_what_cannot_be_looked_at(target: list[str], pid: int | None, words: str) -> None:
    with pytest.raises(InputError) as caught:
        look_at(target, pid)
    assert words in str(caught.value)


def test_a_xen_domain_is_shown_the_way_to_harden(tmp_path: Path) -> None:
    path = tmp_path / "web.cfg"
    path.write_text("name = 'web'\nmemory = 512\ndisk = ['/d.img,raw,xvda,rw']\n")
    with pytest.raises(InputError, match="is a Xen domain"):
        look_at([str(path)])


def test_a_file_with_a_command_line_and_one_on_the_command_line_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "cmd"
    path.write_text(CARELESS)
    assert surface_document(look_at([str(path)]), table())["rows"] == document(CARELESS)["rows"]


def test_the_command_prints_json_tables_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    svg = tmp_path / "paths.svg"
    assert main(["surface", str(DOMAINS / "linux-virt-install.xml"), "--json", "--svg", str(svg)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "casemate.surface/1"
    assert set(found) == {
        *("schema", "name", "source", "stage", "machine", "accel", "irqchip", "rows", "history", "paths", "measured"),
        *("exits", "notes", "unknown"),
    }
    row_keys = {"type", "kind", "bus", "handler", "weight", "cves", "count", "go", "cost"}
    assert all(set(row) == row_keys for row in found["rows"])
    assert svg.read_text().startswith("<svg ")
    assert main(["surface", "--paths", "--", *CARELESS.split()]) == 0
    said = capsys.readouterr().out
    assert "e1000, transmit" in said
    assert "HANDLED BY" in said
    assert "together" in said


def test_no_picture_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    svg = tmp_path / "paths.svg"
    line = "qemu-system-x86_64 -nodefaults -m 64 -machine microvm -kernel /k"
    assert main(["surface", "--svg", str(svg), "--", *line.split()]) == 2
    assert "nothing to draw" in capsys.readouterr().err
    assert not svg.exists()
