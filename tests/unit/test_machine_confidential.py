"""Launch policies decoded, and devices that a domain puts on the root bus itself."""

from __future__ import annotations

import pytest

from casemate.facts.domain import read_domain
from casemate.facts.machine import Machine
from casemate.facts.machine_confidential import boots_measured, keeps_variables, may_debug, may_migrate
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


def argv(words: str, *more: str, board: str = "q35,confidential-guest-support=s") -> Machine:
    return read_argv(["qemu-system-x86_64", "-M", board, "-object", words, *more], "argv")


@pytest.mark.parametrize(
    ("words", "debug", "migrate"),
    [
        ("sev-guest,id=s,policy=0x0", True, True),
        ("sev-guest,id=s", False, True),
        ("sev-guest,id=s,policy=0x9", False, False),
        ("sev-snp-guest,id=s,policy=0x80000", True, False),
        ("sev-snp-guest,id=s,policy=0x70000", False, True),
        ("sev-snp-guest,id=s", False, False),
        ('{"qom-type":"sev-snp-guest","id":"s","policy":720896}', True, False),
        ('{"qom-type":"tdx-guest","id":"s","attributes":268435456}', False, None),
        ('{"qom-type":"tdx-guest","id":"s","attributes":268435457}', True, None),
        ("s390-pv-guest,id=s", None, None),
    ],
)
def test_policy_of_a_command_line(words: str, debug: bool | None, migrate: bool | None) -> None:
    machine = argv(words)
    assert (may_debug(machine), may_migrate(machine)) == (debug, migrate)


def test_an_object_that_the_machine_does_not_name_encrypts_nothing() -> None:
    words = "sev-snp-guest,id=s"
    assert argv(words).launch_security == "sev-snp"
    assert argv(words, board="q35,memory-encryption=s").launch_security == "sev-snp"
    for board in ("q35", "q35,confidential-guest-support=other"):
        assert argv(words, board=board).launch_security == ""


def test_only_the_object_that_the_machine_names_says_anything_of_its_launch() -> None:
    """A strict policy beside the one that counts passes nothing, in either order."""
    strict, loose = "sev-snp-guest,id=a,policy=0x30000,kernel-hashes=on", "sev-snp-guest,id=b,policy=0xf0000"
    for first, second in ((strict, loose), (loose, strict)):
        for linked, expected in (("a", (False, False, "measured")), ("b", (True, True, "unmeasured"))):
            board = f"q35,confidential-guest-support={linked}"
            machine = argv(first, "-object", second, "-kernel", "/k", board=board)
            assert (may_debug(machine), may_migrate(machine), boots_measured(machine)) == expected


@pytest.mark.parametrize(
    ("words", "more", "kernel", "variables"),
    [
        ("sev-snp-guest,id=s,kernel-hashes=on", ("-kernel", "/k", "-bios", "/OVMF.amdsev.fd"), "measured", False),
        ("sev-snp-guest,id=s", ("-kernel", "/k", "-bios", "/OVMF.amdsev.fd"), "unmeasured", False),
        ('{"qom-type":"sev-snp-guest","id":"s","kernel-hashes":true}', ("-kernel", "/k"), "measured", False),
        ("sev-snp-guest,id=s", ("-bios", "/OVMF.amdsev.fd"), "none", False),
        ("tdx-guest,id=s", ("-kernel", "/k", "-bios", "/OVMF.inteltdx.fd"), None, False),
        ("sev-snp-guest,id=s", ("-drive", "if=pflash,file=/c", "-drive", "if=pflash,file=/v"), "none", True),
    ],
)
def test_what_a_command_line_measures(words: str, more: tuple[str, ...], kernel: str | None, variables: bool) -> None:
    machine = argv(words, *more)
    assert (boots_measured(machine), keeps_variables(machine)) == (kernel, variables)


@pytest.mark.parametrize(
    ("system", "security", "kernel", "variables"),
    [
        ("<kernel>/k</kernel><loader stateless='yes'/>", " kernelHashes='yes'", "measured", False),
        ("<kernel>/k</kernel><loader type='rom'>/f</loader>", "", "unmeasured", False),
        ("<loader type='pflash'>/c</loader><nvram>/v</nvram>", "", "none", True),
        ("<nvram>/v</nvram>", "", "none", True),
        ("", "", "none", None),
    ],
)
def test_what_a_domain_measures(system: str, security: str, kernel: str, variables: bool | None) -> None:
    xml = domain(f"<launchSecurity type='sev-snp'{security}><policy>0x30000</policy></launchSecurity>")
    machine = read_domain(xml.replace(b"</os>", f"{system}</os>".encode()), "t")
    assert (boots_measured(machine), keeps_variables(machine)) == (kernel, variables)


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
