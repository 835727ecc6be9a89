"""A Debian 12 guest in which Casemate runs under a real LSM: SELinux enforcing or AppArmor, by kernel command line.

    <user's cache>/tests/mac-<key>/     kernel, initrd, root.img (ext4, labelled with Debian's policy and our module)
    payload.tar                         made for each run: this checkout, its dependencies, the built-in guest, the
                                        script that runs inside; the guest unpacks it from its second disk

Only root can build it: SELinux labels are ``security.`` attributes, which no user namespace may set.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from casemate.engine.paths import default_paths

SUITE = "bookworm"
SOURCE = Path(__file__).parents[2] / "src"
SCRIPT = Path(__file__).with_name("mac_guest.py")
POLICY = SOURCE / "casemate" / "data" / "casemate.cil"
UNIT = "casemate-mac.service"
_ROOT_MIB = 900
_TIMEOUT_S = 900
_PACKAGES = (
    "systemd-sysv,linux-image-cloud-amd64,python3,qemu-system-x86,libseccomp2,procps,"
    "selinux-policy-default,policycoreutils,selinux-utils,apparmor"
)
_DEPENDENCIES = ("msgspec", "pyseccomp", "cffi", "_cffi_backend", "pycparser", "cryptography")
_UNIT_TEXT = """[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
ExecStartPre=/bin/mkdir -p /opt/casemate
ExecStartPre=/bin/tar -xf /dev/vdb -C /opt/casemate
ExecStart=/usr/bin/python3 /opt/casemate/mac_guest.py
ExecStopPost=/bin/systemctl poweroff -ff
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
"""
_INITRAMFS = {
    "/etc/initramfs-tools/conf.d/casemate": "MODULES=list\nBUSYBOX=n\nCOMPRESS=gzip\nFSTYPE=ext4\n",
    "/etc/initramfs-tools/modules": "ext4\nvirtio_blk\nvirtio_mmio\nvirtio_pci\n",
}
_OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private")
_LABEL = "setfiles -F -e /proc /etc/selinux/default/contexts/files/file_contexts /"


@dataclass(frozen=True)
class MacImages:
    """Files of one build; nobody may write to them."""

    kernel: Path
    initrd: Path
    root: Path


def mac_images() -> MacImages:
    """The images, built when they are not in the cache (about two minutes).

    Raises:
        RuntimeError: a program failed; the message ends with its last words.
    """
    store = Path(default_paths().cache) / "tests"
    store.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = hashlib.sha256(Path(__file__).read_bytes() + POLICY.read_bytes()).hexdigest()[:16]
    place = store / f"mac-{key}"
    with (store / "mac-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            for old in store.glob("mac-*/"):  # other recipes, and builds that were killed: we hold the lock
                shutil.rmtree(old, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=store, prefix="mac-building-") as work:
                build = Path(work) / "done"
                build.mkdir()
                _build(build)
                build.rename(place)
    return MacImages(place / "kernel", place / "initrd", place / "root.img")


def write_payload(target: Path, guest: Path) -> None:
    """``target``: a tar with all that `mac_guest.py` needs. ``guest``: the cache's directory of built-in guests."""
    with tarfile.open(target, "w") as archive:
        archive.add(SOURCE, "src", filter=lambda item: None if "__pycache__" in item.name else item)
        for name in _DEPENDENCIES:
            found = importlib.util.find_spec(name)
            if found is None or found.origin is None:
                raise RuntimeError(f"{name} is not installed")
            origin = Path(found.origin)
            origin = origin.parent if origin.name == "__init__.py" else origin
            archive.add(origin, f"site/{origin.name}")
        archive.add(guest, "cache/guest")
        archive.add(SCRIPT, SCRIPT.name)
    with target.open("ab") as file:
        file.truncate(-(-file.tell() // 512) * 512)


def _run(command: list[str], *, stdin: str = "", timeout_s: float = 120) -> str:
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=timeout_s, env=environment, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)[:200]}: status {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def _archives() -> str:
    """Debian 12 as this host gets it; empty when it does not, then mmdebstrap has a default."""
    fields = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    wanted = ("Created-By: Packages", "Origin: Debian")
    lines = _run(["apt-get", "indextargets", "--format", fields, *wanted]).splitlines()
    found = [line for line in lines if line.split()[1:] in ([SUITE, "main"], [f"{SUITE}-security", "main"])]
    return "".join(f"deb {line}\n" for line in dict.fromkeys(found))


def _write(files: dict[str, str]) -> str:
    lines = []
    for path, text in files.items():
        lines += [f'mkdir -p "$1"{os.path.dirname(path)}', f'printf %s {shlex.quote(text)} >"$1"{path}']
    return "; ".join(lines)


def _build(place: Path) -> None:
    root = place / "root"
    finish = (
        "set -e",
        _write({f"/etc/systemd/system/{UNIT}": _UNIT_TEXT, "/etc/machine-id": "6a1f2c0b9d3e4f5a8b7c6d5e4f3a2b1d\n"}),
        'sed -i "s/^SELINUX=.*/SELINUX=enforcing/" "$1"/etc/selinux/config',
        f'cp {shlex.quote(str(POLICY))} "$1"/root/casemate.cil',
        'chroot "$1" semodule -n -i /root/casemate.cil',
        f'cp "$1"/boot/vmlinuz-* {shlex.quote(str(place))}/kernel',
        f'cp "$1"/boot/initrd.img-* {shlex.quote(str(place))}/initrd',
        'find "$1"/var/lib/apt/lists "$1"/var/cache/apt -type f -delete',
    )
    # As root mmdebstrap mounts /proc, /sys, /dev/pts and /dev/shm into the new root. A mount namespace of its own takes
    # them along when it is killed; left on the host, whoever removes the directory would empty the host's /dev/shm.
    command = list(_OWN_MOUNTS)
    command += ["mmdebstrap", "--variant=minbase", "--mode=root", f"--include={_PACKAGES}"]
    command += ["--aptopt=APT::Install-Recommends false", "--aptopt=Acquire::Retries 3"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "info", "locale")]
    command += [f"--setup-hook={_write(_INITRAMFS)}", f"--customize-hook={'; '.join(finish)}", SUITE, str(root), "-"]
    _run(command, stdin=_archives(), timeout_s=_TIMEOUT_S)
    # mmdebstrap's own clean-up is over: nothing changes after the labels.
    label = f'mount -t proc proc "$1"/proc && chroot "$1" {_LABEL}'
    _run([*_OWN_MOUNTS, "sh", "-ec", label, "sh", str(root)])
    options = ["-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=1"]
    _run(["mke2fs", "-q", *options, "-d", str(root), str(place / "root.img"), f"{_ROOT_MIB}M"])
    shutil.rmtree(root)
