"""Which files a target is or uses, so that what is found about a file can be joined to the VMs that use it."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from casemate.controls.audit_model import DiskRef, FileRef
from casemate.facts.machine import Disk, Machine
from casemate.facts.root import Root

if TYPE_CHECKING:
    from casemate.audit.live import LiveVm
    from casemate.engine.imagestore import OpenedImage

_DIGEST = re.compile("[0-9a-f]{64}")
_REMOVABLE = ("-cd", "floppy")
_DISKS_MAX = 64
"""More disks than any VM has: a document that names them makes no report large."""


def ref_of_open(descriptor: int, path: str, sha256: str = "") -> FileRef:
    """A file that is open."""
    status = os.fstat(descriptor)
    return FileRef(path=os.path.realpath(path), identity=f"{status.st_dev}:{status.st_ino}", sha256=sha256)


def ref_of_image(opened: OpenedImage) -> FileRef:
    """An image that a user named. A launch compares the digest of a stored one: it starts what the store names."""
    return ref_of_open(opened.fd, opened.path, opened.stored.digest.removeprefix("sha256:") if opened.stored else "")


def ref_of_path(root: Root, path: str) -> FileRef:
    """A file of a host by its name; what cannot be looked at is known by its name alone."""
    if not path.startswith("/"):
        return FileRef()
    try:
        real = root.real_path(path)
        status = root.stat(real)
    except OSError:
        return FileRef(path=path)
    # Inode numbers of a tree are those of its copies.
    return FileRef(path=real, identity=f"{status.st_dev}:{status.st_ino}" if root.is_live else "")


def emulator_of(vm: LiveVm, root: Root) -> FileRef | None:
    """The program that a running VM's emulator is, by its inode; a VM of ours may run a sealed copy that is named by
    the digest of what it was copied from."""
    try:
        status = root.stat(f"/proc/{vm.found.pid}/exe")
    except OSError:
        return None
    path = vm.found.executable
    if not root.is_live:
        return FileRef(path=path) if path.startswith("/") else None
    if vm.own is not None:
        if vm.own.sealed:
            return FileRef(sha256=vm.own.sealed)
        path = ""  # as its own root names it
    return FileRef(path=path if path.startswith("/") else "", identity=f"{status.st_dev}:{status.st_ino}")


def sealed_copy(folder: str, pid: int) -> str:
    """The digest that names what this process runs among the emulators that launches copied; empty when it is none."""
    try:
        runs = os.stat(f"/proc/{pid}/exe")  # noqa: PTH116  a descriptor's worth, not a Path
        with os.scandir(folder) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if os.path.samestat(status, runs) and _DIGEST.fullmatch(entry.name):
                    return entry.name
    except OSError:
        return ""  # gone, or not ours to look at: it stays a file that nobody can name
    return ""


def disks_of(machine: Machine, root: Root | None = None) -> tuple[DiskRef, ...]:
    """The disks of a described machine.

    Args:
        root: of the host that the description is known to be of; without it the names stand as they are.
    """
    return tuple(_disk(disk, root) for disk in machine.disks[:_DISKS_MAX])


def _disk(disk: Disk, root: Root | None) -> DiskRef:
    removable = disk.device.endswith(_REMOVABLE)
    path = disk.path
    # A number of a descriptor is no name, and what a network serves is no file of this host.
    if disk.protocol not in ("file", "host_device") or not path.startswith("/") or path.startswith("/dev/fdset/"):
        return DiskRef(removable=removable)
    if root is None:
        return DiskRef(path=path, removable=removable)
    found = ref_of_path(root, path)
    return DiskRef(path=found.path, identity=found.identity, removable=removable)
