"""Documents of machines: a careful one passes a control, one minimal change of its text fails exactly that control.

Where a change cannot but fail a second control, the case names it and says why. The last tests enumerate the whole
catalogue: a control without such a case, here or at the tables of other subjects, fails them.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from tests.support import host_tree
from tests.unit import test_audit_process_controls as process_cases
from tests.unit import test_controls_mutation as launch_cases
from tests.unit import test_emulator as emulator_cases

from casemate.audit.documents import kind_of, read_machine
from casemate.audit.judging import COMPARED
from casemate.controls.audit_model import TargetKind
from casemate.controls.catalogue.all import all_controls, controls_about
from casemate.controls.judge import judge
from casemate.controls.model import Subject, Verdict
from casemate.facts.fact import Stage
from casemate.facts.machine_facts import machine_facts

HERE = Path(__file__).parent
DATA = HERE.parent / "data" / "vmm"

XML = """<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>a</name>
<memory dumpCore='off'>1048576</memory><memoryBacking><nosharepages/></memoryBacking><genid/>
<os firmware='efi'><type arch='x86_64' machine='q35'>hvm</type><loader secure='yes'/></os>
<cpu mode='host-passthrough'><feature policy='disable' name='vmx'/></cpu>
<clock><timer name='hpet' present='no'/></clock>
<features><acpi/><ioapic driver='qemu'/><vmport state='off'/><ps2 state='off'/></features>
<devices><disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/a.img'/>
<target dev='vda' bus='virtio'/><encryption format='luks'/><address type='pci' bus='0x00' slot='0x02'/></disk>
<controller type='usb' model='none'/><memballoon model='none'/>
<interface type='bridge'><model type='virtio'/><driver name='qemu'/><filterref filter='clean-traffic'/>
<port isolated='yes'/><address type='pci' bus='0x00' slot='0x03'/></interface>
<rng model='virtio'><rate bytes='1024'/><backend model='random'>/dev/urandom</backend>
<address type='pci' bus='0x00' slot='0x04'/></rng>
<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
</devices><launchSecurity type='sev-snp'><policy>0x30000</policy></launchSecurity></domain>"""

GRAPHICS = XML.replace("<tpm ", "<graphics type='spice' listen='127.0.0.1' tlsPort='5901'/><video/><tpm ").replace(
    "<video/>", "<video><model type='none'/></video>"
)
REMOTE = (
    XML.replace("type='file' device", "type='network' device")
    .replace("<source file='/a.img'/>", "<source protocol='nbd' name='a' tls='yes'><host name='h'/></source>")
    .replace("<encryption format='luks'/>", "")
)
PORTS = XML.replace(
    "<controller type='usb'",
    "<controller type='pci' model='pcie-root-port'><target hotplug='off'/></controller><controller type='usb'",
)

ARGV = """qemu-system-x86_64 -name a
 -M microvm,accel=kvm,pit=off,pic=off,kernel-irqchip=split,mem-merge=off,dump-guest-core=off,smm=off -nodefaults
 -no-user-config -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
 -cpu host,vmx=off -m 512 -kernel /k -display none -object rng-random,id=r,filename=/dev/urandom
 -device virtio-rng-device,rng=r,max-bytes=1024,period=1000 -chardev socket,id=m,fd=3 -mon chardev=m,mode=control
 -drive if=none,id=d,file=/a.raw,format=raw,read-only=on -device virtio-blk-device,drive=d
 -netdev stream,id=n,addr.type=fd,addr.str=4 -device virtio-net-device,netdev=n -device vmgenid
 -tpmdev emulator,id=t,chardev=c -chardev socket,id=c,path=/run/t.sock -device tpm-tis-device,tpmdev=t"""

CONFIDENTIAL = (
    XML.replace("<loader secure='yes'/>", "<loader stateless='yes'/><kernel>/k</kernel>")
    .replace("type='sev-snp'>", "type='sev-snp' kernelHashes='yes'>")
    .replace("<feature policy='disable' name='vmx'/>", "<feature policy='disable' name='svm'/>")
)

BASES: dict[str, str] = {
    "xml": XML,
    "confidential": CONFIDENTIAL,
    "graphics": GRAPHICS,
    "remote": REMOTE,
    "ports": PORTS,
    "argv": ARGV,
    "kata": (DATA / "kata.toml").read_text(),
    "firecracker": (DATA / "firecracker.json").read_text(),
    "cloud-hypervisor": (DATA / "cloud-hypervisor.cmd").read_text(),
}

WEIGHT = "what has to do with USB weighs more by its history than the budget has left"
FLOPPY_WEIGHT = "the floppy controller weighs more by its history than the budget has left"
IRQCHIP_WEIGHT = "IOAPIC and PIT of the kernel weigh more by their history than the budget has left"
BOARD_OF_1996 = {"dev.no-floppy": "the board has a floppy controller", "dev.surface": FLOPPY_WEIGHT}
SAME_DEVICE = "the device is named by both: a list of the legacy ones and QEMU's list of insecure ones"

# control -> (base, old text, new text, other controls that this change must fail as well and why)
CASES: dict[str, tuple[str, str, str, dict[str, str]]] = {
    # What only documents and audits judge.
    "dev.no-secret-args": ("argv", "-kernel /k", "-kernel /k -append password=x", {}),
    "dev.uefi": ("xml", "<loader secure='yes'/>", "", {}),
    "dev.tpm": (
        "xml",
        "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>",
        "",
        {},
    ),
    "dev.surface": ("argv", "-device vmgenid", "-device vmgenid -device virtio-crypto-device", {}),
    "dev.hotplug-ports": ("ports", "<target hotplug='off'/>", "", {}),
    "mem.no-shared-backend": ("xml", "<nosharepages/>", "<nosharepages/><access mode='shared'/>", {}),
    "vmm.no-raw-args": (
        "xml",
        "</domain>",
        "<qemu:commandline><qemu:arg value='-no-reboot'/></qemu:commandline></domain>",
        {},
    ),
    "vmm.console-listen": ("graphics", "listen='127.0.0.1'", "listen='0.0.0.0'", {}),
    "vmm.console-auth": (
        "argv",
        "-display none",
        "-display none -object secret,id=s,file=/s -spice addr=127.0.0.1,tls-port=5901,x509-dir=/x",
        {"dev.no-display": "a SPICE server is a display"},
    ),
    "vmm.console-tls": ("graphics", " tlsPort='5901'", "", {}),
    "vmm.serial-network": (
        "argv",
        "-device vmgenid",
        "-device vmgenid -serial tcp:0.0.0.0:99,server",
        {},
    ),
    "net.antispoof": ("xml", "<filterref filter='clean-traffic'/>", "", {}),
    "net.isolated": ("xml", "<port isolated='yes'/>", "", {}),
    "img.encrypted": ("remote", " tls='yes'", "", {}),
    "img.local-encrypted": ("xml", "<encryption format='luks'/>", "", {}),
    "img.no-remote": (
        "xml",
        "type='file' device='disk'><driver name='qemu' type='raw'/><source file='/a.img'/>",
        "type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd' name='a' tls='yes'/>",
        {},
    ),
    "img.ram-files": ("xml", "<nosharepages/>", "<nosharepages/><source type='file'/>", {}),
    "cpu.guest-flags": ("xml", "<cpu mode='host-passthrough'>", "<cpu><model>qemu64</model>", {}),
    "kvm.no-hyperv-xen": ("xml", "<acpi/>", "<acpi/><hyperv><relaxed state='on'/></hyperv>", {}),
    "guest.agent": (
        "argv",
        "-device vmgenid",
        "-device vmgenid -device virtserialport,name=org.qemu.guest_agent.0,chardev=c",
        {},
    ),
    "cc.launch": ("xml", "<launchSecurity type='sev-snp'><policy>0x30000</policy></launchSecurity>", "", {}),
    "cc.no-debug": ("xml", "<policy>0x30000</policy>", "<policy>0xb0000</policy>", {}),
    "cc.no-migration": ("confidential", "<policy>0x30000</policy>", "<policy>0x70000</policy>", {}),
    "cc.kernel-hashes": ("confidential", " kernelHashes='yes'", "", {}),
    "cc.stateless-firmware": ("confidential", "stateless='yes'", "type='pflash'", {}),
    "ent.rate": ("argv", ",max-bytes=1024,period=1000", "", {}),
    "ent.vmgenid": ("xml", "<genid/>", "", {}),
    "vmm.own-sandbox": ("cloud-hypervisor", "--seccomp true", "--seccomp false", {}),
    "vmm.annotations": ("kata", '"default_memory"]', '"default_memory", "path"]', {}),
    "mem.template": ("kata", "enable_template = false", "enable_template = true", {}),
    "net.mmds": ("firecracker", '"version": "V2", ', "", {}),
    # What a launch judges too, here as documents say it.
    "dev.kvm": (
        "argv",
        "accel=kvm",
        "accel=tcg",
        {},
    ),
    "kvm.irqchip-split": (
        "xml",
        "<ioapic driver='qemu'/>",
        "<ioapic driver='kvm'/>",
        {"dev.surface": IRQCHIP_WEIGHT},
    ),
    "kvm.no-pit": ("argv", "pit=off", "pit=on", {}),
    "kvm.no-pic": ("argv", "pic=off", "pic=on", {}),
    "kvm.no-vhost-net": ("xml", "<driver name='qemu'/>", "", {}),
    "kvm.no-vhost-other": ("argv", "-device vmgenid", "-device vmgenid -device vhost-vsock-device,guest-cid=3", {}),
    "kvm.nested-off": ("argv", "-cpu host,vmx=off", "-cpu host", {}),
    "cpu.ksm": ("argv", "mem-merge=off", "mem-merge=on", {}),
    "dev.nodefaults": ("argv", "-no-user-config", "", {}),
    "dev.machine": ("xml", "machine='q35'", "machine='pc-i440fx-9.0'", BOARD_OF_1996),
    "dev.insecure-types": ("argv", "-device vmgenid", "-device vmgenid -device ipmi-bmc-sim", {}),
    "dev.no-floppy": (
        "argv",
        "-device vmgenid",
        "-device vmgenid -device isa-fdc",
        {"dev.insecure-types": SAME_DEVICE, "dev.surface": FLOPPY_WEIGHT},
    ),
    "dev.no-legacy-nic": (
        "argv",
        "-device vmgenid",
        "-device vmgenid -device rtl8139",
        {"dev.insecure-types": SAME_DEVICE},
    ),
    "dev.no-legacy-disk": ("argv", "-device vmgenid", "-device vmgenid -device virtio-scsi-device", {}),
    "dev.no-usb": ("argv", "-device vmgenid", "-device vmgenid -device qemu-xhci", {"dev.surface": WEIGHT}),
    "dev.no-display": ("argv", "-device vmgenid", "-device vmgenid -device ramfb", {}),
    "dev.no-share": ("argv", "-device vmgenid", "-device vmgenid -device virtio-pmem-pci", {}),
    "dev.platform-off": ("argv", "-device vmgenid", "-device vmgenid -device virtio-balloon-device", {}),
    "dev.smm": ("argv", ",smm=off", "", {}),
    "dev.boot-variables": ("xml", "<acpi/>", "<acpi/><smm state='off'/>", {}),
    "dev.no-hotplug": ("argv", "-device vmgenid", "-device vmgenid -device pcie-pci-bridge", {}),
    "iommu.no-hostdev": ("argv", "-device vmgenid", "-device vmgenid -device vfio-pci,host=0000:01:00.0", {}),
    "iommu.no-usb-host": (
        "argv",
        "-device vmgenid",
        "-device vmgenid -device u2f-passthru",
        {"dev.surface": WEIGHT},
    ),
    "vmm.qmp": ("argv", "-chardev socket,id=m,fd=3", "-chardev socket,id=m,path=/tmp/m,server=on", {}),
    "vmm.no-debug": ("argv", "-display none", "-display none -s", {}),
    "mem.no-dump": ("argv", "dump-guest-core=off", "dump-guest-core=on", {}),
    "proc.qemu-sandbox": ("argv", "spawn=deny", "spawn=allow", {}),
    "dev.no-slirp": (
        "argv",
        "-netdev stream,id=n,addr.type=fd,addr.str=4",
        "-netdev user,id=n",
        {"net.host-loopback": "slirp reaches the host's loopback unless it is restricted"},
    ),
    "img.format-explicit": ("argv", ",format=raw", "", {}),
    "ent.virtio-rng": ("argv", "filename=/dev/urandom", "filename=/dev/hwrng", {}),
    "img.exclusive": (
        "xml",
        "<target dev='vda' bus='virtio'/>",
        "<target dev='vda' bus='virtio'/><shareable/>",
        {},
    ),
}

ELSEWHERE: dict[str, str] = {
    "img.no-backing": "tests/unit/test_image_headers.py: the header decides, a document does not say it",
    "img.store-origin": "tests/unit/test_audit_store.py: a store of images, one without a signature",
}


@cache
def verdicts(text: str) -> dict[str, Verdict]:
    data = text.encode()
    machine = read_machine(TargetKind(kind_of(data[:1024])), data, "case")
    assert machine.unreadable == ()
    facts = machine_facts(machine, Stage.OBSERVED)
    found = judge(controls_about(Subject.VM), facts, stage=Stage.OBSERVED)
    return {finding.control_id: finding.verdict for finding in found}


@pytest.mark.parametrize("control", CASES)
def test_one_change_of_the_document_fails_exactly_this_control(control: str) -> None:
    base, old, new, also = CASES[control]
    text = BASES[base]
    assert text.count(old) == 1, "the change is in one place"
    good, bad = verdicts(text), verdicts(text.replace(old, new))
    assert good[control] is Verdict.PASS
    assert bad[control] is Verdict.FAIL
    newly = {name for name, verdict in bad.items() if verdict is Verdict.FAIL and good[name] is not Verdict.FAIL}
    assert newly == {control, *also}


def cases_of_other_subjects() -> set[str]:
    """Controls whose case stands in another table: facts of a launch, of a process, of an emulator, trees of a host,
    and ``CATALOGUE_CASES`` of any other test file: ids of controls that it shows to pass and to fail."""
    layers = host_tree.layers()
    return {
        *(control for control, _ in launch_cases.MUTATIONS),
        *process_cases.MUTATIONS,
        *(control for control, _ in emulator_cases.MUTATIONS),
        *(control for layer in layers for control in layer.mutations),
        *ELSEWHERE,
        *(control for name in sorted(HERE.glob("test_*.py")) for control in _declared_in(name)),
    }


def _declared_in(path: Path) -> frozenset[str]:
    if path == Path(__file__) or "CATALOGUE_CASES" not in path.read_text():
        return frozenset()
    return frozenset(import_module(f"tests.unit.{path.stem}").CATALOGUE_CASES)


def test_every_control_of_the_catalogue_has_a_case() -> None:
    have = {*CASES, *cases_of_other_subjects()}
    missing = [c.id for c in all_controls() if c.id not in have and not c.manual and c.id not in COMPARED]
    assert missing == []


def test_the_places_named_elsewhere_are_there() -> None:
    for place in ELSEWHERE.values():
        assert (HERE.parents[1] / place.partition(":")[0]).is_file(), place


def test_no_case_is_about_a_control_that_is_gone() -> None:
    assert {*CASES, *ELSEWHERE} - {control.id for control in all_controls()} == set()


def test_every_control_that_a_document_can_fail_has_a_document() -> None:
    """Of those that only audits judge and that read what a description says."""
    launch = {control.id for control in launch_cases.CONTROLS.values()}
    wanted = {c.id for c in controls_about(Subject.VM) if c.id not in launch and not c.manual and c.id not in COMPARED}
    assert wanted - set(CASES) - set(process_cases.MUTATIONS) == set()
