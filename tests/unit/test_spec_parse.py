"""The parser of specifications: what it makes of a sound document, and every fault it knows."""

from __future__ import annotations

import datetime
from pathlib import Path

import msgspec
import pytest
from tests.unit.test_spec_confidential import CASES as CONFIDENTIAL

from casemate.errors import ExitCode, InputError, SpecError
from casemate.spec.faults import FAULT_IDS, MAX_FAULTS, Faults
from casemate.spec.model import (
    AccelChoice,
    Boot,
    Console,
    ConsoleDevice,
    Disk,
    DiskFormat,
    DiskMode,
    Egress,
    Firmware,
    Irqchip,
    Limits,
    Machine,
    MachineType,
    Network,
    NetworkMode,
    Passthrough,
    Publish,
    Spec,
    Waiver,
)
from casemate.spec.parse import MAX_SPEC_BYTES, build_spec, check_spec, parse_spec

TODAY = datetime.date(2026, 10, 1)
BASE = Path("/specs/here")
KERNEL = '[boot]\nkernel = "k"\n'
Q35 = '[machine]\ntype = "q35"\n[boot]\nkernel = "k"\n'
KEYS = '[boot.keys]\npk = "p"\nkek = ["k"]\ndb = ["d", "/e"]\n'
USER = KERNEL + '[network]\nmode = "user"\n'

FULL = """
name = "web-1"
[machine]
type = "q35"
memory_mib = 2048
vcpus = 4
accel = "kvm"
irqchip = "off"
[boot]
firmware = "bios"
[[disk]]
path = "images/root, a=b %s.qcow2"
format = "qcow2"
mode = "persistent"
[[disk]]
path = "../seed.iso"
format = "raw"
mode = "read-only"
[network]
mode = "user"
egress = "list"
ipv6 = true
allow = ["198.51.100.0/24", "2001:DB8:0::/48", "9.9.9.9"]
publish = ["2222:22", "[::1]:8080:80/udp", {host_port = 443, guest_port = 8443, address = "0.0.0.0"}]
[console]
device = "virtio"
log_max_kib = 16
[limits]
cpu_percent = 150
overhead_mib = 300
pids = 64
read_mib_s = 100
write_mib_s = 50
[[waiver]]
control = "proc.dumpable"
reason = "old kernel on this host"
expires = 2026-10-01
[[passthrough]]
address = "0000:3b:02.1"
reason = "network card of the lab"
expires = "2027-01-31"
"""


def faults_of(text: str | bytes) -> set[tuple[str, str]]:
    with pytest.raises(SpecError) as caught:
        parse_spec(text, "vm.toml", BASE, today=TODAY)
    return {(fault.path, fault.fault_id) for fault in caught.value.faults}


def test_full_document() -> None:
    assert parse_spec(FULL, "vm.toml", BASE, today=TODAY) == Spec(
        name="web-1",
        machine=Machine(type=MachineType.Q35, memory_mib=2048, vcpus=4, accel=AccelChoice.KVM, irqchip=Irqchip.OFF),
        boot=Boot(firmware=Firmware.BIOS),
        disks=(
            Disk(path="/specs/here/images/root, a=b %s.qcow2", format=DiskFormat.QCOW2, mode=DiskMode.PERSISTENT),
            Disk(path="/specs/seed.iso", format=DiskFormat.RAW, mode=DiskMode.READ_ONLY),
        ),
        network=Network(
            mode=NetworkMode.USER,
            egress=Egress.LIST,
            ipv6=True,
            allow=("198.51.100.0/24", "2001:db8::/48", "9.9.9.9/32"),
            publish=(
                Publish(host_port=2222, guest_port=22),
                Publish(host_port=8080, guest_port=80, address="::1", protocol="udp"),
                Publish(host_port=443, guest_port=8443, address="0.0.0.0"),
            ),
        ),
        console=Console(device=ConsoleDevice.VIRTIO, log_max_kib=16),
        limits=Limits(cpu_percent=150, overhead_mib=300, pids=64, read_mib_s=100, write_mib_s=50),
        waivers=(Waiver(control="proc.dumpable", reason="old kernel on this host", expires=TODAY),),
        passthrough=(
            Passthrough(address="0000:3b:02.1", reason="network card of the lab", expires=datetime.date(2027, 1, 31)),
        ),
    )


def test_smallest_document_has_the_closed_defaults() -> None:
    spec = parse_spec(KERNEL.encode(), "vm.toml", BASE, today=TODAY)
    assert spec == Spec(boot=Boot(kernel="/specs/here/k"))
    assert spec.network.mode is NetworkMode.NONE
    assert spec.machine.type is MachineType.MICROVM


CASES: list[tuple[str, str | bytes, set[tuple[str, str]]]] = [
    ("not utf-8", b"\xff", {("", "toml.encoding")}),
    ("surrogate", 'name = "\udc80"', {("", "toml.encoding")}),
    ("too large", "#" * (MAX_SPEC_BYTES + 1), {("", "toml.size")}),
    ("not toml", "a = [[", {("", "toml.syntax")}),
    ("key twice", "a = 1\na = 2\n", {("line 2", "toml.syntax")}),
    ("enormous number", "a = " + "9" * 5000, {("", "toml.syntax")}),
    ("deep value", "a = " + "[" * 100_000, {("", "toml.nesting")}),
    ("deep key", "a" + ".a" * 500_000 + " = 1", {("line 1", "toml.nesting")}),
    ("deep table", "\n[" + "a." * 17 + "a]", {("line 2", "toml.nesting")}),
    ("deep quoted key", "\n\n" + '"a".' * 17 + "a = 1", {("line 3", "toml.nesting")}),
    ("unknown at top", KERNEL.replace("[", "nmae = 1\n[", 1), {("nmae", "key.unknown")}),
    ("unknown in table", KERNEL + "x = 1", {("boot.x", "key.unknown")}),
    ("unknown in list", Q35 + '[[disk]]\npath = "d"\nformat = "raw"\nro = true', {("disk[0].ro", "key.unknown")}),
    ("image without a store", Q35 + '[[disk]]\nimage = "web"', {("disk[0].image", "disk.image")}),
    ("image and path", Q35 + '[[disk]]\nimage = "web"\npath = "d"\nformat = "raw"', {("disk[0].image", "disk.image")}),
    (
        "image with an odd name",
        Q35 + '[[disk]]\nimage = "../web"\nsha256 = "0"',
        {("disk[0].image", "disk.image"), ("disk[0].image", "value.pattern"), ("disk[0].sha256", "value.pattern")},
    ),
    (
        "fixed and written",
        Q35 + f'[[disk]]\npath = "d"\nformat = "raw"\nmode = "persistent"\nsha256 = "{"0" * 64}"',
        {("disk[0].mode", "disk.immutable")},
    ),
    ("unknown with ugly name", '"\\u001b[2J" = 1\n' + KERNEL, {('"\\u001b[2J"', "key.unknown")}),
    ("missing", KERNEL + "[[disk]]", {("disk[0].path", "key.missing"), ("disk[0].format", "key.missing")}),
    ("table for list", KERNEL + '[disk]\npath = "d"', {("disk", "type.wrong")}),
    ("value for table", "boot = 1", {("boot", "type.wrong")}),
    ("boolean for number", KERNEL + "[machine]\nvcpus = true", {("machine.vcpus", "type.wrong")}),
    ("float for number", KERNEL + "[machine]\nmemory_mib = 256.0", {("machine.memory_mib", "type.wrong")}),
    ("text for number", KERNEL + '[machine]\nmemory_mib = "1G"', {("machine.memory_mib", "type.wrong")}),
    ("number for choice", KERNEL + "[machine]\ntype = 35", {("machine.type", "type.wrong")}),
    ("number for text", "name = 1\n" + KERNEL, {("name", "type.wrong")}),
    ("value for list", KERNEL + "[network]\nallow = 1", {("network.allow", "type.wrong")}),
    ("value for published port", USER + "publish = [80]", {("network.publish[0]", "type.wrong")}),
    (
        "moment for day",
        KERNEL + '[[waiver]]\ncontrol = "a.b"\nreason = "long enough"\nexpires = 2027-01-01T00:00:00Z',
        {("waiver[0].expires", "type.wrong")},
    ),
    ("negative size", KERNEL + "[machine]\nmemory_mib = -1", {("machine.memory_mib", "value.range")}),
    ("absurd size", KERNEL + "[machine]\nmemory_mib = 99999999999999", {("machine.memory_mib", "value.range")}),
    (
        "no such port",
        USER + 'publish = ["0:99999"]',
        {
            ("network.publish[0].host_port", "value.range"),
            ("network.publish[0].guest_port", "value.range"),
        },
    ),
    (
        "no such day",
        KERNEL + '[[waiver]]\ncontrol = "a.b"\nreason = "long enough"\nexpires = "2027-02-30"',
        {("waiver[0].expires", "value.range")},
    ),
    ("choice", KERNEL + '[machine]\ntype = "pc"', {("machine.type", "value.choice")}),
    (
        "short reason",
        KERNEL + '[[waiver]]\ncontrol = "a.b"\nreason = "x"\nexpires = 2027-01-01',
        {
            ("waiver[0].reason", "value.length"),
        },
    ),
    ("too many disks", Q35 + '[[disk]]\npath = "d"\nformat = "raw"\n' * 9, {("disk", "value.length")}),
    ("long command line", KERNEL + f'cmdline = "{"x" * 2048}"', {("boot.cmdline", "value.length")}),
    ("name", 'name = "Web"\n' + KERNEL, {("name", "value.pattern")}),
    ("name with line break", 'name = "web\\n"\n' + KERNEL, {("name", "text.control")}),
    ("empty name", 'name = ""\n' + KERNEL, {("name", "value.pattern")}),
    ("protocol", USER + 'publish = ["1:1/sctp"]', {("network.publish[0].protocol", "value.pattern")}),
    ("line break in path", '[boot]\nkernel = "a\\nb"', {("boot.kernel", "text.control")}),
    ("NUL in path", '[boot]\nkernel = "a\\u0000b"', {("boot.kernel", "text.control")}),
    ("direction mark in path", '[boot]\nkernel = "a\\u202eb"', {("boot.kernel", "text.control")}),
    (
        "escape in reason",
        KERNEL + '[[waiver]]\ncontrol = "a.b"\nreason = "nice \\u001b[2J"\nexpires = 2027-01-01',
        {
            ("waiver[0].reason", "text.control"),
        },
    ),
    ("non-ASCII command line", KERNEL + 'cmdline = "ä"', {("boot.cmdline", "text.ascii")}),
    ("empty path", '[boot]\nkernel = ""', {("boot.kernel", "path.empty")}),
    ("long path", f'[boot]\nkernel = "{"a/" * 2100}k"', {("boot.kernel", "path.too-long")}),
    ("home", '[boot]\nkernel = "~/k"', {("boot.kernel", "path.home")}),
    ("url", '[boot]\nkernel = "https://example.org/k"', {("boot.kernel", "path.url")}),
    ("json pseudo-protocol", '[boot]\nkernel = \'json:{"driver":"nbd"}\'', {("boot.kernel", "path.url")}),
    ("dot dot inside", '[boot]\nkernel = "a/../k"', {("boot.kernel", "path.parent")}),
    ("dot dot in absolute", '[boot]\nkernel = "/a/../k"', {("boot.kernel", "path.parent")}),
    ("directory", '[boot]\nkernel = "a/"', {("boot.kernel", "path.directory")}),
    ("address", USER + 'publish = ["localhost:80:80"]', {("network.publish[0].address", "address.invalid")}),
    ("multicast", USER + 'publish = ["224.0.0.1:80:80"]', {("network.publish[0].address", "address.invalid")}),
    ("scoped", USER + 'publish = ["[fe80::1%eth0]:80:80"]', {("network.publish[0].address", "address.invalid")}),
    ("empty address", USER + 'publish = [":80:80"]', {("network.publish[0].address", "address.invalid")}),
    ("block", USER + 'egress = "list"\nallow = ["example.org"]', {("network.allow[0]", "cidr.invalid")}),
    ("block with host bits", USER + 'egress = "list"\nallow = ["10.0.0.1/8"]', {("network.allow[0]", "cidr.invalid")}),
    ("scoped block", USER + 'egress = "list"\nallow = ["2001:db8::%1/128"]', {("network.allow[0]", "cidr.invalid")}),
    (
        "forbidden blocks",
        USER + 'egress = "list"\nallow = ["0.0.0.0/0", "127.0.0.1", "169.254.169.254", "::/0", "::1", "126.0.0.0/7"'
        ', "::ffff:127.0.0.1", "fe80::/64"]',
        {(f"network.allow[{index}]", "cidr.forbidden") for index in range(8)},
    ),
    (
        "block twice",
        USER + 'egress = "list"\nallow = ["9.9.9.9", "9.9.9.9/32"]',
        {("network.allow[1]", "cidr.duplicate")},
    ),
    (
        "metadata",
        USER + 'ipv6 = true\negress = "list"\nallow = ["fd00:EC2::254"]',
        {("network.allow[0]", "cidr.forbidden")},
    ),
    (
        "link-local",
        USER + 'ipv6 = true\npublish = ["[fe80::1]:80:80"]',
        {("network.publish[0].address", "address.invalid")},
    ),
    ("disguised", USER + 'publish = ["[::ffff:1.2.3.4]:80:80"]', {("network.publish[0].address", "address.invalid")}),
    ("IPv6 without a network", KERNEL + "[network]\nipv6 = true", {("network.ipv6", "ipv6.needs-user")}),
    (
        "IPv6 that is off",
        USER + 'publish = ["80:80", "[::1]:81:80"]\negress = "list"\nallow = ["9.9.9.9", "2001:db8::/32"]',
        {("network.publish[1]", "ipv6.off"), ("network.allow[1]", "ipv6.off")},
    ),
    ("one port", USER + 'publish = ["80"]', {("network.publish[0]", "publish.syntax")}),
    ("port range", USER + 'publish = ["80-90:80-90"]', {("network.publish[0]", "publish.syntax")}),
    ("bare IPv6", USER + 'publish = ["::1:80:80"]', {("network.publish[0]", "publish.syntax")}),
    ("IPv4 in brackets", USER + 'publish = ["[127.0.0.1]:80:80"]', {("network.publish[0]", "publish.syntax")}),
    ("port twice", USER + 'publish = ["80:80", "80:81"]', {("network.publish[1]", "publish.duplicate")}),
    (
        "port under wildcard",
        USER + 'publish = ["80:80", "0.0.0.0:80:81"]',
        {
            ("network.publish[1]", "publish.duplicate"),
        },
    ),
    (
        "publish without network",
        KERNEL + '[network]\npublish = ["80:80"]',
        {
            ("network.publish", "publish.needs-user"),
        },
    ),
    (
        "list without network",
        KERNEL + '[network]\negress = "list"\nallow = ["9.9.9.9"]',
        {
            ("network.egress", "egress.needs-user"),
        },
    ),
    ("empty list", USER + 'egress = "list"', {("network.allow", "egress.allow-empty")}),
    ("unused list", USER + 'allow = ["9.9.9.9"]', {("network.allow", "egress.allow-unused")}),
    ("nothing to boot", "", {("boot", "boot.missing")}),
    ("nothing to boot on q35", '[machine]\ntype = "q35"', {("boot", "boot.missing")}),
    (
        "kernel and firmware",
        Q35 + 'firmware = "uefi"\n[[disk]]\npath = "d"\nformat = "raw"',
        {("boot", "boot.both")},
    ),
    (
        "initrd without kernel",
        Q35.replace('kernel = "k"', 'firmware = "uefi"\ninitrd = "i"\ncmdline = "x"')
        + '[[disk]]\npath = "d"\nformat = "raw"',
        {("boot.initrd", "boot.needs-kernel"), ("boot.cmdline", "boot.needs-kernel")},
    ),
    (
        "firmware on microvm without disk",
        '[boot]\nfirmware = "uefi"',
        {("boot.firmware", "machine.needs-q35"), ("boot.firmware", "boot.needs-disk")},
    ),
    (
        "keys without Secure Boot",
        Q35 + KEYS,
        {("boot.keys", "boot.needs-secure")},
    ),
    (
        "Secure Boot on microvm without disk, and half of the keys",
        '[boot]\nfirmware = "uefi-secure"\n[boot.keys]\npk = "p"\ndb = []',
        {
            ("boot.keys.kek", "key.missing"),
            ("boot.keys.db", "value.length"),
            ("boot.firmware", "machine.needs-q35"),
            ("boot.firmware", "boot.needs-disk"),
        },
    ),
    (
        "passthrough on microvm",
        KERNEL + '[[passthrough]]\naddress = "0000:00:02.0"\nreason = "long enough"\nexpires = 2027-01-01',
        {("passthrough", "machine.needs-q35")},
    ),
    (
        "disks of a microvm",
        KERNEL + "".join(f'[[disk]]\npath = "d{index}"\nformat = "raw"\n' for index in range(5)),
        {("disk", "machine.microvm-disks")},
    ),
    (
        "disk twice",
        KERNEL + '[[disk]]\npath = "d"\nformat = "raw"\n[[disk]]\npath = "/specs/here/./d"\nformat = "qcow2"',
        {
            ("disk[1].path", "disk.duplicate"),
        },
    ),
    (
        "waiver twice",
        KERNEL + '[[waiver]]\ncontrol = "a.b"\nreason = "long enough"\nexpires = 2027-01-01\n' * 2,
        {("waiver[1].control", "waiver.duplicate")},
    ),
    (
        "waiver expired yesterday",
        KERNEL + '[[waiver]]\ncontrol = "a.b"\nreason = "long enough"\nexpires = 2026-09-30',
        {("waiver[0].expires", "waiver.expired")},
    ),
    (
        "passthrough twice and expired",
        Q35 + '[[passthrough]]\naddress = "0000:00:02.0"\nreason = "long enough"\nexpires = 2026-09-30\n' * 2,
        {
            ("passthrough[0].expires", "passthrough.expired"),
            ("passthrough[1].address", "passthrough.duplicate"),
            ("passthrough[1].expires", "passthrough.expired"),
        },
    ),
    (
        "secrets without, with two and with half a source",
        KERNEL
        + '[secrets.a]\n[secrets.b]\nfile = "x"\ndescriptor = 3\n[secrets.c]\nage = "x"\n'
        + '[secrets.d]\nidentity = "x"\nfile = "y"\n'
        + '[secrets.e]\ncommand = ["pass"]\n[secrets.f]\ncommand = []\n',
        {
            ("secrets.a", "secret.source"),
            ("secrets.b", "secret.source"),
            ("secrets.c", "secret.identity"),
            ("secrets.d", "secret.identity"),
            ("secrets.e.command", "secret.command"),
            ("secrets.f.command", "secret.command"),
        },
    ),
    (
        "secrets with bad names",
        KERNEL + f'[secrets."../x"]\nfile = "x"\n[secrets.{"n" * 29}]\nfile = "x"\n[secrets.{"n" * 64}]\nfile = "x"\n',
        {
            ('secrets."../x"', "value.pattern"),
            (f"secrets.{'n' * 29}", "secret.name-length"),
            (f'secrets."{"n" * 60}…"', "value.pattern"),
        },
    ),
    (
        "secrets that are no tables",
        KERNEL + 'secrets.a = "hunter2"\n[secrets.b]\nvalue = "hunter2"\n',
        {("boot.secrets", "key.unknown"), ("secrets.b.value", "key.unknown")},
    ),
    (
        "too many secrets",
        KERNEL + "".join(f'[secrets.s{number}]\nfile = "x"\n' for number in range(17)),
        {("secrets", "value.length")},
    ),
    (
        "user-data from two places",
        KERNEL + '[provision.cloud_init]\nuser_data = "u"\n[secrets.a]\nfile = "x"\nuse = "user-data"\n',
        {("secrets", "secret.twice")},
    ),
    (
        "cloud-init and Ignition",
        KERNEL + '[provision.cloud_init]\nhostname = "-x"\n[provision.ignition]\nconfig = "c"\n',
        {("provision.cloud_init.hostname", "value.pattern")},
    ),
    (
        "cloud-init and an Ignition secret",
        KERNEL + '[provision.cloud_init]\nhostname = "x"\n[secrets.a]\nfile = "x"\nuse = "ignition"\n',
        {("provision", "provision.both")},
    ),
    (
        "an encrypted disk inside qcow2 that a save would lose",
        KERNEL
        + "[machine]\nsaveable = true\n"
        + '[[disk]]\npath = "a"\nformat = "qcow2"\nmode = "persistent"\nencryption = "luks"\nkey = "k"\n'
        + '[[disk]]\npath = "b"\nformat = "raw"\nmode = "persistent"\nencryption = "luks"\nkey = "k"\n'
        + '[secrets.k]\nfile = "k"\nuse = "disk"\n',
        {("disk[0].encryption", "disk.encryption")},
    ),
    (
        "encrypted disks: an overlay, without a key, with an unknown key, and a key for none",
        KERNEL
        + '[[disk]]\npath = "a"\nformat = "raw"\nencryption = "luks"\nkey = "k"\n'
        + '[[disk]]\npath = "b"\nformat = "raw"\nmode = "persistent"\nencryption = "luks"\n'
        + '[[disk]]\npath = "c"\nformat = "qcow2"\nmode = "read-only"\nencryption = "luks"\nkey = "unknown"\n'
        + '[secrets.k]\nfile = "k"\nuse = "disk"\n[secrets.spare]\nfile = "s"\nuse = "disk"\n',
        {
            ("disk[0].encryption", "disk.encryption"),
            ("disk[1].key", "disk.key"),
            ("disk[2].key", "disk.key"),
            ("secrets.spare", "disk.key"),
        },
    ),
    (
        "a TPM that may be saved, with an unknown key, and a key for none",
        KERNEL
        + '[machine]\nsaveable = true\n[tpm]\nenabled = true\nkey = "k"\n[secrets.s]\nfile = "/s"\nuse = "tpm"\n',
        {("tpm.enabled", "tpm.saveable"), ("tpm.key", "tpm.key"), ("secrets.s", "tpm.key")},
    ),
    (
        "a key for no TPM",
        KERNEL + '[tpm]\nkey = "s"\n[secrets.s]\nfile = "/s"\nuse = "tpm"\n',
        {("tpm.key", "tpm.unused-key")},
    ),
    (
        "endless faults",
        KERNEL + "[[disk]]\nx=1\n" * 8 + "".join(f"k{index} = 1\n" for index in range(200)),
        {
            *{(f"disk[{index}].{key}", "key.unknown") for index in range(8) for key in ("x",)},
            *{(f"disk[7].k{index}", "key.unknown") for index in range(MAX_FAULTS - 7 * 3 - 1)},
            *{(f"disk[{index}].{key}", "key.missing") for index in range(7) for key in ("path", "format")},
            ("", "faults.more"),
        },
    ),
]


@pytest.mark.parametrize(("text", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_fault(text: str | bytes, expected: set[tuple[str, str]]) -> None:
    assert faults_of(text) == expected


def test_every_fault_id_has_a_case() -> None:
    """Ids that only flags of the command line can cause are tested in ``test_spec_override``."""
    seen = {fault_id for _, _, expected in (*CASES, *CONFIDENTIAL) for _, fault_id in expected}
    assert set(FAULT_IDS) - seen == {"disk.option", "disk.format", "flag.conflict"}


def test_all_faults_are_reported_together() -> None:
    text = """
    memory_mib = 5
    [machine]
    type = "pc"
    vcpus = 0
    [boot]
    kernal = "x"
    [[disk]]
    path = "a/../b"
    [network]
    publish = ["80", "2222:22", "2222:23"]
    """
    assert faults_of(text) == {
        ("memory_mib", "key.unknown"),
        ("machine.type", "value.choice"),
        ("machine.vcpus", "value.range"),
        ("boot.kernal", "key.unknown"),
        ("disk[0].path", "path.parent"),
        ("disk[0].format", "key.missing"),
        ("network.publish[0]", "publish.syntax"),
        ("network.publish", "publish.needs-user"),
        ("network.publish[2]", "publish.duplicate"),
    }


def test_no_complaint_about_consequences() -> None:
    assert faults_of("[boot]\nkernel = 1\ninitrd = 'i'\ncmdline = 'x'") == {("boot.kernel", "type.wrong")}
    assert faults_of(USER.replace('"user"', '"usr"') + 'publish = ["80:80"]') == {("network.mode", "value.choice")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nmae = 1\n" + KERNEL, 'no such key; did you mean "name"?'),
        ("vcpus = 1\n" + KERNEL, "no such key; vcpus belongs in [machine]"),
        (KERNEL + "zzz = 1", "no such key; known here: kernel, initrd, cmdline, firmware, keys"),
        (
            KERNEL + '[machine]\ntype = "q53"',
            'got "q53"; expected one of "microvm", "q35", "s390-ccw-virtio"; did you mean "q35"?',
        ),
        (KERNEL + "[machine]\nvcpus = 0", "got 0; expected 1 to 255"),
        (KERNEL + '[disk]\npath = "x"', "expected a list of tables; write [[disk]] instead of [disk]"),
        ('[boot]\nkernel = "a\\nb"', "has the character U+000A at position 2; remove it"),
        (USER + 'publish = ["80"]', '"80" names one port; name both, for example "80:80"'),
        (USER + 'egress = "list"\nallow = ["10.0.0.1/8"]',
             '"10.0.0.1/8" has bits set after its prefix; did you mean "10.0.0.0/8"?'),
        (USER + 'egress = "list"\nallow = ["127.0.0.1"]', '"127.0.0.1/32" touches 127.0.0.0/8 (the host\'s loopback)'),
        ("", 'a microvm needs a kernel; to boot an image with its own boot loader say machine.type = "q35"; '
             'expected kernel = "PATH" or firmware = "uefi", "uefi-secure" or "bios"'),
        (b"name = '\xff'", "is not UTF-8 (invalid start byte at byte 8)"),
        ("a = 1\nb = = 2", "Invalid value (column 5)"),
    ],
)  # fmt: skip
def test_message(text: str | bytes, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(text, "vm.toml", BASE, today=TODAY)
    assert [fault.message for fault in caught.value.faults] == [message]


def test_error_text_names_source_path_and_id() -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec("nmae = 1\n" + KERNEL, "vm.toml", BASE, today=TODAY)
    assert str(caught.value) == 'vm.toml: 1 fault\n  nmae: no such key; did you mean "name"? [key.unknown]'
    assert caught.value.exit_code is ExitCode.USAGE


def test_dots_in_strings_and_comments_are_no_depth() -> None:
    dots = ".".join("a" * 40)
    text = f'# {dots}\n[boot]\nkernel = "{dots}"\ninitrd = \'\'\'{dots}\'\'\'\ncmdline = """\\\n  {dots}"""\n'
    spec = parse_spec(text, "vm.toml", BASE, today=TODAY)
    assert spec.boot.cmdline == dots


def test_paths() -> None:
    def kernel(path: str, base: str = "/specs/here") -> str | None:
        return parse_spec(f"[boot]\nkernel = '{path}'", "vm.toml", Path(base), today=TODAY).boot.kernel

    assert kernel("/boot/vmlinuz") == "/boot/vmlinuz"
    assert kernel("vmlinuz") == "/specs/here/vmlinuz"
    assert kernel("./a//b/./vmlinuz") == "/specs/here/a/b/vmlinuz"
    assert kernel("../../vmlinuz") == "/vmlinuz"
    assert kernel("../../../../vmlinuz") == "/vmlinuz"
    assert kernel("//boot/vmlinuz") == "/boot/vmlinuz"
    assert kernel("a,b=c%d:e f") == "/specs/here/a,b=c%d:e f"
    assert kernel("json:x") == "/specs/here/json:x"
    with pytest.raises(RuntimeError, match="must be absolute"):
        kernel("vmlinuz", "relative")


def test_a_number_is_published_once_per_protocol() -> None:
    """passt of 2023 ends with "Overlapping port specifier", on whatever address the second one is."""
    text = USER + 'ipv6 = true\npublish = ["127.0.0.1:80:80", "127.0.0.2:80:80", "80:80/udp", "[::1]:80:81"]'
    twice = {("network.publish[1]", "publish.duplicate"), ("network.publish[3]", "publish.duplicate")}
    assert faults_of(text) == twice


def test_check_spec_judges_specs_made_in_code() -> None:
    assert check_spec(Spec(boot=Boot(kernel="/k")), today=TODAY) == ()
    assert [fault.fault_id for fault in check_spec(Spec(), today=TODAY)] == ["boot.missing"]


def test_unknown_fault_id_is_our_bug() -> None:
    with pytest.raises(RuntimeError, match="unknown fault id"):
        Faults().add("x", "no.such", "")


def test_an_image_of_the_store_is_looked_up_once() -> None:
    asked: list[str] = []

    def image_of(word: str) -> tuple[str, str, str]:
        asked.append(word)
        if word != "web":
            raise InputError(f"there is no image {word!r}")
        return "/store/web", "qcow2", "a" * 64

    text = Q35 + '[[disk]]\nimage = "web"\nmode = "read-only"'
    spec = parse_spec(text, "t", Path("/d"), today=TODAY, image_of=image_of)
    assert spec.disks[0] == Disk(
        path="/store/web", format=DiskFormat.QCOW2, mode=DiskMode.READ_ONLY, image="web", sha256="a" * 64
    )
    again = build_spec(msgspec.to_builtins(spec), "t", Path("/"), today=TODAY)
    assert again == spec, "what was looked up is a whole specification by itself"
    assert asked == ["web"]
    for more, where in (("sha256 = '" + "b" * 64 + "'", "disk[0].sha256"), ('format = "raw"', "disk[0].format")):
        with pytest.raises(SpecError) as error:
            parse_spec(f"{text}\n{more}", "t", Path("/d"), today=TODAY, image_of=image_of)
        assert [(fault.path, fault.fault_id) for fault in error.value.faults] == [(where, "disk.image")]
    with pytest.raises(SpecError, match="no image 'wbe'"):
        parse_spec(text.replace("web", "wbe"), "t", Path("/d"), today=TODAY, image_of=image_of)
    with pytest.raises(SpecError, match="never written"):
        parse_spec(text.replace("read-only", "persistent"), "t", Path("/d"), today=TODAY, image_of=image_of)
