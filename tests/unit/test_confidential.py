"""Confidential guests: what a host has for them, what it lacks, and that nothing starts without it."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import msgspec
import pytest
from tests.support.cli_runner import Cli
from tests.support.hosts import CONFIDENTIAL_EMULATORS, CONFIDENTIAL_HOSTS, EMULATOR, KVM_HOST, plan_of
from tests.unit.test_plan import load

from casemate.engine.paths import Paths
from casemate.engine.start import check_host
from casemate.engine.unit import systemd_unit
from casemate.engine.vmfiles import Definition
from casemate.errors import HostError
from casemate.facts.confidential import (
    FEATURES,
    ConfidentialHost,
    collect_confidential,
    measured_firmware,
    measured_firmwares,
)
from casemate.facts.kvm_collect import decode_cpuid
from casemate.facts.kvm_report import Extension, KvmReport
from casemate.facts.root import Root
from casemate.plan.model import Emulator, Host
from casemate.spec.confidential import Kind
from casemate.spec.model import Spec
from casemate.sys.kvm import CpuidEntry

SPECS = {Kind.SEV_SNP: "q35-sev-snp", Kind.TDX: "q35-tdx", Kind.SE: "s390-se"}


def missing(kind: Kind, host: Host | None = None, emulator: Emulator | None = None, spec: Spec | None = None) -> str:
    made = plan_of(
        spec or load(SPECS[kind]), host or CONFIDENTIAL_HOSTS[kind], emulator=emulator or CONFIDENTIAL_EMULATORS[kind]
    )
    return "\n".join(made.missing)


def host_with(kind: Kind, **changes: object) -> Host:
    good = CONFIDENTIAL_HOSTS[kind]
    assert good.confidential is not None
    return msgspec.structs.replace(good, confidential=msgspec.structs.replace(good.confidential, **changes))


@pytest.mark.parametrize("kind", [Kind.SEV_SNP, Kind.TDX])
def test_a_host_that_has_everything_lacks_nothing(kind: Kind) -> None:
    assert missing(kind) == ""


def test_s390x_is_planned_and_never_started() -> None:
    assert missing(Kind.SE) == "Casemate's system call rules are for x86-64: it plans guests of s390x and starts none"


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (Kind.SEV_SNP, {"flag": False}, ("this processor has no SEV-SNP", "EPYC 7003")),
        (Kind.SEV_SNP, {"parameter": "N"}, ("/sys/module/kvm_amd/parameters/sev_snp is N", "kvm_amd.sev_snp=1")),
        (Kind.SEV_SNP, {"parameter": ""}, ("/sys/module/kvm_amd/parameters/sev_snp is not there",)),
        (Kind.SEV_SNP, {"device": "/dev/sev: permission denied"}, ("/dev/sev: permission denied", "ccp")),
        (Kind.SEV_SNP, {"vm_types": 0x2F}, ("KVM makes no VM of type SEV-SNP", "0x2f", "bit 4")),
        (Kind.SEV_SNP, {"vm_types": None}, ("KVM_CAP_VM_TYPES did not say",)),
        (Kind.SEV_SNP, {"firmware": ""}, ("no firmware descriptor", "apt install ovmf-amdsev")),
        (Kind.TDX, {"parameter": "N"}, ("/sys/module/kvm_intel/parameters/tdx is N", "kvm_intel.tdx=1")),
        (Kind.TDX, {"vm_types": 0x1F}, ("KVM makes no VM of type TDX", "0x1f", "bit 5", "Xeon")),
        (Kind.TDX, {"firmware": ""}, ("no firmware descriptor", "apt install ovmf-inteltdx")),
        (Kind.TDX, {"boot": "/fw.fd starts no such guest"}, ("/fw.fd starts no such guest",)),
        (Kind.TDX, {"quotes": "/q is no socket"}, ("/q is no socket", "qgsd")),
        (Kind.SE, {"parameter": "0"}, ("/sys/firmware/uv/prot_virt_host is 0", "prot_virt=1")),
    ],
)
def test_each_thing_that_is_missing_is_named_alone(
    kind: Kind, changes: dict[str, object], words: tuple[str, ...]
) -> None:
    before = missing(kind)
    lines = missing(kind, host_with(kind, **changes)).splitlines()
    (line,) = [line for line in lines if line not in before]
    for word in words:
        assert word in line


def test_machine_accelerator_and_emulator() -> None:
    host = CONFIDENTIAL_HOSTS[Kind.TDX]
    assert "this host is aarch64" in missing(Kind.TDX, msgspec.structs.replace(host, machine="aarch64"))
    assert "this host is x86_64" in missing(Kind.SE, msgspec.structs.replace(host, confidential=None))
    slow = msgspec.structs.replace(host, kvm_verdict="emulated", kvm_why="one at a time; 21 minutes")
    assert missing(Kind.TDX, slow) == "KVM is emulated: one at a time"
    for kind, version, words in (
        (Kind.SEV_SNP, (9, 0, 2), "QEMU 9.0.2 has no sev-snp-guest: 9.1 or newer"),
        (Kind.TDX, (10, 0, 2), "QEMU 10.0.2 has no tdx-guest: 10.1 or newer"),
    ):
        assert missing(kind, emulator=msgspec.structs.replace(EMULATOR, version=version)) == words
    assert missing(Kind.SEV_SNP, emulator=msgspec.structs.replace(EMULATOR, version=(9, 1, 0))) == ""
    assert missing(Kind.TDX, emulator=msgspec.structs.replace(EMULATOR, version=(10, 1, 0))) == ""


def test_a_firmware_of_the_specification_needs_no_descriptor() -> None:
    spec = load(SPECS[Kind.SEV_SNP])
    assert spec.confidential is not None
    own = msgspec.structs.replace(
        spec, confidential=msgspec.structs.replace(spec.confidential, firmware="/srv/OVMF.amdsev.fd")
    )
    made = plan_of(own, host_with(Kind.SEV_SNP, firmware=""), emulator=CONFIDENTIAL_EMULATORS[Kind.SEV_SNP])
    assert made.missing == ()
    assert [file.path for file in made.files if file.role == "firmware"] == ["/srv/OVMF.amdsev.fd"]


def test_nothing_of_it_in_other_plans() -> None:
    made = plan_of(load("q35-uefi-net"), KVM_HOST, {"firmware-vars": 540672})
    assert made.missing == ()
    assert not any("confidential" in word for word in made.wall.argv)
    assert not any(name.startswith("cc.") for name in made.declared)


def test_the_refusal_has_every_reason() -> None:
    made = plan_of(load(SPECS[Kind.SEV_SNP]), host_with(Kind.SEV_SNP, flag=False, parameter="N"), emulator=EMULATOR)
    with pytest.raises(HostError) as caught:
        check_host(made)
    assert all(reason in str(caught.value) for reason in made.missing)
    assert len(made.missing) == 3
    check_host(plan_of(load(SPECS[Kind.TDX]), CONFIDENTIAL_HOSTS["tdx"], emulator=CONFIDENTIAL_EMULATORS["tdx"]))


# ---- the host, as files ---------------------------------------------------------------------------------------------


def report(types: int | None = None, *, c_bit: int | None = None) -> KvmReport:
    leaf = () if c_bit is None else (CpuidEntry(0x8000_001F, 0, 0, 0xB, c_bit | 1 << 6, 0, 0),)
    extensions = () if types is None else (Extension(235, "VM_TYPES", types),)
    return KvmReport(
        device="/dev/kvm",
        machine="x86_64",
        kernel_release="6.16",
        extensions=extensions,
        cpuid=decode_cpuid(leaf, ()),
    )


def write(tree: Path, path: str, text: str) -> None:
    place = tree / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


def descriptor(feature: str, mapping: dict[str, object], **changes: object) -> str:
    document = {
        "interface-types": ["uefi"],
        "mapping": mapping,
        "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
        "features": [feature],
        **changes,
    }
    return json.dumps(document)


def test_a_host_is_read(tmp_path: Path) -> None:
    write(tmp_path, "/proc/cpuinfo", "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu sev sev_snp\n")
    write(tmp_path, "/sys/module/kvm_amd/parameters/sev_snp", "Y\n")
    write(tmp_path, "/fw/OVMF.amdsev.fd", "")
    write(
        tmp_path,
        "/usr/share/qemu/firmware/60-amdsev.json",
        descriptor("amd-sev-snp", {"device": "memory", "filename": "/fw/OVMF.amdsev.fd"}),
    )
    found = collect_confidential(Root(tmp_path), "sev-snp", report(0x1F, c_bit=51))
    assert found == ConfidentialHost(
        flag=True,
        parameter="Y",
        device="/dev/sev: No such file or directory",
        vm_types=0x1F,
        c_bit=51,
        firmware="/fw/OVMF.amdsev.fd",
    )
    assert collect_confidential(Root(tmp_path), "tdx", report()) == ConfidentialHost()


def test_a_processor_without_the_flag_and_a_tree_without_anything(tmp_path: Path) -> None:
    assert collect_confidential(Root(tmp_path), "se", report()) == ConfidentialHost()
    write(tmp_path, "/proc/cpuinfo", "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu sev\n")
    assert collect_confidential(Root(tmp_path), "sev-snp", report()).flag is False


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (descriptor("amd-sev-snp", {"device": "memory", "filename": "/fw/a.fd"}), True),
        (
            descriptor(
                "amd-sev-snp",
                {"device": "flash", "mode": "stateless", "executable": {"filename": "/fw/a.fd", "format": "raw"}},
            ),
            True,
        ),
        (descriptor("intel-tdx", {"device": "memory", "filename": "/fw/a.fd"}), False),
        (descriptor("amd-sev-snp", {"device": "memory", "filename": "/fw/gone.fd"}), False),
        (descriptor("amd-sev-snp", {"device": "memory", "filename": "fw/a.fd"}), False),
        (descriptor("amd-sev-snp", {"device": "memory", "filename": ["/fw/a.fd"]}), False),
        (
            descriptor("amd-sev-snp", {"device": "flash", "executable": {"filename": "/fw/a.fd", "format": "raw"}}),
            False,
        ),
        (
            descriptor(
                "amd-sev-snp",
                {"device": "flash", "mode": "stateless", "executable": {"filename": "/fw/a.fd", "format": "qcow2"}},
            ),
            False,
        ),
        (descriptor("amd-sev-snp", {"device": "memory", "filename": "/fw/a.fd"}, targets=[]), False),
        (descriptor("amd-sev-snp", {"device": "memory", "filename": "/fw/a.fd"}, features="amd-sev-snp"), False),
        (
            descriptor("amd-sev-snp", {"device": "memory", "filename": "/fw/a.fd"}, **{"interface-types": ["bios"]}),
            False,
        ),
        ("{", False),
        ("[]", False),
        ("", False),
    ],
)
def test_which_firmware_is_measured(tmp_path: Path, text: str, found: bool) -> None:
    write(tmp_path, "/fw/a.fd", "")
    write(tmp_path, "/usr/share/qemu/firmware/50-a.json", text)
    assert measured_firmwares(Root(tmp_path), FEATURES["sev-snp"]) == ({"/fw/a.fd": False} if found else {})


def test_the_first_descriptor_counts_and_an_administrators_replaces_it(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path, f"/fw/{name}.fd", "")
    firmware = "/usr/share/qemu/firmware"
    write(tmp_path, f"{firmware}/50-a.json", descriptor("intel-tdx", {"device": "memory", "filename": "/fw/a.fd"}))
    write(tmp_path, f"{firmware}/60-b.json", descriptor("intel-tdx", {"device": "memory", "filename": "/fw/b.fd"}))
    assert list(measured_firmwares(Root(tmp_path), "intel-tdx")) == ["/fw/a.fd", "/fw/b.fd"]
    write(
        tmp_path, "/etc/qemu/firmware/50-a.json", descriptor("intel-tdx", {"device": "memory", "filename": "/fw/c.fd"})
    )
    assert list(measured_firmwares(Root(tmp_path), "intel-tdx")) == ["/fw/c.fd", "/fw/b.fd"]


def test_a_kernel_gets_a_firmware_without_keys_where_there_is_one(tmp_path: Path) -> None:
    mapping: dict[str, object] = {"device": "memory", "filename": "/fw/keys.fd"}
    write(tmp_path, "/fw/keys.fd", "")
    features = ["enrolled-keys", "intel-tdx", "secure-boot"]
    write(tmp_path, "/usr/share/qemu/firmware/50.json", descriptor("intel-tdx", mapping, features=features))
    assert measured_firmware(Root(tmp_path), "tdx", is_direct=True) == "/fw/keys.fd"
    write(tmp_path, "/fw/plain.fd", "")
    mapping = {"device": "memory", "filename": "/fw/plain.fd"}
    write(tmp_path, "/usr/share/qemu/firmware/60.json", descriptor("intel-tdx", mapping))
    assert measured_firmware(Root(tmp_path), "tdx", is_direct=True) == "/fw/plain.fd"
    assert measured_firmware(Root(tmp_path), "tdx", is_direct=False) == "/fw/keys.fd"
    assert measured_firmware(Root(tmp_path), "sev-snp", is_direct=True) == ""
    assert measured_firmware(Root(tmp_path), "se", is_direct=True) == ""


def test_the_socket_of_the_quote_generation_service(tmp_path: Path) -> None:
    def quotes(path: str) -> str:
        return collect_confidential(Root(tmp_path), "tdx", report(), path).quotes

    assert quotes("/qgs") == "/qgs: No such file or directory"
    write(tmp_path, "/file", "")
    assert quotes("/file") == "/file is no socket"
    with socket.socket(socket.AF_UNIX) as service:
        service.bind(str(tmp_path / "qgs"))
        (tmp_path / "qgs").chmod(0o660)
        assert "mode 0660" in quotes("/qgs")
        (tmp_path / "qgs").chmod(0o666)
        assert quotes("/qgs") == ""


def test_the_encryption_bit() -> None:
    cpuid = report(c_bit=47).cpuid
    assert cpuid is not None
    assert cpuid.c_bit == 47
    without_sev = decode_cpuid((CpuidEntry(0x8000_001F, 0, 0, 1, 47, 0, 0),), ())
    assert (without_sev.c_bit, decode_cpuid((), ()).c_bit) == (None, None)


# ---- the command line, on this host ---------------------------------------------------------------------------------

NO_HARDWARE = {"sev-snp": "/sys/module/kvm_amd/parameters/sev_snp", "tdx": "/sys/module/kvm_intel/parameters/tdx"}


@pytest.mark.parametrize("kind", ["sev-snp", "tdx", "se"])
def test_run_refuses_and_plan_shows_on_a_host_without_it(tmp_path: Path, kind: str) -> None:
    here = NO_HARDWARE.get(kind)
    if here is not None and Path(here).exists() and Path(here).read_text().strip() == "Y":
        pytest.skip(f"this host has {kind}: {here} says so")
    machine = "s390-ccw-virtio" if kind == "se" else "q35"
    (tmp_path / "kernel").write_bytes(b"k" * 4096)
    spec = tmp_path / "vm.toml"
    spec.write_text(f'[machine]\ntype = "{machine}"\n[boot]\nkernel = "kernel"\n[confidential]\nkind = "{kind}"\n')
    (tmp_path / "cli").mkdir()
    cli = Cli(tmp_path / "cli")
    refusal = cli.fails(3, "run", spec)
    assert f"this host cannot start a guest of kind {kind}" in refusal
    planned = cli("plan", "--json", spec)
    assert planned.returncode == 3
    document = json.loads(planned.stdout)
    for reason in document["missing"]:
        assert reason in refusal
    assert any(f'"qom-type":"{"s390-pv" if kind == "se" else kind}-guest"' in word for word in document["argv"])
    assert "Missing on this host" in cli("plan", spec).stdout


@pytest.mark.parametrize(("kind", "expected"), [("sev-snp", True), ("tdx", False)])
def test_a_unit_may_use_the_security_processor_when_the_guest_needs_it(kind: str, expected: bool) -> None:
    definition = Definition("0123456789abcdef", "vm", load(SPECS[Kind(kind)]), "2026-01-01T00:00:00Z")
    text = systemd_unit(definition, Paths("/run/casemate", "/var/lib/casemate", "/var/cache/casemate"), rootless=False)
    assert ("DeviceAllow=/dev/sev rwm" in text) is expected


def test_doctor_says_whether_this_host_can(tmp_path: Path) -> None:
    (tmp_path / "cli").mkdir()
    document = json.loads(Cli(tmp_path / "cli")("doctor", "--json").stdout)
    (check,) = [c for group in document["groups"] for c in group["checks"] if c["id"] == "confidential"]
    if check["status"] == "ok":
        assert check["found"].startswith(("SEV-SNP", "TDX"))
    else:
        assert check["status"] == "missing"
        assert check["found"].startswith(("no SEV-SNP: ", "no TDX: "))
        assert not check["required"]
