"""A real Debian whose root is encrypted, and whose key leaves only when it proves what booted.

shim (signed by Microsoft), grub and kernel (signed by Debian) start under Secure Boot on a VM with a TPM, in Casemate's
wall. The initrd compares the LUKS2 header with the digest on its measured command line, quotes the TPM over the
broker's nonce, and asks for the key over a virtio-serial port; `casemate serve-keys` verifies quote and log against
what `casemate measure` computed of the same specification before. Two boots: as measured, and with another command
line.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.attested_guest import HEADER_BYTES, RESOURCE, attested_boot, encrypted_root
from tests.support.cli_runner import Cli
from tests.support.measured_boot import needs
from tests.support.signed_boot import GRUB_CONFIG, grub_disk, read_efi_file, write_efi_file

pytestmark = pytest.mark.boot

BOOT_S = 240
KEY = bytes(range(32))


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    found = Cli(tmp_path)
    yield found
    found.clean()


@contextlib.contextmanager
def serving(cli: Cli, *arguments: str | Path) -> Iterator[None]:
    """`casemate serve-keys`, until the block ends."""
    broker = cli.open("serve-keys", *arguments)
    try:
        yield
        assert broker.poll() is None, "the broker ended by itself"
    finally:
        broker.send_signal(signal.SIGTERM)
        out, err = broker.communicate(timeout=30)
        assert broker.returncode == 0, (out, err)


def console(cli: Cli, *words: str, after: int = 0) -> str:
    """What the guest printed, from character ``after`` on, once one of ``words`` is in it."""
    end = time.monotonic() + BOOT_S
    text = ""
    while time.monotonic() < end:
        # What `casemate logs` prints, without a process for each look; the file comes with the first output.
        text = "".join(log.read_text(errors="replace") for log in cli.data.glob("vms/*/console.log"))[after:]
        if any(word in text for word in words):
            return text
        time.sleep(0.5)
    pytest.fail(f"none of {words} came:\n{text[-3000:]}")


def decisions(cli: Cli) -> list[dict[str, object]]:
    """The log, verified by the program."""
    return [json.loads(line) for line in cli.ok("serve-keys", "--check-log", "--json").splitlines()]


def test_the_key_of_the_disk_is_for_what_was_measured_and_nothing_else(cli: Cli, tmp_path: Path) -> None:
    needs("/usr/share/OVMF/OVMF_CODE_4M.ms.fd")
    boot = attested_boot(tmp_path)
    root = encrypted_root(tmp_path / "root.luks", KEY)
    header = hashlib.sha256(root.open("rb").read(HEADER_BYTES)).hexdigest()
    assert f"digest {header}" in cli.ok("image", "check-luks", root, "--expect-digest", header)

    disk = tmp_path / "boot.img"
    grub_disk(disk, boot.kernel, boot.initrd, f"console=ttyS0 cryptomgr.notests casemate.luks={header}")
    write_specification(cli, tmp_path, disk, root)
    cli.ok("create", tmp_path / "web.toml")
    cli.ok("start", "web")

    # As it was measured.
    with serving(cli, tmp_path / "release.toml", "--vm", "web"):
        text = console(cli, "systemd[1]: ", "casemate-initrd: no key", "casemate-initrd: the LUKS header is another")
    assert "casemate-initrd: the LUKS header is the one that was measured" in text, text[-3000:]
    assert "casemate-initrd: a key of 32 bytes was released" in text, text[-3000:]
    assert "casemate-initrd: the root is open" in text
    assert "systemd[1]: " in text, "the init of the encrypted root runs"
    begun, attested, released = decisions(cli)
    assert [begun["event"], attested["event"], released["event"]] == ["started", "attested", "released"]
    assert attested["claims"]["secure-boot"] is True  # type: ignore[index]
    assert (released["peer"], released["resource"]) == ("vm web", RESOURCE)
    cli.ok("kill", "web")
    before = len(console(cli, ""))

    # One word more on the command line: the firmware starts it (everything is signed), the broker does not.
    config = read_efi_file(disk, GRUB_CONFIG)
    write_efi_file(disk, GRUB_CONFIG, config.replace(b"cryptomgr.notests", b"cryptomgr.notests rd.break"))
    cli.ok("start", "web")
    with serving(cli, tmp_path / "release-before.toml", "--vm", "web"):
        text = console(cli, "casemate-initrd: no key", "the root is open", after=before)
    assert "casemate-initrd: no key: keyclient: refused: HTTP/1.1 401" in text, text[-3000:]
    assert "the root is open" not in text
    refused = decisions(cli)[-1]
    assert refused["event"] == "refused"
    codes = {reason["code"] for reason in refused["reasons"]}  # type: ignore[attr-defined]
    assert codes == {"sha256.pcr8", "sha256.pcr9"}, "grub's commands, and the configuration that it read"
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if is_plain(path))
    assert KEY not in everything, "neither log nor record nor console has the key"


def is_plain(path: Path) -> bool:
    """Files that could hold a secret by mistake: not the secret's own, not images."""
    return path.is_file() and not path.is_symlink() and path.name != "disk.key" and path.stat().st_size < 8 << 20


def write_specification(cli: Cli, where: Path, disk: Path, root: Path) -> None:
    """The VM, and who gets its key: what this very specification measures, on the TPM of this very VM."""
    (where / "web.toml").write_text(
        'name = "web"\n[machine]\ntype = "q35"\nmemory_mib = 768\n[boot]\nfirmware = "uefi-secure"\n'
        f'[[disk]]\npath = "{disk}"\nformat = "raw"\nmode = "read-only"\n'
        f'[[disk]]\npath = "{root}"\nformat = "raw"\nmode = "persistent"\n'
        "[tpm]\nenabled = true\n[keys]\nport = true\n"
    )
    secret = where / "disk.key"
    secret.touch(mode=0o600)
    secret.write_bytes(KEY)
    who = 'secret = { file = "disk.key" }\nkinds = ["tpm"]\nattestation-keys = ["vm:web"]\n'
    (where / "release.toml").write_text(f'format = 1\n[resource."{RESOURCE}"]\nspec = "web.toml"\n{who}')
    cli.ok("measure", where / "web.toml", "--policy", where / "web-policy.toml")
    (where / "release-before.toml").write_text(
        f'format = 1\n[resource."{RESOURCE}"]\npolicy = "web-policy.toml"\n{who}'
    )
