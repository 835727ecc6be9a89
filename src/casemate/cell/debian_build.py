"""Builds a hardened Debian disk from signed packages: the reference image, which passes its own scan and audit.

mmdebstrap does it as an ordinary user (subordinate ids) or as root. Nothing is mounted on the host and no loop device
is used: ``mke2fs -d`` fills the root file system inside mmdebstrap's namespaces, mtools fills the EFI system partition,
sfdisk writes the table into a plain file::

    1 MiB    EFI system partition   shim and GRUB, both signed, and a grub.cfg of three lines
    65 MiB   root, ext4             kernel and initrd in /boot

What the image has not: a machine-id, SSH host keys, random seeds, a password of anybody. What it has: root locked, keys
only for sshd, cloud-init that believes NoCloud alone, security updates by themselves, lockdown=integrity, careful
kernel settings. Packages come from the archive that this host uses for that suite, checked by apt's keyring.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from casemate.errors import HostError, InputError, VmError
from casemate.facts.guest_system import SYSCTLS

MIB: Final = 1 << 20
ESP_MIB: Final = 64
TIMEOUT_S: Final = 1800
SUITES: Final = ("bookworm", "trixie")
TOOLS: Final = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "mcopy": "mtools",
    "mmd": "mtools",
    "sfdisk": "fdisk",
}
PACKAGES: Final = (
    *("systemd-sysv", "udev", "dbus", "libpam-systemd", "linux-image-cloud-amd64", "initramfs-tools", "iproute2"),
    *("openssh-server", "sudo", "cloud-init", "cloud-guest-utils", "unattended-upgrades", "ca-certificates"),
    *("apparmor", "shim-signed", "grub-efi-amd64-signed", "systemd-timesyncd"),
)
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LEFT_OUT: Final = ("/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/doc/*/examples/*")
_SSHD: Final = """\
PermitRootLogin no
PasswordAuthentication no
KbdInteractiveAuthentication no
AllowAgentForwarding no
AllowTcpForwarding no
X11Forwarding no
"""
_HOST_KEYS: Final = """\
# The image has no host keys: each machine makes its own.
[Service]
ExecStartPre=
ExecStartPre=/usr/bin/ssh-keygen -A
ExecStartPre=/usr/sbin/sshd -t
"""
_GRUB: Final = """\
search --no-floppy --label --set=root casemate-root
linux ($root)/boot/vmlinuz root=LABEL=casemate-root ro console=ttyS0 lockdown=integrity
initrd ($root)/boot/initrd.img
boot
"""
_FILES: Final = {
    "/etc/hostname": "debian\n",
    "/etc/hosts": "127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost\n",
    "/etc/fstab": "LABEL=casemate-root / ext4 errors=remount-ro,noatime 0 1\n",
    "/etc/systemd/network/80-dhcp.network": "[Match]\nName=en* eth*\n[Network]\nDHCP=yes\n",
    "/etc/ssh/sshd_config.d/10-casemate.conf": _SSHD,
    "/etc/systemd/system/ssh.service.d/host-keys.conf": _HOST_KEYS,
    "/etc/cloud/cloud.cfg.d/90-casemate.cfg": "datasource_list: [ NoCloud, None ]\n"
    "disable_root: true\nssh_pwauth: false\n",
    "/etc/apt/apt.conf.d/20auto-upgrades": 'APT::Periodic::Update-Package-Lists "1";\n'
    'APT::Periodic::Unattended-Upgrade "1";\n',
    "/etc/sysctl.d/50-hardening.conf": "".join(f"{name} = {values[0]}\n" for name, values in SYSCTLS.items()),
    # What systemd-boot, kernel-install and tools read; GRUB's own three lines are on the EFI system partition.
    "/etc/kernel/cmdline": "root=LABEL=casemate-root ro console=ttyS0 lockdown=integrity\n",
}
_EARLY_FILES: Final = {
    "/etc/initramfs-tools/conf.d/casemate": "MODULES=most\nCOMPRESS=zstd\n",
    "/etc/kernel-img.conf": "do_symlinks = yes\nlink_in_boot = yes\n",
}


class Built(msgspec.Struct, frozen=True):
    """``lists``: directory with the security lists that the packages were compared with, laid out as apt does."""

    path: str
    size_bytes: int
    suite: str
    lists: str


def build_debian(
    output: str,
    work: str,
    *,
    suite: str = "bookworm",
    size_mib: int = 2048,
    include: Sequence[str] = (),
    report: Callable[[str], None] = lambda text: None,
) -> Built:
    """Build the disk.

    Args:
        output: a file that does not exist yet.
        work: an empty directory of the caller's, on a file system with room for the image.
        suite: out of `SUITES`.
        size_mib: of the disk.
        include: further packages.
        report: told each long step.

    Raises:
        InputError: the output exists, a package's name is none. HostError: a tool is missing. VmError: a step failed.
    """
    if suite not in SUITES:
        raise InputError(f"there is no recipe for {suite!r}", expected=", ".join(SUITES))
    if not 1024 <= size_mib <= 1 << 20:
        raise InputError("the size of the disk", got=f"{size_mib} MiB", expected="1024 MiB to 1 TiB")
    for name in include:
        if re.fullmatch(r"[a-z0-9][a-z0-9+.-]{1,127}", name) is None:
            raise InputError("this is no name of a package", got=ascii(name)[:80])
    if os.path.lexists(output):
        raise InputError(f"{output} exists", expected="a new file", next_step="remove it, or choose another name")
    _check_tools()
    place = Path(work)
    root_mib = size_mib - ESP_MIB - 2
    report("packages: mmdebstrap fetches and unpacks them (a minute or two)")
    _bootstrap(place, suite, root_mib, (*PACKAGES, *include))
    report("disk: partitions and boot loader")
    _esp(place)
    disk = place / "disk.img"
    _disk(place, disk, size_mib, root_mib)
    os.chmod(disk, 0o600)
    try:
        os.link(disk, output)
    except OSError:  # another file system
        shutil.copyfile(disk, output)
        os.chmod(output, 0o600)
    disk.unlink()
    return Built(output, size_mib * MIB, suite, str(place / "lists"))


def _check_tools() -> None:
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool, path=_PATH) is None})
    if missing:
        raise HostError(
            "programs are missing", got=", ".join(missing), next_step=f"apt-get install {' '.join(missing)}"
        )


def _run(command: Sequence[str], *, stdin: str = "", timeout_s: float = 300) -> str:
    environment = {
        "PATH": _PATH,
        "LC_ALL": "C.UTF-8",
        "HOME": os.environ.get("HOME", "/"),
        "TMPDIR": tempfile.gettempdir(),
    }
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        raise VmError(
            f"{command[0]} did not end", got=f"{timeout_s:.0f} s", next_step="is the archive reachable?"
        ) from None
    if done.returncode != 0:
        words = " | ".join(line for line in done.stderr.splitlines()[-8:] if line.strip())
        raise VmError(f"{command[0]} failed", got=f"status {done.returncode}: {words[-800:]}")
    return done.stdout


def _bootstrap(place: Path, suite: str, root_mib: int, packages: Sequence[str]) -> None:
    lists = place / "lists" / "var" / "lib" / "apt"
    lists.mkdir(parents=True)
    command = ["mmdebstrap", "--variant=minbase", "--mode=auto", f"--include={','.join(packages)}"]
    command += ["--aptopt=APT::Install-Recommends false", "--aptopt=Acquire::Retries 3"]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT]
    command += [f"--setup-hook={_write_files(_EARLY_FILES)}", f"--customize-hook={_write_files(_FILES)}"]
    command += [f"--customize-hook=copy-out /var/lib/apt/lists {shlex.quote(str(lists))}"]
    command += [f"--customize-hook={_configure()}", f"--customize-hook={_fill(root_mib)}"]
    for inside, name in (
        ("/root.img", "root.img"),
        ("/usr/lib/shim/shimx64.efi.signed", "shim.efi"),
        ("/usr/lib/shim/mmx64.efi.signed", "mm.efi"),
        ("/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed", "grub.efi"),
    ):
        command.append(f"--customize-hook=download {inside} {shlex.quote(str(place / name))}")
    _run([*command, suite, "/dev/null", *archives(suite)], timeout_s=TIMEOUT_S)


def archives(suite: str) -> list[str]:
    """Where this host gets that suite from, with its security suite; empty when it does not: mmdebstrap knows one."""
    try:
        text = _run(
            ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]
        )
    except (VmError, OSError):
        return []
    wanted = ([suite, "main"], [f"{suite}-security", "main"])
    found = [line for line in text.splitlines() if line.split()[1:] in wanted]
    return [f"deb {line}" for line in dict.fromkeys(found)]


def _write_files(files: dict[str, str]) -> str:
    lines = []
    for path, text in files.items():
        target = f'"$1"{shlex.quote(path)}'
        lines += [f'mkdir -p "$1"{shlex.quote(os.path.dirname(path))}', f"printf %s {shlex.quote(text)} >{target}"]
    return "set -e; " + "; ".join(lines)


def _configure() -> str:
    """Lock, enable, and remove what a machine must make for itself."""
    return "; ".join(
        (
            "set -e",
            'chroot "$1" passwd --quiet --lock root',
            'chroot "$1" systemctl --quiet enable systemd-networkd.service ssh.service',
            # A machine without a network would wait two minutes for it.
            'chroot "$1" systemctl --quiet mask systemd-networkd-wait-online.service',
            'rm -f "$1"/etc/ssh/ssh_host_*_key "$1"/etc/ssh/ssh_host_*_key.pub',
            'rm -f "$1"/var/lib/systemd/random-seed "$1"/var/lib/systemd/credential.secret',
            'rm -f "$1"/var/lib/dbus/machine-id; mkdir -p "$1"/var/lib/dbus',
            'ln -s /etc/machine-id "$1"/var/lib/dbus/machine-id',
            ': >"$1"/etc/machine-id',
            'rm -rf "$1"/var/lib/cloud "$1"/var/log/*.log "$1"/var/log/apt "$1"/root/.bash_history',
            'ln -sf "$(basename "$1"/boot/vmlinuz-*)" "$1"/boot/vmlinuz',
            'ln -sf "$(basename "$1"/boot/initrd.img-*)" "$1"/boot/initrd.img',
            'find "$1"/var/lib/apt/lists "$1"/var/cache/apt "$1"/var/cache/debconf -type f -delete',
            'rm -f "$1"/etc/resolv.conf "$1"/etc/hostname~',
        )
    )


def _fill(root_mib: int) -> str:
    """An ext4 of the new root, made into an empty file: no block holds anything that was deleted before."""
    make = f'mke2fs -q -t ext4 -L casemate-root -E lazy_itable_init=1 -d /mnt "$1.img" {root_mib}M'
    inner = shlex.quote(f'set -e; mount --bind "$1" /mnt; {make}')
    return f'set -e; PATH=$PATH:/usr/sbin:/sbin; unshare --mount sh -c {inner} sh "$1"; mv "$1.img" "$1/root.img"'


def _esp(place: Path) -> None:
    """The EFI system partition under the removable name that firmware looks for; GRUB looks in EFI/debian."""
    esp = place / "esp.img"
    with esp.open("wb") as file:
        file.truncate(ESP_MIB * MIB)
    _run(["mkfs.vfat", "-F", "32", "-n", "ESP", str(esp)])
    (place / "grub.cfg").write_text(_GRUB)
    _run(["mmd", "-i", str(esp), "::/EFI", "::/EFI/BOOT", "::/EFI/debian"])
    for source, target in (
        ("shim.efi", "/EFI/BOOT/BOOTX64.EFI"),
        ("mm.efi", "/EFI/BOOT/mmx64.efi"),
        ("grub.efi", "/EFI/BOOT/grubx64.efi"),
        ("grub.cfg", "/EFI/debian/grub.cfg"),
    ):
        _run(["mcopy", "-i", str(esp), str(place / source), f"::{target}"])


def _disk(place: Path, disk: Path, size_mib: int, root_mib: int) -> None:
    with disk.open("wb") as file:
        file.truncate(size_mib * MIB)
    table = (
        "label: gpt\n"
        f"start=1MiB, size={ESP_MIB}MiB, type=uefi, name=esp\n"
        f"start={1 + ESP_MIB}MiB, size={root_mib}MiB, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=root\n"
    )
    _run(["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", str(disk)], stdin=table)
    for name, start_mib in (("esp.img", 1), ("root.img", 1 + ESP_MIB)):
        with (place / name).open("rb") as read, disk.open("r+b") as write:
            offset = start_mib * MIB
            while chunk := read.read(MIB):
                if chunk.count(0) != len(chunk):
                    write.seek(offset)
                    write.write(chunk)
                offset += len(chunk)
        (place / name).unlink()
