"""Small situations worked out by hand: what is open, what closes it cheapest, what remains, and why."""

from __future__ import annotations

import datetime
from collections.abc import Iterable

import msgspec
import pytest

from casemate.controls.catalogue.all import all_controls
from casemate.facts.cve_table import table
from casemate.scenarios.context import Acceptance, Context
from casemate.scenarios.formula import State, Value
from casemate.scenarios.model import Node, Status
from casemate.scenarios.risk import Settings, Subject, risk_of
from casemate.scenarios.risk_model import Action, Level, ScenarioRisk, VmRisk, level_of
from casemate.scenarios.weigh import weigher

IDS = tuple(control.id for control in all_controls())
TODAY = datetime.date(2026, 11, 23)
NOBODY_TRUSTED = Context(trust={})


def states(
    *, fail: Iterable[str] = (), unknown: Iterable[str] = (), paper: Iterable[str] = (), absent: Iterable[str] = ()
) -> dict[str, State]:
    """Every control of the catalogue passes on observed facts, but for these."""
    found = dict.fromkeys(IDS, State(Value.YES))
    for names, state in (
        (fail, State(Value.NO)),
        (unknown, State(Value.UNKNOWN)),
        (paper, State(Value.PAPER)),
        (absent, State(Value.YES, absent=True)),
    ):
        for name in names:
            assert name in found
            found[name] = state
    return found


def risk(
    found: dict[str, State],
    *,
    costs: dict[str, float] | None = None,
    context: Context = NOBODY_TRUSTED,
    history: tuple[str, ...] = (),
) -> VmRisk:
    settings = Settings(weigher(), context, lambda control: (costs or {}).get(control, 10.0), TODAY)
    return risk_of(Subject(name="web", kind="vm", host="h", states=found, history=history), settings)


def scenario(report: VmRisk, name: str) -> ScenarioRisk:
    return next(item for item in report.scenarios if item.id == name)


def open_paths(report: VmRisk) -> dict[str, list[tuple[str, ...]]]:
    """The open paths by scenario. All of them are among the shown ones in these examples."""
    found = {}
    for item in report.scenarios:
        rows = [path.techniques for path in item.paths if path.status is Status.OPEN]
        assert len(rows) == item.counts.get("open", 0)
        if rows:
            found[item.id] = rows
    return found


def plan(report: VmRisk) -> set[str]:
    return {fix.control for fix in report.fixes if fix.of_plan}


def test_1_everything_holds() -> None:
    """No weakness is open anywhere, so no path is; unknown bugs in devices, kernels and hardware stay."""
    report = risk(states())
    assert report.counts["open"] == report.counts["unknown"] == report.counts["on-paper"] == 0
    assert report.counts["residual"] > 0
    assert plan(report) == set()
    assert {item.technique for item in report.residuals} >= {
        "emu.unknown-bug",
        "kvm.unknown-bug",
        "side.unknown-channel",
    }
    device = next(item for item in report.residuals if item.technique == "emu.unknown-bug")
    assert device.missing == ()
    assert device.reaches == (Node.VM_DATA,), "behind a whole wall only the VM's own data are in reach"


def test_2_a_legacy_device_behind_a_whole_wall() -> None:
    """The emulator can be entered by a floppy controller, but every way out of it is closed: nothing to the host or to
    others is open. What the emulator has anyway, the VM's own data, its guest had before."""
    report = risk(states(fail=["dev.no-floppy"]))
    assert open_paths(report) == {}
    assert scenario(report, "emulated-device").counts.get("residual", 0) > 0, (
        "legacy device, then an unknown kernel bug"
    )


def test_3_a_legacy_device_and_an_emulator_with_rights() -> None:
    """Floppy controller in, root's rights out: exactly one path to the host. It is cut at either end; the device costs
    1, the identity 2, so the plan removes the device."""
    found = states(fail=["dev.no-floppy", "proc.uid"])
    report = risk(found, costs={"dev.no-floppy": 1.0, "proc.uid": 2.0})
    assert open_paths(report) == {"emulated-device": [("emu.floppy", "esc.own-rights", "has.host")]}
    assert plan(report) == {"dev.no-floppy"}
    assert report.plan_cost == 1.0
    # The other end stays open to an unknown bug: one, not two, away from the host.
    device = next(item for item in report.residuals if item.technique == "emu.unknown-bug")
    assert device.missing == ("proc.uid",)
    assert Node.HOST in device.reaches


def test_4_a_passing_control_on_a_step_closes_no_second_technique_of_it() -> None:
    """Step s2, guest to emulator: no floppy (passes), no slirp (passes), but a USB stick of the host (fails). The path
    through USB is as open as before; so would a legacy network card be with the floppy gone."""
    report = risk(states(fail=["iommu.no-usb-host", "proc.uid"]))
    assert open_paths(report) == {"emulated-device": [("emu.host-usb", "esc.own-rights", "has.host")]}
    report = risk(states(fail=["dev.no-legacy-nic", "proc.uid"]))
    assert open_paths(report) == {"emulated-device": [("emu.legacy-nic", "esc.own-rights", "has.host")]}


def test_5_vhost_goes_past_the_whole_wall() -> None:
    """vhost-net is the host's kernel: no control of the emulator's wall is on the path, and one control closes it."""
    report = risk(states(fail=["kvm.no-vhost-net"]), costs={"kvm.no-vhost-net": 4.0})
    assert open_paths(report) == {"kernel-drivers": [("kvm.vhost", "has.host")]}
    assert plan(report) == {"kvm.no-vhost-net"}


def test_6_page_merging_is_closed_at_the_vm_or_at_the_host() -> None:
    """Merging needs both: the host that merges and memory that may be merged. One of the two closes it; when both fail
    the cheaper one is the plan."""
    assert open_paths(risk(states(fail=["cpu.ksm"]))) == {}
    assert open_paths(risk(states(fail=["cpu.ksm-host"]))) == {}
    report = risk(states(fail=["cpu.ksm", "cpu.ksm-host"]), costs={"cpu.ksm": 1.0, "cpu.ksm-host": 2.0})
    assert open_paths(report) == {"page-sharing": [("side.merged-pages",)]}
    assert plan(report) == {"cpu.ksm"}


def test_7_one_way_out_and_three_ways_in() -> None:
    """Three techniques into the emulator, one out of it. Closing the ways in costs 1 each, 3 in all; the way out costs
    2: the plan closes the way out. At 4 for the way out it is the other way round."""
    found = states(fail=["dev.no-floppy", "dev.no-slirp", "dev.no-share", "proc.caps"])
    doors = {"dev.no-floppy": 1.0, "dev.no-slirp": 1.0, "dev.no-share": 1.0}
    report = risk(found, costs=doors | {"proc.caps": 2.0})
    assert len(open_paths(report)["emulated-device"]) == 3
    assert plan(report) == {"proc.caps"}
    assert plan(risk(found, costs=doors | {"proc.caps": 4.0})) == set(doors)


def test_8_what_nobody_knows_is_not_closed_and_says_what_would_settle_it() -> None:
    """Nobody could look for loop devices: whether the host parses a guest's file system hangs on that alone."""
    report = risk(states(unknown=["os.no-loop-image"]))
    mounted = scenario(report, "mounted-file-system")
    assert mounted.status is Status.UNKNOWN
    assert {path.settle for path in mounted.paths if path.status is Status.UNKNOWN} == {("os.no-loop-image",)}
    assert mounted.likelihood == 3
    assert mounted.likelihood_if_known == 0
    fix = next(item for item in report.fixes if item.control == "os.no-loop-image")
    assert (fix.of_plan, fix.action) == (True, Action.OBSERVE)


def test_9_a_declaration_closes_on_paper_only() -> None:
    """A document without host devices, never read live: on paper. The plan asks to verify, not to change."""
    report = risk(states(paper=["iommu.no-hostdev"], fail=["iommu.on"]))
    assert scenario(report, "passthrough").status is Status.PAPER
    (fix,) = [item for item in report.fixes if item.of_plan]
    assert (fix.control, fix.action) == ("iommu.no-hostdev", Action.VERIFY)


def test_10_the_vmm_is_root_unless_each_call_is_checked() -> None:
    """libvirt on plain TCP: whoever connects manages VMs. With access control per call he is not root, but he can stop
    everything; without it he is root as well."""
    report = risk(states(fail=["vmm.tcp"]))
    assert open_paths(report) == {"remote-libvirt": [("vmm.remote", "has.switch")]}
    report = risk(states(fail=["vmm.tcp", "vmm.acl"]), costs={"vmm.tcp": 3.0, "vmm.acl": 1.0})
    assert sorted(open_paths(report)["remote-libvirt"]) == [
        ("vmm.remote", "has.switch"),
        ("vmm.remote", "vmm.is-root", "has.host"),
    ]
    assert plan(report) == {"vmm.tcp"}, "the cheaper vmm.acl leaves the other path"


def test_11_a_waiver_closes_nothing_and_slowing_closes_nothing() -> None:
    """An emulator with W^X, PIE and canaries is harder to enter through a floppy, not closed: V1 in place of V2."""
    binary = ["bin.pie", "bin.relro", "bin.nx", "bin.canary", "bin.fortify", "proc.no-rwx"]
    hard = scenario(risk(states(fail=["dev.no-floppy", "proc.uid"])), "emulated-device")
    soft = scenario(risk(states(fail=["dev.no-floppy", "proc.uid", *binary])), "emulated-device")
    assert (hard.status, hard.likelihood) == (Status.OPEN, 1)
    assert (soft.status, soft.likelihood) == (Status.OPEN, 2)


def test_12_history_counts_only_for_devices_that_are_there() -> None:
    """The past of USB makes the USB path likelier on a machine with USB; that of vhost-net changes nothing about it."""
    found = states(fail=["dev.no-usb", "proc.uid", "bin.pie"])
    usb = tuple(cve.id for cve in table().cves if cve.component == "usb")
    assert scenario(risk(found), "emulated-device").likelihood == 2
    assert scenario(risk(found, history=usb), "emulated-device").likelihood == 3
    network = tuple(cve.id for cve in table().cves if cve.component == "vhost-net")
    assert scenario(risk(found, history=network), "emulated-device").likelihood == 2


def test_13_the_operator_counts_when_nobody_trusts_him() -> None:
    """An ordinary VM is an open book to its host. Only the three confidential controls together close that, and a fault
    of the technology remains."""
    found = states(fail=["cc.launch"], absent=["cc.attest", "cc.no-debug"])
    report = risk(found)
    assert open_paths(report) == {"malicious-host": [("operator.rules", "host.reads-memory")]}
    assert report.remaining == 1, "attestation cannot be fixed while nothing is confidential: it needs another VM"
    trusting = risk(found, context=Context())
    assert scenario(trusting, "malicious-host").set_aside
    assert trusting.counts["open"] == 0
    assert scenario(trusting, "malicious-host").counts["open"] == 1, "set aside, not hidden"


@pytest.mark.parametrize(
    "name", ["cc.attest", "cc.no-debug", "cc.no-migration", "cc.kernel-hashes", "cc.stateless-firmware"]
)
def test_13_each_hole_of_a_confidential_launch_is_the_hosts_way_in(name: str) -> None:
    """What is debugged, sent away or booted unmeasured is an open book again; what a kind does not have is no hole."""
    assert open_paths(risk(states(fail=[name]))) == {"malicious-host": [("operator.rules", "host.reads-memory")]}
    lacking = ["cc.no-debug", "cc.no-migration", "cc.kernel-hashes", "cc.stateless-firmware"]
    assert open_paths(risk(states(absent=lacking))) == {}


def test_14_random_state_needs_both() -> None:
    """virtio-rng gives entropy, vmgenid tells a clone that it is one: each alone leaves keys that can be guessed."""
    for control in ("ent.virtio-rng", "ent.vmgenid"):
        assert open_paths(risk(states(fail=[control]))) == {"clone": [("guest.predicted-random",)]}


def test_owner_values_and_acceptance() -> None:
    """Gravity is the owner's, by name of the VM; an acceptance holds until its day, and changes no path."""
    found = states(fail=["cpu.ksm", "cpu.ksm-host"])
    dear = Context(goods_of=(("w*", {Node.OTHER_VM_DATA: 4}),), trust={})
    assert scenario(risk(found, context=dear), "page-sharing").gravity == 4
    assert scenario(risk(found), "page-sharing").gravity == 3
    for until, accepted in ((TODAY, True), (TODAY - datetime.timedelta(days=1), False)):
        context = Context(accept=(Acceptance("page-sharing", "one owner", until),), trust={})
        item = scenario(risk(found, context=context), "page-sharing")
        assert bool(item.accepted) is accepted
        assert item.counts == {"open": 1}


def test_after_the_plan_nothing_is_open() -> None:
    """Whatever fails together: after the plan only what the plan says it cannot close is left."""
    for chosen in (IDS[::3], IDS[1::3], IDS[2::3], IDS):
        report = risk(states(fail=chosen))
        done = states(fail=set(chosen) - plan(report))
        after = risk(done)
        assert after.counts["open"] == after.counts["unknown"] == 0
        assert report.remaining == 0
        for before, later in zip(report.scenarios, after.scenarios, strict=True):
            assert before.after == later.likelihood


@pytest.mark.parametrize(
    ("gravity", "likelihood", "level"),
    [
        *((4, 4, "critical"), (4, 3, "critical"), (3, 4, "critical"), (3, 3, "high"), (2, 3, "high")),
        *((4, 1, "moderate"), (1, 3, "moderate"), (1, 2, "low"), (2, 1, "low"), (4, 0, "low")),
    ],
)
def test_matrix(gravity: int, likelihood: int, level: str) -> None:
    assert level_of(gravity, likelihood) is Level(level)


def test_the_report_is_plain_data() -> None:
    report = risk(states(fail=["cpu.ksm", "cpu.ksm-host"], unknown=["img.hash"]))
    assert msgspec.json.decode(msgspec.json.encode(report), type=VmRisk) == report
