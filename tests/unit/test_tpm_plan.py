"""A VM's TPM in specification and plan: what swtpm is told, what its wall holds, what is refused."""

from __future__ import annotations

import datetime
import itertools
from pathlib import Path

import msgspec
import pytest
from tests.support.hosts import (
    EMULATOR,
    HOST,
    ROOT_IDENTITY,
    plan_of,
)

from casemate.errors import HostError, SpecError
from casemate.jail.policy import Identity, IdentityMode, Scratch, StateDirectory, Wall
from casemate.jail.profiles import swtpm_profile
from casemate.jail.rules import Phase
from casemate.jail.steps import describe
from casemate.plan.build import Request, build_plan
from casemate.plan.model import HelperPlan, LaunchPlan
from casemate.plan.swtpm import STATE, plan_swtpm, swtpm_wall
from casemate.spec.model import MachineType, Spec, Tpm
from casemate.spec.parse import parse_spec

OWN = Identity(1_900_000_009, 1_900_000_009, IdentityMode.ROOT)
FILES = {"/usr/bin/swtpm": "/usr/bin/swtpm", "/lib64/ld-linux-x86-64.so.2": "/usr/lib/ld.so"}


def spec_of(kind: str = "microvm") -> Spec:
    document = {"machine": {"type": kind}, "boot": {"kernel": "/k"}, "tpm": {"enabled": True}}
    return msgspec.convert(document, Spec)


def planned(kind: str = "microvm", *, keeps_state: bool = True) -> tuple[LaunchPlan, HelperPlan]:
    request = Request("0123456789abcdef", "vm", ROOT_IDENTITY, {"kernel": 1}, tpm_identity=OWN, keeps_state=keeps_state)
    plan = build_plan(spec_of(kind), HOST, EMULATOR, request)
    return plan, plan.helpers[0]


def wall_of(*, keeps_state: bool = True) -> Wall:
    plan, helper = planned(keeps_state=keeps_state)
    return swtpm_wall(helper, plan.wall, FILES, "/data/vms/0/tpm/state" if keeps_state else None)


def faults_of(text: str) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        parse_spec(text, "t", Path("/specs"), today=datetime.date(2026, 1, 1))
    return {fault.fault_id: fault.path for fault in caught.value.faults}


@pytest.mark.parametrize(("kind", "device"), [("q35", "tpm-crb"), ("microvm", "tpm-tis")])
def test_the_emulator_gets_a_socket_and_a_device(kind: str, device: str) -> None:
    plan, _ = planned(kind)
    words = set(itertools.pairwise(plan.wall.argv))
    number = next(item.number for item in plan.descriptors if item.role == "tpm")
    assert ("-chardev", f"socket,id=tpm-link,fd={number}") in words
    assert ("-tpmdev", "emulator,id=tpm0,chardev=tpm-link") in words
    assert ("-device", f"{device},id=tpm,tpmdev=tpm0,ppi=off") in words
    assert ("tpm_tis.force=1" in " ".join(plan.wall.argv)) is (kind == "microvm")
    assert "tpm" in plan.profile.name


def test_a_vm_without_a_tpm_has_none_of_it() -> None:
    plan = plan_of(msgspec.structs.replace(spec_of(), tpm=Tpm()))
    assert "tpm" not in " ".join(plan.wall.argv)
    assert not plan.helpers
    assert not any(item.role == "tpm" for item in plan.descriptors)


def test_swtpm_is_told_descriptors_and_one_directory() -> None:
    _, helper = planned()
    assert helper.argv == (
        "/swtpm", "socket", "--tpm2", "--ctrl", "type=unixio,clientfd=3",
        "--tpmstate", "dir=/state,mode=0600", "--key", "fd=4,format=binary,mode=aes-256-cbc",
        "--migration-key", "fd=5,format=binary,mode=aes-256-cbc",
    )  # fmt: skip
    assert [(item.number, item.role) for item in helper.descriptors] == [
        (0, "null"), (1, "log"), (2, "log"), (3, "tpm-control"), (4, "tpm-key"), (5, "tpm-export-key"),
    ]  # fmt: skip


def test_its_wall_holds_its_files_and_its_state() -> None:
    wall = wall_of()
    assert wall.identity == OWN
    assert wall.identity.uid != ROOT_IDENTITY.uid
    assert [entry.target for entry in wall.root if hasattr(entry, "target")] == [*sorted(FILES), STATE]
    assert wall.root[-1] == StateDirectory("/data/vms/0/tpm/state", STATE)
    assert {path.path: path.rights for path in wall.landlock} == {
        "/": ("read", "execute"),
        STATE: ("read", "write", "replace"),
    }
    limits = {limit.name: limit.value for limit in wall.rlimits}
    assert (limits["core"], limits["nproc"], limits["fsize"]) == (0, 1, 1 << 20)
    assert wall.environment == ()
    text = "\n".join(describe(wall))
    assert "writable, nodev, noexec" in text
    assert "seccomp allowlist swtpm" in text


def test_state_of_a_vm_that_removes_itself_ends_with_it() -> None:
    wall = wall_of(keeps_state=False)
    assert wall.root[-1] == Scratch(STATE, 1 << 20, 16)
    with pytest.raises(RuntimeError):
        swtpm_wall(plan_swtpm("/usr/bin/swtpm", OWN, keeps_state=False), wall, FILES, "/somewhere")


def test_its_profile_makes_no_socket_and_starts_nothing() -> None:
    allowed = {rule.syscall for rule in swtpm_profile().rules if rule.errno is None}
    assert not allowed & {"socket", "connect", "clone", "clone3", "fork", "ptrace", "mount", "unshare", "setns"}
    later = {rule.syscall for rule in swtpm_profile().rules if rule.phase is Phase.ALWAYS and rule.errno is None}
    assert not later & {"execve", "mprotect", "seccomp", "prctl", "pipe2"}


def test_without_swtpm_the_package_is_named() -> None:
    with pytest.raises(HostError, match="swtpm") as caught:
        plan_of(spec_of(), msgspec.structs.replace(HOST, swtpm=None))
    assert caught.value.next_step == "apt-get install swtpm"


def test_one_uid_for_both_is_said() -> None:
    plan = plan_of(spec_of())  # a caller without subordinate ids
    assert plan.declared["tpm.own-uid"].value is False  # type: ignore[union-attr]
    assert planned()[0].declared["tpm.own-uid"].value is True  # type: ignore[union-attr]


BOOT = '[boot]\nkernel = "k"\n'
SECRET = '[secrets.s]\nfile = "/k"\n'


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('[tpm]\nenabled = true\nkey = "s"\n', "tpm.key"),
        (f'[tpm]\nenabled = true\nkey = "s"\n{SECRET}', "tpm.key"),
        (f'{SECRET}use = "tpm"\n', "tpm.key"),
        (f'[tpm]\nkey = "s"\n{SECRET}use = "tpm"\n', "tpm.unused-key"),
        ("[tpm]\nenabled = true\n[machine]\nsaveable = true\n", "tpm.saveable"),
        ("[tpm]\nenabled = true\nversion = 1\n", "key.unknown"),
        ('[tpm]\nenabled = "yes"\n', "type.wrong"),
    ],
)
def test_faults(text: str, fault: str) -> None:
    assert fault in faults_of(BOOT + text)


def test_a_secret_for_the_tpm_is_not_for_the_guest() -> None:
    text = f'{BOOT}[tpm]\nenabled = true\nkey = "s"\n{SECRET}use = "tpm"\n'
    spec = parse_spec(text, "t", Path("/specs"), today=datetime.date(2026, 1, 1))
    assert spec.machine.type is MachineType.MICROVM
    plan = plan_of(spec)
    assert "provision" not in " ".join(plan.wall.argv)
    assert "prov.channels" not in plan.declared
