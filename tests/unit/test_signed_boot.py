"""The disks and signatures that boot tests rely on are what they say (tests/support/signed_boot.py)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.support.signed_boot import (
    GRUB_CONFIG,
    INITRD,
    KERNEL,
    REMOVABLE,
    BootChain,
    grub_disk,
    make_uki,
    owner_keys,
    read_efi_file,
    root_offset_bytes,
    sign_efi,
    tampered,
    uki_disk,
    write_efi_file,
)


def is_signed(image: Path, certificate: Path) -> bool:
    command = ["sbverify", "--cert", str(certificate), str(image)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    chain = BootChain(written(tmp_path / "shim", b"shim"), written(tmp_path / "grub", b"grub"))
    kernel, initrd = written(tmp_path / "k", b"kernel" * 9999), written(tmp_path / "i", b"initrd")
    root = written(tmp_path / "root", b"a file system" + bytes(1 << 20))
    return grub_disk(tmp_path / "disk", kernel, initrd, "quiet", root=root, chain=chain)


def test_the_distributions_disk_holds_its_files(disk: Path) -> None:
    assert read_efi_file(disk, REMOVABLE) == b"shim"
    assert read_efi_file(disk, "EFI/BOOT/grubx64.efi") == b"grub"
    assert read_efi_file(disk, KERNEL) == b"kernel" * 9999
    assert f"linux /{KERNEL} quiet\ninitrd /{INITRD}\n".encode() in read_efi_file(disk, GRUB_CONFIG)
    start = root_offset_bytes(disk)
    assert disk.read_bytes()[start : start + 13] == b"a file system"
    write_efi_file(disk, KERNEL, b"another")
    assert (read_efi_file(disk, KERNEL), read_efi_file(disk, INITRD)) == (b"another", b"initrd")


def test_the_same_files_make_the_same_disk(disk: Path, tmp_path: Path) -> None:
    again = uki_disk(tmp_path / "one", tmp_path / "k")
    assert again.read_bytes() == uki_disk(tmp_path / "two", tmp_path / "k").read_bytes() != disk.read_bytes()


def test_a_signature_holds_until_one_bit_changes(tmp_path: Path) -> None:
    keys = owner_keys(tmp_path / "keys")
    uki = make_uki(tmp_path / "uki", written(tmp_path / "k", b"k" * 5000), written(tmp_path / "i", b"i"), "quiet")
    signed = sign_efi(uki, keys.db, tmp_path / "signed")
    assert is_signed(signed, keys.db.certificate)
    assert not is_signed(signed, keys.kek.certificate)
    assert not is_signed(uki, keys.db.certificate)
    whole, changed = signed.read_bytes(), tampered(signed.read_bytes())
    assert sum((a ^ b).bit_count() for a, b in zip(whole, changed, strict=True)) == 1
    assert not is_signed(written(tmp_path / "changed", changed), keys.db.certificate)
    assert (keys.db.private.stat().st_mode & 0o777) == 0o600
