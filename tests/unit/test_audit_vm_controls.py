"""Controls on documents: one careful libvirt domain passes them, one minimal change of the XML flips each."""

from __future__ import annotations

import pytest

from casemate.controls.catalogue.all import controls_about
from casemate.controls.judge import judge
from casemate.controls.model import Subject, Verdict
from casemate.errors import InputError
from casemate.facts.domain import read_domain
from casemate.facts.fact import Stage, Unknown
from casemate.facts.machine_facts import machine_facts
from casemate.facts.qemu_argv import read_argv

GOOD = """<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>a</name>
<memory>1048576</memory><genid/><os firmware='efi'><type arch='x86_64' machine='q35'>hvm</type>
<loader secure='yes'/></os><cpu mode='host-passthrough'/><features><acpi/><ioapic driver='qemu'/></features>
<devices><disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/a.img'/>
<target dev='vda' bus='virtio'/><encryption format='luks'/></disk>
<controller type='usb' model='none'/><memballoon model='none'/>
<interface type='bridge'><model type='virtio'/><driver name='qemu'/><filterref filter='clean-traffic'/>
<port isolated='yes'/></interface>
<rng model='virtio'><rate bytes='1024'/><backend model='random'>/dev/urandom</backend></rng>
</devices></domain>"""

CARELESS = "qemu-system-x86_64 -enable-kvm -hda d.img -monitor telnet::1,server -s"

CHANGES = {
    "kvm.irqchip-split": ("<ioapic driver='qemu'/>", ""),
    "dev.no-floppy": ("<controller type='usb'", "<controller type='fdc'/><controller type='usb'"),
    "dev.no-usb": ("<controller type='usb' model='none'/>", ""),
    "net.antispoof": ("<filterref filter='clean-traffic'/>", ""),
    "net.isolated": ("<port isolated='yes'/>", ""),
    "ent.rate": ("<rate bytes='1024'/>", ""),
    "ent.vmgenid": ("<genid/>", ""),
    "dev.uefi": ("<loader secure='yes'/>", ""),
    "cpu.guest-flags": ("<cpu mode='host-passthrough'/>", ""),
    "kvm.no-hyperv-xen": ("<acpi/>", "<acpi/><hyperv><relaxed state='on'/></hyperv>"),
    "img.local-encrypted": ("<encryption format='luks'/>", ""),
    "vmm.no-raw-args": ("</devices>", "</devices><qemu:commandline><qemu:arg value='-no-reboot'/></qemu:commandline>"),
    "vmm.console-listen": ("<memballoon", "<graphics type='vnc' listen='0.0.0.0'/><memballoon"),
    "dev.no-secret-args": ("<memballoon", "<graphics type='vnc' passwd='x'/><memballoon"),
    "guest.agent": (
        "<memballoon",
        "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel><memballoon",
    ),
    "vmm.serial-network": (
        "<memballoon",
        "<serial type='tcp'><source host='0.0.0.0' service='99'/></serial><memballoon",
    ),
    "kvm.no-vhost-net": ("<driver name='qemu'/>", ""),
}


def failed(xml: str) -> set[str]:
    facts = machine_facts(read_domain(xml.encode(), "t.xml"), Stage.DECLARED)
    found = judge(controls_about(Subject.VM), facts, stage=Stage.DECLARED)
    return {finding.control_id for finding in found if finding.verdict is Verdict.FAIL}


@pytest.mark.parametrize("control", CHANGES)
def test_one_change_of_the_domain_fails_its_control(control: str) -> None:
    old, new = CHANGES[control]
    assert GOOD.count(old) == 1
    assert control not in failed(GOOD)
    assert control in failed(GOOD.replace(old, new))


def test_careless_command_line_shows_what_the_board_brings() -> None:
    machine = read_argv(CARELESS.split(), "argv")
    types = {device.type for device in machine.devices}
    assert {"isa-fdc", "e1000", "VGA", "kvm-pit", "ide-hd"} <= types
    assert machine.disks[0].format == ""
    facts = machine_facts(machine, Stage.OBSERVED)
    assert getattr(facts["qmp.transport"], "value", None) == "telnet"
    assert getattr(facts["net.backend"], "value", None) == "user"


def test_what_cannot_be_read_makes_lists_unknown() -> None:
    machine = read_argv(["qemu-system-x86_64", "-readconfig", "x"], "argv")
    assert machine.unreadable
    assert isinstance(machine_facts(machine, Stage.OBSERVED)["dev.types"], Unknown)


@pytest.mark.parametrize(
    "text",
    ["-device={", '{"driver":' + '{"a":' * 5000, "{" * 100_000, "a\0b,c\xff", ",,,,", "driver=,id"],
)
def test_hostile_device_text_is_read_or_said_to_be_unreadable(text: str) -> None:
    machine = read_argv(["qemu-system-x86_64", "-device", text], "argv")
    assert machine.options[0] == ("-device", text)


@pytest.mark.parametrize(
    "xml",
    [
        b"",
        b"<a/>",
        b"<domain",
        b"\xff\xfe\x00",
        b"<domain>\xff</domain>",
        b'<!DOCTYPE d [<!ENTITY x "y">]><domain>&x;</domain>',
        b'<!DOCTYPE d SYSTEM "file:///etc/passwd"><domain/>',
        b"<domain>" * 100 + b"</domain>" * 100,
        b"<domain a='" + b"x" * 70_000 + b"'/>",
        b"<domain>" + b"<a/>" * 20_001 + b"</domain>",
        b" " * (5 << 20),
    ],
    ids=range(11),
)
def test_hostile_xml_is_refused(xml: bytes) -> None:
    with pytest.raises(InputError):
        read_domain(xml, "t.xml")


TPM_IDS = ("tpm.state-encrypted", "tpm.own-uid", "tpm.confined")
SECRET = "<encryption secret='6dd3e4a5-1d76-44ce-961f-f119f5aad935'/>"


@pytest.mark.parametrize(
    ("backend", "wanted"),
    [
        ("", ("not-applicable", "not-applicable", "not-applicable")),
        ("<backend type='emulator' version='2.0'/>", ("fail", "fail", "not-applicable")),
        (f"<backend type='emulator' version='2.0'>{SECRET}</backend>", ("pass", "fail", "not-applicable")),
        (
            "<backend type='passthrough'><device path='/dev/tpm0'/></backend>",
            ("not-applicable", "not-applicable", "not-applicable"),
        ),
    ],
)
def test_a_domains_tpm(backend: str, wanted: tuple[str, ...]) -> None:
    xml = GOOD.replace("<memballoon", f"<tpm model='tpm-crb'>{backend}</tpm><memballoon") if backend else GOOD
    facts = machine_facts(read_domain(xml.encode(), "t.xml"), Stage.OBSERVED)
    found = {f.control_id: f.verdict.value for f in judge(controls_about(Subject.VM), facts, stage=Stage.OBSERVED)}
    assert tuple(found[name] for name in TPM_IDS) == wanted


def test_a_command_line_does_not_say_how_swtpm_keeps_its_state() -> None:
    line = "qemu-system-x86_64 -tpmdev emulator,id=t,chardev=c -chardev socket,id=c,path=/s -device tpm-crb,tpmdev=t"
    facts = machine_facts(read_argv(line.split(), "t"), Stage.OBSERVED)
    found = {f.control_id: f.verdict for f in judge(controls_about(Subject.VM), facts, stage=Stage.OBSERVED)}
    assert found["tpm.state-encrypted"] is Verdict.UNKNOWN
    assert found["tpm.own-uid"] is Verdict.UNKNOWN
    assert found["tpm.confined"] is Verdict.NOT_APPLICABLE
