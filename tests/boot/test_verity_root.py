"""dm-verity roots that boot, and a changed block that does not read; fs-verity of a real kernel beside our digests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from tests.support.cli_runner import Cli
from tests.support.signing import need

from casemate.engine.verity_image import build
from casemate.image.cpio import CpioEntry, directory, regular, write_cpio
from casemate.image.guest_source import busybox_bytes
from casemate.image.verity_guest import VerityGuest, build_verity_guest

pytestmark = pytest.mark.boot

ROOT_INIT = """#!/bin/sh
bb=/bin/busybox
echo "root: up"
if $bb sha256sum /data/file >/dev/null; then echo "root: read"; else echo "root: read failed"; fi
if echo x 2>/dev/null >/data/new; then echo "root: writable"; else echo "root: read-only"; fi
$bb poweroff -f
"""

SEAL_INIT = """#!/bin/busybox sh
bb=/bin/busybox
$bb mount -t proc proc /proc; $bb mount -t sysfs sys /sys; $bb mount -t devtmpfs dev /dev
while read -r module; do $bb insmod "/lib/modules/$module.ko"; done </lib/modules/order
$bb mount -t ext4 /dev/vda /mnt
cd / && LD_LIBRARY_PATH=/lib PYTHONHOME=/usr PYTHONPATH=/src /usr/bin/python3 -S /seal.py
$bb poweroff -f
"""

SEAL_SCRIPT = """
import os
from casemate.image.verity import fsverity_digest
from casemate.sys.fsverity import fs_ioc_enable_verity, fs_ioc_measure_verity

def check(name, holds):
    print("seal:", "PASS" if holds else "FAIL", name, flush=True)

for size in (1, 4096, 100_000, 600_001):
    path = f"/mnt/{size}"
    with open(path, "wb") as file:
        file.write(bytes((index * 7 + size) % 251 for index in range(size)))
    fd = os.open(path, os.O_RDONLY)
    check(f"{size} is not sealed at first", fs_ioc_measure_verity(fd) == "")
    check(f"{size} is sealed", fs_ioc_enable_verity(fd))
    check(f"{size} is sealed already", fs_ioc_enable_verity(fd))
    check(f"{size} measures as computed", fs_ioc_measure_verity(fd) == fsverity_digest(fd))
    os.close(fd)
try:
    os.open("/mnt/4096", os.O_RDWR)
    check("nobody writes to it", False)
except PermissionError:
    check("nobody writes to it", True)
writer = os.open("/mnt/busy", os.O_RDWR | os.O_CREAT)
reader = os.open("/mnt/busy", os.O_RDONLY)
try:
    fs_ioc_enable_verity(reader)
    check("a file with a writer is refused", False)
except OSError as fault:
    check("a file with a writer is refused", fault.errno == 26)
os.close(reader)
os.close(writer)
os.sync()
marker = bytes((index * 7 + 600_001) % 251 for index in range(8192, 12288))
os.system("/bin/busybox umount /mnt")
disk = os.open("/dev/vda", os.O_RDWR)
at = 0
while (block := os.pread(disk, 4096, at)) and block != marker:
    at += 4096
os.pwrite(disk, b"!" + marker[1:], at)
os.fsync(disk)
os.close(disk)
os.system("/bin/busybox mount -t ext4 /dev/vda /mnt")
fd = os.open("/mnt/600001", os.O_RDONLY)
check("the measurement stays", fs_ioc_measure_verity(fd).startswith("sha256:"))
check("other blocks are read", len(os.pread(fd, 4096, 0)) == 4096)
try:
    os.pread(fd, 4096, 8192)
    check("a changed block is not read", False)
except OSError as fault:
    check("a changed block is not read", fault.errno == 5)
print("seal: done", flush=True)
"""


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> VerityGuest:
    return build_verity_guest(tmp_path_factory.mktemp("packages"), lambda text: None)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    (tmp_path / "home").mkdir()
    return Cli(tmp_path / "home")


def mkfs(path: Path, size: int, *flags: str | Path) -> None:
    with path.open("wb") as file:
        file.truncate(size)
    program = shutil.which("mkfs.ext4", path="/usr/sbin:/sbin") or need("mkfs.ext4", "e2fsprogs")
    subprocess.run([program, "-q", "-b", "4096", *flags, path], check=True, timeout=60)


def run_guest(cli: Cli, *argv: str | Path) -> str:
    done = subprocess.run(
        cli.words("run", *argv, "--rm", "--timeout-s", "60"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=cli._environment,
        check=False,
        timeout=90,
    )
    return (done.stdout + done.stderr).decode("utf-8", "replace")


def test_a_verity_root_boots_and_a_changed_block_is_a_read_error(guest: VerityGuest, cli: Cli, tmp_path: Path) -> None:
    tree = tmp_path / "root"
    for name in ("sbin", "bin", "dev", "proc", "sys", "data"):
        (tree / name).mkdir(parents=True)
    (tree / "bin/busybox").write_bytes(busybox_bytes(tmp_path, lambda text: None)[0])
    (tree / "bin/busybox").chmod(0o755)
    (tree / "bin/sh").symlink_to("busybox")
    (tree / "sbin/init").write_text(ROOT_INIT)
    (tree / "sbin/init").chmod(0o755)
    content = os.urandom(1 << 20)
    (tree / "data/file").write_bytes(content)
    mkfs(tmp_path / "root.ext4", 16 << 20, "-d", tree)
    out = tmp_path / "out"
    build(
        str(tmp_path / "root.ext4"),
        str(out),
        overlay=True,
        memory_mib=256,
        report=lambda text: None,
        progress=lambda done, of: None,
        guest=guest,
    )
    said = run_guest(cli, out / "vm.toml")
    assert "casemate-verity: root checked by dm-verity" in said, said
    assert "root: read\r" in said
    assert "root: writable" in said
    disk = out / "disk.raw"
    data = disk.read_bytes()
    at = data.index(content[:4096]) + 500_000
    with disk.open("r+b") as file:
        file.seek(at)
        file.write(bytes([data[at] ^ 1]))
    said = run_guest(cli, out / "vm.toml")
    assert "root: up" in said, said
    assert "root: read failed" in said
    with disk.open("r+b") as file:  # the superblock of the file system: nothing is mounted at all
        file.seek(1024)
        file.write(bytes([data[1024] ^ 1]))
    said = run_guest(cli, out / "vm.toml")
    assert "casemate-verity: refused" in said, said
    assert "root: up" not in said


def test_fs_verity_in_a_real_kernel_measures_what_we_compute(guest: VerityGuest, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(guest.kernel)
    (tmp_path / "initrd").write_bytes(guest.initrd + _python_initrd(tmp_path))
    mkfs(tmp_path / "disk.raw", 32 << 20, "-O", "verity")
    (tmp_path / "vm.toml").write_text(
        '[machine]\nmemory_mib = 512\n[boot]\nkernel = "kernel"\ninitrd = "initrd"\n'
        'cmdline = "console=ttyS0 reboot=t panic=-1 quiet loglevel=3 cryptomgr.notests rdinit=/seal"\n'
        '[[disk]]\npath = "disk.raw"\nformat = "raw"\nmode = "persistent"\n'
    )
    said = run_guest(cli, tmp_path / "vm.toml")
    assert "seal: done" in said, said
    assert "FAIL" not in said, said
    assert said.count("seal: PASS") == 4 * 4 + 5


def _python_initrd(scratch: Path) -> bytes:
    """A second archive for the initramfs: this interpreter, its libraries, a part of the standard library, our code."""
    interpreter = os.path.realpath(sys.executable)
    libraries = subprocess.run(["ldd", interpreter], capture_output=True, text=True, check=True).stdout
    files: dict[str, bytes] = {"usr/bin/python3": Path(interpreter).read_bytes()}
    for word in libraries.split():
        if word.startswith("/"):
            data = Path(word).read_bytes()
            files[f"lib/{Path(word).name}"] = data
            files[word.lstrip("/")] = data
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = Path(sysconfig.get_paths()["stdlib"])
    for pattern in (
        "*.py",
        "encodings/*.py",
        "collections/*.py",
        "importlib/*.py",
        "re/*.py",
        "lib-dynload/_struct*.so",
    ):
        for path in library.glob(pattern):
            files[f"usr/lib/{version}/{path.relative_to(library)}"] = path.read_bytes()
    source = Path(__file__).parents[2] / "src"
    for name in (
        "__init__.py",
        "errors.py",
        "image/__init__.py",
        "image/verity.py",
        "sys/__init__.py",
        "sys/fsverity.py",
    ):
        files[f"src/casemate/{name}"] = (source / "casemate" / name).read_bytes()
    files["seal.py"], files["seal"] = SEAL_SCRIPT.encode(), SEAL_INIT.encode()
    places = {str(parent) for name in files for parent in Path(name).parents if str(parent) != "."}
    known = {"lib", "lib/modules", "bin", "sbin", "dev", "proc", "sys", "run", "tmp", "dm"}
    entries: list[CpioEntry] = [directory(name) for name in sorted({*places, "mnt"} - known)]
    entries += [regular(name, data, 0o755) for name, data in sorted(files.items())]
    return write_cpio(entries)
