"""A real Debian 12 for the boot tests: a root file system by mmdebstrap, and a partitioned disk around it.

    <user's cache>/tests/debian-<key>/      built under a temporary name, renamed when complete
        kernel, initrd      the cloud kernel and the initramfs that initramfs-tools made for it
        root.img            ext4, for a VM whose kernel is given
        disk.img            GPT: EFI system partition (systemd-boot, kernel, initrd) and the same ext4

Nothing is mounted on the host and no loop device is used: ``mke2fs -d`` fills the root file system inside mmdebstrap's
namespaces, mtools fills the EFI system partition, sfdisk writes the table into a plain file. Works as root and, with
a subordinate uid range, as an ordinary user. ``<key>`` is the digest of this recipe: another recipe is another build.

The guest: root without a password on every console, DHCP by systemd-networkd, a listener on `GREETER_PORT` that answers
a line with `GREETING` (the client speaks first, see docs/network.md), and systemd-logind, which powers off when the
power button is pressed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from casemate.engine.paths import default_paths

SUITE = "bookworm"
GREETER_PORT = 8080
GREETING = "casemate-debian: hello"
HOSTNAME = "casemate-debian"
ROOT_PARTUUID = "3d1a0e5c-6f5b-4c62-9d0e-2c1f4a7b9e10"
ESP_PARTUUID = "7c9b2f7e-1d52-4a55-8a3d-5c1d0a6e8f21"
CMDLINE = "console=ttyS0 rw"
"""For both machines, beside ``root=``. Without ``quiet``: a boot that hangs shows where."""

MIB = 1 << 20
_ROOT_MIB = 448
_ESP_MIB = 64
_ESP_START_MIB = 1
_ROOT_START_MIB = _ESP_START_MIB + _ESP_MIB
ROOT_OFFSET_BYTES = _ROOT_START_MIB * MIB
"""Where the root file system begins on the disk."""
_KEEP_BUILDS = 2
_BUILD_TIMEOUT_S = 900
_BOOT_LOADER = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi"

_PACKAGES = ("systemd-sysv", "udev", "dbus", "linux-image-cloud-amd64", "iproute2")

_FILES = {
    "/etc/hostname": f"{HOSTNAME}\n",
    "/etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {HOSTNAME}\n",
    # A fixed id: an empty one makes every boot of an overlay a "first boot".
    "/etc/machine-id": "6a1f2c0b9d3e4f5a8b7c6d5e4f3a2b1c\n",
    "/etc/systemd/network/80-dhcp.network": "[Match]\nName=en* eth*\n[Network]\nDHCP=yes\n",
    "/etc/systemd/system/greeter.socket": (
        f"[Socket]\nListenStream={GREETER_PORT}\nAccept=yes\n[Install]\nWantedBy=sockets.target\n"
    ),
    "/etc/systemd/system/greeter@.service": (
        f"[Service]\nExecStart=/bin/sh -c 'read line && echo {GREETING}'\nStandardInput=socket\n"
    ),
}
# What initramfs-tools reads while the kernel is installed: only what these machines boot from.
_EARLY_FILES = {
    "/etc/initramfs-tools/conf.d/casemate": "MODULES=list\nBUSYBOX=n\nCOMPRESS=gzip\nFSTYPE=ext4\n",
    "/etc/initramfs-tools/modules": "ext4\nvirtio_blk\nvirtio_mmio\nvirtio_pci\nvirtio_console\n",
}
# What no test looks at and costs whole seconds where the emulator translates every instruction.
_MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer"),
    *("e2scrub_reap.service", "modprobe@.service", "systemd-network-generator.service", "systemd-pstore.service"),
    *("dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount"),
    *("sys-kernel-config.mount", "sys-fs-fuse-connections.mount", "systemd-binfmt.service", "getty@tty1.service"),
)
_LEFT_OUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*")


@dataclass(frozen=True)
class DebianImages:
    """Files of one build; nobody may write to them: a test that does takes a copy (`copy_image`)."""

    kernel: Path
    initrd: Path
    root: Path
    disk: Path


def debian_images() -> DebianImages:
    """The images of this recipe, built when they are not in the cache (about a minute).

    Raises:
        RuntimeError: a program failed; the message ends with its last words.
    """
    store = Path(default_paths().cache) / "tests"
    store.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = store / f"debian-{recipe_key()}"
    with _locked(store / "lock"):
        if not place.is_dir():
            with tempfile.TemporaryDirectory(dir=store, prefix="building-") as work:
                build = Path(work) / "debian"
                build.mkdir()
                _build(build)
                build.rename(place)
        os.utime(place)
        _forget_old(store)
    return DebianImages(place / "kernel", place / "initrd", place / "root.img", place / "disk.img")


def recipe_key() -> str:
    """Digest of everything that decides what is built, save the archive's package versions."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]


def copy_image(source: Path, target: Path) -> Path:
    """A private copy of an image, sparse, shared with the original where the file system can do that."""
    _run(["cp", "--reflink=auto", "--sparse=always", str(source), str(target)])
    target.chmod(0o600)
    return target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _forget_old(store: Path) -> None:
    builds = sorted(store.glob("debian-*"), key=lambda build: build.stat().st_mtime, reverse=True)
    for build in builds[_KEEP_BUILDS:]:
        shutil.rmtree(build)
    for rest in store.glob("building-*"):
        shutil.rmtree(rest, ignore_errors=True)  # a build that was killed; we hold the lock


def _run(command: list[str], *, stdin: str = "", timeout_s: float = 120) -> str:
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False, env=_environment()
    )
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)[:200]}: status {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C.UTF-8", "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}


def _build(place: Path) -> None:
    _bootstrap(place)
    _check_root(place / "root.img")
    _build_esp(place)
    _build_disk(place)
    (place / "esp.img").unlink()


def _bootstrap(place: Path) -> None:
    """Root file system, kernel and initrd. The hooks run as (mapped) root; ``$1`` is the new root's directory."""
    command = ["mmdebstrap", "--variant=minbase", "--mode=auto", f"--include={','.join(_PACKAGES)}"]
    command += ["--aptopt=APT::Install-Recommends false", "--aptopt=Acquire::Retries 3"]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT]
    command += [f"--setup-hook={_write_files(_EARLY_FILES)}", f"--customize-hook={_write_files(_FILES)}"]
    command.append(f"--customize-hook={_configure()}")
    command.append(f"--customize-hook={_fill_image()}")
    wanted = {"/root.img": "root.img", "/boot/casemate-kernel": "kernel", "/boot/casemate-initrd": "initrd"}
    for inside, outside in wanted.items():
        command.append(f"--customize-hook=download {inside} {shlex.quote(str(place / outside))}")
    _run([*command, SUITE, "/dev/null", *_archives()], timeout_s=_BUILD_TIMEOUT_S)


def _archives() -> list[str]:
    """Debian 12 as this host gets it (its mirror); empty when it does not, then mmdebstrap has a default."""
    fields = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    wanted = ("Created-By: Packages", "Origin: Debian")
    lines = _run(["apt-get", "indextargets", "--format", fields, *wanted]).splitlines()
    found = [line for line in lines if line.split()[1:] in ([SUITE, "main"], [f"{SUITE}-security", "main"])]
    return [f"deb {line}" for line in dict.fromkeys(found)]


def _write_files(files: dict[str, str]) -> str:
    """A shell hook that writes ``files`` into the new root."""
    lines = []
    for path, text in files.items():
        target = f'"$1"{shlex.quote(path)}'
        lines += [f'mkdir -p "$1"{shlex.quote(os.path.dirname(path))}', f"printf %s {shlex.quote(text)} >{target}"]
    return "set -e; " + "; ".join(lines)


def _configure() -> str:
    masked = " ".join(_MASKED)
    return "; ".join(
        (
            "set -e",
            'chroot "$1" passwd --quiet --delete root',
            'chroot "$1" systemctl --quiet enable systemd-networkd.service greeter.socket',
            f'chroot "$1" systemctl --quiet mask {masked}',
            'ln "$1"/boot/vmlinuz-* "$1"/boot/casemate-kernel',
            'ln "$1"/boot/initrd.img-* "$1"/boot/casemate-initrd',
            'find "$1"/var/lib/apt/lists "$1"/var/cache/apt -type f -delete',
            # Newer than /usr, so that no boot rebuilds caches (systemd-update-done.service).
            'touch "$1"/usr "$1"/etc/.updated "$1"/var/.updated',
        )
    )


def _fill_image() -> str:
    """Fill an ext4 image from the new root. A bind mount in a mount namespace of its own leaves out /proc, /sys."""
    make = f'mke2fs -q -t ext4 -L casemate-root -E lazy_itable_init=1 -d /mnt "$1.img" {_ROOT_MIB}M'
    inner = shlex.quote(f'set -e; mount --bind "$1" /mnt; {make}')
    return f'set -e; PATH=$PATH:/usr/sbin:/sbin; unshare --mount sh -c {inner} sh "$1"; mv "$1.img" "$1/root.img"'


def _check_root(image: Path) -> None:
    _run(["e2fsck", "-fn", str(image)])


def _build_esp(place: Path) -> None:
    """The EFI system partition: systemd-boot under the removable name that firmware looks for, and one entry."""
    esp = place / "esp.img"
    with esp.open("wb") as file:
        file.truncate(_ESP_MIB * MIB)
    _run(["mkfs.vfat", "-F", "32", "-n", "ESP", str(esp)])
    entry = (
        f"title Debian\nlinux /debian/linux\ninitrd /debian/initrd\noptions root=PARTUUID={ROOT_PARTUUID} {CMDLINE}\n"
    )
    (place / "entry").write_text(entry)
    (place / "loader").write_text("timeout 0\nconsole-mode keep\n")
    _run(["mmd", "-i", str(esp), "::/EFI", "::/EFI/BOOT", "::/loader", "::/loader/entries", "::/debian"])
    for source, target in (
        (_BOOT_LOADER, "/EFI/BOOT/BOOTX64.EFI"),
        (place / "loader", "/loader/loader.conf"),
        (place / "entry", "/loader/entries/debian.conf"),
        (place / "kernel", "/debian/linux"),
        (place / "initrd", "/debian/initrd"),
    ):
        _run(["mcopy", "-i", str(esp), str(source), f"::{target}"])
    (place / "entry").unlink()
    (place / "loader").unlink()


def _build_disk(place: Path) -> None:
    disk = place / "disk.img"
    with disk.open("wb") as file:
        file.truncate((_ROOT_START_MIB + _ROOT_MIB + 1) * MIB)
    table = (
        "label: gpt\n"
        f"start={_ESP_START_MIB}MiB, size={_ESP_MIB}MiB, type=uefi, uuid={ESP_PARTUUID}, name=esp\n"
        f"start={_ROOT_START_MIB}MiB, size={_ROOT_MIB}MiB, uuid={ROOT_PARTUUID}, name=root,"
        " type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n"
    )
    _run(["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", str(disk)], stdin=table)
    for part, start_mib in (("esp.img", _ESP_START_MIB), ("root.img", _ROOT_START_MIB)):
        _copy_into(place / part, disk, start_mib * MIB)


def _copy_into(source: Path, target: Path, offset: int) -> None:
    with source.open("rb") as read, target.open("r+b") as write:
        while chunk := read.read(MIB):
            if chunk.count(0) != len(chunk):
                write.seek(offset)
                write.write(chunk)
            offset += len(chunk)


if __name__ == "__main__":
    started = time.monotonic()
    print(debian_images(), f"{time.monotonic() - started:.0f} s")
