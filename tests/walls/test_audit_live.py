"""The audit over real processes: a careless QEMU fails what it must, a VM of ours nothing that its launch passed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.careless import FAILS, QEMU, ROOT_FAILS, careless_qemu
from tests.support.machines import Machines

from casemate import assess, risk_reports, risks
from casemate.audit import own
from casemate.audit.live import look_at_host
from casemate.audit.own import filled, own_vms
from casemate.controls.audit_model import TargetReport
from casemate.controls.model import Verdict
from casemate.errors import InputError
from casemate.facts.fact import Known
from casemate.facts.process_find import find_one
from casemate.facts.root import Root
from casemate.facts.vmm_process import host_view, read_vmm, vmm_facts
from casemate.facts.vmm_process_reach import HOST_TREE
from casemate.scenarios.model import Status

pytestmark = [pytest.mark.wall, pytest.mark.skipif(not os.access(QEMU, os.X_OK), reason="QEMU is not installed")]


def verdicts(report: TargetReport, verdict: Verdict) -> set[str]:
    return {finding.control_id for finding in report.findings if finding.verdict is verdict}


def test_a_careless_qemu_fails_what_it_must() -> None:
    with careless_qemu() as process:
        report = assess.audit(pid=[process.pid])
    (target,) = report.targets
    assert target.target.name == "careless"
    expected = FAILS | (ROOT_FAILS if os.geteuid() == 0 else frozenset())
    assert expected - verdicts(target, Verdict.FAIL) == set()


def test_what_it_reaches_is_named() -> None:
    with careless_qemu() as process:
        root = Root()
        view = host_view(root)
        found = find_one(root, process.pid)
        facts = vmm_facts(read_vmm(process.pid, found.start_time, root, view), view, root)
    tree = facts["proc.root-unexpected"]
    assert isinstance(tree, Known)
    assert tree.value == (HOST_TREE,)
    writable = facts["proc.mounts-writable"]
    assert isinstance(writable, Known)
    assert writable.value


def test_a_process_that_was_replaced_is_never_mixed_with_its_successor() -> None:
    root = Root()
    view = host_view(root)
    with careless_qemu() as process:
        found = find_one(root, process.pid)
        with pytest.raises(ProcessLookupError):
            read_vmm(process.pid, found.start_time - 1, root, view)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with pytest.raises(ProcessLookupError):
            read_vmm(process.pid, found.start_time, root, view)
        with pytest.raises(InputError, match="no emulator"):
            assess.audit(pid=[process.pid])


@pytest.fixture
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    found = Machines(str(tmp_path_factory.mktemp("audit")))
    yield found
    found.end_all()


def test_our_vm_fails_nothing_that_its_launch_passed(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    from casemate.engine import rows, state

    definition, _running = machines.boot(ready=False)
    monkeypatch.setattr(own, "default_paths", lambda: machines.paths)
    (vm,) = own_vms()
    assert filled(vm).notes == ()
    live = look_at_host(Root(), own_vms())
    assert [found.name for found in live.vms if found.own is not None] == [definition.name]
    (target,) = assess.audit([definition.name]).targets
    wall = rows.inspect_view(machines.paths, state.look(machines.paths, definition))["wall"]
    passed = {entry["control"] for entry in wall if entry["verdict"] == "pass"}
    assert len(passed) > 40
    if len({vm.read.process.threads[0].uids[0] for vm in live.vms}) < len(live.vms):
        # The locks on uids are this test's own: a VM that somebody runs beside it may have got the same one.
        passed -= {"proc.uid-unique", "proc.drift"}
    assert passed & verdicts(target, Verdict.FAIL) == set()
    if os.geteuid() == 0:  # an ordinary user may not open /proc/PID/fd of his subordinate uid
        assert passed & verdicts(target, Verdict.UNKNOWN) == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="the descriptors of a subordinate uid are unknown to an ordinary user")
def test_nothing_leads_out_of_our_emulator_but_unknown_bugs(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every weakness out of the emulator that the wall is about is closed by what was observed, not by what we say."""
    definition, _running = machines.boot(ready=False)
    monkeypatch.setattr(own, "default_paths", lambda: machines.paths)
    report = risks.analyse([definition.name], with_evidence=True)
    (vm,) = report.vms
    stands = {item.id: item.status for item in vm.techniques}
    walled = {"esc.own-rights", "esc.host-files", "esc.system-calls", "esc.namespaces", "esc.terminal", "nb.same-user"}
    assert {name: stands[name] for name in walled} == dict.fromkeys(walled, Status.CLOSED)
    devices = {"emu.floppy", "emu.legacy-nic", "emu.legacy-disk", "emu.usb", "emu.display", "emu.slirp"}
    assert {name: stands[name] for name in devices} == dict.fromkeys(devices, Status.CLOSED)
    assert vm.evidence["dev.cve"].startswith("pass"), vm.evidence["dev.cve"]
    assert stands["emu.known-bug"] is not Status.OPEN, "what is open in the emulator lies in no part of this VM"
    assert vm.counts["residual"] + vm.counts["contained"] > 0
    assert not [note for note in vm.notes if "emulator" in note], "it runs a sealed copy of one that was audited"
    page = risk_reports.render_comparison(risks.compare_placements([definition.name], services=5), page=True)
    assert "one VM each" in page
    if os.environ.get("CASEMATE_WRITE_EXAMPLES"):
        place = Path(__file__).parents[2] / "docs/examples"
        (place / "casemate-vm.html").write_text(risk_reports.render(report, "html"))
        (place / "compare.html").write_text(page)
