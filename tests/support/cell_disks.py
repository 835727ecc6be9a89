"""Disk images with every file system that the cell reads, made by the tools themselves; nothing is mounted.

`file_systems` fills partitions of one disk. `layered` needs a kernel (device mapper, md): it boots the cell's own guest
with writable disks, outside any wall, and lets LVM, cryptsetup and mdadm work in there.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from casemate.cell.guest import build_cell_guest
from casemate.cell.session import Session
from casemate.cell.tools import tool_files
from casemate.engine.paths import default_paths
from casemate.facts.tsc import tsc_khz

MIB = 1 << 20
LABEL = "casemate"
_MACHINE = "microvm,accel=tcg,pit=off,pic=off,rtc=on,isa-serial=on,acpi=on,usb=off,pcie=off,auto-kernel-cmdline=off"
CONTENT = b"read by the cell\n" * 100
KEY = b"correct horse battery staple"

# name, size in MiB, program that must be there
SYSTEMS: tuple[tuple[str, int, str], ...] = (
    ("ext2", 16, "mkfs.ext2"),
    ("ext3", 16, "mkfs.ext3"),
    ("ext4", 16, "mkfs.ext4"),
    ("xfs", 300, "mkfs.xfs"),
    ("btrfs", 128, "mkfs.btrfs"),
    ("vfat", 16, "mkfs.vfat"),
    ("exfat", 16, "mkfs.exfat"),
    ("squashfs", 4, "mksquashfs"),
    ("erofs", 4, "mkfs.erofs"),
    ("iso9660", 4, "genisoimage"),
    ("udf", 16, "mkudffs"),
    ("ntfs", 16, "mkntfs"),
    ("swap", 4, "mkswap"),
)
EMPTY = frozenset({"exfat", "udf", "ntfs", "swap"})
"""Made without files: their tools cannot fill them."""


def _run(*command: str, **more: object) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60, **more)  # type: ignore[call-overload]


def tree(base: Path) -> Path:
    """A few files of every harmless kind."""
    (base / "etc").mkdir(parents=True)
    (base / "etc" / "content").write_bytes(CONTENT)
    (base / "etc" / "os-release").write_text('ID=testos\nPRETTY_NAME="Test OS"\n')
    (base / "deep" / "er" / "est").mkdir(parents=True)
    (base / "deep" / "er" / "est" / "empty").write_bytes(b"")
    return base


def links(base: Path) -> None:
    """Links, for file systems that have them."""
    os.symlink("/etc/content", base / "absolute")
    os.symlink("../../../../../../etc/content", base / "climbing")
    os.symlink("etc/content", base / "inside")


def make_one(kind: str, target: Path, size_mib: int, source: Path) -> None:
    """One file system in a file of its own."""
    with target.open("wb") as file:
        file.truncate(size_mib * MIB)
    where = str(target)
    if kind in {"ext2", "ext3", "ext4"}:
        _run(f"mkfs.{kind}", "-q", "-F", "-L", LABEL, "-d", str(source), where)
    elif kind == "xfs":
        _run("mkfs.xfs", "-q", "-f", "-L", LABEL, "-p", str(_xfs_prototype(source, target)), where)
    elif kind == "btrfs":
        _run("mkfs.btrfs", "-q", "-f", "-L", LABEL, "--rootdir", str(source), where)
    elif kind == "vfat":
        _run("mkfs.vfat", "-n", LABEL.upper(), where)
        plain = [str(path) for path in source.iterdir() if not path.is_symlink()]
        _run("mcopy", "-s", "-i", where, *plain, "::/")
    elif kind == "squashfs":
        _run("mksquashfs", str(source), where, "-noappend", "-quiet", "-comp", "zstd")
    elif kind == "erofs":
        _run("mkfs.erofs", "-zlz4hc", where, str(source))
    elif kind == "iso9660":
        _run("genisoimage", "-quiet", "-R", "-J", "-V", LABEL, "-o", where, str(source))
    elif kind == "exfat":
        _run("mkfs.exfat", "-L", LABEL, where)
    elif kind == "udf":
        _run("mkudffs", "--label", LABEL, "--blocksize", "512", where)
    elif kind == "ntfs":
        _run("mkntfs", "-q", "-F", "-f", "-L", LABEL, where)
        _run("ntfscp", where, str(source / "etc" / "content"), "content")
    else:
        _run("mkswap", "-L", LABEL, where)


def _xfs_prototype(source: Path, target: Path) -> Path:
    """mkfs.xfs fills from a prototype file (mkfs.xfs(8))."""
    lines = ["/", "0 0", "d--755 0 0"]

    def add(directory: Path, indent: str) -> None:
        for path in sorted(directory.iterdir()):
            if path.is_symlink():
                lines.append(f"{indent}{path.name} l--777 0 0 {os.readlink(path)}")
            elif path.is_dir():
                lines.append(f"{indent}{path.name} d--755 0 0")
                add(path, indent + " ")
                lines.append(f"{indent}$")
            else:
                lines.append(f"{indent}{path.name} ---644 0 0 {path}")

    add(source, " ")
    prototype = target.with_suffix(".proto")
    prototype.write_text("\n".join([*lines, "$", ""]))
    return prototype


def available() -> tuple[tuple[str, int, str], ...]:
    """The file systems whose tools this machine has."""
    path = "/usr/sbin:/usr/bin:/sbin:/bin"
    return tuple(item for item in SYSTEMS if shutil.which(item[2], path=path))


def file_systems(
    directory: Path, kinds: tuple[tuple[str, int, str], ...]
) -> tuple[Path, dict[str, int], dict[str, int]]:
    """One GPT disk with a partition for each: the image, kind -> partition number, kind -> offset in bytes."""
    source = tree(directory / "tree")
    links(source)
    disk = directory / "systems.img"
    script, numbers, offsets = ["label: gpt"], {}, {}
    position = 1
    for number, (kind, size_mib, _) in enumerate(kinds, start=1):
        script.append(f'start={position * 2048}, size={size_mib * 2048}, type=linux, name="part-{kind}"')
        numbers[kind], offsets[kind] = number, position * MIB
        position += size_mib
    with disk.open("wb") as file:
        file.truncate((position + 1) * MIB)
    _run("sfdisk", "--quiet", str(disk), input="\n".join(script).encode())
    for kind, size_mib, _ in kinds:
        one = directory / f"{kind}.part"
        make_one(kind, one, size_mib, source)
        _run("dd", f"if={one}", f"of={disk}", "bs=1M", f"seek={offsets[kind] // MIB}", "conv=notrunc,sparse")
        one.unlink()
    return disk, numbers, offsets


@contextmanager
def maker(disks: list[Path]) -> Iterator[Session]:
    """The cell's guest with writable disks, bare: for making images, never for opening one."""
    cache = Path(default_paths().cache)
    guest = build_cell_guest(cache, lambda _: None)
    frequency = tsc_khz(disks[0].with_name("tsc.json"), "test")
    ours, theirs = socket.socketpair()
    words = f"{guest.cmdline} tsc_early_khz={frequency} tsc=reliable"
    argv = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "512"]
    argv += ["-cpu", "max", "-machine", _MACHINE, "-kernel", str(guest.kernel), "-initrd", str(guest.initrd)]
    argv += ["-append", words, "-serial", "null", "-chardev", f"socket,id=c,fd={theirs.fileno()}"]
    argv += ["-device", "virtio-serial-device,max_ports=2", "-device", "virtserialport,chardev=c,nr=1"]
    for number, disk in enumerate(disks):
        argv += [
            "-drive",
            f"file={disk},format=raw,if=none,id=d{number}",
            "-device",
            f"virtio-blk-device,drive=d{number}",
        ]
    process = subprocess.Popen(argv, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    theirs.close()
    try:
        session = Session(ours, guest=guest, tools=lambda package: tool_files(package, cache))
        session.wait_for_hello()
        yield session
    finally:
        ours.close()
        process.kill()
        process.wait()


def layered(directory: Path) -> list[Path]:
    """Four disks of one machine: LVM (two volumes, one encrypted), LUKS, and both halves of a RAID 1."""
    source = tree(directory / "layered-tree")
    inner = directory / "inner.ext4"
    with inner.open("wb") as file:
        file.truncate(2 * MIB)
    _run("mkfs.ext4", "-q", "-F", "-L", LABEL, "-d", str(source), str(inner))
    disks = [directory / f"layer{number}.img" for number in range(4)]
    for disk, size_mib in zip(disks, (64, 48, 8, 8), strict=True):
        with disk.open("wb") as file:
            file.truncate(size_mib * MIB)
    with maker(disks) as guest:
        for package in ("lvm2", "cryptsetup-bin", "mdadm"):
            guest.send_tools(package)
        guest.load("dm_mod", "dm_crypt", "ecb", "xts", "algif_skcipher", "algif_hash", "md_mod", "raid1")
        for part in ("/run/lock/lvm", "/run/cryptsetup", "/run/mdadm"):
            guest.put(f"{part}/.keep", b"")
        lvm = ("--config", "activation{udev_sync=0 udev_rules=0} devices{use_devicesfile=0} backup{backup=0 archive=0}")
        _in(guest, "/sbin/lvm", "pvcreate", "-ff", "-y", "/dev/vda", *lvm)
        _in(guest, "/sbin/lvm", "vgcreate", "data-group", "/dev/vda", *lvm)
        _in(guest, "/sbin/lvm", "lvcreate", "-y", "-Wn", "-Zn", "-L", "4M", "-n", "files", "data-group", *lvm)
        _in(guest, "/sbin/lvm", "lvcreate", "-y", "-Wn", "-Zn", "-L", "24M", "-n", "secret", "data-group", *lvm)
        guest.put("/dev/mapper/data--group-files", inner.read_bytes())
        for device, name in (("/dev/mapper/data--group-secret", "one"), ("/dev/vdb", "two")):
            kind = (
                "--type",
                "luks1" if name == "one" else "luks2",
                "--pbkdf",
                "pbkdf2",
                "--pbkdf-force-iterations",
                "1000",
            )
            _in(guest, "/sbin/cryptsetup", "luksFormat", "-q", *kind, "--key-file", "-", device, given=KEY)
            _in(guest, "/sbin/cryptsetup", "open", "--key-file", "-", device, name, given=KEY)
            guest.put(f"/dev/mapper/{name}", inner.read_bytes())
            _in(guest, "/sbin/cryptsetup", "close", name)
        create = ("--create", "/dev/md0", "--run", "--level=1", "--raid-devices=2", "--metadata=1.2", "--assume-clean")
        _in(guest, "/sbin/mdadm", *create, "/dev/vdc", "/dev/vdd")
        guest.put("/dev/md0", inner.read_bytes())
        _in(guest, "/sbin/mdadm", "--stop", "/dev/md0")
        _in(guest, "/sbin/lvm", "vgchange", "-an", "data-group", *lvm)
    return disks


def _in(guest: Session, *command: str, given: bytes = b"") -> None:
    status, said = guest.run(command, given)
    if status:
        raise RuntimeError(f"{command}: {status}: {said}")


def main() -> None:
    """Make the disk by hand: python -m tests.support.cell_disks DIRECTORY."""
    directory = Path(sys.argv[1])
    directory.mkdir()
    print(file_systems(directory, available()))
    print(layered(directory))


if __name__ == "__main__":
    main()
