"""What counts as a fault of swtpm's wall: what differs, what is not known, and nothing of its state."""

from __future__ import annotations

import pytest
from tests.support.tpm_case import plan_with

from casemate.engine.swtpm import Tpm
from casemate.engine.tpm_facts import wall_faults
from casemate.facts.fact import Facts, Known, Unknown, Value
from casemate.jail.policy import NAMESPACES
from casemate.jail.spawn import Spawned
from casemate.plan.swtpm import STATE, swtpm_wall


def running() -> Tpm:
    plan = plan_with()
    return Tpm(Spawned(1, -1, -1), swtpm_wall(plan.helpers[0], plan.wall, {}, "/state"), -1)


def good(tpm: Tpm) -> dict[str, Value]:
    wall = tpm.wall
    return {
        "proc.uid": wall.identity.uid,
        "proc.gid": wall.identity.gid,
        "proc.caps": (),
        "proc.no-new-privs": True,
        "proc.seccomp-mode": 2,
        "proc.seccomp-filters": 2,
        "proc.seccomp-dangerous": (),
        "proc.namespaces": tuple(sorted(NAMESPACES)),
        "proc.root-unexpected": (f"{STATE}/.lock", f"{STATE}/tpm2-00.permall"),
        "proc.mounts-writable": (STATE,),
        "proc.fds-unexpected": (f"7: {STATE}/.lock (not in the plan)",),
        "proc.rlimits": tuple(sorted(f"{item.name}={item.value}" for item in wall.rlimits)),
        "proc.landlock": wall.landlock_abi,
        "proc.parent-death-signal": 9,
        "proc.session": True,
    }


BAD: dict[str, Value] = {
    "proc.uid": 0,
    "proc.gid": 0,
    "proc.caps": ("cap_chown",),
    "proc.no-new-privs": False,
    "proc.seccomp-mode": 0,
    "proc.seccomp-filters": 1,
    "proc.seccomp-dangerous": ("ptrace",),
    "proc.namespaces": ("mnt", "user"),
    "proc.root-unexpected": (f"{STATE}/.lock", "/bin/sh"),
    "proc.mounts-writable": (STATE, "/"),
    "proc.fds-unexpected": ("7: /etc/shadow (not in the plan)",),
    "proc.rlimits": ("core=0",),
    "proc.landlock": 0,
    "proc.parent-death-signal": 0,
    "proc.session": False,
}


def facts(values: dict[str, Value]) -> Facts:
    return {name: Known(value, "test") for name, value in values.items()}


def test_a_wall_as_planned_has_no_fault() -> None:
    tpm = running()
    assert wall_faults(facts(good(tpm)), tpm) == ()
    assert set(BAD) == set(good(tpm))


@pytest.mark.parametrize("name", BAD)
def test_each_difference_is_one_fault_that_names_it(name: str) -> None:
    tpm = running()
    found = wall_faults(facts({**good(tpm), name: BAD[name]}), tpm)
    assert len(found) == 1
    assert found[0].startswith(f"{name}: ")


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_known_is_a_fault(name: str) -> None:
    tpm = running()
    seen = facts(good(tpm))
    seen[name] = Unknown("nobody looked")
    assert [fault.partition(":")[0] for fault in wall_faults(seen, tpm)] == [name]
    del seen[name]
    assert len(wall_faults(seen, tpm)) == 1


def test_filters_that_cannot_be_read_are_proved_by_a_notification() -> None:
    tpm = running()
    tpm.notified = True
    seen = facts(good(tpm))
    seen["proc.seccomp-dangerous"] = Unknown("permission denied")
    assert wall_faults(seen, tpm) == ()
    seen["proc.seccomp-dangerous"] = Known(("ptrace",), "test")
    assert len(wall_faults(seen, tpm)) == 1


@pytest.mark.parametrize("entry", [f"{STATE}/swtpm", f"{STATE}/../etc/shadow", "/state2/.lock", f"{STATE}/.lock/x"])
def test_only_the_files_that_swtpm_makes_are_spared(entry: str) -> None:
    tpm = running()
    assert wall_faults(facts({**good(tpm), "proc.root-unexpected": (entry,)}), tpm)
