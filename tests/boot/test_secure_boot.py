"""Secure Boot end to end: what is signed starts, what was changed by one bit does not, with the same specification.

Debian's own chain (shim with Microsoft's signature, grub and kernel with Debian's) under the distribution's keys, and a
unified kernel image under keys of an owner's own. Then the attack: a program that the firmware trusts writes to the
flash that holds those keys, as a hostile kernel would.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.cli_runner import Cli
from tests.support.debian_image import CMDLINE, debian_images
from tests.support.guest_shell import COMMAND_S, LOGIN_S, GuestShell
from tests.support.signed_boot import (
    KERNEL,
    REMOVABLE,
    ROOT_PARTUUID,
    OwnerKeys,
    grub_disk,
    make_uki,
    owner_keys,
    read_efi_file,
    sign_efi,
    tampered,
    uki_disk,
    write_efi_file,
)
from tests.support.tiny_guests import FLASH_CLOSED, FLASH_MARK, FLASH_WRITTEN, flash_writer

from casemate.engine.paths import default_paths
from casemate.engine.uefi_enrol import find_program
from casemate.image.builtin import READY_MARKER, build_builtin

pytestmark = pytest.mark.boot

STOP_S = 90
OVMF = Path("/usr/share/OVMF")
SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
DB = "/sys/firmware/efi/efivars/db-d719b2cb-3d3a-4596-a3bc-dad00e67656f"


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    found = Cli(tmp_path)
    yield found
    found.clean()


def specification(directory: Path, disk: Path, keys: OwnerKeys | None = None, more: str = "") -> Path:
    file = directory / "guarded.toml"
    own = ""
    if keys is not None:
        own = f'[boot.keys]\npk = "{keys.pk.certificate}"\nkek = ["{keys.kek.certificate}"]\n'
        own += f'db = ["{keys.db.certificate}"]\n'
    file.write_text(
        'name = "guarded"\n[machine]\ntype = "q35"\nmemory_mib = 512\n[boot]\nfirmware = "uefi-secure"\n'
        f'{own}{more}[[disk]]\npath = "{disk}"\nformat = "raw"\nmode = "persistent"\n'
    )
    return file


def wall(cli: Cli) -> dict[str, str]:
    """Control -> verdict, of the last launch."""
    return {entry["control"]: entry["verdict"] for entry in cli.json("inspect", "guarded", "--json")["wall"]}


def recorded_files(cli: Cli, launch: int) -> dict[str, str]:
    """Role -> SHA-256 in the launch record of that number, which is signed after the guest was released."""
    end = time.monotonic() + 30
    while not (found := list((cli.data / "records").glob(f"{launch:08d}-*.json"))):
        assert time.monotonic() < end, "no launch record"
        time.sleep(0.1)
    return {file["role"]: file["sha256"] for file in json.loads(found[0].read_bytes())["record"]["files"]}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_debians_own_chain_starts_and_a_changed_kernel_does_not(cli: Cli, tmp_path: Path) -> None:
    images = debian_images()
    cmdline = f"root=PARTUUID={ROOT_PARTUUID} {CMDLINE}"
    disk = grub_disk(tmp_path / "disk.img", images.kernel, images.initrd, cmdline, root=images.root)
    cli.ok("run", "-d", specification(tmp_path, disk))
    verdicts = wall(cli)
    assert {verdicts[name] for name in ("dev.boot-variables", "dev.secure-boot", "dev.boot-keys")} == {"pass"}
    assert verdicts["dev.smm"] == "fail"
    with GuestShell(cli, "guarded") as shell:
        shell.login()
        assert shell.last(f"od -An -tu1 {SECURE_BOOT}").split() == ["6", "0", "0", "0", "1"]
        assert "secureboot: Secure boot enabled" in shell.run("dmesg | grep -i secureboot:")
        assert "[integrity]" in shell.last("cat /sys/kernel/security/lockdown")
        # Its root can neither load a module without its signature nor trust another key.
        shell.run("head -c -100 $(modinfo -n dummy) >/root/dummy.ko; insmod /root/dummy.ko 2>&1; test $? -ne 0")
        shell.run(f"chattr -i {DB}; cat {DB} {DB} >/root/db; cat /root/db >{DB}; test $? -ne 0")
    cli.ok("stop", "--time", str(STOP_S), "guarded", timeout_s=STOP_S + 30)
    variables = next((cli.data / "vms").glob("*/vars.fd"))
    before = digest(variables)
    assert before != recorded_files(cli, 1)["firmware-vars"] == digest(OVMF / "OVMF_VARS_4M.ms.fd")
    assert recorded_files(cli, 1)["firmware-code"] == digest(OVMF / "OVMF_CODE_4M.ms.fd")

    kernel = read_efi_file(disk, KERNEL)
    write_efi_file(disk, KERNEL, tampered(kernel))
    cli.ok("start", "guarded")
    assert recorded_files(cli, 2)["firmware-vars"] == before
    with GuestShell(cli, "guarded") as shell:
        shell.expect(rb"error: bad shim signature", LOGIN_S)
    assert "Linux version" not in cli.ok("logs", "guarded").rpartition("GRUB")[2]
    cli.ok("kill", "guarded")
    cli.ok("rm", "guarded")
    assert not variables.exists()


def test_an_owners_image_starts_and_a_changed_one_is_refused_by_the_firmware(cli: Cli, tmp_path: Path) -> None:
    keys = owner_keys(tmp_path / "keys")
    guest = build_builtin(Path(default_paths().cache), lambda _: None)
    uki = make_uki(tmp_path / "uki.efi", guest.kernel, guest.initrd, "console=ttyS0 panic=-1 reboot=t")
    signed = sign_efi(uki, keys.db, tmp_path / "signed.efi")
    disk = uki_disk(tmp_path / "disk.img", signed)
    spec = specification(tmp_path, disk, keys, "[tpm]\nenabled = true\n")
    cli.ok("run", "-d", spec)
    computed = cli.json("measure", spec, "--json")["values"]
    with GuestShell(cli, "guarded") as shell:
        shell.expect(READY_MARKER.encode(), LOGIN_S)
        for register in (4, 7):
            shell.type(f"\ncat /sys/class/tpm/tpm0/pcr-sha256/{register}\n")
            measured = shell.expect(rb"\n([0-9A-F]{64})\r?\n", COMMAND_S)[1].decode().lower()
            assert measured == computed[f"sha256.{register}"], register
    assert "UEFI Secure Boot is enabled" in cli.ok("logs", "guarded")
    cli.ok("kill", "guarded")

    write_efi_file(disk, REMOVABLE, tampered(signed.read_bytes()))
    cli.ok("start", "guarded")
    with GuestShell(cli, "guarded") as shell:
        shell.expect(rb"failed to load Boot[0-9A-F]{4} [^\n]*: Access Denied", LOGIN_S)
        shell.expect(rb"No bootable option or device was found", LOGIN_S)
    cli.ok("kill", "guarded")

    variables = next((cli.data / "vms").glob("*/vars.fd"))
    program = find_program()
    assert program is not None
    subprocess.run([program, "--inplace", variables, "--set-false", "SecureBootEnable"], check=True, timeout=60)
    message = cli.fails(4, "start", "guarded")
    assert "refused by control dev.secure-boot" in message
    assert "SecureBootEnable is 0" in message
    cli.ok("rm", "guarded")


@pytest.mark.parametrize("secure", [False, True])
def test_a_kernel_writes_to_the_keys_only_where_nobody_guards_them(cli: Cli, tmp_path: Path, secure: bool) -> None:
    """The same program, which firmware trusts: without Secure Boot it writes, so the attack is one."""
    program, keys = flash_writer(tmp_path / "attack.efi"), owner_keys(tmp_path / "keys")
    disk = uki_disk(tmp_path / "disk.img", sign_efi(program, keys.db, tmp_path / "signed.efi"))
    spec = specification(tmp_path, disk, keys if secure else None)
    if not secure:
        spec.write_text(spec.read_text().replace('"uefi-secure"', '"uefi"'))
    cli.ok("run", "-d", spec)
    cli.ok("wait", "guarded")
    said = cli.ok("logs", "guarded")
    assert (FLASH_CLOSED in said, FLASH_WRITTEN in said) == (secure, not secure)
    last = next((cli.data / "vms").glob("*/vars.fd")).read_bytes()[-1]
    assert (last == FLASH_MARK) is not secure
    cli.ok("rm", "guarded")
