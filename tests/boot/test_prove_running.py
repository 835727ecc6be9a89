"""A proof beside a running VM: a second wall from the same specification, and the VM does not notice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.machines import Machines, machines

from casemate.controls.policy import HostPolicy
from casemate.engine.prove import prove_vm
from casemate.jail.probe.judge import Outcome

pytestmark = pytest.mark.boot


@pytest.fixture(name="machines")
def some_machines() -> Iterator[Machines]:
    with machines() as found:
        yield found


def test_a_running_vm_is_proved_and_not_disturbed(machines: Machines) -> None:
    definition, running = machines.boot()
    report = prove_vm(machines.paths, definition, HostPolicy(), quick=True)
    assert report.unexpected == ()
    assert report.vm == definition.name
    found = {item.id: item for item in report.results}
    for name in (f"files.read-state-of-{definition.id}", f"sockets.unix-control-{definition.id}"):
        assert found[name].outcome is Outcome.STOPPED
    after = machines.look(definition)
    assert after.state == "running"
    assert after.running is not None
    assert running.emulator is not None
    assert after.running.emulator == running.emulator
    assert machines.ask(definition, "status")
