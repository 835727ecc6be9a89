"""Planning is pure: the same specification and host give the same plan, byte for byte, and never a loose one."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path

import msgspec
import pytest
from tests.support.hosts import (
    CONFIDENTIAL_EMULATORS,
    CONFIDENTIAL_HOSTS,
    EMULATOR,
    HOST,
    KVM_HOST,
    SECURE_HOST,
    plan_of,
)

from casemate.errors import HostError
from casemate.jail.policy import Device, Identity, IdentityMode, OneShot
from casemate.plan.model import CgroupBase, Host, LaunchPlan
from casemate.spec.model import Spec
from casemate.spec.parse import parse_spec

PLANS = Path(__file__).parent.parent / "golden" / "plans"
TODAY = datetime.date(2026, 1, 1)
SIZES = {"kernel": 13 << 20, "initrd": 3 << 20, "disk0": 10 << 30, "firmware-vars": 540672}
CASES = {
    "microvm-tcg": HOST,
    "microvm-kvm": KVM_HOST,
    "microvm-disks": KVM_HOST,
    "q35-uefi-net": KVM_HOST,
    "q35-uefi-secure": SECURE_HOST,
    "q35-bios": HOST,
    "microvm-provision": HOST,
    "q35-provision": KVM_HOST,
    "q35-sev-snp": CONFIDENTIAL_HOSTS["sev-snp"],
    "q35-tdx": CONFIDENTIAL_HOSTS["tdx"],
    "s390-se": CONFIDENTIAL_HOSTS["se"],
    "microvm-tpm": HOST,
    "q35-tpm": KVM_HOST,
}


def load(name: str) -> Spec:
    return parse_spec((PLANS / f"{name}.toml").read_text(), f"{name}.toml", Path("/specs"), today=TODAY)


def plan(name: str, host: Host) -> LaunchPlan:
    spec = load(name)
    emulator = EMULATOR if spec.confidential is None else CONFIDENTIAL_EMULATORS[spec.confidential.kind]
    return plan_of(spec, host, SIZES, emulator=emulator)


@pytest.mark.parametrize("name", CASES)
def test_golden_plan(name: str) -> None:
    found = json.dumps(msgspec.to_builtins(plan(name, CASES[name])), indent=1, sort_keys=True) + "\n"
    golden = PLANS / f"{name}.json"
    if os.environ.get("CASEMATE_WRITE_GOLDEN") == "1":  # the change is then reviewed as a diff
        golden.write_text(found)
    assert found == golden.read_text()


@pytest.mark.parametrize("name", CASES)
def test_no_plan_hands_over_a_host_path(name: str) -> None:
    """Files are descriptors; the only paths in the arguments lie inside the new root."""
    made = plan(name, CASES[name])
    targets = {entry.target for entry in made.wall.root if not isinstance(entry, Device)}
    cmdline = made.wall.argv.index("-append") + 1 if "-append" in made.wall.argv else -1  # the guest's own words
    for index, argument in enumerate(made.wall.argv):
        if index == cmdline:
            continue
        for part in argument.split("="):
            if part.startswith("/"):
                path = part.split(",")[0]
                assert path in targets or path.startswith("/dev/fdset/"), argument


@pytest.mark.parametrize("name", CASES)
def test_descriptor_numbers_are_dense_and_match_the_arguments(name: str) -> None:
    made = plan(name, CASES[name])
    numbers = [item.number for item in made.wall.descriptors]
    assert numbers == list(range(len(numbers)))
    text = " ".join(made.wall.argv)
    for item in made.wall.descriptors[3:]:
        assert f"fd={item.number}" in text or f"addr.str={item.number}" in text, item


def test_secrets_reach_the_emulator_by_files_of_its_root_and_never_as_words() -> None:
    """``string=`` and ``data=`` would put a value into the arguments."""
    for name in ("microvm-provision", "q35-provision"):
        made = plan(name, CASES[name])
        text = "\n".join(made.wall.argv)
        assert not any(word in text for word in ("string=", "data=", "/root/key.txt", "pass show"))
        pipes = {entry.target for entry in made.wall.root if isinstance(entry, OneShot)}
        named = {part.split("=")[1] for word in made.wall.argv for part in word.split(",") if "/provision/" in part}
        assert named == pipes
        assert pipes


def test_only_a_vm_that_may_be_saved_has_what_saving_needs() -> None:
    plain, saveable = plan("q35-uefi-net", KVM_HOST), plan("q35-provision", KVM_HOST)
    assert "vmgenid,guid=auto,id=vmgenid0" in saveable.wall.argv
    assert not any("vmgenid" in word or "org.casemate.clone" in word for word in plain.wall.argv)
    assert "writev" in {rule.syscall for rule in saveable.profile.rules}
    assert "writev" not in {rule.syscall for rule in plain.profile.rules}
    assert "-incoming" not in saveable.wall.argv


def test_kvm_without_tsc_deadline_keeps_the_timers_and_says_why() -> None:
    host = msgspec.structs.replace(KVM_HOST, kvm_tsc_deadline=False)
    text = " ".join(plan("microvm-kvm", host).wall.argv)
    assert "pit=on" in text
    assert "pic=on" in text
    text = " ".join(plan("microvm-kvm", KVM_HOST).wall.argv)
    assert "pit=off" in text
    assert "pic=off" in text
    assert "kernel-irqchip=split" in text


def test_tcg_is_never_silent() -> None:
    assert any("not a security boundary" in warning for warning in plan("microvm-tcg", HOST).warnings)
    assert not any("not a security boundary" in warning for warning in plan("microvm-kvm", KVM_HOST).warnings)


def test_unknown_tsc_keeps_the_pit() -> None:
    host = msgspec.structs.replace(HOST, tsc_khz=0)
    text = " ".join(plan("microvm-tcg", host).wall.argv)
    assert "pit=on" in text
    assert "tsc_early_khz" not in text


def test_kvm_demanded_and_absent() -> None:
    spec = msgspec.convert({"machine": {"accel": "kvm"}, "boot": {"kernel": "/k"}}, Spec)
    with pytest.raises(HostError, match="KVM was asked for"):
        plan_of(spec, msgspec.structs.replace(HOST, kvm_verdict="absent", kvm_why="no /dev/kvm"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": (6, 2, 0)}, "too old"),
        ({"machine_types": ("pc",)}, "no machine type microvm"),
        ({"firmware": {}}, "bios-microvm.bin is missing"),
    ],
)
def test_emulators_that_cannot_do_it(change: dict[str, object], message: str) -> None:
    with pytest.raises(HostError, match=message) as caught:
        plan_of(load("microvm-tcg"), HOST, emulator=msgspec.structs.replace(EMULATOR, **change))
    assert caught.value.next_step


def test_missing_firmware_and_passt_name_their_packages() -> None:
    with pytest.raises(HostError, match="ovmf"):
        plan("q35-uefi-net", msgspec.structs.replace(KVM_HOST, uefi=None))
    for name, host in (("q35-uefi-net", SECURE_HOST), ("q35-uefi-secure", KVM_HOST)):  # the other kind of firmware
        with pytest.raises(HostError, match="ovmf"):
            plan(name, host)
    with pytest.raises(HostError, match="apt-get install passt"):
        plan("q35-uefi-net", msgspec.structs.replace(KVM_HOST, passt=None))


def test_system_management_mode_is_on_for_secure_boot_and_nowhere_else() -> None:
    for name, host in CASES.items():
        for made in (plan(name, host), plan(name, msgspec.structs.replace(host, kvm_verdict="emulated"))):
            secure, kvm = name == "q35-uefi-secure", made.accel == "kvm"
            guarded = "driver=cfi.pflash01,property=secure,value=on" in made.wall.argv
            machine = made.wall.argv[made.wall.argv.index("-machine") + 1]
            assert (guarded, "smm=on" in machine) == (secure, secure)
            assert ("KVM_SMI" in str(made.profile.rules)) is (secure and kvm)
            assert not machine.startswith("q35") or secure or "smm=off" in machine


def test_secure_boot_under_a_kvm_without_system_management_mode_is_refused() -> None:
    lacking = msgspec.structs.replace(SECURE_HOST, kvm_smm=False)
    with pytest.raises(HostError, match="system management mode") as caught:
        plan("q35-uefi-secure", lacking)
    assert "KVM_CAP_X86_SMM" in caught.value.got
    assert plan("q35-uefi-secure", msgspec.structs.replace(lacking, kvm_verdict="emulated")).accel == "tcg"


def test_uid_zero_is_a_bug_and_never_a_plan() -> None:
    with pytest.raises(RuntimeError, match="never 0"):
        plan_of(load("microvm-tcg"), HOST, identity=Identity(0, 5, IdentityMode.ROOT))


def test_cgroup_version_1_and_none() -> None:
    parents = {name: f"/sys/fs/cgroup/{name}/casemate" for name in ("memory", "cpu", "pids")}
    made = plan("microvm-tcg", msgspec.structs.replace(HOST, cgroup=CgroupBase(1, parents)))
    written = dict(made.wall.cgroup.writes)
    assert written["/sys/fs/cgroup/pids/casemate/0123456789abcdef/pids.max"] == "128"
    assert made.wall.cgroup.limits == plan("microvm-tcg", HOST).wall.cgroup.limits
    none = plan("microvm-tcg", msgspec.structs.replace(HOST, cgroup=CgroupBase(0, why_none="not delegated")))
    assert none.wall.cgroup.directories == ()
    assert any("not delegated" in warning for warning in none.warnings)


def test_traffic_of_disks_is_limited_by_the_host_too_where_it_can_be() -> None:
    parents = dict.fromkeys(("memory", "cpu", "pids", "io"), "/sys/fs/cgroup/casemate")
    host = msgspec.structs.replace(KVM_HOST, cgroup=CgroupBase(2, parents), disk_devices=("254:0", "8:0"))
    made = plan("microvm-disks", host).wall.cgroup
    words = "rbps=104857600 wbps=52428800"
    written = [text for path, text in made.writes if path == "/sys/fs/cgroup/casemate/0123456789abcdef/io.max"]
    assert written == [f"254:0 {words}", f"8:0 {words}"]
    assert made.limits[-1] == f"io.max=254:0 {words}, io.max=8:0 {words}"
    unlimited = plan("microvm-tcg", host).wall.cgroup
    assert "io" in unlimited.controllers
    assert not any("io.max" in text for text in (*unlimited.limits, *dict(unlimited.writes)))


def test_the_guest_memory_is_inside_the_limit() -> None:
    made = plan("microvm-tcg", HOST)
    limit = int(next(text for text in made.wall.cgroup.limits if text.startswith("memory.max=")).split("=")[1])
    assert limit >= (made.spec.machine.memory_mib + made.spec.limits.overhead_mib) << 20


def test_same_input_same_plan() -> None:
    assert msgspec.json.encode(plan("q35-uefi-net", KVM_HOST)) == msgspec.json.encode(plan("q35-uefi-net", KVM_HOST))
