"""Trace qemu-img while it converts every format that is imported, between two NBD sockets, in a root without /proc.

    python tools/trace/trace_qemu_img.py --work DIR --out tests/data/traces

As in `cell/convert.py`: the boundary between the phases is its first request for the source. Needs root (chroot),
strace and qemu-utils; the machine's network is not touched.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from qemu_session import USER_ID, libraries
from strace_summary import PATH_CALLS, Summary, summarise, to_json

from casemate.cell.convert_nbd import BlockServer
from casemate.image.overlay import write_empty_qcow2

PROGRAM = Path("/usr/bin/qemu-img")
DISK_BYTES = 96 << 20
SOURCES = (
    ("raw", ""),
    ("vmdk", "subformat=monolithicSparse"),
    ("vmdk", "subformat=streamOptimized"),
    ("vpc", "subformat=dynamic,force_size=on"),
    ("vpc", "subformat=fixed,force_size=on"),
    ("vhdx", "subformat=dynamic"),
    ("vdi", ""),
    ("qcow2", ""),
    ("qcow2", "compressed"),
    ("qcow2", "compressed,compression_type=zstd"),
)
ENTER = """
import ctypes, os, sys
libc, (root, uid, *words) = ctypes.CDLL(None, use_errno=True), sys.argv[1:]
os.chroot(root); os.chdir("/")
os.setgroups([]); os.setresgid(int(uid), int(uid), int(uid)); os.setresuid(int(uid), int(uid), int(uid))
libc.prctl(38, 1, 0, 0, 0)
os.execve(words[0], words, {})
"""


def build_root(root: Path) -> None:
    """qemu-img, its libraries, /dev/null and /dev/urandom."""
    shutil.rmtree(root, ignore_errors=True)
    for folder in ("usr/bin", "usr/lib/x86_64-linux-gnu", "dev"):
        (root / folder).mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    (root / "lib64").symlink_to("usr/lib/x86_64-linux-gnu")
    for library in libraries(PROGRAM, Path("/")):
        shutil.copy2(library, root / "usr/lib/x86_64-linux-gnu" / library.name)
    shutil.copy2(PROGRAM, root / "usr/bin/qemu-img")
    for name, minor in (("null", 3), ("urandom", 9)):
        os.mknod(root / "dev" / name, 0o20666, os.makedev(1, minor))


def make_source(work: Path, driver: str, options: str) -> Path:
    """An image with data, zeros and a hole."""
    plain = work / "plain.raw"
    if not plain.exists():
        with plain.open("wb") as file:
            file.truncate(DISK_BYTES)
            file.write(bytes(510) + b"\x55\xaa")
            for at in range(4 << 20, 40 << 20, 2 << 20):
                file.seek(at)
                file.write(os.urandom(1 << 19) + b"text " * 50_000)
    made = work / "source"
    words = [word for word in options.split(",") if word and word != "compressed"]
    more = ["-o", ",".join(words)] if words else []
    packed = ["-c"] if "compressed" in options else []
    subprocess.run([PROGRAM, "convert", "-O", driver, *packed, *more, plain, made], check=True)
    return made


def trace(work: Path, source: Path, driver: str, target_format: str) -> Summary:
    """One conversion."""
    target = os.open(work / "target", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    if target_format == "qcow2":
        write_empty_qcow2(target, DISK_BYTES)
    else:
        os.ftruncate(target, DISK_BYTES)
    fd, wake = os.open(source, os.O_RDONLY), os.eventfd(0)
    ours, theirs = zip(*(socket.socketpair() for _ in range(2)), strict=True)
    read = BlockServer(ours[0], fd, os.fstat(fd).st_size, wake_fd=wake)
    room = DISK_BYTES + (64 << 20 if target_format == "qcow2" else 0)
    write = BlockServer(ours[1], target, room, write_max_bytes=1 << 40)
    nbd = "file.driver=nbd,file.server.type=fd,file.server.str"
    log = work / "strace.log"
    command = [
        *("strace", "-f", "-qq", "-ttt", "-X", "raw", "-e", "signal=none", "-e", f"raw=!{','.join(PATH_CALLS)}"),
        *("-e", "inject=clone3:error=ENOSYS", "-o", str(log)),  # as under our filter: glibc falls back to clone
        *(sys.executable, "-c", ENTER, str(work / "root"), str(USER_ID), "/usr/bin/qemu-img", "convert", "-n"),
        *("--target-is-zero", "--image-opts", "--target-image-opts"),
        *(f"driver={driver},{nbd}={theirs[0].fileno()}", f"driver={target_format},{nbd}={theirs[1].fileno()}"),
    ]
    child = subprocess.Popen(command, pass_fds=[end.fileno() for end in theirs], env={"PATH": os.environ["PATH"]})
    for end in theirs:
        end.close()
    read.start()
    write.start()
    os.eventfd_read(wake)
    boundary = time.time()
    read.go_on()
    assert child.wait(120) == 0, log.read_text()[-3000:]
    read.join()
    write.join()
    for descriptor in (fd, wake, target):
        os.close(descriptor)
    return summarise(log.read_text(errors="replace"), boundary, "qemu-img")


def main() -> int:
    """Trace all, write one summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prefix", default="", help="put before the summary's name")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    build_root(options.work / "root")
    whole = Summary()
    for driver, settings in SOURCES:
        source = make_source(options.work, driver, settings)
        for target_format in ("qcow2", "raw"):
            one = trace(options.work, source, driver, target_format)
            for mine, its in ((whole.startup, one.startup), (whole.always, one.always)):
                for name, variants in its.items():
                    mine.setdefault(name, set()).update(variants)
            print(driver, settings, target_format, sorted(one.always))
    version = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True).stdout.split()[2]
    about: dict[str, object] = {"name": f"{options.prefix}qemu-img", "program": "qemu-img", "version": version}
    about["about"] = "raw, vmdk, vpc, vhdx, vdi and qcow2 (plain, zlib, zstd) to qcow2 and raw"
    (options.out / f"{options.prefix}qemu-img.json").write_text(to_json(whole, **about))
    return 0


if __name__ == "__main__":
    sys.exit(main())
