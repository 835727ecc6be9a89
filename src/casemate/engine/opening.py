"""Open every file of a launch once, check it through the opened descriptor, and hand over the descriptor.

Ownership: `Opened` owns all descriptors until `close`; the supervisor keeps the locks of writable disks for the VM's
life, everything else is closed once the emulator has its copies.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from typing import TYPE_CHECKING

import msgspec

from casemate.engine.content import Promise
from casemate.engine.paths import Paths
from casemate.engine.uefi import own_variables, read_enrolled
from casemate.errors import HostError, InputError
from casemate.image.opening import FileIdentity, identity_of, open_image, open_regular_file, verify_unchanged
from casemate.plan.confidential import FIRMWARE_ROLE
from casemate.plan.model import OpenFile
from casemate.spec.model import Boot, Disk, DiskFormat, DiskMode, Spec

if TYPE_CHECKING:
    from casemate.engine.uefi_keys import Enrolled

_NO_FIRMWARE = Boot()


class Opened(msgspec.Struct):
    """Descriptors by role, sizes for the plan, promised digests, and what must still be true at use.

    ``digests``: what boot files must hash to, checked on their copies. ``promises``: what images must be, checked
    beside the emulator's start-up (`engine.content`). ``enrolled``: Secure Boot's keys at the first start.
    """

    by_role: dict[str, int] = msgspec.field(default_factory=dict)
    sizes: dict[str, int] = msgspec.field(default_factory=dict)
    digests: dict[str, str] = msgspec.field(default_factory=dict)
    promises: tuple[Promise, ...] = ()
    identities: dict[str, tuple[FileIdentity, str]] = msgspec.field(default_factory=dict)
    locks: list[int] = msgspec.field(default_factory=list)
    enrolled: Enrolled | None = None

    def close(self) -> None:
        """Close everything."""
        for descriptor in (*self.by_role.values(), *self.locks):
            os.close(descriptor)
        self.by_role.clear()
        self.locks.clear()

    def verify_unchanged(self) -> None:
        """Nothing was replaced or written between the check and now.

        Raises:
            ImageError: naming the file.
        """
        for role, (identity, path) in self.identities.items():
            verify_unchanged(self.by_role[role], identity, path)


def open_spec_files(spec: Spec) -> Opened:
    """Open kernel, initrd and disks, and inspect every image header.

    Raises:
        InputError, ImageError: with path and next step; nothing stays open.
    """
    opened = Opened()
    try:
        for role, path in (("kernel", spec.boot.kernel), ("initrd", spec.boot.initrd)):
            if path is not None:
                descriptor = opened.by_role[role] = open_regular_file(path, what=role)
                opened.sizes[role] = os.fstat(descriptor).st_size
                opened.identities[role] = (identity_of(descriptor), path)
                _check_boot_file(role, path, opened.sizes[role])
        for index, disk in enumerate(spec.disks):
            role, writable = f"disk{index}", disk.mode is DiskMode.PERSISTENT
            descriptor = opened.by_role[role] = open_image(disk.path, writable=writable)
            opened.sizes[role] = guest_size_bytes(descriptor, disk)
            _refuse_twin(opened, spec, index, identity_of(descriptor))
            opened.identities[role] = (identity_of(descriptor), disk.path)
            opened.locks.append(_lock(disk.path, descriptor, writable))
    except BaseException:
        opened.close()
        raise
    return opened


def overlay_roles(spec: Spec) -> list[str]:
    """The roles of a VM's overlays, in the order of its disks."""
    return [f"overlay{index}" for index, disk in enumerate(spec.disks) if disk.mode is DiskMode.OVERLAY]


def guest_size_bytes(descriptor: int, disk: Disk) -> int:
    """The size that the guest will see, of a disk whose header is accepted.

    Raises:
        ImageError: it is not.
    """
    if disk.key is not None:
        if disk.format is DiskFormat.QCOW2:
            from casemate.image.qcow2_luks import inspect_qcow2_luks

            return inspect_qcow2_luks(descriptor, disk.path)[2]
        from casemate.image.luks import inspect_luks

        return inspect_luks(descriptor, disk.path)[1]
    from casemate.image.headers import inspect_image  # here: not every VM has a disk

    return inspect_image(descriptor, disk.path, disk.format.value).virtual_size_bytes


def _check_boot_file(role: str, path: str, size_bytes: int) -> None:
    limit = 256 << 20 if role == "kernel" else 1 << 30
    if not 0 < size_bytes <= limit:
        raise InputError(f"{role} {path!r}", got=f"{size_bytes} bytes", expected=f"1 to {limit} bytes")


def _refuse_twin(opened: Opened, spec: Spec, index: int, identity: FileIdentity) -> None:
    """The specification knows paths; two hard links to one file are two paths.

    Raises:
        InputError: an earlier disk is the same file, and one of the two is written to.
    """
    for earlier, other in enumerate(spec.disks[:index]):
        known, path = opened.identities[f"disk{earlier}"]
        written = DiskMode.PERSISTENT in {other.mode, spec.disks[index].mode}
        if written and (known.device, known.inode) == (identity.device, identity.inode):
            raise InputError(
                f"disk[{index}] {spec.disks[index].path!r} is the same file as disk[{earlier}]",
                got=f"two names of one file, the other {path!r}",
                expected="each disk once where it is written to",
                next_step="leave one out, or copy the image",
            )


def _lock(path: str, descriptor: int, writable: bool) -> int:
    """A lock of ours on the image, held while the VM runs: one writer, or many readers."""
    # A lock belongs to an open file description; QEMU gets another one, so that it cannot give ours back.
    own = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(own, (fcntl.LOCK_EX if writable else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(own)
        raise InputError(
            f"disk {path!r} is in use by another VM",
            got="a writer" if not writable else "another user of the image",
            expected="one writer and nobody else, or readers only",
            next_step="casemate ps shows the running VMs; mode overlay lets many share one image",
        ) from None
    return own


def open_planned_files(
    files: tuple[OpenFile, ...], opened: Opened, paths: Paths, vm_id: str, boot: Boot = _NO_FIRMWARE
) -> None:
    """Open what only the plan knows: firmware, the VM's own variables, overlays, entropy."""
    for file in files:
        if file.role in opened.by_role:
            continue
        if file.access == "overlay":
            opened.by_role[file.role] = _new_overlay(paths.vm_data(vm_id), file.virtual_size_bytes)
        elif file.access == "memory":  # a launch has filled it before (provisioning.py); a proof has nothing to tell
            opened.by_role[file.role] = _empty_memory(file.role)
        elif file.access == "device":
            opened.by_role[file.role] = _open_device(file.path)
        elif file.access == "vars":
            opened.by_role[file.role] = own_variables(file, boot, paths.vm_data(vm_id))
            opened.enrolled = read_enrolled(boot, paths.vm_data(vm_id))
        else:
            opened.by_role[file.role] = open_regular_file(file.path, what=file.role)
        if file.sha256 or file.role == FIRMWARE_ROLE:
            opened.sizes[file.role] = os.fstat(opened.by_role[file.role]).st_size
    opened.by_role["entropy"] = os.open("/dev/urandom", os.O_RDONLY | os.O_CLOEXEC)
    opened.by_role["null"] = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)


def _empty_memory(role: str) -> int:
    """A read-only descriptor of memory with nothing in it."""
    descriptor = os.memfd_create(f"casemate-{role}", os.MFD_CLOEXEC)
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(descriptor)


def _open_device(path: str) -> int:
    """A character device for VFIO.

    Raises:
        HostError: it is not there, not a device, or not ours to open.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as fault:
        raise HostError(
            f"{path} cannot be opened", got=fault.strerror or "", next_step="check its owner and mode"
        ) from fault
    if not stat.S_ISCHR(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise HostError(path, got="not a character device")
    return descriptor


def nameless_file(directory: str) -> int:
    """A file without a name, for an overlay: it dies with the last descriptor, whatever kills the VM."""
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:  # a file system without O_TMPFILE
        path = f"{directory}/overlay.{os.urandom(6).hex()}"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        os.unlink(path)
        return descriptor


def _new_overlay(directory: str, size_bytes: int) -> int:
    """An empty qcow2 file without a name."""
    from casemate.image.overlay import write_empty_qcow2

    descriptor = nameless_file(directory)
    try:
        write_empty_qcow2(descriptor, size_bytes)
    except OSError as fault:
        os.close(descriptor)
        raise no_room(directory, fault) from fault
    return descriptor


def no_room(directory: str, fault: OSError) -> HostError:
    """An overlay could not be written."""
    return HostError(
        "no room for the disk's overlay", got=f"{directory}: {fault.strerror}", next_step=f"df -h {directory}"
    )


def digest_file(descriptor: int) -> str:
    """SHA-256 of an open file, read once, without moving its position."""
    digest = hashlib.sha256()
    offset = 0
    while chunk := os.pread(descriptor, 1 << 20, offset):
        digest.update(chunk)
        offset += len(chunk)
    return digest.hexdigest()
