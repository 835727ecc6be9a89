"""Controls on live processes that only an audit judges: one change flips each; helpers told by what they may do."""

from __future__ import annotations

import pytest

from casemate.audit.relations import helper_faults
from casemate.controls.catalogue.process_audit import CONTROLS
from casemate.controls.judge import judge
from casemate.controls.model import Verdict
from casemate.facts.fact import Facts, Known, Stage, Unknown, Value

GOOD: dict[str, Value] = {
    "vm.vmm": "qemu",
    "dev.cves-open": (),
    "dev.cves-unclear": (),
    "proc.helpers": ("passt 7",),
    "proc.helpers-faults": (),
    "proc.seccomp-default": "kill",
    "proc.seccomp-x32": "kill",
    "proc.loader-environment": (),
    "proc.personality": 0,
    "proc.oom-score-adj": 0,
    "vmm.manager": "libvirt",
    "vmm.domain-drift": (),
}
MUTATIONS: dict[str, tuple[str, Value]] = {
    "dev.cve": ("dev.cves-open", ("CVE-2015-3456",)),
    "proc.helpers": ("proc.helpers-faults", ("swtpm 9: runs as root",)),
    "proc.seccomp-default": ("proc.seccomp-default", "allow"),
    "proc.seccomp-x32": ("proc.seccomp-x32", "allow"),
    "proc.loader-environment": ("proc.loader-environment", ("LD_PRELOAD",)),
    "proc.personality": ("proc.personality", 0x0004_0000),
    "proc.oom-score-adj": ("proc.oom-score-adj", -1),
    "vmm.domain-drift": ("vmm.domain-drift", ("device not written down: e1000",)),
}


def verdicts(changes: dict[str, Value]) -> dict[str, Verdict]:
    facts: Facts = {name: Known(value, "test") for name, value in {**GOOD, **changes}.items()}
    return {finding.control_id: finding.verdict for finding in judge(CONTROLS, facts, stage=Stage.OBSERVED)}


def test_the_good_process_passes_and_every_control_has_a_change() -> None:
    assert set(verdicts({}).values()) == {Verdict.PASS}
    assert set(MUTATIONS) == {control.id for control in CONTROLS}


@pytest.mark.parametrize("control", MUTATIONS)
def test_one_change_flips_exactly_that_control(control: str) -> None:
    name, value = MUTATIONS[control]
    found = verdicts({name: value})
    assert {i for i, verdict in found.items() if verdict is not Verdict.PASS} == {control}
    assert found[control] is Verdict.FAIL


def test_without_helpers_the_control_does_not_apply() -> None:
    assert verdicts({"proc.helpers": ()})["proc.helpers"] is Verdict.NOT_APPLICABLE


HELPER: dict[str, Value] = {
    "proc.uid": 1900000001,
    "proc.caps": (),
    "proc.no-new-privs": True,
    "proc.seccomp-mode": 2,
    "proc.seccomp-dangerous": ("socket", "connect", "setuid"),
    "proc.namespaces": ("user", "net"),
}


def faults(changes: dict[str, Value | None]) -> object:
    """The fact's value, or ``unknown``; None takes a fact away."""
    facts: Facts = {name: Known(value, "t") for name, value in HELPER.items()}
    for name, value in changes.items():
        facts[name] = Unknown("closed") if value is None else Known(value, "t")
    fact = helper_faults((("passt 7", facts),))
    return fact.value if isinstance(fact, Known) else "unknown"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ()),
        ({"proc.uid": 0}, ("passt 7: runs as root",)),
        ({"proc.caps": ("cap_dac_override",)}, ()),
        ({"proc.caps": ("cap_dac_override",), "proc.namespaces": ("net",)}, ("passt 7: 1 capabilities over the host",)),
        ({"proc.no-new-privs": False}, ("passt 7: may gain privileges",)),
        ({"proc.seccomp-mode": 0}, ("passt 7: no seccomp filter",)),
        (
            {"proc.seccomp-dangerous": ("execve", "socket")},
            ("passt 7: its filter lets 1 dangerous calls through: execve",),
        ),
        ({"proc.seccomp-dangerous": None}, "unknown"),
        ({"proc.uid": None}, "unknown"),
        ({"proc.namespaces": None, "proc.uid": 0}, ("passt 7: runs as root",)),
        ({"proc.seccomp-mode": None}, "unknown"),
    ],
)
def test_what_a_helper_may_do(changes: dict[str, Value | None], expected: object) -> None:
    assert faults(changes) == expected


def test_one_unread_helper_hides_nothing_of_another() -> None:
    good: Facts = {name: Known(value, "t") for name, value in HELPER.items()}
    bad = good | {"proc.seccomp-mode": Known(0, "t")}
    fact = helper_faults((("swtpm 1", {}), ("passt 2", bad)))
    assert isinstance(fact, Known)
    assert fact.value == ("passt 2: no seccomp filter",)
    assert isinstance(helper_faults((("swtpm 1", {}), ("passt 2", good))), Unknown)
