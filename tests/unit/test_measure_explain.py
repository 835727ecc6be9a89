"""What explains a value of a TPM, where a real log differs, and how wrong use is answered."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec
import pytest
from tests.fuzz.fuzz_measure import variables_seed
from tests.unit.test_measure_boot import SECURE_PAGES, TPM_DRIVER, kernel

from casemate.cli.main import main
from casemate.errors import InputError
from casemate.evidence.event_log import EV_NO_ACTION, Event, EventLog
from casemate.measure import inputs as inputs_module
from casemate.measure.explain import SAME, differences, explain
from casemate.measure.inputs import Inputs, measured
from casemate.measure.registers import Prediction, Step
from casemate.measure.volumes import Volumes


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Inputs:
    """A kernel given to a firmware that is only what is looked for in one."""
    monkeypatch.setattr(inputs_module, "_volumes", volumes)
    return Inputs(
        kind="tpm",
        firmware=b" initrd=initrd\0",
        variables=variables_seed(),
        kernel=kernel() + b"LOADED_IMAGE::LoadOptions\0Linux initrd\0",
        initrd=b"initrd",
        cmdline="quiet",
        memory_bytes=512 << 20,
    )


def volumes(firmware: bytes) -> Volumes:
    return Volumes(b"", TPM_DRIVER + SECURE_PAGES + firmware)


@pytest.mark.parametrize(
    ("change", "register", "said"),
    [
        ({}, 4, SAME),
        ({"memory_bytes": 2048 << 20}, 4, "2048 MiB of memory"),
        ({"initrd": None}, 9, "no initrd"),
        ({"cmdline": ""}, 9, "no command line"),
        ({"cmdline": "debug"}, 9, "cmdline debug"),
        ({"initrd": b"other"}, 9, "initrd new.img"),
    ],
)
def test_one_change_of_a_measured_boot(machine: Inputs, change: dict[str, object], register: int, said: str) -> None:
    others: dict[str, list[tuple[str, object]]] = {"cmdline": [("debug", "debug")], "initrd": [("new.img", b"other")]}
    name = f"sha256.{register}"
    reported = measured(msgspec.structs.replace(machine, **change), {}).values[name]
    assert explain(machine, name, reported, others) == said


def test_one_event_of_the_log(machine: Inputs) -> None:
    steps = [step for step in measured(machine, {}).steps if step.register == 9]
    digests = [step.digests["sha256"] for step in steps]
    once = twice = bytes(32)
    for digest in digests[1:]:
        once = hashlib.sha256(once + digest).digest()
    for digest in (*digests, digests[-1]):
        twice = hashlib.sha256(twice + digest).digest()
    assert explain(machine, "sha256.9", once.hex(), {}) == "without the event 'command line' of register 9"
    assert explain(machine, "", twice.hex(), {}) == "with the event 'initrd' of register 9 twice"
    assert explain(machine, "sha256.9", "00" * 32, {}) is None
    with pytest.raises(InputError, match="cannot be predicted"):
        explain(machine, "sha256.0", "00" * 32, {})
    with pytest.raises(InputError, match="no value"):
        explain(machine, "sha384.4", "00" * 32, {})


def event(register: int, data: bytes, kind: int = 1) -> Event:
    return Event(register, kind, {"sha256": hashlib.sha256(data).digest()}, data)


def test_where_a_log_differs() -> None:
    steps = tuple(
        Step(register=register, what=name, digests={"sha256": hashlib.sha256(name.encode()).digest()})
        for register, name in ((4, "loader"), (4, "kernel"), (9, "initrd"), (5, "table"))
    )
    prediction = Prediction(("sha256",), (*steps, Step(register=1, what="machine", unknown="it depends")))

    def log(*events: Event) -> EventLog:
        return EventLog((event(4, b"", EV_NO_ACTION), *events), ("sha256",), 0)

    same = [event(4, b"loader"), event(4, b"kernel"), event(9, b"initrd"), event(5, b"table"), event(1, b"anything")]
    assert list(differences(prediction, log(*same), (1, 4, 5, 9))) == []
    found = list(
        differences(prediction, log(same[0], event(4, b"\x01other\xff"), *same[3:], event(5, b"more")), (1, 4, 5, 9))
    )
    assert found == [
        "register 4: event 2, 'kernel', is another one: 'other'",
        "register 5: event 2 of the log was not expected: 'more'",
        "register 9: event 1, 'initrd', is missing from the log",
    ]


def test_wrong_use_says_what_belongs_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec, file = tmp_path / "vm.toml", tmp_path / "vmlinuz"
    file.write_bytes(kernel())
    spec.write_text(f'[machine]\ntype = "q35"\n[boot]\nkernel = "{file}"\n')
    base = ["measure", str(spec)]
    firmware = ["--firmware", str(file), "--variables", str(file)]
    for line, said in (
        (["measure"], "a specification"),
        (base, "no firmware that measures"),
        ([*base, *firmware], "not a variable store"),
        ([*base, *firmware, "--qemu", "new"], "a version"),
        ([*base, *firmware, "--reference-log", str(tmp_path)], "no regular file"),
        ([*base, "--firmware", str(file)], "--variables FILE"),
        ([*base, "--kind", "tdx"], "--firmware FILE"),
        ([*base, "--cpu", "EPYC"], "--firmware FILE"),
        ([*base, "--other", "kernel"], "NAME=FILE"),
        ([*base, "--grub-file", "x"], "NAME=FILE"),
        (["measure", "--kind", "nitro"], "an EIF"),
        (["measure", str(tmp_path / "none.toml")], "cannot read"),
    ):
        assert main(line) == 2, line
        assert said in capsys.readouterr().err, line


def command(tmp_path: Path, machine: Inputs) -> list[str]:
    """What measures `machine`, as a command."""
    paths = {name: tmp_path / name for name in ("kernel", "initrd", "code", "vars")}
    paths["kernel"].write_bytes(machine.kernel or b"")
    paths["initrd"].write_bytes(b"initrd")
    paths["code"].write_bytes(machine.firmware)
    paths["vars"].write_bytes(machine.variables)
    spec = tmp_path / "vm.toml"
    spec.write_text(
        '[machine]\ntype = "q35"\nmemory_mib = 512\n'
        f'[boot]\nkernel = "{paths["kernel"]}"\ninitrd = "{paths["initrd"]}"\ncmdline = "quiet"\n'
    )
    return ["measure", str(spec), "--firmware", str(paths["code"]), "--variables", str(paths["vars"])]


def test_events_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str], machine: Inputs) -> None:
    line = command(tmp_path, machine)
    assert main([*line, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["values"] == measured(machine, {}).values
    assert found["inputs"]["cmdline"] == "quiet"
    assert {item["register"] for item in found["events"]} == {0, 1, 2, 3, 4, 5, 6, 7, 9}
    assert main([*line, "--events"]) == 0
    shown = capsys.readouterr().out
    assert f"sha256.9   {found['values']['sha256.9']}" in shown
    assert "sha256.0   not predictable: firmware" in shown
    assert " 9  initrd: sha256:" in shown
    assert main([*line, "--explain", "sha256.9=zz"]) == 2
    assert main([*line, "--other", "colour=red", "--explain", found["values"]["sha256.9"]]) == 2


def test_an_event_in_a_register_that_should_be_zeros_is_a_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], machine: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measured(machine, {})
    assert found.values["sha256.11"] == "00" * 32
    assert found.registers() == (*range(10), 11, 12)
    good = EventLog(
        tuple(Event(step.register, 1, step.digests, step.what.encode()) for step in found.steps if step.digests),
        ("sha256",),
        0,
    )
    (tmp_path / "log").write_bytes(b"")
    line = [*command(tmp_path, machine), "--compare", str(tmp_path / "log")]
    monkeypatch.setattr("casemate.evidence.event_log.parse_event_log", lambda _: good)
    assert main(line) == 0
    assert capsys.readouterr().out == ("the log has exactly the events that were computed; not compared: sha256.0\n")
    more = EventLog((*good.events, event(11, b"a section")), good.banks, good.locality)
    monkeypatch.setattr("casemate.evidence.event_log.parse_event_log", lambda _: more)
    assert main(line) == 1
    assert capsys.readouterr().out == "register 11: event 1 of the log was not expected: 'a section'\n"
