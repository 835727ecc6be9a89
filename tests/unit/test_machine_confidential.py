"""Launch policies decoded, and devices that a domain puts on the root bus itself."""

from __future__ import annotations

import pytest

from casemate.facts.domain import read_domain
from casemate.facts.machine_confidential import may_debug
from casemate.facts.qemu_argv import read_argv


def domain(security: str, devices: str = "") -> bytes:
    return (
        f"<domain type='kvm'><name>a</name><os><type machine='q35'>hvm</type></os><features><acpi/></features>"
        f"<devices><controller type='usb' model='none'/><memballoon model='none'/>{devices}</devices>"
        f"{security}</domain>"
    ).encode()


@pytest.mark.parametrize(
    ("kind", "policy", "debug"),
    [
        ("sev", "0x0003", False),
        ("sev", "0x0002", True),
        ("sev", "1", False),
        ("sev-snp", "0x30000", False),
        ("sev-snp", "0xb0000", True),
        ("tdx", "0x10000000", False),
        ("tdx", "0x10000001", True),
        ("tdx", "", None),
        ("sev-snp", "many", None),
        ("s390-pv", "0", None),
    ],
)
def test_policy_of_a_domain(kind: str, policy: str, debug: bool | None) -> None:
    machine = read_domain(domain(f"<launchSecurity type='{kind}'><policy>{policy}</policy></launchSecurity>"), "t")
    assert may_debug(machine) is debug


@pytest.mark.parametrize(
    ("words", "debug"),
    [
        ("sev-guest,id=s,policy=0x0", True),
        ("sev-guest,id=s", False),
        ("sev-snp-guest,id=s,policy=0x80000", True),
        ("sev-snp-guest,id=s", False),
    ],
)
def test_policy_of_a_command_line(words: str, debug: bool) -> None:
    machine = read_argv(["qemu-system-x86_64", "-M", "q35", "-object", words], "argv")
    assert may_debug(machine) is debug


RNG = "<rng model='virtio'><backend model='random'>/dev/urandom</backend>{}</rng>"


@pytest.mark.parametrize(
    ("address", "ports"),
    [
        ("", 1),
        ("<address type='pci' bus='0x00' slot='0x04'/>", 0),
        ("<address type='pci' bus='0x01' slot='0x00'/>", 1),
        ("<address type='pci' bus='x' slot='0x00'/>", 1),
        ("<address type='drive' bus='0'/>", 1),
    ],
)
def test_a_device_on_the_root_bus_needs_no_port(address: str, ports: int) -> None:
    machine = read_domain(domain("", RNG.format(address)), "t")
    assert sum(device.type == "pcie-root-port" for device in machine.devices) == ports
