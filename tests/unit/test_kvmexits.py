"""Exits by reason out of QMP's query-stats: a real answer, none, and answers that make no sense."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.cli import surface as cli_surface
from casemate.engine.kvmexits import ARGUMENTS, difference, read_exits
from casemate.engine.measure import EXITS, NO_EXITS, Count, Workload, measured_document
from casemate.engine.serving import LOOKS
from casemate.errors import VmError
from casemate.facts.cve_table import table
from casemate.facts.fact import Facts, Known
from casemate.surface.build import Look, surface_document

# QEMU 7.2 on Linux 6.18, a VM of one processor; some counters left out.
RECORDED: list[dict[str, Any]] = [
    {
        "provider": "kvm",
        "qom-path": "/machine/unattached/device[0]",
        "stats": [
            {"name": "guest_mode", "value": False},
            {"name": "req_event", "value": 3},
            {"name": "irq_injections", "value": 7},
            {"name": "hypercalls", "value": 0},
            {"name": "insn_emulation", "value": 14577},
            {"name": "halt_exits", "value": 1},
            {"name": "signal_exits", "value": 71},
            {"name": "io_exits", "value": 0},
            {"name": "exits", "value": 123},
            {"name": "blocking", "value": False},
            {"name": "halt_wait_hist", "value": [0, 0, 70, 1]},
            {"name": "halt_wait_ns", "value": 1932186983},
        ],
    }
]


def answering(answer: object) -> Any:
    def ask(question: str, **arguments: Any) -> object:
        assert (question, arguments) == ("query-stats", ARGUMENTS)
        return answer

    return ask


def test_a_real_answer() -> None:
    expected = {"hypercalls": 0, "insn_emulation": 14577, "halt_exits": 1, "signal_exits": 71, "io_exits": 0}
    assert read_exits(answering(RECORDED)) == {**expected, "exits": 123}
    two = read_exits(answering([*RECORDED, *RECORDED]))
    assert isinstance(two, dict)
    assert two["exits"] == 246, "all processors together"


def test_a_supervisor_passes_the_question_on() -> None:
    assert LOOKS["query-stats"] == ()


@pytest.mark.parametrize(
    "answer",
    [
        *(None, {}, "x", [None], [{}], [{"provider": "kvm"}], [{"provider": "kvm", "stats": {}}]),
        *([{"provider": "nvmm", "stats": []}], [RECORDED[0]] * 1025, [{"provider": "kvm", "stats": [{}] * 513}]),
    ],
)
def test_an_answer_that_makes_no_sense(answer: object) -> None:
    found = read_exits(answering(answer))
    assert isinstance(found, str)
    assert "makes no sense" in found


def test_without_counters_the_reason_is_said() -> None:
    assert "no KVM" in str(read_exits(answering([])))

    def refuses(question: str, **arguments: Any) -> object:
        raise VmError("the emulator refused a command", got="The command query-stats has not been found")

    found = read_exits(refuses)
    assert isinstance(found, str)
    assert "refused" in found


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), st.lists))
def test_hostile_counters_are_left_out(value: object) -> None:
    stats = [{"name": "exits", "value": value}, {"name": value, "value": 1}, {"name": "x_exits\n", "value": 1}, value]
    found = read_exits(answering([{"provider": "kvm", "stats": stats}]))
    assert isinstance(found, str) or all(type(count) is int and count >= 0 for count in found.values())
    assert isinstance(found, str) or set(found) == {"exits"}


def test_what_one_workload_added() -> None:
    before, after = {"exits": 5, "io_exits": 2}, {"exits": 9, "io_exits": 2, "mmio_exits": 3}
    assert difference(before, after) == {"exits": 4, "mmio_exits": 3}


def counted(exits: dict[str, int] | str) -> Count:
    work = Workload("e1000", "transmit", 512, 200)
    return Count(workload=work, accesses=1, notifications=0, interrupts=1, regions={}, moved=200, exits=exits)


def test_a_measurement_under_kvm_prints_exits_by_reason(capsys: pytest.CaptureFixture[str]) -> None:
    document = measured_document((counted({"exits": 1500, "mmio_exits": 1280}),), "7.2.0", "6.1", "kvm")
    assert (document["accel"], document["exits"]) == ("kvm", EXITS)
    assert document["rows"][0]["exits"] == {"exits": 1500, "mmio_exits": 1280}
    cli_surface._measured(document)
    said = capsys.readouterr().out
    assert "exits 7.50, mmio_exits 6.40" in said
    assert "under KVM" in said


def test_a_measurement_without_exits_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    document = measured_document((counted(NO_EXITS),), "7.2.0", "6.1")
    assert (document["exits"], document["rows"][0]["exits"]) == (NO_EXITS, None)
    told = measured_document((counted("KVM tells none"),), "7.2.0", "6.1", "kvm")
    assert told["exits"] == "KVM tells none"
    cli_surface._measured(told)
    assert "BY REASON" not in capsys.readouterr().out


def seen(facts: Facts, exits: dict[str, int] | str) -> Look:
    return Look(name="web", source="QMP", stage="observed", facts=facts, exits=exits)


def test_a_running_vm_tells_its_exits(capsys: pytest.CaptureFixture[str]) -> None:
    facts: Facts = {"dev.types": Known(("virtio-rng-device",), "x"), "dev.accel": Known("kvm", "x")}
    document = surface_document(seen(facts, {"exits": 9, "io_exits": 4}), table())
    assert document["exits"] == {"exits": 9, "io_exits": 4}
    cli_surface._print(document)
    assert "Exits since it started: exits 9, io_exits 4" in capsys.readouterr().out
    unknown = surface_document(seen(facts, "not told"), table())
    assert (unknown["exits"], unknown["unknown"][-1]) == (None, "exits: not told")
