"""Disks that firmware with Secure Boot starts, and the keys of an owner who signs what he boots.

Two chains, each on a disk with a GPT and an EFI system partition; nothing is mounted and no loop device is used:

    the distribution's   shim (signed by Microsoft) -> grub (signed by Debian) -> kernel (signed by Debian)
        EFI/BOOT/{BOOTX64,grubx64}.efi  EFI/debian/grub.cfg  casemate/linux  casemate/initrd
    the owner's          one unified kernel image: systemd's stub, kernel, initrd and command line under one signature
        EFI/BOOT/BOOTX64.EFI

shim and grub come out of Debian's signed packages, which stay in the cache; nothing of them is installed. A second
partition may hold a root file system (`ROOT_PARTUUID`). GUIDs, volume id and times are fixed: the same files make the
same disk.
"""

from __future__ import annotations

import datetime
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from tests.support import debian_image as base

from casemate.engine.paths import default_paths
from casemate.image.packages import download, read_members

MIB = 1 << 20
DISK_GUID = "5f0c9a0e-8d3a-4b7e-9f0e-0c1d2e3f4a5b"
ESP_PARTUUID = base.ESP_PARTUUID
ROOT_PARTUUID = base.ROOT_PARTUUID
REMOVABLE = "EFI/BOOT/BOOTX64.EFI"
"""What firmware starts from a disk without a boot entry."""
KERNEL, INITRD, GRUB_CONFIG = "casemate/linux", "casemate/initrd", "EFI/debian/grub.cfg"
_STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
_ESP_START_MIB = 1
_SLACK_MIB = 4
_CHAIN_FILES = {
    "shim-signed": {"usr/lib/shim/shimx64.efi.signed": "shimx64.efi"},
    "grub-efi-amd64-signed": {"usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed": "grubx64.efi"},
}


@dataclass(frozen=True)
class BootChain:
    """Debian's signed boot loaders."""

    shim: Path
    grub: Path


@dataclass(frozen=True)
class SigningKey:
    """A certificate (PEM) and its private key (PEM, 0600), RSA 2048."""

    certificate: Path
    private: Path


@dataclass(frozen=True)
class OwnerKeys:
    """Platform key, key exchange key, and the key whose signatures start."""

    pk: SigningKey
    kek: SigningKey
    db: SigningKey


def boot_chain() -> BootChain:
    """shim and grub of this host's Debian, out of the cache or out of their packages.

    Raises:
        HostError: apt could not fetch them.
    """
    store = Path(default_paths().cache) / "tests"
    store.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = store / "boot-chain-1"
    with base._locked(store / "boot-chain-lock"):
        if not place.is_dir():
            with tempfile.TemporaryDirectory(dir=store, prefix="boot-chain-building-") as work:
                build = Path(work) / "chain"
                build.mkdir()
                _take_chain(Path(work), build)
                build.rename(place)
    return BootChain(place / "shimx64.efi", place / "grubx64.efi")


def _take_chain(work: Path, build: Path) -> None:
    for name, files in _CHAIN_FILES.items():
        found = dict(read_members(download(name, work, lambda _: None), files.__contains__))
        for inside, outside in files.items():
            (build / outside).write_bytes(found[inside])


def grub_disk(
    target: Path, kernel: Path, initrd: Path, cmdline: str, *, root: Path | None = None, chain: BootChain | None = None
) -> Path:
    """A disk with the distribution's chain; grub starts the kernel at once.

    Args:
        root: an image of a file system, which becomes the second partition.
    """
    chain = chain if chain is not None else boot_chain()
    config = f"set timeout=0\nlinux /{KERNEL} {cmdline}\ninitrd /{INITRD}\nboot\n"
    files: dict[str, Path | bytes] = {
        REMOVABLE: chain.shim,
        "EFI/BOOT/grubx64.efi": chain.grub,
        GRUB_CONFIG: config.encode(),
        KERNEL: kernel,
        INITRD: initrd,
    }
    return efi_disk(target, files, root=root)


def uki_disk(target: Path, uki: Path, *, root: Path | None = None) -> Path:
    """A disk whose firmware starts a unified kernel image."""
    return efi_disk(target, {REMOVABLE: uki}, root=root)


def efi_disk(target: Path, files: Mapping[str, Path | bytes], *, root: Path | None = None) -> Path:
    """A raw disk: an EFI system partition of FAT32 with ``files`` (path -> file or bytes), and ``root`` behind it."""
    sizes = [len(data) if isinstance(data, bytes) else data.stat().st_size for data in files.values()]
    esp_mib = max(34, sum(sizes) // MIB + _SLACK_MIB)  # FAT32 has at least 65525 clusters of a sector
    root_mib = -(-root.stat().st_size // MIB) if root is not None else 0
    root_start_mib = _ESP_START_MIB + esp_mib
    table = f"label: gpt\nlabel-id: {DISK_GUID}\n"
    table += f"start={_ESP_START_MIB}MiB, size={esp_mib}MiB, type=uefi, uuid={ESP_PARTUUID}, name=esp\n"
    if root is not None:
        table += f"start={root_start_mib}MiB, size={root_mib}MiB, uuid={ROOT_PARTUUID}, name=root,"
        table += " type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n"
    with target.open("wb") as file:
        file.truncate((root_start_mib + root_mib + 1) * MIB)
    base._run(["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", str(target)], stdin=table)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="esp-") as work:
        base._copy_into(_esp(Path(work), files, esp_mib), target, _ESP_START_MIB * MIB)
    if root is not None:
        base._copy_into(root, target, root_start_mib * MIB)
    return target


def root_offset_bytes(disk: Path) -> int:
    """Where the second partition of a disk of ours begins (its GPT entry, in sectors of 512 bytes)."""
    with disk.open("rb") as file:
        file.seek(2 * 512 + 128 + 32)
        return int(struct.unpack("<Q", file.read(8))[0]) * 512


def read_efi_file(disk: Path, path: str) -> bytes:
    """A file of the EFI system partition of a disk of ours."""
    command = ["mtype", "-i", f"{disk}@@{_ESP_START_MIB}M", f"::{path}"]
    return subprocess.run(command, capture_output=True, check=True, env=base._environment()).stdout


def write_efi_file(disk: Path, path: str, data: bytes) -> None:
    """Replace a file of the EFI system partition of a disk of ours."""
    with tempfile.NamedTemporaryFile(dir=disk.parent) as file:
        file.write(data)
        file.flush()
        base._run(["mcopy", "-o", "-i", f"{disk}@@{_ESP_START_MIB}M", file.name, f"::{path}"])


def tampered(image: bytes) -> bytes:
    """A PE image with one bit flipped in the middle of its first section: in what its signature covers."""
    header = struct.unpack_from("<I", image, 0x3C)[0]
    optional_bytes = struct.unpack_from("<H", image, header + 20)[0]
    raw_bytes, raw_start = struct.unpack_from("<II", image, header + 24 + optional_bytes + 16)
    changed = bytearray(image)
    changed[raw_start + raw_bytes // 2] ^= 0x01
    return bytes(changed)


def _esp(work: Path, files: Mapping[str, Path | bytes], size_mib: int) -> Path:
    tree = work / "tree"
    for path, data in files.items():
        place = tree / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(data, bytes):
            place.write_bytes(data)
        else:
            shutil.copyfile(data, place)
    for place in (*tree.rglob("*"), tree):
        os.utime(place, (0x5F000000, 0x5F000000))
    esp = work / "esp.img"
    with esp.open("wb") as file:
        file.truncate(size_mib * MIB)
    base._run(["mkfs.vfat", "-F", "32", "-s", "1", "-i", "ca5e3a7e", "-n", "ESP", "--invariant", str(esp)])
    base._run(["mcopy", "-i", str(esp), "-s", "-m", *(str(place) for place in sorted(tree.iterdir())), "::"])
    return esp


def make_uki(target: Path, kernel: Path, initrd: Path, cmdline: str) -> Path:
    """A unified kernel image without signature: systemd's stub with kernel, initrd and command line as sections."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="uki-") as work:
        texts = {".osrel": "ID=casemate-test\nVERSION_ID=1\n", ".cmdline": cmdline}
        parts: list[tuple[str, Path]] = []
        for name, text in texts.items():
            file = Path(work) / name
            file.write_text(text)
            parts.append((name, file))
        parts += [(".linux", kernel), (".initrd", initrd)]
        # Behind the stub's last section, each at a page of its own; the stub finds them by name.
        address = _end_of_image(_STUB.read_bytes())
        arguments: list[str] = []
        for name, file in parts:
            arguments += ["--add-section", f"{name}={file}", "--change-section-vma", f"{name}={address:#x}"]
            address += -(-file.stat().st_size // 4096) * 4096
        base._run(["objcopy", *arguments, str(_STUB), str(target)])
    return target


def _end_of_image(image: bytes) -> int:
    """The first free page of a PE image, with its base address added as objcopy counts."""
    header: int = struct.unpack_from("<I", image, 0x3C)[0]
    image_base: int = struct.unpack_from("<Q", image, header + 24 + 24)[0]
    count: int = struct.unpack_from("<H", image, header + 6)[0]
    table = header + 24 + int(struct.unpack_from("<H", image, header + 20)[0])
    ends: list[int] = [sum(struct.unpack_from("<II", image, table + 40 * index + 8)) for index in range(count)]
    return image_base + -(-max(ends) // 4096) * 4096


def owner_keys(directory: Path) -> OwnerKeys:
    """New keys of an owner, in PEM files of their own; valid for ten years from 2020 on."""
    directory.mkdir(mode=0o700, exist_ok=True)
    made = [_signing_key(directory, name) for name in ("PK", "KEK", "db")]
    return OwnerKeys(*made)


def _signing_key(directory: Path, name: str) -> SigningKey:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Casemate test owner {name}")])
    begin = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder(who, who, key.public_key(), x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin.replace(year=2045))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pair = SigningKey(directory / f"{name}.pem", directory / f"{name}.key")
    pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pair.private.touch(mode=0o600)
    pair.private.write_bytes(secret)
    return pair


def sign_efi(image: Path, key: SigningKey, target: Path) -> Path:
    """Sign a PE image with sbsign (package sbsigntool)."""
    base._run(
        ["sbsign", "--key", str(key.private), "--cert", str(key.certificate), "--output", str(target), str(image)]
    )
    return target
