"""What `casemate measure` computes is what a real TPM holds: OVMF, kernels and boot loaders under QEMU with swtpm.

The guest hands out its registers and its event log; nothing of the prediction comes from them, save that one boot's
log is the reference for PCR 0 of another.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from tests.support import measured_boot as oracle
from tests.support.cli_runner import Cli
from tests.support.measured_boot import CMDLINE, OVMF, MeasuredBoot
from tests.support.signed_boot import (
    GRUB_CONFIG,
    REMOVABLE,
    boot_chain,
    efi_disk,
    make_uki,
    owner_keys,
    sign_efi,
    uki_disk,
)
from tests.support.tpm_evidence import TestKey

from casemate.cli.main import main
from casemate.engine.paths import default_paths
from casemate.evidence.event_log import parse_event_log, replay
from casemate.image.builtin import BuiltinGuest, find_builtin
from casemate.measure.early import is_known
from casemate.measure.volumes import parse_volumes

pytestmark = pytest.mark.boot

REGISTERS = (2, 4, 5, 7, 8, 9, 11, 12)
NONCE = "c0ffee"


@pytest.fixture(scope="module")
def guest() -> BuiltinGuest:
    found = find_builtin([Path(default_paths().cache)])
    if found is None:
        pytest.skip("the built-in guest is not built: casemate run builtin")
    return found


@pytest.fixture(scope="module")
def initrd(guest: BuiltinGuest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("initrd") / "initrd"
    path.write_bytes(oracle.reporting_initrd(guest))
    return path


@pytest.fixture(scope="module")
def direct(guest: BuiltinGuest, initrd: Path, tmp_path_factory: pytest.TempPathFactory) -> MeasuredBoot:
    """A kernel given to QEMU, started by OVMF."""
    oracle.needs(OVMF / "OVMF_CODE_4M.fd")
    where = tmp_path_factory.mktemp("direct")
    kernel = ["-kernel", str(guest.kernel), "-initrd", str(initrd), "-append", CMDLINE]
    found = oracle.boot(where, kernel)
    (where / "log").write_bytes(found.log)
    return found


def kernel_spec(where: Path, guest: BuiltinGuest, initrd: Path, cmdline: str = CMDLINE) -> str:
    spec = where / "spec.toml"
    spec.write_text(
        '[machine]\ntype = "q35"\nmemory_mib = 512\n'
        f'[boot]\nkernel = "{guest.kernel}"\ninitrd = "{initrd}"\ncmdline = "{cmdline}"\n'
    )
    return str(spec)


def disk_spec(where: Path, disk: Path) -> str:
    spec = where / "spec.toml"
    spec.write_text(
        '[machine]\ntype = "q35"\nmemory_mib = 512\n[boot]\nfirmware = "uefi"\n'
        f'[[disk]]\npath = "{disk}"\nformat = "raw"\n'
    )
    return str(spec)


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert main(["measure", *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def check(found: dict[str, object], real: MeasuredBoot, registers: tuple[int, ...] = REGISTERS) -> None:
    """Every predicted value is the TPM's; the TPM's is the log's; no register that must be predicted is missing."""
    values = found["values"]
    assert isinstance(values, dict)
    banks = {name.partition(".")[0] for name in values}
    for bank in banks:
        replayed = replay(parse_event_log(real.log), bank) if real.log else {}
        for number in registers:
            assert values[f"{bank}.{number}"] == real.pcrs[bank][number].hex(), f"{bank} PCR {number}"
            assert replayed.get(number, real.pcrs[bank][number]) == real.pcrs[bank][number]
    assert {name.partition(".")[2] for name in values} >= {str(number) for number in registers}


def check_order(found: dict[str, object], real: MeasuredBoot, registers: tuple[int, ...]) -> None:
    """Events of several registers come in the order of the log: in a trust domain they share one."""
    events = found["events"]
    assert isinstance(events, list)
    predicted = [item["digests"]["sha256"] for item in events if item["register"] in registers]
    log = parse_event_log(real.log)
    assert predicted == [item.digests["sha256"].hex() for item in log.events if item.register in registers]


def check_trust_domain(
    capsys: pytest.CaptureFixture[str], spec: str, machine: list[str], found: dict[str, object]
) -> None:
    """The same disk in a trust domain: this GRUB is silent there, what shim measured into PCR 14 is all of RTMR 2."""
    firmware = Path("/usr/share/ovmf/OVMF.fd")
    oracle.needs(firmware)
    events = found["events"]
    assert isinstance(events, list)
    value = bytes(48)
    for item in events:
        if item["register"] == 14:
            value = hashlib.sha384(value + bytes.fromhex(item["digests"]["sha384"])).digest()
    domain = document(capsys, spec, "--kind", "tdx", *machine[4:], "--firmware", str(firmware))
    values = domain["values"]
    assert isinstance(values, dict)
    assert values["rtmr2"] == value.hex()
    assert "rtmr1" in values


def test_direct_kernel_boot(
    guest: BuiltinGuest, initrd: Path, direct: MeasuredBoot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = kernel_spec(tmp_path, guest, initrd)
    line = [spec, "--firmware", str(OVMF / "OVMF_CODE_4M.fd")]
    banks = ["--bank", "sha1", "--bank", "sha256", "--bank", "sha384"]
    found = document(capsys, *line, *banks)
    check(found, direct)
    unpredictable = found["unpredictable"]
    assert isinstance(unpredictable, dict)
    assert set(unpredictable) == {"sha1.0", "sha256.0", "sha384.0"}, "PCR 0 depends on the machine, and is not guessed"

    log = tmp_path / "log"
    log.write_bytes(direct.log)
    assert main(["measure", *line, "--compare", str(log)]) == 0
    assert "exactly" in capsys.readouterr().out
    real = direct.pcrs["sha256"]
    for name, cmdline, said in ((9, CMDLINE, "nothing"), (9, "quiet", f"cmdline {CMDLINE}")):
        other = [kernel_spec(tmp_path, guest, initrd, cmdline), *line[1:], "--other", f"cmdline={CMDLINE}"]
        assert main(["measure", *other, "--explain", f"sha256.{name}={real[name].hex()}"]) == 0
        assert capsys.readouterr().out.startswith(said)


def test_evidence_of_the_boot_passes_with_its_policy_and_with_no_other(
    guest: BuiltinGuest, initrd: Path, direct: MeasuredBoot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = TestKey()
    evidence, anchor, policy = tmp_path / "evidence", tmp_path / "ak.der", tmp_path / "policy.toml"
    log = tmp_path / "log"
    evidence.write_bytes(key.evidence(direct.pcrs["sha256"], direct.log, bytes.fromhex(NONCE)))
    anchor.write_bytes(key.certificate)
    log.write_bytes(direct.log)
    verify = ["attest", "verify", str(evidence), "--trust", str(anchor), "--nonce", NONCE, "--policy", str(policy)]
    changed = CMDLINE[:-1] + chr(ord(CMDLINE[-1]) ^ 1)
    for cmdline, accepted in ((CMDLINE, True), (changed, False)):
        spec = kernel_spec(tmp_path, guest, initrd, cmdline)
        line = ["measure", spec, "--firmware", str(OVMF / "OVMF_CODE_4M.fd"), "--reference-log", str(log)]
        assert main([*line, "--policy", str(policy)]) == 0
        capsys.readouterr()
        assert main([*verify, "--json"]) == (0 if accepted else 1)
        found = json.loads(capsys.readouterr().out)
        assert found["true"] is True
        assert {item["code"] for item in found["reasons"]} == (set() if accepted else {"sha256.pcr9"})


def test_what_casemate_runs_is_what_casemate_measured(
    guest: BuiltinGuest, initrd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An owner's signed UKI under the owner's keys, with the VM's own TPM: one specification, measured and then run."""
    keys = owner_keys(tmp_path / "keys")
    uki = make_uki(tmp_path / "uki.efi", guest.kernel, initrd, CMDLINE)
    disk = uki_disk(tmp_path / "disk", sign_efi(uki, keys.db, tmp_path / "signed.efi"))
    spec = tmp_path / "spec.toml"
    spec.write_text(
        'name = "measured"\n[machine]\ntype = "q35"\naccel = "tcg"\nmemory_mib = 512\n[tpm]\nenabled = true\n'
        f'[boot]\nfirmware = "uefi-secure"\n[boot.keys]\npk = "{keys.pk.certificate}"\n'
        f'kek = ["{keys.kek.certificate}"]\ndb = ["{keys.db.certificate}"]\n'
        f'[[disk]]\npath = "{disk}"\nformat = "raw"\n'
    )
    found = document(capsys, str(spec))
    packed, text = tmp_path / "disk.qcow2", spec.read_text()
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", "-c", disk, packed], check=True)
    spec.write_text(text.replace(str(disk), str(packed)).replace('"raw"', '"qcow2"'))
    assert document(capsys, str(spec))["values"] == found["values"], "the format of a disk is not what the guest sees"
    spec.write_text(text)
    (tmp_path / "vms").mkdir()
    cli = Cli(tmp_path / "vms")
    try:
        cli.ok("run", "-d", spec)
        cli.ok("wait", "measured", timeout_s=oracle.DEADLINE_S)
        real = oracle.read_console(cli.ok("logs", "measured"))
    finally:
        cli.clean()
    check(found, real)
    log = tmp_path / "log"
    log.write_bytes(real.log)
    check(document(capsys, str(spec), "--reference-log", str(log)), real, (0, *REGISTERS))
    if is_known(parse_volumes((OVMF / "OVMF_CODE_4M.secboot.fd").read_bytes()).early):
        check(document(capsys, str(spec), "--address-bits", "40"), real, (0, *REGISTERS))
        for other in ("36", "41"):
            values = document(capsys, str(spec), "--address-bits", other)["values"]
            assert isinstance(values, dict)
            assert values["sha256.0"] != real.pcrs["sha256"][0].hex()
    # Keys of another store, and Secure Boot off, are what this boot would then have reported otherwise.
    line = ["measure", str(spec), "--variables", str(OVMF / "OVMF_VARS_4M.fd")]
    off = document(capsys, *line[1:])["values"]
    assert isinstance(off, dict)
    assert off["sha256.7"] != real.pcrs["sha256"][7].hex()
    assert (
        main(["measure", str(spec), "--explain", f"sha256.7={off['sha256.7']}", "--other", f"variables={line[3]}"]) == 0
    )
    assert capsys.readouterr().out == f"variables {line[3]}\n"


def test_the_distributions_chain_under_secure_boot(
    guest: BuiltinGuest, initrd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """shim signed by Microsoft, GRUB and kernel by Debian, each measured by the one before; laid out as `casemate image
    build --debian` does it, with kernel and initrd on the root file system."""
    code, variables = OVMF / "OVMF_CODE_4M.secboot.fd", OVMF / "OVMF_VARS_4M.ms.fd"
    oracle.needs(code, variables)
    (tmp_path / "tree/boot").mkdir(parents=True)
    for source, name in ((guest.kernel, "vmlinuz"), (initrd, "initrd.img")):
        (tmp_path / "tree/boot" / name).write_bytes(source.read_bytes())
    root, chain = tmp_path / "root.img", boot_chain()
    make = ["mke2fs", "-q", "-t", "ext4", "-L", "casemate-root", "-d", str(tmp_path / "tree"), str(root), "40M"]
    subprocess.run(make, check=True, capture_output=True)

    def disk_of(name: str, cmdline: str) -> Path:
        config = "search --no-floppy --label --set=root casemate-root\n"
        config += f"linux ($root)/boot/vmlinuz {cmdline}\ninitrd ($root)/boot/initrd.img\nboot\n"
        files: dict[str, Path | bytes] = {REMOVABLE: chain.shim, "EFI/BOOT/grubx64.efi": chain.grub}
        files[GRUB_CONFIG] = config.encode()
        return efi_disk(tmp_path / name, files, root=root)

    disk = disk_of("disk", CMDLINE)
    real = oracle.boot(
        tmp_path, oracle.disk_arguments(disk, secure=True), code=code, variables=variables, machine="q35,smm=on"
    )
    log = tmp_path / "log"
    log.write_bytes(real.log)
    machine = ["--firmware", str(code), "--variables", str(variables)]
    spec = disk_spec(tmp_path, disk)
    without = document(capsys, spec, *machine)["unpredictable"]
    assert isinstance(without, dict)
    assert "(hd0,gpt2)/boot/vmlinuz" in without["sha256.9"], "a file that is not at hand is named, and not guessed"
    machine += ["--grub-file", f"(hd0,gpt2)/boot/vmlinuz={guest.kernel}"]
    machine += ["--grub-file", f"(hd0,gpt2)/boot/initrd.img={initrd}"]
    banks = ["--bank", "sha256", "--bank", "sha1"]
    found = document(capsys, spec, *machine, *banks, "--reference-log", str(log))
    check(found, real, (0, *REGISTERS))
    check_order(found, real, (8, 9, 14))
    assert main(["measure", spec, *machine, "--compare", str(log)]) == 0
    capsys.readouterr()
    check_trust_domain(capsys, spec, machine, document(capsys, spec, *machine, "--bank", "sha384"))
    reported = f"sha256.8={real.pcrs['sha256'][8].hex()}"
    spec = disk_spec(tmp_path, disk_of("other", CMDLINE.replace("quiet", "debug")))
    assert main(["measure", spec, *machine, "--other", f"disk={disk}", "--explain", reported]) == 0
    assert capsys.readouterr().out == f"disk {disk}\n"
