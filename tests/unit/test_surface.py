"""surface: rows, handlers, sorting, history before and after."""

from __future__ import annotations

from casemate.facts.cve_table import table
from casemate.facts.fact import Stage
from casemate.facts.machine_facts import machine_facts
from casemate.facts.qemu_argv import read_argv
from casemate.surface.build import surface_document
from casemate.surface.kinds_data import kind_of


def document(line: str) -> dict:  # type: ignore[type-arg]
    machine = read_argv(line.split(), "test")
    return surface_document(machine_facts(machine, Stage.DECLARED), "vm", "test", "declared", table())


def test_a_careless_machine_has_more_history_than_a_small_one() -> None:
    careless = document("qemu-system-x86_64 -machine pc,accel=kvm -nic user,model=e1000")
    small = document("qemu-system-x86_64 -nodefaults -machine microvm,accel=kvm -device virtio-rng-device")
    emulator = [
        len([cve for cve in doc["history"]["reached"] if cve["side"] == "emulator"]) for doc in (careless, small)
    ]
    assert emulator[0] >= 10 > emulator[1]
    assert len(careless["history"]["after_removal"]) < len(careless["history"]["reached"])
    weights = [row["weight"] for row in careless["rows"]]
    assert weights == sorted(weights, reverse=True)
    by_type = {row["type"]: row for row in careless["rows"]}
    assert by_type["e1000"]["kind"] == "network card, emulated"
    assert by_type["e1000"]["handler"] == "emulator process"
    assert by_type["kvm-ioapic"]["handler"] == "host kernel"
    assert by_type["accel:kvm"]["kind"].startswith("hypercalls")
    assert "accel:kvm" not in {r["type"] for r in document("qemu-system-x86_64 -accel tcg")["rows"]}


def test_kinds() -> None:
    assert kind_of("isa-fdc").name == "floppy"
    assert kind_of("vhost-user-fs-pci").name == "device of a helper"
    assert kind_of("never-heard-of").name == "board and chip set"
