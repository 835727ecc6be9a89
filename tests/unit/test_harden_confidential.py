"""A confidential guest's command line becomes a specification that asks for the same launch, or for a stricter one."""

from __future__ import annotations

import base64
import shlex

import pytest

from casemate.facts.domain import read_domain
from casemate.facts.machine_confidential import boots_measured, may_debug, may_migrate
from casemate.facts.qemu_argv import read_argv
from casemate.harden.domain import harden_domain
from casemate.harden.machine import HardenedSpec, harden_machine
from casemate.harden.model import Hardened
from casemate.spec.confidential import snp_policy

BOARD = "qemu-system-x86_64 -m 1G -accel kvm -cpu EPYC-Milan-v2 -machine q35,confidential-guest-support=c"
KERNEL = "-bios /fw/OVMF.amdsev.fd -kernel /boot/vmlinuz -nodefaults"
MR = base64.b64encode(bytes(range(48))).decode()


def hardened(*parts: str) -> HardenedSpec:
    return harden_machine(read_argv(shlex.split(" ".join(parts)), "t"))


def snp(properties: str, *parts: str) -> HardenedSpec:
    return hardened(BOARD, KERNEL, f"-object sev-snp-guest,id=c,kernel-hashes=on{properties}", *parts)


def said(hardened: Hardened) -> set[str]:
    controls = [item.control for item in hardened.changes] + [item.control for item in hardened.left]
    return {control for control in controls if control.startswith("cc.")}


def id_block(policy: int) -> str:
    block = base64.b64encode(bytes(88) + policy.to_bytes(8, "little")).decode()
    return f",id-block={block},id-auth={base64.b64encode(bytes(4096)).decode()}"


def test_the_same_launch_comes_out() -> None:
    data = base64.b64encode(bytes(range(32))).decode()
    done = snp(f",policy=0x1020137,host-data={data}", "-smp 3")
    found = done.spec.confidential
    assert found is not None
    assert (found.kind, found.cpu, found.firmware) == ("sev-snp", "EPYC-Milan-v2", "/fw/OVMF.amdsev.fd")
    assert snp_policy(found) == 0x1020137
    assert found.host_data == bytes(range(32)).hex()
    assert done.spec.machine.vcpus == 3
    assert said(done.hardened) == set()


def test_what_weakens_the_launch_goes() -> None:
    done = snp(",policy=0xf0000")
    assert done.spec.confidential is not None
    assert snp_policy(done.spec.confidential) == 0x30000
    assert said(done.hardened) == {"cc.no-debug", "cc.no-migration"}
    done = hardened(BOARD, KERNEL, "-object sev-snp-guest,id=c")
    assert said(done.hardened) == {"cc.kernel-hashes"}


def test_an_id_block_comes_along_with_its_policy_only() -> None:
    done = snp(id_block(0x30000) + ",author-key-enabled=on")
    assert done.spec.confidential is not None
    assert done.spec.confidential.id_block is not None
    assert done.spec.confidential.author_key
    for properties in (
        id_block(0xB0000) + ",policy=0xb0000",
        id_block(0x130000) + ",policy=0x130000",
        ",id-block=AAAA,id-auth=AAAA",
        ",id-block=ä,id-auth=",
    ):
        done = snp(properties)
        assert done.spec.confidential is not None
        assert done.spec.confidential.id_block is None
        assert any("ID block" in left.what for left in done.hardened.left), properties


def test_tdx() -> None:
    quotes = "quote-generation-socket.type=unix,quote-generation-socket.path=/run/qgs"
    done = hardened(
        BOARD, f"-bios /fw/OVMF.inteltdx.fd -object tdx-guest,id=c,mrowner={MR},{quotes} -drive file=/d,format=raw"
    )
    found = done.spec.confidential
    assert found is not None
    assert (found.kind, found.mrowner, found.quote_socket) == ("tdx", bytes(range(48)).hex(), "/run/qgs")
    assert done.spec.boot.firmware == "uefi"
    assert said(done.hardened) == set()


@pytest.mark.parametrize(
    "properties",
    [
        "mrowner=AAAA",
        "attributes=0x40000000",
        "attributes=x",
        "quote-generation-socket.type=vsock,quote-generation-socket.cid=2",
    ],
)
def test_tdx_that_a_specification_cannot_say(properties: str) -> None:
    done = hardened(BOARD, f"-bios /fw/OVMF.fd -object tdx-guest,id=c,{properties} -drive file=/d,format=raw")
    assert done.spec.confidential is not None
    assert said(done.hardened) == {"cc.launch"}


def test_what_a_confidential_guest_cannot_keep() -> None:
    tpm = "-device tpm-crb,tpmdev=t -tpmdev emulator,id=t,chardev=s -chardev socket,id=s,path=/s"
    done = hardened(
        "qemu-system-x86_64 -m 1G -accel tcg -cpu max -machine microvm,confidential-guest-support=c",
        f"-kernel /k -object sev-snp-guest,id=c,kernel-hashes=on,policy=0x230000,host-data=x {tpm}",
    )
    spec = done.spec
    assert spec.confidential is not None
    assert (spec.machine.type, spec.machine.accel, spec.tpm.enabled) == ("q35", "auto", False)
    left = " ".join(item.what for item in done.hardened.left)
    for what in ("tpm-crb", "CPU model max", "0x200000", "host-data", "variables"):
        assert what in left


@pytest.mark.parametrize(
    "line",
    [
        "-object sev-snp-guest,id=c -bios /fw/OVMF.amdsev.fd -drive file=/d,format=raw",  # boots from a disk
        "-object sev-guest,id=c -kernel /k",
        "-object s390-pv-guest,id=c -kernel /k",
    ],
)
def test_what_stays_for_its_owner_to_decide(line: str) -> None:
    done = hardened(BOARD, line)
    assert done.spec.confidential is None
    assert [item.where for item in done.hardened.left if item.control == "cc.launch"] == ["launch security"]


def domain(launch: str, os: str = "<kernel>/k</kernel>", keep: tuple[str, ...] = ()) -> Hardened:
    """A hardened libvirt domain with this ``<launchSecurity>``; hardened once more it stays as it is."""
    text = (
        "<domain type='kvm'><name>c</name><memory>1048576</memory><vcpu>1</vcpu>"
        f"<os firmware='efi'><type arch='x86_64' machine='q35'>hvm</type>{os}</os>{launch}<devices/></domain>"
    )
    done = harden_domain(text.encode(), "t", keep=keep)
    assert harden_domain(done.after.encode(), "t", keep=keep).after == done.after
    return done


@pytest.mark.parametrize(
    ("launch", "policy"),
    [
        ("<launchSecurity type='sev'><policy>0x0004</policy></launchSecurity>", "0xd"),
        ("<launchSecurity type='sev-snp'><policy>0xf0000</policy></launchSecurity>", "0x30000"),
        ("<launchSecurity type='tdx'><policy>0x10000001</policy></launchSecurity>", "0x10000000"),
    ],
)
def test_a_domain_that_the_host_may_debug(launch: str, policy: str) -> None:
    done = domain(launch)
    assert f"<policy>{policy}</policy>" in done.after
    machine = read_domain(done.after.encode(), "t")
    assert may_debug(machine) is False
    assert not may_migrate(machine)
    assert boots_measured(machine) in ("measured", None)
    kept = domain(launch, keep=("cc.no-debug", "cc.no-migration", "cc.kernel-hashes"))
    assert launch in kept.after


@pytest.mark.parametrize(
    "launch",
    [
        "<launchSecurity type='sev-snp' kernelHashes='yes'><policy>0x30000</policy></launchSecurity>",
        "<launchSecurity type='sev-snp' kernelHashes='yes'/>",
        "<launchSecurity type='tdx'/>",
        "<launchSecurity type='s390-pv'/>",
    ],
)
def test_a_domain_whose_launch_is_as_it_should_be(launch: str) -> None:
    done = domain(launch)
    assert launch in done.after
    assert said(done) == set()
    assert ("<smm state='off'/>" in done.after) is ("s390-pv" not in launch)  # whatever its UEFI is


def test_a_domain_whose_policy_is_signed_or_unreadable() -> None:
    for inside in (
        "<policy>0xb0000</policy><idBlock>AAAA</idBlock>",
        "<policy>many</policy>",
        "<policy>-1</policy>",
    ):
        done = domain(f"<launchSecurity type='sev-snp'>{inside}</launchSecurity>", os="")
        assert inside in done.after
        assert said(done) == {"cc.no-debug"}
        assert "cc.no-debug" not in done.claims
