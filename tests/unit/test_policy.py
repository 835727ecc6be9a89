"""The host's policy: parsed closed, every fault named; waivers count only when it allows them."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import msgspec
import pytest

from casemate.controls.catalogue.launch import launch_controls
from casemate.controls.model import Gate
from casemate.controls.policy import (
    NO_POLICY,
    GateRules,
    HostPolicy,
    NetworkRules,
    WaiverRules,
    WidePublish,
    controls_under,
    effective_waivers,
    parse_policy,
)
from casemate.engine.policy_file import POLICY_MAX_BYTES, read_policy
from casemate.errors import ExitCode, InputError, SpecError
from casemate.spec.model import Waiver

TODAY = datetime.date(2026, 3, 1)
FULL = """
version = 1
[waivers]
allowed = ["iommu.no-hostdev", "proc.cgroup"]
max_days = 90
[gates]
launch = ["dev.kvm"]
[identity]
uid_first = 2000000000
uid_count = 1000
[network]
wide_publish = "refuse"
[limits]
vms = 20
memory_mib = 4096
vcpus = 4
"""


def waiver(control: str = "iommu.no-hostdev", days: int = 30) -> Waiver:
    return Waiver(control=control, reason="a test needs it", expires=TODAY + datetime.timedelta(days=days))


def allowing(*controls: str) -> HostPolicy:
    return HostPolicy(source="/etc/casemate/policy.toml", waivers=WaiverRules(allowed=controls, max_days=90))


def faults_of(text: str) -> set[tuple[str, str]]:
    with pytest.raises(SpecError) as caught:
        parse_policy(text, "policy.toml")
    return {(fault.path, fault.fault_id) for fault in caught.value.faults}


def test_a_full_policy() -> None:
    policy = parse_policy(FULL, "policy.toml")
    assert policy.source == "policy.toml"
    assert policy.waivers.allowed == ("iommu.no-hostdev", "proc.cgroup")
    assert policy.identity.uids() == range(2_000_000_000, 2_000_001_000)
    assert (policy.limits.vms, policy.limits.memory_mib, policy.limits.vcpus) == (20, 4096, 4)
    assert policy.network.wide_publish is WidePublish.REFUSE


def test_the_shortest_policy_is_the_default_with_a_source() -> None:
    assert parse_policy("version = 1", "p") == msgspec.structs.replace(HostPolicy(), source="p")


def test_the_default_allows_no_waiver_at_all() -> None:
    requests = [waiver(control.id) for control in launch_controls()]
    applied, refused = effective_waivers(requests, HostPolicy(), TODAY)
    assert applied == ()
    assert len(refused) == len(requests)
    assert all(NO_POLICY in r.why for r in refused)


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("version = ", {("", "policy.toml")}),
        ("", {("version", "policy.version")}),
        ("version = 2", {("version", "policy.value")}),
        ("version = 1\nwaiver = 1", {("waiver", "policy.unknown-key")}),
        ('version = 1\nsource = "x"', {("source", "policy.unknown-key")}),
        ("version = 1\nwaivers = 1", {("waivers", "policy.value")}),
        ('version = 1\n[waivers]\nalowed = ["proc.uid"]', {("waivers.alowed", "policy.unknown-key")}),
        ('version = 1\n[waivers]\nallowed = "proc.uid"', {("waivers.allowed", "policy.value")}),
        ('version = 1\n[waivers]\nallowed = ["*"]', {("waivers.allowed", "policy.unknown-control")}),
        ('version = 1\n[waivers]\nallowed = ["proc.drift"]', {("waivers.allowed", "policy.unwaivable")}),
        ('version = 1\n[waivers]\nallowed = ["proc.uid", "proc.uid"]', {("waivers.allowed", "policy.repeated")}),
        ("version = 1\n[waivers]\nmax_days = 0", {("waivers.max_days", "policy.value")}),
        ('version = 1\n[gates]\nlaunch = ["no.such"]', {("gates.launch", "policy.unknown-control")}),
        ("version = 1\n[identity]\nuid_first = 0", {("identity.uid_first", "policy.value")}),
        ("version = 1\n[identity]\nuid_first = 65000\nuid_count = 1000", {("identity.uid_first", "policy.uids")}),
        ("version = 1\n[identity]\nuid_first = 2147483647\nuid_count = 2", {("identity.uid_count", "policy.uids")}),
        ('version = 1\n[network]\nwide_publish = "maybe"', {("network.wide_publish", "policy.value")}),
        ("version = 1\n[limits]\nvms = true", {("limits.vms", "policy.value")}),
        (
            'a = 1\n[waivers]\nallowed = ["no.such"]\nmax_days = -1\n[limits]\nx = 1\nvcpus = 0',
            {
                ("version", "policy.version"),
                ("a", "policy.unknown-key"),
                ("waivers.max_days", "policy.value"),
                ("limits.x", "policy.unknown-key"),
                ("limits.vcpus", "policy.value"),
            },
        ),
    ],
)
def test_every_fault_is_named(text: str, faults: set[tuple[str, str]]) -> None:
    assert faults_of(text) == faults


def test_a_waiver_needs_the_specification_and_the_policy() -> None:
    applied, refused = effective_waivers([waiver()], allowing("iommu.no-hostdev"), TODAY)
    assert [(w.control, w.reason) for w in applied] == [("iommu.no-hostdev", "a test needs it")]
    assert refused == ()
    assert effective_waivers([], allowing("iommu.no-hostdev"), TODAY) == ((), ())


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (waiver("proc.uid"), "does not allow it"),
        (waiver("no.such"), "no such control"),
        (waiver(days=-1), "expired on 2026-02-28"),
        (waiver(days=91), "more than 90 days"),
    ],
)
def test_a_waiver_that_does_not_count_says_why(request_: Waiver, why: str) -> None:
    applied, refused = effective_waivers([request_], allowing("iommu.no-hostdev"), TODAY)
    assert applied == ()
    assert [r.control for r in refused] == [request_.control]
    assert why in refused[0].why


@pytest.mark.parametrize("days", [0, 90])
def test_the_first_and_the_last_day_of_a_waiver_count(days: int) -> None:
    assert len(effective_waivers([waiver(days=days)], allowing("iommu.no-hostdev"), TODAY)[0]) == 1


def test_drift_cannot_be_waived_by_a_policy_made_in_code_either() -> None:
    applied, refused = effective_waivers([waiver("proc.drift")], allowing("proc.drift"), TODAY)
    assert applied == ()
    assert "cannot be waived" in refused[0].why


def test_a_control_waived_twice_counts_once() -> None:
    applied, refused = effective_waivers([waiver(), waiver()], allowing("iommu.no-hostdev"), TODAY)
    assert (len(applied), len(refused)) == (1, 1)


def test_gates_are_raised_and_never_lowered() -> None:
    before = {c.id: c.gate for c in controls_under(HostPolicy())}
    assert before == {c.id: c.gate for c in launch_controls()}
    policy = HostPolicy(
        gates=GateRules(launch=("dev.kvm", "proc.uid")), network=NetworkRules(wide_publish=WidePublish.REFUSE)
    )
    after = {c.id: c.gate for c in controls_under(policy)}
    assert {i for i in before if before[i] is not after[i]} == {"dev.kvm", "net.publish-wide"}
    assert {after["dev.kvm"], after["net.publish-wide"], after["proc.uid"]} == {Gate.LAUNCH}


# --- the file ------------------------------------------------------------------------------------------------------


def write(path: Path, text: str = FULL, mode: int = 0o644) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_no_file_is_the_closed_default(tmp_path: Path) -> None:
    assert read_policy(default=tmp_path / "policy.toml") == HostPolicy()


def test_an_explicit_file_has_to_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file") as caught:
        read_policy(tmp_path / "policy.toml")
    assert caught.value.exit_code is ExitCode.USAGE


def test_the_callers_own_file_counts_when_given_explicitly(tmp_path: Path) -> None:
    path = write(tmp_path / "p.toml")
    assert read_policy(path).source == str(path)


def test_the_explicit_file_replaces_the_default(tmp_path: Path) -> None:
    write(tmp_path / "default.toml")
    path = write(tmp_path / "mine.toml", "version = 1")
    assert read_policy(path, default=tmp_path / "default.toml").waivers.allowed == ()


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(InputError, match=f"mode {mode:04o}"):
        read_policy(write(tmp_path / "p.toml", mode=mode))


def test_the_hosts_file_must_be_roots(tmp_path: Path) -> None:
    path = write(tmp_path / "p.toml")
    if os.geteuid() == 0:
        assert read_policy(default=path).source == str(path)
        os.chown(path, 1234, 1234)
    with pytest.raises(InputError, match="expected owner root,"):
        read_policy(default=path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_anothers_file_is_refused_when_given_explicitly(tmp_path: Path) -> None:
    path = write(tmp_path / "p.toml")
    os.chown(path, 1234, 1234)
    with pytest.raises(InputError, match="owner uid 1234"):
        read_policy(path)


def test_things_that_are_no_policy_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(InputError, match="not a regular file"):
        read_policy(tmp_path / "fifo")
    with pytest.raises(InputError, match="not a regular file"):
        read_policy(tmp_path)
    with pytest.raises(InputError, match="larger file"):
        read_policy(write(tmp_path / "big", "#" * (POLICY_MAX_BYTES + 1)))
    (tmp_path / "binary").write_bytes(b"version = 1 # \xff")
    (tmp_path / "binary").chmod(0o600)
    with pytest.raises(InputError, match="no UTF-8 at byte 14"):
        read_policy(tmp_path / "binary")
    with pytest.raises(InputError, match="null byte"):
        read_policy(Path("a\0b"))
